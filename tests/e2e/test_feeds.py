"""Other signature feeds: the real freshclam with DatabaseCustomURL, and a feed that misbehaves."""

from __future__ import annotations

import contextlib
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clamproxy.access.users import user_line
from tests.support import faults
from tests.support.faults import Fault
from tests.support.freshclam import OK, Freshclam, Outcome
from tests.support.gateway import Answer, Way, receive, send
from tests.support.origin import OriginServer
from tests.support.site import Site, eventually, http_date, open_site, origin_certificates

FEED_HOST = "127.0.0.1"
KEY = "5ubscr1bersKey"
PATH = f"/get/{KEY}/my.ndb"
NAME = PATH[1:]
FIRST = b"My.First:0:*:6d792d746573742d7369676e6174757265\n"
SECOND = b"My.Second:0:*:6d792d746573742d7369676e6174757266\n"
BIG = bytes(range(256)) * 2000
FRESH = {"Cache-Control": "max-age=3600"}
STALE = {"Cache-Control": "max-age=0"}
NEWEST = 6


@dataclass(frozen=True, slots=True)
class Scene:
    """A site whose gateway knows one feed."""

    site: Site
    feed: OriginServer

    @property
    def host(self) -> str:
        return f"{FEED_HOST}:{self.feed.port}"

    def set_out(self, body: bytes, headers: dict[str, str], modified: str | None = None) -> None:
        """Let the feed serve a file."""
        self.feed.heal()
        self.feed.put(NAME, body, modified)
        self.feed.rule(PATH, Fault(headers=headers))

    def client(self, name: str = "client", url: str | None = None, **options: Any) -> Freshclam:
        """A freshclam with database test and the feed's file."""
        client = self.site.client(
            name, database=None, attempts=1, custom_urls=[url or f"http://{self.host}{PATH}"], **options
        )
        excluded = [f"ExcludeDatabase {database}" for database in ("main", "daily", "bytecode")]
        client.extra = [*excluded, "ExtraDatabase test"]
        return client

    def ask(self, path: str = PATH, way: Way = Way.CONNECT_HTTP, **options: Any) -> Answer:
        return self.site.gateway.ask(path, way, host=self.host, **options)

    def explain(self, outcome: Outcome | None = None) -> str:
        """What to read when something went wrong."""
        return f"{outcome.output if outcome else ''}\nfeed: {self.feed.trace}\n{self.site.gateway.log}"


def file_of(client: Freshclam) -> bytes | None:
    path = client.databases / "my.ndb"
    return path.read_bytes() if path.exists() else None


type MakeScene = Callable[..., Scene]


@pytest.fixture
def make_scene(tmp_path: Path, origin: OriginServer) -> Iterator[MakeScene]:
    """Starts such a site, once, with more settings."""
    opened: list[Site] = []

    def make(feed: OriginServer = origin, **sections: Any) -> Scene:
        sections["feeds"] = {"hosts": [FEED_HOST], **sections.get("feeds", {})}
        opened.append(open_site(tmp_path / f"site-{len(opened)}", **sections))
        opened[-1].publish(NEWEST)
        return Scene(opened[-1], feed)

    yield make
    for site in opened:
        site.close()


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    return make_scene()


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.ABSOLUTE])
def test_freshclam_gets_a_feed_from_the_cache(scene: Scene, way: Way) -> None:
    scene.set_out(FIRST, FRESH)
    for name in ("one", "two"):
        client = scene.client(name, way=way)
        outcome = client.run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), scene.explain(outcome)
        assert file_of(client) == FIRST
        written_at = (client.databases / "my.ndb").stat().st_mtime_ns
        outcome = client.run()
        assert outcome.code == OK, scene.explain(outcome)
        assert (client.databases / "my.ndb").stat().st_mtime_ns == written_at, outcome.output
    assert scene.feed.count(PATH) == 1, scene.explain()


@pytest.mark.parametrize("code", [403, 429])
def test_a_refusal_of_a_feed_does_not_freeze_official_updates(scene: Scene, code: int) -> None:
    scene.feed.rule("*", faults.status(code, retry_after="1000"))
    client = scene.client()
    scene.site.publish(NEWEST - 1)
    outcome = client.run()
    assert outcome.version == NEWEST - 1, scene.explain(outcome)
    assert not outcome.cooling
    scene.site.publish(NEWEST)

    def is_updated() -> bool:
        """The gateway may look for new versions only a second later."""
        outcome = client.run()
        assert not outcome.cooling, scene.explain(outcome)
        return outcome.version == NEWEST

    assert eventually(is_updated), scene.explain()
    assert scene.feed.count(PATH) == 1, scene.explain()
    answer = scene.ask()
    assert (answer.status, answer.body.count(KEY.encode())) == (503, 0)
    assert 0 < int(answer.headers["retry-after"]) <= 1000
    assert scene.site.gateway.stats()["cooldown_until"] is None


