"""The catalog: which of the site's files are published, which are refused, and why."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from clamproxy.files import replacing
from clamproxy.site_files.file_names import in_order, is_name

FILE_NAME = "catalog.json"
COPIES = "published"
"""The directory of the published copies, beside the catalog."""
MOST_REMEMBERED = 1000
"""Withdrawn names whose date is kept."""
_LATEST = 253402300800
"""The year 10000, in Unix seconds: no later date can be written."""
_DAMAGED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What is raised by JSON that is none, or says something else than expected."""

type Identity = tuple[int, int, int]
"""Tells whether a file was written again: inode, size in bytes, modification time in nanoseconds."""


class State(StrEnum):
    """What became of a file in `files.directory`."""

    PUBLISHED = "published"
    REFUSED = "refused"
    """Machines keep the last good version, if there was one."""
    WAITING = "waiting"
    """It is still being written, or couldn't be checked yet."""
    SKIPPED = "skipped"
    """Its name says that it is no database."""


@dataclass(frozen=True, slots=True)
class Edition:
    """One content of a file, as machines get it."""

    sha256: str
    size: int
    published_at: int
    """Its Last-Modified, in Unix seconds."""
    checked_by: str | None
    """The program that has loaded it; None if it could only be looked at."""

    def copy_name(self, name: str) -> str:
        """The name of the published copy, by which other contents of the file never go."""
        return f"{self.sha256[:32]}-{name}"

    @classmethod
    def parse(cls, value: Any) -> Self:
        """The inverse of `dataclasses.asdict`.

        Raises:
            ArithmeticError, LookupError, TypeError, ValueError: it isn't.
        """
        checked_by = value["checked_by"]
        edition = cls(
            str(value["sha256"]),
            int(value["size"]),
            int(value["published_at"]),
            None if checked_by is None else str(checked_by),
        )
        # The digest becomes part of a path.
        is_digest = len(edition.sha256) == 64 and set(edition.sha256) <= set("0123456789abcdef")
        if not (is_digest and edition.size > 0 and 0 < edition.published_at < _LATEST):
            raise ValueError("no edition")
        return edition


@dataclass(frozen=True, slots=True)
class SiteFile:
    """A file in `files.directory`, or one that was there."""

    name: str
    state: State
    since: float
    """When it got into this state, in Unix seconds."""
    reason: str = ""
    """Why it isn't published, or what there is to know about it."""
    served: Edition | None = None
    """What machines get. If the file is refused, the last good version."""
    source: Identity | None = None
    """The file in the directory when this was decided; None if its content had no part in that."""

    def to_json(self) -> dict[str, Any]:
        """The form for status.json and `clamproxy files --json`."""
        served = self.served
        return {
            "name": self.name,
            "state": str(self.state),
            "since": self.since,
            "reason": self.reason,
            "size": served and served.size,
            "sha256": served and served.sha256,
            "published_at": served and served.published_at,
            "checked_by": served and served.checked_by,
        }

    @classmethod
    def parse(cls, value: Any) -> Self:
        """The inverse of `saved`.

        Raises:
            ArithmeticError, AttributeError, LookupError, TypeError, ValueError: it isn't.
        """
        served, source = value["served"], value["source"]
        file = cls(
            str(value["name"]),
            State(value["state"]),
            float(value["since"]),
            str(value["reason"]),
            None if served is None else Edition.parse(served),
            None if source is None else (int(source[0]), int(source[1]), int(source[2])),
        )
        if not (math.isfinite(file.since) and abs(file.since) < _LATEST):
            raise ValueError("no date")
        if file.served is not None and not is_name(file.name):
            raise ValueError("no published file")
        return file


@dataclass(frozen=True, slots=True)
class Catalog:
    """All files at one moment. Immutable."""

    files: Mapping[str, SiteFile] = field(default_factory=lambda: MappingProxyType({}))
    """By name."""
    withdrawn: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """When files that are gone were published last, by name."""
    trouble: str = ""
    """Why the directory can't be read; empty if it can."""

    @property
    def published(self) -> list[str]:
        """The names that machines can ask for, in the order to show them in."""
        return in_order(name for name, file in self.files.items() if file.served is not None)

    def listed(self) -> list[SiteFile]:
        return [self.files[name] for name in in_order(self.files)]

    def last_published(self, name: str) -> int:
        """When any content of a file was published last, in Unix seconds; 0 if never."""
        file = self.files.get(name)
        served = file.served.published_at if file is not None and file.served is not None else 0
        return max(served, self.withdrawn.get(name, 0))

    def having(self, file: SiteFile) -> Catalog:
        return replace(self, files={**self.files, file.name: file})

    def without(self, name: str) -> Catalog:
        """The catalog without a file. When it was published is remembered."""
        files = {other: file for other, file in self.files.items() if other != name}
        withdrawn = dict(self.withdrawn)
        if last := self.last_published(name):
            withdrawn.pop(name, None)
            withdrawn[name] = last
        newest = dict(list(withdrawn.items())[-MOST_REMEMBERED:])
        return replace(self, files=files, withdrawn=newest)

    def problems(self) -> list[str]:
        """What is wrong, one line for each problem."""
        found = [f"degraded: files.directory: {self.trouble}"] if self.trouble else []
        for file in self.listed():
            kept = "its last good version is served" if file.served else "nothing is served for it"
            if file.state is State.REFUSED:
                found.append(f"degraded: {file.name} is refused, and {kept}: {file.reason}")
            elif file.state is State.WAITING:
                found.append(f"degraded: {file.name} can't be checked now, and {kept}: {file.reason}")
        return found

    def save(self, directory: Path) -> None:
        """Write the catalog. Blocks.

        Raises:
            OSError: it can't be written; the former one is unchanged.
        """
        files = [asdict(file) for file in self.listed()]
        values = {"files": files, "withdrawn": dict(self.withdrawn), "trouble": self.trouble}
        with replacing(directory / FILE_NAME) as output:
            output.write(json.dumps(values, indent=1).encode())

    @classmethod
    def load(cls, directory: Path) -> Catalog:
        """The catalog that was saved last; an empty one if there is none. What can't be read is left out.

        Blocks. Everything that is left out is simply published again.

        Raises:
            OSError: there is a catalog, but it can't be read.
        """
        try:
            values = json.loads((directory / FILE_NAME).read_bytes())
            entries, withdrawn, trouble = list(values["files"]), values["withdrawn"], str(values["trouble"])
            dates = {str(name): int(at) for name, at in withdrawn.items()}
        except (FileNotFoundError, *_DAMAGED):
            return cls()
        files = {}
        for entry in entries:
            try:
                file = SiteFile.parse(entry)
            except _DAMAGED:
                continue
            files[file.name] = file
        return cls(files, dates, trouble)
