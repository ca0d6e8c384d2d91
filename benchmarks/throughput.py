"""clamproxy against nginx on the same file, in one run: `python -m benchmarks.throughput`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks import origin, servers
from benchmarks.load import LoadError, LoadGenerator, Outcome
from benchmarks.report import MB, Figure, Herd, Measurement, Way, figures, lines
from benchmarks.servers import File, Server, ServerError
from clamproxy.config.units import parse_size
from tests.support.forge import ForgeKeys, forge_cvd

ORIGIN_RATE = 50 * MB
"""Bytes per second."""
WAYS: tuple[Way, ...] = ("plain", "TLS")
DATABASE, VERSION = "daily", 27800


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        size: bytes of the file.
        rounds: how often everything is repeated.
        clients: numbers of clients at once; the largest is the herd.
    """

    size: int
    rounds: int
    clients: tuple[int, ...]

    @property
    def herd(self) -> int:
        """Number of clients of the herd."""
        return max(self.clients)


class Bench:
    """One run of the program: the contenders, the load, and what was measured so far."""

    def __init__(self, plan: Plan, work: Path) -> None:
        """Args: plan: how much is measured; work: an empty directory."""
        self.plan = plan
        self.measurements: list[Measurement] = []
        self.herds: list[Herd] = []
        self._work = work
        self._keys = work / "keys"
        self._file = self._forge()

    def _forge(self) -> File:
        keys = ForgeKeys.generate()
        keys.save(self._keys)
        path = self._work / "www" / f"{DATABASE}.cvd"
        path.parent.mkdir()
        build_time = int(time.time()) - 3600
        forge_cvd(path, database=DATABASE, version=VERSION, size=self.plan.size, stime=build_time, keys=keys)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return File(path, path.stat().st_size, digest)

    def run(self, nginx_program: str | None) -> None:
        """Measure all rounds; within a round the contenders take turns, load by load."""
        with ExitStack() as stack:
            load = stack.enter_context(LoadGenerator())
            ours, _ = stack.enter_context(self._clamproxy())
            contenders = [ours]
            if nginx_program is not None:
                contenders.append(
                    stack.enter_context(servers.nginx(nginx_program, self._file, self._new("nginx")))
                )
            for number in range(self.plan.rounds):
                for way in WAYS:
                    self._round(number, way, contenders, load)
        with LoadGenerator() as load:
            for number in range(self.plan.rounds):
                for way in WAYS:
                    self._herd(number, way, load)

    def _round(self, number: int, way: Way, contenders: list[Server], load: LoadGenerator) -> None:
        for server in contenders:
            _download(load, server, way, 1, verify=True)
        for clients in self.plan.clients:
            _say(f"round {number + 1}: {way}, {clients} clients")
            for _ in range(_repeats(clients)):
                # Neighbours in time are compared; who goes first changes.
                contenders.reverse()
                self.measurements += [_measure(load, server, number, way, clients) for server in contenders]

    def _herd(self, number: int, way: Way, load: LoadGenerator) -> None:
        """One client of each herd checks the SHA-256, cold and warm."""
        _say(f"round {number + 1}: cold herd, {way}, {self.plan.herd} clients")
        with self._clamproxy() as (server, source):
            server.reset_peak()
            cold = _download(load, server, way, self.plan.herd, verify=True)
            asked = source.snapshot()
            warm = _download(load, server, way, self.plan.herd, verify=True)
            herd = Herd(
                round=number,
                way=way,
                clients=self.plan.herd,
                origin=asked,
                size=self._file.size,
                origin_rate=ORIGIN_RATE,
                cold=cold.wall,
                warm=warm.wall,
                memory=server.peak_mib(),
            )
        self.herds.append(herd)

    @contextmanager
    def _clamproxy(self) -> Iterator[tuple[Server, origin.Origin]]:
        """clamproxy with an empty cache, and the origin behind it."""
        with tempfile.TemporaryDirectory(prefix="clamproxy-", dir=self._work) as work, ExitStack() as stack:
            source = stack.enter_context(origin.serve(self._file.path, ORIGIN_RATE))
            run = servers.clamproxy(self._file, source.url, self._keys, Path(work))
            yield stack.enter_context(run), source

    def _new(self, name: str) -> Path:
        directory = self._work / name
        directory.mkdir()
        return directory