def test_the_old_copy_is_served_while_a_feed_refuses(scene: Scene) -> None:
    scene.set_out(FIRST, STALE)
    assert scene.client("one").run().code == OK
    assert eventually(lambda: list((scene.site.gateway.cache / "feeds").glob("*.json")))
    scene.feed.rule("*", faults.status(429))
    client = scene.client("two")
    outcome = client.run()
    assert (outcome.code, file_of(client)) == (OK, FIRST), scene.explain(outcome)
    assert not outcome.cooling


def test_two_clients_cost_the_feed_one_transfer(scene: Scene) -> None:
    scene.set_out(BIG, FRESH)
    scene.feed.rate = 400_000
    with ThreadPoolExecutor(2) as executor:
        answers = list(executor.map(lambda _: scene.ask(), range(2)))
    assert [(answer.status, answer.body == BIG) for answer in answers] == [(200, True)] * 2
    assert scene.feed.count(PATH) == 1, scene.explain()
    assert eventually(lambda: scene.ask().cache_status == "clamproxy; hit"), scene.explain()
    assert scene.feed.count(PATH) == 1, scene.explain()


def test_a_client_reads_along_and_sees_a_break(scene: Scene) -> None:
    scene.set_out(BIG, FRESH)
    scene.feed.rule(PATH, faults.stall(200_000))
    with scene.site.gateway.connection(host=scene.host) as connection:
        send(connection, PATH, host=scene.host)
        response = connection.getresponse()
        assert response.getheader("Content-Length") == str(len(BIG))
        assert response.read(100_000) == BIG[:100_000]
    with ThreadPoolExecutor(1) as executor:
        second = executor.submit(scene.ask)
        scene.feed.refuse()
        assert not second.result(60).complete or second.result().status == 503
    assert not list((scene.site.gateway.cache / "feeds").glob("*.json"))


def test_a_stale_copy_is_revalidated(scene: Scene) -> None:
    scene.set_out(FIRST, STALE)
    assert scene.ask().body == FIRST

    def is_revalidated() -> bool:
        return scene.ask().cache_status == "clamproxy; fwd=stale; fwd-status=304"

    assert eventually(is_revalidated), scene.explain()
    assert scene.feed.requests(PATH)[-1].status == 304


def test_a_new_version_that_is_older_than_the_client_s_file_is_seen(scene: Scene) -> None:
    """What another cache gave the client may be older than what the feed had then.

    Source: docs/protocol.md, trap 8.
    """
    scene.set_out(FIRST, STALE, http_date(time.time() - 7200))
    client = scene.client()
    assert client.run().code == OK
    scene.set_out(SECOND, STALE, http_date(time.time() - 3600))
    outcome = client.run()
    assert (outcome.code, file_of(client)) == (OK, SECOND), scene.explain(outcome)


def test_a_feed_that_is_gone_and_a_gateway_that_was_restarted(scene: Scene) -> None:
    scene.set_out(FIRST, STALE)
    assert scene.client("one").run().code == OK
    assert eventually(lambda: list((scene.site.gateway.cache / "feeds").glob("*.json")))
    scene.feed.refuse()
    for name in ("two", "three"):
        client = scene.client(name)
        outcome = client.run()
        assert (outcome.code, file_of(client)) == (OK, FIRST), scene.explain(outcome)
        if name == "two":
            scene.site.gateway.stop()
            scene.site.gateway.start()


def test_a_killed_gateway_keeps_what_was_stored(scene: Scene) -> None:
    scene.set_out(BIG, FRESH)
    assert eventually(lambda: scene.ask().cache_status == "clamproxy; hit"), scene.explain()
    scene.feed.put("slow", BIG)
    scene.feed.rule("/slow", faults.stall(200_000))
    asking = threading.Thread(target=_ignore_errors, args=(lambda: scene.ask("/slow"),))
    asking.start()
    assert eventually(lambda: list((scene.site.gateway.cache / "feeds").glob("*.part")))
    scene.site.gateway.kill()
    asking.join(60)
    scene.site.gateway.start()
    answer = scene.ask()
    assert (answer.cache_status, answer.body == BIG) == ("clamproxy; hit", True), scene.explain()
    assert not list((scene.site.gateway.cache / "feeds").glob("*.part"))


