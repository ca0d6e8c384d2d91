"""A long line of releases of one database: CVDs, and the cdiffs that lead from each to the next."""

from __future__ import annotations

import hashlib
import random
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.forge import (
    ForgeKeys,
    forge_cdiff,
    forge_keys,
    forge_sign,
    info_line,
    info_member,
    payload_of,
    seal,
)
from tests.support.gateway import FORGED_ADDON
from tests.support.origin import OriginServer

DAY = 86400
EPOCH = 1_700_000_000
"""Build time of the first release in Unix seconds, where a test doesn't care."""
COPYING = b"Made for tests; nothing in here is a signature of anything.\n"
PREFIX_LENGTH = 15
"""How many bytes of an old line ClamAV's own cdiffs repeat, as seen in the test data."""
LINE = 76
"""Bytes of a line of filler."""

type Members = dict[str, bytes]
"""Names to contents, in the order of the archive."""


@dataclass(slots=True)
class _Release:
    files: dict[str, list[bytes]]
    """The signature files as lines without their ends."""
    script: list[bytes]
    """The commands that made them of the files before."""


@dataclass(slots=True)
class _Cache:
    """What has been made so far, because the signatures take most of the time."""

    releases: list[_Release] = field(default_factory=list)
    infos: dict[int, bytes] = field(default_factory=dict)
    cvds: dict[int, bytes] = field(default_factory=dict)
    cdiffs: dict[int, bytes] = field(default_factory=dict)
    signs: dict[bytes, bytes] = field(default_factory=dict)
    """By what is signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """The releases from `first` on, made when they are asked for, about 50 ms each.

    Every kind of command comes in turn: each cdiff adds lines and exchanges one, every third deletes
    one, every fourth moves some to another file, and one file comes and goes every five releases.
    Base and cdiffs together are the next CVD, member by member.
    """

    database: str = "daily"
    first: int = 1
    filler: int = 0
    """Bytes of the largest member, of which about three quarters are left after compression."""
    patch_filler: int = 0
    """Bytes that each cdiff adds besides, before compression."""
    keys: ForgeKeys = field(default_factory=forge_keys)
    epoch: int = EPOCH
    """Build time of the first release in Unix seconds."""
    spacing: int = DAY
    """Seconds between two releases."""
    _made: _Cache = field(default_factory=_Cache, init=False, repr=False)

    def cvd(self, version: int) -> bytes:
        """The whole CVD of a version."""
        if version not in self._made.cvds:
            payload = payload_of(self.members(version).items())
            self._made.cvds[version] = seal(version, payload, self.keys, self.stime(version))
        return self._made.cvds[version]

    def cdiff(self, version: int) -> bytes:
        """The cdiff that leads to a version from the one before."""
        if version not in self._made.cdiffs:
            self._made.cdiffs[version] = forge_cdiff(self.database, version, self.script(version), self.keys)
        return self._made.cdiffs[version]

    def cvd_sign(self, version: int) -> bytes:
        """``<database>-<version>.cvd.sign``."""
        return self._sign(self.cvd(version))

    def cdiff_sign(self, version: int) -> bytes:
        """``<database>-<version>.cdiff.sign``."""
        return self._sign(self.cdiff(version))

    def _sign(self, body: bytes) -> bytes:
        if body not in self._made.signs:
            self._made.signs[body] = forge_sign(body, self.keys)
        return self._made.signs[body]

    def stime(self, version: int) -> int:
        """The build time of a version in Unix seconds."""
        return self.epoch + (version - self.first) * self.spacing

    def members(self, version: int) -> Members:
        """The members of a version."""
        files = self._release(version).files
        info = {"COPYING": COPYING, f"{self.database}.info": self._info(version)}
        return info | {name: joined(lines) for name, lines in files.items()}

    def cld_header(self, version: int) -> bytes:
        """The 512 bytes in front of a CLD of a version (docs/protocol.md 4.4)."""
        return info_line(version, self.stime(version)).ljust(512).encode()

    def script(self, version: int) -> bytes:
        """The commands of a cdiff."""
        before, after = (self._info(number).splitlines() for number in (version - 1, version))
        info = [f"OPEN {self.database}.info".encode(), *exchanges(before, after), b"CLOSE"]
        return joined([*info, *self._release(version).script])

    def publish(self, origin: OriginServer, version: int, *, base: int | None = None) -> None:
        """Put a release on the fake CDN: the CVD, and the cdiffs since the first version.

        Args:
            origin: the CDN.
            version: the newest.
            base: the version of the CVD if that is another one.
        """
        whole = base or version
        origin.put(f"{self.database}.cvd", self.cvd(whole))
        origin.put(f"{self.database}-{whole}.cvd.sign", self.cvd_sign(whole))
        for patch in range(self.first + 1, version + 1):
            origin.put(f"{self.database}-{patch}.cdiff", self.cdiff(patch))
            origin.put(f"{self.database}-{patch}.cdiff.sign", self.cdiff_sign(patch))

    def trusted(self, directory: Path) -> dict[str, Any]:
        """Arguments of `open_site` for a proxy that trusts the keys, which are written to a directory."""
        self.keys.save(directory)
        return {"script": FORGED_ADDON, "environment": {"CLAMPROXY_TEST_KEYS": str(directory)}}

    def _release(self, version: int) -> _Release:
        if version < self.first:
            raise ValueError(f"the first version is {self.first}")
        releases = self._made.releases
        if not releases:
            releases.append(_Release(self._base(), []))
        while len(releases) <= version - self.first:
            releases.append(self._next(self.first + len(releases), releases[-1].files))
        return releases[version - self.first]

    def _base(self) -> dict[str, list[bytes]]:
        name = self.database
        files = {
            f"{name}.hdb": [b"%032x:68:Forged.Base" % number for number in range(3)],
            f"{name}.hsb": _filler(f"{name}-base", self.filler),
            f"{name}.ndb": [b"Forged.Base-%d:0:*:%08x" % (number, number) for number in range(8)],
        }
        return {file: lines for file, lines in files.items() if lines}

    def _next(self, version: int, files: dict[str, list[bytes]]) -> _Release:
        ndb, hdb, ldb = (f"{self.database}.{kind}" for kind in ("ndb", "hdb", "ldb"))
        edit = _Edit({name: list(lines) for name, lines in files.items()})
        added = [b"Forged.%d-%d:0:*:%08x" % (version, number, version) for number in range(4)]
        added += _filler(f"{self.database}-{version}", self.patch_filler)
        changes: dict[int, bytes | None] = {1: b"Forged.Stamp-%d:0:*:%08x with spaces" % (version, version)}
        if version % 3 == 0:
            changes[3] = None
        edit.change(ndb, changes, added)
        if version % 4 == 0:
            edit.move(ndb, hdb, 2, 3)
        if version % 5 == 2:
            edit.change(ldb, {}, [b"Forged.Brief-%d;Engine:51-255,Target:0;0;%08x" % (version, version)])
        if version % 5 == 0 and ldb in edit.files:
            edit.unlink(ldb)
        return _Release(dict(sorted(edit.files.items())), edit.script)

    def _info(self, version: int) -> bytes:
        if version not in self._made.infos:
            contents = {name: joined(lines) for name, lines in self._release(version).files.items()}
            listed = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()]
            self._made.infos[version] = info_member(
                info_line(version, self.stime(version)), listed, self.keys
            )
        return self._made.infos[version]


@dataclass(slots=True)
class _Edit:
    """Changes files and writes down the commands that do the same (docs/protocol.md 5.2)."""

    files: dict[str, list[bytes]]
    script: list[bytes] = field(default_factory=list)

    def change(self, name: str, changes: dict[int, bytes | None], added: list[bytes]) -> None:
        """Exchange or (None) delete lines, counted from 1, and append some; makes the file if it is new."""
        lines = self.files.get(name, [])
        after = [changes.get(number, line) for number, line in enumerate(lines, 1)]
        commands = [
            _delete(number, lines[number - 1]) if new is None else _exchange(number, lines[number - 1], new)
            for number, new in sorted(changes.items())
        ]
        self.files[name] = [line for line in after if line is not None] + added
        self.script += [b"OPEN " + name.encode(), *commands, *(b"ADD " + line for line in added), b"CLOSE"]

    def move(self, source: str, target: str, start: int, end: int) -> None:
        """Move the lines from `start` to `end`, both included, to the end of another file."""
        lines = self.files[source]
        moved = lines[start - 1 : end]
        self.files[source] = lines[: start - 1] + lines[end:]
        self.files[target] = self.files[target] + moved
        names = f"{source} {target}".encode()
        self.script.append(
            b"MOVE %b %d %b %d %b" % (names, start, _prefix(moved[0]), end, _prefix(moved[-1]))
        )

    def unlink(self, name: str) -> None:
        """Remove a file."""
        del self.files[name]
        self.script.append(b"UNLINK " + name.encode())


def exchanges(before: list[bytes], after: list[bytes]) -> list[bytes]:
    """Commands that make one list of lines of another, line by line."""
    pairs = list(zip(before, after, strict=False))
    commands = [_exchange(number, old, new) for number, (old, new) in enumerate(pairs, 1) if old != new]
    gone = before[len(after) :]
    commands += [_delete(number, old) for number, old in enumerate(gone, len(after) + 1)]
    return commands + [b"ADD " + line for line in after[len(before) :]]


def joined(lines: list[bytes]) -> bytes:
    """A file of these lines."""
    return b"".join(line + b"\n" for line in lines)


def _exchange(number: int, old: bytes, new: bytes) -> bytes:
    return b"XCHG %d %b %b" % (number, _prefix(old), new)


def _delete(number: int, old: bytes) -> bytes:
    return b"DEL %d %b" % (number, _prefix(old))


def _prefix(line: bytes) -> bytes:
    """The beginning of a line up to a space, as nothing after a space belongs to the prefix."""
    return line[:PREFIX_LENGTH].partition(b" ")[0]


def _filler(seed: str, size: int) -> list[bytes]:
    """Lines of about this many bytes in total, different for each seed."""
    text = b64encode(random.Random(seed).randbytes(size * 3 // 4))
    return [text[start : start + LINE] for start in range(0, len(text), LINE)]
