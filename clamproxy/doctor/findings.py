"""Findings, and the checks that lead to them: in order, each only where it makes sense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from clamproxy.readable import shortened

LONGEST_TEXT = 400
"""Characters of a finding that are shown: some of them are what another program said."""


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"

    @property
    def severity(self) -> int:
        """How bad it is: the exit code of a doctor who finds nothing worse."""
        return _EXIT_CODES.get(self, 0)


_EXIT_CODES = {Status.PROBLEM: 2, Status.WARNING: 1}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    status: Status
    subject: str
    text: str
    """One line."""
    remedy: str = ""
    """What to do, one line; for problems, and for warnings that something can be done about."""

    def to_json(self) -> dict[str, str | None]:
        """For programs; the remedy is null where there is none."""
        return {**asdict(self), "status": self.status.value, "remedy": self.remedy or None}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a check, without its subject."""

    status: Status
    text: str
    remedy: str = ""


def ok(text: str) -> Verdict:
    """All is well."""
    return Verdict(Status.OK, text)


def warning(text: str, remedy: str = "") -> Verdict:
    """It works, but not as it should, or not for long."""
    return Verdict(Status.WARNING, text, remedy)


def problem(text: str, remedy: str) -> Verdict:
    """It doesn't work."""
    return Verdict(Status.PROBLEM, text, remedy)


def skipped(reason: str) -> Verdict:
    """There is nothing to check, or no way to."""
    return Verdict(Status.SKIPPED, reason)


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at."""

    subject: str
    look: Callable[[], Verdict]
    needs: Sequence[str] = ()
    """Subjects of earlier checks without whose success this one makes no sense."""


class Deadline:
    """The end of all checks: each gets as much time as is left, or what it wants at most."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds, not below 0."""
        return max(0.0, self._end - self._clock())

    def allow(self, seconds: float) -> float:
        """Seconds that something may take that wants so many; a little even when the time is over."""
        return max(0.1, min(seconds, self.left))


def examine(checks: Iterable[Check], deadline: Deadline) -> Iterator[Finding]:
    """Run checks in order, and give each finding as it comes."""
    causes: dict[str, str] = {}
    """Of each check that led nowhere, the one that is to blame."""
    for check in checks:
        cause = next((causes[subject] for subject in check.needs if subject in causes), None)
        if cause is not None:
            verdict = skipped(f"not looked at because of: {cause}")
        elif not deadline.left:
            verdict = skipped("the time is over")
        else:
            verdict = _look(check)
        if verdict.status in (Status.PROBLEM, Status.SKIPPED):
            causes[check.subject] = cause or check.subject
        yield Finding(verdict.status, check.subject, one_line(verdict.text), one_line(verdict.remedy))


def exit_code(findings: Iterable[Finding]) -> int:
    """2 with problems, 1 with warnings, else 0."""
    return max((finding.status.severity for finding in findings), default=0)


def one_line(text: str) -> str:
    """A text of somebody else's, so that it can't do anything to a terminal."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return shortened(line, LONGEST_TEXT)


def _look(check: Check) -> Verdict:
    try:
        return check.look()
    except Exception as error:  # one check that fails must not hide what the others find
        reason = str(error) or type(error).__name__
        return problem(f"the check itself failed: {reason}", "report this as a bug of clamproxy, please.")
