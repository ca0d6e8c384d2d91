"""What the benchmark prints: figures, the bars beside them, and whether they are met."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.origin import Counts

MB = 1_000_000

MEMORY_LIMIT = 200.0
"""MiB of peak memory, whatever the load."""
HERD_FACTOR = 1.25
"""A cold herd's wall time over the longer of the transfer's and the warm herd's."""
RATE_BARS = {("plain", 1): 0.8, ("plain", 100): 0.5, ("TLS", 1): 0.8, ("TLS", 10): 0.8, ("TLS", 100): 0.8}
"""Least throughput, as a share of nginx's, per way in and number of clients."""
FIRST_BYTE_BARS = {("TLS", 10): 200.0}
"""Most milliseconds of the median time to the first byte."""

type Way = Literal["plain", "TLS"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One server under one load, once.

    Attributes:
        round: number of the round, from 0.
        way: plain or TLS.
        clients: number of clients at once.
        server: nginx or clamproxy.
        rate: bytes per second of all clients together.
        first_byte: median seconds to the first byte of the body.
        memory: peak resident memory in MiB.
        cipher: what was negotiated.
    """

    round: int
    way: Way
    clients: int
    server: str
    rate: float
    first_byte: float
    memory: float
    cipher: str


@dataclass(frozen=True, slots=True)
class Herd:
    """All clients at once on an empty cache, then again on the full one.

    Attributes:
        round: number of the round, from 0.
        way: plain or TLS.
        clients: number of clients at once.
        origin: what the origin was asked for by the cold herd.
        size: bytes of the file.
        origin_rate: limit of the origin, in bytes per second.
        cold: wall time of the cold herd in seconds.
        warm: wall time of the warm herd in seconds.
        memory: peak resident memory of both in MiB.
    """

    round: int
    way: Way
    clients: int
    origin: Counts
    size: int
    origin_rate: float
    cold: float
    warm: float
    memory: float

    @property
    def share(self) -> float:
        """Cold wall time over what nobody can be faster than."""
        return self.cold / max(self.size / self.origin_rate, self.warm)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to reach."""

    sign: Literal["<=", ">=", "="]
    limit: float
    unit: str = ""

    def met_by(self, value: float) -> bool:
        """Whether a value reaches the bar."""
        compare = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}[self.sign]
        return bool(compare(value, self.limit))

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}{self.unit}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report: the value that counts, in words, and its bar if it has one."""

    section: str
    name: str
    text: str
    value: float | None
    bar: Bar | None = None

    @property
    def missed(self) -> bool:
        """Whether there is a bar and the value doesn't reach it."""
        return self.bar is not None and self.value is not None and not self.bar.met_by(self.value)

    def __str__(self) -> str:
        verdict = "" if self.bar is None else f"{self.bar!s:>10}  {'MISSED' if self.missed else 'ok'}"
        return f"  {self.name:<18} {self.text:<54} {verdict}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """The figure as JSON has it; ``met`` is null without a bar."""
        met = None if self.bar is None else not self.missed
        return asdict(self) | {
            "text": self.text.rstrip(),
            "bar": None if self.bar is None else str(self.bar),
            "met": met,
        }


def figures(measurements: list[Measurement], herds: list[Herd]) -> list[Figure]:
    """Sum up all rounds: medians, also of the ratios of neighbours; the most of memory and requests."""
    loads = dict.fromkeys((m.way, m.clients) for m in measurements)
    kinds = dict.fromkeys((herd.way, herd.clients) for herd in herds)
    groups = [[h for h in herds if (h.way, h.clients) == kind] for kind in kinds]
    return [
        *(_throughput(measurements, *load) for load in loads),
        *(_first_byte(measurements, *load) for load in loads),
        *(_memory(measurements, *load) for load in loads),
        *(figure for group in groups for figure in _herd(group)),
    ]


def _of(measurements: list[Measurement], way: Way, clients: int) -> dict[str, list[Measurement]]:
    """The measurements of one load by server, each in the order of time."""
    chosen = [m for m in measurements if (m.way, m.clients) == (way, clients)]
    return {name: [m for m in chosen if m.server == name] for name in dict.fromkeys(m.server for m in chosen)}


def _throughput(measurements: list[Measurement], way: Way, clients: int) -> Figure:
    servers = _of(measurements, way, clients)
    text = _side_by_side(
        {name: statistics.median(m.rate for m in ms) / MB for name, ms in servers.items()}, "MB/s"
    )
    ratio, bar = None, None
    if {"nginx", "clamproxy"} <= servers.keys():
        pairs = zip(servers["clamproxy"], servers["nginx"], strict=True)
        ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
        limit = RATE_BARS.get((way, clients))
        bar = None if limit is None else Bar(">=", limit, " x")
        text += f"{ratio:7.3f} x"
    return Figure("Throughput", _name(way, clients), text, ratio, bar)


def _first_byte(measurements: list[Measurement], way: Way, clients: int) -> Figure:
    servers = _of(measurements, way, clients)
    medians = {name: statistics.median(m.first_byte for m in ms) * 1000 for name, ms in servers.items()}
    limit = FIRST_BYTE_BARS.get((way, clients))
    bar = None if limit is None else Bar("<=", limit, " ms")
    value = medians.get("clamproxy")
    return Figure(
        "Median time to first byte", _name(way, clients), _side_by_side(medians, "ms", 1), value, bar
    )


def _memory(measurements: list[Measurement], way: Way, clients: int) -> Figure:
    peaks = {name: max(m.memory for m in ms) for name, ms in _of(measurements, way, clients).items()}
    value = peaks.get("clamproxy")
    bar = Bar("<=", MEMORY_LIMIT, " MiB") if "clamproxy" in peaks else None
    return Figure("Peak memory", _name(way, clients), _side_by_side(peaks, "MiB"), value, bar)


def _herd(herds: list[Herd]) -> Iterator[Figure]:
    first = herds[0]
    section = f"Cold herd: empty cache, origin limited to {first.origin_rate / MB:g} MB/s"
    name = _name(first.way, first.clients)
    worst = max((herd.origin for herd in herds), key=lambda counts: (counts.files, counts.body_bytes))
    asked = f"whole file {worst.files}, header probes {worst.probes}, others {worst.others}"
    yield Figure(section, name, f"origin requests: {asked}", worst.files, Bar("=", 1))
    share = worst.body_bytes / first.size
    yield Figure(section, name, f"origin bytes {worst.body_bytes} ({share:.3f} x the file)", worst.body_bytes)
    cold, warm = (statistics.median(times) for times in zip(*((h.cold, h.warm) for h in herds), strict=True))
    factor = statistics.median(herd.share for herd in herds)
    least = first.size / first.origin_rate
    text = f"cold {cold:.2f} s, warm {warm:.2f} s, transfer {least:.2f} s: {factor:.3f} x"
    yield Figure(section, name, text, factor, Bar("<=", HERD_FACTOR, " x"))
    peak = max(herd.memory for herd in herds)
    yield Figure(section, name, f"peak memory {peak:.0f} MiB", peak, Bar("<=", MEMORY_LIMIT, " MiB"))


def _name(way: Way, clients: int) -> str:
    return f"{way:<5} {clients:>4} client{'s' if clients > 1 else ''}"


def _side_by_side(values: dict[str, float], unit: str, decimals: int = 0) -> str:
    return "".join(f"{name} {values[name]:6.{decimals}f} {unit:<6}" for name in sorted(values, reverse=True))


def lines(found: Iterable[Figure]) -> Iterator[str]:
    """The report as text: a heading per section, a line per figure, a summary."""
    section, barred, missed = "", 0, 0
    for figure in found:
        if figure.section != section:
            section = figure.section
            yield f"\n{section}"
        barred += figure.bar is not None
        missed += figure.missed
        yield str(figure)
    yield f"\n{barred - missed} of {barred} bars met"
