"""The configuration: proxy.yaml, overridden by the environment, as frozen ``Settings``.

Whatever is wrong with it, `load_settings` says so by one `ConfigurationError` of one line.
The ``description`` of a field is what that line says was expected.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

from clamproxy.config.units import (
    GIB,
    MIB,
    HttpProxy,
    Nameserver,
    Network,
    domain_matches,
    host_matches,
    parse_base_url,
    parse_database,
    parse_domain_pattern,
    parse_duration,
    parse_host_name,
    parse_host_pattern,
    parse_http_proxy,
    parse_nameserver,
    parse_network,
    parse_share,
    parse_size,
    require_text,
)

LOCAL_CONFIG = "proxy.yaml"
SYSTEM_CONFIG = Path("/etc/clamproxy/proxy.yaml")
ENVIRONMENT_PREFIX = "CLAMPROXY_"

_SHOWN_LENGTH = 80
_HARMLESS_PROXY = re.compile(r"'(?:\w+:/*)?[\w.-]*(?::\d*)?/?'|[^'\"]*")
"""The repr of a wrong value of upstream.proxy in which no password can be."""


class ConfigurationError(Exception):
    """The configuration cannot be used; the text is one line for the operator."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        )


def _absolute_path(value: object, info: ValidationInfo) -> Path:
    """Resolve a path against the validation context's ``base``, else the working directory."""
    text = str(value) if isinstance(value, Path) else require_text(value)
    if not text or b"\0" in os.fsencode(text):
        raise ValueError("a path")
    base: Path = info.context["base"] if info.context else Path.cwd()
    return base / text


def _readable_file(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError("a readable file") from error
    return path


Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Share = Annotated[float, BeforeValidator(parse_share)]
Count = Annotated[int, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]
AbsolutePath = Annotated[Path, PlainValidator(_absolute_path)]
DatabaseName = Annotated[str, BeforeValidator(parse_database)]
BaseUrl = Annotated[str, BeforeValidator(parse_base_url)]
HostName = Annotated[str, BeforeValidator(parse_host_name)]

_TIMEOUT = "a duration such as 10s, more than 0 and at most 1h"
_SWITCH = "true or false"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Cache(_Section):
    """Where objects are kept, and how many."""

    directory: AbsolutePath = Field(
        default=Path("cache"), validate_default=True, description="the path of a directory"
    )
    size_limit: Size = Field(4 * GIB, ge=MIB, description="a size such as 4GiB, at least 1 MiB")
    keep_cdiffs: Count = Field(120, ge=0, description="a whole number, at least 0")


class Upstream(_Section):
    """Where misses are fetched; timeouts in seconds."""

    url: BaseUrl = Field(
        "https://database.clamav.net",
        description="an http:// or https:// URL without credentials, query and fragment",
    )
    proxy: Annotated[HttpProxy, PlainValidator(parse_http_proxy)] | None = Field(
        None, description="an http:// or https:// URL such as http://user:password@proxy:3128, or null"
    )
    ca_bundle: Annotated[AbsolutePath, AfterValidator(_readable_file)] | None = Field(
        None, description="a readable file of PEM certificates, or null"
    )
    connect_timeout: Duration = Field(10.0, gt=0, le=3600, description=_TIMEOUT)
    read_timeout: Duration = Field(30.0, gt=0, le=3600, description=_TIMEOUT)


class Versions(_Section):
    """How advertised versions are learned; `refresh` in seconds."""

    dns: Switch = Field(True, description=_SWITCH)
    domain: HostName = Field("current.cvd.clamav.net", description="a host name")
    nameservers: tuple[Annotated[Nameserver, PlainValidator(parse_nameserver)], ...] = Field(
        (), description='a list of IP addresses such as [192.0.2.1, "[2001:db8::1]:53"]'
    )
    refresh: Duration = Field(
        300.0, gt=0, le=86400, description="a duration such as 5min, more than 0 and at most 1d"
    )


DEFAULT_CLIENTS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "::1/128"),
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        *("fc00::/7", "fe80::/10", "169.254.0.0/16"),  # RFC 4193, RFC 4291, RFC 3927
        "100.64.0.0/10",  # RFC 6598
    )
)


