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
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from clamproxy.access.balancers import Balancers
from clamproxy.access.limits import ConnectionLimits
from clamproxy.proxy.arrivals import ForwardedSocket, await_header
from clamproxy.proxy.proxy_protocol import ProxyProtocolError

logger = logging.getLogger(__name__)

QUEUE = 65535
"""Connections that may wait. The system caps this at its own limit (net.core.somaxconn on Linux)."""
AT_A_TIME = 64
"""Connections accepted in one go before the event loop does anything else; they take a few milliseconds."""
TELL_EVERY = 60.0
"""Seconds between log lines about waiting connections, or about the PROXY headers of one address."""
LOOK_EVERY = 0.1
"""Seconds between looks whether connections of other workers have ended."""
MOST_TOLD = 1024
"""Addresses for which the time of the last such line is remembered."""
PAUSE = 1.0
"""Seconds until the next attempt when the system has no descriptor or memory for a connection."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOBODY = (BlockingIOError, InterruptedError, ConnectionError)
"""No client is waiting, or the one that was waiting has left."""

_UNFIT = "Closed a connection from %s, which is in access.proxy_protocol: %s."
_UNWANTED = (
    "Closed a connection from %s, which is not in access.proxy_protocol: it begins with a PROXY header."
)

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
        balancers: whose connections belong to other clients.
    """

    def __init__(
        self, admits: Callable[[str], bool], limits: ConnectionLimits, balancers: Balancers | None = None
    ) -> None:
        self._admits = admits
        self._limits = limits
        self._balancers = balancers or Balancers()
        self._reached = False
        """Whether a limit was reached and no client has left since: a crowd gets one line in the log."""
        self._told_at = -TELL_EVERY
        self._look: asyncio.TimerHandle | None = None
        self._headers_told_at: dict[str, float] = {}
        """When the log last told of an address's PROXY headers."""
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
            logger.warning("%s has been reached: further connections wait.", self._limits.reached)

    def take(self, address: str) -> bool:
        """Count a new connection from an address; False if it must be closed instead."""
        return self._take(address, is_shared=self._balancers.forwards(address))

    def _take(self, address: str, *, is_shared: bool) -> bool:
        if not self._admits(address):
            logger.warning("%s is not in serving.clients: connection closed.", address)
            return False
        limit = self._limits.take(address, is_shared=is_shared)
        if limit is not None and not self._reached:
            logger.warning(
                "%s has been reached: closed a connection from %s. Further ones are not logged.",
                limit,
                address,
            )
        self._reached = self._reached or limit is not None
        return limit is None

    def announces(self, address: str) -> bool:
        """Whether connections from an address must begin with a PROXY header; then call `take_balancer`."""
        return self._balancers.announces(address)

    def take_balancer(self, address: str) -> bool:
        """Count a balancer's connection whose client isn't known yet; False if it must be closed instead."""
        return self._limits.take(address, is_shared=True) is None

    def take_client(self, balancer: str, client: str, *, is_own: bool) -> bool:
        """Count a connection that `take_balancer` has counted as its client's; False if it must be closed.

        Args:
            is_own: whether it is the balancer's own after all, such as a health check.
        """
        self._limits.leave(balancer)
        is_taken = self._take(client, is_shared=is_own)
        if not is_taken:
            self.reopen()
        return is_taken

    def tell_header(self, text: str, address: str, *more: object) -> None:
        """Log what is wrong with the PROXY headers from an address, at most once a minute."""
        now = time.monotonic()
        if now - self._headers_told_at.get(address, -TELL_EVERY) < TELL_EVERY:
            return
        if len(self._headers_told_at) >= MOST_TOLD:
            self._headers_told_at.clear()
        self._headers_told_at[address] = now
        logger.warning(text, address, *more)

    def tell_unwanted(self, address: str) -> None:
        """Log that a connection was closed because it had a PROXY header."""
        self.tell_header(_UNWANTED, address)

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
        self._arriving: set[asyncio.Task[object]] = set()
        """Balancers' connections that wait for their header. The door ends them when it closes."""
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
        for task in list(self._arriving):
            task.cancel()
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
        is_announced = self._threshold.announces(address)
        take = self._threshold.take_balancer if is_announced else self._threshold.take
        if not take(address):
            connection.close()
            return
        connection.setblocking(False)
        if is_announced:
            self._run(self._arriving, self._announce(connection, address))
        else:
            self._serve(connection, address)

    async def _announce(self, connection: socket.socket, balancer: str) -> None:
        """Let a balancer's connection in as that of its client."""
        header = None
        try:
            header = await await_header(connection)
        except ProxyProtocolError as error:
            self._threshold.tell_header(_UNFIT, balancer, error)
        finally:
            if header is None:  # or the door is closing
                connection.close()
                self._threshold.leave(balancer)
        if header is None:
            return
        client = balancer
        if header.ends is not None:
            connection = ForwardedSocket(connection, *header.ends)
            client = header.ends[0][0]
        if self._threshold.take_client(balancer, client, is_own=header.ends is None):
            self._serve(connection, client)
        else:
            connection.close()

    def _serve(self, connection: socket.socket, address: str) -> None:
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
        self._run(self._entering, self._loop.connect_accepted_socket(lambda: protocol, connection))

    def _run(self, tasks: set[asyncio.Task[object]], work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.Task(work, loop=self._loop, eager_start=True)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
