"""A file and its digest beside it: served from one moment, whichever expires first and is asked for first."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers

from clamproxy.feeds import pairs
from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.feed_store import FeedStore
from clamproxy.feeds.sharing_rules import ResponseHead
from clamproxy.feeds.target import Target
from tests.harness.feeds import KEY, MISS, FeedsHarness, open_harness, read
from tests.support import faults
from tests.support.faults import Fault
from tests.support.origin import OriginServer

FILE = f"/get/{KEY}/file.ndb"
DIGEST = f"{FILE}.sha256"
NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
LONG, SHORT, NONE = "max-age=86400", "max-age=0", ""


@pytest.fixture
def harness(tmp_path: Path, origin: OriginServer) -> Iterator[FeedsHarness]:
    with open_harness(tmp_path, origin) as harness:
        yield harness


def publish(harness: FeedsHarness, content: bytes, of_file: str = LONG, of_digest: str = LONG) -> None:
    """A new file, and what belongs to it."""
    harness.origin.heal()
    digest = hashlib.sha256(content).hexdigest().encode()
    for path, body, control in ((FILE, content, of_file), (DIGEST, digest, of_digest)):
        harness.origin.put(path[1:], body)
        harness.origin.rule(path, Fault(headers={"Cache-Control": control} if control else {}))


async def run(harness: FeedsHarness, *order: str) -> tuple[bytes, bool]:
    """What a client gets that asks in an order: the file, and whether both agree."""
    got = {path: await harness.get(path) for path in order}
    assert {status for status, *_ in got.values()} == {200}
    content = got[FILE][2]
    return content, got[DIGEST][2].decode() == hashlib.sha256(content).hexdigest()


orders = pytest.mark.parametrize(
    "order", [(DIGEST, FILE), (FILE, DIGEST)], ids=["digest first", "file first"]
)


@orders
@pytest.mark.parametrize(
    ("of_file", "of_digest"),
    [(LONG, SHORT), (SHORT, LONG), (NONE, SHORT), (SHORT, NONE), (SHORT, SHORT), (LONG, "no-cache")],
)
async def test_a_file_and_its_digest_are_of_one_moment(
    harness: FeedsHarness, order: tuple[str, str], of_file: str, of_digest: str
) -> None:
    """As one expires at another time than the other, whichever was stored first."""
    for number in range(4):
        publish(harness, b"%d" % number, of_file, of_digest)
        assert await run(harness, *order) == (b"%d" % number, True)
        harness.restart()


@pytest.mark.parametrize(
    "fault",
    [Fault(headers={"Cache-Control": "no-store"}), Fault(length=False)],
    ids=["no-store", "no length"],
)
async def test_a_digest_that_is_not_stored(harness: FeedsHarness, fault: Fault) -> None:
    for content in (b"one", b"two", b"three"):
        publish(harness, content)
        harness.origin.rule(DIGEST, fault)
        assert await run(harness, DIGEST, FILE) == (content, True)


async def test_a_digest_that_is_being_stored(harness: FeedsHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client asks for the file at once, and the disk takes its time."""
    publish(harness, b"one", LONG, SHORT)
    await run(harness, DIGEST, FILE)
    publish(harness, b"two", LONG, SHORT)
    stored, publishing = threading.Event(), FeedStore.publish
    with monkeypatch.context() as patch:
        patch.setattr(FeedStore, "publish", lambda *given: (stored.wait(30), publishing(*given))[1])
        assert await read(await harness.ask(DIGEST)) == hashlib.sha256(b"two").hexdigest().encode()
        assert await read(await harness.ask(FILE)) == b"two"
        stored.set()
        await harness.settle()


@orders
async def test_what_agrees_costs_the_feed_nothing_more(harness: FeedsHarness, order: tuple[str, str]) -> None:
    publish(harness, b"one")
    for _ in range(5):
        assert await run(harness, *order) == (b"one", True)
    asked = [(seen.path, seen.status) for seen in harness.origin.requests()]
    assert sorted(asked[:2]) == [(FILE, 200), (DIGEST, 200)]
    # The one that came first may have been replaced before the other came.
    assert asked[2:] == [(order[0], 304)]


async def test_a_digest_that_is_seen_for_the_first_time(harness: FeedsHarness) -> None:
    """Other clients, which want no digest, have had the file cached."""
    publish(harness, b"one")
    await harness.get(FILE)
    publish(harness, b"two")
    assert await run(harness, DIGEST, FILE) == (b"two", True)


