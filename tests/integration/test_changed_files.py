"""Files of the cache that others change while the gateway runs."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest

from clamproxy.cache import published
from clamproxy.cache.published import Metadata
from clamproxy.cache.soundness import Soundness
from clamproxy.cache.store import Store
from clamproxy.objects import ObjectId
from clamproxy.storage.condition import Trouble
from tests.harness.service import RELEASES, ServiceHarness, open_harness
from tests.support.faults import Fault
from tests.support.forge import forge_keys, forge_sign
from tests.support.origin import OriginServer
from tests.support.stored import cdiff, cvd, put, put_cvd, sign, until

BASE, PATCH = cvd(1), cdiff(2)


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    """CVD 1 and cdiff 2 are cached, and have been served; the origin has CVD 2."""
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.hold(1, 2)
        await harness.ask(PATCH.upstream_path)
        yield harness


def overwrite(path: Path) -> None:
    """Other bytes, as many as before, and the same date."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    """The same, but another file under the same name."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    overwrite(copy)
    copy.replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    """All bytes as they were, and one more."""
    with path.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("change", [overwrite, replace, truncate, empty, grow])
@pytest.mark.parametrize("part", ["bytes=0-", "bytes=100-"])
async def test_what_has_changed_is_not_served(
    harness: ServiceHarness, change: Callable[[Path], None], part: str
) -> None:
    start = int(part.removeprefix("bytes=").rstrip("-"))
    for object_id in (BASE, PATCH):
        change(file_of(harness, object_id))
    response, content = await harness.ask(PATCH.upstream_path, range=part)
    assert (response.status, content) == (206, RELEASES.cdiff(2)[start:])
    response, content = await harness.ask()
    assert (response.status, content) == (200, RELEASES.cvd(2))
    assert harness.service.store.open(BASE) is None


