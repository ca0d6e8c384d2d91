"""The quarantine: files that failed verification, each with the reason beside it."""

from __future__ import annotations

import time
from pathlib import Path

from clamproxy.files import sync_directory

QUARANTINE_LIMIT = 5
"""How many rejected files are kept for inspection; each may be as large as main.cvd."""


class Quarantine:
    """A directory of rejected files; the caller makes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def take(self, name: str, path: Path, reason: str) -> None:
        """Move a rejected file here for inspection. Blocks.

        Args:
            name: of the object that it was meant to be.
            path: the file.
            reason: why it was rejected, in one line.

        Raises:
            OSError: the disk can't be written to.
        """
        target = self.directory / f"{name}.{time.time_ns()}"
        path.replace(target)
        target.with_name(f"{target.name}.reason").write_text(f"{reason}\n")
        rejected = sorted(self.files(), key=lambda file: file.suffix)  # the time of its rejection
        for old in rejected[:-QUARANTINE_LIMIT]:
            # In this order, a kill in between leaves nothing that isn't found again.
            old.with_name(f"{old.name}.reason").unlink(missing_ok=True)
            old.unlink(missing_ok=True)
        sync_directory(self.directory)

    def files(self) -> list[Path]:
        """The rejected files that are still there."""
        try:
            return [path for path in self.directory.iterdir() if path.suffix != ".reason"]
        except (FileNotFoundError, NotADirectoryError):
            return []
