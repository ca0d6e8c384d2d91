"""The effective configuration: each value, where it comes from, and no secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from clamproxy.config.loading import ENVIRONMENT_PREFIX, load_settings
from clamproxy.config.notation import Plain

_COMMENT_COLUMN = 44


@dataclass(frozen=True, slots=True)
class Effective:
    """A value and its origin.

    Attributes:
        value: in plain numbers: sizes in bytes, durations in seconds, shares as fractions of 1.
        written: the value as people write it: 4GiB, 5min, 10%.
        source: the kind of place that the value comes from.
        where: ``proxy.yaml:12``, the name of a variable, or ``default``.
    """

    value: Plain
    written: Plain
    source: Literal["default", "file", "environment"]
    where: str


type Values = dict[str, dict[str, Effective] | Effective]
"""Values by section and key; those outside of sections by key."""


def effective_values(path: Path | None, environ: Mapping[str, str]) -> Values:
    """Read the configuration as the proxy does.

    Args:
        path: the YAML file, None for none.

    Raises:
        ConfigurationError: it can't be used.
    """
    settings = load_settings(path, environ)
    lines = _lines(path) if path is not None else {}
    values: Values = {}
    for name, section in settings:
        if not isinstance(section, BaseModel):
            values[name] = Effective(section, section, *_source((name,), path, lines, environ))
            continue
        written = section.model_dump(mode="json")
        values[name] = {
            key: Effective(
                _plain(value, written[key]), written[key], *_source((name, key), path, lines, environ)
            )
            for key, value in section
        }
    return values


def to_yaml(values: Values) -> Iterator[str]:
    """The lines of an equivalent proxy.yaml, each with the value's origin as a comment."""
    for name, section in values.items():
        if isinstance(section, Effective):
            yield _with_comment(f"{name}: {one_line(section.written)}", section.where)
            continue
        yield f"{name}:"
        for key, entry in section.items():
            if isinstance(entry.written, list) and entry.written:
                yield _with_comment(f"  {key}:", entry.where)
                yield from (f"    - {one_line(item)}" for item in entry.written)
            else:
                yield _with_comment(f"  {key}: {one_line(entry.written)}", entry.where)


def to_json(values: Values) -> dict[str, dict[str, Any]]:
    """The values for programs."""
    return {
        name: _described(section)
        if isinstance(section, Effective)
        else {key: _described(entry) for key, entry in section.items()}
        for name, section in values.items()
    }


def _described(entry: Effective) -> dict[str, Any]:
    return {"value": entry.value, "source": entry.source, "where": entry.where}


def _plain(value: object, written: Plain) -> Plain:
    """A value in types of YAML and JSON: numbers without units, and always a list where one is allowed."""
    if isinstance(value, bool | int | float | None):
        return value
    return [str(written)] if type(value) is tuple and not isinstance(written, list) else written


def _source(
    keys: tuple[str, ...], path: Path | None, lines: dict[tuple[str, ...], int], environ: Mapping[str, str]
) -> tuple[Literal["default", "file", "environment"], str]:
    variable = f"{ENVIRONMENT_PREFIX}{'__'.join(keys)}".upper()
    if variable in environ:
        return "environment", variable
    if path is not None and keys in lines:
        return "file", f"{path.name}:{lines[keys]}"
    return "default", "default"


def _lines(path: Path) -> dict[tuple[str, ...], int]:
    """The line of each section, and of each key, in a valid file."""
    loader = yaml.SafeLoader(path.read_bytes().decode("utf-8-sig"))
    try:
        root = loader.get_single_node()
        lines: dict[tuple[str, ...], int] = {}
        for section, node, begins in _entries(loader, root):
            lines[(section,)] = begins
            lines |= {(section, key): line for key, _, line in _entries(loader, node)}
        return lines
    finally:
        loader.dispose()


def _entries(loader: yaml.SafeLoader, node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node, int]]:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # << merges keys from elsewhere
        for key, value in node.value:
            yield str(key.value), value, key.start_mark.line + 1


def one_line(value: object) -> str:
    """A value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _with_comment(text: str, comment: str) -> str:
    return f"{text.ljust(_COMMENT_COLUMN)}  # {comment}"
