"""A server that answers with exactly the given bytes, for what no library would ever send."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass
from typing import Self

PATIENCE = 30.0
"""Seconds of silence after which a connection is given up; only a guard against leaks."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One answer, byte by byte, and what becomes of the connection."""

    data: bytes
    closes: bool = False
    """The connection is shut down after it."""
    resets: bool = False
    """It ends with RST."""
    is_ragged: bool = False
    """Over TLS: it ends without close_notify."""
    trickle: bytes = b""
    """Sent again and again afterwards, twenty times a second."""
    is_deaf: bool = False
    """Nothing that comes afterwards is answered, and the connection stays open."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    connection: int
    """1 for the first that was accepted."""
    path: str
    head: str
    """With names and values as they came."""


class RawOrigin:
    """Gives the answers one after another, and the last one repeatedly. A context manager."""

    def __init__(self, *answers: Raw, tls: ssl.SSLContext | None = None) -> None:
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self.ended = 0
        """Connections that it has ended."""
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(PATIENCE)
                self._connections.append(connection)
                number = len(self._connections)
                threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, plain: socket.socket, number: int) -> None:
        connection = plain
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(plain, server_side=True)
                self._connections.append(connection)
            reader = connection.makefile("rb")
            while head := _head(reader):
                answer = self._next(number, head)
                connection.sendall(answer.data)
                while answer.trickle:
                    time.sleep(0.05)
                    connection.sendall(answer.trickle)
                if answer.is_deaf:
                    reader.read()
                if answer.closes or answer.resets or answer.is_ragged:
                    _end(connection, answer)
                    self.ended += 1
                    return

    def _next(self, number: int, head: str) -> Raw:
        with self._lock:
            self.asked.append(Asked(number, head.split(" ")[1], head))
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def _head(reader: object) -> str:
    lines = []
    while line := reader.readline():  # type: ignore[attr-defined]
        if line in (b"\r\n", b"\n"):
            break
        lines.append(line.decode("latin-1"))
    return "".join(lines)


def _end(connection: socket.socket, answer: Raw) -> None:
    if answer.resets:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif isinstance(connection, ssl.SSLSocket) and not answer.is_ragged:
        with contextlib.suppress(OSError, ValueError):
            connection.settimeout(1)
            connection.unwrap()
    else:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
    connection.close()
