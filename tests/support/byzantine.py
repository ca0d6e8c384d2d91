"""An origin that answers anything at all: right files under wrong names, wrong lengths, floods, silence.

`Trick` says how one answer differs from the right one. Its parts can be combined, so that a property-based
test finds combinations that nobody thought of.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import random
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from http import HTTPStatus

from tests.support.faults import Headers
from tests.support.forge import ForgeKeys, forge_cdiff, seal, seal_cdiff
from tests.support.origin import OriginServer, Seen

PATIENCE = 20.0
"""Seconds after which a silent peer is left; only a guard against leaks."""
MOST_SENT = 32 * 2**20
"""Bytes of a body without end after which the server stops: what is tested must have left long before. The
kernel alone takes up to ten megabytes on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trick:
    """How an answer differs from the right one; by default, it doesn't."""

    path: str = ""
    """A regular expression for the paths that are answered so."""
    content: str = "right"
    """One of `CONTENTS`, or a path, for the content of another file."""
    status: int | None = None
    framing: str = "right"
    """One of `FRAMINGS`."""
    fields: tuple[tuple[str, str], ...] = ()
    """Added, or put in place of those with the same name. {origin} stands for the port of this server."""
    range: str = "right"
    """One of `RANGES`."""
    before: str = ""
    """One of `BEFORE`: what comes before the head."""
    ending: str = "keep"
    """One of `ENDINGS`: what becomes of the connection, after half of the body or after all of it."""

    times: int | None = None
    """How many answers; None for all."""

    def concerns(self, path: str) -> bool:
        return re.match(self.path, path) is not None


def _of_other_keys(path: str, _: bytes) -> bytes:
    match = re.fullmatch(r"/([a-z]+)-(\d+)\.cdiff", path)
    return forge_cdiff(match[1], int(match[2]), keys=_stranger()) if match else seal(9, b"x", _stranger())


def _bomb(path: str, right: bytes) -> bytes:
    """What inflates to 64 MB, signed by a stranger, or with the right header in front of it."""
    if path.endswith(".cdiff"):
        return seal_cdiff(4, _zeros(), 64 * 2**20, _stranger())
    return right[:512] + _zeros()


_keys: list[ForgeKeys] = []
_bombs: list[bytes] = []


def _stranger() -> ForgeKeys:
    if not _keys:
        _keys.append(ForgeKeys.generate())
    return _keys[0]


def _zeros() -> bytes:
    if not _bombs:
        squeezing = zlib.compressobj(wbits=31)
        pieces = [squeezing.compress(bytes(2**20)) for _ in range(64)]
        _bombs.append(b"".join([*pieces, squeezing.flush()]))
    return _bombs[0]


CONTENTS: dict[str, Callable[[str, bytes], bytes]] = {
    "right": lambda _, right: right,
    "nothing": lambda *_: b"",
    "html": lambda *_: b"<!DOCTYPE html><html><body>Please log in</body></html>" * 9,
    "half": lambda _, right: right[: len(right) // 2],
    "header only": lambda _, right: right[:512],
    "one bit flipped": lambda _, right: _flipped(right),
    "more behind": lambda _, right: right + b"and more",
    "zipped": lambda _, right: gzip.compress(right, 1, mtime=0),
    "by other keys": _of_other_keys,
    "bomb": _bomb,
    "next version claimed": lambda _, right: _renumbered(right, 1),
    "version of year 3000 claimed": lambda _, right: _renumbered(right, 10**9),
    "version 1 claimed": lambda _, right: _renumbered(right, -100),
}
FRAMINGS = (
    *("right", "short", "long", "none", "negative", "huge", "zero", "words", "twice", "twice-different"),
    *("chunked", "cut-chunks", "endless-chunks", "chunked-with-length", "endless"),
)
RANGES = ("right", "ignored", "shifted", "whole-as-206", "other-total", "no-content-range", "star")
BEFORE: dict[str, bytes] = {
    "": b"",
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "103 and 102": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
    "flood of 100": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "garbage": b"\x16\x03\x01\x00\x00 what?\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "blank lines": b"\r\n" * 40,
}
DRIPS = {"drip": 0.05, "slow-drip": 1.0}
"""Seconds between two bytes."""
ENDINGS = (
    *("keep", "close", "reset", "half-then-close", "half-then-reset"),
    *("half-then-silence", *DRIPS, "silence"),
)


def _flipped(right: bytes) -> bytes:
    at = len(right) * 2 // 3
    return right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :] if right else b"\0"


def _renumbered(right: bytes, difference: int) -> bytes:
    fields = right[:512].split(b":")
    if len(fields) < 3 or not fields[2].isdigit():
        return right
    fields[2] = b"%d" % max(1, int(fields[2]) + difference)
    return b":".join(fields).rstrip(b" ").ljust(512)[:512] + right[512:]


