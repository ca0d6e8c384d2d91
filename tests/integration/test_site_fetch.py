"""Objects through the object store of a site: each is asked of the origin once, and nothing is trusted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.leases.leases import WaitEnding
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.errors import NotFoundError, TransferError
from clamproxy.origin.learnt import ending_left
from clamproxy.origin.transfers import CooldownError
from clamproxy.sharing import shared_objects
from clamproxy.sharing.shared_objects import path_of
from tests.harness.site import LIMIT, MakeMember, Member, open_site
from tests.support import faults
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff, forge_sign
from tests.support.object_store import BROKEN, FULL, READ_ONLY, ObjectStore
from tests.support.origin import OriginServer
from tests.support.stored import NEW, OLD, cdiff, cvd, put, put_cvd, read_all, until

BIG = 512 * 1024


@pytest.fixture
async def make(
    tmp_path: Path, origin: OriginServer, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeMember]:
    async with open_site(tmp_path, origin, object_store.use(monkeypatch)) as make:
        yield make


async def uploaded(member: Member, name: str) -> None:
    """Wait until an object is in the bucket."""
    await member.shared.settle()
    assert f"daily/{name}" in await member.bucket.list("objects")


async def put_there(member: Member, object_id: object, body: bytes) -> None:
    """Put anything into the bucket under an object's name."""
    await member.bucket.put(path_of(object_id), body)  # type: ignore[arg-type]


# The good case


async def test_all_gateways_at_once_cost_one_request(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5, BIG), modified="Tue, 14 Nov 2023 22:13:20 GMT")
    origin.rule("/daily.cvd", faults.slow(BIG), times=1)
    members = [make() for _ in range(4)]
    await asyncio.gather(*(one.fetch(cvd(5)) for one in members))
    assert origin.count("/daily.cvd") == 1, origin.trace
    assert {one.read(cvd(5)) for one in members} == {make_cvd(5, BIG)}
    dates = {known.last_modified for one in members for known in one.store.metadata(cvd(5)) if known}
    assert dates == {1_700_000_000.0}
    assert {known.header for one in members for known in one.store.metadata(cvd(5)) if known} == {
        make_cvd(5, BIG)[:512].decode()
    }


async def test_a_later_gateway_takes_it_from_the_bucket(make: MakeMember, origin: OriginServer) -> None:
    origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    first = make()
    await first.fetch(cdiff(5))
    await uploaded(first, "daily-5.cdiff")
    origin.refuse()
    later = make()
    await later.fetch(cdiff(5))
    assert later.read(cdiff(5)) == forge_cdiff("daily", 5)
    assert not later.cooldowns.in_force()


@pytest.mark.parametrize("is_there", [True, False])
async def test_an_older_file_in_the_bucket_says_nothing_of_the_origins_header(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd, is_there: bool
) -> None:
    member = make()
    if is_there:
        await put_there(member, cvd(4), make_cvd(4, BIG))
    origin.put("daily.cvd", make_cvd(5, BIG))
    await member.heads.probe("daily", NEW, 5, 5)
    head = member.heads.get("daily")
    assert await member.transfers.take_shared(cvd(4)) is is_there
    assert member.heads.get("daily") == head is not None


async def test_readers_follow_what_comes_from_the_bucket(
    make: MakeMember, object_store: ObjectStore, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, 8 * BIG)
    await put_there(make(), cvd(5), body)
    object_store.faults.rate = 16 * BIG
    later = make()
    transfer, _ = await later.transfers.ready(cvd(5), NEW)
    assert not transfer.published
    source = transfer.source()
    assert await read_all(source) == body
    source.close()


async def test_heads_are_asked_for_once(make: MakeMember, origin: OriginServer, make_cvd: MakeCvd) -> None:
    origin.put("daily.cvd", make_cvd(5, BIG))
    members = [make() for _ in range(3)]
    await asyncio.gather(*(one.heads.probe("daily", NEW, 5, 5) for one in members))
    late = make()
    await late.heads.probe("daily", NEW, 5, 5)
    heads = [one.heads.get("daily") for one in [*members, late]]
    assert {head.header.version for head in heads if head} == {5}
    assert None not in heads
    assert origin.count("/daily.cvd") == 1, origin.trace
    # A version that nobody has seen there is looked for.
    origin.put("daily.cvd", make_cvd(6, BIG))
    assert (await late.leases.wait("probe daily", LIMIT)).ending is WaitEnding.RELEASED
    await late.heads.probe("daily", NEW, 6, 6)
    assert origin.count("/daily.cvd") == 2


