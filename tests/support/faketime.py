"""Programs that see another time of day, by libfaketime."""

from __future__ import annotations

import re
from pathlib import Path

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""Of Debian's package `libfaketime`; None if it isn't installed."""
_SHARED_MEMORY = Path("/dev/shm")
_LEFT = re.compile(r"(?:faketime_shm|sem\.faketime_sem)_(\d+)")


def faketime(**variables: str) -> dict[str, str]:
    """The environment of such a program.

    Args:
        variables: of libfaketime, which say what time it sees.
    """
    return {"LD_PRELOAD": str(LIBRARY), "FAKETIME_DONT_FAKE_MONOTONIC": "1", **variables}


def sweep_faketime() -> None:
    """Remove what the library leaves in shared memory of processes that were killed."""
    for path in _SHARED_MEMORY.iterdir():
        match = _LEFT.fullmatch(path.name)
        if match is not None and not Path("/proc", match[1]).exists():
            path.unlink(missing_ok=True)
