"""This gateway's id within the site, and its document in the object store, which nobody else writes."""

from __future__ import annotations

import logging
import secrets
import socket
import time

from clamproxy.bucket.bucket import Bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.clock import Clock
from clamproxy.sharing.gateway_document import DocumentError, GatewayDocument, is_id, life_of, path_of
from clamproxy.sharing.topics import Notes
from clamproxy.storage.records import Records
from clamproxy.threads import in_thread

logger = logging.getLogger(__name__)

_NOTE = "gateway/"
_KEY = "id"
_TRIES = 3


class OwnDocument:
    """Writes this gateway's document. Event loop only.

    The id is random, and kept in the state directory. If that is copied, say with a virtual machine, both
    gateways would write the same document. Each writes it only if it is still as it left it, so the first
    one that finds something else takes a new id.

    Args:
        records: where the id is kept.
    """

    def __init__(self, bucket: Bucket, records: Records, clock: Clock = time) -> None:
        self._bucket = bucket
        self._records = records
        self._clock = clock
        self.id: str | None = None
        """None until it is needed for the first time."""
        self._etag: str | None = None
        """Of the document as far as known; None if there is none."""
        self._has_written = False

    async def write(self, notes: Notes) -> None:
        """Tell the others what this gateway knows.

        Raises:
            BucketError: it couldn't be written.
        """
        life = life_of(self._records.directory)
        for _ in range(_TRIES):
            path = path_of(await self.find_id())
            content = GatewayDocument(socket.gethostname(), life, self._clock.time(), notes).encode()
            if self._etag is None:
                self._etag = await self._bucket.create(path, content)
            else:
                self._etag = await self._bucket.replace(path, content, self._etag)
            if self._etag is not None:
                self._has_written = True
                return
            await self._find_out_who_wrote(path, life)
        raise BucketError(f"others keep writing {path}")

    async def find_id(self) -> str:
        if self.id is None:
            self.id = await in_thread("clamproxy-exchange", self._noted_id)
        return self.id

    async def _find_out_who_wrote(self, path: str, life: str) -> None:
        """There is a document that this object hasn't written: this gateway's earlier one, or its clone's."""
        stored = await self._bucket.get(path)
        if stored is None:
            return
        self._etag = stored.etag
        try:
            is_own = GatewayDocument.parse(stored.content).life == life
        except DocumentError:
            is_own = False
        if self._has_written and not is_own:
            self.id, self._etag = await in_thread("clamproxy-exchange", self._new_id), None
            self._has_written = False
            logger.warning(
                "Another gateway of the site has a copy of this one's state directory; the id of this one is "
                "%s from now on.",
                self.id,
            )

    def _noted_id(self) -> str:
        noted = self._records.notes(_NOTE).get(_KEY)
        return noted if isinstance(noted, str) and is_id(noted) else self._new_id()

    def _new_id(self) -> str:
        new = secrets.token_hex(8)
        self._records.set_note(_NOTE + _KEY, new)
        return new
