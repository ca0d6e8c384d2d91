"""Publishing the site's files: what counts as a file, when it counts, and what survives what."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from clamproxy.files import try_lock
from clamproxy.messages import Request
from clamproxy.site_files import Catalog, State, collecting, publisher, recipients
from clamproxy.site_files.checking import CheckError, FileVerdict
from clamproxy.site_files.file_names import IGNORED_SIGNATURES
from clamproxy.site_files.publisher import Publisher
from clamproxy.site_files.site_files import SiteFiles
from tests.support.stored import until

FIRST, SECOND, BROKEN = b"Site.A-1:0:*:6161616161616161\n", b"Site.B-1:0:*:6262626262626262\n", b"broken\n"
NAME = "site.ndb"
START = 1_800_000_000.0


class Bench:
    """A publisher whose clock and checks the test decides."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.records = root / "files", root / "state"
        self.directory.mkdir()
        self.now = START
        self.has_clamscan = True
        self.failure = ""
        self.checks: list[bytes] = []
        self.during_check: Callable[[], object] = lambda: None
        monkeypatch.setattr(publisher, "LOOK_EVERY", 3600.0)  # however long a look takes on a busy machine
        monkeypatch.setattr(publisher, "check", self._check)
        monkeypatch.setattr(publisher, "find_clamscan", lambda: "clamscan" if self.has_clamscan else None)
        self.publisher = self.anew()

    async def anew_and_look(self) -> Catalog:
        self.anew()
        return await self.look()

    def anew(self) -> Publisher:
        """As after a restart."""
        self.publisher = Publisher(self.directory, self.records, lambda: self.now)
        return self.publisher

    async def _check(self, path: Path, clamscan: str | None) -> FileVerdict:
        content = path.read_bytes()  # noqa: ASYNC240
        self.checks.append(content)
        self.during_check()
        if self.failure:
            raise CheckError(self.failure)
        if clamscan is None:
            return FileVerdict(remark="not checked")
        return FileVerdict("no signature") if content == BROKEN else FileVerdict(checked_by="clamscan")

    def put(self, content: bytes, name: str = NAME) -> None:
        (self.directory / name).write_bytes(content)

    async def look(self, times: int = 2) -> Catalog:
        """Look twice: a file counts once it hasn't changed in between."""
        for _ in range(times):
            await self.publisher.look()
        return self.publisher.catalog

    def served(self, name: str = NAME) -> bytes | None:
        file = self.publisher.catalog.files.get(name)
        path = self.publisher.path_of(file) if file is not None else None
        return None if path is None else path.read_bytes()

    def copy(self, name: str = NAME) -> Path:
        path = self.publisher.path_of(self.publisher.catalog.files[name])
        assert path is not None
        return path

    def date(self, name: str = NAME) -> int:
        edition = self.publisher.catalog.files[name].served
        assert edition is not None
        return edition.published_at


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


async def test_a_file_counts_once_it_rests(bench: Bench) -> None:
    bench.put(FIRST)
    await bench.look(1)
    assert bench.served() is None
    bench.put(FIRST + SECOND)
    await bench.look(1)
    assert bench.served() is None
    await bench.look(1)
    assert bench.served() == FIRST + SECOND
    assert bench.checks == [FIRST + SECOND]


async def test_new_content_is_dated_later(bench: Bench) -> None:
    bench.put(FIRST)
    await bench.look()
    first = bench.date()
    assert first == START + 1
    bench.put(SECOND)
    await bench.look()
    assert (bench.served(), bench.date()) == (SECOND, first + 1)


async def test_unchanged_content_keeps_its_date_over_restarts(bench: Bench) -> None:
    bench.put(FIRST)
    await bench.look()
    date = bench.date()
    bench.now += 1000
    os.utime(bench.directory / NAME, (1, 1))
    await bench.look()
    bench.anew()
    await bench.look()
    shutil.copyfile(bench.directory / NAME, bench.directory / "new")
    (bench.directory / "new").replace(bench.directory / NAME)
    await bench.look()
    assert (bench.served(), bench.date(), bench.checks) == (FIRST, date, [FIRST])


