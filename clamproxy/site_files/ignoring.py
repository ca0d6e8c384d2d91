"""The signatures that all machines ignore: ``site.ign2``, and who put what there, when and why. Blocks.

ClamAV compares whole names, case-sensitively and without wildcards, and drops a signature when it loads it.
So a name here is that of the signature itself: without ``.UNOFFICIAL``, which ClamAV appends in its reports,
and without the ``YARA.`` that it puts before the names of YARA rules (measured with clamscan 1.4.6;
tests/e2e/test_ignore.py).
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clamproxy.files import lock, open_to_read, replacing, sync
from clamproxy.site_files.names import IGNORED_SIGNATURES

HISTORY = "ignored.jsonl"
"""The history, in the state directory."""

_HEADING = "# Signatures that ClamAV ignores. Kept by clamproxy ignore."
_NONE = "# None at the moment."
"""Without a line, the file would be empty, which freshclam takes for an error (docs/protocol.md 2.1)."""
_NAME = re.compile(r"[!-9;-~]{1,250}")
"""Printable ASCII without spaces and colons: a colon separates the fields of a line."""
_SUFFIX, _RULE = ".UNOFFICIAL", "YARA."


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the history."""

    at: float
    """Unix seconds."""
    action: str
    """``add`` or ``remove``."""
    signature: str
    by: str
    why: str


class IgnoreList:
    """Reads and changes the list. Safe to use by several processes.

    Args:
        directory: `files.directory`; made when it is needed.
        records: the state directory.
    """

    def __init__(self, directory: Path, records: Path) -> None:
        self.path = directory / IGNORED_SIGNATURES
        self._history = records / HISTORY

    def signatures(self) -> list[str]:
        """The ignored signatures, in the file's order.

        Raises:
            OSError: the file can't be read.
        """
        lines = (line.strip() for line in self._text().splitlines())
        return [_name_of(line) for line in lines if line and not line.startswith("#")]

    def add(self, signature: str, why: str) -> bool:
        """Ignore a signature; returns whether it wasn't ignored before.

        Args:
            signature: from `signature_name`.

        Raises:
            OSError: a file can't be read or written; the list is unchanged.
        """
        with self._changing():
            lines = self._entries()
            if signature in self.signatures():
                return False
            self._record(Change(time.time(), "add", signature, _user(), why))
            self._write([*lines, signature])
        return True

    def remove(self, signature: str, why: str) -> bool:
        """Ignore a signature no longer; returns whether it was ignored.

        Raises:
            OSError: a file can't be read or written; the list is unchanged.
        """
        with self._changing():
            lines = self._entries()
            kept = [line for line in lines if _name_of(line) != signature]
            if len(kept) == len(lines):
                return False
            self._record(Change(time.time(), "remove", signature, _user(), why))
            self._write(kept)
        return True

    def history(self) -> list[Change]:
        """All changes by `add` and `remove`, oldest first. Lines that can't be read are left out.

        Raises:
            OSError: the file can't be read.
        """
        try:
            with open_to_read(self._history) as file:
                lines = file.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return []
        return [change for change in map(_parsed, lines) if change is not None]

    def latest(self) -> dict[str, Change]:
        """The change by which each signature got into the list, if `add` put it there."""
        return {change.signature: change for change in self.history() if change.action == "add"}

    def _text(self) -> str:
        try:
            with open_to_read(self.path) as file:
                return file.read().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""

    def _entries(self) -> list[str]:
        """The lines that name a signature, as they are: others may have written them, with a hash."""
        lines = (line.strip() for line in self._text().splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    def _write(self, entries: Sequence[str]) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with replacing(self.path, mode=0o644) as file:
            lines = [_HEADING, *(entries or [_NONE])]
            file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))

    def _record(self, change: Change) -> None:
        with self._history.open("ab") as file:
            file.write(json.dumps(asdict(change)).encode() + b"\n")
            sync(file)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._history.open("ab") as file:
            self._history.chmod(0o600)
            lock(file)
            yield


def signature_name(reported: str) -> tuple[str, str]:
    """The name of a signature for the list, from the name that ClamAV reports.

    Returns:
        The name, and what was changed, for the user; empty if nothing was.

    Raises:
        ValueError: there is no such signature, or it can't be ignored this way; the text says why.
    """
    name, remarks = reported.strip(), []
    if name.endswith(_SUFFIX):
        name = name.removesuffix(_SUFFIX)
        remarks.append(f"without {_SUFFIX}, which ClamAV adds to the names of signatures that aren't its own")
    if name.startswith(_RULE):
        name = name.removeprefix(_RULE)
        remarks.append(f"without {_RULE}, which ClamAV adds to the names of YARA rules")
    if "*" in name or "?" in name:
        raise ValueError("ClamAV knows no wildcards here, only whole names")
    if _NAME.fullmatch(name) is None or name.startswith("#"):
        raise ValueError("expected the name of a signature, such as Win.Trojan.Agent-1234567-0")
    if name.startswith("Heuristics."):
        raise ValueError("ClamAV's heuristics can't be ignored by name, only switched off in clamd.conf")
    return name, ", and ".join(remarks)


def _name_of(line: str) -> str:
    """The signature in a line: ``name``, ``name:hash`` or, in old lists, ``database:number:name``."""
    fields = line.split(":")
    return fields[2] if len(fields) == 3 else fields[0]


def _user() -> str:
    """Who runs this; with sudo, who ran sudo."""
    if name := os.environ.get("SUDO_USER"):
        return name
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # for example in a container
        return str(os.getuid())


def _parsed(line: str) -> Change | None:
    try:
        value: Any = json.loads(line)
        return Change(float(value["at"]), *(str(value[key]) for key in ("action", "signature", "by", "why")))
    except (KeyError, TypeError, ValueError):
        return None
