"""A table of clients and its writer."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clamproxy.config.settings import FleetSection as FleetSettings
from clamproxy.fleet import Fleet, Machine, Visit, read_fleet
from clamproxy.fleet.table import FILE_NAME, reading
from clamproxy.objects import Kind, ObjectId
from clamproxy.threads import Writer
from tests.support.clock import Clock

ADVERTISED = {"daily": 10}


def uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def agent(number: int, version: str = "1.4.6") -> str:
    return f"ClamAV/{version} (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {uuid(number)})"


@dataclass
class FleetHarness:
    """A table and who writes it."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    settings: FleetSettings = field(default_factory=FleetSettings)
    writer: Writer = field(default_factory=Writer)
    made: list[Fleet] = field(default_factory=list)
    clock_is_fast: float = 0.0
    """Seconds."""

    def make(self) -> Fleet:
        self.made.append(Fleet(self.directory, self.settings, self.writer, self.clock, self.monotonic))
        return self.made[-1]

    def monotonic(self) -> float:
        return self.clock.now - self.clock_is_fast

    def visit(self, number: int = 1, version: int = 6, **fields: Any) -> Visit:
        """A machine fetches a patch."""
        usual = {
            "address": "10.0.0.1",
            "user_agent": agent(number),
            "target": ObjectId("daily", version, Kind.CDIFF),
            "range_probe": False,
            "if_modified_since": None,
            "status": 200,
            "version": version,
            "length": 1000,
            "complete": True,
            "at": self.clock.now,
        }
        return Visit(**{**usual, **fields})

    async def written(self, *fleets: Fleet) -> None:
        for fleet in fleets or self.made:
            fleet.flush()
        await self.writer.run(lambda: None)

    def machines(self) -> list[Machine]:
        return read_fleet(self.directory, ADVERTISED, self.clock.now)

    def versions(self) -> dict[str, int]:
        """The version of daily on each machine."""
        return {one.uuid: one.databases["daily"].version for one in self.machines() if one.databases}

    @property
    def path(self) -> Path:
        return self.directory / FILE_NAME

    def damage(self, position: int = 0, length: int = 4096) -> None:
        """Overwrite a part of the file, as a bad disk does."""
        with reading(self.directory):
            pass  # leaves what is in the -wal to who closes last
        with sqlite3.connect(self.path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        with self.path.open("r+b") as file:
            file.seek(position)
            file.write(random.Random(1).randbytes(length))
