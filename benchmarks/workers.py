"""The rate of requests with CONNECT and TLS, with one worker and with two: `python -m benchmarks.workers`.

The load takes as much processor time as a worker. So that it isn't the limit, each process of the servers is
held to a share of a core by a control group, for which this has to run as root.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from benchmarks.contenders.clamproxy import Clamproxy
from benchmarks.contenders.contender import Server
from benchmarks.load.generator import Load, LoadGenerator, allow_files
from benchmarks.mirror import MB, open_mirror

CLIENTS = 64
_PERIOD = 20_000
"""Microseconds over which a process gets its share."""
_GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def held(pid: int, share: float) -> Iterator[None]:
    """Let a process have no more than a share of a core (cgroups(7), version 1 or 2).

    Raises:
        click.ClickException: this user may not do that.
    """
    first = _GROUPS / "cpu"
    group = (first if first.is_dir() else _GROUPS) / f"clamproxy-bench-{pid}"
    quota = int(_PERIOD * share)
    try:
        group.mkdir()
        if first.is_dir():
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise click.ClickException(f"no control group for processor time: {error}") from None
    try:
        yield
    finally:
        # The process goes back to where all others are; a group with processes can't be removed.
        (group.parent / "cgroup.procs").write_text(str(pid))
        group.rmdir()


@click.command()
@click.option("--share", default=0.2, show_default=True, help="Of a core, for each process.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=4.0, show_default=True, help="Of each load.")
def main(share: float, rounds: int, seconds: float) -> None:
    """Compare one worker with two."""
    allow_files()
    with tempfile.TemporaryDirectory(prefix="clamproxy-bench-") as directory, ExitStack() as stack:
        work = Path(directory)
        (work / "mirror").mkdir()
        mirror = stack.enter_context(open_mirror(work / "mirror", daily=MB))
        load = stack.enter_context(LoadGenerator())
        scripts = ((mirror.fetch(f"{mirror.cdiff}.sign"),),)
        servers: dict[int, Server] = {}
        for count in (1, 2):
            (work / f"{count}").mkdir()
            servers[count] = stack.enter_context(Clamproxy(workers=count).start(mirror, work / f"{count}"))
        for server in servers.values():
            assert server.tls is not None
            load.run(Load(server.tls, scripts, CLIENTS))  # warms the cache, and makes the certificate
            for pid in server.process.pids():
                stack.enter_context(held(pid, share))
        ratios = []
        for number in range(rounds):
            rates = {}
            for count in (1, 2) if number % 2 else (2, 1):
                server = servers[count]
                assert server.tls is not None
                before = server.process.cpu_seconds()
                outcome = load.run(Load(server.tls, scripts, CLIENTS, seconds=seconds))
                cores = (server.process.cpu_seconds() - before) / outcome.wall
                rates[count] = outcome.requests / outcome.wall
                failures = f", failures: {outcome.failures}" if outcome.failures else ""
                click.echo(f"{count} workers: {rates[count]:.0f}/s with {cores:.2f} cores{failures}")
            ratios.append(rates[2] / rates[1])
            time.sleep(0.5)
        click.echo(f"2 workers / 1 worker: {statistics.median(ratios):.2f}, of {rounds} rounds")


if __name__ == "__main__":
    main()
