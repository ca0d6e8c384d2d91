"""How a command reaches the proxies that run on this machine, to have them reload.

Each proxy listens on a socket in Linux's abstract namespace (unix(7)), which needs no writable disk and
ends with the process, however that ends. A command finds these sockets in /proc/net/unix, and takes those
that have the same configuration file or cache directory as itself. So nothing depends on a pid that was
written down, and every process that shares a cache is reached.

A proxy begins with one line of JSON that says what it is. The command sends ``reload``, and gets a second
line with the outcome.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from clamproxy.config.differences import KeyChange
from clamproxy.files import identity_of
from clamproxy.readable import shown_user
from clamproxy.untrusted import parse_json

_PREFIX = "clamproxy/"
_SOCKETS = Path("/proc/net/unix")
_RELOAD = b"reload\n"
_UCRED = struct.Struct("3i")
"""The pid, uid and gid in SO_PEERCRED (unix(7))."""
_LONGEST_LINE = 1 << 20
"""In bytes."""
PATIENCE = 25.0
"""Seconds that either side waits for the other. A command waits twice, for less than the TimeoutStartSec of
contrib/systemd/clamproxy.service in all."""


class NoAnswerError(Exception):
    """A proxy can't be asked; the text says why."""


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """What came of a reload."""

    changes: tuple[KeyChange, ...] = ()
    """The keys with new values; none if the configuration has not changed."""
    remarks: tuple[str, ...] = ()
    """Which of them have no effect for now, and why."""
    error: str | None = None
    """Why the configuration stays as it was; None if the new one is in force."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        found = tuple(KeyChange(**change) for change in values["changes"])
        return cls(found, tuple(values["remarks"]), values["error"])


type Marks = dict[str, list[int | str] | None]
"""What identifies the configuration file and the cache of a process, across mounts and symbolic links."""


def marks(config: Path | None, cache: Path | None) -> Marks:
    """The marks of a process with this configuration file and this cache directory, as far as they exist."""
    folder = identity_of(config.parent) if config is not None else None
    directory = identity_of(cache) if cache is not None else None
    return {
        # A file that is replaced as a whole gets another inode; its directory and name stay.
        "config": [*folder, config.name] if config is not None and folder is not None else None,
        "cache": list(directory) if directory is not None else None,
    }


class Control:
    """The proxy's end. Event loop only.

    Args:
        marks: gives the marks of the configuration in force.
        reload: reads the configuration again.
    """

    def __init__(self, marks: Callable[[], Marks], reload: Callable[[], Awaitable[ReloadOutcome]]) -> None:
        self._marks = marks
        self._reload = reload
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: the system doesn't allow it.
        """
        # A name that nobody can take in advance.
        name = f"\0{_PREFIX}{os.getpid()}.{secrets.token_hex(8)}"
        self._server = await asyncio.start_unix_server(self._take, name)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer), name="control")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            _, uid, _ = _peer(writer.get_extra_info("socket"))
            is_permitted = uid in (0, os.geteuid())
            writer.write(_line({**self._marks(), "is_permitted": is_permitted}))
            if not is_permitted:  # whoever it is, they must not use up connections
                return
            async with asyncio.timeout(PATIENCE):
                is_asked = await reader.readline() == _RELOAD
            if is_asked:
                writer.write(_line(asdict(await self._reload())))
                async with asyncio.timeout(PATIENCE):
                    await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # the command has ended, or sends something else
        finally:
            writer.close()


class Running:
    """A proxy that runs on this machine, for a command.

    Args:
        connection: to its socket.
        said: its first line; empty if it doesn't respond.
    """

    def __init__(self, connection: socket.socket, stream: BinaryIO, said: dict[str, Any]) -> None:
        self.pid, self._uid, _ = _peer(connection)
        self._connection = connection
        self._stream = stream
        self._said = said

    def reload(self) -> ReloadOutcome:
        """Have the process read its configuration, and wait until that is done. Blocks.

        Raises:
            NoAnswerError: it doesn't listen to this user, or doesn't respond.
        """
        if not self._said:
            raise NoAnswerError("it doesn't respond")
        if not self._said.get("is_permitted"):
            raise NoAnswerError(f"it belongs to user {shown_user(self._uid)}; run this as that user or root")
        try:
            self._connection.sendall(_RELOAD)
            return ReloadOutcome.from_json(_read(self._stream))
        except TimeoutError:
            raise NoAnswerError("it doesn't respond") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise NoAnswerError("it ended before the reload was done; see its log") from None


def running(config: Path | None, cache: Path | None) -> Iterator[Running]:
    """The proxies that run here with this configuration file or this cache. Blocks.

    Args:
        cache: the cache directory; None if the configuration can't be read. As nobody knows then which user
            the proxy runs as, only root's and this user's own are found.
    """
    own = marks(config, cache)
    for name in sorted(_names()):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:  # it may have ended
            connection.settimeout(PATIENCE)  # so connecting, too, doesn't wait: the name may be anybody's
            connection.connect(f"\0{name}")
            if not _is_trusted(_peer(connection)[1], cache):
                continue
            with connection.makefile("rb") as stream:
                said = _first_line(stream)
                if said is None or any(mark and said.get(kind) == mark for kind, mark in own.items()):
                    yield Running(connection, stream, said or {})


def _is_trusted(uid: int, cache: Path | None) -> bool:
    """Whether a process of this user can be the proxy. Anybody may take a name in the abstract namespace."""
    owner = None
    with suppress(OSError):
        owner = cache.stat().st_uid if cache is not None else None
    return uid in (0, os.geteuid(), owner)


def _first_line(stream: BinaryIO) -> dict[str, Any] | None:
    """What a process says it is; None if it says nothing."""
    try:
        return _read(stream)
    except TimeoutError:
        return None
    except ValueError:
        return {}


def _names() -> set[str]:
    """The names of the sockets, without the null byte that marks them as abstract (``@`` in this file)."""
    with suppress(OSError):
        lines = _SOCKETS.read_text(errors="replace").splitlines()
        found = (line.split(maxsplit=7)[-1] for line in lines)
        return {name.removeprefix("@") for name in found if name.startswith(f"@{_PREFIX}")}
    return set()


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """The pid, uid and gid of the process at the other end, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return pid, uid, gid


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _read(stream: BinaryIO) -> dict[str, Any]:
    """One line of JSON.

    Raises:
        OSError: nothing comes.
        ValueError: it is something else.
    """
    values = parse_json(stream.readline(_LONGEST_LINE))
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return values