def _ignore_errors(function: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        function()


def test_a_missing_file_is_missing(scene: Scene) -> None:
    assert [scene.ask("/no.ndb").status for _ in range(2)] == [404, 404]
    assert scene.feed.count("/no.ndb") == 1


def test_two_requests_on_one_connection(scene: Scene) -> None:
    scene.set_out(BIG, FRESH)
    with scene.site.gateway.connection(host=scene.host) as connection:
        for _ in range(2):
            send(connection, PATH, host=scene.host, connection="keep-alive")
            assert receive(connection).body == BIG


def test_a_feed_over_https(make_scene: MakeScene, tmp_path: Path) -> None:
    context, bundle = origin_certificates(tmp_path / "certificates")
    with OriginServer(context) as feed:
        scene = make_scene(feed, upstream={"ca_bundle": str(bundle)})
        scene.set_out(FIRST, FRESH)
        answer = scene.ask(way=Way.CONNECT_HTTPS)
        assert (answer.status, answer.body) == (200, FIRST), scene.explain()
        assert feed.count(PATH) == 1


def test_offline_a_feed_is_not_asked(make_scene: MakeScene) -> None:
    scene = make_scene(upstream={"offline": True})
    scene.set_out(FIRST, FRESH)
    assert scene.ask().status == 503
    assert scene.feed.trace == ""


def test_feeds_are_not_counted_among_clamav_s_files(scene: Scene) -> None:
    scene.set_out(FIRST, FRESH)
    before = scene.site.gateway.stats()
    assert scene.ask().status == 200
    after = scene.site.gateway.stats()
    for name in ("requests", "hits", "misses", "upstream_requests", "objects"):
        assert after[name] == before[name], name


def test_what_is_refused_counts_as_refused(make_scene: MakeScene) -> None:
    """A request that is refused on a feed's host is none to the feed: it counts as it does anywhere else."""
    guarded = make_scene(access={"users": [user_line("clamav", "secret")]})
    login: dict[str, Any] = {
        "extra": {"Proxy-Authorization": f"Basic {b64encode(b'clamav:secret').decode()}"}
    }
    guarded.set_out(FIRST, FRESH)
    via = guarded.ask(way=Way.ABSOLUTE, **login).headers["via"]
    loop = {"extra": {**login["extra"], "Via": via}}
    statuses = [
        guarded.ask(way=Way.ABSOLUTE, **options).status
        for options in ({}, {"method": "POST", **login}, {"method": "DELETE", **login}, loop)
    ]
    assert statuses == [407, 405, 405, 502]

    def counted() -> dict[str, int] | None:
        stats = guarded.site.gateway.stats()
        names = ("requests", "refused", "feed_requests", "feed_hits", "feed_errors", "feed_upstream_requests")
        return {name: stats[name] for name in names} if stats["refused"] == len(statuses) else None

    assert eventually(counted) == {
        "requests": len(statuses),
        "refused": len(statuses),
        "feed_requests": 1,
        "feed_hits": 0,
        "feed_errors": 0,
        "feed_upstream_requests": 1,
    }
    assert guarded.ask(way=Way.ABSOLUTE, **login).cache_status == "clamproxy; hit"
    assert eventually(lambda: guarded.site.gateway.stats()["feed_hits"] == 1)


def test_keys_of_subscribers_are_nowhere(scene: Scene) -> None:
    """Neither in the log, in all its detail, nor in any file of the gateway."""
    gateway = scene.site.gateway
    gateway.stop()
    (gateway.directory / "conf" / "config.yaml").write_text("termlog_verbosity: debug\n")
    gateway.start()
    scene.set_out(FIRST, {"Cache-Control": "public, max-age=0", "Content-Location": PATH})
    with_password = f"http://user:{KEY}@{scene.host}/list.ndb?key={KEY}"
    scene.feed.put("list.ndb", SECOND)
    for name, url in (("one", None), ("two", with_password)):
        assert scene.client(name, url).run().code == OK, scene.explain()
    assert "authorization" in scene.feed.requests()[-1].headers
    for fault in (
        faults.status(403),
        faults.status(500),
        faults.redirect(f"/x/{KEY}?{KEY}"),
        faults.short(9),
    ):
        scene.feed.rule("*", fault)
        scene.ask(f"/other/{KEY}?{KEY}={fault.status}")
        scene.ask()
    scene.feed.refuse()
    scene.ask(f"/gone/{KEY}")
    gateway.stop()
    assert f"{FEED_HOST}" in gateway.log
    secret = KEY.encode()
    found = [path for path in gateway.directory.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert found == [], found
    assert not list(gateway.directory.rglob(f"*{KEY}*"))
