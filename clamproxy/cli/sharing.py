"""What commands do with the site's object store, whether or not the proxy is running."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from clamproxy.bucket.bucket import open_bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.cache.store import Store
from clamproxy.cli.common import tell
from clamproxy.config.settings import Settings
from clamproxy.leases.leases import ALONE
from clamproxy.objects import ObjectId
from clamproxy.readable import shown_count
from clamproxy.sharing.shared_objects import SharedObjects


def give(settings: Settings, store: Store, objects: Iterable[ObjectId]) -> None:
    """Upload what was just put into the cache, if there is an object store, and tell what came of it."""
    if settings.fleet_store is None:
        return
    try:
        missing = asyncio.run(_upload(store, settings.fleet_store, list(objects)))
    except BucketError as error:
        missing = str(error)
    if missing is not None:
        tell(f"Not everything is in the object store yet: {missing}. A running gateway puts it there later.")


async def _upload(store: Store, url: str, objects: list[ObjectId]) -> str | None:
    """Upload objects, a few at a time; returns why that was not possible for all."""
    bucket = open_bucket(url)
    shared = SharedObjects(bucket, ALONE, store)
    try:
        count = sum(await asyncio.gather(*map(shared.upload, objects)))
        tell(f"{shown_count(count, 'object')} can be taken from the object store by other gateways.")
        trouble = bucket.condition.state
        return trouble.reason if trouble is not None else None
    finally:
        shared.stop()
        bucket.stop()
