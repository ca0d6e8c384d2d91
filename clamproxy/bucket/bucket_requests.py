"""Requests to an object store, by obstore: what the bucket does, without its limits of time.

Nothing else imports obstore. Its errors are the caller's to explain, with `bucket_errors`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clamproxy.bucket.bucket_errors import BucketError, in_one_line, is_missing_bucket
from clamproxy.config.units import BASE_URL, MIB

if TYPE_CHECKING:
    from obstore import GetResult, PutMode
    from obstore.store import ObjectStore

STALL_LIMIT = 3.0
"""Seconds without a byte after which a request has failed."""
LARGEST_DOCUMENT = 4 * MIB
"""Bytes of the largest document that is read. One that is larger reads like an empty one."""
MOST_LISTED = 20_000
"""Names below a prefix, at most: a site has some hundred objects, and fewer documents."""
_PAGE = 1000
MOST_VERSIONS = 1000
"""Of how many documents the versions are known; those that were used last."""
PART = 8 * MIB
"""Bytes of the parts of big objects. Two of them are in memory at a time."""

_CLIENT_OPTIONS = {
    "connect_timeout": "2s",
    "read_timeout": f"{STALL_LIMIT:g}s",
    "timeout": "1h",  # of a whole response; calls are bounded here
}
_MAX_RETRIES = 1
_RETRY_TIMEOUT = timedelta(seconds=2)
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_VARIABLES = {"s3": "AWS_", "az": "AZURE_"}
"""How the names of the variables begin that obstore reads. Google's may hold JSON in several lines."""
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
"""Which variable allows http:// endpoints."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A small document."""

    content: bytes
    etag: str
    modified: float
    """When it was written, by the store's clock, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Listed:
    etag: str
    size: int
    modified: float
    """When it was written, by the store's clock, in Unix seconds."""


class BucketRequests:
    """Of one prefix of an object store. Event loop only.

    Args:
        store: gives access to what is below the prefix.
        replaces_by_version: whether it is Google Cloud Storage, which wants a version instead of an ETag.
    """

    def __init__(self, store: ObjectStore, *, replaces_by_version: bool = False) -> None:
        self._store = store
        self._replaces_by_version = replaces_by_version
        self._versions: dict[str, tuple[str, str]] = {}
        """By path: the last known ETag, and the version."""

    async def read(self, path: str) -> Stored | None:
        """A small document; None if there is none. One that is too large reads like an empty one."""
        result = await self.open(path)
        if result is None:
            return None
        meta = result.meta
        etag = etag_of(meta["e_tag"])
        if meta["size"] > LARGEST_DOCUMENT:
            # Somebody else has put that there: no document, and no failure of the store either.
            return Stored(b"", etag, meta["last_modified"].timestamp())
        content = bytes(await result.buffer_async())
        if len(content) != meta["size"]:
            raise BucketError(f"{path} has {len(content)} bytes, not the {meta['size']} it should have")
        self._remember(path, etag, meta["version"])
        return Stored(content, etag, meta["last_modified"].timestamp())

    async def open(self, path: str) -> GetResult | None:
        """The beginning of an object; None if there is none."""
        import obstore

        try:
            return await obstore.get_async(self._store, path)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise
            return None

    async def write(self, path: str, content: bytes, mode: PutMode, **options: Any) -> str | None:
        """Write all of it at once; None if what is there doesn't allow it. Returns the ETag."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            result = await obstore.put_async(
                self._store, path, content, mode=mode, use_multipart=False, **options
            )
        except (AlreadyExistsError, PreconditionError):
            return None
        etag = etag_of(result["e_tag"])
        self._remember(path, etag, result["version"])
        return etag

    async def replace(self, path: str, content: bytes, etag: str) -> str | None:
        """Write a document if the present one has this ETag; None if it hasn't. Returns the new ETag."""
        if not self._replaces_by_version:
            return await self.write(path, content, {"e_tag": etag})
        if self._versions.get(path, ("", ""))[0] != etag:
            await self.read(path)
        known, version = self._versions.get(path, ("", ""))
        return await self.write(path, content, {"e_tag": etag, "version": version}) if known == etag else None

    def _remember(self, path: str, etag: str, version: str | None) -> None:
        self._versions.pop(path, None)
        if version is not None and self._replaces_by_version:
            self._versions[path] = (etag, version)
            if len(self._versions) > MOST_VERSIONS:
                del self._versions[next(iter(self._versions))]

    async def list(self, prefix: str) -> dict[str, Listed]:
        """Everything below a prefix, by the rest of its path."""
        import obstore

        found: dict[str, Listed] = {}
        async for page in obstore.list(self._store, prefix, chunk_size=_PAGE):
            for meta in page:
                listed = Listed(etag_of(meta["e_tag"]), meta["size"], meta["last_modified"].timestamp())
                found[meta["path"].removeprefix(f"{prefix}/")] = listed
            if len(found) > MOST_LISTED:
                raise BucketError(f"more than {MOST_LISTED:,} names are below {prefix}")
        return found

    async def delete(self, path: str) -> None:
        import obstore

        try:
            await obstore.delete_async(self._store, path)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise

    async def upload(self, path: str, descriptor: int, size: int, about: dict[str, str]) -> bool:
        """Upload a file unless there is an object; returns whether there was none."""
        import obstore

        if size <= PART:
            content = await asyncio.to_thread(os.pread, descriptor, size, 0)
            return await self.write(path, content, "create", attributes=about) is not None
        try:
            await obstore.head_async(self._store, path)
        except FileNotFoundError:
            # Create-only uploads would have to be in memory as a whole. Two gateways that both get here
            # upload the same bytes, and either of them is whole.
            await obstore.put_async(
                self._store,
                path,
                Path(f"/proc/self/fd/{descriptor}"),
                attributes=about,
                use_multipart=True,
                chunk_size=PART,
                max_concurrency=2,
            )
            return True
        return False

    async def try_conditions(self) -> str | None:
        """Try conditional writes with a document of random name, and a list; see `Bucket.check`."""
        name = secrets.token_hex(8)
        path = f"checks/{name}"
        first = await self.write(path, b"1", "create")
        if first is None:
            raise BucketError("a document of random name exists already")
        try:
            missing = await self._find_missing(path, first)
            if missing is None and name not in await self.list("checks"):
                raise BucketError("its lists lack what was written")
        finally:
            await self.delete(path)
        return missing

    async def _find_missing(self, path: str, first: str) -> str | None:
        """What the store can't do with a document that has just been written, with this ETag."""
        if await self.write(path, b"2", "create") is not None:
            return "it has no create-only writes (If-None-Match: *), which leases need"
        second = await self.replace(path, b"3", first)
        if second is None or await self.replace(path, b"4", first) is not None:
            return "it has no conditional replacement (If-Match), which leases need"
        read = await self.read(path)
        if read is None or (read.content, read.etag) != (b"3", second):
            raise BucketError("it doesn't give back what was written")
        return None


