"""The cache of feeds, from a request to a reply, against a feed that misbehaves."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.config.settings import Settings
from clamproxy.dates import parse_http_date
from clamproxy.feeds import FeedRequest, Feeds, transfer
from clamproxy.feeds.cooldown import MOST, FeedCooldowns
from clamproxy.feeds.counts import Counts
from clamproxy.feeds.remembered import Remembered
from clamproxy.feeds.target import Target, TargetError
from clamproxy.messages import Body, Reply, Result, SourceError
from clamproxy.origin.cooldown import Failure
from tests.support import faults
from tests.support.faults import Fault
from tests.support.origin import Origin
from tests.support.site import origin_certificates

VIA = "1.1 clamproxy-abcd"
KEY = "s3cretsubscriber"
PATH = f"/get/{KEY}/file.ndb"
NAME = PATH[1:]
BODY = b"signature\n" * 30
BIG = os.urandom(300_000)
STALE: dict[str, Any] = {"Cache-Control": "max-age=0"}
"""Each request is revalidated then; an old copy may stand in."""


async def read(reply: Reply) -> bytes:
    """The content of a reply.

    Raises:
        SourceError: it ends early.
    """
    if not isinstance(reply.body, Body):
        return reply.body
    source, end = reply.body.source, reply.body.start + reply.body.length
    content = b""
    try:
        while (offset := reply.body.start + len(content)) < end:
            until = min(await source.wait(offset), end)
            content += os.pread(source.fileno(), until - offset, offset)
    finally:
        source.close()
    return content


@dataclass
class Bench:
    """Feeds whose only host is the fake origin."""

    directory: Path
    origin: Origin
    notes: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.feeds = self.open()

    def open(self) -> Feeds:
        sections = {"feeds": {"hosts": ["localhost"]}, "upstream": {"read_timeout": 5}} | self.sections
        counted: list[tuple[int, int]] = []
        feeds = Feeds(
            self.directory / "feeds",
            Settings(**sections),
            self.notes.__setitem__,
            lambda requests, length: counted.append((requests, length)),
            VIA,
        )
        feeds.restore(self.notes)
        return feeds

    def restart(self, **sections: Any) -> None:
        self.feeds.stop()
        self.sections |= sections
        self.feeds = self.open()

    def url(self, path: str = PATH) -> str:
        return f"http://localhost:{self.origin.port}{path}"

    async def ask(
        self, path: str = PATH, method: str = "GET", url: str | None = None, **headers: str
    ) -> Reply:
        fields = Headers([(name.replace("_", "-"), value) for name, value in headers.items()])
        return await self.feeds.handle(FeedRequest(url or self.url(path), method, fields))

    async def get(self, path: str = PATH, **headers: str) -> tuple[int, str, bytes]:
        """Status, the essence of Cache-Status, and the content; the transfer has ended then."""
        reply = await self.ask(path, **headers)
        content = await read(reply)
        await self.settle()
        return reply.status, reply.headers["Cache-Status"].removeprefix("clamproxy; "), content

    async def settle(self) -> None:
        """Wait for the ends of all transfers."""
        await asyncio.gather(*self.feeds._tasks, return_exceptions=True)

    def set_out(self, body: bytes = BODY, name: str = NAME, **headers: str) -> None:
        """Serve a file; ``cache_control="no-cache"`` becomes a field."""
        self.origin.heal()
        self.origin.put(name, body)
        fields = {key.replace("_", "-"): value for key, value in headers.items()}
        self.origin.rule(f"/{name}", Fault(headers=fields))


@pytest.fixture
async def bench(tmp_path: Path, origin: Origin) -> Any:
    bench = Bench(tmp_path, origin)
    bench.set_out()
    yield bench
    bench.feeds.stop()


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


HIT, MISS, REVALIDATED, STALE_COPY = "hit", "fwd=miss", "fwd=stale; fwd-status=304", "fwd=stale"
NEGATIVE, ERROR, BYPASS = "hit; detail=negative", "fwd=miss; detail=error", "fwd=bypass"


async def test_a_file_is_fetched_once(bench: Bench) -> None:
    assert await bench.get() == (200, MISS, BODY)
    assert await bench.get() == (200, HIT, BODY)
    assert bench.origin.count(PATH) == 1
    assert bench.feeds.figures()["objects"] == 1
    (host,) = bench.feeds.figures()["hosts"]
    assert host == {
        "host": f"localhost:{bench.origin.port}",
        "requests": 2,
        "hits": 1,
        "errors": 0,
        "cooldown_until": None,
    }


async def test_an_answer_has_the_fields_that_a_cache_adds(bench: Bench) -> None:
    bench.set_out(Age="100", Set_Cookie="id=1", Connection="close", Cache_Control="max-age=900")
    await bench.get()
    reply = await bench.ask()
    assert reply.headers["Via"] == VIA
    assert int(reply.headers["Age"]) >= 100
    assert parse_http_date(reply.headers["Date"])
    assert reply.headers["Cache-Control"] == "max-age=900"
    assert reply.headers["ETag"]
    assert not {"Set-Cookie", "Connection", "cf-ray"} & {name for name, _ in reply.headers}


async def test_what_goes_to_the_feed(bench: Bench) -> None:
    agent = "ClamAV/1.4.6 (OS: Linux)"
    await bench.get(User_Agent=agent, Via="1.1 other", Range="bytes=0-1", Cookie="a", X_Other="b")
    (seen,) = bench.origin.requests(PATH)
    assert seen.headers["user-agent"] == agent
    assert seen.headers["via"] == f"1.1 other, {VIA}"
    assert seen.headers["accept-encoding"] == "identity"
    assert not {"range", "cookie", "x-other", "if-modified-since"} & seen.headers.keys()


@pytest.mark.parametrize("size", [300_000, 10])
async def test_two_clients_at_once_cost_one_transfer(bench: Bench, size: int) -> None:
    bench.set_out(BIG[:size])
    replies = await asyncio.gather(*(bench.get() for _ in range(5)))
    assert [content for _, _, content in replies] == [BIG[:size]] * 5
    assert sorted({how for _, how, _ in replies}) == [MISS, f"{MISS}; collapsed"]
    assert bench.origin.count(PATH) == 1


async def test_clients_read_along(bench: Bench) -> None:
    bench.origin.put(NAME, BIG)
    bench.origin.rule(PATH, faults.stall(200_000))
    reply = await bench.ask()
    assert isinstance(reply.body, Body)
    assert reply.headers["Content-Length"] == str(len(BIG))
    assert await reply.body.source.wait(0) > 0
    bench.origin.heal()  # cuts it
    with pytest.raises(SourceError):
        await read(reply)
    await bench.settle()
    assert bench.feeds.figures()["objects"] == 0


async def test_a_transfer_goes_on_without_its_client(bench: Bench) -> None:
    bench.set_out(BIG)
    reply = await bench.ask()
    assert isinstance(reply.body, Body)
    reply.body.source.close()
    await bench.settle()
    assert await bench.get() == (200, HIT, BIG)


@pytest.mark.parametrize(
    "fault",
    [
        faults.short(100),
        faults.reset(100),
        faults.chunked(cut_after=100),
        Fault(short_length=len(BODY) + 50, cut_after=len(BODY)),
    ],
)
async def test_what_arrives_in_part_is_neither_stored_nor_served(bench: Bench, fault: Fault) -> None:
    bench.origin.rule(PATH, fault, times=1)
    reply = await bench.ask()
    if reply.status == 200:
        with pytest.raises(SourceError):
            await read(reply)
    else:
        assert reply.status == 503
    await bench.settle()
    assert bench.feeds.figures()["objects"] == 0
    assert list((bench.directory / "feeds").iterdir()) == []


async def test_a_chunked_answer_is_stored(bench: Bench) -> None:
    bench.origin.rule(PATH, faults.chunked())
    reply = await bench.ask()
    assert reply.headers["Content-Length"] == str(len(BODY))
    assert await read(reply) == BODY
    await bench.settle()
    assert await bench.get() == (200, HIT, BODY)


async def test_an_answer_whose_end_cannot_be_seen_is_served_but_not_stored(bench: Bench) -> None:
    bench.origin.rule(PATH, Fault(length=False))
    assert await bench.get() == (200, MISS, BODY)
    assert await bench.get() == (200, MISS, BODY)
    assert bench.feeds.figures()["objects"] == 0


async def test_a_stale_copy_is_revalidated(bench: Bench) -> None:
    bench.set_out(**STALE)
    await bench.get()
    assert await bench.get() == (200, REVALIDATED, BODY)
    first, second = bench.origin.requests(PATH)
    assert (first.status, second.status) == (200, 304)
    assert second.headers["if-none-match"]
    assert second.headers["if-modified-since"]
    bench.set_out(b"another", **STALE)
    assert await bench.get() == (200, MISS, b"another")


async def test_a_304_with_new_freshness_makes_it_fresh(bench: Bench) -> None:
    bench.set_out(**STALE)
    await bench.get()
    bench.set_out(Cache_Control="max-age=600")
    assert (await bench.get())[1] == REVALIDATED
    assert (await bench.get())[1] == HIT
    bench.restart()
    assert (await bench.get())[1] == HIT


async def test_a_304_for_another_file_is_asked_anew(bench: Bench) -> None:
    bench.set_out(**STALE)
    await bench.get()
    bench.origin.rule(PATH, Fault(status=304, headers={"ETag": '"other"'}), times=1)
    assert await bench.get() == (200, MISS, BODY)
    assert "if-none-match" not in bench.origin.requests(PATH)[-1].headers


async def test_a_304_that_nobody_asked_for_is_an_error(bench: Bench) -> None:
    bench.origin.rule(PATH, Fault(status=304))
    status, how, _ = await bench.get()
    assert (status, how) == (503, ERROR)


async def test_no_cache_of_a_client_has_the_copy_revalidated(bench: Bench) -> None:
    await bench.get()
    assert await bench.get(Cache_Control="no-cache") == (200, REVALIDATED, BODY)
    assert bench.origin.requests(PATH)[-1].headers["cache-control"] == "no-cache"
    assert (await bench.get(Pragma="no-cache"))[1] == REVALIDATED
    assert (await bench.get(Cache_Control="max-age=0"))[1] == REVALIDATED


async def test_only_if_cached(bench: Bench) -> None:
    reply = await bench.ask(Cache_Control="only-if-cached")
    assert (reply.status, bench.origin.trace) == (504, "")
    await bench.get()
    assert await bench.get(Cache_Control="only-if-cached") == (200, HIT, BODY)


@pytest.mark.parametrize("control", ["no-store", "private", "private, max-age=60"])
async def test_what_may_not_be_shared_is_fetched_for_each_client(bench: Bench, control: str) -> None:
    bench.set_out(Cache_Control=control)
    replies = await asyncio.gather(bench.get(), bench.get())
    assert [(status, content) for status, _, content in replies] == [(200, BODY)] * 2
    assert bench.origin.count(PATH) == 2
    assert await bench.get() == (200, BYPASS, BODY)
    assert list((bench.directory / "feeds").iterdir()) == []


async def test_a_client_s_own_validators_are_for_what_may_not_be_shared(bench: Bench) -> None:
    bench.set_out(Cache_Control="no-store")
    await bench.get()
    date = http_date(time.time())
    reply = await bench.ask(If_Modified_Since=date)
    assert (reply.status, await read(reply)) == (304, b"")
    assert bench.origin.requests(PATH)[-1].headers["if-modified-since"] == date
    bench.set_out(Cache_Control="max-age=60")
    assert (await bench.get())[1] == BYPASS
    assert (await bench.get())[1] == HIT


async def test_what_a_client_wants_stored_nowhere_is_not(bench: Bench) -> None:
    assert await bench.get(Cache_Control="no-store") == (200, BYPASS, BODY)
    assert bench.feeds.figures()["objects"] == 0
    assert (await bench.get())[1] == MISS


async def test_users_with_a_password_do_not_see_each_other_s_files(bench: Bench) -> None:
    bench.set_out(Cache_Control="public, max-age=600")
    assert (await bench.get(Authorization="Basic eDp5"))[1] == MISS
    assert (await bench.get(Authorization="Basic eDp5"))[1] == HIT
    assert (await bench.get(Authorization="Basic other"))[1] == MISS
    assert (await bench.get())[1] == MISS
    assert bench.origin.requests(PATH)[0].headers["authorization"] == "Basic eDp5"
    bench.set_out(name="other", Cache_Control="max-age=600")
    for _ in range(2):
        assert (await bench.get("/other", Authorization="Basic eDp5"))[1] in (MISS, BYPASS)
    assert bench.origin.count("/other") == 2


async def test_user_and_password_of_the_url_are_sent_and_kept_apart(bench: Bench) -> None:
    bench.set_out(Cache_Control="public, max-age=600")
    url = bench.url().replace("//", "//user:p%40ss@")
    reply = await bench.ask(url=url)
    await read(reply)
    await bench.settle()
    assert bench.origin.requests(PATH)[0].headers["authorization"] == "Basic dXNlcjpwQHNz"
    assert (await bench.get())[1] == MISS
    bench.set_out(name="x", Cache_Control="max-age=600")
    for _ in range(2):
        await read(await bench.ask(url=bench.url("/x").replace("//", "//user:p@")))
        await bench.settle()
    assert bench.origin.count("/x") == 2  # nothing says that it may be shared


async def test_vary(bench: Bench) -> None:
    bench.set_out(Vary="User-Agent", Cache_Control="max-age=600")
    assert (await bench.get(User_Agent="a"))[1] == MISS
    assert (await bench.get(User_Agent="a"))[1] == HIT
    assert (await bench.get(User_Agent="b"))[1] == MISS
    replies = await asyncio.gather(bench.get(User_Agent="c"), bench.get(User_Agent="d"))
    assert {how for _, how, _ in replies} == {MISS, BYPASS}
    assert bench.origin.count(PATH) == 4


async def test_vary_by_encoding_changes_nothing_as_only_one_is_asked_for(bench: Bench) -> None:
    bench.set_out(Vary="Accept-Encoding", Cache_Control="max-age=600")
    assert (await bench.get(Accept_Encoding="gzip"))[1] == MISS
    assert (await bench.get())[1] == HIT


async def test_urls_differ_by_their_query(bench: Bench) -> None:
    for query in ("", "?a=1", "?a=2"):
        assert (await bench.get(PATH + query))[1] == MISS
    assert bench.feeds.figures()["objects"] == 3


# Failures


REFUSALS = [401, 402, 403, 429, 451, 400, 500, 502, 503, 504, 206, 204]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_is_503_and_the_feed_is_left_alone(bench: Bench, code: int) -> None:
    bench.origin.rule("*", faults.status(code, retry_after="100"))
    for _ in range(3):
        reply = await bench.ask()
        assert reply.status == 503
        assert 1 <= int(reply.headers["Retry-After"]) <= 100
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
        reply = await bench.ask("/other")
        assert reply.status == 503
        assert 900 < int(reply.headers["Retry-After"]) <= 1000
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
    monkeypatch.setattr(transfer, "STALL_WINDOW", 0.3)
    monkeypatch.setattr(transfer, "SLOWEST", 10**9)
    bench.set_out(BIG)
    bench.origin.rule(PATH, faults.slow(100_000))
    with pytest.raises(SourceError, match="too slow"):
        await read(await bench.ask())


async def test_what_is_said_of_connections_that_fail(bench: Bench, tmp_path: Path) -> None:
    context, _ = origin_certificates(tmp_path / "certificates")
    with Origin(context) as tls, Origin() as proxy:
        urls = {
            f"https://localhost:{tls.port}/": b"TLS: unable to get local issuer",
            "http://localhost:1/": b"no connection",
        }
        for url, reason in urls.items():
            reply = await bench.ask(url=url)
            assert (reply.status, reason in await read(reply)) == (503, True), (url, reply.body)
        # The fake feed answers what a proxy is asked in absolute form, and refuses CONNECT.
        bench.restart(upstream={"proxy": f"http://user:secret@localhost:{proxy.port}"})
        proxy.rule("*", Fault(status=407))
        for url, reason in ((bench.url("/plain"), b"407"), ("https://localhost:2/tunnel", b"proxy: Tunnel")):
            reply = await bench.ask(url=url)
            content = await read(reply)
            assert (reply.status, reason in content, b"secret" in content) == (503, True, False), content
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
    with Origin() as other:
        other.put("x", BODY)
        bench.origin.rule("/a", faults.redirect(f"http://localhost:{other.port}/x"))
        bench.origin.rule("/b", faults.redirect(PATH))
        assert (await bench.get("/a", Authorization="Basic eDp5"))[0] == 200
        assert (await bench.get("/b", Authorization="Basic eDp5"))[0] == 200
        assert "authorization" not in other.requests("/x")[0].headers
        assert "authorization" in bench.origin.requests(PATH)[0].headers


# Clients' conditions


async def test_a_client_that_got_the_copy_here_is_told_that_it_is_right(bench: Bench) -> None:
    await bench.get()
    assert (await bench.ask(If_Modified_Since=http_date(time.time() + 1))).status == 304
    modified = (await bench.ask()).headers["Last-Modified"]
    assert (await bench.ask(If_Modified_Since=modified)).status == 304
    etag = (await bench.ask()).headers["ETag"]
    reply = await bench.ask(If_None_Match=etag)
    assert (reply.status, reply.body, "Content-Length" in reply.headers) == (304, b"", False)
    assert reply.headers["ETag"] == etag


async def test_a_client_that_got_an_older_copy_here_gets_the_new_one(bench: Bench) -> None:
    """Its file is younger than the feed's new version, but older than ours of that."""
    bench.origin.put(NAME, b"old", http_date(time.time() - 7200))
    bench.origin.rule(PATH, Fault(headers={"Cache-Control": "max-age=0"}))
    await bench.get()
    wrote_at = time.time() - 60
    entry = next(iter(bench.feeds._store._entries.values()))
    assert entry.is_not_newer(entry.obtained_at + 60)
    bench.origin.put(NAME, b"new", http_date(wrote_at - 60))
    reply = await bench.ask(If_Modified_Since=http_date(wrote_at))
    assert (reply.status, await read(reply)) == (200, b"new")
    assert "Last-Modified" not in reply.headers  # libcurl would make a 304 of it
    await bench.settle()
    reply = await bench.ask(If_Modified_Since=http_date(wrote_at))
    assert (reply.status, reply.headers["Cache-Status"]) == (200, f"clamproxy; {REVALIDATED}")
    assert "Last-Modified" not in reply.headers
    reply = await bench.ask(If_Modified_Since=http_date(wrote_at - 120))
    assert (reply.status, "Last-Modified" in reply.headers) == (200, True)


