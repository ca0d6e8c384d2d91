"""The application between a fake CDN and a fake DNS server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from werkzeug.datastructures import Headers

from clamproxy.config.settings import Settings
from clamproxy.messages import Body, Response
from clamproxy.service import Service
from tests.support.dns_server import FakeDns
from tests.support.forge import forge_keys
from tests.support.origin import OriginServer
from tests.unit.conftest import AGENT, read_all, until
from tests.unit.front_bench import CDN, answer, asked


class Site:
    """A gateway with what is around it."""

    def __init__(self, directory: Path, origin: OriginServer, dns: FakeDns) -> None:
        self.origin, self.dns = origin, dns
        self.settings = Settings.model_validate(
            {
                "cache": {"directory": directory},
                "upstream": {"url": origin.url, "read_timeout": "5s"},
                "versions": {"nameservers": [f"{dns.address}:{dns.port}"]},
            }
        )
        self.service = Service(self.settings, forge_keys().trusted)

    def restart(self) -> None:
        self.service.stop()
        self.service = Service(self.settings, forge_keys().trusted)

    async def settle(self) -> None:
        """Wait until no transfer runs."""
        await until(lambda: not self.service._transfers._running)

    async def ask(
        self, path: str, *, method: str = "GET", agent: str = AGENT, **fields: str
    ) -> tuple[Response, bytes]:
        """One request, and its body as a sender reads it."""
        headers = Headers([("User-Agent", agent)])
        for name, value in fields.items():
            headers[name.replace("_", "-")] = value
        async with asyncio.timeout(30):
            response = await answer(self.service, asked(f"http://{CDN}:80{path}", method, headers))
            if not isinstance(response.body, Body):
                return response, response.body
            content = await read_all(response.body.source)
            response.body.source.close()
        return response, content[response.body.start : response.body.start + response.body.length]