class Serving(_Section):
    """What is answered, and to whom."""

    hosts: tuple[Annotated[str, BeforeValidator(parse_host_pattern)], ...] = Field(
        ("database.clamav.net", "db.local.clamav.net", "db.*.clamav.net"),
        min_length=1,
        description="a list of one or more host names such as [database.clamav.net]",
    )
    databases: tuple[DatabaseName, ...] = Field(
        ("main", "daily", "bytecode", "safebrowsing", "test", "valhalla"),
        min_length=1,
        description="a list of one or more names such as [main, daily]",
    )
    clients: tuple[Annotated[Network, PlainValidator(parse_network)], ...] = Field(
        DEFAULT_CLIENTS,
        min_length=1,
        description='a list of one or more networks such as [10.0.0.0/8, "fd00::/8"]',
    )
    pass_through: tuple[Annotated[str, BeforeValidator(parse_domain_pattern)], ...] = Field(
        (), description='a list of host names such as [www.example.com, "*.example.com"]'
    )

    def is_clamav_host(self, host: str) -> bool:
        """Tell whether a host (without port) is answered as the CDN; ``*`` is one label."""
        return any(host_matches(pattern, host) for pattern in self.hosts)

    def passes_through(self, host: str) -> bool:
        """Tell whether requests for a host (without port) are forwarded as they are."""
        return any(domain_matches(pattern, host) for pattern in self.pass_through)

    def admits(self, address: str) -> bool:
        """Tell whether a client may use the proxy.

        Args:
            address: Its IP address, as a socket gives it: a zone id (``fe80::1%eth0``) is
                left out, an IPv4-mapped address (``::ffff:10.0.0.1``) counts as IPv4.
        """
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        return any((mapped or ip) in network for network in self.clients)


class Delta(_Section):
    """Delta serving: an older CVD and the cdiffs from there on."""

    enabled: Switch = Field(True, description=_SWITCH)
    max_patches: Count = Field(90, ge=1, description="a whole number, at least 1")
    max_share: Share = Field(0.1, ge=0, le=1, description="a share such as 10% or 0.1, at most 100%")
    renew_after: Count = Field(30, ge=1, description="a whole number, at least 1")


