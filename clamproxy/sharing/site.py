"""What a process shares: leases on its machine and, with an object store, in its site."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from clamproxy.bucket.bucket import Bucket, Count, open_bucket
from clamproxy.bucket.bucket_condition import BucketTrouble
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.cache.store import Store
from clamproxy.config.loading import ConfigurationError
from clamproxy.leases.bucket_leases import BucketLeases
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.leases.leases import Leases
from clamproxy.leases.site_leases import SiteLeases
from clamproxy.notes import Notes
from clamproxy.sharing.shared_objects import SharedObjects

TOPIC = "fleet_store"
CONDITION = "condition"
"""The key of the note on the object store's condition, for `clamproxy stats`."""


class Site:
    """Owns the bucket, the leases, and the uploads. Made and stopped on the event loop.

    Args:
        url: of the object store; None: the machine is a site of its own.
        store: the cache. The machine's leases are in its directory, and its objects are uploaded.
        notes: on `TOPIC`.
        count: is told of each call to the object store.

    Raises:
        ConfigurationError: the URL can't be used with this environment.
    """

    def __init__(self, url: str | None, store: Store, notes: Notes, count: Count) -> None:
        self.bucket = None if url is None else _opened(url, count)
        self.machine: Leases = DirectoryLeases(store.directory)
        """Of the workers of this machine alone, for what each machine does for itself."""
        self.leases: Leases = self.machine
        """Of the workers of this machine and, with an object store, of its site."""
        self.objects: SharedObjects | None = None
        """ClamAV's objects in the object store; None if there is none."""
        self._notes = notes
        if self.bucket is not None:
            gateway = BucketLeases(self.bucket, socket.gethostname())
            self.leases = SiteLeases(self.machine, gateway, lambda: self.trouble is not None)
            self.bucket.condition.changed = self._note_condition
            self.objects = SharedObjects(self.bucket, self.leases, store)

    def start(self) -> None:
        """Find out whether the object store can be used."""
        self._note_condition()
        if self.bucket is not None:
            self.bucket.start()

    async def settle(self) -> None:
        """Wait until everything is in the object store that was to be put there."""
        if self.objects is not None:
            await self.objects.settle()

    def stop(self) -> None:
        """End uploads and give up all leases, within milliseconds."""
        if self.objects is not None:
            self.objects.stop()
        self.leases.stop()
        if self.bucket is not None:
            self.bucket.stop()

    @property
    def trouble(self) -> BucketTrouble | None:
        """What is wrong with the object store; None if nothing is, or if there is none."""
        return self.bucket.condition.state if self.bucket is not None else None

    def figures(self) -> Mapping[str, Any] | None:
        """The object store as in status.json, without the counters; None if there is none."""
        if self.bucket is None:
            return None
        trouble = self.trouble
        return {
            "url": self.bucket.name,
            "failure": trouble.reason if trouble is not None else None,
            "since": trouble.since if trouble is not None else None,
        }

    def _note_condition(self) -> None:
        """For other processes. Without an object store, what an earlier configuration has left is removed."""
        figures = self.figures()
        if figures is None:
            self._notes.forget(CONDITION)
        else:
            self._notes.save(CONDITION, figures)


async def require_usable(url: str) -> None:
    """Refuse an object store that can't do what is needed. Takes some seconds at most.

    One that can't be reached is no reason to stop: the gateway serves alone, says so, and tries again.

    Raises:
        ConfigurationError: it has no conditional writes, or the URL can't be used with this environment.
    """
    bucket = _opened(url)
    missing = None
    with suppress(BucketError):
        missing = await bucket.check()
    if missing is not None:
        raise ConfigurationError(f"fleet_store is {url}; expected another object store: {missing}")


def _opened(url: str, count: Count = lambda _, __: None) -> Bucket:
    try:
        return open_bucket(url, count)
    except BucketError as error:
        raise ConfigurationError(f"fleet_store is {url}, which can't be used: {error}") from None
