"""What all contenders have in common."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.contenders.process import Process
from benchmarks.load.asking import Entry
from benchmarks.mirror import Mirror


@dataclass(frozen=True, slots=True)
class Server:
    """A running contender.

    Attributes:
        name: of the contender.
        process: its processes.
        machine: how machines reach it; by CONNECT if it can serve that from its cache.
        plain: how plain HTTP reaches it: absolute-form if it is a proxy, else origin-form.
        tls: how TLS reaches it; None if it has none.
        mimic: the same, on a port where it first connects to the mirror, to mimic its certificate.
        cores: how many processors it can use.
    """

    name: str
    process: Process
    machine: Entry
    plain: Entry
    tls: Entry | None = None
    mimic: Entry | None = None
    cores: int = 1


class Contender(Protocol):
    """A kind of server, and how it is configured."""

    name: str

    def missing(self) -> str:
        """Why it can't be started here; empty if it can."""

    def version(self) -> str:
        """Its version, and the facts about its configuration that matter."""

    def start(
        self, mirror: Mirror, work: Path, *, always_fresh: bool = False
    ) -> AbstractContextManager[Server]:
        """Run it with an empty cache.

        Args:
            mirror: where it fetches what it doesn't have.
            work: an empty directory for its files.
            always_fresh: configure it to serve nothing that is out of date by more than a second.
        """
