"""Reading the configuration: proxy.yaml, overridden by the environment.

Whatever is wrong with it, `load_settings` reports it as one `ConfigurationError` of one line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from clamproxy.config.settings import Settings

LOCAL_CONFIG = "proxy.yaml"
SYSTEM_CONFIG = Path("/etc/clamproxy/proxy.yaml")
ENVIRONMENT_PREFIX = "CLAMPROXY_"
PASSWORD_VARIABLE = "CLAMPROXY_PASSWORD"  # noqa: S105
"""Where `clamproxy doctor`, and the script that sets machines up, find a user's password."""
_NO_SETTINGS = frozenset({PASSWORD_VARIABLE, "CLAMPROXY_USER", "CLAMPROXY_CONF", "CLAMPROXY_ROOT"})
"""Variables of ours that are no settings: they are for the script that sets machines up (docs/rollout.md)."""
SECRETS = frozenset({
    *("status.token", "access.users", "mail.password"),
    *("notify.webhooks.url", "notify.webhooks.token", "fleet.peers.token"),
})  # fmt: skip
"""Keys whose values are never shown, in addition to the password in upstream.proxy."""

_FOREIGN = re.compile(
    r"CLAMPROXY_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)|CLAMPROXY_TEST\w+"
)
"""Names that Kubernetes and Docker set for a service called clamproxy, and those of the tests."""
_ADDRESS_OF_LINK = re.compile(r"(tcp|udp|sctp)://")
"""How they start the value of CLAMPROXY_PORT, which by its name alone might be meant for us."""

_TEXT, _NUMBERS = "tag:yaml.org,2002:str", ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_SHOWN_LENGTH = 80
_HARMLESS_PROXY = re.compile(r"'(?:\w+:/+)?[\w.-]*(?::\d*)?/?'|[^'\"]*")
"""The repr of a wrong value of upstream.proxy that can't contain a password."""


class ConfigurationError(Exception):
    """The configuration can't be used; the text is one line for the operator."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        )


_SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
_KEYS: dict[str, str] = {
    name: field.description or "" for name, field in Settings.model_fields.items() if name not in _SECTIONS
}
"""Keys outside of sections, with what is expected there."""
_VARIABLES: dict[str, tuple[str, ...]] = {
    f"{ENVIRONMENT_PREFIX}{section}__{key}".upper(): (section, key)
    for section, model in _SECTIONS.items()
    for key in model.model_fields
} | {f"{ENVIRONMENT_PREFIX}{key}".upper(): (key,) for key in _KEYS}


def working_directory() -> Path:
    """The working directory.

    Raises:
        ConfigurationError: it has been deleted, or may not be seen.
    """
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigurationError(f"the working directory can't be used: {error.strerror}") from None


def find_config(explicit: str | None, cwd: Path | None = None) -> Path | None:
    """Find the configuration file.

    Args:
        explicit: the path that the user gave, if any; relative to `cwd`.
        cwd: the working directory, if it is another than this process's own.

    Returns:
        The explicit file, else proxy.yaml in `cwd`, else /etc/clamproxy/proxy.yaml, else None: everything has
        its default then.

    Raises:
        ConfigurationError: the explicit file doesn't exist, or a place can't be checked.
    """
    if cwd is None:
        is_needed = explicit is None or not Path(explicit).is_absolute()
        cwd = working_directory() if is_needed else Path()
    candidates = [cwd / LOCAL_CONFIG, SYSTEM_CONFIG] if explicit is None else [cwd / explicit]
    for path in candidates:
        try:
            if path.is_dir():
                named = path if explicit is None else explicit
                raise ConfigurationError(f"{named}: this is a directory, not a configuration file")
            if path.exists() or path.is_symlink():  # one that leads nowhere is a mistake, too
                return path
        except OSError as error:
            raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if explicit is not None:
        raise ConfigurationError(f"{explicit}: no such configuration file")
    if (misnamed := (cwd / LOCAL_CONFIG).with_suffix(".yml")).exists():
        raise ConfigurationError(f"{misnamed}: expected the name {LOCAL_CONFIG}, or --config {misnamed.name}")
    return None


def is_configured(path: Path | None, environ: Mapping[str, str]) -> bool:
    """Whether there is any configuration, or only defaults."""
    return path is not None or not _VARIABLES.keys().isdisjoint(environ)


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the configuration.

    Args:
        path: the YAML file, or None for the defaults. Relative paths in the configuration start at its
            directory, without a file at the working directory.
        environ: the environment; ``CLAMPROXY_<SECTION>__<KEY>`` overrides the file.

    Raises:
        ConfigurationError: the first problem, in one line.
    """
    data = _read_file(path) if path else {}
    overrides = _overrides(environ)
    for variable, value in overrides.items():
        section, *keys = _VARIABLES[variable]
        content = {} if data.get(section) is None else data[section]
        if not keys:
            data[section] = value
        elif isinstance(content, dict):
            data[section] = content | {keys[0]: value}
    base = path.absolute().parent if path else working_directory()
    try:
        return Settings.model_validate(data, context={"base": base})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
    variables = [name for name in overrides if _VARIABLES[name] == detail["loc"][: len(_VARIABLES[name])]]
    explained = _explain(detail, data)
    if not variables:
        raise ConfigurationError(f"{path}: {explained}")
    if not environ[variables[0]].strip():
        explained = explained.replace(" is null;", " is empty;", 1)
    raise ConfigurationError(f"environment variable {variables[0]}: {explained}")