async def test_a_broken_file_changes_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.put(FIRST)
    await bench.look()
    date = bench.date()
    bench.put(BROKEN)
    await bench.look(4)
    bench.anew()
    catalog = await bench.look(3)
    file = catalog.files[NAME]
    assert (file.state, file.reason, bench.served(), bench.date()) == (
        State.REFUSED,
        "no signature",
        FIRST,
        date,
    )
    assert len(catalog.problems()) == 1
    assert caplog.text.count("no signature") == 1
    assert bench.checks == [FIRST, BROKEN]
    bench.put(FIRST)  # back to what it was
    catalog = await bench.look()
    assert (catalog.files[NAME].state, bench.date(), catalog.problems()) == (State.PUBLISHED, date, [])


async def test_a_deleted_file_is_withdrawn_and_comes_back_with_a_later_date(bench: Bench) -> None:
    bench.put(FIRST)
    await bench.look()
    date = bench.date()
    (bench.directory / NAME).unlink()
    bench.put(b"", "README")  # or it could be a network drive that isn't mounted
    catalog = await bench.look(1)
    assert (list(catalog.files), catalog.published) == (["README"], [])
    bench.anew()
    bench.put(FIRST)
    await bench.look()
    assert bench.date() > date


async def test_a_directory_that_disappears_withdraws_nothing(bench: Bench) -> None:
    """A network drive, say."""
    bench.put(FIRST)
    await bench.look()
    bench.directory.rename(bench.directory.with_name("elsewhere"))
    catalog = await bench.look()
    assert bench.served() == FIRST
    assert "doesn't exist" in catalog.problems()[0]
    bench.directory.with_name("elsewhere").rename(bench.directory)
    assert (await bench.look()).problems() == []


async def test_a_directory_that_is_emptied_withdraws_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """What a network drive leaves when it isn't mounted."""
    bench.put(FIRST)
    await bench.look()
    (bench.directory / NAME).unlink()
    (bench.directory / "lost+found").mkdir()
    bench.put(FIRST, ".keep")
    for catalog in (await bench.look(), await bench.anew_and_look()):
        assert bench.served() == FIRST
        assert "is empty" in catalog.problems()[0]
    assert caplog.text.count("is empty") == 1
    bench.put(SECOND)
    assert (await bench.look()).problems() == []
    assert bench.served() == SECOND


async def test_an_empty_directory_is_no_problem(bench: Bench) -> None:
    assert (await bench.look()).problems() == []
    bench.put(BROKEN)
    await bench.look()
    (bench.directory / NAME).unlink()
    assert (await bench.look()).problems() == []


