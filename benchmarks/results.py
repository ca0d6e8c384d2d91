"""What was measured: numbers by workload, case, contender and round, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender under one load, once.

    Attributes:
        workload: its name.
        case: which of the workload's loads.
        contender: its name.
        round: number of the round, from 0.
        values: by name of the quantity (see `benchmarks.report.QUANTITIES`).
        failures: what went wrong, by kind.
    """

    workload: str
    case: str
    contender: str
    round: int
    values: dict[str, float]
    failures: dict[str, int] = field(default_factory=dict)


class Results:
    """All measurements, with the words about those who were measured."""

    def __init__(self) -> None:
        self.about: dict[str, str] = {}
        """What the contenders call themselves, or why they are missing."""
        self.measurements: list[Measurement] = []
        self.errors: dict[str, str] = {}
        """By workload: why it could not be measured to its end."""

    def add(self, workload: str, measured: Iterable[Measurement], error: str = "") -> None:
        """Replace what is known of a workload.

        Args:
            workload: its name.
            measured: all that was measured.
            error: why that is not all.
        """
        self.measurements = [m for m in self.measurements if m.workload != workload]
        self.measurements += measured
        self.errors.pop(workload, None)
        if error:
            self.errors[workload] = error

    def has(self, workload: str) -> bool:
        """Whether a workload was measured to its end."""
        return workload not in self.errors and any(m.workload == workload for m in self.measurements)

    def save(self, path: Path) -> None:
        """Write them into a file, whole or not at all."""
        content = {
            "about": self.about,
            "errors": self.errors,
            "measurements": [asdict(m) for m in self.measurements],
        }
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(content, indent=1))
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` has written."""
        content = json.loads(path.read_text())
        results = cls()
        results.about, results.errors = content["about"], content["errors"]
        results.measurements = [Measurement(**values) for values in content["measurements"]]
        return results