async def test_ranges(bench: Bench) -> None:
    assert (await bench.get(Range="bytes=0-8"))[2] == b"signature"
    reply = await bench.ask(Range="bytes=10-18")
    assert (reply.status, reply.body) == (206, b"signature")
    assert reply.headers["Content-Range"] == f"bytes 10-18/{len(BODY)}"
    assert (await bench.ask(Range="bytes=9999-")).status == 416


async def test_a_weak_tag_says_nothing_about_bytes(bench: Bench) -> None:
    bench.set_out(ETag='W/"a"')
    await bench.get()
    assert (await bench.ask(If_None_Match='W/"a"')).status == 304
    assert (await bench.ask(Range="bytes=0-1", If_Range='"a"')).status == 200


@pytest.mark.parametrize("size", [10, 300_000])
async def test_head(bench: Bench, size: int) -> None:
    bench.set_out(BIG[:size])
    for _ in range(2):
        reply = await bench.ask(method="HEAD")
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["Content-Length"] == str(size)
        await bench.settle()
    assert bench.origin.count(PATH) == 1


async def test_large_bodies_come_from_the_disk(bench: Bench) -> None:
    bench.set_out(BIG)
    await bench.get()
    reply = await bench.ask()
    assert isinstance(reply.body, Body)
    assert await read(reply) == BIG
    reply.body.source.close()


