"""What a gateway, its clients and a Byzantine origin do in `test_byzantine_origin.py`, and what must be true.

The gateway is whole, in one process with the origin. Hours pass by a clock of the test. What the gateway
waits for in real time is made short (`tests/harness/impatient.py`), so that silence costs the test little.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from clamproxy.formats.cld import verify_cld
from clamproxy.formats.codesign import verify_sign
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.messages import Response
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.transfers import ORIGIN_TROUBLE
from tests.harness.genuine import LAST, MAIN, files_of, genuine
from tests.harness.impatient import LARGEST, LIMIT, ImpatientGateway
from tests.harness.service import RELEASES
from tests.support.byzantine import MOST_SENT, ByzantineOrigin, Trick
from tests.support.byzantine_tricks import tricks
from tests.support.clock import ClockAhead
from tests.support.dns_server import FakeDns, Mode
from tests.support.forge import forge_keys
from tests.support.raw import RawHost
from tests.support.site import LOCALHOST
from tests.support.stored import AGENT, OLD_AGENT, read

MOST_REQUESTS = 8
"""Requests for one file that one client's request may cost: a transfer may break six times while somebody
reads it, and a file that changes is asked for twice."""
LONGEST_RECOVERY = 26
"""Hours: the origin may have asked to be left alone for 24."""
DIRECTORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where caches are: what a disk does is tested elsewhere, and thousands of them would wait for it."""
HEADER = {"Range": "bytes=0-511"}
FIELDS: tuple[dict[str, str], ...] = ({}, {}, HEADER, {"If-Modified-Since": "Wed, 15 Nov 2023 22:13:20 GMT"})
CURL = "curl/8.5.0"
NEW_AGENT = AGENT.replace("1.4.6", "1.5.1")
AGENTS = (AGENT, NEW_AGENT, OLD_AGENT, CURL)
PATHS = (
    *("/daily.cvd", "/daily.cvd", "/daily.cvd", "/main.cvd", "/daily.cvd?version=5", "/daily.cld"),
    *(f"/daily-{version}.cdiff" for version in range(1, LAST + 3)),
    *("/daily-4.cvd.sign", "/daily-3.cdiff.sign", "/main-1.cvd.sign"),
)
NEVER = {403, 429}
FOR_EVER = 2**31 - 1
"""The last version that there can be."""

PAUSES = st.sampled_from((0, 1, 20, 61, 301, 1000, 4000, 30_000))
TRICKS = st.runner().flatmap(lambda self: st.lists(tricks(self.elsewhere), min_size=1, max_size=2))

_contacts: list[Any] = []
"""Where sockets of this process were connected to, and the names that it looked up."""
_sent: list[object] = []
"""The requests that this process has sent."""


