"""Simulated time for a whole process: `time`, the event loop, and the times of files.

Work takes no time. Whenever everybody waits (no thread works, no socket can be read, no callback is due),
the clock goes to the moment of the next timer. So timeouts, delays and periods have their true order, and 90
days take minutes. The kernel's own timeouts, of sockets in threads for example, stay in real time.

Call `simulate` before anything imports the program, which may keep functions of `time`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread as pools
import json
import os
import selectors
import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STEP = 900.0
"""Seconds by which time goes while there is nobody to serve."""
AWAKE = 2.0
"""Seconds for which it goes on by timers after the last of them has left: until what they did is on disk."""
_POLL = 0.002
"""Real seconds between looks at threads that work."""
_MARK_EVERY = 1.0
"""Simulated seconds between two marks, by which real times of files are translated."""
_MOST_MARKS = 20_000
"""More than a week."""
_LEAST = 1e-6
"""Seconds; less would be lost when it is added to Unix seconds."""
_COARSE = 0.005
"""Real seconds by which the kernel's time of a file may be behind."""
_real = time.time
timelines: list[Timeline] = []
"""The one by which this process goes, if it does."""


class Timeline:
    """The simulated clock of this process.

    Args:
        marks: pairs of a real time and a simulated one, from earlier processes; the clock starts at the last.
    """

    def __init__(self, marks: list[tuple[float, float]]) -> None:
        self._real, self._simulated = array("d"), array("d")
        """The marks. They don't grow much: what a long soak measures is in the same process."""
        for real, simulated in marks:
            self._mark(real, simulated)
        self._now = marks[-1][1]
        self._mark(_real(), self._now)
        self.step = 0.0
        """Seconds by which the system's clock is wrong: `time.time` shows it, `time.monotonic` doesn't."""
        self.guests = 0
        """How many clients are being served. While there are none, time goes by steps."""
        self.sleepers = 0
        """How many threads wait for somebody who lets them wait on purpose. Time goes by timers then, too."""
        self._awake_until = 0.0
        self._jobs = 0
        self._lock = threading.Lock()

    @classmethod
    def load(cls, file: Path) -> Timeline:
        """Go on where `save` stopped."""
        return cls([(real, simulated) for real, simulated in json.loads(file.read_text())])

    @staticmethod
    def begin(file: Path, now: float) -> None:
        """Have `load` start at a simulated moment."""
        file.write_text(json.dumps([(_real(), now)]))

    def save(self, file: Path) -> None:
        self._mark(_real(), self._now)
        file.write_text(json.dumps([*zip(self._real, self._simulated, strict=True)]))

    def time(self) -> float:
        return self._now + self.step

    def monotonic(self) -> float:
        return self._now

    @contextmanager
    def guest(self) -> Iterator[None]:
        self.guests += 1
        try:
            yield
        finally:
            self.guests -= 1
            self._awake_until = self._now + AWAKE

    async def let_wait(self, seconds: float) -> None:
        """Sleep while a thread waits for the caller."""
        self.sleepers += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.sleepers -= 1

    def is_busy(self) -> bool:
        """Whether a thread works."""
        others = threading.active_count() - 1 - len(pools._threads_queues)
        return self._jobs > 0 or others > self.sleepers

    def pass_time(self, until_timer: float) -> None:
        """Go to the next timer; if nobody is there, to the end of the step, as if the machine had slept."""
        step = until_timer
        if not self.guests and not self.sleepers and self._now >= self._awake_until:
            step = max(step, STEP - self._now % STEP)
        self._now += max(step, _LEAST)
        if self._now - self._simulated[-1] >= _MARK_EVERY:
            self._mark(_real(), self._now)

    def _mark(self, real: float, simulated: float) -> None:
        self._simulated.append(simulated)
        self._real.append(real)  # from here on, threads find it
        if len(self._real) > _MOST_MARKS:
            del self._real[: _MOST_MARKS // 2], self._simulated[: _MOST_MARKS // 2]

    def translated(self, real: float) -> float:
        """The simulated moment of a file's time; dates that were set on purpose stay."""
        if real > _real() + 1:
            return real
        place = max(0, bisect_right(self._real, real + _COARSE) - 1)
        return self._simulated[place] + real - self._real[place]

    def count_jobs(self) -> None:
        """Count what thread pools have to do."""
        submit = ThreadPoolExecutor.submit

        def counted(pool: ThreadPoolExecutor, *args: Any, **options: Any) -> Future[Any]:
            with self._lock:
                self._jobs += 1
            try:
                future = submit(pool, *args, **options)
            except BaseException:
                self._done()
                raise
            future.add_done_callback(self._done)
            return future

        ThreadPoolExecutor.submit = counted  # type: ignore[method-assign, assignment]

    def _done(self, _: object = None) -> None:
        with self._lock:
            self._jobs -= 1


class _Selector(selectors.DefaultSelector):
    """Lets time pass instead of waiting for it."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self._timeline = timeline

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        while not (ready := super().select(0)) and timeout != 0:
            if self._timeline.is_busy() or timeout is None:
                if ready := super().select(_POLL):
                    return ready
                continue
            if ready := super().select(0):  # of a thread that has just ended
                return ready
            self._timeline.pass_time(timeout)
            return []
        return ready


class _Policy(asyncio.DefaultEventLoopPolicy):
    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self._timeline = timeline

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(_Selector(self._timeline))
        # Or else, a timer that is due would not be found due: see `_run_once`.
        loop._clock_resolution = _LEAST  # type: ignore[attr-defined]
        return loop


def simulate(timeline: Timeline) -> None:
    """Replace the time of this process, for good."""
    timelines.append(timeline)
    time.time, time.monotonic = timeline.time, timeline.monotonic
    os.stat = _translating(os.stat, timeline)
    os.fstat = _translating(os.fstat, timeline)
    timeline.count_jobs()
    asyncio.set_event_loop_policy(_Policy(timeline))


def _translating(stat: Callable[..., os.stat_result], timeline: Timeline) -> Callable[..., os.stat_result]:
    def translated(*args: Any, **options: Any) -> os.stat_result:
        result = stat(*args, **options)
        modified = timeline.translated(result.st_mtime)
        return os.stat_result(
            result[:10], {**_further(result), "st_mtime": modified, "st_mtime_ns": int(modified * 1e9)}
        )

    return translated


def _further(result: os.stat_result) -> dict[str, Any]:
    names = ("st_atime", "st_ctime", "st_atime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev")
    return {name: getattr(result, name) for name in names}
