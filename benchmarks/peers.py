"""How clamproxy, nginx, squid and Varnish serve machines, compared: `python -m benchmarks.peers`."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.bench import FULL, QUICK, Bench, Plan, say
from benchmarks.contenders.clamproxy import Clamproxy
from benchmarks.contenders.contender import Contender
from benchmarks.contenders.nginx import Nginx
from benchmarks.contenders.squid import Squid
from benchmarks.contenders.varnish import Varnish
from benchmarks.load.generator import LoadGenerator, allow_files, most_machines
from benchmarks.mirror import open_mirror
from benchmarks.report import lines, report
from benchmarks.results import Results
from benchmarks.workloads import WORKLOADS, Workload
from clamproxy.workers.cores import usable_cores

CONTENDERS: dict[str, Contender] = {
    contender.name.lower(): contender
    for contender in (
        Clamproxy(),
        Clamproxy(express=False),
        Clamproxy(workers=max(2, usable_cores())),
        Nginx(),
        Squid(),
        Varnish(),
    )
}
DEFAULT_CONTENDERS = "clamproxy,nginx,squid,varnish"
_WORKLOADS = {workload.name: workload for workload in WORKLOADS}


def _names(known: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """A callback for an option that takes a comma-separated list of names."""

    def parse(_context: click.Context, _option: click.Parameter, value: str) -> list[str]:
        names = value.lower().split(",")
        if unknown := set(names) - set(known):
            raise click.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def measure(
    plan: Plan, contenders: list[Contender], workloads: list[Workload], results: Results, file: Path | None
) -> None:
    """Measure one workload after the other; a failure of one doesn't prevent the next.

    Args:
        plan: how much to measure.
        contenders: those that can be started here.
        workloads: what they have to do.
        results: the measurements are added to these.
        file: where to save the results after each workload; None for nowhere.
    """
    with (
        tempfile.TemporaryDirectory(prefix="clamproxy-bench-") as directory,
        LoadGenerator() as load,
    ):
        work = Path(directory)
        # squid drops root's privileges, and must still reach its directory in there.
        work.chmod(0o711)
        site = work / "mirror"
        site.mkdir()
        with (
            open_mirror(site, daily=plan.bulk_size, main=plan.herd_size) as mirror,
            closing(Bench(plan, work, contenders, load, mirror)) as bench,
        ):
            for workload in workloads:
                results.add(workload.name, list(workload.run(bench)), bench.errors)
                if file is not None:
                    results.save(file)


@click.command()
@click.option("--only", default=",".join(_WORKLOADS), callback=_names(list(_WORKLOADS)), help="Workloads.")
@click.option(
    "--contenders",
    default=DEFAULT_CONTENDERS,
    show_default=True,
    callback=_names(list(CONTENDERS)),
    help="no-express is clamproxy without its express lane; workers is clamproxy with a worker per core.",
)
@click.option("--rounds", type=click.IntRange(1), help="How often each load is repeated.  [default: 3]")
@click.option("--quick", is_flag=True, help="One round of everything with few machines: tells if it works.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all measurements to a file.")
@click.option("--resume", is_flag=True, help="Don't measure the workloads again that the file has.")
def main(
    only: list[str], contenders: list[str], rounds: int | None, quick: bool, file: Path | None, resume: bool
) -> None:
    """Measure how clamproxy and its peers serve freshclam's requests."""
    plan = QUICK if quick else FULL
    if rounds is not None:
        plan = replace(plan, rounds=rounds)
    results = Results.load(file) if resume and file is not None and file.exists() else Results()
    allow_files()
    # So that the program stops its servers and removes its files even if a signal ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    present = []
    for name in contenders:
        contender = CONTENDERS[name]
        reason = contender.missing()
        results.about[contender.name] = f"left out: {reason}" if reason else contender.version()
        if not reason:
            present.append(contender)
    if max(plan.crowds) > most_machines():
        results.about["open files"] = f"this user may not open more, so {most_machines():,} machines at most"
    workloads = [_WORKLOADS[name] for name in only if not (resume and results.has(name))]
    begun = time.monotonic()
    if workloads:
        measure(plan, present, workloads, results, file)
    say("")
    titles = {workload.name: workload.title for workload in WORKLOADS}
    click.echo("\n".join(report(results, titles)))
    click.echo(f"measured in {(time.monotonic() - begun) / 60:.1f} minutes")
    if file is not None:
        results.save(file, [line.as_json() for line in lines(results.measurements)])
    sys.exit(bool(results.errors))


if __name__ == "__main__":
    main()