class Settings(_Section):
    """The whole configuration; ``Settings()`` is the default one."""

    cache: Cache = Field(default_factory=Cache)
    upstream: Upstream = Field(default_factory=Upstream)
    versions: Versions = Field(default_factory=Versions)
    serving: Serving = Field(default_factory=Serving)
    delta: Delta = Field(default_factory=Delta)

    @model_validator(mode="before")
    @classmethod
    def _fill_sections(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Let absent and empty sections be validated too: their defaults need the context."""
        given = {name: {} if section is None else section for name, section in data.items()}
        return {name: {} for name in cls.model_fields} | given


_SECTIONS: dict[str, type[BaseModel]] = {
    model.__name__.lower(): model for model in (Cache, Upstream, Versions, Serving, Delta)
}
_VARIABLES = {
    f"{ENVIRONMENT_PREFIX}{section}__{key}".upper(): (section, key)
    for section, model in _SECTIONS.items()
    for key in model.model_fields
}


def find_config(explicit: str | None, cwd: Path) -> Path | None:
    """Find the configuration file.

    Args:
        explicit: The path that the user gave, if any; relative to `cwd`.
        cwd: The working directory.

    Returns:
        The explicit file, else proxy.yaml in `cwd`, else /etc/clamproxy/proxy.yaml, else
        None: everything has its default then.

    Raises:
        ConfigurationError: The explicit file does not exist, or a place cannot be looked at.
    """
    candidates = [cwd / LOCAL_CONFIG, SYSTEM_CONFIG] if explicit is None else [cwd / explicit]
    for path in candidates:
        try:
            if path.exists() and not path.is_dir():
                return path
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if explicit is not None:
        raise ConfigurationError(f"{explicit}: there is no such configuration file")
    return None


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the configuration.

    Args:
        path: The YAML file, or None for the defaults. Relative paths in the configuration
            start at its directory, without a file at the working directory.
        environ: The environment; ``CLAMPROXY_<SECTION>__<KEY>`` overrides the file.

    Raises:
        ConfigurationError: The first problem, in one line.
    """
    data = _read_file(path) if path else {}
    overrides = _overrides(environ)
    for variable, value in overrides.items():
        section, key = _VARIABLES[variable]
        content = {} if data.get(section) is None else data[section]
        if isinstance(content, dict):
            data[section] = content | {key: value}
    base = path.absolute().parent if path else Path.cwd()
    try:
        return Settings.model_validate(data, context={"base": base})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
    variables = [name for name in overrides if _VARIABLES[name] == detail["loc"][:2]]
    source = f"environment variable {variables[0]}" if variables else str(path)
    raise ConfigurationError(f"{source}: {_explain(detail, data)}")


def _read_file(path: Path) -> dict[Hashable, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start + 1} is not UTF-8 text") from None
    data = _parse_yaml(text, str(path))
    if data is not None and not isinstance(data, dict):
        raise ConfigurationError(f"{path}: the file is {_shown(data)}; expected sections such as cache:")
    return dict(data or {})


def _overrides(environ: Mapping[str, str]) -> dict[str, Any]:
    """Give the parsed values of the environment's variables of ours, by their names."""
    overrides = {}
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name.removeprefix(ENVIRONMENT_PREFIX):
            continue
        if name not in _VARIABLES:
            hint = _did_you_mean(name, {variable: variable for variable in _VARIABLES})
            raise ConfigurationError(f"environment variable {_masked(name)} names no setting{hint}")
        overrides[name] = _parse_yaml(text, f"environment variable {name}")
    return overrides


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and values that PyYAML trips over."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        None, None, f"the key {_masked(key.value)} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 63:
                raise OverflowError
        except (ArithmeticError, AttributeError, LookupError, ValueError):  # !!int "", 2024-13-45, ...
            raise yaml.MarkedYAMLError(None, None, "an impossible number or date", node.start_mark) from None
        return value


def _parse_yaml(text: str, source: str) -> Any:
    """Parse YAML; errors do not quote its lines, which may hold a password."""
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = len(before) - before.rfind("\n")
        place = f"line {before.count(chr(10)) + 1}, column {column}: "
        problem = "a character that YAML does not allow"
    except (ArithmeticError, ValueError):  # "\UFFFFFFFF", %YAML 1.<5000 digits>
        place = f"line {loader.line + 1}, column {loader.column + 1}: "
        problem = "an impossible number"
    except RecursionError:
        place, problem = "", "nested too deeply"
    raise ConfigurationError(f"{source}: {place}not valid YAML: {problem}")


def _explain(detail: ErrorDetails, data: Mapping[Hashable, Any]) -> str:
    """Say in plain words what pydantic found in `data`: key, value, what was expected."""
    section, *rest = (str(part) for part in detail["loc"])
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return _explain_unknown(section, rest)
    if not rest:
        return f"{section} is {_shown(detail['input'])}; expected a section: lines of key: value"
    key, value = f"{section}.{rest[0]}", data[section][rest[0]]
    expected = _SECTIONS[section].model_fields[rest[0]].description
    if len(rest) > 1:
        key, value = f"{key}[{rest[1]}]", detail["input"]
        expected = str(detail["ctx"]["error"])
    return f"{key} is {_shown(value, may_be_secret=key == 'upstream.proxy')}; expected {expected}"


def _explain_unknown(section: str, rest: list[str]) -> str:
    known = {key: f"{name}.{key}" for name, model in _SECTIONS.items() for key in model.model_fields}
    if rest:
        hint = _did_you_mean(rest[0], known) or f"; expected {', '.join(_SECTIONS[section].model_fields)}"
        return f"unknown key {section}.{_masked(rest[0])}{hint}"
    known |= {name: name for name in _SECTIONS}
    hint = _did_you_mean(section, known) or f"; expected {', '.join(_SECTIONS)}"
    return f"unknown section {_masked(section)}{hint}"


def _did_you_mean(name: str, known: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _shown(value: object, may_be_secret: bool = False) -> str:
    """Give a value as one short text without credentials."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | set):
        return "a list" if value else "an empty list"
    text = repr(value)
    if may_be_secret and "@" not in text and not _HARMLESS_PROXY.fullmatch(text):
        return "'***'"
    return _masked(text)


def _masked(text: str) -> str:
    """Hide what may be user:password before an @, and shorten."""
    text = re.sub(r"^(b?['\"]?(?:\w+:/*)?).*@", r"\1***@", text, flags=re.DOTALL)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."
