"""A fake DNS server on loopback for ``current.cvd.clamav.net`` and ``<database>.cvd.clamav.net``."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import threading
import time
from enum import StrEnum
from pathlib import Path
from subprocess import run
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from clamproxy.clock import Clock

PRIMARY = "current.cvd.clamav.net"
FIELDS = ("main", "daily", "safebrowsing", "bytecode")
"""Databases with a place in the primary record; others have their own record (docs/protocol.md 3)."""
STALE = 13 * 3600
"""Seconds; freshclam distrusts a record older than 12 h."""


class Mode(StrEnum):
    """How the server answers."""

    RIGHT = "right"
    NXDOMAIN = "nxdomain"
    SERVFAIL = "servfail"
    SILENT = "silent"
    GARBAGE = "garbage"
    SHORT = "short"
    STALE = "stale"


class Zone:
    """The records, and how they are given out: right by default."""

    def __init__(self) -> None:
        self.mode = Mode.RIGHT
        self.modes: dict[str, Mode] = {}
        """Modes for single names, stronger than `mode`."""
        self.versions: dict[str, int] = {"main": 62, "daily": 27800, "bytecode": 339}
        """What is advertised."""
        self.zone = "cvd.clamav.net"
        """The zone that the records are in."""
        self.pointers: dict[str, str] = {}
        """The names that addresses have in reverse DNS."""
        self.queries: list[str] = []
        """Names asked for, in order."""
        self.clock: Clock = time
        """By which records are dated."""

    def reply(self, datagram: bytes) -> bytes | None:
        """The answer to a datagram, or None for silence."""
        with contextlib.suppress(dns.exception.DNSException):
            if (answer := self.answer(dns.message.from_wire(datagram))) is not None:
                return answer.to_wire()
        return None

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        """The answer to a query, or None for silence; other transports may use it too."""
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.queries.append(name)
        mode = self.modes.get(name, self.mode)
        if mode is Mode.SILENT:
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA
        text = self._text(name, mode)
        pointer = None
        if question.rdtype == dns.rdatatype.PTR:
            pointer = self.pointers.get(dns.reversename.to_address(question.name))
        if mode is Mode.SERVFAIL:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif mode is not Mode.NXDOMAIN and pointer is not None:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "PTR", pointer))
        elif mode is Mode.NXDOMAIN or text is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.TXT:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", f'"{text}"'))
        return answer

    def _text(self, name: str, mode: Mode) -> str | None:
        """The TXT record of a name, None if there is no such name."""
        recorded = int(self.clock.time()) - (STALE if mode is Mode.STALE else 60)
        version = self.versions.get
        if name == f"current.{self.zone}":
            text = (
                f"1.4.6:{version('main', 0)}:{version('daily', 0)}:{recorded}:0:90"
                f":{version('safebrowsing', 49192)}:{version('bytecode', 0)}"
            )
        else:
            database = name.removesuffix(f".{self.zone}")
            if database == name or database in FIELDS or database not in self.versions:
                return None
            text = f"{self.versions[database]}:{recorded}"
        if mode is Mode.GARBAGE:
            return "v=spf1 include:spf.example ~all"
        return text[: text.index(":")] if mode is Mode.SHORT else text


class FakeDns(Zone):
    """The server, on UDP. Use it as a context manager."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((address, port))
        except OSError:
            self._socket.close()
            raise
        self.address: str
        self.port: int
        self.address, self.port = self._socket.getsockname()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nameserver(self) -> str:
        """``host:port``."""
        return f"{self.address}:{self.port}"

    def count(self, name: str = PRIMARY) -> int:
        """How often a name was asked for."""
        return self.queries.count(name)

    def close(self) -> None:
        """Stop the server."""
        # A datagram to itself wakes the thread, which closing the socket would not.
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", (self.address, self.port))
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                datagram, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            if not datagram:
                return
            if (answer := self.reply(datagram)) is not None:
                with contextlib.suppress(OSError):
                    self._socket.sendto(answer, peer)


def open_dns() -> FakeDns:
    """A server on port 53 of some free loopback address, because resolv.conf has no ports.

    Where port 53 is forbidden, it uses another port, which the proxy can reach but freshclam can't.
    """
    for _ in range(20):
        try:
            return FakeDns(_random_address(), 53)
        except PermissionError:
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                break
    return FakeDns()


def free_address() -> str:
    """A loopback address where another server can use port 53.

    Raises:
        OSError: port 53 is forbidden, or taken everywhere.
    """
    for attempt in range(20):
        address = _random_address()
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind((address, 53))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or attempt == 19:
                raise
        else:
            return address
    raise AssertionError


def _random_address() -> str:
    return "127." + ".".join(str(random.randint(2, 250)) for _ in range(3))


def namespace_refusal(directory: Path) -> str | None:
    """Why a program can't be given its own resolv.conf here; None if it can."""
    probe = directory / "resolv.probe"
    probe.write_text("nameserver 127.0.0.1\n")
    command = ["unshare", "-m", "mount", "--bind", str(probe), "/etc/resolv.conf"]
    try:
        result = run(command, capture_output=True, text=True, timeout=30)
    except OSError as error:
        return f"unshare cannot be started: {error}"
    return None if result.returncode == 0 else f"no mount namespace: {result.stderr.strip()}"
