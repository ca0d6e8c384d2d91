"""Inspection: whether what the cache holds is still what ClamAV signed. Blocks.

Safe while the proxy runs: an object that goes meanwhile is no finding, and one that was replaced
since it was looked at stays.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.formats.codesign import verify_sign
from clamproxy.formats.cvd import PayloadDigest
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.formats.verification import verify
from clamproxy.objects import ObjectId

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EINTR)
"""Errors that tell of this process, not of the file."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What was found out about one object."""

    object_id: ObjectId
    size: int
    """Bytes; 0 if there is no file of the right length."""
    problem: str | None = None
    """What is wrong, one line; None if all is well."""
    is_damaged: bool = False
    """Whether the object is bad for sure; else it could not be checked."""
    inode: int | None = None
    """Of its file, if there is one."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file in the quarantine."""

    path: Path
    name: str
    """Of the object that it was meant to be."""
    at: float
    """When it was put there, Unix seconds."""
    size: int
    """Bytes."""
    reason: str


def prove(
    store: Store,
    path: Path,
    object_id: ObjectId,
    keys: TrustedKeys,
    payload: PayloadDigest | None = None,
) -> None:
    """As `verify`, and hold a ``.sign`` against the file that it signs, if the cache has that file.

    Where it doesn't, a signature is only known to be undamaged. It is held against its file when both
    are here; see `clamproxy.releases.signs`.

    Args:
        store: the cache.
        path: the file, inside the cache or on its way there.
        object_id: the object that it must be.
        keys: whose signatures count.
        payload: of a CVD, if it was taken while the file grew.

    Raises:
        InvalidObject: it is something else, or damaged.
        OSError: the file can't be read.
    """
    verify(path, object_id, keys, payload)
    signed = store.open(object_id.signed) if object_id.kind.is_signature else None
    if signed is None:
        return
    with signed, path.open("rb") as file, open(signed.fileno(), "rb", closefd=False) as content:
        try:
            verify_sign(file, object_id, content)
        except InvalidObject:
            # A file that is damaged itself says nothing about its signature.
            if not _check(store, signed, keys).is_damaged:
                raise


def belongs(store: Store, signature: ObjectId) -> bool:
    """Whether the cache has a ``.sign``, and the file that it signs. Reads both."""
    with ExitStack() as stack:
        streams = []
        for published in (store.open(signature), store.open(signature.signed)):
            if published is not None:
                stack.enter_context(published)
                streams.append(stack.enter_context(open(published.fileno(), "rb", closefd=False)))
        if len(streams) < 2:
            return False
        try:
            verify_sign(streams[0], signature, streams[1])
        except InvalidObject:
            return False
        return True


def listed(store: Store, databases: Collection[str] = ()) -> list[ObjectId]:
    """All objects that the index names, sorted; what it holds no readable file of included.

    Args:
        store: the cache.
        databases: only these; all if there are none.
    """
    names = store.object_ids()
    return sorted(name for name in names if not databases or name.database in databases)


def inspect(store: Store, object_id: ObjectId, keys: TrustedKeys) -> Inspected | None:
    """Check one object's length and signature.

    Args:
        store: the cache.
        object_id: the object.
        keys: whose signatures count.

    Returns:
        None if the cache doesn't hold the object any more.
    """
    try:
        published = store.open(object_id)
    except OSError as error:
        return _unreadable(object_id, 0, None, error)
    if published is None:
        if not store.has(object_id):
            return None
        problem = "its file is lost, or has another length than was published"
        return Inspected(object_id, 0, problem, is_damaged=True)
    with published:
        return _check(store, published, keys)


def inspect_all(
    store: Store,
    names: Collection[ObjectId],
    keys: TrustedKeys,
    progress: Callable[[ObjectId], object] = lambda _: None,
) -> Iterator[Inspected]:
    """Check these objects, one after the other.

    Args:
        store: the cache.
        names: the objects.
        keys: whose signatures count.
        progress: called with each object that has been looked at, or was gone.
    """
    for name in names:
        finding = inspect(store, name, keys)
        progress(name)
        if finding is not None:
            yield finding


def reject(store: Store, finding: Inspected) -> bool:
    """Drop a bad object from the cache, and put its file into the quarantine.

    Returns:
        Whether it was dropped; not if it is gone, or another file has taken its place.
    """
    object_id = finding.object_id
    published = store.open(object_id)
    if published is None:
        if not store.has(object_id):
            return False
        store.drop(object_id)
        return True
    with published:
        if os.fstat(published.fileno()).st_ino != finding.inode:
            return False
        with suppress(OSError):  # a full disk: what is bad must go nevertheless
            _quarantine(store, published, finding.problem or "")
        store.drop(object_id)
    return True


def quarantined(store: Store) -> list[Rejected]:
    """What is in the quarantine, oldest first."""
    found = []
    for path in store.quarantined():
        name, _, at = path.name.rpartition(".")
        with suppress(OSError, ValueError, OverflowError):
            found.append(Rejected(path, name, int(at) / 1e9, path.stat().st_size, _reason_of(path)))
    return sorted(found, key=lambda rejected: rejected.at)


def discard(rejected: Rejected) -> None:
    """Delete a file in the quarantine, and the reason beside it."""
    rejected.path.unlink(missing_ok=True)
    _reason_file(rejected.path).unlink(missing_ok=True)


def _check(store: Store, published: PublishedFile, keys: TrustedKeys) -> Inspected:
    object_id, size = published.object_id, published.size
    inode = os.fstat(published.fileno()).st_ino
    try:
        # By its descriptor: the name may go at any time.
        prove(store, Path(f"/dev/fd/{published.fileno()}"), object_id, keys)
        _compare_header(published)
        if published.has_changed():
            raise InvalidObject("differs from what was published")
    except InvalidObject as error:
        return Inspected(object_id, size, str(error), is_damaged=True, inode=inode)
    except OSError as error:
        return _unreadable(object_id, size, inode, error)
    return Inspected(object_id, size, inode=inode)


def _compare_header(published: PublishedFile) -> None:
    """Some of a header's fields are signed by nobody, but they are what clients are shown first."""
    header = published.metadata.header
    if header is None:
        return
    if os.pread(published.fileno(), HEADER_SIZE, 0) != header.encode("latin-1", "replace"):
        raise InvalidObject("header differs from the one that it was published with")


def _unreadable(object_id: ObjectId, size: int, inode: int | None, error: OSError) -> Inspected:
    problem = f"can't be read: {error.strerror or error}"
    return Inspected(object_id, size, problem, is_damaged=error.errno not in _PASSING, inode=inode)


def _quarantine(store: Store, published: PublishedFile, reason: str) -> None:
    """Give the file a second name, and have the quarantine take that."""
    workspace = store.directory / "build"  # where leftovers are removed after a day
    workspace.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rejected.", dir=workspace) as directory:
        name = published.object_id.file_name
        published.link(Path(directory) / name)
        store.quarantine(name, Path(directory) / name, reason)


def _reason_of(path: Path) -> str:
    try:
        return _reason_file(path).read_text(errors="replace").strip()
    except OSError:
        return "unknown"


def _reason_file(path: Path) -> Path:
    """Where `Store.quarantine` puts it."""
    return path.with_name(f"{path.name}.reason")
