"""A gateway between a fake CDN and a fake DNS server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.config.settings import Settings
from clamproxy.formats.header import CvdHeader
from clamproxy.messages import Body, Response
from clamproxy.service import Service
from clamproxy.surroundings import Surroundings
from tests.support.clock import ClockAhead
from tests.support.dns_server import FakeDns
from tests.support.forge import forge_keys
from tests.support.front import CDN, answer, asked
from tests.support.origin import OriginServer
from tests.support.releases import Releases
from tests.support.stored import AGENT, read_all, until

PROBE = {"Range": "bytes=0-511"}
RELEASES = Releases(filler=100_000)
"""CVDs of 75 KB, cdiffs of 1 KB."""
NEWEST = 4
OFFLINE = {"upstream": {"offline": True}}


class ServiceHarness:
    """A gateway with what is around it. Nothing is fetched ahead unless a test does it."""

    def __init__(self, directory: Path, origin: OriginServer, dns: FakeDns, clock: ClockAhead) -> None:
        self.directory, self.origin, self.dns, self.clock = directory, origin, dns, clock
        self.service = self.make()

    def make(self, **sections: dict[str, Any]) -> Service:
        settings = Settings.model_validate(
            {
                **sections,
                "cache": {"directory": self.directory, **sections.get("cache", {})},
                "upstream": {
                    "url": self.origin.url,
                    "read_timeout": "5s",
                    **sections.get("upstream", {}),
                },
                "versions": {"nameservers": [self.dns.nameserver], **sections.get("versions", {})},
            }
        )
        return Service(settings, forge_keys().trusted, Surroundings(clock=self.clock))

    def restart(self, **sections: dict[str, Any]) -> None:
        """Restart with other settings."""
        self.service.stop()
        self.service = self.make(**sections)

    def release(self, version: int, *, base: int | None = None) -> None:
        """Publish a version, or all but its CVD, and advertise it; the record starts anew."""
        RELEASES.publish(self.origin, version, base=base)
        self.advertise(version)
        self.origin.forget()

    def advertise(self, version: int) -> None:
        self.dns.versions["daily"] = version
        self.clock.ahead += 400

    async def begin(self, base: int = 1) -> None:
        """Put a base into the cache."""
        self.release(base)
        assert (await self.ask())[0].version == base
        await self.settle()

    async def hold(self, base: int = 1, reached: int = NEWEST) -> None:
        """Put a base and the patches that follow it into the cache; the origin has the newest CVD."""
        await self.begin(base)
        self.release(reached)
        assert (await self.ask())[0].version == base
        await self.settle()
        self.origin.forget()

    async def settle(self) -> None:
        """Wait until nothing is fetched, and what is superseded is gone."""
        await until(lambda: not self.service.clamav.prefetcher._running and not self.service.under_way())
        await self.service.writer.run(lambda: None)

    async def ask(
        self, path: str = "/daily.cvd", *, method: str = "GET", agent: str = AGENT, **fields: str
    ) -> tuple[Response, bytes]:
        """One request, and its body as a sender reads it."""
        headers = Headers([("User-Agent", agent)])
        for name, value in fields.items():
            headers[name.replace("_", "-")] = value
        response = await answer(self.service, asked(f"http://{CDN}:80{path}", method, headers))
        if not isinstance(response.body, Body):
            return response, response.body
        content = await read_all(response.body.source)
        response.body.source.close()
        return response, content[response.body.start : response.body.start + response.body.length]

    async def shown(self, path: str = "/daily.cvd") -> int:
        """The version that a header probe shows."""
        response, content = await self.ask(path, **PROBE)
        assert (response.status, len(content)) == (206, 512), content
        return CvdHeader.parse(content).version

    async def announced(self) -> int:
        """The version of daily that the gateway's own DNS gives."""
        record = await self.service.announcer.single("daily")
        assert record is not None
        return int(record.split(":")[0])

    async def refused(self, path: str, **fields: str) -> bool:
        return (await self.ask(path, **fields))[0].status == 404


@asynccontextmanager
async def open_harness(directory: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    """A site with a fake CDN, and a clock that tests turn on."""
    clock = ClockAhead()
    with FakeDns() as dns:
        harness = ServiceHarness(directory, origin, dns, clock)
        yield harness
        await harness.settle()
        harness.service.stop()


def since(version: int, seconds: int = 0) -> str:
    """If-Modified-Since of a client that has a version."""
    return http_date(RELEASES.stime(version) + seconds)
