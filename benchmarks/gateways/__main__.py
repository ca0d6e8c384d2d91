"""Several gateways with one object store, put to the test: `python -m benchmarks.gateways`."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.bench import say
from benchmarks.gateways.scenarios import SCENARIOS
from benchmarks.gateways.site import BENCHMARK, SMALL
from benchmarks.load.generator import allow_files


@contextmanager
def directory_for(name: str, keep: Path | None) -> Iterator[Path]:
    """A scenario's empty directory, which is deleted at the end unless it is to be kept."""
    if keep is not None:
        work = keep.absolute() / name
        work.mkdir(parents=True)
        yield work
    else:
        with tempfile.TemporaryDirectory(prefix="clamproxy-bench-") as temporary:
            yield Path(temporary)


@click.command()
@click.option("--only", default=",".join(SCENARIOS), help="Scenarios, separated by commas.  [default: all]")
@click.option("--gateways", type=click.IntRange(2), help="How many.  [default: 4]")
@click.option("--clients", type=click.IntRange(1), help="Of each gateway.  [default: 1000]")
@click.option("--workers", type=click.IntRange(1), default=1, help="Of each gateway.  [default: 1]")
@click.option("--quick", is_flag=True, help="3 gateways with 30 clients each, and short outages.")
@click.option("--alone", is_flag=True, help="Without an object store: what it would cost.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep logs and caches in this directory.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(
    only: str,
    gateways: int | None,
    clients: int | None,
    workers: int,
    quick: bool,
    alone: bool,
    keep: Path | None,
    file: Path | None,
) -> None:
    """Count what a site of several gateways costs the origin, also when parts of it fail."""
    names = only.split(",")
    if unknown := set(names) - set(SCENARIOS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(SCENARIOS)}")
    scale = SMALL if quick else BENCHMARK
    scale = replace(
        scale,
        gateways=gateways or scale.gateways,
        clients=clients or scale.clients,
        workers=workers,
        shared=not alone,
    )
    allow_files()
    # So that the program stops its servers and removes its files even if a signal ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.monotonic()
    results = []
    for name in names:
        say(name)
        with directory_for(name, keep) as work:
            figures = SCENARIOS[name](work, scale)
        say("")
        results.append(figures)
        click.echo("\n".join(figures.lines()))
        if file is not None:
            file.write_text(f"{json.dumps([each.as_json() for each in results], indent=1)}\n")
    click.echo(f"\nmeasured in {(time.monotonic() - begun) / 60:.1f} minutes")
    sys.exit(any(figures.missed for figures in results))


if __name__ == "__main__":
    main()
