"""The measurements: numbers by workload, case, contender and round, saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender under one load, once.

    Attributes:
        case: which of the workload's loads.
        round: number of the round, from 0.
        values: by the name of the quantity, as in `benchmarks.report.QUANTITIES`.
        failures: what went wrong, by kind.
    """

    workload: str
    case: str
    contender: str
    round: int
    values: dict[str, float]
    failures: dict[str, int] = field(default_factory=dict)


class Results:
    """All measurements, and what the report says about the contenders."""

    def __init__(self) -> None:
        self.about: dict[str, str] = {}
        """Each contender's version and configuration in words, or why it is missing."""
        self.measurements: list[Measurement] = []
        self.errors: dict[str, dict[str, str]] = {}
        """By workload and contender: why something could not be measured."""

    def add(
        self, workload: str, measured: Iterable[Measurement], errors: Mapping[tuple[str, str], str]
    ) -> None:
        """Replace the results of a workload.

        Args:
            measured: all that was measured.
            errors: by workload and contender.
        """
        self.measurements = [m for m in self.measurements if m.workload != workload]
        self.measurements += measured
        self.errors.pop(workload, None)
        found = {contender: error for (where, contender), error in errors.items() if where == workload}
        if found:
            self.errors[workload] = found

    def has(self, workload: str) -> bool:
        """Whether a workload was measured to its end."""
        return workload not in self.errors and any(m.workload == workload for m in self.measurements)

    def save(self, path: Path, figures: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write the results to a file, completely or not at all.

        Args:
            figures: the lines of the report, as JSON.
        """
        content = {
            "about": self.about,
            "errors": self.errors,
            "figures": figures,
            "measurements": [asdict(m) for m in self.measurements],
        }
        new = path.with_name(f"{path.name}.new")
        new.write_text(f"{json.dumps(content, indent=1)}\n")
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` has written."""
        content = json.loads(path.read_text())
        results = cls()
        results.about, results.errors = content["about"], content["errors"]
        results.measurements = [Measurement(**values) for values in content["measurements"]]
        return results
