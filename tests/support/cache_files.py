"""What is in a cache directory, found out without the code that wrote it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

type Known = tuple[int, str]
"""Size in bytes and SHA-256."""


@dataclass(frozen=True, slots=True)
class CacheFiles:
    """The objects of a cache by the names of their files, and what else lies about."""

    rows: Mapping[str, Known]
    """As the index has them."""
    files: Mapping[str, Known]
    """As the directory has them."""
    others: list[str] = field(default_factory=list)
    """Anything that neither an object nor a part of the cache's own furniture is."""

    @property
    def false_rows(self) -> list[str]:
        """Rows whose files are not there, or other than the rows say."""
        return [name for name, known in self.rows.items() if self.files.get(name) != known]

    @property
    def nameless(self) -> list[str]:
        """Files without a row."""
        return sorted(self.files.keys() - self.rows.keys())

    @property
    def faults(self) -> list[str]:
        """What a gateway at rest must not leave."""
        return self.false_rows + self.nameless + self.others


def look(cache: Path, *also: Path) -> CacheFiles | None:
    """Read a cache; None if a process has just changed its index.

    Args:
        cache: the directory.
        also: more directories in which nothing may be left that was being written.
    """
    try:
        rows = _rows(cache / "index")
    except sqlite3.DatabaseError:
        return None
    files, others = dict[str, Known](), list[str]()
    for path in sorted((cache / "objects").rglob("*")):
        with suppress(FileNotFoundError):
            if path.name.startswith("."):
                others.append(str(path))
            elif path.is_file():
                body = path.read_bytes()
                files[path.name] = len(body), hashlib.sha256(body).hexdigest()
    others += [str(path) for path in (cache / "partial").glob("*") if not _can_go_on(path, rows)]
    for directory in (cache / "staging", cache / "build"):
        others += [str(path) for path in directory.glob("*") if path.name != "lock"]
    for directory in (cache / "feeds", *also):
        others += [str(path) for path in directory.rglob("*") if path.suffix in (".part", ".tmp", ".new")]
    return CacheFiles(rows, files, others)


def _can_go_on(path: Path, rows: Mapping[str, Known]) -> bool:
    """Whether a file belongs to a transfer that broke off, and that a client may ask for again."""
    try:
        arrived = path.with_suffix(".part").stat().st_size
    except FileNotFoundError:
        return False
    return path.suffix in (".part", ".json") and arrived > 0 and path.stem not in rows


def _rows(index: Path) -> dict[str, Known]:
    """Of a copy, because opening the index itself would tidy up what a kill left."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("cache.db", "cache.db-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(index / name, Path(directory) / name)
        with closing(sqlite3.connect(Path(directory) / "cache.db")) as database:
            query = "SELECT key, tag FROM Cache WHERE key LIKE 'object/%'"
            rows = database.execute(query).fetchall()
    texts = {key.removeprefix("object/"): json.loads(tag.partition(" ")[2]) for key, tag in rows}
    return {name: (values["size"], values["sha256"]) for name, values in texts.items()}
