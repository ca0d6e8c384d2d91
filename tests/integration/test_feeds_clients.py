"""Requests for files of feeds: conditions, ranges, what is refused, and what is told to nobody."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.http import http_date

from clamproxy.feeds.target import Target
from clamproxy.messages import Body, Result
from tests.harness.feeds import (
    BIG,
    BODY,
    KEY,
    NAME,
    PATH,
    REVALIDATED,
    FeedsHarness,
    open_harness,
    read,
    request_for,
)
from tests.support import faults
from tests.support.faults import Fault
from tests.support.origin import OriginServer


@pytest.fixture
def harness(tmp_path: Path, origin: OriginServer) -> Iterator[FeedsHarness]:
    with open_harness(tmp_path, origin) as harness:
        yield harness


# Clients' conditions


async def test_a_client_that_got_the_copy_here_is_told_that_it_is_right(harness: FeedsHarness) -> None:
    await harness.get()
    assert (await harness.ask(If_Modified_Since=http_date(time.time() + 1))).status == 304
    modified = (await harness.ask()).headers["Last-Modified"]
    assert (await harness.ask(If_Modified_Since=modified)).status == 304
    etag = (await harness.ask()).headers["ETag"]
    response = await harness.ask(If_None_Match=etag)
    assert (response.status, response.body, "Content-Length" in response.headers) == (304, b"", False)
    assert response.headers["ETag"] == etag


async def test_a_client_that_got_an_older_copy_here_gets_the_new_one(harness: FeedsHarness) -> None:
    """Its file is younger than the feed's new version, but older than ours of that."""
    harness.origin.put(NAME, b"old", http_date(time.time() - 7200))
    harness.origin.rule(PATH, Fault(headers={"Cache-Control": "max-age=0"}))
    await harness.get()
    wrote_at = time.time() - 60
    entry = next(iter(harness.feeds._store._entries.values()))
    assert entry.is_not_newer(entry.obtained_at + 60)
    harness.origin.put(NAME, b"new", http_date(wrote_at - 60))
    response = await harness.ask(If_Modified_Since=http_date(wrote_at))
    assert (response.status, await read(response)) == (200, b"new")
    assert "Last-Modified" not in response.headers  # libcurl would make a 304 of it
    await harness.settle()
    response = await harness.ask(If_Modified_Since=http_date(wrote_at))
    assert (response.status, response.headers["Cache-Status"]) == (200, f"clamproxy; {REVALIDATED}")
    assert "Last-Modified" not in response.headers
    response = await harness.ask(If_Modified_Since=http_date(wrote_at - 120))
    assert (response.status, "Last-Modified" in response.headers) == (200, True)


async def test_ranges(harness: FeedsHarness) -> None:
    assert (await harness.get(Range="bytes=0-8"))[2] == b"signature"
    response = await harness.ask(Range="bytes=10-18")
    assert (response.status, response.body) == (206, b"signature")
    assert response.headers["Content-Range"] == f"bytes 10-18/{len(BODY)}"
    assert (await harness.ask(Range="bytes=9999-")).status == 416


async def test_a_weak_tag_says_nothing_about_bytes(harness: FeedsHarness) -> None:
    harness.set_out(ETag='W/"a"')
    await harness.get()
    assert (await harness.ask(If_None_Match='W/"a"')).status == 304
    assert (await harness.ask(Range="bytes=0-1", If_Range='"a"')).status == 200


@pytest.mark.parametrize("size", [10, 300_000])
async def test_head(harness: FeedsHarness, size: int) -> None:
    harness.set_out(BIG[:size])
    for _ in range(2):
        response = await harness.ask(method="HEAD")
        assert (response.status, response.body) == (200, b"")
        assert response.headers["Content-Length"] == str(size)
        await harness.settle()
    assert harness.origin.count(PATH) == 1


async def test_large_bodies_come_from_the_disk(harness: FeedsHarness) -> None:
    harness.set_out(BIG)
    await harness.get()
    response = await harness.ask()
    assert isinstance(response.body, Body)
    assert await read(response) == BIG
    response.body.source.close()


# Refused requests


@pytest.mark.parametrize(
    "url",
    [
        "ftp://localhost/x",
        "http://localhost:99999/x",
        "http://[::1/x",
        "http:///x",
        "http://localhost/a b",
        "http://localhost/\u00e4",
    ],
)
async def test_what_is_no_request_for_a_feed(harness: FeedsHarness, url: str) -> None:
    response = await harness.ask(url=url)
    assert (response.status, response.result) == (502, Result.REFUSED)
    assert harness.origin.trace == ""


async def test_what_goes_wrong_inside_is_503(
    harness: FeedsHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"about {harness.url()}")

    monkeypatch.setattr(harness.feeds._store, "get", fail)
    response = await harness.ask()
    assert (response.status, response.result, KEY.encode() in await read(response)) == (
        503,
        Result.ERROR,
        False,
    )
    assert "RuntimeError" in caplog.text
    assert KEY not in caplog.text


# Secrets


async def test_keys_of_subscribers_are_nowhere(
    harness: FeedsHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    plain, query = harness.url(), harness.url(f"/list?key={KEY}")
    password = plain.replace("//", f"//user:{KEY}@")
    for fault in (
        Fault(),
        faults.status(403),
        faults.status(500),
        faults.redirect(f"/x/{KEY}"),
        Fault(status=304),
    ):
        harness.origin.heal()
        harness.origin.rule("*", fault)
        for url in (plain, query, password, f"http://localhost:1/{KEY}", f"http://[/{KEY}"):
            response = await harness.ask(url=url, Cache_Control="no-cache")
            told += [
                str(response.headers),
                repr(response),
                "" if response.status == 200 else str(await read(response)),
            ]
            await harness.settle()
    harness.origin.refuse()
    told += [str(await harness.ask(url=query)), str(harness.feeds.figures()), str(harness.notes), caplog.text]
    told += [repr(request_for(query)), repr(Target.parse(password))]
    for path in harness.files():
        told += [path.name, path.read_text("latin-1") if path.suffix == ".json" else ""]
    assert "does not deliver" in caplog.text
    assert KEY not in "\n".join(told)


async def test_a_server_that_has_no_https_is_still_asked_by_http(harness: FeedsHarness) -> None:
    """Clients choose the scheme: one must not hold back the feed for the others."""
    place = f"localhost:{harness.origin.port}"
    assert (await harness.ask(url=f"https://{place}{PATH}")).status == 503
    await harness.settle()
    assert harness.feeds.figures()["hosts"][0]["cooldown_until"] is not None
    assert (await harness.get())[0] == 200


@pytest.mark.parametrize("rest", ["@127.0.0.1:{port}/x", ".example/x"])
async def test_a_path_that_names_another_host(harness: FeedsHarness, rest: str) -> None:
    response = await harness.ask(url="http://localhost" + rest.format(port=harness.origin.port))
    assert (response.status, response.result) == (502, Result.REFUSED)
    assert harness.origin.requests() == []


async def test_what_is_under_way_is_told(harness: FeedsHarness) -> None:
    """A reload waits for that: clients read along."""
    harness.set_out(BIG)
    harness.origin.rule(PATH, faults.stall(200_000))
    response = await harness.ask()
    assert harness.feeds.under_way()
    assert isinstance(response.body, Body)
    response.body.source.close()
    harness.feeds.stop()
    await harness.settle()
    assert not harness.feeds.under_way()
