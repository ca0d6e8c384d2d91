"""The report of the benchmark beside other servers: medians, ratios of neighbours, bars, resuming."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Line, lines, report
from benchmarks.results import Measurement, Results

CASE = ".sign, new connection each"


def rate(
    contender: str, number: int, value: float, server_busy: float = 1, load_busy: float = 1
) -> Measurement:
    values = {"rate": value, "server_busy": server_busy, "load_busy": load_busy}
    return Measurement("small", CASE, contender, number, values)


def only_line(*measurements: Measurement) -> Line:
    (line,) = lines(measurements)
    return line


def test_ratios_are_those_of_neighbours_and_not_of_the_medians() -> None:
    ours, theirs = (10, 20, 90), (20, 80, 100)
    line = only_line(
        *(rate("clamproxy", number, value) for number, value in enumerate(ours)),
        *(rate("nginx", number, value) for number, value in enumerate(theirs)),
    )
    assert line.values == {"clamproxy": 20, "nginx": 80}
    assert line.ratios == {"nginx": 0.5}


def test_rounds_that_one_had_alone_are_not_compared() -> None:
    line = only_line(rate("clamproxy", 0, 10), rate("clamproxy", 1, 30), rate("nginx", 0, 10))
    assert line.ratios == {"nginx": 1.0}


def test_bars_are_for_who_is_there() -> None:
    alone = only_line(rate("clamproxy", 0, 10))
    assert alone.verdicts == ()
    beside = only_line(rate("clamproxy", 0, 10), rate("nginx", 0, 20), rate("squid", 0, 20))
    assert [str(verdict) for verdict in beside.verdicts] == [
        ">= 0.3 x nginx: ok",
        ">= 0.8 x squid: MISSED",
    ]


def test_a_rate_that_the_load_limited_is_marked() -> None:
    line = only_line(rate("clamproxy", 0, 10), rate("nginx", 0, 20, server_busy=0.6, load_busy=1.2))
    assert line.limited == {"nginx"}


def test_results_are_kept_and_what_failed_is_measured_again(tmp_path: Path) -> None:
    results = Results()
    results.about = {"clamproxy": "as shipped", "squid": "left out: not installed"}
    results.add("small", [rate("clamproxy", 0, 10)], {})
    results.add("bulk", [], {("bulk", "squid"): "died", ("herd", "squid"): "not of this workload"})
    results.save(tmp_path / "results.json")
    kept = Results.load(tmp_path / "results.json")
    assert kept.has("small")
    assert not kept.has("bulk")
    assert not kept.has("herd")
    text = "\n".join(report(kept, {"small": "Small object", "bulk": "Bulk"}))
    assert "squid: left out: not installed" in text
    assert "bulk, squid: not measured to its end: died" in text
    assert "not of this workload" not in text
