"""The configuration that counts: each value, where it came from, and nothing that is secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import yaml
from pydantic import BaseModel, BeforeValidator, SecretStr

from clamproxy.config.loading import ENVIRONMENT_PREFIX, SECRETS, load_settings
from clamproxy.config.settings import Settings
from clamproxy.config.units import (
    Endpoint,
    HttpProxy,
    Nameserver,
    host_and_port,
    one_or_more,
    parse_duration,
    parse_share,
    parse_size,
)

MASK = "***"
"""What is shown in place of a secret. No key that holds one takes it for a value."""

_COMMENT_COLUMN = 44
_SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DURATIONS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms"))
"""Milliseconds."""

type Plain = str | int | float | bool | list[str] | None
"""What YAML and JSON have types for."""


@dataclass(frozen=True, slots=True)
class Effective:
    """A value and its origin.

    Attributes:
        value: in plain numbers: sizes in bytes, durations in seconds, shares of 1.
        written: the same as people write it: 4GiB, 5min, 10%.
        source: who gave it.
        where: ``proxy.yaml:12``, the name of a variable, or ``default``.
    """

    value: Plain
    written: Plain
    source: Literal["default", "file", "environment"]
    where: str


type Values = dict[str, dict[str, Effective]]
"""Section to key to value."""


def effective_values(path: Path | None, environ: Mapping[str, str]) -> Values:
    """Read the configuration as the proxy does.

    Args:
        path: the YAML file, None for none.
        environ: the environment.

    Raises:
        ConfigurationError: it can't be used.
    """
    settings = load_settings(path, environ)
    lines = _lines(path) if path is not None else {}
    values: Values = {}
    for name, section in settings:
        values[name] = {
            key: Effective(
                _plain(value, f"{name}.{key}"),
                written(section, key),
                *_source(name, key, path, lines, environ),
            )
            for key, value in section
        }
    return values


def to_yaml(values: Values) -> Iterator[str]:
    """Give lines of a proxy.yaml that says the same, each with its origin as a comment."""
    for name, section in values.items():
        yield f"{name}:"
        for key, entry in section.items():
            if isinstance(entry.written, list) and entry.written:
                yield _with_comment(f"  {key}:", entry.where)
                yield from (f"    - {_scalar(item)}" for item in entry.written)
            else:
                yield _with_comment(f"  {key}: {_scalar(entry.written)}", entry.where)


def to_json(values: Values) -> dict[str, dict[str, Any]]:
    """Give the same for programs."""
    return {
        name: {
            key: {"value": entry.value, "source": entry.source, "where": entry.where}
            for key, entry in section.items()
        }
        for name, section in values.items()
    }


def written(section: BaseModel, key: str) -> Plain:
    """Give the value of a key as people write it in proxy.yaml, secrets masked."""
    value = getattr(section, key)
    for item in type(section).model_fields[key].metadata:
        if isinstance(item, BeforeValidator) and item.func in _WRITERS:
            return _WRITERS[item.func](value)
    name = next(name for name, field in Settings.model_fields.items() if field.annotation is type(section))
    return _plain(value, f"{name}.{key}")


def _plain(value: object, key: str) -> Plain:
    """Give a value without types of our own and without secrets."""
    if isinstance(value, tuple) and not isinstance(value, Endpoint | Nameserver):
        return [_text(item, key) for item in value]
    return value if isinstance(value, bool | int | float | None) else _text(value, key)


def _text(value: object, key: str) -> str:
    if isinstance(value, HttpProxy):
        return _without_password(value)
    if isinstance(value, Nameserver):
        return value.host if value.port == 53 else host_and_port(*value)
    if key in SECRETS or isinstance(value, SecretStr):
        user, colon, _ = str(value).partition(":")
        return f"{user}:{MASK}" if colon else MASK
    return str(value)  # a text, a path, a network, an address with a port


def _without_password(proxy: HttpProxy) -> str:
    if proxy.credentials is None:
        return proxy.url
    scheme, _, host = proxy.url.partition("://")
    user = proxy.credentials.partition(":")[0]
    return f"{scheme}://{quote(user, safe='')}:{MASK}@{host}"


def _written_size(value: int) -> Plain:
    for unit, name in _SIZES:
        if value and value % unit == 0:
            return f"{value // unit}{name}"
    return value


def _written_duration(seconds: float) -> Plain:
    rest = Fraction(seconds) * 1000
    if rest.denominator != 1:
        # 0.1 is no whole number of milliseconds in binary, yet 100ms says it exactly.
        rest = Fraction(round(seconds * 1000))
    parts = []
    milliseconds = int(rest)
    for unit, name in _DURATIONS:
        count, milliseconds = divmod(milliseconds, unit)
        if count:
            parts.append(f"{count}{name}")
    return _if_exact("".join(parts) or "0s", seconds, parse_duration)


def _written_share(value: float) -> Plain:
    return _if_exact(f"{round(value * 100, 9):.15g}%", value, parse_share)


def _if_exact(text: str, value: float, parse: Callable[[object], float]) -> Plain:
    try:
        return text if parse(text) == value else value
    except ValueError:
        return value


_WRITERS: dict[object, Callable[[Any], Plain]] = {
    parse_size: _written_size,
    parse_duration: _written_duration,
    parse_share: _written_share,
    one_or_more: lambda values: str(values[0]) if len(values) == 1 else [str(value) for value in values],
}


def _source(
    section: str, key: str, path: Path | None, lines: dict[tuple[str, str], int], environ: Mapping[str, str]
) -> tuple[Literal["default", "file", "environment"], str]:
    variable = f"{ENVIRONMENT_PREFIX}{section}__{key}".upper()
    if variable in environ:
        return "environment", variable
    if path is not None and (section, key) in lines:
        return "file", f"{path.name}:{lines[section, key]}"
    return "default", "default"


def _lines(path: Path) -> dict[tuple[str, str], int]:
    """In which line of a valid file each key is."""
    loader = yaml.SafeLoader(path.read_bytes().decode("utf-8-sig"))
    try:
        root = loader.get_single_node()
        return {
            (section, key): line
            for section, node, _ in _entries(loader, root)
            for key, _, line in _entries(loader, node)
        }
    finally:
        loader.dispose()


def _entries(loader: yaml.SafeLoader, node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node, int]]:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # << takes keys over from elsewhere
        for key, value in node.value:
            yield str(key.value), value, key.start_mark.line + 1


def _scalar(value: object) -> str:
    """Give a value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _with_comment(text: str, comment: str) -> str:
    return f"{text.ljust(_COMMENT_COLUMN)}  # {comment}"