# Refused requests


@pytest.mark.parametrize(
    ("method", "url", "headers", "status"),
    [
        ("POST", None, {}, 405),
        ("CONNECT", None, {}, 405),
        ("GET", None, {"Via": VIA}, 502),
        ("GET", None, {"Via": "x" * 2000}, 502),
        ("GET", "ftp://localhost/x", {}, 502),
        ("GET", "http://localhost:99999/x", {}, 502),
        ("GET", "http://[::1/x", {}, 502),
        ("GET", "http:///x", {}, 502),
        ("GET", "http://localhost/a b", {}, 502),
        ("GET", "http://localhost/\u00e4", {}, 502),
        ("GET", "nonsense", {}, 502),
    ],
)
async def test_what_is_no_request_for_a_feed(
    bench: Bench, method: str, url: str | None, headers: dict[str, str], status: int
) -> None:
    reply = await bench.ask(method=method, url=url, **headers)
    assert (reply.status, reply.result) == (status, Result.REFUSED)
    assert bench.origin.trace == ""


async def test_what_goes_wrong_inside_is_503(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"about {bench.url()}")

    monkeypatch.setattr(bench.feeds._store, "get", fail)
    reply = await bench.ask()
    assert (reply.status, reply.result, KEY.encode() in await read(reply)) == (503, Result.ERROR, False)
    assert "RuntimeError" in caplog.text
    assert KEY not in caplog.text


