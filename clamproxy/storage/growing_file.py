"""A file that one thread appends to while others read it."""

from __future__ import annotations

import os
from pathlib import Path


class GrowingFile:
    """The part of a file that has arrived. Readers duplicate the descriptor, and read up to `have`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.have = 0
        """Bytes that have arrived."""

    def append(self, data: bytes) -> None:
        """Add what has arrived.

        Raises:
            OSError: for example, the disk is full.
        """
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, self.have)
            self.have += written
            view = view[written:]

    def close(self) -> None:
        """Close the descriptor, once; readers have their own."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
