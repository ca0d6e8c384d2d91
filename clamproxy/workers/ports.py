"""The sockets that the parent holds for all workers.

The workers accept from the same sockets. SO_REUSEPORT would give each worker a queue of its own. Then
connections in the queue of a worker that dies would be lost, those in the queue of a worker that is at its
limit would wait while others are idle, and a second gateway of the same user could join by mistake.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NamedTuple

from clamproxy.config.units import ANY

QUEUE = 65535
"""Connections that may wait. The system caps this at its own limit (net.core.somaxconn on Linux)."""
_ATTEMPTS = 10
"""To find a port that is free for both IPv4 and IPv6."""


class Port(NamedTuple):
    """What a worker asks for."""

    host: str
    """An IP address; "" or `ANY` for all of the machine."""
    port: int
    """0 for any; all workers then get the same."""
    kind: socket.SocketKind = socket.SOCK_STREAM


class Ports:
    """Opens each port once, and keeps it open while any worker uses it. Not thread-safe."""

    def __init__(self) -> None:
        self._open: dict[Port, list[socket.socket]] = {}

    def open(self, port: Port) -> list[socket.socket]:
        """The sockets of a port. Connections wait from now on.

        Raises:
            OSError: the system doesn't allow it.
        """
        port = port._replace(host="" if port.host == ANY else port.host)
        if port not in self._open:
            self._open[port] = _bound(port)
        return self._open[port]

    def keep(self, used: Collection[Port]) -> None:
        """Close all ports but these."""
        wanted = {port._replace(host="" if port.host == ANY else port.host) for port in used}
        for port in self._open.keys() - wanted:
            for one in self._open.pop(port):
                one.close()

    def close(self) -> None:
        self.keep(())


def _bound(port: Port) -> list[socket.socket]:
    for attempt in range(_ATTEMPTS):
        try:
            return _bound_once(port)
        except OSError as error:
            # The first address got a port that is free there, but not at the second.
            if port.port or error.errno != errno.EADDRINUSE or attempt + 1 == _ATTEMPTS:
                raise
    raise AssertionError


def _bound_once(port: Port) -> list[socket.socket]:
    number, sockets = port.port, list[socket.socket]()
    places = socket.getaddrinfo(port.host or None, number, type=port.kind, flags=socket.AI_PASSIVE)
    try:
        for family, *_, address in dict.fromkeys(places):
            one = _new(family, port.kind)
            if one is None:
                continue
            sockets.append(one)
            try:
                one.bind((address[0], number, *address[2:]))
                # Until then, others can bind as well if they reuse addresses, too.
                if port.kind is socket.SOCK_STREAM:
                    one.listen(QUEUE)
            except OSError as error:
                # A machine without IPv6 can still listen on "all addresses".
                if error.errno != errno.EADDRNOTAVAIL or port.host:
                    raise
                sockets.pop().close()
            else:
                number = one.getsockname()[1]
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "no address to listen on")
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return sockets


def _new(family: int, kind: socket.SocketKind) -> socket.socket | None:
    """A socket; None if the system doesn't know the family."""
    try:
        one = socket.socket(family, kind)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    # With datagrams, this would let another program share the port.
    if kind is socket.SOCK_STREAM:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.setblocking(False)
    return one


def send_outcome(reply: socket.socket, port: Port, ports: Ports) -> None:
    """Answer a worker's request with the sockets, or with the error's number."""
    try:
        found, number = ports.open(port), 0
    except OSError as error:
        found, number = [], error.errno or errno.EIO
    with suppress(OSError):  # the worker has ended
        socket.send_fds(reply, [str(number).encode()], [one.fileno() for one in found])


def receive_outcome(reply: socket.socket) -> list[socket.socket]:
    """The worker's end of `send_outcome`. Blocks.

    Raises:
        OSError: the parent can't open the port, or doesn't answer.
    """
    said, descriptors, *_ = socket.recv_fds(reply, 64, 16)
    if not said:
        raise OSError(errno.EPIPE, "the parent process has ended")
    if (number := int(said)) != 0:
        raise OSError(number, os.strerror(number).lower())
    return [socket.socket(fileno=one) for one in descriptors]


def as_json(port: Port) -> list[Any]:
    return [port.host, port.port, int(port.kind)]


def from_json(values: list[Any]) -> Port:
    return Port(values[0], values[1], socket.SocketKind(values[2]))
