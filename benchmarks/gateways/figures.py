"""What a scenario has shown: figures, and the claims that they prove or refute; as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that has to be so, and what was seen."""

    text: str
    holds: bool
    seen: str


@dataclass(slots=True)
class Figures:
    """One scenario.

    Attributes:
        scenario: its name.
        values: by what they count; times in seconds, sizes in bytes.
        origin: how often the origin was asked, by request.
        claims: in the order in which they were looked at.
    """

    scenario: str
    values: dict[str, float] = field(default_factory=dict)
    origin: dict[str, int] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def claim(self, text: str, holds: bool, seen: object = "") -> None:
        self.claims.append(Claim(text, holds, str(seen)))

    @property
    def missed(self) -> list[Claim]:
        return [claim for claim in self.claims if not claim.holds]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The figures for a terminal."""
        values = ", ".join(f"{name} {_number(value)}" for name, value in self.values.items())
        lines = ["", f"{self.scenario}", f"  {values}"]
        lines.append(f"  origin: {_counts(self.origin) or 'not asked'}")
        for claim in self.claims:
            seen = f": {claim.seen}" if claim.seen else ""
            lines.append(f"  {'ok    ' if claim.holds else 'MISSED'} {claim.text}{seen}")
        return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _counts(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    names = [f"{name} {count}x" if count > 1 else name for name, count in counts.items()]
    return f"{total} requests: {', '.join(names)}" if total else ""


def most(counts: Iterable[int]) -> int:
    """The largest count; 0 if there is none."""
    return max(counts, default=0)
