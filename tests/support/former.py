"""Caches as earlier versions left them."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

LAYOUTS = ("index/objects", "diskcache")
"""Where files were before they got directories of their own: below ``index/objects``, under the names that
they have now; before that, under names that diskcache had chosen."""


def make_former(cache: Path, layout: str) -> dict[str, Path]:
    """Turn a cache that nobody has open into one of an earlier version.

    Returns:
        By the name of each object, its file.
    """
    index, files = cache / "index", {}
    if (index / "objects").is_symlink():
        (index / "objects").unlink()
    with closing(sqlite3.connect(index / "cache.db")) as database:
        query = "SELECT rowid, key, filename FROM Cache WHERE filename IS NOT NULL"
        for rowid, key, filename in database.execute(query).fetchall():
            name = key.removeprefix("object/")
            former = f"objects/{name}" if layout == "index/objects" else f"3f/a0/{rowid}.val"
            (index / former).parent.mkdir(parents=True, exist_ok=True)
            (cache / filename).rename(index / former)
            database.execute("UPDATE Cache SET filename = ? WHERE key = ?", (former, key))
            files[name] = index / former
        if layout == "diskcache":  # which was before rows were sealed, and had digests
            database.execute("UPDATE Cache SET tag = substr(tag, 11) WHERE tag LIKE '~%'")
            database.execute("UPDATE Cache SET tag = json_remove(tag, '$.sha256') WHERE filename IS NOT NULL")
        database.commit()
    shutil.rmtree(cache / "objects")
    return files
