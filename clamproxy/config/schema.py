"""A JSON schema of proxy.yaml, for editors.

Whatever proxy.yaml may hold passes. What it may not hold is caught as far as a schema can: limits of
numbers, for example, but not of sizes that are written with a unit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from clamproxy.config import units
from clamproxy.config.effective import written
from clamproxy.config.settings import Settings

_NUMBER = r"[0-9]{1,18}(\.[0-9]{1,9})?"
_SIZE = rf"^\s*{_NUMBER}\s*([kKmMgGtT][iI]?)?[bB]?\s*$"
_DURATION = (
    rf"^\s*(?=[0-9])({_NUMBER}\s*d\s*)?({_NUMBER}\s*h\s*)?({_NUMBER}\s*m(in)?(?!s)\s*)?"
    rf"({_NUMBER}\s*s\s*)?({_NUMBER}\s*ms)?\s*$|^\s*{_NUMBER}\s*$"
)
_SHARE = rf"^\s*{_NUMBER}\s*%?\s*$"
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_URL = r"^[Hh][Tt][Tt][Pp][Ss]?://[^\s?#]+$"


def _text(pattern: str | None = None, **more: Any) -> JsonSchemaValue:
    return {"type": "string", **({"pattern": pattern} if pattern else {}), **more}


_NUMBERS: dict[object, str] = {
    units.parse_size: _SIZE,
    units.parse_duration: _DURATION,
    units.parse_share: _SHARE,
}
"""Parsers of what is a number or a text with units."""

_TEXTS: dict[object, JsonSchemaValue] = {
    units.parse_host_name: _text(rf"^{_LABEL}(\.{_LABEL})*\.?$"),
    units.parse_host_pattern: _text(rf"^({_LABEL}|\*)(\.({_LABEL}|\*))*\.?$"),
    units.parse_domain_pattern: _text(rf"^(\*\.)?{_LABEL}(\.{_LABEL})*\.?$"),
    units.parse_database: _text("^[a-z]+$"),
    units.parse_network: _text(r"^[0-9A-Fa-f.:]+(%[^\s/]+)?(/[0-9.]+)?$"),
    units.parse_nameserver: _text(r"^([0-9.]+|\[[^\]]+\])(:[0-9]{1,5})?$|^[0-9A-Fa-f.:]+(%\S+)?$"),
    units.parse_endpoint: _text(r"^([0-9.]+|\[[^\]]+\]):[0-9]{1,5}$"),
    units.parse_listen: {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 65535},
            _text(r"^([0-9.]+:|\[[^\]]+\]:|\*:)?[0-9]{1,5}$"),
        ]
    },
    units.parse_token: _text("^[A-Za-z0-9._~-]{16,256}$"),
    units.parse_user: _text(r"^[^:\s]+:(scrypt|pbkdf2:sha256):[^$\s]+\$[^$\s]+\$[0-9a-f]+$"),
    units.parse_base_url: _text(_URL.replace("?#", "?#@")),
    units.parse_http_proxy: _text(_URL),
}

_PATH = _text(minLength=1)


def json_schema() -> dict[str, Any]:
    """Give the schema (draft 2020-12)."""
    schema = Settings.model_json_schema(schema_generator=_Generator)
    schema = {"$schema": _Generator.schema_dialect, **schema, "title": "proxy.yaml of clamproxy"}
    for name, reference in schema["properties"].items():
        section = getattr(Settings.model_construct(), name)
        # A section of which every line is commented out is null.
        schema["properties"][name] = {"anyOf": [reference, {"type": "null"}]}
        content = schema["$defs"][type(section).__name__]
        for key, entry in content["properties"].items():
            entry.pop("title", None)
            default = type(section).model_fields[key].default
            entry["default"] = str(default) if isinstance(default, Path) else written(section, key)
    return schema


class _Generator(GenerateJsonSchema):
    """Describes what our parsers take, where pydantic knows only what they give."""

    ignored_warning_kinds = frozenset({"skipped-choice", "non-serializable-default"})  # type: ignore[assignment]

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        parse = schema["function"]["function"]
        inner = self.generate_inner(schema["schema"])
        if parse in _NUMBERS:
            return {"anyOf": [inner, _text(_NUMBERS[parse])]}
        if parse is units.one_or_more:
            return {"anyOf": [inner["items"], inner, {"type": "null"}]}
        return dict(_TEXTS[parse]) if parse in _TEXTS else inner

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:
        return dict(_TEXTS.get(schema["function"]["function"], _PATH))
