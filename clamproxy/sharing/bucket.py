"""The bucket: an object store as the gateways of a site use it, by obstore. Nothing else imports obstore.

Whatever is wrong with the store, a call ends within seconds, with `BucketError`. After a failure, all calls
fail at once until a check in the background has found that the store can be used again. So a store
that is down costs no client any time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clamproxy.config.units import MIB
from clamproxy.sharing.bucket_condition import BucketCondition
from clamproxy.sharing.bucket_errors import BucketError, in_one_line, is_missing_bucket

if TYPE_CHECKING:
    from obstore import GetResult, PutMode
    from obstore.store import ObjectStore

KINDS = ("get", "create", "replace", "put", "list", "delete", "download", "upload", "check")
"""Of calls, as they are counted."""
type Count = Callable[[str, bool], object]

CALL_LIMIT = 3.0
"""Seconds for a call with a small document. A client may be waiting for its end."""
LIST_LIMIT = 10.0
"""Seconds for all pages of a list."""
STALL_LIMIT = 3.0
"""Seconds without a byte after which a download has failed."""
LEAST_SPEED = MIB
"""Bytes per second below which, on average, a big object is too slow: the origin is not slower."""
LARGEST_DOCUMENT = 4 * MIB
"""Bytes of the largest document that `Bucket.get` reads."""
MOST_VERSIONS = 1000
"""Of how many documents the versions are known; those that were used last."""
PART = 8 * MIB
"""Bytes of the parts of big objects. Two of them are in memory at a time."""
CHUNK = MIB // 4
"""About how many bytes of a download are handed on at a time."""
CHECK_AFTER = 1.0
"""Seconds between a failure and the first check whether the store is back; doubles with each check."""
CHECK_AFTER_MOST = 15.0
"""The most seconds between two checks."""
STEADY = 60.0
"""Seconds without trouble, after which the next trouble counts as a new one."""

_CLIENT_OPTIONS = {
    "connect_timeout": "2s",
    "read_timeout": f"{STALL_LIMIT:g}s",
    "timeout": "1h",  # of a whole response; calls are bounded here
}
_MAX_RETRIES = 1
_RETRY_TIMEOUT = timedelta(seconds=2)
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


class Bucket:
    """One prefix of an object store. Event loop only; owns the task that checks whether it is back.

    Args:
        store: gives access to what is below the prefix.
        name: its URL, for logs and people.
        count: is told of each call: its kind, one of `KINDS`, and whether it failed.
    """

    def __init__(self, store: ObjectStore, name: str, count: Count = lambda _, __: None) -> None:
        self._store = store
        self.name = name
        self.condition = BucketCondition(name)
        self._count = count
        self._replaces_by_version = name.startswith("gs:")
        self._versions: dict[str, tuple[str, str]] = {}
        """By path: the last known ETag, and the version that Google Cloud Storage wants instead."""
        self._check_after = CHECK_AFTER
        self._recovered_at = -STEADY
        self._checks: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Find out whether the store can be used. Until that is known, it counts as usable."""
        self._begin_to_check(0)

    def stop(self) -> None:
        """Check no more. Calls that are under way go on."""
        if self._checks is not None:
            self._checks.cancel()

    async def get(self, path: str) -> Stored | None:
        """Read a small document; None if there is none.

        Raises:
            BucketError: the store can't be used.
        """
        return await self._call("get", CALL_LIMIT, lambda: self._read(path))

    async def create(self, path: str, content: bytes) -> str | None:
        """Write a document that must not exist.

        Returns:
            Its ETag; None if it exists. That may be this very document, if the first response got lost.

        Raises:
            BucketError: the store can't be used, or it is unknown whether the document was written.
        """
        return await self._call("create", CALL_LIMIT, lambda: self._write(path, content, "create"))

    async def replace(self, path: str, content: bytes, etag: str) -> str | None:
        """Write a document if the present one has this ETag.

        Returns:
            Its new ETag; None if it was changed or is gone. As with `create`, the change may be this one.

        Raises:
            BucketError: the store can't be used, or it is unknown whether the document was written.
        """
        return await self._call("replace", CALL_LIMIT, lambda: self._replace(path, content, etag))

    async def put(self, path: str, content: bytes) -> str:
        """Write a document, whatever is there.

        Returns:
            Its ETag.

        Raises:
            BucketError: the store can't be used.
        """
        etag = await self._call("put", CALL_LIMIT, lambda: self._write(path, content, "overwrite"))
        if etag is None:
            raise self._failure("put", "it refused to overwrite a document")
        return etag

    async def list(self, prefix: str) -> dict[str, Listed]:
        """What is below a prefix of whole path segments, such as ``objects/daily``; all pages.

        Returns:
            By the path below the prefix.

        Raises:
            BucketError: the store can't be used.
        """
        return await self._call("list", LIST_LIMIT, lambda: self._list(prefix.rstrip("/")))

    async def delete(self, path: str) -> None:
        """Delete a document or object, if there is one.

        Raises:
            BucketError: the store can't be used.
        """
        await self._call("delete", CALL_LIMIT, lambda: self._delete(path))

    async def open(self, path: str, limit: int) -> Download | None:
        """Begin to download an object; None if there is none.

        Args:
            limit: the most bytes it may have.

        Raises:
            BucketError: the store can't be used, or the object is larger.
        """
        result = await self._call("download", CALL_LIMIT, lambda: self._open(path))
        if result is None:
            return None
        size = result.meta["size"]
        if size > limit:
            # The store is all right: somebody else has put that there.
            raise BucketError(f"{self.name}: {path} has {size} bytes, more than the {limit} it may have")
        return Download(result, size, lambda reason: self._failure("download", reason))

    async def upload(self, path: str, descriptor: int, about: Mapping[str, str] | None = None) -> bool:
        """Upload a complete file, unless there is an object under this path.

        It may take as long as at `LEAST_SPEED`.

        Args:
            descriptor: of the file, open for reading; its position stays.
            about: what to keep with the object, in ASCII; names of lower-case letters only.

        Returns:
            Whether it was uploaded.

        Raises:
            BucketError: the store can't be used.
            OSError: the file can't be read.
        """
        size = os.fstat(descriptor).st_size
        limit = CALL_LIMIT + size / LEAST_SPEED
        return await self._call(
            "upload", limit, lambda: self._upload(path, descriptor, size, dict(about or {}))
        )

    async def check(self) -> str | None:
        """Try what is needed with a small document of its own, also if the last call has failed.

        Returns:
            What the store can't do at all: conditional writes. None if it can.

        Raises:
            BucketError: the store can't be used.
        """
        return await self._bounded("check", 2 * CALL_LIMIT, self._try_conditions)

    async def _call[T](self, kind: str, limit: float, call: Callable[[], Awaitable[T]]) -> T:
        if (trouble := self.condition.state) is not None:
            raise BucketError(trouble.reason)
        try:
            return await self._bounded(kind, limit, call)
        except BucketError as error:
            self._note_failure(str(error))
            raise BucketError(f"{self.name}: {error}") from error

    async def _bounded[T](self, kind: str, limit: float, call: Callable[[], Awaitable[T]]) -> T:
        """Make one call, and count it. Any error of the store becomes a `BucketError`."""
        from obstore.exceptions import BaseError

        try:
            async with asyncio.timeout(limit):
                result = await call()
        except TimeoutError:
            reason = f"no response within {limit:.0f} seconds"
        except BucketError as error:
            reason = str(error)
        except (BaseError, FileNotFoundError, NotImplementedError, ValueError) as error:
            reason = in_one_line(error)
        else:
            self._count(kind, False)
            return result
        self._count(kind, True)
        raise BucketError(f"{kind} failed: {reason}")

    def _failure(self, kind: str, reason: str) -> BucketError:
        """Note a failure that was seen outside of `_call`."""
        self._count(kind, True)
        self._note_failure(f"{kind} failed: {reason}")
        return BucketError(f"{self.name}: {kind} failed: {reason}")

    def _note_failure(self, reason: str) -> None:
        self.condition.failed(reason)
        if self._checks is None or self._checks.done():
            if asyncio.get_running_loop().time() - self._recovered_at > STEADY:
                self._check_after = CHECK_AFTER
            self._begin_to_check(self._check_after)

    def _begin_to_check(self, after: float) -> None:
        self._checks = asyncio.get_running_loop().create_task(
            self._check_until_usable(after), name="checks of the object store"
        )

    async def _check_until_usable(self, after: float) -> None:
        """Check until the outcome is clear: the store can be used, or will never be."""
        while True:
            await asyncio.sleep(after)
            try:
                missing = await self.check()
            except BucketError as error:
                self.condition.failed(str(error))
                self._check_after = after = min(2 * self._check_after, CHECK_AFTER_MOST)
                continue
            if missing is None:
                self._recovered_at = asyncio.get_running_loop().time()
                self.condition.recovered()
            else:
                self.condition.failed(missing, is_lasting=True)
            return

    async def _read(self, path: str) -> Stored | None:
        result = await self._open(path)
        if result is None:
            return None
        meta = result.meta
        if meta["size"] > LARGEST_DOCUMENT:
            raise BucketError(f"{path} has {meta['size']} bytes")
        content = bytes(await result.buffer_async())
        if len(content) != meta["size"]:
            raise BucketError(f"{path} has {len(content)} bytes, not the {meta['size']} it should have")
        etag = _etag(meta["e_tag"])
        self._remember(path, etag, meta["version"])
        return Stored(content, etag, meta["last_modified"].timestamp())

    async def _open(self, path: str) -> GetResult | None:
        import obstore

        try:
            return await obstore.get_async(self._store, path)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise
            return None

    async def _write(self, path: str, content: bytes, mode: PutMode, **options: Any) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            result = await obstore.put_async(
                self._store, path, content, mode=mode, use_multipart=False, **options
            )
        except (AlreadyExistsError, PreconditionError):
            return None
        etag = _etag(result["e_tag"])
        self._remember(path, etag, result["version"])
        return etag

    async def _replace(self, path: str, content: bytes, etag: str) -> str | None:
        if not self._replaces_by_version:
            return await self._write(path, content, {"e_tag": etag})
        if self._versions.get(path, ("", ""))[0] != etag:
            await self._read(path)
        known, version = self._versions.get(path, ("", ""))
        return (
            await self._write(path, content, {"e_tag": etag, "version": version}) if known == etag else None
        )

    def _remember(self, path: str, etag: str, version: str | None) -> None:
        self._versions.pop(path, None)
        if version is not None and self._replaces_by_version:
            self._versions[path] = (etag, version)
            if len(self._versions) > MOST_VERSIONS:
                del self._versions[next(iter(self._versions))]

    async def _list(self, prefix: str) -> dict[str, Listed]:
        import obstore

        found = await obstore.list(self._store, prefix).collect_async()
        return {
            meta["path"].removeprefix(f"{prefix}/"): Listed(
                _etag(meta["e_tag"]), meta["size"], meta["last_modified"].timestamp()
            )
            for meta in found
        }

    async def _delete(self, path: str) -> None:
        import obstore

        try:
            await obstore.delete_async(self._store, path)
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise

    async def _upload(self, path: str, descriptor: int, size: int, about: dict[str, str]) -> bool:
        import obstore

        if size <= PART:
            content = await asyncio.to_thread(os.pread, descriptor, size, 0)
            return await self._write(path, content, "create", attributes=about) is not None
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

    async def _try_conditions(self) -> str | None:
        path = f"checks/{secrets.token_hex(8)}"
        first = await self._write(path, b"1", "create")
        if first is None:
            raise BucketError("a document of random name exists already")
        try:
            return await self._find_missing(path, first)
        finally:
            await self._delete(path)

    async def _find_missing(self, path: str, first: str) -> str | None:
        """What the store can't do with a document that has just been written, with this ETag."""
        if await self._write(path, b"2", "create") is not None:
            return "it has no create-only writes (If-None-Match: *), which leases need"
        second = await self._replace(path, b"3", first)
        if second is None or await self._replace(path, b"4", first) is not None:
            return "it has no conditional replacement (If-Match), which leases need"
        read = await self._read(path)
        if read is None or (read.content, read.etag) != (b"3", second):
            raise BucketError("it doesn't give back what was written")
        return None


