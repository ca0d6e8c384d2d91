"""A JSON schema of proxy.yaml, for editors.

It accepts everything that proxy.yaml may hold. It rejects what proxy.yaml may not hold as far as a schema
can: limits of numbers, for example, but not of sizes that are written with a unit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from clamproxy.config.settings import Settings


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12)."""
    schema = Settings.model_json_schema(schema_generator=_Generator)
    schema = {"$schema": _Generator.schema_dialect, **schema, "title": "proxy.yaml of clamproxy"}
    for name, reference in schema["properties"].items():
        section = getattr(Settings.model_construct(), name)
        if not isinstance(section, BaseModel):
            reference.pop("title", None)
            continue
        # A section with every line commented out is null.
        schema["properties"][name] = {"anyOf": [reference, {"type": "null"}]}
        content = schema["$defs"][type(section).__name__]
        written = section.model_dump(mode="json")
        for key, entry in content["properties"].items():
            entry.pop("title", None)
            default = type(section).model_fields[key].default
            entry["default"] = str(default) if isinstance(default, Path) else written[key]
    return schema


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = frozenset({"skipped-choice", "non-serializable-default"})  # type: ignore[assignment]
