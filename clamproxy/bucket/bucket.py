"""The bucket: an object store as the gateways of a site use it, within limits of time.

Whatever is wrong with the store, a call ends within seconds, with `BucketError`. After a failure, all calls
fail at once until a check in the background has found that the store can be used again. So a store
that is down costs no client any time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from clamproxy.bucket.bucket_condition import STEADY, BucketCondition
from clamproxy.bucket.bucket_errors import BucketError, in_one_line, is_panic
from clamproxy.bucket.bucket_requests import (
    STALL_LIMIT,
    BucketRequests,
    Listed,
    Stored,
    etag_of,
    open_requests,
)
from clamproxy.config.units import MIB

if TYPE_CHECKING:
    from obstore import GetResult

__all__ = ["KINDS", "Bucket", "BucketDownload", "Count", "Listed", "Stored", "open_bucket"]

KINDS = ("get", "create", "replace", "put", "list", "delete", "download", "upload", "check")
"""Of calls, as they are counted."""
type Count = Callable[[str, bool], object]

CALL_LIMIT = 3.0
"""Seconds for a call with a small document. A client may be waiting for its end."""
LIST_LIMIT = 10.0
"""Seconds for all pages of a list."""
LEAST_SPEED = MIB
"""Bytes per second below which, on average, a big object is too slow: the origin is not slower."""
CHUNK = MIB // 4
"""About how many bytes of a download are handed on at a time."""
CHECK_AFTER = 1.0
"""Seconds between a failure and the first check whether the store is back; doubles with each check."""
CHECK_AFTER_MOST = 15.0
"""The most seconds between two checks."""


class Bucket:
    """One prefix of an object store. Event loop only; owns the task that checks whether it is back.

    Args:
        requests: of the prefix.
        name: its URL, for logs and people.
        count: is told of each call: its kind, one of `KINDS`, and whether it failed.
    """

    def __init__(self, requests: BucketRequests, name: str, count: Count = lambda _, __: None) -> None:
        self._requests = requests
        self.name = name
        self.condition = BucketCondition(name)
        self._count = count
        self._check_after = CHECK_AFTER
        self._recovered_at = -STEADY
        self._unlisted: str | None = None
        """The prefix of a list that failed: a check alone would find the store usable, time and again."""
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
        return await self._call("get", CALL_LIMIT, lambda: self._requests.read(path))

    async def create(self, path: str, content: bytes) -> str | None:
        """Write a document that must not exist.

        Returns:
            Its ETag; None if it exists. That may be this very document, if the first response got lost.

        Raises:
            BucketError: the store can't be used, or it is unknown whether the document was written.
        """
        return await self._call("create", CALL_LIMIT, lambda: self._requests.write(path, content, "create"))

    async def replace(self, path: str, content: bytes, etag: str) -> str | None:
        """Write a document if the present one has this ETag.

        Returns:
            Its new ETag; None if it was changed or is gone. As with `create`, the change may be this one.

        Raises:
            BucketError: the store can't be used, or it is unknown whether the document was written.
        """
        return await self._call("replace", CALL_LIMIT, lambda: self._requests.replace(path, content, etag))

    async def put(self, path: str, content: bytes) -> str:
        """Write a document, whatever is there.

        Returns:
            Its ETag.

        Raises:
            BucketError: the store can't be used.
        """
        etag = await self._call("put", CALL_LIMIT, lambda: self._requests.write(path, content, "overwrite"))
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
        directory, is_tried = prefix.rstrip("/"), self.condition.state is None
        try:
            return await self._call("list", LIST_LIMIT, lambda: self._requests.list(directory))
        except BucketError:
            if is_tried:
                self._unlisted = directory
            raise

    async def delete(self, path: str) -> None:
        """Delete a document or object, if there is one.

        Raises:
            BucketError: the store can't be used.
        """
        await self._call("delete", CALL_LIMIT, lambda: self._requests.delete(path))

    async def open(self, path: str, limit: int) -> BucketDownload | None:
        """Begin to download an object; None if there is none.

        Args:
            limit: the most bytes it may have.

        Raises:
            BucketError: the store can't be used, or the object is larger.
        """
        result = await self._call("download", CALL_LIMIT, lambda: self._requests.open(path))
        if result is None:
            return None
        size = result.meta["size"]
        if size > limit:
            # The store is all right: somebody else has put that there.
            raise BucketError(f"{self.name}: {path} has {size} bytes, more than the {limit} it may have")
        return BucketDownload(result, size, lambda reason: self._failure("download", reason))

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
            "upload", limit, lambda: self._requests.upload(path, descriptor, size, dict(about or {}))
        )

    async def check(self) -> str | None:
        """Try what is needed with a small document of its own, also if the last call has failed.

        Returns:
            What the store can't do at all: conditional writes. None if it can.

        Raises:
            BucketError: the store can't be used.
        """
        return await self._bounded("check", 2 * CALL_LIMIT, self._requests.try_conditions)

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
        except Exception as error:
            if not is_panic(error):
                raise
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
                if missing is None and (prefix := self._unlisted) is not None:
                    await self._bounded("list", LIST_LIMIT, partial(self._requests.list, prefix))
                    self._unlisted = None
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


class BucketDownload:
    """An object on its way from the bucket: its bytes, once, by ``async for``."""

    def __init__(self, result: GetResult, size: int, failure: Callable[[str], BucketError]) -> None:
        self._result = result
        self._failure = failure
        self.size = size
        """Bytes, as the store claims."""
        self.etag = etag_of(result.meta["e_tag"])
        self.about = {name: value for name, value in result.attributes.items() if name.islower()}
        """What was kept with the object by `Bucket.upload`."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Its bytes, piece by piece: exactly `size` of them.

        Raises:
            BucketError: there are fewer or more, or they come too slowly.
        """
        loop = asyncio.get_running_loop()
        waited, received = 0.0, 0
        chunks = aiter(self._result.stream(min_chunk_size=CHUNK))
        while True:
            asked_at = loop.time()
            chunk = await self._next(chunks)
            if chunk is None:
                break
            waited += loop.time() - asked_at
            received += len(chunk)
            if received > self.size or waited > CALL_LIMIT + received / LEAST_SPEED:
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
        except Exception as error:
            if not isinstance(error, BaseError) and not is_panic(error):
                raise
            raise self._failure(in_one_line(error)) from error


def open_bucket(url: str, count: Count = lambda _, __: None) -> Bucket:
    """The bucket of a URL such as ``s3://bucket/prefix``. Asks nothing.

    Raises:
        BucketError: see `open_requests`.
    """
    return Bucket(open_requests(url), url, count)
