"""The schemas in docs/schemas, held against what the program prints more strictly than readers may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.support.gateway import ROOT

FOLDER = ROOT / "docs" / "schemas"
SUFFIX = ".schema.json"
VALUES = "x-values"
"""The known values of a text. Readers must expect others, so that it is no ``enum`` for them."""

type Json = Any


def load(name: str) -> dict[str, Json]:
    """A schema as readers get it."""
    schema: dict[str, Json] = json.loads((FOLDER / f"{name}{SUFFIX}").read_text(encoding="utf-8"))
    return schema


NAMES = sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))


def parts(schema: Json, path: str = "#") -> Iterator[tuple[str, dict[str, Json]]]:
    """Each schema in a schema, with its place."""
    if isinstance(schema, dict):
        yield path, schema
        for key in ("properties", "$defs"):
            for name, one in schema.get(key, {}).items():
                yield from parts(one, f"{path}/{key}/{name}")
        for key in ("items", "additionalProperties"):
            yield from parts(schema.get(key), f"{path}/{key}")
        for number, one in enumerate(schema.get("anyOf", ())):
            yield from parts(one, f"{path}/anyOf/{number}")


class Schemas:
    """Validates values, and notes which of the described keys occur.

    Args:
        strict: whether a key or a value that isn't described is an error.
    """

    def __init__(self, *, strict: bool) -> None:
        self._schemas = {name: deepcopy(load(name)) for name in NAMES}
        for schema in self._schemas.values() if strict else ():
            for _, part in parts(schema):
                if "properties" in part:
                    part.setdefault("additionalProperties", False)
                if VALUES in part:
                    nothing = [None] if "null" in part["type"] else []
                    part["enum"] = [*part[VALUES], *nothing]
        resources = (
            (f"{name}{SUFFIX}", DRAFT202012.create_resource(schema)) for name, schema in self._schemas.items()
        )
        self._registry: Registry[Json] = Registry().with_resources(resources)
        self.seen: set[str] = set()
        """The places of the described keys that have occurred."""

    def errors(self, name: str, value: Json) -> list[str]:
        """What is wrong with a value, one line each."""
        self._note(self._schemas[name], value, f"{name}{SUFFIX}#")
        found = self._validator(self._schemas[name], name).iter_errors(value)
        return [f"{name} {error.json_path}: {error.message[:300]}" for error in found]

    def described(self) -> set[str]:
        """The places of all keys that are described."""
        return {
            f"{name}{SUFFIX}{path}/properties/{key}"
            for name in NAMES
            for path, part in parts(load(name))
            for key in part.get("properties", ())
        }

    def _validator(self, schema: Json, name: str) -> Validator:
        # Relative references are resolved from the name of the file.
        whole = {"$id": f"{name}{SUFFIX}", **schema}
        return Draft202012Validator(whole, registry=self._registry)

    def _note(self, schema: Json, value: Json, path: str) -> None:
        if "$ref" in schema:
            file, _, pointer = schema["$ref"].partition("#")
            target = self._schemas[file.removesuffix(SUFFIX)]
            for key in pointer.split("/")[1:]:
                target = target[key]
            self._note(target, value, f"{file}#{pointer}")
        for number, one in enumerate(schema.get("anyOf", ())):
            if self._validator(one, path.partition(SUFFIX)[0]).is_valid(value):
                self._note(one, value, f"{path}/anyOf/{number}")
        if isinstance(value, list) and "items" in schema:
            for item in value:
                self._note(schema["items"], item, f"{path}/items")
        if isinstance(value, dict):
            self._note_keys(schema, value, path)

    def _note_keys(self, schema: Json, value: dict[str, Json], path: str) -> None:
        for key, item in value.items():
            if key in schema.get("properties", {}):
                self.seen.add(f"{path}/properties/{key}")
                self._note(schema["properties"][key], item, f"{path}/properties/{key}")
            elif isinstance(schema.get("additionalProperties"), dict):
                self._note(schema["additionalProperties"], item, f"{path}/additionalProperties")
