"""Gateways of a site that tell each other what they have learnt, by an object store."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from clamproxy.bucket.bucket import Bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.bucket.bucket_requests import BucketRequests
from clamproxy.cache.store import Store
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.sharing import gateway_document, note_exchange, site_notes
from clamproxy.sharing.clock_difference import SIGN_OF_LIFE
from clamproxy.sharing.gateway_document import GatewayDocument, path_of
from clamproxy.sharing.note_exchange import DELETE_AFTER, GONE_AFTER, LOOK_EVERY, NoteExchange
from clamproxy.sharing.reports import REPORT_EVERY, Reports, packed, unpacked
from clamproxy.storage.records import Records

NOW = 1_700_000_000.0
HOUR = 3600.0


class Time:
    """The time of all gateways of a test, which only the test moves."""

    def __init__(self) -> None:
        self.passed = 0.0

    def clock(self, ahead: float = 0.0) -> Clock:
        return Clock(self, ahead)


class Clock:
    def __init__(self, true: Time, ahead: float) -> None:
        self._true = true
        self.ahead = ahead

    def time(self) -> float:
        return NOW + self._true.passed + self.ahead

    def monotonic(self) -> float:
        return 1000 + self._true.passed


class Gateway:
    """A gateway, as far as it exchanges notes."""

    def __init__(self, site: Site, directory: Path, clock: Clock) -> None:
        self.directory = directory
        self.clock = clock
        self.store = Store(directory, records=Records(directory))
        self.report: bytes | None = None
        leases = DirectoryLeases(directory)
        self.exchange = NoteExchange(site.bucket, self.store, leases, self._report, clock)

    async def _report(self) -> bytes | None:
        return self.report

    def know(self, topic: str) -> dict[str, list[Any]]:
        """What others have told on a topic."""
        return self.store.noted.site_notes(topic)


class Site:
    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.objects = MemoryStore()
        self.calls = Counter[str]()
        requests = BucketRequests(self.objects)
        self.bucket = Bucket(requests, "memory://", lambda kind, _: self.calls.update([kind]))
        self.true = Time()
        self.gateways: list[Gateway] = []
        self._directory = directory
        self._stack = stack

    def gateway(self, name: str, ahead: float = 0.0, copy_of: str | None = None) -> Gateway:
        directory = self._directory / name
        if copy_of is not None:
            shutil.copytree(self._directory / copy_of, directory)
        gateway = Gateway(self, directory, self.true.clock(ahead))
        self._stack.callback(gateway.store.close)
        self.gateways.append(gateway)
        return gateway

    async def go_on(self, seconds: float = LOOK_EVERY, step: float = LOOK_EVERY) -> None:
        """Let time pass, while all gateways do their work."""
        for _ in range(round(seconds / step)):
            self.true.passed += step
            for gateway in self.gateways:
                await gateway.exchange.work()

    async def documents(self) -> set[str]:
        return {name.removesuffix(".json") for name in await self.bucket.list("gateways")}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    # The directories of one machine stand for those of several.
    monkeypatch.setattr(gateway_document, "_BOOT", tmp_path / "none")
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def forbidden(now: float) -> dict[str, Any]:
    return {"until": now + 600, "failures": 1, "failure": "forbidden", "reason": "403", "noted_at": now}


@pytest.mark.parametrize("ahead", [0, 3 * HOUR, -600])
async def test_what_one_learns_the_others_know_in_their_own_time(site: Site, ahead: float) -> None:
    first, second = site.gateway("a", ahead), site.gateway("b")
    await site.go_on(120)
    first.store.set_note("cooldown/client ClamAV/1.4.6", forbidden(first.clock.time()))
    await site.go_on(2 * LOOK_EVERY)
    [known] = second.know("cooldown")["client ClamAV/1.4.6"]
    assert abs(known["until"] - (second.clock.time() + 600)) <= 3 * LOOK_EVERY
    first.store.set_note("cooldown/client ClamAV/1.4.6", None)
    await site.go_on(2 * LOOK_EVERY)
    assert second.know("cooldown") == {}


async def test_what_came_from_others_is_not_told_again(site: Site) -> None:
    first, second, third = (site.gateway(name) for name in "abc")
    first.store.set_note("advertised/daily", [27800, first.clock.time()])
    await site.go_on(20)
    assert [len(one.know("advertised").get("daily", [])) for one in (first, second, third)] == [0, 1, 1]


async def test_one_whose_clock_is_set_is_understood_again(site: Site) -> None:
    first, second = site.gateway("a"), site.gateway("b")
    await site.go_on(10)
    first.clock.ahead = 3 * HOUR
    first.store.set_note("cld/daily", first.clock.time())
    await site.go_on(10)
    first.clock.ahead = -600
    first.store.set_note("cld/main", first.clock.time())
    await site.go_on(10)
    now = second.clock.time()
    assert {key: now - 30 < at <= now for key, [at] in second.know("cld").items()} == {
        "daily": True,
        "main": True,
    }


async def test_nothing_happens_while_the_store_is_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = site.gateway("a"), site.gateway("b")
    first.store.set_note("cld/daily", NOW)
    await site.go_on(10)
    site.bucket.condition.failed("down")
    first.store.set_note("cld/main", NOW)
    await site.go_on(2 * GONE_AFTER, step=10)
    assert set(second.know("cld")) == {"daily"}  # what is known stays
    site.bucket.condition.recovered()
    await site.go_on(2 * LOOK_EVERY)
    assert set(second.know("cld")) == {"daily", "main"}


async def test_a_gateway_that_is_gone_disappears_by_time(site: Site) -> None:
    first, second = site.gateway("a"), site.gateway("b")
    first.store.set_note("cld/daily", NOW)
    first.report = packed([b"hello"])
    await site.go_on(10)
    assert second.know("cld")
    [gone] = site_notes.gateways(second.store)
    site.gateways.remove(first)
    await site.go_on(GONE_AFTER + 20, step=LOOK_EVERY)
    assert (second.know("cld"), site_notes.gateways(second.store)) == ({}, {})
    assert not list(second.directory.glob("gateways/*"))
    assert gone in await site.documents()

    again = site.gateway("b2", copy_of="b")  # after a restart, it isn't taken for a new one
    site.gateways = [again]
    await site.go_on(20)
    assert again.know("cld") == {}
    await site.go_on(DELETE_AFTER + 60, step=60)
    assert {name.partition(".")[0] for name in await site.documents()}.isdisjoint({gone})


async def test_a_gateway_keeps_its_id_over_a_restart(site: Site) -> None:
    first = site.gateway("a")
    await site.go_on(4)
    before = await site.documents()
    site.gateways = []
    first.store.close()
    first = site.gateway("a")
    await site.go_on(4)
    assert await site.documents() == before


async def test_a_second_worker_takes_over(site: Site) -> None:
    first, worker = site.gateway("a"), site.gateway("a")
    watcher = site.gateway("b")
    site.gateways = [first, watcher]
    await site.go_on(4)
    before = await site.documents()
    site.gateways = [worker, watcher]
    worker.store.set_note("cld/daily", NOW)
    await site.go_on(4)
    site.gateways = [first, watcher]
    first.store.set_note("cld/main", NOW)
    await site.go_on(4)
    assert await site.documents() == before
    assert set(watcher.know("cld")) == {"daily", "main"}


async def test_a_copy_of_a_gateway_gets_an_id_of_its_own(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    first = site.gateway("a")
    await site.go_on(4)
    clone = site.gateway("clone", copy_of="a")
    for _ in range(4):
        for number, one in enumerate((first, clone)):
            one.store.set_note("cld/daily" if number else "cld/main", site.true.passed)
        await site.go_on(4)
    assert len(await site.documents()) == 2
    assert caplog.text.count("has a copy of this one's state directory") == 1
    assert len({one.store.records.notes("gateway/")["id"] for one in (first, clone)}) == 2


async def test_reports_arrive(site: Site) -> None:
    first, second = site.gateway("a"), site.gateway("b")
    first.report = packed(line for line in [b"one", b"two"])
    await site.go_on(10)
    [file] = second.directory.glob("gateways/*")
    assert list(unpacked(file.read_bytes())) == [b"one", b"two"]


async def test_a_report_that_could_not_be_put_is_put_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = site.gateway("a"), site.gateway("b")
    first.report = packed([b"one"])
    with monkeypatch.context() as patch:

        async def refuse(*_: object) -> None:
            raise BucketError("down for a moment")

        patch.setattr(site.bucket, "put", refuse)
        await site.go_on(2)
    await site.go_on(REPORT_EVERY + 20)
    assert reports(second) == [[b"one"]]
    puts = site.calls["put"]
    first.report = None
    await site.go_on(SIGN_OF_LIFE)
    others = site.calls["put"] - puts
    first.report = packed([b"one"])  # the same as before
    puts = site.calls["put"]
    await site.go_on(SIGN_OF_LIFE)
    assert site.calls["put"] - puts == others


async def test_a_report_that_others_have_deleted_comes_back(site: Site) -> None:
    """They do so with one of a gateway that couldn't reach the store for a day."""
    first, second = site.gateway("a"), site.gateway("b")
    first.report = packed([b"one"])
    await site.go_on(20)
    for name in await site.bucket.list("gateways"):
        await site.bucket.delete(f"gateways/{name}")
    site.gateways.remove(first)
    await site.go_on(20)
    assert reports(second) == []
    site.gateways.append(first)
    await site.go_on(2 * REPORT_EVERY + 20)
    assert reports(second) == [[b"one"]]


