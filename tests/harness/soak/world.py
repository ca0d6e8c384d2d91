"""What goes on from one process of the gateway to the next, and what is found out on the way."""

from __future__ import annotations

import pickle
import random
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.harness.soak.machines import Kind, Machine, Wrongs
from tests.harness.soak.plan import DAY, HOUR, Plan
from tests.support.gateway import Way

_KINDS = {Kind.DNS: 82, Kind.NO_DNS: 9, Kind.PRIVATE: 6, Kind.WHOLE: 3}
_WAYS = {Way.CONNECT_HTTP: 60, Way.ABSOLUTE: 20, Way.REVERSE: 15, Way.CONNECT_HTTPS: 5}


@dataclass(slots=True)
class Sample:
    """What a process looks like."""

    day: float
    life: int
    rss: int
    objects: int
    """Of Python, after a collection."""
    descriptors: int
    tasks: int
    threads: int
    rows: int
    """Of the index."""
    files: int
    """Below the cache and the state directory."""
    bytes: int
    containers: dict[str, int] = field(default_factory=dict)
    """The length of each collection that an object or a module of the program holds, by name."""

    def append_to(self, file: Path) -> None:
        """Keep it, but not in the process that is measured."""
        with file.open("ab") as samples:
            pickle.dump(self, samples)

    @classmethod
    def load_all(cls, file: Path) -> list[Self]:
        found = []
        with file.open("rb") as samples, suppress(EOFError):
            while True:
                found.append(pickle.load(samples))
        return found


@dataclass(slots=True)
class World:
    """Everything but the gateway."""

    now: float
    """Seconds since the start."""
    chance: random.Random
    machines: list[Machine]
    life: int = 0
    names: dict[str, str] = field(default_factory=dict)
    advertised: dict[str, int] = field(default_factory=dict)
    fault_at: float = 0.5 * DAY
    """When the next fault begins."""
    counters: Counter[str] = field(default_factory=Counter)
    """What the gateway should have counted when its last process ended."""
    unwritten: int = 0
    """How many requests it had no time to write down."""
    wrongs: Wrongs = field(default_factory=Wrongs)
    shown: dict[str, int] = field(default_factory=dict)
    fetched: Counter[str] = field(default_factory=Counter)
    """How often the origin sent each file completely, over all processes."""
    answered: Counter[str] = field(default_factory=Counter)
    """What the clients counted, over all processes."""
    faults: Counter[str] = field(default_factory=Counter)
    visitors: int = 0
    unsure: dict[str, float] = field(default_factory=dict)
    """Machines whose last visit the gateway may have lost, and until when that counts."""
    unsure_versions: dict[str, dict[str, int]] = field(default_factory=dict)
    """What they had then. As long as they don't take another version, the gateway may not learn of it."""
    complaints: list[str] = field(default_factory=list)
    """What was not as it should be, one line for each."""

    @classmethod
    def begin(cls, plan: Plan) -> World:
        chance = random.Random(plan.seed)
        return cls(0.0, chance, [make_machine(chance, number) for number in range(plan.machines)])

    @classmethod
    def load(cls, plan: Plan) -> World:
        return pickle.loads(plan.state.read_bytes())  # type: ignore[no-any-return]

    def save(self, plan: Plan) -> None:
        part = plan.state.with_suffix(".part")
        part.write_bytes(pickle.dumps(self))
        part.rename(plan.state)


def make_machine(chance: random.Random, number: int) -> Machine:
    """A machine without databases."""
    (kind,) = chance.choices(list(_KINDS), list(_KINDS.values()))
    (way,) = chance.choices(list(_WAYS), list(_WAYS.values()))
    period = DAY / chance.choice((2, 3, 4, 6))
    return Machine(
        uuid=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        address=f"127.{1 + number // 62500}.{1 + number // 250 % 250}.{1 + number % 250}",
        kind=kind,
        way=way,
        asks_signs=chance.random() < 0.4,
        period=period,
        check_at=chance.uniform(0.2 * HOUR, period),
    )
