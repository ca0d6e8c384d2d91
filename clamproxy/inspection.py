"""Inspection: whether the objects in the cache are still what ClamAV signed. Blocks.

It is safe while the proxy runs: an object that disappears in the meantime is not reported, and one that
has been replaced since it was checked is kept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.files import PASSING
from clamproxy.formats.codesign import verify_sign
from clamproxy.formats.cvd import PayloadDigest
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.formats.verification import verify
from clamproxy.objects import ObjectId


@dataclass(frozen=True, slots=True)
class Inspected:
    """The result of checking one object."""

    object_id: ObjectId
    size: int
    """Size in bytes; 0 if there is no file of the right length."""
    problem: str | None = None
    """What is wrong, in one line; None if nothing is."""
    is_damaged: bool = False
    """Whether the object is certainly bad, rather than impossible to check."""
    inode: int | None = None
    """Inode of its file, if there is one."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file in the quarantine."""

    path: Path
    name: str
    """File name of the object that it was supposed to be."""
    at: float
    """When it was put into the quarantine, in Unix seconds."""
    size: int
    """Size in bytes."""
    reason: str


def prove(
    store: Store,
    path: Path,
    object_id: ObjectId,
    keys: TrustedKeys,
    payload: PayloadDigest | None = None,
) -> None:
    """Like `verify`, and also check a ``.sign`` against the file that it signs, if that is in the cache.

    If it isn't, only damage to the signature itself can be found. It is checked against its file once
    both are there, by `clamproxy.releases.signs`.

    Args:
        path: the file, inside the cache or on its way there.
        object_id: the object that it must be.
        keys: the keys that signatures must verify with.
        payload: the digest of a CVD's payload, if it was computed while the file grew.

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
            verify_sign(file, object_id, keys.roots, content)
        except InvalidObject:
            # If the signed file itself is damaged, that says nothing about its signature.
            if not _check(store, signed, keys).is_damaged:
                raise


def belongs(store: Store, signature: ObjectId) -> bool:
    """Whether the cache has this ``.sign`` and the file that it signs. Reads both."""
    with ExitStack() as stack:
        streams = []
        for published in (store.open(signature), store.open(signature.signed)):
            if published is not None:
                stack.enter_context(published)
                streams.append(stack.enter_context(open(published.fileno(), "rb", closefd=False)))
        if len(streams) < 2:
            return False
        try:
            verify_sign(streams[0], signature, store.keys.roots, streams[1])
        except InvalidObject:
            return False
        return True


def listed(store: Store, databases: Collection[str] = ()) -> list[ObjectId]:
    """All objects in the index, sorted, including those whose file is missing or unreadable.

    Args:
        databases: only these; if empty, all.
    """
    names = store.object_ids()
    return sorted(name for name in names if not databases or name.database in databases)


def inspect(store: Store, object_id: ObjectId, keys: TrustedKeys) -> Inspected | None:
    """Check the length and signature of one object.

    Args:
        keys: the keys that signatures must verify with.

    Returns:
        The result; None if the cache no longer has the object.
    """
    try:
        published = store.open_or_fail(object_id)
    except OSError as error:
        return _unreadable(object_id, 0, None, error)
    if published is None:
        if not store.has(object_id):
            return None
        problem = "its file is missing, or its length has changed since it was published"
        return Inspected(object_id, 0, problem, is_damaged=True)
    with published:
        return _check(store, published, keys)


def inspect_all(
    store: Store,
    names: Collection[ObjectId],
    keys: TrustedKeys,
    progress: Callable[[ObjectId], object] = lambda _: None,
) -> Iterator[Inspected]:
    """Check some objects, one after the other.

    Args:
        keys: the keys that signatures must verify with.
        progress: called for each object after it has been checked, or found to be gone.
    """
    for name in names:
        finding = inspect(store, name, keys)
        progress(name)
        if finding is not None:
            yield finding


def reject(store: Store, finding: Inspected) -> bool:
    """Drop a bad object from the cache, and put its file into the quarantine.

    Returns:
        Whether it was dropped; it isn't if it is gone, or if another file has taken its place.
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
        with suppress(OSError):  # a bad object must go even if the disk is too full for the quarantine
            _quarantine(store, published, finding.problem or "")
        store.drop(object_id)
    return True


def quarantined(store: Store) -> list[Rejected]:
    """The files in the quarantine, oldest first."""
    found = []
    for path in store.quarantined():
        name, _, at = path.name.rpartition(".")
        with suppress(OSError, ValueError, OverflowError):
            found.append(Rejected(path, name, int(at) / 1e9, path.stat().st_size, _reason_of(path)))
    return sorted(found, key=lambda rejected: rejected.at)


def discard(rejected: Rejected) -> None:
    """Delete a file in the quarantine, and the file with its reason."""
    _reason_file(rejected.path).unlink(missing_ok=True)
    rejected.path.unlink(missing_ok=True)


def _check(store: Store, published: PublishedFile, keys: TrustedKeys) -> Inspected:
    object_id, size = published.object_id, published.size
    inode = os.fstat(published.fileno()).st_ino
    try:
        # By its descriptor, as the name can disappear at any time.
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
    # Some fields of a header are not signed, but the header is what clients see first.
    header = published.metadata.header
    if header is None:
        return
    if os.pread(published.fileno(), HEADER_SIZE, 0) != header.encode("latin-1", "replace"):
        raise InvalidObject("header differs from the one that it was published with")


def _unreadable(object_id: ObjectId, size: int, inode: int | None, error: OSError) -> Inspected:
    problem = f"can't be read: {error.strerror or error}"
    return Inspected(object_id, size, problem, is_damaged=error.errno not in PASSING, inode=inode)


def _quarantine(store: Store, published: PublishedFile, reason: str) -> None:
    """Give the file a second name, and have that moved into the quarantine."""
    workspace = store.workspaces  # where leftovers are removed
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
    """Where `Store.quarantine` writes the reason."""
    return path.with_name(f"{path.name}.reason")