def _note_contact(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and arguments[0].type & socket.SOCK_STREAM:
        _contacts.append(arguments[1][:2])
    elif event == "socket.getaddrinfo":
        _contacts.append(arguments[0])
    elif event == "http.client.send":
        _sent.append(arguments[1])


@cache
def watch_contacts() -> None:
    """Note where this process connects to, what it looks up and what it sends. That can't be undone."""
    sys.addaudithook(_note_contact)


class Totals:
    """What all runs did."""

    runs = 0
    answers: ClassVar[Counter[int]] = Counter()
    asked = 0
    slowest_recovery = 0.0

    @classmethod
    def reset(cls) -> None:
        cls.runs = cls.asked = 0
        cls.slowest_recovery = 0.0
        cls.answers.clear()


class Byzantine(RuleBasedStateMachine):
    """One gateway, from its first request until the origin has become honest, and everything is right."""

    elsewhere: str
    """A host and port that nothing leads to but tricks."""
    stranger: RawHost

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(prefix="byzantine-", dir=DIRECTORY)
        self.origin, self.dns, self.clock = ByzantineOrigin(), FakeDns(), ClockAhead()
        self.dns.clock = self.clock
        self.newest = 1
        self.is_purged = False
        self.proven = 0
        """The newest version of daily that any client can have from here."""
        self.known: set[ObjectId] = set()
        """What was in the cache when clients asked."""
        self.checked: set[tuple[ObjectId, float]] = set()
        Totals.runs += 1

    def run[T](self, awaitable: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(awaitable)

    @initialize(version=st.integers(1, 3), played=TRICKS)
    def begin(self, version: int, played: list[Trick]) -> None:
        self.newest = version
        self.origin.tricks = played
        self.put_out(version)
        self.dns.versions = {"daily": version, "main": 1, "bytecode": 1}

        async def make() -> ImpatientGateway:
            return ImpatientGateway(Path(self.directory.name) / "cache", self.origin, self.dns, self.clock)

        self.harness = self.run(make())

    def put_out(self, version: int) -> None:
        for name in files_of(LAST):
            self.origin.remove(name)
        for name, body in files_of(version).items():
            self.origin.put(name, body)

    # What the world does

    @rule()
    def release(self) -> None:
        self.newest = min(LAST, self.newest + 1)
        self.put_out(self.newest)
        self.dns.versions["daily"] = self.newest

    @rule(version=st.integers(1, LAST))
    def replay(self, version: int) -> None:
        """All files are those of another day."""
        self.put_out(min(version, self.newest))

    @rule(version=st.sampled_from((1, 2, LAST, LAST + 1, 50, FOR_EVER, 0)), mode=st.sampled_from(Mode))
    def lie_in_dns(self, version: int, mode: Mode) -> None:
        self.dns.versions["daily"] = version
        self.dns.mode = Mode.RIGHT if mode is Mode.SILENT else mode
        self.clock.ahead += 301

    @rule(played=TRICKS, seconds=PAUSES, agent=st.sampled_from(AGENTS), fields=st.sampled_from(FIELDS))
    def play(self, played: list[Trick], seconds: int, agent: str, fields: dict[str, str]) -> None:
        """Some tricks, and a client that meets them."""
        self.origin.tricks[:0] = played
        del self.origin.tricks[3:]
        self.clock.ahead += seconds
        self.update(agent, fields)

    @rule(version=st.integers(1, LAST - 1), restarts=st.booleans())
    def go_back(self, version: int, restarts: bool) -> None:
        """The newest version is fetched; then the cache is lost, and all the world has an older one."""
        self.behave()
        self.release()
        self.clock.ahead += 4000
        self.ask("/daily.cvd", CURL, {}, 1)
        self.replay(version)
        self.lie_in_dns(min(version, self.newest), Mode.RIGHT)
        self.purge(())
        if restarts:
            self.restart()
        self.ask("/daily.cvd", CURL, {}, 1)

    @rule()
    def behave(self) -> None:
        self.origin.heal()

    # What the administrator does

    @rule(kinds=st.sampled_from(((), (Kind.CVD,), (Kind.CDIFF,))))
    def purge(self, kinds: tuple[Kind, ...]) -> None:
        store = self.harness.service.store
        for object_id in list(store.object_ids()):
            if not kinds or object_id.kind in kinds:
                store.drop(object_id)
        self.is_purged = True

    @rule()
    def restart(self) -> None:
        async def again() -> None:
            self.harness.restart()

        self.run(again())

    @rule()
    def follow(self) -> None:
        """What happens in the background every few minutes."""

        async def look() -> None:
            with suppress(*ORIGIN_TROUBLE):
                await self.harness.service.clamav._follower.follow("daily")
            await self.harness.settle()

        self.within_budget(look())

    # What clients do

    def update(self, agent: str, fields: dict[str, str]) -> None:
        """As freshclam does: the header, some patches with their signatures, the whole file."""
        self.ask("/daily.cvd", agent, HEADER, 1)
        for version in (self.newest - 1, self.newest):
            self.ask(f"/daily-{max(2, version)}.cdiff", agent, {}, 1)
            if agent == NEW_AGENT:
                self.ask(f"/daily-{max(2, version)}.cdiff.sign", agent, {}, 1)
        self.ask("/daily.cvd", agent, fields, 1)

    @rule(
        path=st.sampled_from(PATHS),
        agent=st.sampled_from(AGENTS),
        fields=st.sampled_from(FIELDS),
        times=st.sampled_from((1, 1, 1, 3)),
    )
    def ask(self, path: str, agent: str, fields: dict[str, str], times: int) -> None:
        store = self.harness.service.store
        self.proven = max(self.proven, store.newest_proven.of("daily"))
        self.known = set(store.object_ids())

        async def together() -> list[tuple[Response, bytes | None]]:
            asking = (self.answer(path, agent, fields) for _ in range(times))
            return await asyncio.gather(*asking)

        for response, content in self.within_budget(together()):
            Totals.answers[response.status] += 1
            self.check(path, agent, fields, response, content)

    async def answer(self, path: str, agent: str, fields: dict[str, str]) -> tuple[Response, bytes | None]:
        """A response and its content; None if the gateway cut it off."""
        async with asyncio.timeout(LIMIT):
            response, content = await self.harness.try_to_read(path, agent, fields)
            await self.harness.settle()
        return response, content

    def within_budget[T](self, awaitable: Coroutine[Any, Any, T]) -> T:
        """Do something, and count what it costs the origin."""
        self.origin.forget()
        _sent.clear()
        cooldowns = self.harness.service.clamav.origin.cooldowns.in_force()
        fields = [field for trick in self.origin.tricks for field in trick.fields]
        led_to = {place for name, place in fields if name == "Location"}  # by the origin's own wish
        done = self.run(awaitable)
        requests = Counter(seen.path for seen in self.origin.requests())
        Totals.asked += requests.total()
        # The shortest ones last a second, and may end meanwhile on a busy machine.
        barred = {key for key, cooldown in cooldowns.items() if cooldown.until > self.clock.time()}
        assert not (requests.keys() - led_to) & barred, "a cool-down was in force"
        # On a busy machine, the origin may read a request late that was sent before, and given up since.
        assert not (requests and _sent and "origin" in barred)
        assert all(count <= MOST_REQUESTS for count in requests.values()), requests
        return done

    def check(
        self, path: str, agent: str, fields: dict[str, str], response: Response, content: bytes | None
    ) -> None:
        status, name = response.status, path[1:].partition("?")[0]
        assert status in {200, 206, 304, 404, 416, 503}, response
        assert status not in NEVER
        if content is None or status not in (200, 206):
            return
        if name.endswith((".cvd", ".cld")):
            version = CvdHeader.parse(content).version
            assert version == response.version
            object_id = ObjectId.parse(name.replace(".", f"-{version}."))
            if name == "daily.cvd" and version < self.proven:
                self.check_older(version, response, status)
        else:
            object_id = ObjectId.parse(name)
        if status == 200:
            self.check_whole(object_id, content)
        else:
            self.check_beginning(object_id, content)

    def check_whole(self, object_id: ObjectId, content: bytes) -> None:
        """All bytes of a file are right for its name."""
        keys, file = forge_keys().trusted, io.BytesIO(content)
        match object_id.kind:
            case Kind.CLD:
                verify_cld(file, object_id, keys)
                assert content.startswith(RELEASES.cld_header(object_id.version)), object_id
            case Kind.CVD | Kind.CDIFF:
                assert content in genuine(object_id), object_id
            case _:
                verify_sign(file, object_id, keys.roots)
                signed = read(self.harness.service.store, object_id.signed)
                if signed is not None and object_id.signed in self.known:  # else nobody can tell whose it is
                    verify_sign(file, object_id, keys.roots, io.BytesIO(signed))

    def check_beginning(self, object_id: ObjectId, content: bytes) -> None:
        """The only range that clients ask for here. Of what isn't here, the origin may claim any header."""
        right = {read(self.harness.service.store, object_id) or content}
        if object_id.kind is Kind.CDIFF or (object_id.kind is Kind.CVD and object_id in self.known):
            right = genuine(object_id)
        elif object_id.kind is Kind.CLD and object_id in self.known:
            right = {RELEASES.cld_header(object_id.version)}
        assert content in {one[:HEADER_SIZE] for one in right}, object_id

    def check_older(self, version: int, response: Response, status: int) -> None:
        """A version that is older than the newest proven one: only as a base, or after a purge."""
        store = self.harness.service.store
        patches = range(version + 1, self.proven + 1)
        leads_on = status == 200 and all(store.has(ObjectId("daily", n, Kind.CDIFF)) for n in patches)
        assert leads_on or (self.is_purged and "stale" in response.headers["Cache-Status"]), response

    # What is always true

    @invariant()
    def only_what_verifies_is_published(self) -> None:
        if not hasattr(self, "harness"):
            return
        store = self.harness.service.store
        for object_id, metadata in ((one, store.metadata(one)[0]) for one in store.object_ids()):
            key = object_id, metadata.fetched_at if metadata else 0.0
            if object_id.kind in (Kind.CVD, Kind.CDIFF) and key not in self.checked:
                assert read(store, object_id) in genuine(object_id), object_id
                self.checked.add(key)
                if (object_id.database, object_id.kind) == ("daily", Kind.CVD):
                    self.proven = max(self.proven, object_id.version)

    @invariant()
    def nothing_piles_up(self) -> None:
        cache = Path(self.directory.name) / "cache"
        partial = [path.stat().st_size for path in cache.glob("partial/*.part")]
        assert all(size <= LARGEST for size in partial), partial
        assert len(partial) <= len(PATHS)
        assert len(list(cache.glob("quarantine/*.reason"))) <= 5
        assert self.origin.longest_sent < MOST_SENT, "all of a body without end was taken"

    @invariant()
    def no_other_host_is_contacted(self) -> None:
        assert not self.stranger.requests
        host = urlsplit(self.origin.url).hostname
        assert set(_contacts) <= {host, LOCALHOST, (LOCALHOST, self.origin.port)}, _contacts

    # The end

    def teardown(self) -> None:
        try:
            if hasattr(self, "harness"):
                self.become_honest()
                self.run(self.stop())
        finally:
            self.runner.close()
            self.origin.close()
            self.dns.close()
            self.directory.cleanup()
            _contacts.clear()
            self.stranger.requests.clear()

    async def stop(self) -> None:
        await self.harness.settle()
        self.harness.service.stop()

    def become_honest(self) -> None:
        """From now on all is right, and soon every client gets the newest version, without a restart."""
        self.behave()
        self.put_out(self.newest)
        self.dns.versions["daily"], self.dns.mode = self.newest, Mode.RIGHT
        wanted = RELEASES.cvd(self.newest), MAIN.cvd(1)
        for half_hours in range(2 * LONGEST_RECOVERY):
            got = [self.run(self.answer(path, CURL, {}))[1] for path in ("/daily.cvd", "/main.cvd")]
            if tuple(got) == wanted:
                Totals.slowest_recovery = max(Totals.slowest_recovery, half_hours / 2)
                break
            self.clock.ahead += 1800
        else:
            raise AssertionError([content and content[:80] for content in got])
        _, header = self.run(self.answer("/daily.cvd", AGENT, HEADER))
        assert header is not None
        assert CvdHeader.parse(header).version == self.newest
