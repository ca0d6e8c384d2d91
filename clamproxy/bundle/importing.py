"""Importing a bundle: unpacked next to the cache, verified as a whole, then published."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from clamproxy.bundle.contents import Reporter, publishing_order
from clamproxy.bundle.manifest import (
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    BundleError,
    ListedDatabase,
    ListedObject,
    Manifest,
    sha256_of,
)
from clamproxy.bundle.tar import PIECE, TarCutOffError, TarError, TarMember, read_members
from clamproxy.cache.partial import LONGEST_KEPT
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.files import try_lock
from clamproxy.formats.codesign import verify_sign
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.formats.verification import InvalidObject, verify
from clamproxy.inspection import prove
from clamproxy.objects import Kind, ObjectId

_CLOCK_DIFFERENCE = 86400.0
"""How far the clock of the exporting gateway may be ahead, in seconds."""

STAGING = "staging"
"""Inside the cache directory, so that verified files can be linked into the cache."""
_LOCK = "lock"
"""In there; whoever unpacks or removes something has locked it."""


def import_bundle(
    store: Store,
    stream: BinaryIO,
    keys: TrustedKeys,
    *,
    allow_older: bool = False,
    progress: Reporter | None = None,
) -> Manifest:
    """Import a bundle into the cache. Blocks.

    Nothing is published before everything has been verified, including what the cache has already. If an
    import is interrupted, importing the same bundle again continues with what is complete.

    Args:
        stream: the bundle; it need not be seekable.
        keys: the keys that signatures must verify with.
        allow_older: whether the bundle may lead to older versions than the cache has, or ever had.
        progress: is told how many bytes have been read.

    Raises:
        BundleError: the bundle is refused; the cache is unchanged.
        OSError: the stream can't be read, or the cache can't be written to.
    """
    with _staging(store.directory) as staging:
        try:
            return _import(store, stream, keys, staging, allow_older, progress or Reporter())
        except TarError as error:
            raise BundleError(f"the bundle {error}") from error


def _import(
    store: Store, stream: BinaryIO, keys: TrustedKeys, staging: Path, allow_older: bool, progress: Reporter
) -> Manifest:
    members = read_members(stream)
    data = _read_manifest(members)
    manifest = Manifest.parse(data)
    for database, part in manifest.databases.items():
        current, proven = store.reached_version(database), store.newest_proven.of(database)
        _check_direction(database, part, current, proven, allow_older)
    progress.begin({name: 2 * size for name, size in manifest.bytes_by_database().items()})
    with _area(staging, data) as area:
        _unpack(members, manifest, area, progress)
        _verify(manifest, area, keys, progress)
        _publish(store, manifest, area, keys)
    if allow_older:
        for database, part in manifest.databases.items():
            if store.reached_version(database) == part.version:
                store.newest_proven.set_back(database, part.version)
    return manifest


@contextmanager
def _staging(cache: Path) -> Iterator[Path]:
    """The directory where bundles are unpacked, locked for this process; it is emptied after a success."""
    staging = cache / STAGING
    staging.mkdir(mode=0o700, exist_ok=True)
    with (staging / _LOCK).open("ab") as lock:
        if not try_lock(lock):
            raise BundleError("another import is under way")
        _sweep(staging, older_than=LONGEST_KEPT)
        yield staging
        _sweep(staging, older_than=0)


@contextmanager
def _area(staging: Path, manifest: bytes) -> Iterator[Path]:
    """The directory for the objects of one bundle; it is kept if importing the same bundle again can help."""
    area = staging / hashlib.sha256(manifest).hexdigest()
    area.mkdir(mode=0o700, exist_ok=True)
    os.utime(area)  # what an earlier attempt has left is young again
    try:
        yield area
    except TarCutOffError:  # the rest may come with the next attempt
        raise
    except (BundleError, TarError):
        shutil.rmtree(area)
        raise


def sweep_staging(cache: Path) -> None:
    """Remove what an interrupted import unpacked, unless another may soon go on with it. Blocks."""
    staging = cache / STAGING
    with suppress(OSError):  # there is none yet, for example
        if _areas(staging, older_than=LONGEST_KEPT):  # or else no import must find the lock taken
            with (staging / _LOCK).open("ab") as lock:
                if try_lock(lock):
                    _sweep(staging, older_than=LONGEST_KEPT)


def _sweep(staging: Path, older_than: float) -> None:
    for area in _areas(staging, older_than):
        shutil.rmtree(area)


def _areas(staging: Path, older_than: float) -> list[Path]:
    oldest = time.time() - older_than
    areas = [path for path in staging.iterdir() if path.is_dir()]
    return [area for area in areas if not older_than or area.stat().st_mtime < oldest]


def _read_manifest(members: Iterator[TarMember]) -> bytes:
    first = next(members, None)
    if first is None or first.name != MANIFEST_NAME:
        raise BundleError(f"this is not a bundle: it doesn't begin with {MANIFEST_NAME}")
    if first.size > MANIFEST_LIMIT:
        raise BundleError("the manifest is too large")
    return b"".join(first.pieces())


def _check_direction(
    database: str, part: ListedDatabase, current: int | None, proven: int, allow_older: bool
) -> None:
    """Check that the bundle continues from what the cache has, or had."""
    newest = max(current or 0, proven)
    if part.version < newest and not allow_older:
        has = f"the cache already has {newest}" if newest == current else f"version {newest} was here before"
        raise BundleError(
            f"the bundle has {database} {part.version}, but {has}; --allow-older imports it anyway"
        )
    if not part.is_whole and (current is None or current < part.base):
        has = "none" if current is None else f"only {current}"
        raise BundleError(
            f"the bundle's patches need {database} {part.base}, but the cache has {has}; "
            "export it again with an earlier --since, or without one"
        )


def _unpack(members: Iterator[TarMember], manifest: Manifest, area: Path, progress: Reporter) -> None:
    """Write each object under its name into `area`, checked against the manifest."""
    missing = manifest.objects
    for member in members:
        listed = missing.pop(member.name, None)
        if listed is None:
            known = member.name in manifest.objects
            raise BundleError(
                f"the bundle contains {member.name!r} {'twice' if known else 'without listing it'}"
            )
        if member.size != listed.size:
            raise BundleError(f"{listed.name} has {member.size} bytes instead of {listed.size}")
        target = area / listed.name
        if not _is_complete(target, listed):
            _write(member, target, listed, progress)
        elif sha256_of(_counted(member, listed, progress)) != listed.sha256:
            raise BundleError(f"{listed.name} is damaged")
    if missing:
        raise BundleError(f"the bundle lacks {next(iter(missing))}")


def _is_complete(path: Path, listed: ListedObject) -> bool:
    """Whether an earlier, interrupted import has already got this object."""
    if not path.is_file() or path.stat().st_size != listed.size:
        return False
    with path.open("rb") as file:
        return sha256_of(iter(lambda: file.read(PIECE), b"")) == listed.sha256


def _write(member: TarMember, target: Path, listed: ListedObject, progress: Reporter) -> None:
    part = target.with_name(f"{target.name}.part")
    digest = hashlib.sha256()
    with part.open("wb") as file:
        for piece in _counted(member, listed, progress):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != listed.sha256:
        raise BundleError(f"{listed.name} is damaged")
    part.replace(target)


def _counted(member: TarMember, listed: ListedObject, progress: Reporter) -> Iterator[bytes]:
    for piece in member.pieces():
        progress.advance(listed.object_id.database, len(piece))
        yield piece


def _verify(manifest: Manifest, area: Path, keys: TrustedKeys, progress: Reporter) -> None:
    """Prove that every object is what its name says, then that each signature signs its object."""
    own = {listed.name for part in manifest.databases.values() for listed in part.objects}
    for listed in sorted(manifest.objects.values(), key=lambda listed: listed.object_id.kind.is_signature):
        path, object_id = area / listed.name, listed.object_id
        try:
            verify(path, object_id, keys)
            _check_build_time(path, listed)
            if object_id.kind.is_signature and listed.name in own:
                _check_signature(path, object_id, area / object_id.signed.file_name, keys)
        except InvalidObject as error:
            raise BundleError(f"{listed.name} failed verification: {error}") from error
        progress.advance(object_id.database, listed.size)


def _check_signature(path: Path, signature: ObjectId, signed: Path, keys: TrustedKeys) -> None:
    with path.open("rb") as file, signed.open("rb") as content:
        verify_sign(file, signature, keys.roots, content)


def _check_build_time(path: Path, listed: ListedObject) -> None:
    header = _header(path, listed)
    if header is not None and listed.built not in (None, header.stime):
        raise InvalidObject("its build time differs from the manifest")


def _header(path: Path, listed: ListedObject) -> CvdHeader | None:
    if listed.object_id.kind is not Kind.CVD:
        return None
    with path.open("rb") as file:
        return CvdHeader.parse(file.read(HEADER_SIZE))


def _publish(store: Store, manifest: Manifest, area: Path, keys: TrustedKeys) -> None:
    """Publish everything, each object after what clients ask for next.

    What the cache has already is not replaced, except a signature that belongs to another file.
    """
    now = int(time.time())
    useless = [
        late for late in manifest.signatures if not _fits(store, area / late.name, late.object_id, keys)
    ]
    wanted = [listed for listed in manifest.objects.values() if listed not in useless]
    for listed in sorted(wanted, key=lambda listed: publishing_order(listed.object_id)):
        path = area / listed.name
        if listed.object_id.kind.is_signature:
            _make_room(store, path, listed.object_id)
        header = _header(path, listed)
        text = header.raw.decode("ascii") if header else None
        metadata = Metadata(listed.size, now, _last_modified(listed, header, now), text)
        store.publish(listed.object_id, path, metadata)


def _fits(store: Store, path: Path, signature: ObjectId, keys: TrustedKeys) -> bool:
    """Whether the cache has the file that the signature signs."""
    try:
        prove(store, path, signature, keys)
    except InvalidObject:
        return False
    return store.holds(signature.signed)


def _make_room(store: Store, path: Path, signature: ObjectId) -> None:
    """Drop the cached signature if it differs from this one, which is known to belong to its file."""
    present = store.open(signature)
    if present is not None:
        with present:
            is_same = os.pread(present.fileno(), present.size, 0) == path.read_bytes()
        if not is_same:
            store.drop(signature)


def _last_modified(listed: ListedObject, header: CvdHeader | None, now: float) -> float | None:
    """The listed Last-Modified unless it is impossible: by it, clients decide whether to accept the body."""
    built = header.stime if header else 0
    if listed.last_modified is None or not built <= listed.last_modified <= now + _CLOCK_DIFFERENCE:
        return None
    return listed.last_modified
