"""One run: the mirror, the contenders and the load, and how a measurement is made with them."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks.contenders.contender import Contender, Server
from benchmarks.contenders.process import ServerError
from benchmarks.load.asking import Entry, Fetch
from benchmarks.load.generator import Load, LoadGenerator, Outcome
from benchmarks.mirror import MB, Mirror
from benchmarks.results import Measurement

_PATIENCE = 10.0
"""Loads that take longer than this many seconds are measured in one round only."""
_SETTLING = 1.0
"""Seconds between the end of a load and reading the memory that is left."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: how often each load is repeated.
        crowds: numbers of machines in lock-step.
        seconds: for how long a rate is measured.
        clients: numbers of clients that download a large file at once; the largest is the herd.
        bulk_size: approximate size of that file in bytes.
        herd_size: approximate size of the file for the herd in bytes.
        release_clients: number of clients on release day.
    """

    rounds: int = 3
    crowds: tuple[int, ...] = (3000, 10_000)
    seconds: float = 1.5
    clients: tuple[int, ...] = (1, 10, 100)
    bulk_size: int = 85 * MB
    herd_size: int = 60 * MB
    release_clients: int = 200


FULL = Plan()
QUICK = Plan(
    rounds=1,
    crowds=(200,),
    seconds=0.3,
    clients=(1, 10),
    bulk_size=8 * MB,
    herd_size=8 * MB,
    release_clients=24,
)


class Bench:
    """What the workloads measure with; no contender is started before it is needed.

    Args:
        plan: how much to measure.
        work: a directory for temporary files.
        contenders: those that can be started here.
        load: makes the requests.
        mirror: where the contenders fetch what they don't have.
    """

    def __init__(
        self, plan: Plan, work: Path, contenders: Sequence[Contender], load: LoadGenerator, mirror: Mirror
    ) -> None:
        self.plan = plan
        self.work = work
        self.errors: dict[tuple[str, str], str] = {}
        """By workload and contender: why something could not be measured."""
        self.contenders = contenders
        self.mirror = mirror
        self._load = load
        self._running = ExitStack()
        self._servers: list[Server] = []
        self._slow: set[tuple[str, str, str]] = set()
        """Workloads, cases and contenders that took too long to be measured again."""

    def close(self) -> None:
        self._running.close()

    def servers(self, workload: str) -> list[Server]:
        """All contenders, running and with warm caches; if one has died, all are restarted.

        Args:
            workload: errors of contenders that don't start are recorded under it.
        """
        if not self._servers or not all(server.process.alive for server in self._servers):
            self._running.close()
            self._servers = []
            for contender in self.contenders:
                with self.trying(workload, contender.name):
                    server = self._running.enter_context(self.fresh(contender, self.mirror))
                    self._warm(server)
                    self._servers.append(server)
        return list(self._servers)

    @contextmanager
    def trying(self, workload: str, contender: str) -> Iterator[None]:
        """Keep an error of one contender from ending the measurement of the others."""
        try:
            yield
        except ServerError as error:
            self.errors[workload, contender] = str(error)

    @contextmanager
    def fresh(self, contender: Contender, mirror: Mirror, *, always_fresh: bool = False) -> Iterator[Server]:
        """Run a contender with an empty cache and its own directory."""
        say(f"start {contender.name}")
        with (
            tempfile.TemporaryDirectory(prefix=f"{contender.name}-", dir=self.work) as work,
            contender.start(mirror, Path(work), always_fresh=always_fresh) as server,
        ):
            yield server

    def _warm(self, server: Server) -> None:
        names = ["daily.cvd", self.mirror.cdiff, f"{self.mirror.cdiff}.sign"]
        for entry in dict.fromkeys(filter(None, (server.machine, server.plain, server.tls, server.mimic))):
            for name in names:
                self.check(server, entry, self.mirror.fetch(name))

    def check(self, server: Server, entry: Entry, fetch: Fetch) -> None:
        """Have one client fetch a file and check its SHA-256.

        Raises:
            ServerError: it failed, or got other bytes.
        """
        outcome = self._load.run(Load(entry, ((fetch,),), 1, verify=True))
        if outcome.failures:
            raise ServerError(f"{server.name} serves {fetch.path} wrongly: {outcome.failures}")

    def measure(self, server: Server, load: Load, measurement: Measurement) -> Measurement:
        """Put one load on one server.

        Args:
            server: no other server should be busy at the same time.
            load: the requests.
            measurement: names the workload, case and round; values that it already has are kept.

        Raises:
            ServerError: the server has died.
        """
        say(f"{measurement.workload}: {measurement.case}, round {measurement.round + 1}, {server.name}")
        process = server.process
        try:
            process.reset_peak()
            resident = process.resident_mib()
            before, own_before = process.cpu_seconds(), time.process_time()
            outcome = self._load.run(load)
            cpu, peak = process.cpu_seconds() - before, process.peak_mib()
            # The origin lives in this process.
            load_cpu = outcome.cpu + time.process_time() - own_before
        except OSError as error:
            raise ServerError(f"{server.name} has died: {error}") from None
        values = {
            **_figures(outcome, cpu, server.cores),
            "load_busy": load_cpu / outcome.wall,
            "before": resident,
            "peak": peak,
        }
        if outcome.wall > _PATIENCE:
            self._slow.add((measurement.workload, measurement.case, server.name))
        return replace(measurement, values=measurement.values | values, failures=outcome.failures)

    def is_slow(self, workload: str, case: str, contender: str) -> bool:
        """Whether a contender took so long for a load that it isn't measured again."""
        return (workload, case, contender) in self._slow

    def in_turns(
        self, loads: Mapping[str, Load], workload: str, case: str, number: int
    ) -> Iterator[tuple[Server, Measurement]]:
        """Measure one server after the other; the order is reversed from round to round.

        Args:
            loads: by the name of the server; servers without one are left out.
            case: which of the workload's loads.
            number: of the round, from 0.
        """
        for server in self._servers if number % 2 else reversed(self._servers):
            if server.name in loads and not self.is_slow(workload, case, server.name):
                with self.trying(workload, server.name):
                    begun = Measurement(workload, case, server.name, number, {})
                    yield server, self.measure(server, loads[server.name], begun)


def _figures(outcome: Outcome, cpu: float, cores: int) -> dict[str, float]:
    """A load's figures, by the names in `benchmarks.report.QUANTITIES` and some more.

    Args:
        cpu: processor time used by the server, in seconds.
        cores: how many processors the server can use.
    """
    return {
        "machines": outcome.machines,
        "undone": outcome.machines - outcome.done,
        "failures": sum(outcome.failures.values()),
        "requests": outcome.requests,
        "bytes": outcome.size,
        "wall": outcome.wall,
        "rate": outcome.requests / outcome.wall,
        "throughput": outcome.size / outcome.wall,
        "cpu": cpu / max(1, outcome.requests),
        "server_busy": cpu / outcome.wall / cores,
        "first_byte": outcome.first_byte,
    }


def settle() -> None:
    """Wait until a server has cleaned up after a load."""
    time.sleep(_SETTLING)


def say(text: str) -> None:
    """Show progress on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", err=True, nl=False)