async def test_a_directory_that_hangs_withholds_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network drive whose server is down."""
    bench.put(FIRST)
    await bench.look()
    hanging = threading.Event()
    monkeypatch.setattr(publisher, "LONGEST_LOOK", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(collecting, "find_files", lambda directory: hanging.wait() and [])
        files = SiteFiles(bench.directory, bench.records, lambda: bench.now + 1)
        files.start()
        try:
            assert (await files.handle(Request("GET", f"/files/{NAME}", []), "")).status == 200
            await until(lambda: "doesn't respond" in files.catalog.trouble)
            assert (await files.handle(Request("GET", f"/files/{NAME}", []), "")).status == 200
        finally:
            files.stop()
        async with asyncio.timeout(60):
            while not (await bench.look(1)).problems():  # the other one has the lock until it has ended
                pass
        threads = threading.active_count()
        for catalog in (await bench.look(), await bench.look(1)):
            assert "doesn't respond" in catalog.problems()[0]
        assert threading.active_count() <= threads + 1  # they don't pile up
    hanging.set()
    monkeypatch.setattr(publisher, "LONGEST_LOOK", 60.0)
    bench.put(SECOND)
    assert (await bench.look(3)).problems() == []
    assert bench.served() == SECOND


async def test_a_file_that_hangs_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put(FIRST)
    hanging = threading.Event()
    monkeypatch.setattr(publisher, "LONGEST_COPY", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "copy", lambda *_: str(hanging.wait()))
        assert (await bench.look()).files[NAME].state is State.WAITING
    hanging.set()
    monkeypatch.setattr(publisher, "LONGEST_COPY", 60.0)
    bench.now += 61
    await bench.look()
    assert bench.served() == FIRST


async def test_a_directory_that_was_never_there_is_no_problem(bench: Bench) -> None:
    bench.directory.rmdir()
    assert (await bench.look()).problems() == []
    assert not bench.records.exists()


async def test_what_is_no_file(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside.ndb"
    outside.write_bytes(FIRST)
    directory = bench.directory
    (directory / "out.ndb").symlink_to(outside)
    (directory / "broken.ndb").symlink_to(tmp_path / "nothing")
    (directory / "loop.ndb").symlink_to("loop.ndb")
    (directory / "up.ndb").symlink_to("../outside.ndb")
    os.mkfifo(directory / "pipe.ndb")
    (directory / "folder.ndb").mkdir()
    (directory / "folder").mkdir()
    for name in (".hidden.ndb", "site.ndb~", "site.ndb.part", "#site.ndb#", ".site.ndb.swp"):
        bench.put(FIRST, name)
    for name in ("README", "notes.txt", "daily.cvd", "a b.ndb", "-x.ndb", "é.ndb", "n\nl.ndb"):
        bench.put(FIRST, name)
    catalog = await bench.look(3)
    refused = {name for name, file in catalog.files.items() if file.state is State.REFUSED}
    assert refused == {"out.ndb", "broken.ndb", "loop.ndb", "up.ndb", "pipe.ndb", "folder.ndb"}
    skipped = {name for name, file in catalog.files.items() if file.state is State.SKIPPED}
    assert len(skipped) == 7
    assert all(name.isprintable() for name in skipped)
    assert catalog.published == []
    assert bench.checks == []


async def test_links_within_the_directory_are_followed(bench: Bench) -> None:
    """Kubernetes' ConfigMaps are made of them."""
    (bench.directory / "..data").mkdir()
    bench.put(FIRST, "..data/site.ndb")
    (bench.directory / NAME).symlink_to("..data/site.ndb")
    await bench.look()
    assert bench.served() == FIRST


async def test_limits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_FILES", 3)
    monkeypatch.setattr(collecting, "LARGEST_FILE", 100)
    monkeypatch.setattr(collecting, "MOST_BYTES", 150)
    bench.put(b"x" * 101, "a.ndb")
    bench.put(b"x" * 90, "b.ndb")
    bench.put(b"x" * 90, "c.ndb")
    for name in ("d.ndb", "e.ndb", "site.ign2"):
        bench.put(FIRST, name)
    catalog = await bench.look()
    assert catalog.published == ["site.ign2", "b.ndb"]
    reasons = {name: file.reason for name, file in catalog.files.items() if file.state is State.REFUSED}
    assert reasons.keys() == {"a.ndb", "c.ndb", "d.ndb", "e.ndb"}
    assert "larger" in reasons["a.ndb"]
    assert "together" in reasons["c.ndb"]
    assert "more than 3" in reasons["e.ndb"]
    (bench.directory / "b.ndb").unlink()  # then there is room for others
    assert (await bench.look()).published == ["site.ign2", "c.ndb", "d.ndb"]


async def test_a_directory_of_something_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "MOST_NAMES", 10)
    bench.put(FIRST)
    await bench.look()
    for number in range(20):
        bench.put(SECOND, f"{number}.ndb")
    catalog = await bench.look()
    assert catalog.published == [NAME]
    assert "more than 10 files" in catalog.problems()[0]


