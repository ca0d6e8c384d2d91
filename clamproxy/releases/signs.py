"""Signs: the cached ``.sign`` files, each held against the file that it signs before it is handed out.

freshclam 1.5 takes a signature of another file for an attack, while it goes on without one
(protocol.md 6). A signature may come before its file, and what another version of clamproxy put into
the cache was never compared. So this is done again when a signature is asked for, once in a process.
"""

from __future__ import annotations

import logging
from functools import partial

from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.inspection import inspect, reject
from clamproxy.objects import ObjectId
from clamproxy.single_flight import SingleFlight
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)


type _Pair = tuple[Metadata | None, ...]
"""The metadata of a signature and of its file, which differ from those of earlier files with their names."""


class Signs:
    """Knows which signatures belong to their files. Event loop only."""

    def __init__(self, store: Store, keys: TrustedKeys) -> None:
        """Start without any; the store is read when one is asked for.

        Args:
            store: where signatures and files are; other processes may add to it.
            keys: whose signatures count.
        """
        self._store = store
        self._keys = keys
        self._proven: dict[ObjectId, _Pair] = {}
        self._examinations = SingleFlight[ObjectId, None]("examine")

    async def examine(self, signature: ObjectId) -> None:
        """Drop a signature from the cache if it turns out to be damaged, or another file's.

        Quick, but for the first call once the signature and its file are here: that reads the file,
        in a thread. Others wait for the same reading; it goes on when they leave.
        """
        pair = self._pair(signature)
        if None in pair or pair == self._proven.get(signature):
            return
        await self._examinations.run(signature, partial(self._examine_in_thread, signature))

    async def examine_all(self) -> None:
        """The same for all signatures that are here."""
        for object_id in sorted(self._store.object_ids()):
            if object_id.kind.is_signature:
                await self.examine(object_id)

    def is_proven(self, signature: ObjectId) -> bool:
        """Whether a signature is here, its file is, too, and they have been compared. Quick."""
        pair = self._pair(signature)
        return None not in pair and pair == self._proven.get(signature)

    def _pair(self, signature: ObjectId) -> _Pair:
        return self._store.metadata(signature, signature.signed)

    async def _examine_in_thread(self, signature: ObjectId) -> None:
        await in_thread(f"clamproxy-sign-{signature.database}", lambda: self._examine(signature))

    def _examine(self, signature: ObjectId) -> None:
        try:
            pair = self._pair(signature)
            finding = inspect(self._store, signature, self._keys)
            if finding is None or None in pair:
                return
            if finding.is_damaged:
                name = signature.file_name
                logger.warning("%s was wrong, and has been dropped from the cache: %s", name, finding.problem)
                reject(self._store, finding)
            elif finding.problem is None:
                self._proven[signature] = pair
        finally:
            self._store.disconnect()
