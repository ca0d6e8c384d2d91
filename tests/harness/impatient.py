"""A whole gateway that waits for little in real time: its origin may be silent thousands of times."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from werkzeug.datastructures import Headers

from clamproxy.messages import Body, Response, SourceError
from clamproxy.origin import attempt
from clamproxy.service import Service
from tests.harness.service import ServiceHarness
from tests.support.front import CDN, answer, asked
from tests.support.stored import read_all

SHORTER: dict[str, Any] = {
    "clamproxy.serving.resolution.PATIENCE": 2.0,
    "clamproxy.serving.resolution.PATIENCE_WITH_STALE": 0.3,
    "clamproxy.serving.gateway.PATIENCE": 2.0,
    "clamproxy.origin.breaks._FIRST_PAUSE": 0.005,
    "clamproxy.origin.connections.PATIENCE_WITH_REUSED": 0.1,
    "clamproxy.origin.header_probes.LONGEST_PROBE": 1.0,
    "clamproxy.origin.response.PATIENCE_WITH_WORDS": 0.1,
    "clamproxy.origin.watched_attempts._LOOK_EVERY": 0.05,
}
TIMEOUT = 0.25
"""Seconds of `upstream.connect_timeout` and `upstream.read_timeout`."""
LARGEST = 256 * 1024
"""Bytes of an object, instead of up to 1 GiB."""
LIMIT = 60.0
"""Seconds for one answer; only a guard. None takes a tenth of it."""


def make_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes a fraction of that, and objects are small."""
    for name, value in SHORTER.items():
        monkeypatch.setattr(name, value)
    trusts = ssl.create_default_context()  # takes 30 ms and 1 MB; this origin has no TLS
    monkeypatch.setattr("clamproxy.origin.connections.trusting", lambda _: trusts)
    for kind in attempt.LARGEST:
        monkeypatch.setitem(attempt.LARGEST, kind, LARGEST)


class ImpatientGateway(ServiceHarness):
    """With timeouts that suit a test, and clients that bear being cut off."""

    def make(self, **sections: dict[str, Any]) -> Service:
        upstream = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT}
        return super().make(**{**sections, "upstream": {**upstream, **sections.get("upstream", {})}})

    async def settle(self) -> None:
        """As that of all services, but without a pause that adds up over thousands of runs."""
        async with asyncio.timeout(LIMIT):
            while self.service.clamav.prefetcher._running or self.service.under_way():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await self.service.writer.run(lambda: None)

    async def try_to_read(
        self, path: str, agent: str, fields: dict[str, str]
    ) -> tuple[Response, bytes | None]:
        """A response and its content; None if it was cut off."""
        headers = Headers([("User-Agent", agent), *fields.items()])
        response = await answer(self.service, asked(f"http://{CDN}:80{path}", "GET", headers))
        if not isinstance(response.body, Body):
            return response, response.body
        start, end = response.body.start, response.body.start + response.body.length
        try:
            return response, (await read_all(response.body.source))[start:end]
        except SourceError:
            return response, None
        finally:
            response.body.source.close()
