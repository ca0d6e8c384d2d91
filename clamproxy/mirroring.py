"""A mirror: a directory in cvdupdate's layout, to be served by any web server.

It holds ``<db>.cvd``, ``<db>-<version>.cdiff``, their ``.sign`` files under the names that clients ask
for, and ``dns.txt`` with what DNS would advertise (docs/protocol.md 9.5).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.files import replacing, sync_directory, try_lock
from clamproxy.formats.codesign import verify_sign
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.formats.version_record import VersionRecord, with_versions
from clamproxy.inspection import belongs
from clamproxy.objects import MAX_VERSION, Kind, ObjectId

DNS_FILE = "dns.txt"
LOCK_FILE = ".clamproxy.lock"
TEMPORARY_SUFFIX = ".clamproxy-part"

_READABLE = 0o444  # the web server may run as any user
_PIECE = 2**18


class MirrorError(Exception):
    """The mirror can't be updated; the text is one line for the operator."""


@dataclass(slots=True)
class MirrorReport:
    """What a run has done."""

    versions: dict[str, int] = field(default_factory=dict)
    """Versions of the CVDs that are in the directory now."""
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Update:
    """What the mirror shall have of one database."""

    newest: ObjectId
    earlier: int | None
    """The version of the CVD that the directory has so far."""
    kept: set[int]
    """Versions of the cdiffs to keep, whether they are in the cache or only in the directory."""

    def is_superseded(self, object_id: ObjectId) -> bool:
        """Whether a file of this database shall be removed."""
        if object_id.kind in (Kind.CDIFF, Kind.CDIFF_SIGN):
            return object_id.version not in self.kept
        # A client that has just fetched the previous CVD asks for its signature next (trap 24).
        return object_id.kind is Kind.CVD_SIGN and object_id.version not in (
            self.newest.version,
            self.earlier,
        )


def update_mirror(
    store: Store,
    directory: Path,
    databases: Iterable[str],
    keep_cdiffs: int,
    dns_text: str,
    ceilings: Mapping[str, int] | None = None,
) -> MirrorReport:
    """Update a directory from the cache. Blocks.

    The mirror is consistent at any moment: first comes what clients ask for after a new CVD, then the
    CVDs, then dns.txt, which advertises them; superseded files are removed last.

    Args:
        directory: the mirror; created if it doesn't exist.
        databases: whose files to manage; all other files are left alone.
        keep_cdiffs: how many cdiffs of each database to keep, the newest ones; those after the CVD are
            kept in any case.
        dns_text: the contents of ``dns.txt``; what it has of other databases in the directory is kept.
        ceilings: the highest version of a database that clients are shown, where that is limited.

    Raises:
        MirrorError: another run is in progress, or the cache has none of the databases.
        OSError: the directory can't be written to.
    """
    databases = sorted(set(databases))
    if all(store.newest_version(database) is None for database in databases):
        raise MirrorError(f"no CVD of {' or '.join(databases)} is cached")
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        for leftover in directory.glob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink()
        report = MirrorReport()
        updates = _plan(store, directory, databases, keep_cdiffs, report, ceilings or {})
        for update in updates:
            _add_companions(store, directory, update, report)
        # Synced between the steps, so that even a crash can't leave a CVD without its companions.
        sync_directory(directory)
        for update in updates:
            _add(store, directory, update.newest, report)
        sync_directory(directory)
        _advertise(directory, dns_text, report, updates, databases)
        for update in updates:
            _remove_superseded(directory, update, report)
        return report


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / LOCK_FILE).open("ab") as lock:
        if not try_lock(lock):
            raise MirrorError(f"{directory}: another run is using it")
        yield


def _plan(
    store: Store,
    directory: Path,
    databases: list[str],
    keep_cdiffs: int,
    report: MirrorReport,
    ceilings: Mapping[str, int],
) -> list[_Update]:
    cached = set(store.sizes())
    updates = []
    for database in databases:
        ceiling = ceilings.get(database, MAX_VERSION)
        newest = store.newest_version(database, ceiling)
        earlier = _version_in(directory / f"{database}.cvd")
        if newest is None or (earlier is not None and earlier > newest):
            there = "has none" if earlier is None else f"already has {earlier}"
            here = "none" if newest is None else f"only {newest}"
            report.warnings.append(f"{database} is left as it is: {directory} {there}, the cache has {here}.")
            if earlier is not None:
                report.versions[database] = earlier
        else:
            everything = cached | set(_files_of(directory, database).values())
            everything = {one for one in everything if one.version <= ceiling}
            kept = _kept_cdiffs(everything, database, newest, keep_cdiffs)
            updates.append(_Update(ObjectId(database, newest, Kind.CVD), earlier, kept))
            report.versions[database] = newest
    return updates


def _kept_cdiffs(everything: set[ObjectId], database: str, newest: int, keep_cdiffs: int) -> set[int]:
    versions = sorted(
        object_id.version
        for object_id in everything
        if object_id.database == database and object_id.kind is Kind.CDIFF
    )
    after_newest = {version for version in versions if version > newest}
    return after_newest | set(versions[max(0, len(versions) - keep_cdiffs) :])


