"""What 90 daily releases cost at the origin, by the way a site is served: `python -m benchmarks.releases`.

Pure arithmetic with the gateway's own decisions (`clamproxy.releases.delta`): nothing is sent or timed.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from clamproxy.config.quantities import SHARE
from clamproxy.config.settings import Delta
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.releases.delta import Lineage, Renewal, renewal

MB = 1_000_000
RELEASES = 90
FLEETS = (1, 100, 10_000)
"""Numbers of clients."""
CVD = 60_000_000
"""Size of a daily.cvd in bytes (docs/protocol.md 9.4: up to 62 MB)."""
SIGN = 9_000
"""Size of a `.sign` file in bytes (docs/protocol.md 6: 8.87 KiB)."""
SMALLEST_CDIFF, LARGEST_CDIFF = 5_000, 100_000
"""Sizes in bytes."""
RENEWALS = (7, 30, 90)
"""Values of `delta.renew_after` to compare."""
BARS = {30: 25, 90: 60}
"""By `delta.renew_after`: how many times less than cvdupdate the gateway has to fetch."""
REFERENCE = "cvdupdate"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate.

    Attributes:
        seed: for the sizes of the cdiffs, and the days of new installations.
        new_clients: share of the clients that are newly installed each day, from 0 to 1.
        whole_file_clients: share of the clients with `ScriptedUpdates no`, from 0 to 1.
    """

    seed: int
    new_clients: float
    whole_file_clients: float


@dataclass(frozen=True, slots=True)
class Day:
    """A release, and how many clients want what on its day.

    Attributes:
        version: of the release, from 1; the clients were installed with version 0.
        cdiff: size of the patch that leads to it, in bytes.
        new: clients without a database: they take the whole CVD that they are given.
        patching: clients that take the cdiff.
        whole: clients with `ScriptedUpdates no`: they take this version's whole CVD.
    """

    version: int
    cdiff: int
    new: int
    patching: int
    whole: int


@dataclass(slots=True)
class Bill:
    """What one way to serve a site fetched from the origin.

    Attributes:
        way: its name.
        first_day: bytes on the first day, with version 0.
        total: bytes for all later releases.
        whole_files: number of whole CVDs among these.
        patches: for each day, how many patches a client has to apply if it is installed early that day.
    """

    way: str
    first_day: int
    total: int = 0
    whole_files: int = 0
    patches: list[int] = field(default_factory=list)

    def add_patch(self, cdiff: int, times: int = 1) -> None:
        """Count a cdiff of that size and its `.sign`."""
        self.total += times * (cdiff + SIGN)

    def add_whole_file(self, times: int = 1) -> None:
        """Count a whole CVD and its `.sign`."""
        self.total += times * (CVD + SIGN)
        self.whole_files += times


def draw_days(clients: int, plan: Plan) -> list[Day]:
    """The releases, the same for every fleet with this seed, and what this fleet does on each day."""
    sizes = random.Random(plan.seed)
    logarithms = math.log(SMALLEST_CDIFF), math.log(LARGEST_CDIFF)
    cdiffs = [round(math.exp(sizes.uniform(*logarithms))) for _ in range(RELEASES)]
    days = []
    for version, (cdiff, new) in enumerate(zip(cdiffs, _draw_installs(clients, plan), strict=True), 1):
        whole = min(round(clients * plan.whole_file_clients), clients - new)
        days.append(Day(version, cdiff, new, clients - new - whole, whole))
    return days


def _draw_installs(clients: int, plan: Plan) -> list[int]:
    """New installations on each day: at least one in all, or a single client would mostly have none."""
    chance = random.Random(f"{plan.seed}/{clients}")
    installs = [chance.binomialvariate(clients, plan.new_clients) for _ in range(RELEASES)]
    if plan.new_clients and not any(installs):
        installs[chance.randrange(RELEASES)] = 1
    return installs


def gateway(days: Sequence[Day], limits: Delta) -> Bill:
    """This gateway, which prefetches the cdiffs and decides about the base as the product does.

    A new client comes early, before a renewal on its day: it gets the old base while a renewal `AT_ONCE`
    is in progress; the renewal `IN_A_QUIET_HOUR` comes at the end of the day. A whole CVD that was
    fetched for another reason becomes the base, and saves that day's renewal.
    """
    way = f"gateway, renew_after {limits.renew_after}" if limits.enabled else "gateway, delta off"
    bill = Bill(way, first_day=HEADER_SIZE + CVD + SIGN)
    lineage = Lineage(base=0, base_size=CVD, reached=0)
    for day in days:
        bill.total += HEADER_SIZE
        bill.add_patch(day.cdiff)
        lineage = replace(lineage, reached=day.version, patch_bytes=lineage.patch_bytes + day.cdiff)
        bill.patches.append(lineage.patches if limits.enabled else 0)
        # Without delta serving, new clients get the advertised version as well.
        is_wanted = bool(day.whole or (day.new and not limits.enabled))
        if is_wanted or renewal(lineage, limits) is not Renewal.NOT_NEEDED:
            bill.add_whole_file()
            lineage = Lineage(base=day.version, base_size=CVD, reached=day.version)
    return bill