def read_text(path: Path) -> str:
    """The text of a file. Blocks.

    Raises:
        ConfigurationError: it can't be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start + 1} is not UTF-8 text") from None


def _read_file(path: Path) -> dict[Hashable, Any]:
    data = _parse_yaml(read_text(path), str(path))
    if data is not None and not isinstance(data, dict):
        raise ConfigurationError(f"{path}: the file is {_shown(data)}; expected sections such as cache:")
    return dict(data or {})


def _overrides(environ: Mapping[str, str]) -> dict[str, Any]:
    """The parsed values of our variables in the environment, by their names."""
    overrides = {}
    for name, text in environ.items():
        if not name.upper().startswith(ENVIRONMENT_PREFIX) or _is_foreign(name, text):
            continue
        if name not in _VARIABLES:
            raise ConfigurationError(f"environment variable {_masked(name)} is not a setting{_meant(name)}")
        overrides[name] = _parse_yaml(text, f"environment variable {name}")
    return overrides


def _is_foreign(name: str, text: str) -> bool:
    """Whether a variable is not for us, or not for the configuration."""
    if name.endswith("_PORT") and _ADDRESS_OF_LINK.match(text):
        return True
    return name in _NO_SETTINGS or _FOREIGN.fullmatch(name) is not None


def _meant(variable: str) -> str:
    """Suggest an existing variable for one that doesn't exist."""
    name = variable.upper().removeprefix(ENVIRONMENT_PREFIX)
    known = {one.removeprefix(ENVIRONMENT_PREFIX): one for one in _VARIABLES}
    for one, whole in known.items():
        if one.replace("_", "") == name.replace("_", ""):
            return f"; did you mean {whole}?"
    return _did_you_mean(name, known) or f"; expected {ENVIRONMENT_PREFIX}<SECTION>__<KEY>"


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys and values on which PyYAML fails, and knows no base 60."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        # YAML 1.1 reads 1:30 as 90. Whoever writes it means a time, or an address: a text, as in YAML 1.2.
        return _TEXT if tag in _NUMBERS and ":" in value else tag

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        None, None, f"the key {_masked(key.value)} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 63:
                raise OverflowError
        except (ArithmeticError, AttributeError, LookupError, ValueError):  # !!int "", 2024-13-45, ...
            raise yaml.MarkedYAMLError(None, None, "an invalid number or date", node.start_mark) from None
        return value


def _parse_yaml(text: str, source: str) -> Any:
    """Parse YAML. Errors don't quote its lines, which may hold a password."""
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
        problem = "an invalid number"
    except RecursionError:
        place, problem = "", "nested too deeply"
    raise ConfigurationError(f"{source}: {place}not valid YAML: {problem}")


