"""What the parent and a worker say to each other: JSON objects, each one message of a socket pair.

From the worker: ``state`` (what it would tell a service manager), ``open`` (a port; the answer comes through
the socket that is attached), ``uses`` (all ports that it needs), ``marks`` (see `clamproxy.control`) with
``configuration`` (a digest), and ``reloaded`` (the outcome). From the parent: ``reload`` and ``log``.
"""

from __future__ import annotations

import json
import socket
from typing import Any

VARIABLE = "_CLAMPROXY_WORKER"
"""The environment variable that makes a process a worker; not a setting, so it has another prefix."""
LONGEST = 160 * 1024
"""Bytes of a message. By default, the system allows about 200 KiB."""

type Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Message, attached: socket.socket | None = None) -> bool:
    """Send a message without waiting; False if the other end has gone or doesn't read."""
    data = json.dumps(message).encode()
    try:
        if attached is None:
            channel.send(data, socket.MSG_DONTWAIT)
        else:
            socket.send_fds(channel, [data], [attached.fileno()], socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def receive(channel: socket.socket) -> tuple[Message, socket.socket | None] | None:
    """The next message, and the socket that is attached; None if the other end has gone.

    Raises:
        BlockingIOError: there is none, and the channel doesn't block.
    """
    try:
        data, descriptors, *_ = socket.recv_fds(channel, LONGEST, 1)
    except ConnectionError:
        return None
    if not data:
        return None
    attached = socket.socket(fileno=descriptors[0]) if descriptors else None
    return json.loads(data), attached