# Across processes


async def test_a_restart_keeps_the_files(bench: Bench) -> None:
    bench.set_out(BIG, Cache_Control="max-age=600")
    await bench.get()
    bench.restart()
    assert await bench.get() == (200, HIT, BIG)


async def test_a_damaged_file_is_fetched_anew(bench: Bench) -> None:
    await bench.get()
    (body,) = (path for path in (bench.directory / "feeds").iterdir() if path.suffix != ".json")
    body.write_bytes(BODY[::-1])
    bench.restart()
    assert [await bench.get() for _ in range(2)] == [(200, MISS, BODY), (200, HIT, BODY)]


async def test_a_file_that_is_gone_is_fetched_anew(bench: Bench) -> None:
    await bench.get()
    for path in (bench.directory / "feeds").iterdir():
        path.unlink()
    assert await bench.get() == (200, MISS, BODY)


async def test_a_directory_that_cannot_be_used_is_an_error(bench: Bench) -> None:
    (bench.directory / "feeds").write_text("a file")
    assert (await bench.get())[:2] == (503, ERROR)


async def test_stopping_ends_those_who_wait(bench: Bench) -> None:
    bench.origin.rule(PATH, faults.silent())
    waiting = asyncio.create_task(bench.ask())
    while not bench.origin.count(PATH):  # noqa: ASYNC110  (the origin is in a thread)
        await asyncio.sleep(0.01)
    bench.feeds.stop()
    assert (await waiting).status == 503