@pytest.mark.parametrize("part", ["bytes=0-", "bytes=100-"])
async def test_what_can_no_longer_be_read_is_fetched_again(
    harness: ServiceHarness, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with bad blocks: the files can be opened, and are as they were to stat()."""
    await harness.ask()
    bad = set[int]()
    for object_id in (BASE, PATCH):  # another name, so that no new file gets the inode
        os.link(path := file_of(harness, object_id), harness.directory / object_id.file_name)
        bad.add(path.stat().st_ino)

    def failing(read: Callable[..., Any]) -> Callable[..., Any]:
        def fail_or_read(file: Any, *arguments: Any) -> Any:
            with suppress(io.UnsupportedOperation):  # not all that is read is on disk
                if os.fstat(file if isinstance(file, int) else file.fileno()).st_ino in bad:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(file, *arguments)

        return fail_or_read

    monkeypatch.setattr(os, "pread", failing(os.pread))
    monkeypatch.setattr(hashlib, "file_digest", failing(hashlib.file_digest))
    start = int(part.removeprefix("bytes=").rstrip("-"))
    for _ in range(2):
        response, content = await harness.ask(PATCH.upstream_path, range=part)
        assert (response.status, content) == (206, RELEASES.cdiff(2)[start:])
        response, content = await harness.ask()
        assert (response.status, content) == (200, RELEASES.cvd(2))
    assert not harness.service.store.has(BASE)
    assert harness.origin.count("/daily-2.cdiff") == 1


async def test_what_can_not_be_read_at_the_second_try_either(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    for _ in range(2):
        response, content = await harness.ask(PATCH.upstream_path, range="bytes=0-")
        assert (response.status, content) == (503, b"clamproxy: the cache can't be read\n")
        assert response.headers["Retry-After"] == "1"
    assert len(caplog.records) == 1
    assert not caplog.records[0].exc_info


async def test_what_changes_while_another_file_is_checked(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, digest = harness.service.store, hashlib.file_digest
    put_cvd(store, 2, RELEASES.cvd(2))
    soundness = Soundness(store, forge_keys().trusted)
    await soundness.ensure("daily")
    is_reading, may_read = threading.Event(), threading.Event()

    def digest_slowly(*arguments: Any) -> Any:
        is_reading.set()
        may_read.wait(30)
        return digest(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", digest_slowly)
    os.utime(file_of(harness, BASE))
    checks = [asyncio.create_task(soundness.ensure("daily"))]
    await until(is_reading.is_set)
    overwrite(file_of(harness, cvd(2)))
    checks.append(asyncio.create_task(soundness.ensure("daily")))
    await asyncio.sleep(0)
    may_read.set()
    await asyncio.gather(*checks)
    assert [store.has(cvd(version)) for version in (1, 2)] == [True, False]


async def test_what_is_the_same_stays(harness: ServiceHarness) -> None:
    """A new date, or another name for the file, as for a mirror or a backup, costs no download."""
    for object_id in (BASE, PATCH):
        path = file_of(harness, object_id)
        os.utime(path)
        os.link(path, harness.directory / object_id.file_name)
    assert (await harness.ask())[1] == RELEASES.cvd(1)
    assert (await harness.ask(PATCH.upstream_path, range="bytes=5-"))[1] == RELEASES.cdiff(2)[5:]
    assert not harness.origin.requests(), harness.origin.trace


@pytest.mark.parametrize("object_id", [cdiff(3), cvd(3)], ids=lambda one: one.file_name)
async def test_partial_files_are_deleted(harness: ServiceHarness, object_id: ObjectId) -> None:
    """A transfer that is under way ends as if nothing had happened."""
    harness.release(3)
    is_cvd = object_id == cvd(3)
    path = "/daily.cvd" if is_cvd else object_id.upstream_path
    harness.origin.rule("W" if is_cvd else "D3", Fault(held=True))
    asking = asyncio.create_task(harness.ask(path, agent="curl/8.5.0"))
    await until((harness.service.store.partials / f"{object_id.file_name}.part").exists)
    shutil.rmtree(harness.service.store.partials)
    harness.origin.heal()
    assert (await asking)[1] == (RELEASES.cvd(3) if is_cvd else RELEASES.cdiff(3))
    await harness.settle()
    assert harness.service.store.holds(object_id)


def file_of(harness: ServiceHarness, object_id: ObjectId) -> Path:
    found = harness.service.store.open(object_id)
    assert found is not None
    with found:
        return Path(found.path)


@pytest.mark.parametrize("directory", ["objects", "partial", "index"])
def test_a_file_in_the_place_of_a_directory(tmp_path: Path, directory: str) -> None:
    """It is trouble like a full disk: what is small is held in memory, and nothing ends in a traceback."""
    store = Store(tmp_path, hold=2**20)
    (tmp_path / "new").write_bytes(b"body")
    shutil.rmtree(tmp_path / directory)
    (tmp_path / directory).touch()
    partial = store.open_partial(cdiff(3))
    assert partial.is_unnamed == (directory == "partial")
    partial.close()
    store.publish(PATCH, tmp_path / "new", Metadata(4, 1.0))
    store.mend()
    assert store.condition.state is not None
    assert store.condition.state.trouble is Trouble.BROKEN
    assert store.holds(PATCH)
    (tmp_path / directory).unlink()
    store.mend()
    assert store.condition.state is None
    assert (tmp_path / "objects" / "daily" / "daily-2.cdiff").read_bytes() == b"body"
    store.close()


def test_the_index_is_deleted(tmp_path: Path) -> None:
    """The previous version still finds the objects afterwards."""
    store = Store(tmp_path)
    put(store, PATCH)
    shutil.rmtree(tmp_path / "index")
    store.mend()
    assert (tmp_path / "index" / "objects" / "daily" / PATCH.file_name).read_bytes() == b"body"
    store.close()


@pytest.mark.parametrize("damage", ["none", "its file is gone", "it belongs to another"])
def test_a_signature_that_the_index_does_not_know(tmp_path: Path, damage: str) -> None:
    """It is kept only beside its file."""
    keys, signature = forge_keys().trusted, sign(PATCH)
    files = tmp_path / "objects" / "daily"
    files.mkdir(parents=True)
    if damage != "its file is gone":
        (files / PATCH.file_name).write_bytes(RELEASES.cdiff(2))
    signed = RELEASES.cdiff(3 if damage == "it belongs to another" else 2)
    (files / signature.file_name).write_bytes(forge_sign(signed))
    store = Store(tmp_path, keys=keys)
    assert store.has(signature) == (damage == "none")
    store.close()


def test_a_file_that_can_not_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The trouble lasts until it can, or is gone: it doesn't end and begin with each look at the file."""

    def refuse(path: Path) -> IO[bytes]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    store = Store(tmp_path)
    put(store, PATCH)
    with monkeypatch.context() as refusing:
        refusing.setattr(published, "open_to_read", refuse)
        for _ in range(3):
            assert store.open(PATCH) is None
            store.mend()
            assert store.condition.state is not None
    assert len(caplog.records) == 1
    store.mend()
    assert store.condition.state is None
    assert store.holds(PATCH)
    store.close()
