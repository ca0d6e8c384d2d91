"""A site whose gateway is killed again and again, and what must be true of it afterwards."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from clamproxy.bundle import Since, select, write_bundle
from clamproxy.cache.store import Store
from clamproxy.files import try_lock
from clamproxy.formats.cld import verify_cld
from clamproxy.objects import Kind, ObjectId
from tests.support.cache_files import CacheFiles, look
from tests.support.faults import stall
from tests.support.gateway import CDN, TOOL_LIMIT, Answer, TunnelRefused, Way, _clean_environment
from tests.support.mortal import ARM, COMMAND, STEPS
from tests.support.origin import Seen
from tests.support.prefork import Forked
from tests.support.processes import children
from tests.support.releases import Releases
from tests.support.site import LOCALHOST, Site, eventually, open_site
from tests.support.stored import cdiff, put, put_cvd

SCRIPT = "tests/support/mortal_addon.py"
LONGEST = 1.2
"""Seconds after which a kill comes at the latest: by then, what was begun has ended."""
MOST_STEPS = 30
"""Steps that change files: as many as there are in that time, roughly."""
STEPS_OF_ONE = 16
"""As many as the transfer and publication of a CVD and its signature have."""
WAYS = [Way.CONNECT_HTTP, Way.REVERSE, Way.ABSOLUTE]


@dataclass(slots=True)
class Tally:
    """What clients were given."""

    complete: int = 0
    broken: int = 0
    """Transfers that were cut off, and connections that were refused while no gateway ran."""
    wrong: list[str] = field(default_factory=list)
    floor: int = 0
    """The newest version of the CVD that any client has got to its end."""


@dataclass(slots=True)
class World:
    """A site, the true bytes of all that was ever released, and clients that compare."""

    site: Site
    releases: Releases
    random: random.Random
    environment: dict[str, str]
    """Of the gateway, and of commands."""
    version: int = 1
    """The one that is advertised."""
    ceiling: int | None = None
    """The newest version that clients may be given, if newer ones are held back."""
    feeds: dict[str, list[bytes]] = field(default_factory=dict)
    """What each feed has been, by its path."""
    tally: Tally = field(default_factory=Tally)
    _ways: Iterator[Way] = field(default_factory=lambda: itertools.cycle(WAYS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def cache(self) -> Path:
        return self.site.gateway.cache

    @property
    def partial(self) -> Path:
        """What has arrived of the CVD."""
        return self.cache / "partial" / f"{self.cvd_name}.part"

    @property
    def cvd_name(self) -> str:
        return f"daily-{self.version}.cvd"

    def arrived(self) -> int:
        """Bytes of the CVD that are in its partial file, and that the next process can go on from."""
        sidecar = self.partial.with_suffix(".json")
        return _size(self.partial) if _size(sidecar) else 0

    @property
    def cvd(self) -> bytes:
        return self.releases.cvd(self.version)

    def release(self, *, stalls: bool = False) -> None:
        """A new version appears.

        Args:
            stalls: whether the first transfer of its CVD stops in the middle, until the origin heals.
        """
        self.version += 1
        if stalls:
            self.site.origin.rule("W", stall(len(self.cvd) // 2), times=1)
        self.publish()

    def publish(self) -> None:
        """Put the files of the newest version on the CDN, and advertise it."""
        releases, version, origin = self.releases, self.version, self.site.origin
        origin.put("daily.cvd", releases.cvd(version))
        origin.put(f"daily-{version}.cvd.sign", releases.cvd_sign(version))
        if version > 1:
            origin.put(f"daily-{version}.cdiff", releases.cdiff(version))
            origin.put(f"daily-{version}.cdiff.sign", releases.cdiff_sign(version))
        self.site.dns.versions["daily"] = version

    def change_feed(self, path: str) -> None:
        """The feed has other bytes, and clients may be given them."""
        body = self.random.randbytes(400_000)
        self.feeds.setdefault(path, []).append(body)
        self.site.origin.put(path[1:], body)

    def bundle(self, *, whole: bool) -> Path:
        """A bundle with the CVD of this version, or with the patch that leads to it."""
        path, version, releases = self.site.directory / f"{self.version}.tar", self.version, self.releases
        with tempfile.TemporaryDirectory() as directory, closing(Store(Path(directory))) as store:
            base = version if whole else version - 1
            put_cvd(store, base, releases.cvd(base))
            if not whole:
                put(store, cdiff(version), releases.cdiff(version))
            since = Since.parse([] if whole else [str(base)])
            with path.open("wb") as file:
                write_bundle(store, select(store, since=since), file)
        return path

    def true_bytes(self, name: str) -> bytes | None:
        """What an object is; None if that depends on the gateway."""
        one, releases = ObjectId.parse(name), self.releases
        if one.kind is Kind.CVD:
            return releases.cvd(one.version)
        if one.kind is Kind.CDIFF:
            return releases.cdiff(one.version)
        return None if one.kind is Kind.CLD else self.site.origin.body(name)

    @property
    def told(self) -> str:
        """The end of the gateway's log."""
        return self.site.gateway.log[-3000:]

    # Its clients

    def assert_served(self, *paths: str) -> None:
        """All of them are given to clients, at the latest soon."""
        for path in paths:
            assert eventually(lambda: self._is_served(path)), (path, self.told)  # noqa: B023

    def assert_newest_is_served(self) -> None:
        """The whole CVD of the advertised version, at the latest soon."""
        assert eventually(lambda: self.ask("/daily.cvd").body == self.cvd), self.told

    def _is_served(self, path: str) -> bool:
        answer = self.ask(path)
        return answer.status == 200 and answer.complete

    @contextmanager
    def clients(self, *paths: str) -> Iterator[None]:
        """Some that ask again and again, each for one path."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._ask_on, args=(path, stop), daemon=True) for path in paths]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)

    def _ask_on(self, path: str, stop: threading.Event) -> None:
        while not stop.is_set():
            with suppress(OSError, HTTPException, TunnelRefused):
                self.ask(path)
            stop.wait(0.05)

    def ask(self, path: str) -> Answer:
        """Ask for a file; what arrives is compared with the truth."""
        with self._lock:
            floor, way = self.tally.floor, next(self._ways)
        host = f"{LOCALHOST}:{self.site.origin.port}" if path in self.feeds else CDN
        try:
            answer = self.site.gateway.ask(path, way, host=host)
        except (OSError, HTTPException, TunnelRefused):
            with self._lock:
                self.tally.broken += 1
            raise
        problem = self._problem(path, answer, floor)
        with self._lock:
            self.tally.complete += answer.complete
            self.tally.broken += not answer.complete
            if problem is not None:
                self.tally.wrong.append(f"{path}: {problem}")
            elif path == "/daily.cvd" and answer.status == 200 and answer.complete:
                self.tally.floor = max(self.tally.floor, _version_of(answer.body))
        return answer

    def _problem(self, path: str, answer: Answer, floor: int) -> str | None:
        """What is false about an answer; None if nothing is, or if it is no file."""
        if answer.status in (404, 503):
            return None
        if answer.status != 200:
            return f"status {answer.status}"
        if "content-length" not in answer.headers:
            return "its end can't be told"
        if path == "/daily.cld":
            return self._problem_of_cld(answer)
        newest = self.version if self.ceiling is None else self.ceiling
        if path == "/daily.cvd":
            true = [self.releases.cvd(version) for version in range(max(1, floor), newest + 1)]
        elif path not in self.feeds and ObjectId.parse(path[1:]).version > newest:
            return f"held back: {newest} is the newest that clients may have"
        else:
            true = self.feeds.get(path) or [self.true_bytes(path[1:]) or b""]
        # Nothing that was sent may be false, even if it breaks off.
        size = None if answer.complete else len(answer.body)
        if any(body[:size] == answer.body for body in true):
            return None
        return f"{len(answer.body)} bytes, complete: {answer.complete}, that are not of {floor} or later"

    def _problem_of_cld(self, answer: Answer) -> str | None:
        if answer.complete:
            object_id = ObjectId("daily", _version_of(answer.body), Kind.CLD)
            verify_cld(io.BytesIO(answer.body), object_id, self.releases.keys.trusted)
        return None

    # When it is killed

    def at_random(self) -> None:
        """Wait for some time."""
        time.sleep(self.random.uniform(0, LONGEST))

    def after_bytes(self) -> None:
        """Wait until so much of the CVD has arrived."""
        count = self.random.randrange(len(self.cvd))
        _wait_for(lambda: _size(self.partial) >= count or self.holds_cvd())

    def in_the_middle(self) -> None:
        """Wait until some of a CVD that stalls has arrived: all of it can't."""
        assert eventually(self.arrived, every=0.01), self.told

    def when_published(self) -> None:
        """Wait until the CVD has its name, and a moment more: for its row, say."""
        _wait_for(self.holds_cvd)
        time.sleep(self.random.uniform(0, 0.01))

    def at_a_step(self) -> None:
        """Have the gateway kill itself at one of the steps that follow, and wait until it has."""
        self._arm(f"{self.random.randrange(MOST_STEPS)}")

    def at_a_step_of_the_cvd(self) -> None:
        """The same, among those that concern the CVD: between its file and its row, say."""
        self._arm(f"{self.random.randrange(STEPS_OF_ONE)} {self.cvd_name}")

    def _arm(self, step: str) -> None:
        pid = self.site.gateway.pid
        (self.site.directory / "steps").write_text(step)
        mortals = children(pid) or [pid]
        for each in mortals:
            os.kill(each, ARM)
        _wait_for(lambda: not all(map(is_alive, mortals)))

    # What must be true

    def fetched(self, since: int = 0) -> int:
        """Bytes of the CVD that the origin has sent, without header probes.

        Args:
            since: how many transfers not to count.
        """
        return sum(seen.sent for seen in self._transfers()[since:])

    def offsets(self) -> list[int]:
        """Where the transfers of the CVD began."""
        ranges = [seen.headers.get("range", "bytes=0-") for seen in self._transfers()]
        return [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in ranges]

    def _transfers(self) -> list[Seen]:
        return [seen for seen in self.site.origin.requests("/daily.cvd") if seen.short_name != "P"]

    def assert_nothing_false(self) -> None:
        """Of what the kill left: each row has its file, and each file the bytes of its name."""
        found = self.look()
        assert found is not None
        assert found.false_rows == []
        self._assert_true(found)

    def assert_tidy(self) -> None:
        """Index and files soon agree, and nothing is left that was being written."""
        found: list[CacheFiles | None] = []

        def agree() -> bool:
            found[:] = [self.look()]
            return found[0] is not None and not found[0].faults

        assert eventually(agree), (found[0] and found[0].faults, self.told)
        assert found[0] is not None
        self._assert_true(found[0])
        assert "Traceback" not in self.site.gateway.log

    def look(self) -> CacheFiles | None:
        """The cache at this moment, which is one moment only while nothing runs."""
        return look(self.cache, self.site.gateway.directory / "cache-state")

    def holds_cvd(self) -> bool:
        """Whether the CVD has its name."""
        return (self.cache / "objects" / "daily" / self.cvd_name).exists()

    def _assert_true(self, found: CacheFiles) -> None:
        assert self.tally.wrong == []
        for name, known in found.files.items():
            true = self.true_bytes(name)
            assert true is None or known == (len(true), hashlib.sha256(true).hexdigest()), name

    def assert_no_stale_locks(self) -> None:
        """Once it has ended."""
        for path in (*self.cache.rglob("*.lock"), *self.cache.rglob("*/lock")):
            with path.open("ab") as file:
                assert try_lock(file), path


