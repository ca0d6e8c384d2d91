"""The report: which measurements are shown, the ratios, and the bars that clamproxy has to meet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

from benchmarks.load.generator import processors
from benchmarks.results import Measurement, Results

OURS = "clamproxy"
_COLUMN = 13
"""Width of a column in characters."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A line of the report.

    Attributes:
        label: what is shown, with the unit.
        factor: from the unit of the measurement to the unit shown.
        decimals: how many are shown.
        sum_up: makes one value from those of all rounds.
        compared: whether the report shows the ratio of clamproxy's value to each of the others.
    """

    label: str
    factor: float = 1
    decimals: int = 0
    sum_up: Callable[[Sequence[float]], float] = statistics.median
    compared: bool = False


QUANTITIES = {
    "undone": Quantity("machines that failed", sum_up=max),
    "failures": Quantity("client errors", sum_up=max),
    "rate": Quantity("requests/s", compared=True),
    "throughput": Quantity("MB/s", 1e-6, compared=True),
    "wall": Quantity("wall, s", decimals=2, compared=True),
    "cpu": Quantity("CPU per request, us", 1e6, compared=True),
    "first_byte": Quantity("first byte, ms", 1e3, 1),
    "peak": Quantity("peak memory, MiB", sum_up=max),
    "before": Quantity("memory at first, MiB", sum_up=itemgetter(0)),
    "resident": Quantity("memory in the end, MiB", sum_up=itemgetter(-1)),
    "stale": Quantity("stale answers", sum_up=max),
    "origin_requests": Quantity("origin requests", sum_up=max),
    "origin_files": Quantity("origin: whole files", sum_up=max),
    "origin_bytes": Quantity("origin bytes", sum_up=max),
    "share": Quantity("cold wall / (ideal or warm)", decimals=2),
    "warm": Quantity("warm wall, s", decimals=2),
}
SHOWN = {
    "lockstep": ("undone", "failures", "wall", "cpu", "before", "peak", "resident"),
    "small": ("failures", "rate", "cpu"),
    "tls": ("failures", "rate", "cpu"),
    "bulk": ("failures", "throughput", "first_byte", "peak"),
    "herd": ("failures", "wall", "warm", "share", "origin_files", "origin_bytes", "peak"),
    "probe": ("failures", "origin_bytes"),
    "release": ("failures", "stale", "origin_requests"),
}
"""The quantities that the report shows for each workload, in this order."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What clamproxy has to reach.

    Attributes:
        case: how the names of its cases begin.
        quantity: a key of `QUANTITIES`.
        sign: whether the limit is the largest or the smallest acceptable value.
        limit: in the unit of the report; with a peer, the ratio to the peer's value.
        peer: the contender that clamproxy is compared with; empty for none.
    """

    workload: str
    case: str
    quantity: str
    sign: Literal["<=", ">="]
    limit: float
    peer: str = ""

    def met_by(self, value: float) -> bool:
        """Whether a value, or a ratio, meets the bar."""
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}" + (f" x {self.peer}" if self.peer else "")


BARS = (
    Bar("lockstep", "", "undone", "<=", 0),
    Bar("lockstep", "10,000", "wall", "<=", 2, "nginx"),
    Bar("lockstep", "10,000", "cpu", "<=", 5, "nginx"),
    Bar("lockstep", "10,000", "peak", "<=", 200),
    Bar("small", "cdiff, new", "rate", ">=", 0.3, "nginx"),
    Bar("small", "cdiff, new", "rate", ">=", 0.8, "squid"),
    Bar("small", ".sign, new", "rate", ">=", 0.3, "nginx"),
    Bar("small", ".sign, new", "rate", ">=", 0.8, "squid"),
    Bar("small", "cdiff, kept", "rate", ">=", 0.3, "nginx"),
    Bar("small", ".sign, kept", "rate", ">=", 0.3, "nginx"),
    Bar("tls", "squid mimics", "rate", ">=", 2.5, "squid"),
    Bar("bulk", "plain", "throughput", ">=", 0.95, "nginx"),
    Bar("bulk", "TLS", "throughput", ">=", 1.0, "nginx"),
    Bar("bulk", "TLS, 100", "peak", "<=", 150),
    Bar("herd", "100", "share", "<=", 1.1),
    Bar("herd", "", "origin_files", "<=", 1),
    Bar("probe", "", "origin_bytes", "<=", 2048),
    Bar("release", "", "stale", "<=", 0),
    Bar("release", "200", "origin_requests", "<=", 5),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar, and the value or ratio that it was compared with."""

    bar: Bar
    value: float

    @property
    def met(self) -> bool:
        return self.bar.met_by(self.value)

    def __str__(self) -> str:
        return f"{self.bar}: {'ok' if self.met else 'MISSED'}"


