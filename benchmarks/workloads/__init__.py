"""What the contenders have to do: one module for each workload."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.results import Measurement
from benchmarks.workloads import bulk, herd, lockstep, probe, release, small, tls


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that the contenders have to do.

    Attributes:
        name: on the command line and in measurements.
        title: in the report.
        run: measures all rounds of all cases.
    """

    name: str
    title: str
    run: Callable[[Bench], Iterator[Measurement]]


WORKLOADS = tuple(
    Workload(module.NAME, module.TITLE, module.run)
    for module in (lockstep, small, tls, bulk, herd, probe, release)
)
