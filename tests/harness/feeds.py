"""Feeds whose only host is a fake one, from a request to a response."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from werkzeug.datastructures import Headers

from clamproxy.config.settings import Settings
from clamproxy.feeds import Feeds
from clamproxy.messages import Body, Request, Response
from clamproxy.responses import complete
from tests.support.clock import ClockAhead
from tests.support.faults import Fault
from tests.support.notes import notes_in
from tests.support.origin import OriginServer

VIA = "1.1 clamproxy-abcd"
KEY = "s3cretsubscriber"
PATH = f"/get/{KEY}/file.ndb"
NAME = PATH[1:]
BODY = b"signature\n" * 30
BIG = os.urandom(300_000)
STALE: dict[str, Any] = {"Cache-Control": "max-age=0"}
"""With this, each request is revalidated, and an old copy may be served instead."""
HIT, MISS, REVALIDATED, STALE_COPY = "hit", "fwd=miss", "fwd=stale; fwd-status=304", "fwd=stale"
NEGATIVE, ERROR, BYPASS = "hit; detail=negative", "fwd=miss; detail=error", "fwd=bypass"


async def read(response: Response) -> bytes:
    """The content of a response.

    Raises:
        SourceError: it ends early.
    """
    if not isinstance(response.body, Body):
        return response.body
    source, end = response.body.source, response.body.start + response.body.length
    content = b""
    try:
        while (offset := response.body.start + len(content)) < end:
            until = min(await source.wait(offset), end)
            content += os.pread(source.fileno(), until - offset, offset)
    finally:
        source.close()
    return content


_URL = re.compile(r"(?P<scheme>\w+)://(?P<host>.*?)(:(?P<port>\d+))?(?P<path>/.*)")


def request_for(url: str, method: str = "GET", headers: Headers | None = None) -> Request:
    """A request of a client for a URL."""
    match = _URL.fullmatch(url)
    assert match is not None, url
    fields = Headers() if headers is None else headers
    return Request(method, match["path"], fields, match["scheme"], match["host"], int(match["port"] or 80))


async def ask_feeds(feeds: Feeds, url: str, method: str = "GET", headers: Headers | None = None) -> Response:
    """A whole response."""
    response = await feeds.handle(request_for(url, method, headers))
    complete(response, method, VIA)
    return response


@dataclass
class FeedsHarness:
    """Feeds whose only host is the fake origin."""

    directory: Path
    origin: OriginServer
    notes: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    clock: ClockAhead = field(default_factory=ClockAhead)

    def __post_init__(self) -> None:
        self.feeds = self.open()

    def open(self) -> Feeds:
        sections = {"feeds": {"hosts": ["localhost"]}, "upstream": {"read_timeout": 5}} | self.sections
        counted: list[tuple[int, int]] = []
        feeds = Feeds(
            self.directory / "feeds",
            Settings(**sections),
            lambda topic: notes_in(self.notes.setdefault(topic, {})),
            lambda requests, length: counted.append((requests, length)),
            VIA,
            self.clock,
        )
        return feeds

    def restart(self, **sections: Any) -> None:
        self.feeds.stop()
        self.sections |= sections
        self.feeds = self.open()

    def files(self) -> list[Path]:
        """What is stored: the bodies, and the text file of each."""
        return [path for path in (self.directory / "feeds").iterdir() if path.is_file()]

    def url(self, path: str = PATH) -> str:
        return f"http://localhost:{self.origin.port}{path}"

    async def ask(
        self, path: str = PATH, method: str = "GET", url: str | None = None, **headers: str
    ) -> Response:
        fields = Headers([(name.replace("_", "-"), value) for name, value in headers.items()])
        return await ask_feeds(self.feeds, url or self.url(path), method, fields)

    async def get(self, path: str = PATH, **headers: str) -> tuple[int, str, bytes]:
        """Status, the essence of Cache-Status, and the content; the transfer has ended by then."""
        response = await self.ask(path, **headers)
        content = await read(response)
        await self.settle()
        return response.status, response.headers["Cache-Status"].removeprefix("clamproxy; "), content

    async def settle(self) -> None:
        """Wait for the ends of all transfers."""
        await asyncio.gather(*self.feeds._tasks, return_exceptions=True)

    def set_out(self, body: bytes = BODY, name: str = NAME, **headers: str) -> None:
        """Serve a file at the fake origin; ``cache_control="no-cache"`` becomes a field."""
        self.origin.heal()
        self.origin.put(name, body)
        fields = {key.replace("_", "-"): value for key, value in headers.items()}
        self.origin.rule(f"/{name}", Fault(headers=fields))


@contextmanager
def open_harness(directory: Path, origin: OriginServer) -> Iterator[FeedsHarness]:
    """Feeds, and a file that is set out."""
    harness = FeedsHarness(directory, origin)
    harness.set_out()
    yield harness
    harness.feeds.stop()
