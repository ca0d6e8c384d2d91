"""Findings, and the checks that produce them: in order, and each only where it makes sense."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from clamproxy.readable import shortened, shown_span

LONGEST_TEXT = 400
"""How many characters of a finding are shown; some findings quote other programs."""


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"

    @property
    def severity(self) -> int:
        """The exit code of a doctor that finds nothing worse."""
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
    """What to do, in one line: for problems, and for warnings that can be acted on."""

    def to_json(self) -> dict[str, str | None]:
        """For programs; the remedy is null if there is none."""
        return {**asdict(self), "status": self.status.value, "remedy": self.remedy or None}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a check, without its subject."""

    status: Status
    text: str
    remedy: str = ""


def ok(text: str) -> Verdict:
    return Verdict(Status.OK, text)


def warning(text: str, remedy: str = "") -> Verdict:
    """It works, but not as it should, or not for long."""
    return Verdict(Status.WARNING, text, remedy)


def problem(text: str, remedy: str) -> Verdict:
    """It doesn't work."""
    return Verdict(Status.PROBLEM, text, remedy)


def skipped(reason: str) -> Verdict:
    """There is nothing to check, or no way to check it."""
    return Verdict(Status.SKIPPED, reason)


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at."""

    subject: str
    look: Callable[[], Verdict]
    needs: Sequence[str] = ()
    """Subjects of earlier checks; unless those succeed, this one makes no sense."""


class Deadline:
    """The end of all checks together: a check gets the time that it wants, or what is left."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())

    def allow(self, seconds: float) -> float:
        """Seconds for a step that wants `seconds`: at most what is left, and a little when the time is up."""
        return max(0.1, min(seconds, self.left))


def bounded[T](function: Callable[[], T], seconds: float) -> T:
    """Give a time limit to what has none of its own: the system's resolver, a peer that drips.

    The function runs in a thread, which is left to itself when the time is over.

    Args:
        function: what to run.
        seconds: how long to wait for it.

    Raises:
        TimeoutError: it took too long.
        Exception: what the function raised.
    """
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="clamproxy-doctor", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {shown_span(seconds)}")
    return results[0]


def examine(checks: Iterable[Check], deadline: Deadline) -> Iterator[Finding]:
    """Run checks in order, and yield each finding as soon as it is there."""
    causes: dict[str, str] = {}  # for each check without success, the check that is to blame
    for check in checks:
        cause = next((causes[subject] for subject in check.needs if subject in causes), None)
        if cause is not None:
            verdict = skipped(f"not checked because of: {cause}")
        elif not deadline.left:
            verdict = skipped("there was no time left")
        else:
            verdict = _look(check)
        if verdict.status in (Status.PROBLEM, Status.SKIPPED):
            causes[check.subject] = cause or check.subject
        yield Finding(verdict.status, check.subject, one_line(verdict.text), one_line(verdict.remedy))


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if there are problems, 1 if there are warnings, else 0."""
    return max((finding.status.severity for finding in findings), default=0)


def one_line(text: str) -> str:
    """Make foreign text safe to print: it must not be able to control a terminal."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return shortened(line, LONGEST_TEXT)


def _look(check: Check) -> Verdict:
    try:
        return check.look()
    except Exception as error:  # one check that fails must not hide what the others find
        reason = str(error) or type(error).__name__
        return problem(f"the check itself failed: {reason}", "please report this as a bug in clamproxy.")
