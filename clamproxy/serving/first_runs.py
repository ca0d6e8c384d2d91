"""First runs: new machines that get a held CVD while DNS is two or more versions ahead of it.

Such a freshclam installs the CVD, asks for the next patch, gets 404, and asks for the whole CVD again, now
on condition that it is newer (docs/protocol.md 2.5). A 304 would end the run before `main` and `bytecode`
have arrived, and the machine would stay without them. So within the same run, the CVD is sent once more:
freshclam settles for it and goes on. At later checks, a 304 doesn't keep the machine from anything vital.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from clamproxy.messages import Request
from clamproxy.objects import ObjectId

LONGEST_RUN = 600.0
"""Seconds within which the second request comes; between them, freshclam loads the database to test it."""
_MOST = 1000

type _Key = tuple[str, str, ObjectId]


class FirstRuns:
    """Remembers who was just given a CVD as its first version. Event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: OrderedDict[_Key, float] = OrderedDict()

    def note(self, request: Request, cvd: ObjectId) -> None:
        """Note that a machine without this database is given a CVD."""
        self._given[_key(request, cvd)] = self._clock()
        while len(self._given) > _MOST:
            self._given.popitem(last=False)

    def take(self, request: Request, cvd: ObjectId) -> bool:
        """Whether the same machine was given this CVD in the same run; true only once."""
        given_at = self._given.pop(_key(request, cvd), None)
        return given_at is not None and self._clock() - given_at < LONGEST_RUN


def _key(request: Request, cvd: ObjectId) -> _Key:
    return request.address, request.fields.get("user-agent", ""), cvd
