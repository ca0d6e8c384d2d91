"""The names of the site's files: which ones ClamAV loads, and the order in which they are listed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIX = "/files/"
"""The files are below this path."""
IGNORED_SIGNATURES = "site.ign2"
"""The file that `clamproxy ignore` keeps."""
DIGEST = ".sha256"
"""Added to a file's name, this gives the name of its digest."""
INDEX = "index.json"

EXTENSIONS = frozenset(
    (
        *("cat", "cbc", "cdb", "cfg", "crb", "db", "fp", "ftm", "gdb", "hdb", "hdu", "hsb", "hsu", "idb"),
        *("ign", "ign2", "imp", "ioc", "ldb", "ldu", "mdb", "mdu", "msb", "msu", "ndb", "ndu", "pdb"),
        *("pwdb", "rmd", "sdb", "sfp", "wdb", "yar", "yara", "zmd"),
    )
)
"""What clamd and freshclam load from single files: ``CLI_DBEXT`` in libclamav/readdb.h. Without cvd, cld and
cud, whose place is the cache, and info, which is loaded from these containers only."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNFINISHED = re.compile(r"\..*|.*~|#.*#|.*\.(?:bak|part|swp|swx|tmp)", re.DOTALL)
"""What editors and copying programs leave, or write before they rename it."""


def is_unfinished(name: str) -> bool:
    """Whether a file is none of the administrator's, so that nothing is said about it."""
    return _UNFINISHED.fullmatch(name) is not None


def is_name(name: str) -> bool:
    """Whether a file of this name can be published."""
    return why_skipped(name) is None


def why_skipped(name: str) -> str | None:
    """Why a file of this name is never published; None if it may be."""
    if _NAME.fullmatch(name) is None:
        return "its name needs 1 to 100 letters, digits and ._- and must begin with a letter or digit"
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if extension in ("cvd", "cld", "cud"):
        return f".{extension} files are served by the cache, not from here"
    if extension not in EXTENSIONS:
        return f"ClamAV loads no {f'.{extension} files' if extension else 'files without an extension'}"
    return None


def in_order(names: Iterable[str]) -> list[str]:
    """The names in alphabetical order, except that the ignored signatures come first."""
    return sorted(names, key=lambda name: (name != IGNORED_SIGNATURES, name))
