"""The parent: starts the workers, replaces one that dies or hangs, and speaks for all of them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from clamproxy.control import Control, Marks, ReloadOutcome
from clamproxy.reloads import Reloads
from clamproxy.supervision import Supervisor
from clamproxy.workers.child import Child
from clamproxy.workers.memory import Memory, create
from clamproxy.workers.ports import Ports

HANG_LIMIT = 40.0
"""Seconds without a sign of life after which a worker is replaced, if WatchdogSec isn't shorter. Clients of
the others may wait for what it fetches, and freshclam gives up after 60 seconds without a byte."""
START_LIMIT = 180.0
"""Seconds that a new worker gets until it serves; a busy machine may need a minute."""
SIGNS = 4
"""Of life that a worker gives within that time."""
END_LIMIT = 25.0
"""Seconds that workers get to end; TimeoutStopSec of contrib/systemd/clamproxy.service is longer."""
LONG_LIFE = 60.0
"""Seconds: a worker that has lived longer is replaced at once."""
LONGEST_PAUSE = 60.0
"""Seconds before another try, at most."""
_INHERITED_ONCE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""The service manager's variables for the parent alone (sd_notify(3))."""


class Parent:
    """The parent of some workers, for the life of the process.

    Args:
        command: starts a worker, as arguments for the Python interpreter.
        count: how many workers.
    """

    def __init__(self, command: Sequence[str], count: int, environ: Mapping[str, str]) -> None:
        self._command = command
        self._count = count
        self._supervisor = Supervisor(environ)
        interval = self._supervisor.watchdog_interval  # half of what systemd allows
        self._hang_limit = HANG_LIMIT if interval is None else min(HANG_LIMIT, interval * 2)
        self._environ = {name: value for name, value in environ.items() if name not in _INHERITED_ONCE}
        self._started_at = time.time()
        self._ports = Ports()
        self._shared = create(count)
        self._memory = Memory(self._shared, count)
        self._children: dict[int, Child] = {}
        self._reloads = Reloads(self._reload)
        self._reloaded_at = 0.0
        """When the last reload began, in monotonic seconds."""
        self._control = Control(self._marks, self._reloads.ask)
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._are_serving = False
        """Whether all workers have been ready at the same time: a failure no longer ends the start."""
        self._failure: int | None = None
        self._codes: set[int] = set()
        self._has_terminal = os.isatty(0)
        self._is_early_hang_up = False

    async def run(self) -> int:
        """Keep the workers running until a signal or a failed start; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        # The first one alone says what is wrong with the configuration, and makes the files that are missing.
        tasks = [self._begin_to_keep(1)]
        if await self._ready(1):
            tasks += [self._begin_to_keep(number) for number in range(2, self._count + 1)]
            if await self._ready(self._count):
                tasks.append(loop.create_task(self._watch(), name="signs of life"))
                await self._serve()
                await self._stop.wait()
        await self._end(tasks)
        if self._failure is not None:
            return self._failure
        return 0 if self._codes <= {0, -signal.SIGTERM, -signal.SIGINT} else 1

    # The workers

    def _begin_to_keep(self, number: int) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._keep(number), name=f"worker {number}")
        task.add_done_callback(self._require_success)
        return task

    def _require_success(self, task: asyncio.Task[None]) -> None:
        """A bug ends this process, so that a service manager starts it again; nobody else would notice."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log(logging.WARNING, f"{task.get_name()} can't be kept running: {error!r}.")
            self._failure = 1
            self._stop.set()

    async def _keep(self, number: int) -> None:
        """Run one worker after the other until the parent stops."""
        pause = 0.0
        while not self._stop.is_set():
            started_at = time.monotonic()
            code = await self._live(number)
            if self._stop.is_set():
                self._codes.add(code)
                return
            if not self._are_serving:
                self._failure = code if code > 0 else 1
                if code <= 0:  # otherwise it has said what is wrong
                    self._log(
                        logging.WARNING, f"Worker {number} has ended ({_shown(code)}) during the start."
                    )
                self._stop.set()
                return
            if time.monotonic() - started_at > LONG_LIFE:
                pause = 0.0
            then = f"another try follows in {pause:.0f} s" if pause else "another one starts"
            self._log(logging.WARNING, f"Worker {number} has ended ({_shown(code)}); {then}.")
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, max(1.0, pause * 2))

    async def _live(self, number: int) -> int:
        """The life of one process; returns its exit code."""
        place = {
            "number": number,
            "count": self._count,
            "memory": self._shared,
            "started_at": self._started_at,
            "sign_every": self._hang_limit / SIGNS,
            "speaks": number == 1 and not self._are_serving,
        }
        try:
            child = await Child.start(
                self._command, self._environ, place, self._ports, self._note_ready, self._note_ports
            )
        except OSError as error:
            self._log(logging.WARNING, f"Can't start worker {number}: {error.strerror or error}.")
            return 1
        self._children[number] = child
        if self._stop.is_set():
            child.signal(signal.SIGTERM)
        code = await child.ended()
        del self._children[number]
        self._memory.erase(number)
        return code

    def _note_ready(self, child: Child) -> None:
        self._changed.set()
        others = {one.configuration for one in self._children.values() if one.is_ready}
        # It may have read the file before the last reload, or the file has changed without one.
        if self._are_serving and (child.started_at < self._reloaded_at or len(others) > 1):
            self._reloads.begin()

    def _note_ports(self) -> None:
        """A worker uses other ports than before. Those that none uses are closed."""
        used = [child.uses for child in self._children.values() if child.uses is not None]
        if len(self._children) == len(used) == self._count:
            self._ports.keep({port for ports in used for port in ports})

    async def _ready(self, count: int) -> bool:
        """Wait until as many workers are ready; False if the parent stops before that."""
        while sum(child.is_ready for child in self._children.values()) < count:
            self._changed.clear()
            waiting = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._stop)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in waiting:
                one.cancel()
            if self._stop.is_set():
                return False
        return True

    async def _serve(self) -> None:
        """All workers are ready."""
        self._are_serving = True
        try:
            await self._control.start()
        except OSError as error:
            reason = error.strerror or error
            self._log(logging.WARNING, f"`clamproxy reload` won't find this process: {reason}.")
        self._supervisor.start()
        self._supervisor.ready(self._status())
        self._log(logging.INFO, f"{self._count} workers are serving.")
        if self._is_early_hang_up:
            self._hang_up()

    async def _watch(self) -> None:
        """Kill workers that give no sign of life; they are replaced like any other that has died."""
        interval = self._hang_limit / SIGNS
        while True:
            before = time.monotonic()
            await asyncio.sleep(interval)
            now = time.monotonic()
            for child in list(self._children.values()):
                if now - before > 2 * interval:  # this process hung itself, or the whole machine did
                    child.heard_at = now
                elif now - child.heard_at > (self._hang_limit if child.is_ready else START_LIMIT):
                    child.is_ready = False
                    self._log(logging.WARNING, f"Worker {child.number} hangs, and is killed.")
                    child.signal(signal.SIGKILL)

    async def _end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._supervisor.stopping()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)
        self._control.stop()
        self._reloads.stop()
        self._ports.close()  # or connections would go on to queue up here
        for child in self._children.values():
            child.signal(signal.SIGTERM)
        keepers = [task for task in tasks if task.get_name() != "signs of life"]
        for task in keepers:
            if not self._has_child(task):
                task.cancel()  # it pauses
        await asyncio.wait(keepers, timeout=END_LIMIT)
        for child in self._children.values():
            child.signal(signal.SIGKILL)
        await asyncio.wait(keepers, timeout=END_LIMIT)
        for task in tasks:
            task.cancel()
        self._supervisor.stop()

    def _has_child(self, task: asyncio.Task[None]) -> bool:
        return any(task.get_name() == f"worker {number}" for number in self._children)

    # One voice

    def _hang_up(self) -> None:
        if self._has_terminal and not os.isatty(0):
            self._stop.set()  # the terminal was closed
        elif self._are_serving:
            self._reloads.begin()
        else:
            self._is_early_hang_up = True

    async def _reload(self) -> ReloadOutcome:
        """Have all workers read the configuration again. If the first one can't use it, none does."""
        self._reloaded_at = time.monotonic()
        self._supervisor.reloading()
        try:
            return await self._reload_all()
        finally:
            self._supervisor.ready(self._status())

    async def _reload_all(self) -> ReloadOutcome:
        ready = [child for _, child in sorted(self._children.items()) if child.is_ready]
        outcome: ReloadOutcome | None = None
        while ready and outcome is None:
            outcome = await ready.pop(0).reload(speaks=True)
        if outcome is None:
            return ReloadOutcome(error="no worker is ready; see the log")
        if outcome.error is not None:
            return outcome
        others = await asyncio.gather(*(child.reload(speaks=False) for child in ready))
        failed = [
            f"worker {child.number}: {other.error}"
            for child, other in zip(ready, others, strict=True)
            if other is not None and other.error is not None
        ]
        if not failed:
            # If only others have changed, one of them was told alone, or started later.
            changed = next((one for one in (outcome, *others) if one is not None and one.changes), outcome)
            return changed
        text = f"{'; '.join(failed)} (the other workers have the new configuration)"
        self._log(logging.WARNING, f"Not all workers were reloaded: {text}")
        return replace(outcome, error=text)

    def _marks(self) -> Marks:
        return next((child.marks for child in self._children.values() if child.marks), {})

    def _status(self) -> str:
        ready = sum(child.is_ready for child in self._children.values())
        return "Serving" if ready == self._count else f"Serving with {ready} of {self._count} workers"

    def _log(self, level: int, text: str) -> None:
        """A line in the log. A worker writes it, in the log's format; stderr gets it if none is ready.

        Not for errors: mitmproxy ends if one is logged while it starts.
        """
        if not any(child.log(level, text) for child in list(self._children.values())):
            with suppress(AttributeError, OSError, ValueError):  # closed, or nobody reads it any more
                sys.stderr.write(f"clamproxy: {text}\n")
                sys.stderr.flush()


def _shown(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
