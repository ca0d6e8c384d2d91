"""First runs: new machines that get a CVD while DNS is two or more versions ahead of it.

That may be because of a hold here or at a parent gateway, because the origin refuses or is down, or because
this gateway is offline. What DNS tells the client, the gateway may not know.

Such a freshclam installs the CVD, asks for the next patch, doesn't get it, and asks for the whole CVD again,
now on condition that it is newer (docs/protocol.md 2.5). A 304 would end the run before `main` and `bytecode`
have arrived, and the machine would stay without them. So within the same run, the CVD is sent once more:
freshclam settles for it and goes on. At later checks, a 304 doesn't keep the machine from anything vital.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clamproxy.messages import Request
from clamproxy.objects import ObjectId

LONGEST_RUN = 600.0
"""Seconds within which the second request comes; between them, freshclam loads the database to test it."""
_SWEPT_EVERY = 100
"""Machines after which what is too old is removed."""
_MOST = 2000
"""Machines that are remembered at a time: a client may invent any number of them."""


class FirstRuns:
    """Remembers which machine was just given a CVD as its first version. Quick.

    Its next request may come to another process, so each machine is a small file in the cache. If none can
    be made, such a machine goes without the other databases until its next check.

    Args:
        directory: for these files only; made when it is needed.
        clock: gives Unix seconds.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        self._count = 0
        self._is_full = False

    def note(self, request: Request, cvd: ObjectId) -> None:
        """Note that a machine without this database is given a CVD."""
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if self._count % _SWEPT_EVERY == 0:
                self._is_full = self._sweep() >= _MOST
            self._count += 1
            if not self._is_full:
                self._path(request, cvd).write_text(str(self._clock()))

    def take(self, request: Request, cvd: ObjectId) -> bool:
        """Whether the same machine was given this CVD in the same run; true only once."""
        path = self._path(request, cvd)
        with suppress(OSError, ValueError):
            given_at = float(path.read_text())
            path.unlink()  # of several processes, one succeeds
            return 0 <= self._clock() - given_at < LONGEST_RUN
        return False

    def _path(self, request: Request, cvd: ObjectId) -> Path:
        """The file that stands for a machine and a CVD."""
        text = f"{request.address}\n{cvd.file_name}\n{request.fields.get('user-agent', '')}"
        return self._directory / hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

    def _sweep(self) -> int:
        """Remove what is too old; returns how many machines are left."""
        left = 0
        for path in self._directory.iterdir():
            with suppress(OSError, ValueError):
                if 0 <= self._clock() - float(path.read_text() or self._clock()) < LONGEST_RUN:
                    left += 1
                else:
                    path.unlink()
        return left
