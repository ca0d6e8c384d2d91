"""The door: accepts the connections of clients, no more at a time than there is room for.

Thousands of machines that wake in the same second are the normal case. Those that find no place wait in the
system's queue until somebody leaves; who is closed counts that as a failed attempt.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial

from clamproxy.access.limits import ConnectionLimits

logger = logging.getLogger(__name__)

QUEUE = 65535
"""Connections that may wait; the system shortens that to its own limit (net.core.somaxconn on Linux)."""
AT_A_TIME = 64
"""Connections that are accepted before others get their turn: some milliseconds."""
PAUSE = 1.0
"""Seconds until the next attempt, where the system has no descriptor or memory for a connection."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOBODY = (BlockingIOError, InterruptedError, ConnectionError)
"""Nobody waits, or whoever did has left."""

type Leave = Callable[[], None]
"""To be called once, when a connection is gone."""
type Receive = Callable[[Leave], asyncio.BaseProtocol]
"""Makes the protocol of a new connection."""


class Threshold:
    """What all doors have in common: who may come in, and how many."""

    def __init__(self, admits: Callable[[str], bool], limits: ConnectionLimits) -> None:
        """Prepare.

        Args:
            admits: whether an address may have a connection at all.
            limits: of connections.
        """
        self._admits = admits
        self._limits = limits
        self._reached = False
        """Whether a limit was reached that nobody has left since, so that a crowd is one line in the log."""
        self.doors: set[Door] = set()

    @property
    def is_full(self) -> bool:
        """Whether a new connection has to wait."""
        return self._limits.is_full

    def take(self, address: str) -> bool:
        """Whether an address may come in; then it counts until it leaves."""
        if not self._admits(address):
            logger.warning("%s is not in serving.clients: connection closed.", address)
            return False
        limit = self._limits.take(address)
        if limit is not None and not self._reached:
            logger.warning("%s is reached: a connection of %s is closed; others may be, too.", limit, address)
        self._reached = self._reached or limit is not None
        return limit is None

    def leave(self, address: str) -> None:
        """One that has come in is gone."""
        self._limits.leave(address)
        self._reached = False
        self.reopen()

    def close(self) -> None:
        """Let nobody in any more."""
        for door in list(self.doors):
            door.close()

    def reopen(self) -> None:
        """Let in who waits: somebody has left, or the limits have changed."""
        if not self.is_full:
            for door in self.doors:
                door.open()


class Door:
    """Accepts what arrives on the sockets of one port."""

    def __init__(self, sockets: Sequence[socket.socket], threshold: Threshold, receive: Receive) -> None:
        """Begin to accept.

        Args:
            sockets: that listen; the door closes them.
            threshold: says who may come in.
            receive: makes the protocol of each connection.
        """
        self.sockets = list(sockets)
        self._threshold = threshold
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._is_open = False
        self._pause: asyncio.TimerHandle | None = None
        self._entering: set[asyncio.Task[object]] = set()
        threshold.doors.add(self)
        for listener in self.sockets:
            listener.setblocking(False)
            listener.listen(QUEUE)
        self.open()

    def open(self) -> None:
        """Accept, from now on."""
        if not self._is_open and self._pause is None:
            self._is_open = True
            for listener in self.sockets:
                self._loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Listen no longer; who waits is refused by the system."""
        self._threshold.doors.discard(self)
        self._shut()
        if self._pause is not None:
            self._pause.cancel()
        for listener in self.sockets:
            listener.close()
        self.sockets.clear()

    def _shut(self) -> None:
        self._is_open = False
        for listener in self.sockets:
            self._loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(AT_A_TIME):
            if self._threshold.is_full:
                self._shut()
                return
            try:
                connection, address = listener.accept()
            except _NOBODY:
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                logger.warning("New connections have to wait: %s.", error)
                self._shut()
                self._pause = self._loop.call_later(PAUSE, self._try_again)
                return
            self._enter(connection, address[0])

    def _try_again(self) -> None:
        self._pause = None
        self.open()

    def _enter(self, connection: socket.socket, address: str) -> None:
        if not self._threshold.take(address):
            connection.close()
            return
        connection.setblocking(False)
        protocol = self._receive(partial(self._threshold.leave, address))
        entering = self._loop.connect_accepted_socket(lambda: protocol, connection)
        task = asyncio.Task(entering, loop=self._loop, eager_start=True)
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)