async def test_a_digest_is_published_before_its_file(
    harness: FeedsHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed is asked again, and not for each client that comes meanwhile."""
    publish(harness, b"one")
    await run(harness, DIGEST, FILE)
    harness.origin.put(DIGEST[1:], hashlib.sha256(b"two").hexdigest().encode())
    assert (await harness.get(DIGEST, Cache_Control="no-cache"))[1] == MISS
    harness.origin.forget()
    for _ in range(5):
        assert await run(harness, DIGEST, FILE) == (b"one", False)
    assert harness.origin.count(FILE) == 1
    harness.origin.put(FILE[1:], b"two")
    monkeypatch.setattr(pairs, "FLOOR", 0.0)
    async with asyncio.timeout(30):
        while await run(harness, DIGEST, FILE) != (b"two", True):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_the_old_file_stands_in_while_the_feed_fails(harness: FeedsHarness) -> None:
    publish(harness, b"one", LONG, SHORT)
    await run(harness, DIGEST, FILE)
    publish(harness, b"two", LONG, SHORT)
    harness.origin.rule(FILE, faults.status(500))
    assert await run(harness, DIGEST, FILE) == (b"one", False)


async def test_a_subscriber_s_pair_is_not_another_s(harness: FeedsHarness) -> None:
    publish(harness, b"one", "public, max-age=86400", "public, max-age=86400")
    for user in ("a", "b"):
        await harness.get(FILE, Authorization=user)
    await harness.get(DIGEST, Authorization="a")
    harness.origin.forget()
    await harness.get(FILE, Authorization="b")
    assert harness.origin.count(FILE) == 0
    await harness.get(FILE, Authorization="a")
    assert harness.origin.count(FILE) == 1


# The rule itself


def entry(
    obtained: float, validated: float | None = None, life: float = DAY, *, tag: str | None = '"x"'
) -> StoredResponse:
    """What came first at a time, and was validated last at another."""
    headers = Headers([("Cache-Control", f"max-age={life:.0f}"), *([("ETag", tag)] if tag else [])])
    at = obtained if validated is None else validated
    return StoredResponse("k", "feed", ResponseHead(headers, at, at), {}, 1, "0" * 64, obtained)


@pytest.mark.parametrize(
    ("mine", "other", "keeps"),
    [
        pytest.param(entry(NOW - HOUR), entry(NOW - HOUR), True, id="of one moment"),
        pytest.param(entry(NOW - HOUR), entry(NOW - 2 * HOUR), True, id="the newer of two"),
        pytest.param(entry(NOW - HOUR), entry(NOW - 1), False, id="the other is new"),
        pytest.param(entry(NOW - HOUR), entry(NOW - 9 * HOUR, NOW - 1), True, id="the other is confirmed"),
        pytest.param(entry(NOW - HOUR, NOW - 1), entry(NOW - 2), True, id="validated since"),
        pytest.param(entry(0, NOW - 59), entry(NOW - 59.5), True, id="no more than once a minute"),
        pytest.param(entry(0, NOW - 61), entry(NOW - 61.5), False, id="after a minute once more"),
        pytest.param(entry(0, NOW - 600), entry(NOW - 1300), True, id="less and less often"),
        pytest.param(entry(0, NOW - 600), entry(NOW - 1100), False, id="as long again as since the change"),
        pytest.param(entry(0, NOW - HOUR), entry(0, NOW - HOUR, 60), False, id="the other has expired"),
        pytest.param(entry(0, NOW - 59), entry(0, NOW - HOUR, 60), True, id="validated since it has"),
        pytest.param(entry(0, NOW - HOUR), entry(0, NOW - HOUR, DAY), True, id="the other is fresh"),
        pytest.param(entry(0, NOW - HOUR, tag=None), entry(0, NOW - HOUR, 60), True, id="no validators"),
        pytest.param(entry(0, NOW - HOUR, tag=None), entry(NOW - 1), False, id="no validators, yet changed"),
        pytest.param(entry(0, NOW - HOUR), entry(NOW + DAY), True, id="a clock that was turned back"),
    ],
)
def test_what_keeps_step(mine: StoredResponse, other: StoredResponse, keeps: bool) -> None:
    assert pairs.keeps_step(mine, other, NOW) is keeps


@pytest.mark.parametrize("delay", [0, 7, HOUR], ids="the first client {}s after it".format)
@pytest.mark.parametrize("pause", [10, 61, 900], ids="one each {}s".format)
def test_a_change_costs_few_requests(delay: float, pause: float) -> None:
    """However often clients come within a day."""
    digest = entry(NOW, life=30 * DAY)
    validated, asked = entry(0, NOW - HOUR), 0
    for number in range(int(DAY / pause)):
        now = NOW + delay + number * pause
        if not pairs.keeps_step(validated, digest, now):
            validated, asked = entry(0, now), asked + 1
    assert 1 <= asked <= 12


@pytest.mark.parametrize(
    ("one", "other", "belong"),
    [
        ("http://feed/a.ndb", "http://feed/a.ndb.sha256", True),
        ("http://feed/a.ndb", "http://feed/a.ndb.SHA256", True),
        ("http://feed/a.ndb", "http://feed/a.ndb.md5", True),
        ("http://feed/a.ndb", "http://feed/a.ndb.sha512sum", True),
        ("http://feed/a.ndb", "http://feed/a.ndb.sig", True),
        ("http://feed/a.ndb", "http://feed/a.ndb.asc", True),
        ("http://feed/a.ndb?key=1", "http://feed/a.ndb.sha1?key=1", True),
        ("http://feed/a.ndb?key=1", "http://feed/a.ndb.sha1?key=2", False),
        ("http://feed/a?list=1", "http://feed/a?list=1.sha1", True),
        ("http://feed/a?list=1", "http://feed/a?list=2.sha1", False),
        ("http://feed/a.ndb", "http://feed/b.ndb.sha1", False),
        ("http://feed/a.ndb", "http://feed/a.ndb.txt", False),
        ("http://feed/a.ndb", "https://feed/a.ndb.sha1", False),
        ("http://feed/a.ndb.sha256", "http://feed/a.ndb.sha256.asc", True),
        ("http://feed/a.ndb", "http://feed/a.ndb", False),
    ],
)
def test_what_belongs_together(one: str, other: str, belong: bool) -> None:
    target, second = Target.parse(one), Target.parse(other)
    assert (target in pairs.beside(second)) is belong
    if other == other.lower():  # nobody looks for a digest in capitals; that one looks for its file
        assert (second in pairs.beside(target)) is belong
