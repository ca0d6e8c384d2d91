"""What no HTTP library would send, and what happens to connections on their way."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

PIECE = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
_PATIENCE = 60.0
"""Seconds after which a silent peer is given up; only a guard against leaks."""


class _Listener:
    """Accepts connections on loopback, each in a thread of its own."""

    def __init__(self) -> None:
        self.accepted = 0
        """Connections so far."""
        self.lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://localhost:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self.lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @property
    def open(self) -> int:
        """Connections that have not ended."""
        with self.lock:
            return len(self._open)

    def serve(self, connection: socket.socket) -> None:
        """One connection, which is closed afterwards."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(_PATIENCE)
            with self.lock:
                self.accepted += 1
                self._open.add(connection)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                self.serve(connection)
        finally:
            with self.lock:
                self._open.discard(connection)


class RawServer(_Listener):
    """Does with each connection what it is told to do. Use it as a context manager."""

    def __init__(self, behaviour: Callable[[socket.socket], object]) -> None:
        self.behaviour = behaviour
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        self.behaviour(connection)


class RawHost(_Listener):
    """Gives one answer to everyone, and keeps the requests byte by byte. Use it as a context manager."""

    def __init__(self, answer: bytes) -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        while head := read_head(connection):
            self.requests.append(head)
            connection.sendall(self._answer)


def read_head(connection: socket.socket) -> bytes:
    """A request without content; empty when the peer has left."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        head += byte
    return head


def answering(raw: bytes) -> Callable[[socket.socket], None]:
    """Give these bytes for the first request, then close."""

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(raw)

    return answer


def dripping(start: bytes, drip: bytes, pause: float = 0.05) -> Callable[[socket.socket], None]:
    """Begin an answer, and go on with the same bytes again and again, until the peer leaves."""

    def answer(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(start)
        end = threading.Event()
        while not end.wait(pause):
            connection.sendall(drip)

    return answer


class Relay(_Listener):
    """A way to a server, on which connections can die. Use it as a context manager."""

    def __init__(self, target: int | None = None) -> None:
        self.target = target
        """A port on loopback; it may be named later, and changed."""
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._forgotten: set[socket.socket] = set()
        super().__init__()

    def forget(self) -> None:
        """Like a NAT: nothing that is sent on the present connections arrives, and nobody is told."""
        with self.lock:
            self._forgotten.update(one for pair in self._pairs for one in pair)

    def reset(self) -> None:
        """End the present connections by RST."""
        with self.lock:
            pairs, self._pairs = self._pairs, []
        for near, _ in pairs:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            near.close()

    def serve(self, connection: socket.socket) -> None:
        assert self.target is not None
        with socket.create_connection(("127.0.0.1", self.target), _PATIENCE) as far:
            with self.lock:
                self._pairs.append((connection, far))
            back = threading.Thread(target=self._copy, args=(far, connection), daemon=True)
            back.start()
            self._copy(connection, far)
            with suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
            back.join(_PATIENCE)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(PIECE):
                with self.lock:
                    lost = source in self._forgotten
                if not lost:
                    target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
