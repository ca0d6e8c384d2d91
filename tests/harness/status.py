"""A status site over a store, and requests to it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from werkzeug.datastructures import Headers

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.fleet.biography import Biography
from clamproxy.fleet.machine import Database, Machine
from clamproxy.history import Past
from clamproxy.messages import Request, Response
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldown
from clamproxy.peers.peers import PeerState
from clamproxy.responses import complete
from clamproxy.web.pages import Pages
from clamproxy.web.sources import Place, Sources

TOKEN = "a-token-for-tests-0123456789"
STARTED_AT = 1_790_000_000.0


@dataclass
class StatusHarness:
    """A site whose sources the test can change."""

    store: Store
    settings: Settings = field(default_factory=Settings)
    transfers: list[tuple[ObjectId, int, int]] = field(default_factory=list)
    cooldowns: dict[str, Cooldown] = field(default_factory=dict)
    past: Past = field(default_factory=Past)
    machines: list[Machine] | None = None
    trend: dict[str, Any] | None = None
    biographies: dict[str, Biography] = field(default_factory=dict)
    feeds: dict[str, Any] | None = None
    authority: bytes | None = None
    peers: list[PeerState] = field(default_factory=list)
    record: str | None = None
    fleet_store: dict[str, Any] | None = None
    configured: list[tuple[str, Place]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.site = Pages(self.sources())

    def sources(self) -> Sources:
        async def record(client: str) -> str | None:
            return self.record

        def read_fleet() -> list[Machine]:
            return self.machines or []

        def read_feeds() -> dict[str, Any]:
            return self.feeds or {}

        return Sources(
            settings=lambda: self.settings,
            store=self.store,
            started_at=STARTED_AT,
            under_way=lambda: self.transfers,
            cooldowns=lambda: self.cooldowns,
            past=lambda: self.past,
            fleet=None if self.machines is None else read_fleet,
            trend=lambda: self.trend,
            biography=self.biographies.get,
            feeds=None if self.feeds is None else read_feeds,
            authority=lambda: self.authority,
            client_config=self._configure,
            peers=lambda: self.peers,
            record=record,
            fleet_store=lambda: self.fleet_store,
        )

    def _configure(self, mode: str, place: Place) -> str:
        if place.host == "bad..name":
            raise ValueError("a host name")
        self.configured.append((mode, place))
        return f"# {mode}\n"

    def renew(self) -> None:
        """Make a site that has no picture yet."""
        self.site = Pages(self.sources())

    def guard(self, token: str = TOKEN) -> None:
        self.settings = Settings.model_validate({"status": {"token": token}})

    async def ask(
        self, path: str, method: str = "GET", place: Place | None = None, **fields: str
    ) -> Response:
        headers = Headers([(name.replace("_", "-"), value) for name, value in fields.items()])
        async with asyncio.timeout(30):
            response = await self.site.handle(Request(method, path, headers), peer="192.0.2.7", place=place)
        complete(response, method)
        return response

    async def status(self) -> dict[str, Any]:
        """status.json of this moment."""
        self.renew()
        response = await self.ask("/status.json")
        assert response.status == 200, response.body
        values: dict[str, Any] = json.loads(text_of(response))
        return values


def text_of(response: Response) -> str:
    assert isinstance(response.body, bytes)
    return response.body.decode()


def machine(number: int = 1, *, eol: bool = False, **behind: int | None) -> Machine:
    """A machine that is behind by this many releases."""
    return Machine(
        uuid=f"00000000-0000-4000-8000-{number:012d}",
        address=f"10.0.{number // 250}.{number % 250}",
        freshclam="1.4.6",
        os="Linux",
        arch="x86_64",
        first_seen=1_780_000_000.0,
        last_seen=1_790_000_000.0,
        end_of_life=eol,
        databases={name: Database(1, releases, None, 1.0) for name, releases in behind.items()},
        last_error=None,
    )
