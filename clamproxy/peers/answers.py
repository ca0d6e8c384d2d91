"""What another gateway answers, read as untrusted input: checked for types, lengths and characters.

Anything that isn't named here is ignored, also what that gateway says about its own peers. What is wrong
with a machine concerns only that machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from clamproxy.dates import END_OF_TIME
from clamproxy.fleet.machine import Database, Machine
from clamproxy.fleet.observer import Failure
from clamproxy.readable import one_line

MOST_PROBLEMS = 20
LONGEST_PROBLEM = 300
"""Characters of a problem, at most."""
MOST_DATABASES = 64

# No control characters, none that reorder or hide text, and of all separators only the space.
_CHARACTERS = r"^( |[^\p{C}\p{Z}])*$"

type Word = Annotated[str, StringConstraints(max_length=100, pattern=_CHARACTERS)]
type Label = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=_CHARACTERS)]
"""A machine's name or group; the longest are names from DNS."""
type Line = Annotated[str, StringConstraints(max_length=1000, pattern=_CHARACTERS)]
type Name = Annotated[str, StringConstraints(max_length=32, pattern="^[a-z]+$")]
type Count = Annotated[int, Field(ge=0, lt=2**53)]
type Version = Annotated[int, Field(ge=0, lt=2**31)]
type Time = Annotated[float, Field(ge=0, lt=END_OF_TIME, allow_inf_nan=False)]


class AnswerError(ValueError):
    """An answer that no gateway gives; the text is one line."""


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)


class DatabaseAnswer(_Answer):
    name: Name
    advertised: Version | None = None
    reached: Version | None = None


class FleetAnswer(_Answer):
    """Counts of machines."""

    enabled: bool
    total: Count
    up_to_date: Count
    behind: Count
    unknown: Count
    overdue: Count
    end_of_life: Count


class _Gateway(_Answer):
    version: Word
    now: Time


class StatusAnswer(_Answer):
    """What is shown of another gateway's status.json."""

    gateway: _Gateway
    ready: bool
    problems: list[str]
    databases: Annotated[list[DatabaseAnswer], Field(max_length=MOST_DATABASES)]
    fleet: FleetAnswer

    def lines(self) -> list[str]:
        """Its problems, as far as they are shown."""
        return [one_line(text, LONGEST_PROBLEM) for text in self.problems[:MOST_PROBLEMS]]


class _Holding(_Answer):
    version: Version
    behind: Version | None
    behind_since: Time | None
    seen_at: Time


class _Failure(_Answer):
    at: Time
    what: Line


class _Machine(_Answer):
    uuid: Annotated[Word, StringConstraints(min_length=1)]
    address: Word
    # Older gateways don't tell these.
    name: Label | None = None
    group: Label | None = None
    cloned: bool = False
    freshclam: Word | None
    os: Word | None
    arch: Word | None
    first_seen: Time
    last_seen: Time
    end_of_life: bool
    databases: Annotated[dict[Name, _Holding], Field(max_length=MOST_DATABASES)]
    last_error: _Failure | None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of another gateway's list of machines."""

    machines: tuple[Machine, ...]
    listed: int
    """How many machines it had, with those that can't be read."""


def parse_status(body: bytes) -> StatusAnswer:
    """Read the answer to /status.json.

    Raises:
        AnswerError: it is something else.
    """
    try:
        return StatusAnswer.model_validate_json(body)
    except ValidationError as error:
        raise AnswerError(f"not the status.json of a gateway: {_first(error)}") from error


def parse_machines(body: bytes, now: float, difference: float = 0.0) -> Page:
    """Read the answer to /fleet.json.

    Args:
        now: Unix seconds; later times come from another clock, and are replaced by it.
        difference: seconds to add to the other gateway's times, as far as that is known.

    Raises:
        AnswerError: it is something else.
    """
    try:
        answer = json.loads(body)
        listed = answer["machines"]
        if not isinstance(listed, list):
            raise TypeError("no list")
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise AnswerError("not the fleet.json of a gateway") from error
    found = (_machine(one, lambda at: min(at + difference, now)) for one in listed)
    return Page(tuple(one for one in found if one is not None), len(listed))


def _machine(listed: Any, past: Callable[[float], float]) -> Machine | None:
    try:
        one = _Machine.model_validate(listed)
    except (RecursionError, ValidationError):
        return None
    databases = {
        name: Database(
            held.version,
            held.behind,
            None if held.behind_since is None else past(held.behind_since),
            past(held.seen_at),
        )
        for name, held in one.databases.items()
    }
    error = one.last_error
    return Machine(
        uuid=one.uuid,
        address=one.address,
        freshclam=one.freshclam,
        os=one.os,
        arch=one.arch,
        first_seen=past(one.first_seen),
        last_seen=past(one.last_seen),
        end_of_life=one.end_of_life,
        databases=databases,
        last_error=None if error is None else Failure(past(error.at), error.what),
        name=one.name,
        group=one.group,
        cloned=one.cloned,
    )


def _first(error: ValidationError) -> str:
    """Where the first error is, without anything that was sent."""
    place = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])
    return place[:60] if place.isprintable() and place else "no JSON"
