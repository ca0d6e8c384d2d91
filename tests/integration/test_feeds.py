"""The cache of feeds, from request to response: what is stored, shared, revalidated, kept at a restart."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from werkzeug.http import http_date

from clamproxy.dates import parse_http_date
from clamproxy.messages import Body, SourceError
from clamproxy.origin.cooldown import LONGEST_RETRY_AFTER
from tests.harness.feeds import (
    BIG,
    BODY,
    BYPASS,
    ERROR,
    HIT,
    MISS,
    NAME,
    PATH,
    REVALIDATED,
    STALE,
    VIA,
    FeedsHarness,
    open_harness,
    read,
)
from tests.support import faults
from tests.support.faults import Fault
from tests.support.origin import OriginServer


@pytest.fixture
def harness(tmp_path: Path, origin: OriginServer) -> Iterator[FeedsHarness]:
    with open_harness(tmp_path, origin) as harness:
        yield harness


async def test_a_file_is_fetched_once(harness: FeedsHarness) -> None:
    assert await harness.get() == (200, MISS, BODY)
    assert await harness.get() == (200, HIT, BODY)
    assert harness.origin.count(PATH) == 1
    assert harness.feeds.figures()["objects"] == 1
    (host,) = harness.feeds.figures()["hosts"]
    assert host == {
        "host": f"localhost:{harness.origin.port}",
        "requests": 2,
        "hits": 1,
        "errors": 0,
        "cooldown_until": None,
    }


async def test_an_answer_has_the_fields_that_a_cache_adds(harness: FeedsHarness) -> None:
    harness.set_out(Age="100", Set_Cookie="id=1", Connection="close", Cache_Control="max-age=900")
    await harness.get()
    response = await harness.ask()
    assert response.headers["Via"] == VIA
    assert int(response.headers["Age"]) >= 100
    assert parse_http_date(response.headers["Date"])
    assert response.headers["Cache-Control"] == "max-age=900"
    assert response.headers["ETag"]
    assert not {"Set-Cookie", "Connection", "cf-ray"} & {name for name, _ in response.headers}


async def test_what_goes_to_the_feed(harness: FeedsHarness) -> None:
    agent = "ClamAV/1.4.6 (OS: Linux)"
    await harness.get(User_Agent=agent, Via="1.1 other", Range="bytes=0-1", Cookie="a", X_Other="b")
    (seen,) = harness.origin.requests(PATH)
    assert seen.headers["user-agent"] == agent
    assert seen.headers["via"] == f"1.1 other, {VIA}"
    assert seen.headers["accept-encoding"] == "identity"
    assert not {"range", "cookie", "x-other", "if-modified-since"} & seen.headers.keys()


@pytest.mark.parametrize("size", [300_000, 10])
async def test_two_clients_at_once_cost_one_transfer(harness: FeedsHarness, size: int) -> None:
    harness.set_out(BIG[:size])
    responses = await asyncio.gather(*(harness.get() for _ in range(5)))
    assert [content for _, _, content in responses] == [BIG[:size]] * 5
    assert sorted({how for _, how, _ in responses}) == [MISS, f"{MISS}; collapsed"]
    assert harness.origin.count(PATH) == 1


async def test_clients_read_along(harness: FeedsHarness) -> None:
    harness.origin.put(NAME, BIG)
    harness.origin.rule(PATH, faults.stall(200_000))
    response = await harness.ask()
    assert isinstance(response.body, Body)
    assert response.headers["Content-Length"] == str(len(BIG))
    assert await response.body.source.wait(0) > 0
    harness.origin.heal()  # cuts it
    with pytest.raises(SourceError):
        await read(response)
    await harness.settle()
    assert harness.feeds.figures()["objects"] == 0


async def test_a_transfer_goes_on_without_its_client(harness: FeedsHarness) -> None:
    harness.set_out(BIG)
    response = await harness.ask()
    assert isinstance(response.body, Body)
    response.body.source.close()
    await harness.settle()
    assert await harness.get() == (200, HIT, BIG)


@pytest.mark.parametrize(
    "fault",
    [
        faults.short(100),
        faults.reset(100),
        faults.chunked(cut_after=100),
        Fault(short_length=len(BODY) + 50, cut_after=len(BODY)),
    ],
)
async def test_what_arrives_in_part_is_neither_stored_nor_served(harness: FeedsHarness, fault: Fault) -> None:
    harness.origin.rule(PATH, fault, times=1)
    response = await harness.ask()
    if response.status == 200:
        with pytest.raises(SourceError):
            await read(response)
    else:
        assert response.status == 503
    await harness.settle()
    assert harness.feeds.figures()["objects"] == 0
    assert harness.files() == []


async def test_a_chunked_answer_is_stored(harness: FeedsHarness) -> None:
    harness.origin.rule(PATH, faults.chunked())
    response = await harness.ask()
    assert response.headers["Content-Length"] == str(len(BODY))
    assert await read(response) == BODY
    await harness.settle()
    assert await harness.get() == (200, HIT, BODY)


async def test_an_answer_whose_end_cannot_be_seen_is_served_but_not_stored(harness: FeedsHarness) -> None:
    harness.origin.rule(PATH, Fault(length=False))
    assert await harness.get() == (200, MISS, BODY)
    assert await harness.get() == (200, MISS, BODY)
    assert harness.feeds.figures()["objects"] == 0


async def test_a_stale_copy_is_revalidated(harness: FeedsHarness) -> None:
    harness.set_out(**STALE)
    await harness.get()
    assert await harness.get() == (200, REVALIDATED, BODY)
    first, second = harness.origin.requests(PATH)
    assert (first.status, second.status) == (200, 304)
    assert second.headers["if-none-match"]
    assert second.headers["if-modified-since"]
    harness.set_out(b"another", **STALE)
    assert await harness.get() == (200, MISS, b"another")


async def test_a_304_with_new_freshness_makes_it_fresh(harness: FeedsHarness) -> None:
    harness.set_out(**STALE)
    await harness.get()
    harness.set_out(Cache_Control="max-age=600")
    assert (await harness.get())[1] == REVALIDATED
    assert (await harness.get())[1] == HIT
    harness.restart()
    assert (await harness.get())[1] == HIT


async def test_a_304_for_another_file_is_asked_anew(harness: FeedsHarness) -> None:
    harness.set_out(**STALE)
    await harness.get()
    harness.origin.rule(PATH, Fault(status=304, headers={"ETag": '"other"'}), times=1)
    assert await harness.get() == (200, MISS, BODY)
    assert "if-none-match" not in harness.origin.requests(PATH)[-1].headers


async def test_a_304_that_nobody_asked_for_is_an_error(harness: FeedsHarness) -> None:
    harness.origin.rule(PATH, Fault(status=304))
    status, how, _ = await harness.get()
    assert (status, how) == (503, ERROR)


async def test_no_cache_of_a_client_has_the_copy_revalidated(harness: FeedsHarness) -> None:
    await harness.get()
    assert await harness.get(Cache_Control="no-cache") == (200, REVALIDATED, BODY)
    assert harness.origin.requests(PATH)[-1].headers["cache-control"] == "no-cache"
    assert (await harness.get(Pragma="no-cache"))[1] == REVALIDATED
    assert (await harness.get(Cache_Control="max-age=0"))[1] == REVALIDATED


async def test_only_if_cached(harness: FeedsHarness) -> None:
    response = await harness.ask(Cache_Control="only-if-cached")
    assert (response.status, harness.origin.trace) == (504, "")
    await harness.get()
    assert await harness.get(Cache_Control="only-if-cached") == (200, HIT, BODY)


@pytest.mark.parametrize("control", ["no-store", "private", "private, max-age=60"])
async def test_what_may_not_be_shared_is_fetched_for_each_client(harness: FeedsHarness, control: str) -> None:
    harness.set_out(Cache_Control=control)
    responses = await asyncio.gather(harness.get(), harness.get())
    assert [(status, content) for status, _, content in responses] == [(200, BODY)] * 2
    assert harness.origin.count(PATH) == 2
    assert await harness.get() == (200, BYPASS, BODY)
    assert harness.files() == []


async def test_a_client_s_own_validators_are_for_what_may_not_be_shared(harness: FeedsHarness) -> None:
    harness.set_out(Cache_Control="no-store")
    await harness.get()
    date = http_date(time.time())
    response = await harness.ask(If_Modified_Since=date)
    assert (response.status, await read(response)) == (304, b"")
    assert harness.origin.requests(PATH)[-1].headers["if-modified-since"] == date
    harness.set_out(Cache_Control="max-age=60")
    assert (await harness.get())[1] == BYPASS
    assert (await harness.get())[1] == HIT


async def test_what_a_client_wants_stored_nowhere_is_not_stored(harness: FeedsHarness) -> None:
    assert await harness.get(Cache_Control="no-store") == (200, BYPASS, BODY)
    assert harness.feeds.figures()["objects"] == 0
    assert (await harness.get())[1] == MISS


async def test_users_with_a_password_do_not_see_each_other_s_files(harness: FeedsHarness) -> None:
    harness.set_out(Cache_Control="public, max-age=600")
    assert (await harness.get(Authorization="Basic eDp5"))[1] == MISS
    assert (await harness.get(Authorization="Basic eDp5"))[1] == HIT
    assert (await harness.get(Authorization="Basic other"))[1] == MISS
    assert (await harness.get())[1] == MISS
    assert harness.origin.requests(PATH)[0].headers["authorization"] == "Basic eDp5"
    harness.set_out(name="other", Cache_Control="max-age=600")
    for _ in range(2):
        assert (await harness.get("/other", Authorization="Basic eDp5"))[1] in (MISS, BYPASS)
    assert harness.origin.count("/other") == 2


async def test_user_and_password_of_the_url_are_sent_and_kept_apart(harness: FeedsHarness) -> None:
    harness.set_out(Cache_Control="public, max-age=600")
    url = harness.url().replace("//", "//user:p%40ss@")
    response = await harness.ask(url=url)
    await read(response)
    await harness.settle()
    assert harness.origin.requests(PATH)[0].headers["authorization"] == "Basic dXNlcjpwQHNz"
    assert (await harness.get())[1] == MISS
    harness.set_out(name="x", Cache_Control="max-age=600")
    for _ in range(2):
        await read(await harness.ask(url=harness.url("/x").replace("//", "//user:p@")))
        await harness.settle()
    assert harness.origin.count("/x") == 2  # nothing says that it may be shared


async def test_vary(harness: FeedsHarness) -> None:
    harness.set_out(Vary="User-Agent", Cache_Control="max-age=600")
    assert (await harness.get(User_Agent="a"))[1] == MISS
    assert (await harness.get(User_Agent="a"))[1] == HIT
    assert (await harness.get(User_Agent="b"))[1] == MISS
    responses = await asyncio.gather(harness.get(User_Agent="c"), harness.get(User_Agent="d"))
    assert {how for _, how, _ in responses} == {MISS, BYPASS}
    assert harness.origin.count(PATH) == 4


async def test_vary_by_encoding_changes_nothing_as_only_one_is_asked_for(harness: FeedsHarness) -> None:
    harness.set_out(Vary="Accept-Encoding", Cache_Control="max-age=600")
    assert (await harness.get(Accept_Encoding="gzip"))[1] == MISS
    assert (await harness.get())[1] == HIT


async def test_urls_differ_by_their_query(harness: FeedsHarness) -> None:
    for query in ("", "?a=1", "?a=2"):
        assert (await harness.get(PATH + query))[1] == MISS
    assert harness.feeds.figures()["objects"] == 3


# Across processes


async def test_a_restart_keeps_the_files(harness: FeedsHarness) -> None:
    harness.set_out(BIG, Cache_Control="max-age=600")
    await harness.get()
    harness.restart()
    assert await harness.get() == (200, HIT, BIG)


async def test_a_damaged_file_is_fetched_anew(harness: FeedsHarness) -> None:
    await harness.get()
    (body,) = (path for path in harness.files() if path.suffix != ".json")
    body.write_bytes(BODY[::-1])
    harness.restart()
    assert [await harness.get() for _ in range(2)] == [(200, MISS, BODY), (200, HIT, BODY)]


async def test_a_file_that_is_gone_is_fetched_anew(harness: FeedsHarness) -> None:
    await harness.get()
    for path in harness.files():
        path.unlink()
    assert await harness.get() == (200, MISS, BODY)


async def test_a_directory_that_cannot_be_used_is_an_error(harness: FeedsHarness) -> None:
    (harness.directory / "feeds").write_text("a file")
    assert (await harness.get())[:2] == (503, ERROR)


async def test_stopping_ends_those_who_wait(harness: FeedsHarness) -> None:
    harness.origin.rule(PATH, faults.silent())
    waiting = asyncio.create_task(harness.ask())
    while not harness.origin.count(PATH):  # noqa: ASYNC110  (the origin is in a thread)
        await asyncio.sleep(0.01)
    harness.feeds.stop()
    assert (await waiting).status == 503


async def test_whatever_happens_at_once_clients_get_whole_files_or_503(harness: FeedsHarness) -> None:
    dice, bodies = random.Random(6), {BIG, BIG[:5000], BODY}
    pieces = [faults.short(4000), faults.reset(9), faults.chunked(), faults.status(403), faults.status(429)]
    pieces += [
        faults.status(500, retry_after="0"),
        Fault(length=False),
        faults.redirect("/2"),
        Fault(status=304),
    ]
    controls = ["max-age=0", "max-age=1", "no-store", "private", "no-cache", "max-age=0, must-revalidate"]

    async def client() -> None:
        await asyncio.sleep(dice.random())
        asking = {"Cache_Control": dice.choice(["", "", "no-cache", "no-store"])}
        response = await harness.ask(f"/{dice.randrange(4)}", User_Agent=dice.choice("ab"), **asking)
        assert response.status in (200, 503), response
        if dice.random() < 0.1 and isinstance(response.body, Body):
            response.body.source.close()  # the client leaves
            return
        with suppress(SourceError):
            content = await read(response)
            assert response.status == 503 or content in bodies

    for _ in range(8):
        harness.clock.ahead += LONGEST_RETRY_AFTER
        harness.origin.heal()
        for number in range(4):
            harness.origin.put(str(number), dice.choice(sorted(bodies)))
            fields = {"Cache-Control": dice.choice(controls), "Vary": dice.choice(["", "User-Agent"])}
            harness.origin.rule(f"/{number}", Fault(headers=fields))
            harness.origin.rule(f"/{number}", dice.choice(pieces), times=2, skip=dice.randrange(3))
        await asyncio.gather(*(client() for _ in range(12)))
    await harness.settle()
    feeds = harness.feeds
    assert (feeds._running, feeds._tasks, len(feeds._checks), feeds._store._arriving) == ({}, set(), 0, 0)
    stored = harness.files()
    assert len(stored) == 2 * feeds.figures()["objects"]
    assert {path.read_bytes() for path in stored if path.suffix != ".json"} <= bodies