def _explain(detail: ErrorDetails, data: Mapping[Hashable, Any]) -> str:
    """Explain in plain words what pydantic found in `data`: key, value, what was expected."""
    section, *rest = (str(part) for part in detail["loc"])
    entry = _entry_of(section, detail["loc"])
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        if entry is not None and len(rest) > 2:
            place, unknown = f"{section}.{rest[0]}[{rest[1]}]", rest[2]
            shown = unknown if re.fullmatch(r"[\w-]{1,40}", unknown) else "***"
            return f"unknown key {place}.{shown}; expected {', '.join(entry.model_fields)}"
        return _explain_unknown(section, rest)
    if section in _KEYS:
        wanted = detail["msg"] if detail["type"] == "conflict" else _KEYS[section]
        return f"{section} is {_shown(detail['input'])}; expected {wanted}"
    if not rest:
        value = "***" if isinstance(detail["input"], str) and _is_secret(section) else detail["input"]
        return f"{section} is {_shown(value)}; expected a section: lines of key: value"
    if entry is not None and len(rest) > 1:
        return _explain_entry(f"{section}.{rest[0]}", rest[1:], entry, detail)
    key, value = f"{section}.{rest[0]}", (data.get(section) or {}).get(rest[0])
    expected = _SECTIONS[section].model_fields[rest[0]].description
    if _is_secret(key) and value is not None and not isinstance(value, list):
        value = "***"
    if len(rest) > 1:
        if isinstance(value, list):
            key, value = f"{key}[{rest[1]}]", "***" if key in SECRETS else detail["input"]
        expected = str(detail["ctx"]["error"])
    if detail["type"] == "conflict":
        expected = detail["msg"]
    return f"{key} is {_shown(value, key)}; expected {expected}"


def _explain_entry(key: str, rest: list[str], entry: type[BaseModel], detail: ErrorDetails) -> str:
    """Explain what is wrong with an entry of a list, or with one of the entry's keys."""
    number, *inner = rest
    if not inner:
        shown = "'***'" if isinstance(detail["input"], str) else _shown(detail["input"])
        return (
            f"{key}[{number}] is {shown}; expected lines of key: value with {', '.join(entry.model_fields)}"
        )
    place, expected = f"{key}[{number}].{inner[0]}", entry.model_fields[inner[0]].description
    if detail["type"] == "missing":
        return f"{place} is missing; expected {expected}"
    hidden = f"{key}.{inner[0]}" in SECRETS and detail["input"] is not None
    return f"{place} is {"'***'" if hidden else _shown(detail['input'])}; expected {expected}"


def _entry_of(section: str, loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model of a list's entries, if the place of an error is in a list of such."""
    model = _SECTIONS.get(section)
    field = model.model_fields.get(str(loc[1])) if model is not None and len(loc) > 1 else None
    found = next(iter(get_args(field.annotation)), None) if field is not None else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _is_secret(key: str) -> bool:
    """Whether a key holds a secret, or entries that do."""
    return any(secret == key or secret.startswith(f"{key}.") for secret in SECRETS)


def _explain_unknown(section: str, rest: list[str]) -> str:
    known = {key: f"{name}.{key}" for name, model in _SECTIONS.items() for key in model.model_fields}
    if rest:
        known |= {key: f"{section}.{key}" for key in _SECTIONS[section].model_fields}
        hint = _did_you_mean(rest[0], known) or f"; expected {', '.join(_SECTIONS[section].model_fields)}"
        return f"unknown key {section}.{_masked(rest[0])}{hint}"
    known |= {name: name for name in (*_SECTIONS, *_KEYS)}
    hint = _did_you_mean(section, known) or f"; expected {', '.join(_SECTIONS)}"
    return f"unknown section {_masked(section)}{hint}"


def _did_you_mean(name: str, known: Mapping[str, str]) -> str:
    near = [name.lower()] if name.lower() in known else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _shown(value: object, key: str = "") -> str:
    """A value as one short text without credentials.

    Args:
        key: what it was given for; some keys invite credentials.
    """
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | set):
        return "a list" if value else "an empty list"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)  # as in YAML
    if key == "upstream.proxy" and "@" not in text and not _HARMLESS_PROXY.fullmatch(text):
        return "'***'"
    if key.partition("[")[0] in ("feeds.hosts", "serving.pass_through"):
        # Somebody may put a feed's URL there, of which the path is often the subscriber's key.
        text = re.sub(r"^('(?:\w+:/+)?[^/]*/).+(?=')", r"\1***", text)
    return _masked(text)


def _masked(text: str) -> str:
    """Hide anything before an @ that may be user:password, and the query of a URL, and shorten the text."""
    text = re.sub(r"^(b?['\"]?(?:\w+:/*)?).*@", r"\1***@", text, flags=re.DOTALL)
    text = re.sub(r"(://[^?]*\?)[^'\"]+", r"\1***", text)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."