@pytest.mark.parametrize("junk", [b"", b"[" * 100_000, b"null", b'{"header": "ClamAV-VDB:"}'], ids=len)
async def test_a_head_that_makes_no_sense_is_asked_for(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd, junk: bytes
) -> None:
    origin.put("daily.cvd", make_cvd(5, BIG))
    member = make()
    await member.bucket.put("heads/daily.json", junk)
    await member.heads.probe("daily", NEW, 5, 5)
    head = member.heads.get("daily")
    assert head is not None
    assert head.header is not None
    assert head.header.version == 5


# What one gateway has learnt counts for those that waited


@pytest.mark.parametrize("failure", [None, FailureKind.RATE_LIMITED, FailureKind.FORBIDDEN])
async def test_a_failure_is_everybodys(
    make: MakeMember, origin: OriginServer, failure: FailureKind | None
) -> None:
    holder, *others = (make() for _ in range(3))
    lease = await holder.leases.take("fetch daily-5.cdiff")
    assert lease is not None
    waiting = asyncio.gather(*(one.fetch(cdiff(5)) for one in others), return_exceptions=True)
    await until(lambda: all(one.transfers.under_way() for one in others))
    await asyncio.sleep(1)  # they have seen that it is held
    lease.release(ending_left(TransferEnding("not here", failure, NEW.version, 50.0)))
    for one in await waiting:
        assert isinstance(one, TransferError if failure else NotFoundError)
        assert "not here" in str(one)
    assert origin.requests() == []
    if failure:
        assert [len(one.cooldowns.in_force()) for one in others] == [1, 1]


async def test_the_holders_failure_is_left(make: MakeMember, origin: OriginServer) -> None:
    members = [make() for _ in range(3)]
    bad = b"ClamAV-Diff:5:7:" + b"nonsense" * 6000
    origin.put("daily-5.cdiff", bad)
    origin.rule("/daily-5.cdiff", replace(faults.replaced(bad), rate=len(bad) / 2))
    results = await asyncio.gather(*(one.fetch(cdiff(5)) for one in members), return_exceptions=True)
    assert [getattr(one, "failure", None) for one in results] == [FailureKind.BAD_CONTENT] * 3
    assert origin.count("/daily-5.cdiff") == 1, origin.trace


@pytest.mark.parametrize(
    "learnt",
    [
        {},
        {"failure": "no room"},
        TransferEnding("", FailureKind.NO_ROOM).to_json(),
        TransferEnding("", FailureKind.FORBIDDEN, OLD.version).to_json(),
    ],
)
async def test_a_gateways_own_failure_is_nobody_elses(
    make: MakeMember, origin: OriginServer, learnt: dict[str, Any]
) -> None:
    origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    holder, *others = (make() for _ in range(3))
    lease = await holder.leases.take("fetch daily-5.cdiff")
    assert lease is not None
    waiting = asyncio.gather(*(one.fetch(cdiff(5)) for one in others))
    await until(lambda: all(one.transfers.under_way() for one in others))
    lease.release(learnt)
    await waiting
    assert origin.count("/daily-5.cdiff") == 1, "one of them asks, and the other waits for that"


async def test_in_a_cool_down_the_bucket_is_asked_alone(make: MakeMember, origin: OriginServer) -> None:
    one = make()
    one.cooldowns.failed(FailureKind.RATE_LIMITED, cdiff(5).upstream_path, NEW.version, "too many")
    with pytest.raises(CooldownError):
        await one.fetch(cdiff(5))
    await put_there(one, cdiff(6), forge_cdiff("daily", 6))
    one.cooldowns.failed(FailureKind.RATE_LIMITED, cdiff(6).upstream_path, NEW.version, "too many")
    await one.fetch(cdiff(6))
    assert one.read(cdiff(6)) == forge_cdiff("daily", 6)
    assert origin.requests() == []
    assert len(one.cooldowns.in_force()) == 2, "what came from the bucket doesn't end a cool-down"


