"""Notations: how a kind of value is written in proxy.yaml.

A notation is part of an `Annotated` type. From it, pydantic learns how to read such a value, how to write
it again (in JSON mode), and what the schema for editors says about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

type Plain = str | int | float | bool | list[str] | dict[str, str | None] | None
"""The types that YAML and JSON have."""


class Mistake(ValueError):
    """Says what is wrong with a value, or what would be right, more precisely than the notation."""


@dataclass(frozen=True, kw_only=True)
class Notation[T]:
    """A kind of value that is written as text.

    Attributes:
        pattern: what such a text looks like; both Python and JSON schemas (ECMA 262) understand it.
        expected: what errors say was expected: "a host name".
        read: converts a text that fits the pattern to the value, or raises a ValueError.
        write: converts a value back to such a text, unless the value is secret.
        integers: a JSON schema of the integers that may replace a text of their digits, as 8080 in YAML.
    """

    pattern: str
    expected: str
    read: Callable[[str], T]
    write: Callable[[T], Plain] = str
    integers: JsonSchemaValue | None = None

    def parse(self, value: object) -> T:
        """Read anything that YAML can hold.

        Raises:
            ValueError: it is something else; the text says what was expected.
        """
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        text = str(value) if is_integer and self.integers is not None else value
        if not isinstance(text, str) or not re.fullmatch(self.pattern, text):
            raise ValueError(self.expected)
        try:
            return self.read(text)
        except Mistake:
            raise
        except ValueError:
            raise ValueError(self.expected) from None

    def __get_pydantic_core_schema__(self, source: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: object) -> object:
            return value if source is not str and isinstance(value, source) else self.parse(value)

        return core_schema.no_info_plain_validator_function(validate, serialization=self._serialization())

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> JsonSchemaValue:
        text = {"type": "string", "pattern": self.pattern}
        return text if self.integers is None else {"anyOf": [self.integers, text]}

    def _serialization(self) -> core_schema.SerSchema:
        return core_schema.plain_serializer_function_ser_schema(self.write, when_used="json")


@dataclass(frozen=True, kw_only=True)
class Quantity[T: int | float](Notation[T]):
    """A kind of value that is a number, or a text of numbers and units.

    Attributes:
        number: converts a number to the value, or raises a ValueError.
    """

    number: Callable[[int | float], T]

    def parse(self, value: object) -> T:
        """Read anything that YAML can hold; raises the same as the base class."""
        try:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return self.number(value)
            return super().parse(value)
        except Mistake:
            raise
        except ValueError:
            raise ValueError(f"not {self.expected}") from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.parse, handler(source), serialization=self._serialization()
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), super().__get_pydantic_json_schema__(schema, handler)]}


class OneOrMore:
    """Accepts a single value for a list of one, and null for an empty list."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def to_list(value: object) -> object:
            if value is None:
                return []
            return value if isinstance(value, list | tuple) else [value]

        def write(values: Any, write_all: Callable[[Any], Any]) -> Any:
            written = list(write_all(values))
            return written[0] if len(written) == 1 else written

        return core_schema.no_info_before_validator_function(
            to_list,
            handler(source),
            serialization=core_schema.wrap_serializer_function_ser_schema(write, when_used="json"),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        inner = handler(schema)
        return {"anyOf": [inner["items"], inner, {"type": "null"}]}