@dataclass(frozen=True, slots=True)
class Line:
    """One quantity of one case, summed up over the rounds.

    Attributes:
        case: which of the workload's loads.
        quantity: a key of `QUANTITIES`.
        values: by contender, in the unit of the report.
        ratios: of clamproxy's value to each of the others: the median of the ratios within a round.
        limited: the contenders whose value says more about the load, or the machine, than about them.
        verdicts: on the bars that apply.
    """

    workload: str
    case: str
    quantity: str
    values: dict[str, float]
    ratios: dict[str, float]
    limited: frozenset[str]
    verdicts: tuple[Verdict, ...]

    def as_json(self) -> dict[str, Any]:
        bars = [{"bar": str(v.bar), "value": v.value, "met": v.met} for v in self.verdicts]
        return {
            "workload": self.workload,
            "case": self.case,
            "quantity": QUANTITIES[self.quantity].label,
            "values": self.values,
            "ratios": self.ratios,
            "load_was_the_limit": sorted(self.limited),
            "bars": bars,
        }


_BUSY = 0.9
"""A server that uses this share of its processors, or more, is the limit itself."""


def lines(measurements: Sequence[Measurement]) -> Iterator[Line]:
    """Sum up all rounds."""
    for workload, case in dict.fromkeys((m.workload, m.case) for m in measurements):
        chosen = [m for m in measurements if (m.workload, m.case) == (workload, case)]
        for quantity in SHOWN[workload]:
            rows = [m for m in chosen if quantity in m.values]
            if rows:
                yield _line(workload, case, quantity, rows)


def _line(workload: str, case: str, quantity: str, rows: Sequence[Measurement]) -> Line:
    kind = QUANTITIES[quantity]
    by_name: dict[str, dict[int, float]] = {}
    for row in rows:
        by_name.setdefault(row.contender, {})[row.round] = row.values[quantity] * kind.factor
    values = {name: kind.sum_up(list(rounds.values())) for name, rounds in by_name.items()}
    ratios = {}
    if kind.compared and OURS in by_name:
        for name, theirs in by_name.items():
            pairs = [(by_name[OURS][n], theirs[n]) for n in theirs if n in by_name[OURS] and theirs[n]]
            if name != OURS and pairs:
                ratios[name] = statistics.median(ours / other for ours, other in pairs)
    limited = frozenset(row.contender for row in rows if quantity == "rate" and _is_limited(row))
    return Line(
        workload,
        case,
        quantity,
        values,
        ratios,
        limited,
        tuple(_verdicts(workload, case, quantity, values, ratios)),
    )


def _is_limited(row: Measurement) -> bool:
    """Whether the server could have done more than the load demanded."""
    server, load = row.values["server_busy"], row.values["load_busy"]
    return server < _BUSY and load > server


def _verdicts(
    workload: str, case: str, quantity: str, values: dict[str, float], ratios: dict[str, float]
) -> Iterator[Verdict]:
    for bar in BARS:
        if (bar.workload, bar.quantity) == (workload, quantity) and case.startswith(bar.case):
            value = ratios.get(bar.peer) if bar.peer else values.get(OURS)
            if value is not None:
                yield Verdict(bar, value)


def report(results: Results, titles: dict[str, str]) -> Iterator[str]:
    """The table, and the lines before and after it.

    Args:
        titles: of the workloads, by name.
    """
    for name, words in results.about.items():
        yield f"{name}: {words}"
    yield f"{processors()} processors for the servers and the load together"
    found = list(lines(results.measurements))
    names = [name for name in results.about if any(name in line.values for line in found)]
    peers = [name for name in names if name != OURS and OURS in names]
    yield ""
    yield _row("", [*names, *(f"/ {name}" for name in peers)], "bars")
    heading = ""
    for line in found:
        if heading != (heading := f"{titles[line.workload]}: {line.case}"):
            yield f"\n{heading}"
        yield _row(
            f"  {QUANTITIES[line.quantity].label}",
            _cells(line, names, peers),
            ", ".join(map(str, line.verdicts)),
        )
    yield ""
    yield from _failures(results)
    if any(line.limited for line in found):
        yield "* the load took more processor time than this server, which was not busy: it can do more"
    verdicts = [verdict for line in found for verdict in line.verdicts]
    yield f"{sum(verdict.met for verdict in verdicts)} of {len(verdicts)} bars met"


def _row(label: str, cells: Iterable[str], words: str) -> str:
    return f"{label:<30}{''.join(f'{cell:>{_COLUMN}}' for cell in cells)}  {words}".rstrip()


def _cells(line: Line, names: Sequence[str], peers: Sequence[str]) -> Iterator[str]:
    decimals = QUANTITIES[line.quantity].decimals
    for name in names:
        star = "*" if name in line.limited else ""
        yield f"{line.values[name]:,.{decimals}f}{star}" if name in line.values else "-"
    for name in peers:
        yield f"{line.ratios[name]:.3f}" if name in line.ratios else ""


def _failures(results: Results) -> Iterator[str]:
    """What went wrong, by kind, and what could not be measured."""
    for m in results.measurements:
        if m.failures:
            kinds = ", ".join(f"{count} x {kind}" for kind, count in m.failures.items())
            yield f"{m.workload}, {m.case}, {m.contender}, round {m.round + 1}: {kinds}"
    for workload, errors in results.errors.items():
        for contender, error in errors.items():
            yield f"{workload}, {contender}: not measured to its end: {error}"