async def test_a_client_that_may_ask_takes_over_for_one_that_may_not(
    make: MakeMember, origin: OriginServer
) -> None:
    """Trap 20: whoever comes first, an old client's 403 doesn't apply to others."""
    origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    one = make()
    one.cooldowns.failed(FailureKind.FORBIDDEN, "/x", OLD.version, "old")
    await asyncio.gather(one.fetch(cdiff(5), OLD), one.fetch(cdiff(5), NEW))
    assert one.read(cdiff(5)) == forge_cdiff("daily", 5)
    (request,) = origin.requests()
    assert request.headers["user-agent"] == NEW.user_agent
    with pytest.raises(CooldownError):
        await one.fetch(cdiff(6), OLD)


# The bucket lies


@pytest.mark.parametrize("lie", ["other bytes", "truncated", "older", "page", "end"])
@pytest.mark.parametrize("size", [0, BIG])
async def test_a_bad_copy_is_replaced(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd, lie: str, size: int
) -> None:
    body = make_cvd(5, size)
    flipped = body[:600] + bytes([body[600] ^ 1]) + body[601:]
    bodies = {
        "other bytes": flipped,
        "truncated": body[: len(body) // 2],
        "older": make_cvd(4, size),
        "page": b"<html>" * 1000,
        "end": body[:-1] + bytes([body[-1] ^ 1]),
    }
    origin.put("daily.cvd", body)
    one = make()
    await put_there(one, cvd(5), bodies[lie])
    try:
        await one.fetch(cvd(5))
    except TransferError:
        # Readers may have followed it: they are cut off, and ask again.
        assert size
        assert not one.cooldowns.in_force()
        await one.fetch(cvd(5))
    assert one.read(cvd(5)) == body
    assert origin.count("/daily.cvd") == 1
    assert not one.cooldowns.in_force()
    await one.shared.settle()
    later = make()
    await later.fetch(cvd(5))
    assert later.read(cvd(5)) == body
    assert origin.count("/daily.cvd") == 1, "the right one is there now"


async def test_what_cannot_be_the_object_is_not_taken(make: MakeMember, origin: OriginServer) -> None:
    one, body = make(), forge_sign(b"x")
    for version, junk in ((5, b"x" * (2 << 20)), (6, b"")):
        signature = cdiff(version).signature
        origin.put(signature.file_name, body)
        await put_there(one, signature, junk)
        await one.fetch(signature)
        assert one.read(signature) == body
        assert origin.count(f"/{signature.file_name}") == 1
    assert one.shared.is_usable, "the store is all right"


# The bucket is out of order


@pytest.mark.parametrize("refused", [FULL, READ_ONLY, BROKEN], ids=["full", "read-only", "broken"])
async def test_each_fetches_for_itself(
    make: MakeMember, origin: OriginServer, object_store: ObjectStore, refused: dict[str, tuple[int, str]]
) -> None:
    origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
    object_store.faults.refuse = refused
    for one in (make(), make()):
        await one.fetch(cdiff(5))
        assert one.read(cdiff(5)) == forge_cdiff("daily", 5)
    assert origin.count("/daily-5.cdiff") == 2


async def test_a_bucket_that_is_down_or_silent(
    make: MakeMember, origin: OriginServer, object_store: ObjectStore
) -> None:
    for version in (5, 6, 7):
        origin.put(f"daily-{version}.cdiff", forge_cdiff("daily", version))
    one, other = make(), make()
    object_store.go_down()
    await one.fetch(cdiff(5))
    object_store.come_back()
    object_store.faults.is_stalled = True
    await other.fetch(cdiff(6))
    before = len(object_store.seen)
    await other.fetch(cdiff(7))
    assert len(object_store.seen) == before, "it isn't asked again while it is known to be out of order"


async def test_a_break_is_continued_at_the_origin(
    make: MakeMember, origin: OriginServer, object_store: ObjectStore, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, 4 * BIG)
    origin.put("daily.cvd", body)
    first = make()
    await first.fetch(cvd(5))
    await uploaded(first, "daily-5.cvd")
    origin.forget()
    object_store.faults.rate = 2 * BIG
    later = make()
    transfer, _ = await later.transfers.ready(cvd(5), NEW)
    source = transfer.source()
    object_store.go_down()
    assert await read_all(source) == body, "readers notice nothing"
    source.close()
    await transfer.finish()
    (seen,) = origin.requests()
    assert seen.headers["range"].startswith("bytes=")
    assert "if-range" in seen.headers


# Catching up


async def fill(make: MakeMember, origin: OriginServer, make_cvd: MakeCvd) -> Member:
    """A site with a base, two patches and their signatures."""
    one = make()
    put_cvd(one.store, 5, make_cvd(5, BIG))
    for version in (6, 7):
        put(one.store, cdiff(version), forge_cdiff("daily", version))
        put(one.store, cdiff(version).signature, forge_sign(forge_cdiff("daily", version)))
    await one.exchange._exchange()
    return one


async def test_what_a_gateway_has_is_given_and_taken(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    one = await fill(make, origin, make_cvd)
    later = make()
    await later.exchange.bring("daily")
    await until(lambda: later.store.has(cdiff(7).signature))
    assert set(later.store.object_ids()) == set(one.store.object_ids())
    assert later.read(cvd(5)) == make_cvd(5, BIG)
    assert origin.requests() == []
    put(one.store, cdiff(8), forge_cdiff("daily", 8))
    await one.exchange._exchange()
    await later.exchange._exchange()
    assert later.read(cdiff(8)) == forge_cdiff("daily", 8)


async def test_what_could_not_be_uploaded_is_not_tried_at_each_look(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a store that has room for documents only: each try would upload the whole file."""
    one = await fill(make, origin, make_cvd)
    await one.shared.drop(cvd(5))
    tries = 0

    async def full(*_: object) -> bool:
        nonlocal tries
        tries += 1
        raise BucketError("no room")

    monkeypatch.setattr(one.bucket, "upload", full)
    monkeypatch.setattr(shared_objects, "UPLOAD_AGAIN_AFTER", 0.0)
    for _ in range(3):
        assert not await one.shared.upload(cvd(5))
    assert tries == 3
    monkeypatch.setattr(shared_objects, "UPLOAD_AGAIN_AFTER", 3600.0)
    for _ in range(3):
        assert not await one.shared.upload(cvd(5))
    assert tries == 4


async def test_a_bad_object_that_is_replaced_twice_at_a_time(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    one = await fill(make, origin, make_cvd)
    await put_there(one, cvd(5), make_cvd(4))
    bad = (await one.shared.list())[cvd(5)]
    one.shared.reject(cvd(5), bad.etag)
    assert await asyncio.gather(*(one.shared.upload(cvd(5)) for _ in range(2))) == [True, True]
    assert not one.shared.is_bad(cvd(5))
    there = await one.bucket.get(path_of(cvd(5)))
    assert there is not None
    assert there.content == make_cvd(5, BIG)


async def test_what_was_purged_is_taken_only_when_needed(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    one = await fill(make, origin, make_cvd)
    await one.exchange._exchange()
    for object_id in list(one.store.object_ids()):
        one.store.drop(object_id)
    await one.exchange._exchange()
    assert set(one.store.object_ids()) == set()
    await one.exchange.bring("daily")
    assert one.read(cvd(5)) == make_cvd(5, BIG)


async def test_junk_is_neither_taken_nor_in_the_way(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    one = await fill(make, origin, make_cvd)
    for name in ("daily/daily-99999.cvd", "daily/daily-99998.cvd"):
        await one.bucket.put(f"objects/{name}", make_cvd(4))
    for name in ("junk", "daily/main-5.cvd", "daily/daily-0.cvd", "a/b/c/daily-5.cvd", "daily/daily-9.exe"):
        await one.bucket.put(f"objects/{name}", b"junk")
    later = make()
    await later.exchange.bring("daily")
    assert later.store.newest_version("daily") == 5
    for _ in range(2):
        await later.exchange._exchange()
    there = await later.bucket.list("objects")
    assert {"daily/daily-5.cvd", "daily/daily-7.cdiff", "daily/daily-99999.cvd"} <= there.keys()
    assert later.store.newest_version("daily") == 5


async def test_what_is_superseded_leaves_the_bucket(
    make: MakeMember, origin: OriginServer, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clamproxy.releases.object_exchange.SPARED", 0.0)
    one = make(keep_cdiffs=1)
    for version in (3, 4, 5):
        put_cvd(one.store, version, make_cvd(version))
        await one.shared.upload(cvd(version))
    for version in (4, 5, 6):
        put(one.store, cdiff(version), forge_cdiff("daily", version))
        await one.shared.upload(cdiff(version))
    await one.exchange._exchange()
    assert {path.rpartition("/")[2] for path in await one.bucket.list("objects")} == {
        "daily-4.cvd",
        "daily-5.cvd",
        "daily-6.cdiff",
    }
    await one.exchange._exchange()
    assert "daily/daily-3.cvd" not in await one.bucket.list("objects"), "it is not given again"