class Command:
    """The command line tool beside a gateway, which trusts the test keys.

    Args:
        step: at which of its steps that change files it kills itself; None for none.
    """

    def __init__(self, world: World, *arguments: str, step: int | None = None) -> None:
        gateway = world.site.gateway
        environment = dict(world.environment)
        steps = Path(environment.pop(STEPS))
        if step is not None:
            environment[STEPS] = str(steps)
            steps.write_text(str(step))
        with (gateway.directory / "commands.log").open("ab") as log, Path(os.devnull).open("rb") as nothing:
            self._process = Forked(
                COMMAND,
                [*arguments, "--config", str(gateway.config)],
                _clean_environment(environment),
                stdin=nothing,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> int:
        return self._process.wait(TOOL_LIMIT)

    def kill(self) -> None:
        self._process.kill()
        self.wait()


@contextmanager
def open_world(
    directory: Path, seed: int, *, workers: int = 1, filler: int = 0, **sections: Any
) -> Iterator[World]:
    """A site that serves version 1 of daily; the origin is slow enough for kills to meet it."""
    releases = Releases(filler=filler, patch_filler=20_000)
    directory.mkdir(parents=True, exist_ok=True)
    environment = {**releases.trusted(directory / "keys")["environment"], STEPS: str(directory / "steps")}
    site = open_site(directory, script=SCRIPT, environment=environment, workers=workers, **sections)
    try:
        world = World(site, releases, random.Random(seed), environment)
        world.publish()
        yield world
    finally:
        site.close()


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def _version_of(body: bytes) -> int:
    return int(body[:512].split(b":")[2])


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _wait_for(condition: Callable[[], bool]) -> None:
    """If it doesn't come, the kill comes anyway."""
    eventually(condition, limit=2 * LONGEST, every=0.001)