def open_requests(url: str) -> BucketRequests:
    """Access to what is below a URL such as ``s3://bucket/prefix``. Asks nothing.

    The environment gives credentials, region and endpoint: ``AWS_...``, ``GOOGLE_...`` or ``AZURE_...``.

    Raises:
        BucketError: obstore isn't installed, or can't use the URL or the environment.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise BucketError("obstore isn't installed: pip install clamproxy[fleet]") from None

    kind = url.partition(":")[0]
    _check_endpoints(kind)
    _check_variables(kind)
    # Client options displace those that the environment sets.
    options = _CLIENT_OPTIONS | {"allow_http": _is_set(_ALLOW_HTTP[kind])}
    # Not every S3-compatible store has bulk deletes.
    config = {"aws_disable_bulk_delete": "true"} if kind == "s3" else None
    retries = {"max_retries": _MAX_RETRIES, "retry_timeout": _RETRY_TIMEOUT}
    try:
        store = from_url(url, config=config, client_options=options, retry_config=retries)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise BucketError(in_one_line(error)) from None
    atexit.unregister(_let_threads_end)
    atexit.register(_let_threads_end)
    return BucketRequests(store, replaces_by_version=kind == "gs")


def _check_endpoints(kind: str) -> None:
    """Refuse what is no URL; obstore would panic at its first request (measured with 0.12)."""
    for variable in _ENDPOINTS[kind]:
        endpoint = os.environ.get(variable, "https://")
        if not endpoint.startswith(("http://", "https://")):
            raise BucketError(f"the environment variable {variable} must begin with https:// or http://")
        if variable in os.environ:
            try:
                BASE_URL.parse(endpoint)
            except ValueError as error:
                raise BucketError(f"the environment variable {variable} must be {error}") from None


def _check_variables(kind: str) -> None:
    """Refuse a line break, which a key from a file often ends with: obstore would panic, too.

    Raises:
        BucketError: with the name of the variable, but not its value.
    """
    for name, value in os.environ.items():
        if kind in _VARIABLES and name.startswith(_VARIABLES[kind]) and not value.isprintable():
            raise BucketError(f"the environment variable {name} has a line break or a control character")


def _let_threads_end() -> None:
    """Let obstore's threads finish with the last call: while Python ends, they would abort the process.

    Without this, 7 of 12 processes that ended right after a failed call did; with it, none.
    """
    time.sleep(0.05)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def etag_of(etag: str | None) -> str:
    """An ETag as in a response's header: Azure's and rclone's lists give it without quotes."""
    if not etag:
        raise BucketError("it gives no ETag")
    return etag if etag.endswith('"') else f'"{etag}"'
