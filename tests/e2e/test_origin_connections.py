"""The way to the origin: connections that died in silence, heads that never end, a parent that refuses."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.origin import OriginServer
from tests.support.raw import RawServer, Relay, answering, dripping
from tests.support.scenes import PROBE
from tests.support.site import Site, eventually, signed

from .conftest import MakeSite

WHOLE: dict[str, Any] = {"delta": {"enabled": False}, "serving": {"prefetch": "none"}}


def cooldowns(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.gateway.stats()["cooldowns"]
    return found


# Connections that died


@pytest.fixture
def relay(origin: OriginServer) -> Iterator[Relay]:
    with Relay(origin.port) as relay:
        yield relay


@pytest.fixture
def behind_nat(make_site: MakeSite, origin: OriginServer, relay: Relay) -> Site:
    """A site whose way to the origin can forget connections. Times are as they are by default."""
    upstream = {"url": relay.url, "connect_timeout": "10s", "read_timeout": "30s"}
    site = make_site(upstream=upstream, **WHOLE)
    site.origin.close()
    site.origin = origin
    return site


@pytest.mark.parametrize("die", [Relay.forget, Relay.reset], ids=["forgotten", "reset"])
def test_a_release_after_the_connection_died(behind_nat: Site, relay: Relay, die: Any) -> None:
    site = behind_nat
    site.publish(5)
    assert site.gateway.ask("/test.cvd").body == signed("test-5.cvd")
    before = relay.accepted
    die(relay)
    site.publish(6)
    # The first request after a release: nothing older can be served instead.
    assert site.gateway.ask("/test-6.cdiff", timeout=40).body == signed("test-6.cdiff")
    client = site.client(local=5)
    assert eventually(lambda: client.run().version == 6, every=1), site.gateway.log
    assert site.gateway.ask("/test.cvd").body == signed("test-6.cvd")
    assert relay.accepted > before
    assert cooldowns(site) == {}
    assert " 503 " not in site.gateway.log
    assert "could not be fetched" not in site.gateway.log


# Heads that never end


def threads_and_sockets(site: Site) -> tuple[int, int]:
    process, links = Path(f"/proc/{site.gateway.pid}"), list[str]()
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(descriptor.readlink()))
    return len(list((process / "task").iterdir())), sum(link.startswith("socket:") for link in links)


@pytest.mark.parametrize(
    ("start", "drip"),
    [
        (b"HTTP/1.1 2", b"0"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["a status line", "100 Continue", "a redirect"],
)
def test_a_head_that_never_ends_leaves_nothing(make_site: MakeSite, start: bytes, drip: bytes) -> None:
    paths = [f"/test-{version}.{kind}" for version in range(1, 7) for kind in ("cdiff", "cvd.sign")]
    with RawServer(answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")) as server:
        site = make_site(upstream={"url": server.url, "connect_timeout": "1s", "read_timeout": "1s"}, **WHOLE)
        site.dns.versions["test"] = 6

        def ask(path: str) -> int:
            return site.gateway.ask(path).status

        with ThreadPoolExecutor(len(paths) + 1) as clients:
            # All the threads that a gateway has are there after some requests.
            assert set(clients.map(ask, paths)) == {503}
            threads, sockets = threads_and_sockets(site)
            server.behaviour = dripping(start, drip, pause=0.5)
            enough = server.accepted + 2 * len(paths)
            while server.accepted < enough:
                assert set(clients.map(ask, [*paths, "/test.cvd"])) == {503}
        assert eventually(lambda: server.open == 0)
        assert eventually(lambda: threads_and_sockets(site)[0] <= threads + 1)
        assert eventually(lambda: threads_and_sockets(site)[1] <= sockets + 1)
    assert "Traceback" not in site.gateway.log


# A parent proxy that refuses

REFUSAL = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("user", "words"),
    [("", "the parent proxy requires a user and password"), ("me:it@", "the parent proxy refuses the user")],
)
def test_407(make_site: MakeSite, scheme: str, user: str, words: str) -> None:
    with RawServer(answering(REFUSAL)) as proxy:
        way = {"url": f"{scheme}://localhost:1", "proxy": f"http://{user}127.0.0.1:{proxy.port}"}
        site = make_site(upstream=way, **WHOLE)
        site.dns.versions["test"] = 6
        outcome = site.client().run()
        assert not outcome.cooling, outcome.output
        for path in ("/test.cvd", "/test-6.cdiff", "/test-5.cdiff"):
            assert site.gateway.ask(path).status == 503
        assert site.gateway.ask("/test.cvd", range=PROBE).status == 503
        assert proxy.accepted == 1
        assert words in site.gateway.log
        ((key, cooldown),) = cooldowns(site).items()
        assert (key, cooldown["failure"]) == ("parent proxy", "proxy authentication")
        # A password that was corrected counts at once.
        site.gateway.stop()
        site.gateway.start()
        assert site.gateway.ask("/test.cvd").status == 503
        assert proxy.accepted == 2
    assert "Traceback" not in site.gateway.log


def test_the_failures_of_a_probe_are_one_line(make_site: MakeSite) -> None:
    with RawServer(answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")) as server:
        site = make_site(upstream={"url": server.url}, **WHOLE)
        site.dns.versions["test"] = 6
        asked = server.accepted
        assert eventually(lambda: site.gateway.ask("/test.cvd").status == 503 and server.accepted > asked + 2)
        assert site.gateway.log.count("No header of test.cvd (status 500)") == 1
        server.behaviour = answering(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        assert eventually(lambda: site.gateway.ask("/test.cvd").status == 404)
        assert site.gateway.log.count("The origin has no test.cvd") == 1