async def test_whatever_happens_at_once_clients_get_whole_files_or_503(bench: Bench) -> None:
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
        reply = await bench.ask(f"/{dice.randrange(4)}", User_Agent=dice.choice("ab"), **asking)
        assert reply.status in (200, 503), reply
        if dice.random() < 0.1 and isinstance(reply.body, Body):
            reply.body.source.close()  # the client leaves
            return
        with suppress(SourceError):
            content = await read(reply)
            assert reply.status == 503 or content in bodies

    for _ in range(8):
        bench.feeds._cooldowns._active.clear()
        bench.origin.heal()
        for number in range(4):
            bench.origin.put(str(number), dice.choice(sorted(bodies)))
            fields = {"Cache-Control": dice.choice(controls), "Vary": dice.choice(["", "User-Agent"])}
            bench.origin.rule(f"/{number}", Fault(headers=fields))
            bench.origin.rule(f"/{number}", dice.choice(pieces), times=2, skip=dice.randrange(3))
        await asyncio.gather(*(client() for _ in range(12)))
    await bench.settle()
    feeds = bench.feeds
    assert (feeds._running, feeds._tasks, feeds._checks, feeds._store._arriving) == ({}, set(), {}, 0)
    stored = list((bench.directory / "feeds").iterdir())
    assert len(stored) == 2 * feeds.figures()["objects"]
    assert {path.read_bytes() for path in stored if path.suffix != ".json"} <= bodies


