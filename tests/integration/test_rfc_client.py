"""What RFC 9110 and RFC 9112 ask of who receives a response: towards the origin, and towards feeds.

Each row is one way to send a file, right or wrong. "Whole" means that it arrives and may be kept; "broken"
means that no client ever gets a complete answer from it. What RFC 9111 asks of a cache is in
test_rfc_cache.py.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.settings import Settings
from clamproxy.feeds import Feeds, feed_transfer
from clamproxy.messages import SourceError
from clamproxy.notes import UNKEPT
from clamproxy.origin.errors import NotFoundError, TransferError
from clamproxy.origin.transfer import Transfer
from tests.harness.feeds import ask_feeds
from tests.harness.feeds import read as read_response
from tests.harness.transfers import TransferHarness, connect
from tests.support.forge import forge_cdiff
from tests.support.scripted import Raw, RawOrigin
from tests.support.site import eventually, origin_certificates
from tests.support.stored import NEW, cdiff, read, until

LIMIT = 30
"""Seconds; only a guard."""

FILE = forge_cdiff("daily", 5)
LENGTH = len(FILE)
OK = b"HTTP/1.1 200 OK\r\n"
CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def sized(*fields: str, status: str = "HTTP/1.1 200 OK", body: bytes = FILE) -> bytes:
    """An answer with Content-Length."""
    return answer(*fields, f"Content-Length: {LENGTH}", status=status, body=body)


def answer(*fields: str, status: str = "HTTP/1.1 200 OK", body: bytes = FILE) -> bytes:
    """An answer with these lines in its head."""
    return "".join(f"{line}\r\n" for line in (status, *fields, "")).encode("latin-1") + body


def chunks(*sizes: str, last: bytes = b"0\r\n\r\n", body: bytes = FILE) -> bytes:
    """Chunked content: what is written as the size of one chunk that holds it all."""
    size = sizes[0] if sizes else f"{len(body):x}"
    return size.encode() + b"\r\n" + body + b"\r\n" + last


def chunked(*fields: str, status: str = "HTTP/1.1 200 OK", body: bytes | None = None) -> bytes:
    """An answer in the chunked coding."""
    coded = chunks() if body is None else body
    return answer(*fields, "Transfer-Encoding: chunked", status=status, body=coded)


@dataclass(frozen=True, slots=True)
class Row:
    """A way to send a file."""

    rule: str
    """What is tried, and where it is written."""
    data: bytes
    whole: bool = True
    closes: bool = False
    """Whether the server ends the connection then."""
    only: str = ""
    """The only path to which it applies."""


HEAD = "".join(f"X-Filler-{number}: {'x' * 200}\r\n" for number in range(60)).encode()
HALF = FILE[: LENGTH // 2]
MULTIPART = b"--b\r\nContent-Range: bytes 0-9/%d\r\n\r\n" % LENGTH + FILE[:10] + b"\r\n--b--\r\n"

ROWS = [
    # RFC 9112 3, 4: the status line
    Row("9112 4: no reason phrase", sized(status="HTTP/1.1 200 ")),
    Row("9112 4: not even the space before it", sized(status="HTTP/1.1 200")),
    Row("9112 4: a reason phrase in Latin-1", sized(status="HTTP/1.1 200 Tr\xe8s bien")),
    Row("9110 2.5: a higher minor version", sized(status="HTTP/1.2 200 OK")),
    Row("9110 2.5: another major version", sized(status="HTTP/3.0 200 OK"), whole=False),
    Row("9112 4: no status line", b"<html>" + FILE, whole=False, closes=True),
    Row("9112 4: a status that is no number", sized(status="HTTP/1.1 2OO OK"), whole=False),
    Row("9112 2.3: HTTP/1.0", sized(status="HTTP/1.0 200 OK"), closes=True),
    Row("9112 9.3: HTTP/1.0 that persists", sized("Connection: keep-alive", status="HTTP/1.0 200 OK")),
    # RFC 9112 2.2, 5: the fields
    Row("9112 2.2: lines that end with LF alone", sized().replace(b"\r\n", b"\n", 2 + 1)),
    Row("9110 5.1: names in lower case", answer(f"content-length: {LENGTH}")),
    Row("9112 5.1: no space after the colon", answer(f"Content-Length:{LENGTH}")),
    Row("9112 5.1: spaces and tabs around a value", answer(f"Content-Length: \t {LENGTH} \t ")),
    Row("9112 5.1: a space before the colon", answer(f"Content-Length : {LENGTH}")),
    Row(
        "9112 5.1: a space before the colon of a length that is wrong",
        answer(f"Content-Length : {LENGTH}", body=HALF),
        whole=False,
        closes=True,
    ),
    Row("9112 5.2: a folded field", answer("X-Folded: one,", " two", f"Content-Length: {LENGTH}")),
    Row("9112 5.2: a folded length", answer("Content-Length:", f" {LENGTH}")),
    Row("9112 2.2: a folded line before all fields", answer(" X: y", f"Content-Length: {LENGTH}")),
    Row("9112 5: a line that is no field", answer("no field", f"Content-Length: {LENGTH}")),
    Row(
        "9112 5: a line that is no field before a length that is wrong",
        answer("no field", f"Content-Length: {LENGTH}", body=HALF),
        whole=False,
        closes=True,
    ),
    Row("9110 5.4: many fields", answer(f"Content-Length: {LENGTH}\r\n{HEAD.decode()[:-2]}")),
    Row("9112 8: the head ends early", b"HTTP/1.1 200 OK\r\nContent-Le", whole=False, closes=True),
    Row("9112 8: the head ends after a line", b"HTTP/1.1 200 OK\r\nDate: x\r\n", whole=False, closes=True),
    # RFC 9110 15.2: interim responses
    Row("9110 15.2.1: 100 before the answer", b"HTTP/1.1 100 Continue\r\n\r\n" + sized()),
    Row("9110 15.2: 102 before the answer", b"HTTP/1.1 102 Processing\r\n\r\n" + sized()),
    Row("9110 15.2: 103 with fields", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + sized()),
    Row("9110 15.2: several of them", b"HTTP/1.1 103 x\r\nContent-Length: 3\r\n\r\n" * 3 + sized()),
    Row("9110 15.2: one that nobody knows", b"HTTP/1.1 199 x\r\n\r\n" + sized()),
    Row(
        "9110 15.2.2: 101 that nothing asked for", b"HTTP/1.1 101 x\r\nUpgrade: x\r\n\r\n" + FILE, whole=False
    ),
    # RFC 9112 6.3: the length
    Row("9112 6.3: Content-Length", sized()),
    Row("9112 6.3: the connection ends early", sized(body=HALF), whole=False, closes=True),
    Row("9112 6.3: a byte is missing", sized(body=FILE[:-1]), whole=False, closes=True),
    Row("9112 6.3: more than Content-Length", sized(body=FILE + b"more")),
    Row("9110 8.6: Content-Length twice, the same", sized(f"Content-Length: {LENGTH}")),
    Row("9110 8.6: Content-Length as a list", answer(f"Content-Length: {LENGTH}, {LENGTH}")),
    Row("9112 6.3: Content-Length twice, another", sized(f"Content-Length: {LENGTH - 9}"), whole=False),
    *[
        Row(f"9112 6.3: Content-Length {name}", answer(f"Content-Length: {text}"), whole=False, closes=True)
        for name, text in {
            "below zero": "-5",
            "with a sign": f"+{LENGTH}",
            "with an underscore": "1_0",
            "in hexadecimal": "0x10",
            "in words": "ten",
            "of 30 digits": "9" * 30,
            "of 5000 digits": "9" * 5000,
            "with a parameter": f"{LENGTH};x",
            "of two numbers": "1 2",
            "without a number": "",
        }.items()
    ],
    Row("9112 6.1: chunked", chunked()),
    Row("9112 6.1: Chunked in other letters", answer("transfer-encoding: CHUNKED", body=chunks())),
    Row("9112 6.3: chunked and Content-Length", chunked(f"Content-Length: {LENGTH - 9}")),
    Row("9112 6.3: chunked and a longer Content-Length", chunked(f"Content-Length: {LENGTH + 9}")),
    Row("9112 6.1: an unknown coding", answer("Transfer-Encoding: br"), whole=False, closes=True),
    Row("9112 6.1: gzip, chunked", answer("Transfer-Encoding: gzip, chunked", body=chunks()), whole=False),
    Row(
        "9112 6.1: chunked, gzip",
        answer("Transfer-Encoding: chunked, gzip", body=chunks()),
        False,
        closes=True,
    ),
    Row("9112 6.1: chunked twice", chunked("Transfer-Encoding: chunked"), whole=False),
    Row(
        "9112 6.1: an unknown coding and Content-Length",
        sized("Transfer-Encoding: x-unknown"),
        whole=False,
    ),
    Row("9112 6.1: chunked in HTTP/1.0", chunked(status="HTTP/1.0 200 OK"), closes=True),
    # RFC 9112 7: chunks
    Row("9112 7.1: a size in upper case", chunked(body=chunks(f"{LENGTH:X}"))),
    Row("9112 7.1: leading zeros", chunked(body=chunks(f"0000{LENGTH:x}"))),
    Row("9112 7.1: the last chunk 000", chunked(body=chunks(last=b"000\r\n\r\n"))),
    Row("9112 7.1.1: an extension", chunked(body=chunks(f"{LENGTH:x};name=value"))),
    Row("9112 7.1.1: a quoted extension", chunked(body=chunks(f'{LENGTH:x} ; n="a;b"', last=b"0;x\r\n\r\n"))),
    Row("9112 7.1.2: trailers", chunked(body=chunks(last=b"0\r\nX-Digest: 1\r\nContent-Length: 3\r\n\r\n"))),
    Row("9112 8: no last chunk", chunked(body=chunks(last=b"")), whole=False, closes=True),
    Row("9112 8: the end within a chunk", chunked(body=chunks()[:LENGTH]), whole=False, closes=True),
    Row("9112 7.1: no size", chunked(body=chunks("")), whole=False, closes=True),
    Row("9112 7.1: a size that is none", chunked(body=chunks("xyz")), whole=False, closes=True),
    Row("9112 7.1: a negative size", chunked(body=chunks("-1")), whole=False, closes=True),
    Row("9112 7.1: a size without end", chunked(body=chunks("f" * 40)), whole=False, closes=True),
    Row(
        "9112 7.1: a chunk that is longer than its size", chunked(body=chunks(f"{LENGTH - 3:x}")), False, True
    ),
    # RFC 9112 6.3, 9.8: until the connection ends
    Row("9112 6.3: until the connection closes", answer(), closes=True),
    Row("9112 9.6: Connection: close", sized("Connection: close"), closes=True),
    Row("9112 9.6: Connection: Close, with others", sized("Connection: x, Close", "X: y"), closes=True),
    # RFC 9110 15: what is no file
    Row("9110 15.3.5: 204", answer(status="HTTP/1.1 204 No Content", body=b""), whole=False),
    Row("9110 15.3.5: 204 with content", sized(status="HTTP/1.1 204 No Content"), whole=False),
    Row("9110 15.3.6: 205", sized(status="HTTP/1.1 205 Reset"), whole=False),
    Row("9110 15.3.4: 203, changed on the way", sized(status="HTTP/1.1 203 x"), whole=False),
    Row("9110 15.4.5: 304 that nothing asked for", sized(status="HTTP/1.1 304 x"), whole=False),
    Row(
        "9110 15.3.7: 206 without Range", sized("Content-Range: bytes 0-9/10", status="HTTP/1.1 206 x"), False
    ),
    Row(
        "9110 15.3.7.2: 206 in several parts",
        answer(
            "Content-Type: multipart/byteranges; boundary=b",
            f"Content-Length: {len(MULTIPART)}",
            status="HTTP/1.1 206 x",
            body=MULTIPART,
        ),
        whole=False,
    ),
    *[
        Row(f"9110 15: status {code}", sized(status=f"HTTP/1.1 {code} x"), whole=False)
        for code in (299, 300, 304, 305, 399, 400, 408, 412, 416, 421, 426, 431, 499, 500, 505, 599, 999)
    ],
    # RFC 9110 15.4: redirections
    *[
        Row(f"9110 15.4: {code} without Location", sized(status=f"HTTP/1.1 {code} x"), whole=False)
        for code in (301, 302, 303, 307, 308)
    ],
    Row("9110 8.4: an encoding that nobody asked for", sized("Content-Encoding: gzip"), False, only="origin"),
    Row("9110 8.4: identity is no encoding", sized("Content-Encoding: identity")),
    Row("9110 8.3: any Content-Type", sized("Content-Type: text/html")),
]


async def by_origin(harness: TransferHarness, server: RawOrigin) -> bytes | None:
    """The file as it is published; None if it can't be had."""
    upstream = connect(server)
    transfer = Transfer(cdiff(5), NEW, replace(harness.resources, upstream=upstream))
    try:
        async with asyncio.timeout(LIMIT):
            await transfer.run()
    except (NotFoundError, TransferError):
        return None
    finally:
        upstream.close()
    return read(harness.store, cdiff(5))


