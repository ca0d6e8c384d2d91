"""Feeds that refuse, fail, are silent or send clients elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clamproxy.feeds import feed_transfer
from clamproxy.messages import SourceError
from tests.support import faults
from tests.support.faults import Fault
from tests.support.origin import OriginServer
from tests.support.site import origin_certificates
from tests.unit.feeds_bench import (
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
    Bench,
    open_bench,
    read,
)


@pytest.fixture
def bench(tmp_path: Path, origin: OriginServer) -> Iterator[Bench]:
    with open_bench(tmp_path, origin) as bench:
        yield bench


# Failures


REFUSALS = [401, 402, 403, 429, 451, 400, 500, 502, 503, 504, 206, 204]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_is_503_and_the_feed_is_left_alone(bench: Bench, code: int) -> None:
    bench.origin.rule("*", faults.status(code, retry_after="100"))
    for _ in range(3):
        response = await bench.ask()
        assert response.status == 503
        assert 1 <= int(response.headers["Retry-After"]) <= 100
        await bench.settle()
    assert bench.origin.count(PATH) == 1


@pytest.mark.parametrize("code", REFUSALS)
async def test_the_old_copy_stands_in(bench: Bench, code: int) -> None:
    bench.set_out(**STALE)
    await bench.get()
    bench.origin.rule("*", faults.status(code, retry_after="100"))
    assert await bench.get() == (200, STALE_COPY, BODY)
    assert await bench.get() == (200, STALE_COPY, BODY)
    assert bench.origin.count(PATH) == 2


async def test_the_old_copy_stands_in_for_an_unreachable_feed(bench: Bench) -> None:
    bench.set_out(**STALE)
    await bench.get()
    bench.origin.refuse()
    assert await bench.get() == (200, STALE_COPY, BODY)
    assert (await bench.get("/other"))[0] == 503  # the host as a whole is left alone


async def test_too_old_a_copy_does_not_stand_in(bench: Bench) -> None:
    bench.restart(feeds={"hosts": ["localhost"], "stale_if_error": "100s"})
    bench.set_out(Cache_Control="max-age=0", Age="1000")
    await bench.get()
    bench.origin.refuse()
    assert (await bench.get())[:2] == (503, ERROR)


async def test_must_revalidate_forbids_the_old_copy(bench: Bench) -> None:
    bench.set_out(Cache_Control="max-age=0, must-revalidate")
    await bench.get()
    bench.origin.refuse()
    assert (await bench.get())[:2] == (503, ERROR)


async def test_a_refusal_of_one_url_is_not_the_others(bench: Bench) -> None:
    bench.set_out(name="other")
    bench.origin.rule(PATH, faults.status(403))
    assert (await bench.get())[0] == 503
    assert (await bench.get("/other"))[0] == 200


async def test_a_rate_limit_concerns_the_host_and_survives_a_restart(bench: Bench) -> None:
    bench.set_out(name="other")
    bench.origin.rule(PATH, faults.status(429, retry_after="1000"), times=1)
    assert (await bench.get())[0] == 503
    for _ in range(2):
        response = await bench.ask("/other")
        assert response.status == 503
        assert 900 < int(response.headers["Retry-After"]) <= 1000
        until = bench.feeds.figures()["hosts"][0]["cooldown_until"]
        assert 900 < until - time.time() <= 1000
        bench.restart()
    assert bench.origin.trace == PATH


async def test_a_missing_file_is_404_and_remembered(bench: Bench) -> None:
    assert (await bench.get("/no"))[:2] == (404, MISS)
    assert (await bench.get("/no"))[:2] == (404, NEGATIVE)
    assert bench.origin.count("/no") == 1
    bench.set_out(name="no")
    assert await bench.get("/no", Cache_Control="no-cache") == (200, MISS, BODY)
    assert await bench.get("/no") == (200, HIT, BODY)
    bench.origin.rule("/gone", faults.status(410))
    assert (await bench.get("/gone"))[0] == 404


async def test_a_file_larger_than_all_feeds_may_be_is_refused(bench: Bench) -> None:
    bench.restart(feeds={"hosts": ["localhost"], "size_limit": "1MiB"})
    huge = bytes(1_200_000)
    bench.set_out(huge)
    assert (await bench.get())[0] == 503
    bench.origin.put("chunked", huge)
    bench.origin.rule("/chunked", faults.chunked())
    assert (await bench.get("/chunked"))[0] == 503
    assert list((bench.directory / "feeds").iterdir()) == []


async def test_a_feed_that_falls_silent(bench: Bench) -> None:
    bench.restart(upstream={"read_timeout": 0.3})
    bench.origin.rule(PATH, faults.silent())
    status, _, content = await bench.get()
    assert (status, b"no answer in time" in content) == (503, True)


async def test_a_feed_that_trickles_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_transfer, "STALL_WINDOW", 0.3)
    monkeypatch.setattr(feed_transfer, "SLOWEST", 10**9)
    bench.set_out(BIG)
    bench.origin.rule(PATH, faults.slow(100_000))
    with pytest.raises(SourceError, match="too slow"):
        await read(await bench.ask())


async def test_what_is_said_of_connections_that_fail(bench: Bench, tmp_path: Path) -> None:
    context, _ = origin_certificates(tmp_path / "certificates")
    with OriginServer(context) as tls, OriginServer() as proxy:
        urls = {
            f"https://localhost:{tls.port}/": b"TLS: unable to get local issuer",
            "http://localhost:1/": b"no connection",
        }
        for url, reason in urls.items():
            response = await bench.ask(url=url)
            assert (response.status, reason in await read(response)) == (503, True), (url, response.body)
        # The fake feed answers what a proxy is asked in absolute form, and refuses CONNECT.
        bench.restart(upstream={"proxy": f"http://user:secret@localhost:{proxy.port}"})
        proxy.rule("*", Fault(status=407))
        for url, reason in ((bench.url("/plain"), b"407"), ("https://localhost:2/tunnel", b"proxy: Tunnel")):
            response = await bench.ask(url=url)
            content = await read(response)
            assert (response.status, reason in content, b"secret" in content) == (503, True, False), content
        assert "proxy-authorization" in proxy.requests()[0].headers
        assert bench.origin.trace == ""


async def test_offline_nothing_leaves(bench: Bench) -> None:
    bench.set_out(**STALE)
    await bench.get()
    bench.restart(upstream={"offline": True})
    bench.origin.forget()
    assert await bench.get() == (200, STALE_COPY, BODY)
    assert (await bench.get("/other"))[0] == 503
    assert (await bench.ask("/other", Cache_Control="only-if-cached")).status == 504
    assert bench.origin.trace == ""


# Redirections


async def test_redirections_within_feeds_are_followed(bench: Bench) -> None:
    bench.origin.rule("/a", faults.redirect("/b"))
    bench.origin.rule("/b", faults.redirect(bench.url()))
    assert await bench.get("/a") == (200, MISS, BODY)
    # A temporary redirection is looked at each time: RFC 9110 15.4.3.
    assert (await bench.get("/a"))[1] == REVALIDATED
    bench.origin.rule("/c", faults.status(301, b"", location=PATH))
    assert (await bench.get("/c"))[1] == MISS
    assert (await bench.get("/c"))[1] == HIT


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/",
        "ftp://localhost/x",
        "http://[",
        "/loop",
        "",
        "http://user:secret@127.0.0.1:{port}/",
    ],
)
async def test_redirections_elsewhere_are_not(bench: Bench, target: str) -> None:
    bench.set_out(name="")
    bench.origin.rule("/loop", faults.redirect(target.format(port=bench.origin.port)))
    status, _, content = await bench.get("/loop")
    assert status == 503
    assert b"secret" not in content
    assert bench.origin.count("/") == 0
    assert bench.origin.count("/loop") <= 4


async def test_a_redirection_that_may_not_be_stored_is_not_shared(bench: Bench) -> None:
    bench.origin.rule("/a", faults.status(302, b"", location=PATH, cache_control="private"))
    await bench.get("/a")
    assert bench.feeds.figures()["objects"] == 0


async def test_credentials_stay_with_their_server(bench: Bench, tmp_path: Path) -> None:
    with OriginServer() as other:
        other.put("x", BODY)
        bench.origin.rule("/a", faults.redirect(f"http://localhost:{other.port}/x"))
        bench.origin.rule("/b", faults.redirect(PATH))
        assert (await bench.get("/a", Authorization="Basic eDp5"))[0] == 200
        assert (await bench.get("/b", Authorization="Basic eDp5"))[0] == 200
        assert "authorization" not in other.requests("/x")[0].headers
        assert "authorization" in bench.origin.requests(PATH)[0].headers