# Secrets


async def test_keys_of_subscribers_are_nowhere(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    plain, query = bench.url(), bench.url(f"/list?key={KEY}")
    password = plain.replace("//", f"//user:{KEY}@")
    for fault in (
        Fault(),
        faults.status(403),
        faults.status(500),
        faults.redirect(f"/x/{KEY}"),
        Fault(status=304),
    ):
        bench.origin.heal()
        bench.origin.rule("*", fault)
        for url in (plain, query, password, f"http://localhost:1/{KEY}", f"http://[/{KEY}"):
            reply = await bench.ask(url=url, Cache_Control="no-cache")
            told += [str(reply.headers), repr(reply), "" if reply.status == 200 else str(await read(reply))]
            await bench.settle()
    bench.origin.refuse()
    told += [str(await bench.ask(url=query)), str(bench.feeds.figures()), str(bench.notes), caplog.text]
    told += [repr(FeedRequest(query, "GET", Headers())), repr(Target.parse(password))]
    for path in (bench.directory / "feeds").iterdir():
        told += [path.name, path.read_text("latin-1") if path.suffix == ".json" else ""]
    assert "does not deliver" in caplog.text
    assert KEY not in "\n".join(told)


# Parts


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://Feed.Example/a", "http://feed.example.:80/a#x", True),
        ("https://feed.example/a", "https://feed.example:443/a", True),
        ("http://feed.example", "http://feed.example/", True),
        ("http://feed.example/a", "https://feed.example/a", False),
        ("http://feed.example/a", "http://feed.example/A", False),
        ("http://feed.example/a?x", "http://feed.example/a?y", False),
    ],
)
def test_which_urls_are_the_same(one: str, other: str, same: bool) -> None:
    assert (Target.parse(one).key(None) == Target.parse(other).key(None)) is same