def cvdupdate(days: Sequence[Day]) -> Bill:
    """The vendor's mirror tool, which fetches both files of each release (docs/protocol.md 9.5)."""
    bill = Bill(REFERENCE, first_day=CVD + SIGN)
    for day in days:
        bill.add_patch(day.cdiff)
        bill.add_whole_file()
        bill.patches.append(0)
    return bill


def plain_cache(days: Sequence[Day]) -> Bill:
    """An ideal pull-through cache: it fetches each file that a client asks for once per release."""
    bill = Bill("pull-through cache", first_day=CVD + SIGN)
    for day in days:
        bill.add_patch(day.cdiff, times=day.patching > 0)
        bill.add_whole_file(times=day.new + day.whole > 0)
        bill.patches.append(0)
    return bill


def no_cache(days: Sequence[Day], clients: int) -> Bill:
    """Every client fetches for itself."""
    bill = Bill("no cache", first_day=clients * (CVD + SIGN))
    for day in days:
        bill.add_patch(day.cdiff, times=day.patching)
        bill.add_whole_file(times=day.new + day.whole)
        bill.patches.append(0)
    return bill


@dataclass(frozen=True, slots=True)
class Result:
    """A way's figures compared with those of cvdupdate, and its bar.

    Attributes:
        clients: size of the fleet.
        bill: what this way fetched.
        reference: what cvdupdate fetched for the same fleet.
        bar: how many times fewer bytes than cvdupdate it may fetch; None for no bar.
    """

    clients: int
    bill: Bill
    reference: Bill
    bar: int | None = None

    @property
    def ratio(self) -> float:
        """Bytes relative to those of cvdupdate."""
        return self.bill.total / self.reference.total

    @property
    def passed(self) -> bool | None:
        """Whether the bar is met; None without a bar."""
        return None if self.bar is None else self.bill.total * self.bar <= self.reference.total

    def as_json(self) -> dict[str, Any]:
        """The figures, with units in their names."""
        patches = self.bill.patches
        return {
            "clients": self.clients,
            "way": self.bill.way,
            "first_day_bytes": self.bill.first_day,
            "bytes_per_release": self.bill.total / RELEASES,
            "ratio_to_cvdupdate": self.ratio,
            "whole_files": self.bill.whole_files,
            "patches": {
                "mean": statistics.mean(patches),
                "median": statistics.median(patches),
                "most": max(patches),
            },
            "bar": None if self.bar is None else 1 / self.bar,
            "passed": self.passed,
        }

    def as_row(self) -> Iterator[str]:
        figures = self.as_json()
        yield self.bill.way
        yield f"{figures['bytes_per_release'] / MB:,.2f}"
        yield f"1/{1 / self.ratio:.1f}" if self.ratio < 1 else f"{self.ratio:.1f}"
        yield f"{self.bill.whole_files:,}"
        yield "/".join(f"{value:.3g}" for value in figures["patches"].values())
        yield "" if self.bar is None else f"1/{self.bar} {'passed' if self.passed else 'failed'}"


def simulate(clients: int, plan: Plan) -> list[Result]:
    """Serve one fleet in every way."""
    days = draw_days(clients, plan)
    reference = cvdupdate(days)
    ours = [
        Result(clients, gateway(days, Delta(renew_after=patches)), reference, BARS.get(patches))
        for patches in RENEWALS
    ]
    others = [gateway(days, Delta(enabled=False)), reference, plain_cache(days), no_cache(days, clients)]
    return ours + [Result(clients, bill, reference) for bill in others]


def tables(results: Sequence[Result]) -> Iterator[Table]:
    """One table for each fleet."""
    for clients in dict.fromkeys(result.clients for result in results):
        title = f"{clients:,} client{'s' if clients > 1 else ''}"
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        table.add_column("way", no_wrap=True)
        for heading in ("MB per\nrelease", f"to\n{REFERENCE}", "whole\nCVDs", "patches\nif new"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("bar", no_wrap=True)
        for result in results:
            if result.clients == clients:
                table.add_row(*result.as_row())
        yield table


def _share(_context: click.Context, _option: click.Parameter, value: str) -> float:
    try:
        share = SHARE.parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{value!r} is not between 0 and 100%")
    return share


@click.command()
@click.option("--seed", default=1, show_default=True, help="Draws other sizes and other days.")
@click.option(
    "--new-clients", default="1%", show_default=True, callback=_share, help="Installed anew each day."
)
@click.option(
    "--whole-file-clients", default="0", show_default=True, callback=_share, help="ScriptedUpdates no."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(seed: int, new_clients: float, whole_file_clients: float, as_json: bool) -> None:
    """Count what 90 daily releases cost at the origin, by the way a site is served."""
    plan = Plan(seed, new_clients, whole_file_clients)
    results = [result for clients in FLEETS for result in simulate(clients, plan)]
    if as_json:
        figures = [result.as_json() for result in results]
        click.echo(json.dumps({"plan": asdict(plan), "releases": RELEASES, "results": figures}, indent=2))
        return
    console = Console(highlight=False)
    console.print(*tables(results), sep="\n")
    console.print("patches if new: mean/median/most over the days; the first day is not counted")
    verdicts = [result.passed for result in results if result.passed is not None]
    console.print(f"{sum(verdicts)} of {len(verdicts)} bars passed")


if __name__ == "__main__":
    main()
