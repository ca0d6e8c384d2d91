"""Feeds that refuse, fail, are silent or send clients elsewhere."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clamproxy.feeds import feed_transfer
from clamproxy.feeds.feeds import MAX_CONNECTIONS
from clamproxy.messages import SourceError
from tests.harness.feeds import (
    BIG,
    BODY,
    ERROR,
    HIT,
    MISS,
    NEGATIVE,
    PATH,
    REVALIDATED,
    STALE,
    STALE_COPY,
    FeedsHarness,
    open_harness,
    read,
)
from tests.support import faults
from tests.support.disk import limited_files
from tests.support.faults import Fault
from tests.support.origin import OriginServer
from tests.support.site import origin_certificates
from tests.support.stored import until


@pytest.fixture
def harness(tmp_path: Path, origin: OriginServer) -> Iterator[FeedsHarness]:
    with open_harness(tmp_path, origin) as harness:
        yield harness


# Failures


REFUSALS = [401, 402, 403, 429, 451, 400, 500, 502, 503, 504, 206, 204]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_is_503_and_the_feed_is_left_alone(harness: FeedsHarness, code: int) -> None:
    harness.origin.rule("*", faults.status(code, retry_after="100"))
    for _ in range(3):
        response = await harness.ask()
        assert response.status == 503
        assert 1 <= int(response.headers["Retry-After"]) <= 100
        await harness.settle()
    assert harness.origin.count(PATH) == 1


@pytest.mark.parametrize("code", REFUSALS)
async def test_the_old_copy_stands_in(harness: FeedsHarness, code: int) -> None:
    harness.set_out(**STALE)
    await harness.get()
    harness.origin.rule("*", faults.status(code, retry_after="100"))
    assert await harness.get() == (200, STALE_COPY, BODY)
    assert await harness.get() == (200, STALE_COPY, BODY)
    assert harness.origin.count(PATH) == 2


async def test_the_old_copy_stands_in_for_an_unreachable_feed(harness: FeedsHarness) -> None:
    harness.set_out(**STALE)
    await harness.get()
    harness.origin.refuse()
    assert await harness.get() == (200, STALE_COPY, BODY)
    assert (await harness.get("/other"))[0] == 503  # the host as a whole is left alone


async def test_too_old_a_copy_does_not_stand_in(harness: FeedsHarness) -> None:
    harness.restart(feeds={"hosts": ["localhost"], "stale_if_error": "100s"})
    harness.set_out(Cache_Control="max-age=0", Age="1000")
    await harness.get()
    harness.origin.refuse()
    assert (await harness.get())[:2] == (503, ERROR)


async def test_must_revalidate_forbids_the_old_copy(harness: FeedsHarness) -> None:
    harness.set_out(Cache_Control="max-age=0, must-revalidate")
    await harness.get()
    harness.origin.refuse()
    assert (await harness.get())[:2] == (503, ERROR)


async def test_a_refusal_of_one_url_leaves_the_others_alone(harness: FeedsHarness) -> None:
    harness.set_out(name="other")
    harness.origin.rule(PATH, faults.status(403))
    assert (await harness.get())[0] == 503
    assert (await harness.get("/other"))[0] == 200


async def test_transfers_that_wait_for_a_connection_heed_a_rate_limit(harness: FeedsHarness) -> None:
    harness.origin.rule("*", replace(faults.status(429, retry_after="1000"), held=True))
    asked = [asyncio.create_task(harness.ask(f"/{number}")) for number in range(MAX_CONNECTIONS + 5)]
    await until(lambda: len(harness.origin.requests()) == MAX_CONNECTIONS)
    harness.origin.heal()
    for response in await asyncio.gather(*asked):
        assert response.status == 503
        assert 900 < int(response.headers["Retry-After"]) <= 1000
    await harness.settle()
    assert len(harness.origin.requests()) == MAX_CONNECTIONS


async def test_a_rate_limit_concerns_the_host_and_survives_a_restart(harness: FeedsHarness) -> None:
    harness.set_out(name="other")
    harness.origin.rule(PATH, faults.status(429, retry_after="1000"), times=1)
    assert (await harness.get())[0] == 503
    for _ in range(2):
        response = await harness.ask("/other")
        assert response.status == 503
        assert 900 < int(response.headers["Retry-After"]) <= 1000
        until = harness.feeds.figures()["hosts"][0]["cooldown_until"]
        assert 900 < until - time.time() <= 1000
        harness.restart()
    assert harness.origin.trace == PATH


async def test_refusals_at_the_same_moment_count_once(harness: FeedsHarness) -> None:
    harness.origin.rule("*", faults.status(429))
    await asyncio.gather(*(harness.ask(f"/{number}") for number in range(8)))
    await harness.settle()
    assert len(harness.origin.requests()) == 8
    (noted,) = harness.notes["feed/cooldown"].values()
    assert noted["failures"] == 1


async def test_a_download_that_ends_well_takes_back_no_rate_limit(harness: FeedsHarness) -> None:
    harness.set_out(BIG)
    harness.origin.rule(PATH, faults.slow(200_000))
    harness.origin.rule("/other", faults.status(429, retry_after="1000"))
    response = await harness.ask()
    assert (await harness.ask("/other")).status == 503
    assert await read(response) == BIG
    await harness.settle()
    assert (await harness.ask("/third")).status == 503
    assert harness.origin.count("/third") == 0


async def test_a_confirmed_copy_is_served_though_the_disk_is_full(harness: FeedsHarness) -> None:
    harness.set_out(**STALE)
    await harness.get()
    with limited_files(10):
        for _ in range(2):
            assert await harness.get() == (200, REVALIDATED, BODY)
    assert harness.notes["feed/cooldown"] == {}


async def test_a_missing_file_is_404_and_remembered(harness: FeedsHarness) -> None:
    assert (await harness.get("/no"))[:2] == (404, MISS)
    assert (await harness.get("/no"))[:2] == (404, NEGATIVE)
    assert harness.origin.count("/no") == 1
    harness.set_out(name="no")
    assert await harness.get("/no", Cache_Control="no-cache") == (200, MISS, BODY)
    assert await harness.get("/no") == (200, HIT, BODY)
    harness.origin.rule("/gone", faults.status(410))
    assert (await harness.get("/gone"))[0] == 404


async def test_a_file_larger_than_all_feeds_may_be_is_refused(harness: FeedsHarness) -> None:
    harness.restart(feeds={"hosts": ["localhost"], "size_limit": "1MiB"})
    huge = bytes(1_200_000)
    harness.set_out(huge)
    assert (await harness.get())[0] == 503
    harness.origin.put("chunked", huge)
    harness.origin.rule("/chunked", faults.chunked())
    assert (await harness.get("/chunked"))[0] == 503
    assert harness.files() == []


async def test_a_feed_that_falls_silent(harness: FeedsHarness) -> None:
    harness.restart(upstream={"read_timeout": 0.3})
    harness.origin.rule(PATH, faults.silent())
    status, _, content = await harness.get()
    assert (status, b"no answer in time" in content) == (503, True)


async def test_stopping_ends_a_request_that_the_feed_has_not_answered(harness: FeedsHarness) -> None:
    """Its thread, too, though it could wait for an hour."""
    harness.restart(upstream={"read_timeout": 3600})
    harness.origin.rule(PATH, faults.silent())
    client = asyncio.create_task(harness.get())
    await until(harness.origin.requests)
    harness.feeds.stop()
    status, _, content = await client
    assert (status, b"the gateway is stopping" in content) == (503, True)
    await until(lambda: "clamproxy-feed" not in [thread.name for thread in threading.enumerate()])


async def test_a_feed_that_trickles_is_given_up(
    harness: FeedsHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_transfer, "STALL_WINDOW", 0.3)
    monkeypatch.setattr(feed_transfer, "SLOWEST", 10**9)
    harness.set_out(BIG)
    harness.origin.rule(PATH, faults.slow(100_000))
    with pytest.raises(SourceError, match="too slow"):
        await read(await harness.ask())


async def test_what_is_said_of_connections_that_fail(harness: FeedsHarness, tmp_path: Path) -> None:
    context, _ = origin_certificates(tmp_path / "certificates")
    with OriginServer(context) as tls, OriginServer() as proxy:
        urls = {
            f"https://localhost:{tls.port}/": b"TLS: unable to get local issuer",
            "http://localhost:1/": b"no connection",
        }
        for url, reason in urls.items():
            response = await harness.ask(url=url)
            assert (response.status, reason in await read(response)) == (503, True), (url, response.body)
        # The fake feed answers what a proxy is asked in absolute form, and refuses CONNECT.
        harness.restart(upstream={"proxy": f"http://user:secret@localhost:{proxy.port}"})
        proxy.rule("*", Fault(status=407))
        for url, reason in (
            ("https://localhost:2/tunnel", b"proxy: Tunnel"),
            (harness.url("/plain"), b"407"),
            ("https://localhost:3/tunnel", b"407"),  # without asking: that could lock the account
        ):
            response = await harness.ask(url=url)
            content = await read(response)
            assert (response.status, reason in content, b"secret" in content) == (503, True, False), content
        assert "proxy-authorization" in proxy.requests()[0].headers
        assert harness.origin.trace == ""


async def test_offline_nothing_leaves(harness: FeedsHarness) -> None:
    harness.set_out(**STALE)
    await harness.get()
    harness.restart(upstream={"offline": True})
    harness.origin.forget()
    assert await harness.get() == (200, STALE_COPY, BODY)
    assert (await harness.get("/other"))[0] == 503
    assert (await harness.ask("/other", Cache_Control="only-if-cached")).status == 504
    assert harness.origin.trace == ""


# Redirections


async def test_redirections_within_feeds_are_followed(harness: FeedsHarness) -> None:
    harness.origin.rule("/a", faults.redirect("/b"))
    harness.origin.rule("/b", faults.redirect(harness.url()))
    assert await harness.get("/a") == (200, MISS, BODY)
    # A temporary redirection is looked at each time: RFC 9110 15.4.3.
    assert (await harness.get("/a"))[1] == REVALIDATED
    harness.origin.rule("/c", faults.status(301, b"", location=PATH))
    assert (await harness.get("/c"))[1] == MISS
    assert (await harness.get("/c"))[1] == HIT


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/",
        "ftp://localhost/x",
        "http://[",
        "//[user:secret@localhost/",
        "/loop",
        "",
        "http://user:secret@127.0.0.1:{port}/",
    ],
)
async def test_redirections_elsewhere_are_not_followed(harness: FeedsHarness, target: str) -> None:
    harness.set_out(name="")
    harness.origin.rule("/loop", faults.redirect(target.format(port=harness.origin.port)))
    status, _, content = await harness.get("/loop")
    assert status == 503
    assert b"secret" not in content
    assert harness.origin.count("/") == 0
    assert harness.origin.count("/loop") <= 4


async def test_a_redirection_that_may_not_be_stored_is_not_shared(harness: FeedsHarness) -> None:
    harness.origin.rule("/a", faults.status(302, b"", location=PATH, cache_control="private"))
    await harness.get("/a")
    assert harness.feeds.figures()["objects"] == 0


async def test_credentials_stay_with_their_server(harness: FeedsHarness, tmp_path: Path) -> None:
    with OriginServer() as other:
        other.put("x", BODY)
        harness.origin.rule("/a", faults.redirect(f"http://localhost:{other.port}/x"))
        harness.origin.rule("/b", faults.redirect(PATH))
        assert (await harness.get("/a", Authorization="Basic eDp5"))[0] == 200
        assert (await harness.get("/b", Authorization="Basic eDp5"))[0] == 200
        assert "authorization" not in other.requests("/x")[0].headers
        assert "authorization" in harness.origin.requests(PATH)[0].headers