def test_no_redirection_from_https_to_http() -> None:
    with pytest.raises(TargetError):
        Target.parse("https://feed.example/a").follow("http://feed.example/a")
    assert Target.parse("https://feed.example/a/b").follow("../c?d").path == "/c?d"


def test_cool_downs_grow_end_and_are_few(tmp_path: Path) -> None:
    now, notes = [1000.0], dict[str, Any]()
    cooldowns = FeedCooldowns(notes.__setitem__, lambda: now[0])
    delays = [cooldowns.failed("h", "k", Failure.FORBIDDEN, "no", None) for _ in range(3)]
    assert delays == [60, 120, 240]
    assert cooldowns.check("h", "k") is not None
    assert cooldowns.check("h", "other") is None
    again = FeedCooldowns(notes.__setitem__, lambda: now[0])
    again.restore({**notes, "cooldown/x": {"until": "soon"}, "cooldown/y": None})
    assert again.check("h", "k") == cooldowns.check("h", "k")
    assert notes["cooldown/x"] is None
    cooldowns.succeeded("h", "k")
    assert cooldowns.check("h", "k") is None
    assert notes["cooldown/k"] is None
    for number in range(MOST + 10):
        cooldowns.failed("h", str(number), Failure.FORBIDDEN, "no", None)
    assert sum(note is not None for note in notes.values()) <= MOST


def test_little_is_remembered_and_counted() -> None:
    now = [0.0]
    remembered = Remembered(10, lambda: now[0])
    for number in range(5000):
        remembered.add(str(number))
    assert "0" not in remembered
    assert "4999" in remembered
    now[0] = 10
    assert "4999" not in remembered
    counts = Counts()
    for number in range(300):
        counts.add(f"{number:03}.example", Result.HIT)
    figures = counts.figures(lambda _: None)
    assert (len(figures), figures[-1]["host"]) == (256, "299.example")
