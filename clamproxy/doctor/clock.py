"""The clock: whether certificates and version records are valid depends on it."""

from __future__ import annotations

from clamproxy.doctor.findings import Verdict, ok, problem
from clamproxy.readable import shown_span

TOLERANCE = 300.0
"""How far two clocks may differ, in seconds."""

_REMEDY = "correct whichever clock is wrong, and let NTP keep it right (timedatectl set-ntp true)."


def compare_clocks(theirs: float, ours: float, whose: str) -> Verdict:
    """Judge this machine's clock by another one.

    Args:
        theirs: Unix seconds.
        ours: Unix seconds.
        whose: owner of the other clock, for the text.
    """
    difference = ours - theirs
    if abs(difference) <= TOLERANCE:
        return ok(f"this machine's clock agrees with that of {whose}")
    direction = "ahead of" if difference > 0 else "behind"
    text = f"this machine's clock is {shown_span(abs(difference))} {direction} that of {whose}"
    return problem(f"{text}, so certificates and version records seem invalid", _REMEDY)