async def test_a_report_that_could_not_be_saved_is_saved_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = site.gateway("a"), site.gateway("b")
    first.report = packed([b"one"])
    tries = 0

    def refuse(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Reports, "save", refuse)
        await site.go_on(60)
    assert (tries, reports(second)) == (1, [])  # as long as the disk is full, it isn't fetched in vain
    second.store.mend()
    await site.go_on(20)
    assert reports(second) == [[b"one"]]


def reports(gateway: Gateway) -> list[list[bytes]]:
    """Those of others that a gateway has."""
    return [list(unpacked(file.read_bytes())) for file in gateway.directory.glob("gateways/*.report.gz")]


def _with(**changes: Any) -> bytes:
    return json.dumps(
        {"format": 1, "name": "x", "life": "y", "written_at": NOW, "notes": {}, **changes}
    ).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": 1}',
        _with(format=2),
        _with(written_at=1e300),
        _with(written_at=float("nan")),
        _with(written_at="now"),
        _with(notes="x" * 600_000),
        _with(notes={"cooldown": {f"/daily-{n}.cdiff": forbidden(NOW) for n in range(1, 100_000)}}),
        _with(name=["x"]),
    ],
)
async def test_a_hostile_document_is_ignored_as_a_whole(
    site: Site, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = site.gateway("a"), site.gateway("b")
    await site.bucket.put(path_of("0" * 16), content)
    first.store.set_note("cld/daily", NOW)
    await site.go_on(30)
    assert set(second.know("cld")) == {"daily"}
    assert second.know("cooldown") == {}
    assert len(site_notes.gateways(second.store)) == 1
    assert caplog.text.count("is ignored") == 2  # once by each gateway


async def test_too_many_gateways_displace_none_that_is_known(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(note_exchange, "MOST_GATEWAYS", 5)
    first, second = site.gateway("a"), site.gateway("b")
    first.store.set_note("cld/daily", NOW)
    await site.go_on(6)
    for number in range(50):
        await site.bucket.put(path_of(f"{number:016x}"), _with(notes={"cld": {"main": NOW}}))
    await site.go_on(12)
    assert len(site_notes.gateways(second.store)) == 5
    assert len(second.know("cld")["daily"]) == 1
    assert caplog.text.count("The site has more than") == 2


async def test_known_gateways_are_followed_without_many_lists(site: Site) -> None:
    """With S3, a list costs twelve times as much as a read."""
    first, second = site.gateway("a"), site.gateway("b")
    await site.go_on(30)
    site.calls.clear()
    await site.go_on(60)
    assert site.calls["list"] <= 14
    first.store.set_note("cld/daily", NOW)
    await site.go_on(4)
    assert set(second.know("cld")) == {"daily"}


def test_a_document_survives_its_own_parser() -> None:
    document = GatewayDocument("host", "life", NOW, {"cld": {"daily": NOW}})
    assert GatewayDocument.parse(document.encode()) == document
