"""The worker's end: what a process does differently because it is one of several."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import asdict
from enum import Enum
from typing import Any

from clamproxy.control import Marks, ReloadOutcome
from clamproxy.supervision import Supervisor
from clamproxy.workers import channel as wire
from clamproxy.workers.channel import VARIABLE, Message
from clamproxy.workers.memory import Memory
from clamproxy.workers.ports import Port, as_json, receive_outcome

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a worker waits for a port."""
END_LIMIT = 20.0
"""Seconds after which a worker whose parent has gone ends at the latest, even if its event loop hangs."""


_LONGEST_ERROR = 2000
"""Characters of an error that doesn't fit into a message."""
_TOO_LONG = "What has changed is too long to show"


class Hush(Enum):
    """Why a worker says less than usual: another one says the same."""

    START = "start"
    RELOAD = "reload"


class Worker:
    """One of several workers. Thread-safe unless noted.

    Args:
        place: what the parent says in the environment.
    """

    def __init__(self, place: Message) -> None:
        self.number: int = place["number"]
        self.count: int = place["count"]
        self.started_at: float = place["started_at"]
        """When the parent started, in Unix seconds."""
        self.sign_every: float = place["sign_every"]
        """Seconds between two signs of life."""
        self.hush: Hush | None = None if place["speaks"] else Hush.START
        self.memory = Memory(place["memory"], self.count)
        os.set_inheritable(place["memory"], False)
        self._channel = socket.socket(fileno=place["channel"])
        self._channel.set_inheritable(False)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reload: Callable[[], Awaitable[ReloadOutcome]] | None = None
        self._shut_down: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def open(self, host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
        """The sockets of a port that all workers share. Blocks for about a millisecond.

        Raises:
            OSError: the system doesn't allow it.
        """
        ours, theirs = wire.pair()
        with ours:
            with theirs:
                message = {"open": as_json(Port(host, port, kind))}
                if not wire.send(self._channel, message, theirs):
                    raise OSError(errno.EPIPE, "the parent process doesn't listen")
            ours.settimeout(PATIENCE)
            return receive_outcome(ours)

    def use(self, ports: Collection[Port]) -> None:
        """Say which ports are needed; the parent closes those that no worker needs."""
        wire.send(self._channel, {"uses": [as_json(port) for port in ports]})

    def tell(self, state: str) -> None:
        """Say what a single process would tell the service manager."""
        wire.send(self._channel, {"state": state})

    def mark(self, marks: Marks, configuration: str) -> None:
        """Say how commands find this gateway.

        Args:
            configuration: a digest; the same for workers with the same configuration.
        """
        wire.send(self._channel, {"marks": marks, "configuration": configuration})

    def begin(self, reload: Callable[[], Awaitable[ReloadOutcome]], shut_down: Callable[[], None]) -> None:
        """Follow the parent. Event loop only.

        Args:
            reload: reads the configuration again.
            shut_down: begins to end the process.
        """
        self._loop, self._reload, self._shut_down = asyncio.get_running_loop(), reload, shut_down

    def _listen(self) -> None:
        """Take in what the parent says, until it ends: then this process ends as well."""
        while (found := wire.receive(self._channel)) is not None:
            message, _ = found
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._take, message)
        if self._loop is not None and self._shut_down is not None:
            logger.warning("The parent process has ended, and so does this worker.")
            self._loop.call_soon_threadsafe(self._shut_down)
            time.sleep(END_LIMIT)
        os._exit(1)

    def _take(self, message: Message) -> None:
        if "log" in message:
            level, text = message["log"]
            logger.log(level, "%s", text)
        elif "reload" in message and self._reload is not None:
            task = asyncio.ensure_future(self._answer_reload(message, self._reload))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_reload(self, message: Message, reload: Callable[[], Awaitable[ReloadOutcome]]) -> None:
        self.hush = None if message["speaks"] else Hush.RELOAD
        try:
            outcome = await reload()
        finally:
            self.hush = None
        answer: Message = {"reloaded": message["reload"]}
        if not wire.send(self._channel, {**answer, "outcome": asdict(outcome)}):
            # Too long for one message. Without any answer, the parent would wait for ever.
            error = outcome.error and f"{outcome.error[:_LONGEST_ERROR]}…"
            wire.send(self._channel, {**answer, "outcome": asdict(ReloadOutcome((), (_TOO_LONG,), error))})


class WorkerSupervisor(Supervisor):
    """Tells the parent instead of the service manager."""

    def __init__(self, worker: Worker) -> None:
        super().__init__({})
        self._worker = worker
        self.watchdog_interval = worker.sign_every

    def _tell(self, state: str, status: str = "") -> None:
        self._worker.tell(state)


_current: Worker | None = None


def join(environ: MutableMapping[str, str]) -> Worker | None:
    """Become the worker that the environment says; None if this process isn't one.

    Programs that this process starts won't be taken for workers.
    """
    global _current  # noqa: PLW0603
    if (text := environ.pop(VARIABLE, None)) is not None:
        place: dict[str, Any] = json.loads(text)
        _current = Worker(place)
    return _current


def current() -> Worker | None:
    """What `join` has found."""
    return _current