async def test_a_check_that_fails_is_repeated_later(bench: Bench) -> None:
    bench.put(FIRST)
    bench.failure = "clamscan was ended by signal 9"
    catalog = await bench.look(4)
    assert (catalog.files[NAME].state, catalog.files[NAME].reason) == (State.WAITING, bench.failure)
    assert len(bench.checks) == 1
    assert len(catalog.problems()) == 1
    bench.failure, bench.now = "", bench.now + 61
    await bench.look()
    assert bench.served() == FIRST


async def test_a_check_that_failed_while_the_clock_was_fast_is_repeated(bench: Bench) -> None:
    bench.put(FIRST)
    bench.failure, bench.now = "clamscan was ended by signal 9", START + 1e8
    await bench.look()
    bench.failure, bench.now = "", START
    await bench.look()
    assert bench.served() == FIRST


async def test_what_was_not_checked_is_checked_when_clamscan_is_installed(bench: Bench) -> None:
    bench.has_clamscan = False
    bench.put(BROKEN)
    bench.put(FIRST, "good.ndb")
    catalog = await bench.look()
    assert (bench.served(), catalog.files[NAME].reason) == (BROKEN, "not checked")
    date = bench.date("good.ndb")
    bench.has_clamscan = True
    catalog = await bench.look()
    assert (bench.served(), catalog.files[NAME].state) == (None, State.REFUSED)
    assert (bench.date("good.ndb"), catalog.files["good.ndb"].reason) == (date, "")


async def test_a_damaged_copy_is_made_again(bench: Bench) -> None:
    bench.put(FIRST)
    await bench.look()
    path = bench.copy()
    path.chmod(0o600)
    path.write_bytes(SECOND)
    reader = bench.anew()
    reader.start()
    try:
        await reader.ready()
        assert NAME not in reader.catalog.published
    finally:
        reader.stop()
    bench.anew()
    await bench.look()
    assert bench.served() == FIRST


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 3)], ids=["lost", "cut"])
async def test_a_copy_that_is_lost_while_it_is_served_is_made_again(
    bench: Bench, damage: Callable[[Path], None]
) -> None:
    bench.put(FIRST)
    await bench.look()
    damage(bench.copy())
    files = SiteFiles(bench.directory, bench.records, lambda: bench.now + 1)
    files._publisher = bench.publisher
    for method in ("GET", "HEAD"):
        assert (await files.handle(Request(method, f"/files/{NAME}", []), "")).status == 503
    catalog = await bench.look()
    assert (bench.served(), catalog.problems()) == (FIRST, [])


async def test_a_last_good_version_that_is_lost_is_not_promised(bench: Bench) -> None:
    bench.put(FIRST)
    await bench.look()
    bench.put(BROKEN)
    await bench.look()
    bench.copy().unlink()
    catalog = await bench.look()
    assert (catalog.files[NAME].state, catalog.published) == (State.REFUSED, [])
    assert "nothing is served" in catalog.problems()[0]


