"""The signatures that all machines ignore: ``site.ign2``, and who put what there, when and why. Blocks.

ClamAV compares whole names, case-sensitively and without wildcards, and drops a signature when it loads it.
So a name here is that of the signature itself: without ``.UNOFFICIAL``, which ClamAV appends in its reports,
and without the ``YARA.`` that it puts before the names of YARA rules (measured with clamscan 1.4.6;
tests/e2e/test_ignore.py).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from clamproxy.files import lock, open_to_read, replacing, sync
from clamproxy.readable import shown_user
from clamproxy.site_files.file_names import IGNORED_SIGNATURES
from clamproxy.untrusted import parse_json

HISTORY = "ignored.jsonl"
"""The history, in the state directory."""

_HEADING = "# Signatures that ClamAV ignores. Kept by clamproxy ignore."
_NONE = "# None at the moment."
"""Without a line, the file would be empty, which freshclam takes for an error (docs/protocol.md 2.1)."""
_NAME = re.compile(r"(?=.*[0-9A-Za-z])[!-9;-~]{1,250}")
"""Printable ASCII without spaces and colons: a colon separates the fields of a line. A dot alone is none."""
_SUFFIX, _RULE = ".UNOFFICIAL", "YARA."


@dataclass(frozen=True, slots=True)
class IgnoreChange:
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
        names = (_name_of(line) for line in self._lines())
        return [name for name in names if name is not None]

    def add(self, signature: str, why: str) -> bool:
        """Ignore a signature; returns whether it wasn't ignored before.

        Args:
            signature: from `signature_name`.

        Raises:
            OSError: a file can't be read or written; the list is unchanged.
        """
        with self._changing():
            lines = self._lines()
            if any(_name_of(line) == signature and not _has_hash(line) for line in lines):
                return False
            with self._recorded(IgnoreChange(time.time(), "add", signature, _user(), why)):
                # Beside a line with another hash, the name alone would have no effect.
                others = [line for line in lines if _name_of(line) != signature]
                place = _place_of_names(others)
                self._write([*others[:place], signature, *others[place:]])
        return True

    def remove(self, signature: str, why: str) -> bool:
        """Ignore a signature no longer; returns whether it was ignored.

        Raises:
            OSError: a file can't be read or written; the list is unchanged.
        """
        with self._changing():
            lines = self._lines()
            kept = [line for line in lines if _name_of(line) != signature]
            if len(kept) == len(lines):
                return False
            with self._recorded(IgnoreChange(time.time(), "remove", signature, _user(), why)):
                self._write(kept)
        return True

    def history(self) -> list[IgnoreChange]:
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

    def latest(self) -> dict[str, IgnoreChange]:
        """The change by which each signature got into the list, if `add` put it there."""
        return {change.signature: change for change in self.history() if change.action == "add"}

    def _text(self) -> str:
        try:
            with open_to_read(self.path) as file:
                return file.read().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return ""

    def _lines(self) -> list[str]:
        """The lines, which others may have written, too: with hashes, or comments.

        To ClamAV, a blank line is an error, and a space is part of the name.
        """
        lines = (line.strip() for line in self._text().split("\n"))
        return [line for line in lines if line and line not in (_HEADING, _NONE)]

    def _write(self, lines: Sequence[str]) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with replacing(self.path, mode=0o644) as file:
            is_none = all(_name_of(line) is None for line in lines)
            text = "".join(f"{line}\n" for line in [_HEADING, *lines, *([_NONE] if is_none else [])])
            file.write(text.encode("utf-8", "surrogateescape"))

    @contextmanager
    def _recorded(self, change: IgnoreChange) -> Iterator[None]:
        """Add a change to the history, and take that back if the change or the record fails."""
        with self._history.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            # A line that a kill or a full disk has cut off must not swallow the next one.
            line = (
                (b"\n" if file.read(1) not in (b"", b"\n") else b"")
                + json.dumps(asdict(change)).encode()
                + b"\n"
            )
            try:
                while line:
                    line = line[file.write(line) :]
                sync(file)
                yield
            except BaseException:
                with suppress(OSError):
                    file.truncate(end)
                raise

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


def _name_of(line: str) -> str | None:
    """The signature in a line: ``name``, ``name:hash`` or, in old lists, ``database:number:name``.

    None in a comment.
    """
    if line.startswith("#"):
        return None
    fields = line.split(":")
    return fields[2] if len(fields) == 3 else fields[0]


def _has_hash(line: str) -> bool:
    """Whether a signature is ignored only until it changes."""
    return not line.startswith("#") and line.count(":") == 1


def _place_of_names(lines: Sequence[str]) -> int:
    """Where a name goes: above the first line with a hash, and the comments on that.

    ClamAV refuses a list with a name alone below one with a hash (measured with clamscan 1.4.6).
    """
    place = next((place for place, line in enumerate(lines) if _has_hash(line)), len(lines))
    while 0 < place < len(lines) and lines[place - 1].startswith("#"):
        place -= 1
    return place


def _user() -> str:
    """Who runs this; with sudo, who ran sudo."""
    return os.environ.get("SUDO_USER") or shown_user(os.getuid())


def _parsed(line: str) -> IgnoreChange | None:
    try:
        value = parse_json(line)
        return IgnoreChange(
            float(value["at"]), *(str(value[key]) for key in ("action", "signature", "by", "why"))
        )
    except (LookupError, TypeError, ValueError):
        return None