def _version_in(path: Path) -> int | None:
    """The version of a CVD; None if there is no file, or a damaged one."""
    try:
        with path.open("rb") as file:
            return CvdHeader.parse(file.read(HEADER_SIZE)).version
    except (FileNotFoundError, InvalidObject):
        return None


def _files_of(directory: Path, database: str) -> dict[Path, ObjectId]:
    """The files of a database that have a version in their names."""
    files = {}
    for path in directory.glob(f"{database}-*"):
        try:
            object_id = ObjectId.parse(path.name)
        except ValueError:
            continue
        # A file such as daily-27800.cvd is not part of the layout, so it is somebody else's.
        if object_id.kind not in (Kind.CVD, Kind.CLD) and (path.is_symlink() or path.is_file()):
            files[path] = object_id
    return files


def _add_companions(store: Store, directory: Path, update: _Update, report: MirrorReport) -> None:
    """Add what clients ask for around a new CVD: signatures, then patches upwards."""
    database = update.newest.database
    cdiffs = [ObjectId(database, version, Kind.CDIFF) for version in sorted(update.kept)]
    for signature in [object_id.signature for object_id in (*cdiffs, update.newest)]:
        if belongs(store, signature):
            _add(store, directory, signature, report)
        else:
            _remove_stray(store, directory, signature, report)
    for cdiff in cdiffs:
        _add(store, directory, cdiff, report)


def _remove_stray(store: Store, directory: Path, signature: ObjectId, report: MirrorReport) -> None:
    """Remove a signature that an earlier run added, if it belongs to another file."""
    target, signed = directory / signature.file_name, directory / signature.signed.file_name
    if not target.is_file():
        return
    with ExitStack() as stack:
        file = stack.enter_context(target.open("rb"))
        if (cached := store.open(signature.signed)) is not None:
            stack.enter_context(cached)
            content = stack.enter_context(open(cached.fileno(), "rb", closefd=False))
        elif signed.is_file():
            content = stack.enter_context(signed.open("rb"))
        else:
            return
        try:
            verify_sign(file, signature, store.keys.roots, content)
        except InvalidObject:
            target.unlink()
            report.removed.append(target.name)


def _add(store: Store, directory: Path, object_id: ObjectId, report: MirrorReport) -> None:
    """Add an object under its name, if the cache has it and the directory doesn't."""
    is_cvd = object_id.kind is Kind.CVD
    target = directory / (f"{object_id.database}.cvd" if is_cvd else object_id.file_name)
    temporary = _temporary(target)
    if _is_there(store, object_id, target):
        return
    try:
        if _is_damaged(store, object_id):
            raise MirrorError(f"{object_id.file_name} is damaged; run `clamproxy verify --repair`")
        if store.link(object_id, temporary):
            temporary.replace(target)
            report.added.append(target.name)
        elif is_cvd:
            raise MirrorError(f"{object_id.file_name} has just been dropped from the cache: try again")
    finally:
        temporary.unlink(missing_ok=True)


def _is_damaged(store: Store, object_id: ObjectId) -> bool:
    published = store.open(object_id)
    if published is None:
        return False
    with published:
        return published.has_changed() is True


def _is_there(store: Store, object_id: ObjectId, target: Path) -> bool:
    published = store.open(object_id)
    if published is None:
        return False
    with published:
        return _is_same(published, target)


def _is_same(published: PublishedFile, present: Path) -> bool:
    """Whether the file can stay; a file that the web server can't read is replaced."""
    if present.is_symlink() or not present.is_file():
        return False
    there, here = present.stat(), os.fstat(published.fileno())
    if there.st_mode & _READABLE != _READABLE or there.st_size != here.st_size:
        return False
    return os.path.samestat(there, here) or _has_same_bytes(published, present)


def _has_same_bytes(published: PublishedFile, present: Path) -> bool:
    offset = 0
    with present.open("rb") as file:
        while piece := file.read(_PIECE):
            if piece != os.pread(published.fileno(), len(piece), offset):
                return False
            offset += len(piece)
    return offset == published.size


def _advertise(
    directory: Path, dns_text: str, report: MirrorReport, updates: list[_Update], managed: Collection[str]
) -> None:
    target = directory / DNS_FILE
    earlier = _advertised_by(target)
    updated = {update.newest.database for update in updates}
    # Never lower versions for databases that were left alone.
    kept = {
        name: max(version, earlier.get(name, 0))
        for name, version in report.versions.items()
        if name not in updated
    }
    kept |= {
        name: version
        for name, version in earlier.items()
        if name not in managed and (directory / f"{name}.cvd").is_file()  # another run has put it there
    }
    with replacing(target, mode=0o644, suffix=TEMPORARY_SUFFIX) as file:
        file.write(f"{with_versions(dns_text.strip(), kept)}\n".encode())


def _advertised_by(dns_file: Path) -> Mapping[str, int]:
    """The versions that the directory advertises so far."""
    text = dns_file.read_text(errors="replace") if dns_file.is_file() else ""
    try:
        return VersionRecord.parse(text.strip()).versions
    except ValueError:
        return {}


def _remove_superseded(directory: Path, update: _Update, report: MirrorReport) -> None:
    for path, object_id in sorted(_files_of(directory, update.newest.database).items()):
        if update.is_superseded(object_id):
            path.unlink()
            report.removed.append(path.name)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}{TEMPORARY_SUFFIX}")
