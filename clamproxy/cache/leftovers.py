"""Leftovers: what processes had in hand when they were killed.

Only a process that has the cache to itself can tell them from work under way, so this is part of a start.
What can be gone on with stays: partial files with content, and unpacked bundles.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clamproxy.cache.partial import sweep
from clamproxy.objects import ObjectId


def clear(partials: Path, workspaces: Path, is_published: Callable[[ObjectId], bool]) -> None:
    """Remove them. Blocks.

    Args:
        is_published: whether an object is in the cache.
    """
    sweep(partials, is_published, alone=True)
    for path in workspaces.glob("*"):
        with suppress(OSError):
            shutil.rmtree(path)