@pytest.mark.parametrize("refuses", ["clamproxy.site_files.publisher._locked", "tempfile.mkdtemp"])
async def test_on_a_disk_that_refuses_writes_what_is_intact_is_served(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    """A read-only disk, or a full one."""
    bench.put(FIRST)
    bench.put(SECOND, "other.ndb")
    await bench.look()
    bench.copy("other.ndb").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(refuses, refuse)
    monkeypatch.setattr(Catalog, "save", refuse)
    monkeypatch.setattr(publisher, "LOOK_EVERY", 0.01)
    files = SiteFiles(bench.directory, bench.records, lambda: bench.now + 1)
    files.start()
    try:
        for _ in range(3):
            assert (await files.handle(Request("GET", f"/files/{NAME}", []), "")).status == 200
            assert (await files.handle(Request("GET", "/files/other.ndb", []), "")).status == 404
            await asyncio.sleep(0.05)
    finally:
        files.stop()


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b'{"files": [{}], "withdrawn": {}, "trouble": ""}',
    b'{"files": 1}',
    b"\xff",
    b'{"files": null, "withdrawn": {}, "trouble": ""}',
    b'{"files": [], "withdrawn": {"a.ndb": 1e999}, "trouble": ""}',
    b'{"files": [], "withdrawn": null, "trouble": ""}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
async def test_a_damaged_catalog_is_written_anew(
    bench: Bench, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(FIRST)
    await bench.look()
    for name in ("catalog.json", recipients.FILE_NAME):
        (bench.records / "site-files" / name).write_bytes(content)
    monkeypatch.setattr(publisher, "LOOK_EVERY", 0.01)
    files = SiteFiles(bench.directory, bench.records, lambda: bench.now + 1)
    files.start()
    try:
        await until(lambda: files.catalog.published == [NAME])
        assert (await files.handle(Request("GET", f"/files/{NAME}", []), "")).status == 200
    finally:
        files.stop()


@pytest.mark.parametrize(
    "damage",
    [
        {"since": 1e400},
        {"since": 1e300},
        {"source": [1e400, 1, 1]},
        {"source": []},
        {"served": {"sha256": "0" * 64, "size": 1e400, "published_at": 1, "checked_by": None}},
        {"served": {"sha256": "0" * 64, "size": 1, "published_at": 10**30, "checked_by": None}},
        {"served": []},
        {"name": None, "state": None},
    ],
    ids=str,
)
def test_an_entry_that_is_damaged_is_left_out(tmp_path: Path, damage: dict[str, object]) -> None:
    entry = {
        "name": NAME,
        "state": "refused",
        "since": 1.0,
        "reason": "",
        "source": [1, 1, 1],
        "served": None,
    }
    values = {"files": [{**entry, **damage}, {**entry, "name": "ok.ndb"}], "withdrawn": {}, "trouble": ""}
    (tmp_path / "catalog.json").write_text(json.dumps(values))
    assert list(Catalog.load(tmp_path).files) == ["ok.ndb"]


async def test_the_loop_survives_whatever_happens(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.put(FIRST)
    monkeypatch.setattr(publisher, "LOOK_EVERY", 0.01)
    with monkeypatch.context() as patch:

        def fail(_: Path) -> None:
            raise AssertionError("a defect")

        patch.setattr(Catalog, "load", fail)
        bench.publisher.start()
        await until(lambda: "a defect" in caplog.text)
    try:
        await until(lambda: bench.served() == FIRST)
    finally:
        bench.publisher.stop()
    assert caplog.text.count("a defect") == 1


async def test_ignored_signatures_wait_for_one_check_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are left to a later look: a false positive can't wait until all are checked."""
    monkeypatch.setattr(publisher, "LOOK_EVERY", 0.0)  # however short a check is, it counts as a long one
    others = {f"{letter}.ndb": f"Site.{letter}-1:0:*:6161616161616161\n".encode() for letter in "abc"}
    for name, content in others.items():
        bench.put(content, name)

    def ignore() -> None:
        if len(bench.checks) == 1:
            bench.put(b"Site.A-1\n", IGNORED_SIGNATURES)

    bench.during_check = ignore
    await bench.look(8)
    first, *rest = others.values()
    assert bench.checks == [first, b"Site.A-1\n", *rest]


async def test_ignored_signatures_that_always_change_stop_no_others(bench: Bench) -> None:
    bench.put(FIRST)
    for number in range(4):
        bench.put(b"Site.A-1\n" * (number + 1), IGNORED_SIGNATURES)
        await bench.look(1)
    assert bench.served() == FIRST


async def test_checks_that_fail_stop_no_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "LOOK_EVERY", 0.0)
    bench.put(FIRST, "a.ndb")
    bench.put(FIRST, "b.ndb")
    bench.put(SECOND, "c.ndb")
    bench.failure = "clamscan didn't end within 300 s"
    for _ in range(6):
        await bench.look(1)
        bench.now += 61
    assert SECOND in bench.checks[:3]


@pytest.mark.parametrize("key", ["name", "sha256"])
def test_a_catalog_names_no_file_outside(tmp_path: Path, key: str) -> None:
    served = {"sha256": "0" * 64, "size": 1, "published_at": 1, "checked_by": None}
    entry = {"name": NAME, "state": "published", "since": 1.0, "reason": "", "source": [1, 1, 1]}
    (served if key == "sha256" else entry)[key] = "../../etc/passwd"
    values = {"files": [{**entry, "served": served}], "withdrawn": {}, "trouble": ""}
    (tmp_path / "catalog.json").write_text(json.dumps(values))
    assert Catalog.load(tmp_path).files == {}


async def test_one_process_publishes_and_the_others_follow(bench: Bench) -> None:
    bench.put(FIRST)
    await bench.look()
    follower = Publisher(bench.directory, bench.records, lambda: bench.now)
    with (bench.records / "site-files" / "lock").open("ab") as file:
        assert try_lock(file)
        bench.put(SECOND)
        for _ in range(3):
            await follower.look()
        assert follower.catalog.files[NAME].served == bench.publisher.catalog.files[NAME].served
    await bench.look()
    await follower.look()
    assert follower.catalog.files[NAME].served == bench.publisher.catalog.files[NAME].served
    assert bench.served() == SECOND


async def test_many_requests_after_a_publication_read_it_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that doesn't publish itself."""
    follower = Publisher(bench.directory, bench.records, lambda: bench.now)
    bench.put(FIRST)
    await bench.look()
    reads, load, may_end = 0, Catalog.load, threading.Event()

    def slow(place: Path) -> Catalog:
        nonlocal reads
        reads += 1
        may_end.wait()
        return load(place)

    monkeypatch.setattr(Catalog, "load", slow)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        requests = [group.create_task(follower.catch_up()) for _ in range(100)]
        await until(lambda: reads > 0)
        requests.pop().cancel()  # one whose client has gone takes nothing away from the others
        requests.pop(0).cancel()
        may_end.set()
    assert all(request.done() for request in requests)
    assert follower.catalog.published == [NAME]
    assert reads <= 2  # the first one was cancelled


# Requests


async def test_after_a_restart_it_is_known_at_once_what_is_refused(bench: Bench) -> None:
    """Otherwise it would seem to be over until the first look."""
    bench.put(BROKEN)
    await bench.look()
    again = bench.anew()
    again.start()
    again.stop()
    assert again.catalog.files[NAME].state is State.REFUSED


@pytest.fixture
async def files(bench: Bench) -> AsyncIterator[SiteFiles]:
    files = SiteFiles(bench.directory, bench.records, lambda: bench.now)
    files.start()
    yield files
    files.stop()


async def test_a_start_waits_only_until_it_is_known_what_is_published(bench: Bench, files: SiteFiles) -> None:
    response = await files.handle(Request("GET", f"/files/{NAME}", []), "192.0.2.1")
    assert response.status == 404


async def test_without_a_directory_there_is_nothing(tmp_path: Path) -> None:
    files = SiteFiles(None, tmp_path)
    files.start()
    assert (await files.handle(Request("GET", f"/files/{NAME}", []), "")).status == 404
    assert (await files.handle(Request("GET", "/files", []), "")).status == 200
    files.stop()


async def test_nothing_is_sent_before_its_date(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the copy that a machine makes of it would look older than it is, and be fetched twice."""
    bench.put(FIRST)
    await bench.look()
    bench.now = START + 0.4
    slept: list[float] = []
    files = SiteFiles(bench.directory, bench.records, lambda: bench.now)
    files._publisher = bench.publisher

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert (await files.handle(Request("GET", f"/files/{NAME}", []), "")).status == 200
    assert slept == [pytest.approx(0.6)]
