"""Signs: cached ``.sign`` files, each checked against the file that it signs before it is served.

freshclam 1.5 treats a signature of another file as an attack, while it accepts a missing one
(docs/protocol.md 6). A signature may arrive before its file, and what another version of clamproxy cached was
never compared. So a signature is checked when it is first asked for, once per process.
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
"""The metadata of a signature and of its file. They differ from those of earlier files of the same names."""


class Signs:
    """Knows which signatures belong to their files. Event loop only.

    Args:
        store: where signatures and files are; other processes may add to it.
    """

    def __init__(self, store: Store, keys: TrustedKeys) -> None:
        self._store = store
        self._keys = keys
        self._proven: dict[ObjectId, _Pair] = {}
        self._examinations = SingleFlight[ObjectId, None]("examine")

    async def examine(self, signature: ObjectId) -> None:
        """Drop a signature from the cache if it is damaged or belongs to another file.

        Quick, except for the first call once both the signature and its file are here: the file is then
        read in a thread. Concurrent calls share that work, which cancelling them doesn't stop.
        """
        pair = self._pair(signature)
        if None in pair or pair == self._proven.get(signature):
            return
        await self._examinations.run(signature, partial(self._examine_in_thread, signature))

    async def examine_all(self) -> None:
        """Like `examine`, for all cached signatures."""
        for object_id in sorted(self._store.object_ids()):
            if object_id.kind.is_signature:
                await self.examine(object_id)

    def is_proven(self, signature: ObjectId) -> bool:
        """Whether both a signature and its file are here and have been compared. Quick."""
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
                remaining = {one: known for one, known in self._proven.items() if self._store.has(one)}
                self._proven = remaining | {signature: pair}
        finally:
            self._store.disconnect()
