"""The door: accepts clients' connections, up to the limit.

Thousands of machines often wake within the same second. Connections above the limit wait in the system's
queue until another one ends. If they were closed instead, freshclam would count that as a failed attempt.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from clamproxy.access.limits import ConnectionLimits

logger = logging.getLogger(__name__)

QUEUE = 65535
"""Connections that may wait. The system caps this at its own limit (net.core.somaxconn on Linux)."""
AT_A_TIME = 64
"""Connections accepted in one go before the event loop does anything else; they take a few milliseconds."""
TELL_EVERY = 60.0
"""Seconds between log lines about waiting connections."""
LOOK_EVERY = 0.1
"""Seconds between looks whether connections of other workers have ended."""
PAUSE = 1.0
"""Seconds until the next attempt when the system has no descriptor or memory for a connection."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOBODY = (BlockingIOError, InterruptedError, ConnectionError)
"""No client is waiting, or the one that was waiting has left."""

type Leave = Callable[[], None]
"""To be called once, when a connection is gone."""
type Receive = Callable[[Leave], asyncio.BaseProtocol]
"""Makes the protocol of a new connection."""


class Prompt(asyncio.Protocol):
    """A protocol that may answer a client at the door: a transport costs more than a small response."""

    def answer_at_door(self, client: socket.socket) -> bool:
        """Read what has arrived with the connection, and answer it if it is a whole request. Doesn't wait.

        Args:
            client: the connection, which has no transport yet.

        Returns:
            Whether to close the connection now. Otherwise it gets a transport as usual.
        """
        raise NotImplementedError


class Threshold:
    """What all doors share: which clients may connect, and how many.

    Args:
        admits: whether an address may connect at all.
        limits: counts the connections.
    """

    def __init__(self, admits: Callable[[str], bool], limits: ConnectionLimits) -> None:
        self._admits = admits
        self._limits = limits
        self._reached = False
        """Whether a limit was reached and no client has left since: a crowd gets one line in the log."""
        self._told_at = -TELL_EVERY
        self._look: asyncio.TimerHandle | None = None
        self.doors: set[Door] = set()

    @property
    def is_full(self) -> bool:
        """Whether new connections have to wait."""
        return self._limits.is_full

    def look_out(self) -> None:
        """Reopen the doors when others make room, as they don't say so."""
        if self._limits.elsewhere is not None and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        if self.is_full and self.doors:
            self.look_out()
        self.reopen()

    def tell_full(self) -> None:
        """Log that connections have to wait, at most once a minute while crowds come and go."""
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY:
            self._told_at = now
            logger.warning("access.max_connections has been reached: further connections wait.")

    def take(self, address: str) -> bool:
        """Count a new connection from an address; False if it must be closed instead."""
        if not self._admits(address):
            logger.warning("%s is not in serving.clients: connection closed.", address)
            return False
        limit = self._limits.take(address)
        if limit is not None and not self._reached:
            logger.warning(
                "%s has been reached: closed a connection from %s. Further ones are not logged.",
                limit,
                address,
            )
        self._reached = self._reached or limit is not None
        return limit is None

    def leave(self, address: str) -> None:
        """Call this when a connection that `take` has counted is gone."""
        self._limits.leave(address)
        self._reached = False
        self.reopen()

    def close(self) -> None:
        """Close all doors: no more connections are accepted."""
        for door in list(self.doors):
            door.close()

    def reopen(self) -> None:
        """Let waiting connections in, after another one has ended or the limits have changed."""
        if not self.is_full:
            for door in self.doors:
                door.open()


class Door:
    """Accepts what arrives on the sockets of one port, as soon as it is created.

    Args:
        sockets: listening ones; the door closes them.
        threshold: decides which clients may connect.
        receive: makes the protocol of each connection.
    """

    def __init__(self, sockets: Sequence[socket.socket], threshold: Threshold, receive: Receive) -> None:
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
        if not self._is_open and self._pause is None:
            self._is_open = True
            for listener in self.sockets:
                self._loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Stop listening. The system refuses the connections that are still waiting."""
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
                self._threshold.tell_full()
                self._shut()
                self._threshold.look_out()
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
        leave = partial(self._threshold.leave, address)
        protocol = self._receive(leave)
        try:
            is_answered = isinstance(protocol, Prompt) and protocol.answer_at_door(connection)
        except Exception:  # a bug must not occupy a place forever
            logger.exception("A request from %s failed.", address)
            is_answered = True
        if is_answered:
            connection.close()
            leave()
            return
        entering = self._loop.connect_accepted_socket(lambda: protocol, connection)
        task = asyncio.Task(entering, loop=self._loop, eager_start=True)
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)
