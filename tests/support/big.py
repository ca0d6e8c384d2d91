"""A big CVD that is signed with test keys, and sites whose proxy trusts those keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support.forge import forge_cvd, forge_keys
from tests.support.gateway import FORGED_ADDON, Answer, Gateway, Way, read_body, send
from tests.support.site import Site, open_site

SIZE = 8_000_000
"""Roughly, in bytes."""
NAME = "daily.cvd"
PATH = f"/{NAME}"
VERSION = 27800
"""The version that the fake DNS server advertises from the start."""


@dataclass(frozen=True, slots=True)
class Forgery:
    """Two versions of daily.cvd and the directory of the keys."""

    keys: Path
    older: bytes
    body: bytes


def forge(directory: Path) -> Forgery:
    keys = directory / "keys"
    forge_keys().save(keys)
    bodies = []
    for version in (VERSION - 1, VERSION):
        path = directory / f"{version}.cvd"
        forge_cvd(path, "daily", version, SIZE, 1_700_000_000 + version)
        bodies.append(path.read_bytes())
    return Forgery(keys, *bodies)


def open_forged_site(
    directory: Path, forgery: Forgery, *, script: str = FORGED_ADDON, **sections: Any
) -> Site:
    """A site that trusts the test keys, with the newer daily.cvd on its CDN and an empty cache."""
    environment = {"CLAMPROXY_TEST_KEYS": str(forgery.keys)}
    site = open_site(directory, script=script, environment=environment, **sections)
    site.origin.put(NAME, forgery.body)
    return site


class Download(Thread):
    """A client that reads daily.cvd to its end in a thread."""

    def __init__(self, gateway: Gateway, way: Way = Way.CONNECT_HTTP, **headers: str) -> None:
        super().__init__(daemon=True)
        self._fetch: Callable[[], Answer] = lambda: gateway.ask(PATH, way, extra=headers)
        self._answer: Answer | None = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._fetch()
        except Exception as error:
            self._error = error

    def answer(self, limit: float = 45) -> Answer:
        """Wait until the download has ended.

        Args:
            limit: seconds.
        """
        self.join(limit)
        if self._error is not None:
            raise self._error
        assert self._answer is not None, "the download does not end"
        return self._answer


@dataclass(frozen=True, slots=True)
class Rest:
    """The state of a begun download."""

    status: int
    begun: bytes
    response: HTTPResponse

    def read(self) -> tuple[bytes, bool]:
        """All bytes that arrive in the end, and whether they are complete."""
        body, complete = read_body(self.response)
        return self.begun + body, complete


@contextmanager
def begun_download(
    gateway: Gateway, count: int = 65536, way: Way = Way.CONNECT_HTTP, **options: Any
) -> Iterator[Rest]:
    """A client that has read the first bytes, and can then go on or leave."""
    with gateway.connection(way, **options) as connection:
        send(connection, PATH, way)
        response = connection.getresponse()
        yield Rest(response.status, response.read(count), response)