class Download:
    """An object on its way from the bucket: its bytes, once, by ``async for``."""

    def __init__(self, result: GetResult, size: int, failure: Callable[[str], BucketError]) -> None:
        self._result = result
        self._failure = failure
        self.size = size
        """Bytes, as the store claims."""
        self.etag = _etag(result.meta["e_tag"])
        self.about = {name: value for name, value in result.attributes.items() if name.islower()}
        """What was kept with the object by `Bucket.upload`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Its bytes, piece by piece: exactly `size` of them.

        Raises:
            BucketError: there are fewer or more, or they come too slowly.
        """
        loop = asyncio.get_running_loop()
        began, received = loop.time(), 0
        chunks = aiter(self._result.stream(min_chunk_size=CHUNK))
        while True:
            chunk = await self._next(chunks)
            if chunk is None:
                break
            received += len(chunk)
            if received > self.size or loop.time() - began > CALL_LIMIT + received / LEAST_SPEED:
                break
            yield bytes(chunk)
        if received < self.size:
            raise self._failure(f"only {received} of {self.size} bytes came in time")
        if received > self.size:
            raise self._failure(f"more bytes came than the {self.size} there should be")

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        from obstore.exceptions import BaseError

        try:
            async with asyncio.timeout(CALL_LIMIT + STALL_LIMIT):
                return await anext(chunks, None)
        except TimeoutError:
            raise self._failure(f"no byte within {CALL_LIMIT + STALL_LIMIT:.0f} seconds") from None
        except BaseError as error:
            raise self._failure(in_one_line(error)) from error


def open_bucket(url: str, count: Count = lambda _, __: None) -> Bucket:
    """The bucket of a URL such as ``s3://bucket/prefix``. Asks nothing.

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
    # Client options displace those that the environment sets.
    options = _CLIENT_OPTIONS | {"allow_http": _is_set(_ALLOW_HTTP[kind])}
    # Not every S3-compatible store has bulk deletes.
    config = {"aws_disable_bulk_delete": "true"} if kind == "s3" else None
    retries = {"max_retries": _MAX_RETRIES, "retry_timeout": _RETRY_TIMEOUT}
    try:
        store = from_url(url, config=config, client_options=options, retry_config=retries)  # type: ignore[call-overload]
    except (BaseError, ValueError) as error:
        raise BucketError(f"{url}: {in_one_line(error)}") from None
    return Bucket(store, url, count)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def _etag(etag: str | None) -> str:
    """An ETag as in a response's header: Azure's and rclone's lists give it without quotes."""
    if not etag:
        raise BucketError("it gives no ETag")
    return etag if etag.endswith('"') else f'"{etag}"'