def _repeats(clients: int) -> int:
    """How often a load is repeated in a round: few clients are done soon, and vary most."""
    return max(1, min(9, 30 // clients))


def _download(
    load: LoadGenerator, server: Server, way: Way, clients: int, *, verify: bool = False
) -> Outcome:
    try:
        return load.run(server.tls if way == "TLS" else server.plain, clients, verify=verify)
    except LoadError as error:
        raise LoadError(f"{server.name}, {way}, {clients} clients: {error}") from error


def _measure(load: LoadGenerator, server: Server, number: int, way: Way, clients: int) -> Measurement:
    server.reset_peak()
    outcome = _download(load, server, way, clients)
    return Measurement(
        round=number,
        way=way,
        clients=clients,
        server=server.name,
        rate=outcome.rate,
        first_byte=outcome.first_byte,
        memory=server.peak_mib(),
        cipher=outcome.cipher,
    )


def _say(text: str) -> None:
    """Show progress, on a terminal only, apart from the results."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", err=True, nl=False)


def _heading(plan: Plan, nginx_program: str | None, measurements: list[Measurement]) -> Iterator[str]:
    if nginx_program is None:
        yield "clamproxy alone: nginx is not installed, so there are no ratios and no bars for throughput"
    else:
        version = servers.nginx_version(nginx_program)
        yield f"clamproxy against {version}, 1 worker, sendfile, certificate EC P-256"
    yield f"{plan.size / MB:g} MB file, rounds: {plan.rounds}, {os.cpu_count()} processors for all"
    yield "clamproxy is asked in absolute-form (plain) and through CONNECT (TLS); nginx is asked directly"
    ciphers = dict.fromkeys((m.server, m.cipher) for m in measurements if m.way == "TLS")
    yield "; ".join(f"{server}: {cipher}" for server, cipher in ciphers)


def _as_json(plan: Plan, bench: Bench, nginx_program: str | None, found: list[Figure]) -> str:
    content = {
        "plan": asdict(plan),
        "nginx": nginx_program and servers.nginx_version(nginx_program),
        "figures": [figure.as_json() for figure in found],
        "measurements": [asdict(measurement) for measurement in bench.measurements],
        "herds": [asdict(herd) for herd in bench.herds],
    }
    return json.dumps(content, indent=2)


def _size(_context: click.Context, _option: click.Parameter, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


def _numbers(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,10,100")
    return numbers


@click.command()
@click.option("--size", default="85MB", callback=_size, help="Size of the file.  [default: 85MB]")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="How often all is repeated."
)
@click.option("--clients", default="1,10,100", show_default=True, callback=_numbers, help="Clients at once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every single measurement.")
@click.option("--quick", is_flag=True, help="One round with a file of at most 20 MB: tells if it works.")
def main(size: int, rounds: int, clients: tuple[int, ...], as_json: bool, quick: bool) -> None:
    """Measure clamproxy against nginx's sendfile on the same file."""
    plan = Plan(min(size, 20 * MB), 1, clients) if quick else Plan(size, rounds, clients)
    nginx_program = servers.nginx_program()
    # Ended by a signal, the program still stops its servers and removes its files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="clamproxy-bench-") as work:
        try:
            bench = Bench(plan, Path(work))
            bench.run(nginx_program)
        except (LoadError, ServerError) as error:
            raise click.ClickException(str(error)) from None
    _say("")
    found = figures(bench.measurements, bench.herds)
    if as_json:
        click.echo(_as_json(plan, bench, nginx_program, found))
        return
    click.echo("\n".join([*_heading(plan, nginx_program, bench.measurements), *lines(found)]))


if __name__ == "__main__":
    main()