class ByzantineOrigin(OriginServer):
    """A fake CDN that plays tricks. A context manager."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tricks: list[Trick] = []
        """The first one that concerns a path counts."""
        self.ends = threading.Event()
        """Ends what hangs."""
        self.longest_sent = 0
        """Bytes of the longest body that a trick handed to the kernel, whole or not."""
        super().__init__(tls)

    def heal(self) -> None:
        """Tell the truth from now on. What hangs is let go."""
        self.tricks.clear()
        ends, self.ends = self.ends, threading.Event()
        ends.set()
        super().heal()

    def file(self, path: str) -> bytes | None:
        """What is served under a path."""
        found = self._files.get(path)
        return None if found is None else found.body

    def _answer(self, connection: socket.socket, method: str, path: str, headers: Headers) -> bool:
        with self._lock:
            trick = next((one for one in self.tricks if one.concerns(path)), None)
            if trick is not None and trick.times is not None:
                left = [replace(trick, times=trick.times - 1)] if trick.times > 1 else []
                at = self.tricks.index(trick)
                self.tricks[at : at + 1] = left
        if trick is None:
            return super()._answer(connection, method, path, headers)
        with self._lock:
            self.seen.append(Seen(time.time(), method, path, headers, 0, 0))
        _Answer(self, connection, trick, path, headers.get("range", "")).send()
        return trick.ending == "keep" and trick.framing not in ("none", "endless")


class _Answer:
    """One answer on one connection."""

    def __init__(
        self, origin: ByzantineOrigin, connection: socket.socket, trick: Trick, path: str, wanted: str
    ) -> None:
        self._origin, self._connection, self._trick = origin, connection, trick
        self._path, self._wanted, self._ends = path, wanted, origin.ends
        self._sent = 0

    def send(self) -> None:
        trick = self._trick
        if trick.ending == "silence":
            self._wait()
            return
        status, fields, body = self._compose()
        head = [f"HTTP/1.1 {status} {_reason(status)}", *(f"{name}: {text}" for name, text in fields)]
        self._connection.sendall(BEFORE[trick.before])
        self._connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode("latin-1", "replace"))
        self._send_body(body)
        if trick.ending in ("reset", "half-then-reset"):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif trick.ending == "half-then-silence":
            self._wait()

    def _send_body(self, body: bytes) -> None:
        trick = self._trick
        if trick.ending in DRIPS:
            self._pieces((body[at : at + 1] for at in range(len(body))), pause=DRIPS[trick.ending])
        elif trick.ending.startswith("half"):
            self._pieces([body[: len(body) // 2]])
        else:
            self._pieces([body])
            if trick.framing in ("endless", "endless-chunks", "huge"):
                piece = random.Random(1).randbytes(64 * 1024)
                if trick.framing == "endless-chunks":
                    piece = b"%x\r\n%b\r\n" % (len(piece), piece)
                self._pieces(piece for _ in range(MOST_SENT // len(piece)))

    def _pieces(self, pieces: Iterable[bytes], pause: float = 0.0) -> None:
        for piece in pieces:
            if self._ends.wait(pause) if pause else self._ends.is_set():
                return
            self._connection.sendall(piece)
            self._sent += len(piece)
            self._origin.longest_sent = max(self._origin.longest_sent, self._sent)

    def _wait(self) -> None:
        """Until the peer leaves or the origin heals."""
        until = time.monotonic() + PATIENCE
        self._connection.settimeout(0.05)
        while time.monotonic() < until and not self._ends.is_set():
            with contextlib.suppress(TimeoutError):
                if not self._connection.recv(4096):
                    return

    def _compose(self) -> tuple[int, list[tuple[str, str]], bytes]:
        trick, right = self._trick, self._origin.file(self._path)
        if trick.content in CONTENTS:
            whole = CONTENTS[trick.content](self._path, right or b"")
        else:
            whole = self._origin.file(trick.content) or b""
        exists = right is not None or trick.content != "right"
        status, body, fields = (200, whole, []) if exists else (404, b"no such file", [])
        if status == 200:
            fields = [("ETag", f'"{hashlib.md5(whole, usedforsecurity=False).hexdigest()}"')]
            status, body, extra = _ranged(trick.range, whole, self._wanted)
            fields += extra
        framing, body = _framed(trick.framing, body)
        names = {name.lower() for name, _ in trick.fields}
        fields = [*framing, *(one for one in fields if one[0].lower() not in names)]
        fields += [(name, text.replace("{origin}", str(self._origin.port))) for name, text in trick.fields]
        if trick.ending != "keep" or trick.framing in ("none", "endless"):
            fields.append(("Connection", "close"))
        return trick.status or status, fields, body


def _ranged(how: str, whole: bytes, wanted: str) -> tuple[int, bytes, list[tuple[str, str]]]:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
    if how == "whole-as-206":
        return 206, whole, [("Content-Range", f"bytes 0-{max(0, len(whole) - 1)}/{len(whole)}")]
    if match is None or how == "ignored":
        return 200, whole, []
    start, end = int(match[1]), min(int(match[2] or len(whole)), len(whole) - 1)
    if start >= len(whole):
        return 416, b"", [("Content-Range", f"bytes */{len(whole)}")]
    total = {"other-total": str(len(whole) + 7), "star": "*"}.get(how, str(len(whole)))
    shift = 9 if how == "shifted" else 0
    field = ("Content-Range", f"bytes {start + shift}-{end + shift}/{total}")
    return 206, whole[start : end + 1], [] if how == "no-content-range" else [field]


def _framed(how: str, body: bytes) -> tuple[list[tuple[str, str]], bytes]:
    length, chunk = len(body), b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    chunked = ("Transfer-Encoding", "chunked")
    match how:
        case "chunked":
            return [chunked], chunk + b"0\r\n\r\n"
        case "cut-chunks" | "endless-chunks":
            return [chunked], chunk
        case "chunked-with-length":
            return [("Content-Length", "5"), chunked], chunk + b"0\r\n\r\n"
        case "twice":
            return [("Content-Length", str(length))] * 2, body
        case "twice-different":
            return [("Content-Length", str(length)), ("Content-Length", str(length + 1))], body
        case "none" | "endless":
            return [], body
    lengths = {"short": length // 2, "long": length + 9, "negative": -length, "huge": 2**62, "zero": 0}
    return [("Content-Length", "many" if how == "words" else str(lengths.get(how, length)))], body


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase if status in list(HTTPStatus) else "Whatever"