def open_feeds(directory: Path, **upstream: Any) -> Feeds:
    settings = Settings.model_validate({"feeds": {"hosts": ["localhost"]}, "upstream": upstream})
    return Feeds(directory, settings, lambda _: UNKEPT, lambda *_: None, "1.1 clamproxy-test")


async def by_feed(directory: Path, server: RawOrigin, **upstream: Any) -> bytes | None:
    """The content of a complete answer with status 200; None if there is none."""
    feeds = open_feeds(directory, **upstream)
    try:
        async with asyncio.timeout(LIMIT):
            response = await ask_feeds(feeds, f"{server.url}/file.ndb")
            content = await read_response(response)
    except SourceError:
        return None
    finally:
        feeds.stop()
    assert response.status in (200, 404, 503)
    return content if response.status == 200 else None


def rows(path: str) -> pytest.MarkDecorator:
    mine = [row for row in ROWS if row.only in ("", path)]
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.rule) for row in mine])


@rows("origin")
async def test_the_origin_s_response(harness: TransferHarness, row: Row) -> None:
    with RawOrigin(Raw(row.data, closes=row.closes)) as server:
        assert await by_origin(harness, server) == (FILE if row.whole else None)


@rows("feed")
async def test_a_feed_s_response(tmp_path: Path, row: Row) -> None:
    with RawOrigin(Raw(row.data, closes=row.closes)) as server:
        assert await by_feed(tmp_path, server) == (FILE if row.whole else None)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ends, and whether the next request may follow it on the connection."""

    rule: str
    first: Raw
    persists: bool


ENDINGS = [
    Ending("9112 9.3: HTTP/1.1", Raw(sized()), persists=True),
    Ending("9112 9.3: HTTP/1.0", Raw(sized(status="HTTP/1.0 200 OK"), is_deaf=True), persists=False),
    Ending("9112 9.6: the server says close", Raw(sized("Connection: close"), is_deaf=True), persists=False),
    Ending("9112 9.6: in other letters", Raw(sized("connection: X, CLOSE"), is_deaf=True), persists=False),
    Ending("9112 9.6: after chunks", Raw(chunked("Connection: close"), is_deaf=True), persists=False),
    Ending("9112 6.3: two lengths", Raw(chunked("Content-Length: 9"), is_deaf=True), persists=False),
    Ending(
        "9112 6.1: HTTP/1.0 with chunks", Raw(chunked(status="HTTP/1.0 200 OK"), is_deaf=True), persists=False
    ),
    Ending("9112 9.5: the server leaves without a word", Raw(sized(), closes=True), persists=False),
    Ending("9112 9.5: the server leaves with RST", Raw(sized(), resets=True), persists=False),
    Ending(
        "9112 7.1.2: chunks and trailers", Raw(chunked(body=chunks(last=b"0\r\nX: y\r\n\r\n"))), persists=True
    ),
]


@pytest.mark.parametrize("ending", [pytest.param(ending, id=ending.rule) for ending in ENDINGS])
def test_when_a_connection_to_the_origin_is_used_again(ending: Ending) -> None:
    with RawOrigin(ending.first, Raw(sized())) as server:
        upstream = connect(server)
        for _ in range(2):
            with upstream.get("/daily-5.cdiff", NEW) as response:
                assert b"".join(response.chunks()) == FILE
            assert eventually(lambda: server.ended or not (ending.first.closes or ending.first.resets))
        upstream.close()
        assert [asked.connection for asked in server.asked] == ([1, 1] if ending.persists else [1, 2])


@pytest.mark.parametrize("ending", [pytest.param(ending, id=ending.rule) for ending in ENDINGS])
async def test_a_connection_to_a_feed_is_never_used_again(tmp_path: Path, ending: Ending) -> None:
    """Each request has ``Connection: close``, and a server that does as it is told need not say so."""
    with RawOrigin(replace(ending.first, is_deaf=True), Raw(sized(), is_deaf=True)) as server:
        feeds = open_feeds(tmp_path)
        for number in range(3):
            response = await ask_feeds(feeds, f"{server.url}/{number}")
            assert (response.status, await read_response(response)) == (200, FILE)
        feeds.stop()
        assert [asked.connection for asked in server.asked] == [1, 2, 3]
        assert all("Connection: close" in asked.head for asked in server.asked)


@pytest.mark.parametrize(
    ("data", "is_ragged", "whole"),
    [
        pytest.param(answer(), False, True, id="9112 6.3: until close_notify"),
        pytest.param(answer(), True, False, id="9112 9.8: no close_notify: incomplete"),
        pytest.param(sized(), True, True, id="9112 9.8: no close_notify after all of Content-Length"),
        pytest.param(chunked(), True, True, id="9112 9.8: no close_notify after the last chunk"),
    ],
)
async def test_where_tls_ends(tmp_path: Path, data: bytes, is_ragged: bool, whole: bool) -> None:
    context, bundle = origin_certificates(tmp_path / "certificates")
    raw = Raw(data, closes=not is_ragged, is_ragged=is_ragged)
    with RawOrigin(raw, tls=context) as server:
        assert await by_feed(tmp_path, server, ca_bundle=bundle) == (FILE if whole else None)


@pytest.mark.parametrize(
    ("data", "trickle"),
    [
        pytest.param(chunked(body=chunks(last=b"0\r\n")), b"X: y\r\n", id="9112 7.1.2: trailers without end"),
        pytest.param(chunked(body=chunks(last=b"1;")), b"x", id="9112 7.1.1: an extension without end"),
        pytest.param(sized(body=HALF), b"x", id="9112 6.3: a body without end"),
    ],
)
async def test_a_body_that_does_not_get_on_ends_with_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, trickle: bytes
) -> None:
    monkeypatch.setattr(feed_transfer, "STALL_WINDOW", 0.2)
    with RawOrigin(Raw(data, trickle=trickle)) as server:
        assert await by_feed(tmp_path, server) is None
        await until(lambda: "clamproxy-feed" not in [thread.name for thread in threading.enumerate()])
