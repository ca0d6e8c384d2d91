"""The pages about the gateway: by their name through the proxy, on its own port, on the admin listener."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support import faults
from tests.support.big import Forgery, begun_download
from tests.support.freshclam import OK
from tests.support.gateway import Answer, Gateway, Way, connectable, free_ports, receive, send
from tests.support.site import LOCALHOST, Site, eventually, settings_for, signed

from .conftest import MakeSite

NAME = "clamproxy"
TOKEN = "a-token-for-tests-0123456789"
GUARDED = ("/", "/style.css", "/app.js", "/status.json", "/fleet.json", "/metrics")
OPEN = ("/livez", "/readyz", "/ca.pem", "/client-config", "/dns.txt")

type Ask = Callable[..., Answer]


def direct(port: int, path: str, method: str = "GET", host: str | None = None, **headers: str) -> Answer:
    """A request to a port as browsers and Prometheus send it, without a proxy."""
    with closing(http.client.HTTPConnection(LOCALHOST, port, timeout=30)) as connection:
        send(connection, path, method=method, host=host or f"{LOCALHOST}:{port}", **headers)
        return receive(connection)


def with_listener(make_site: MakeSite, status: Any = None, **sections: Any) -> tuple[Site, int]:
    """A site with an admin listener, which begins a moment after the proxy, and its port."""
    (port,) = free_ports(1)
    site = make_site(status={"listen": f"{LOCALHOST}:{port}", **(status or {})}, **sections)
    assert eventually(lambda: connectable(port)), site.gateway.log
    return site, port


@pytest.fixture
def admin(make_site: MakeSite) -> tuple[Site, int]:
    """One with the usual settings."""
    return with_listener(make_site)


def ways_to(site: Site, port: int) -> dict[str, Ask]:
    gateway = site.gateway
    return {
        "by name": lambda path, **more: gateway.ask(path, Way.ABSOLUTE, host=NAME, **more),
        "by name in a tunnel": lambda path, **more: gateway.ask(path, Way.CONNECT_HTTP, host=NAME, **more),
        "own port": lambda path, **more: direct(gateway.port, path, **more),
        "admin": lambda path, **more: direct(port, path, **more),
    }


def status_of(ask: Ask) -> dict[str, Any]:
    answer = ask("/status.json")
    assert answer.status == 200, answer.body
    values: dict[str, Any] = json.loads(answer.body)
    return values


def test_all_pages_by_all_ways(admin: tuple[Site, int]) -> None:
    site, port = admin
    site.warm(6)
    for way, ask in ways_to(site, port).items():
        for path in (*GUARDED, *OPEN):
            answer = ask(path)
            assert (answer.status, answer.complete, bool(answer.body)) == (200, True, True), (way, path)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            head = ask(path, method="HEAD")
            assert (head.status, head.body) == (200, b""), (way, path)
            assert int(head.headers["content-length"]) > 0
        assert ask("/status.json", method="POST").status == 405
        assert ask("/").headers["content-type"] == "text/html; charset=utf-8"
        assert ask("/no-such-page").status == 404
        tag = ask("/app.js").headers["etag"]
        assert ask("/app.js", if_none_match=tag).status == 304
        assert b"BEGIN CERTIFICATE" in ask("/ca.pem").body
        for mode in ("http", "https", "mirror", "private"):
            lines = ask(f"/client-config?mode={mode}").body.decode()
            assert str(site.gateway.port) in lines or str(site.gateway.reverse_port) in lines, (way, lines)


def test_what_freshclam_did_is_seen(admin: tuple[Site, int]) -> None:
    site, port = admin
    site.publish(6)
    behind = site.client("behind", local=5)
    assert behind.run().code == OK
    assert site.client("fresh").run().code == OK
    for ask in ways_to(site, port).values():
        seen = _with_machines(ask, 2)
        assert seen["ready"] is True, seen["problems"]
        assert eventually(lambda: status_of(ask)["stats"]["requests"] >= 4)  # noqa: B023
        (database,) = [one for one in seen["databases"] if one["name"] == "test"]
        assert (database["advertised"], database["reached"]) == (6, 6)
        assert database["size"] is None or database["size"] == len(signed("test-6.cvd"))
        assert seen["history"]["series"]["requests"][-1] is not None
        assert eventually(lambda: status_of(ask)["stats"]["requests"] == site.gateway.stats()["requests"])  # noqa: B023


def _with_machines(ask: Ask, count: int) -> dict[str, Any]:
    """The figures, once so many machines are known to be up to date; visits are written within seconds."""
    seen = eventually(lambda: found if (found := status_of(ask))["fleet"]["up_to_date"] == count else None)
    assert seen is not None, status_of(ask)["fleet"]
    assert seen["fleet"]["total"] == count
    return seen


def test_looking_is_no_request_of_a_client(admin: tuple[Site, int]) -> None:
    site, port = admin
    site.publish(6)
    for ask in ways_to(site, port).values():
        for path in ("/status.json", "/metrics", "/", "/livez", "/readyz"):
            assert ask(path).status == 200
    assert site.origin.trace == ""
    site.gateway.ask("/test.cvd")
    assert eventually(lambda: site.gateway.stats()["requests"])
    assert site.gateway.stats()["requests"] == 1


def test_transfer_with_progress(big: Site, forgery: Forgery) -> None:
    size = len(forgery.body)
    big.origin.rate = size / 20

    def seen() -> list[int]:
        transfers = status_of(lambda path: direct(big.gateway.port, path))["transfers"]
        return [one["have"] for one in transfers if one["have"] > 0 and one["size"] == size]

    with begun_download(big.gateway):
        (have,) = eventually(seen)
        assert have < size
        assert eventually(lambda: [more for more in seen() if more > have])


def test_cool_downs(admin: tuple[Site, int]) -> None:
    site, port = admin
    site.publish(6)
    site.origin.rule("W", faults.status(429, retry_after="3600"))
    site.gateway.ask("/test.cvd")
    ask = ways_to(site, port)["admin"]
    seen = eventually(lambda: found if (found := status_of(ask))["cooldowns"] else None)
    assert seen is not None
    assert seen["cooldowns"][0]["failure"] == "rate limited"
    assert eventually(lambda: metrics_of(ask)["clamproxy_requests_total", "error"])
    assert metrics_of(ask)["clamproxy_cooldown_seconds", "file"] > 1000


def metrics_of(ask: Ask) -> dict[tuple[str, ...], float]:
    """By name and values of labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(ask("/metrics").body.decode())
        for sample in family.samples
    }


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


def test_token(make_site: MakeSite) -> None:
    site, port = with_listener(make_site, {"token": TOKEN})
    site.publish(6)
    assert site.gateway.ask("/test.cvd").status == 200
    for way, ask in ways_to(site, port).items():
        for path in GUARDED:
            for fields in ({}, {"authorization": "Bearer wrong"}, {"authorization": basic("wrong")}):
                refused = ask(path, **fields)
                assert (refused.status, way, path) == (401, way, path)
                assert refused.headers["www-authenticate"].startswith('Basic realm="clamproxy"')
            for field in (f"Bearer {TOKEN}", basic(TOKEN)):
                assert ask(path, authorization=field).status == 200
        for path in OPEN:
            assert ask(path).status in (200, 503), (way, path)
    assert TOKEN not in site.gateway.log


def test_no_page_on_the_cdn_or_on_other_hosts(site: Site) -> None:
    """A file of that name at the CDN would be the CDN's. Who asks a port without a proxy asks the gateway."""
    for way in (Way.CONNECT_HTTP, Way.CONNECT_HTTPS, Way.ABSOLUTE):
        assert site.gateway.ask("/status.json", way).status == 404
    assert site.gateway.ask("/status.json", Way.REVERSE).status == 200
    assert site.gateway.ask("/status.json", Way.ABSOLUTE, host="clamproxy.example.com").status == 502


def test_no_name_and_no_listener(make_site: MakeSite) -> None:
    site = make_site(status={"host": None, "listen": None})
    assert site.gateway.ask("/livez", Way.ABSOLUTE, host=NAME).status == 502
    assert direct(site.gateway.port, "/livez").status == 200


def test_dns_rebinding(admin: tuple[Site, int]) -> None:
    site, port = admin
    for reached in (port, site.gateway.port):
        answer = direct(reached, "/status.json", host=f"evil.example.com:{reached}")
        assert (answer.status, b"stats" in answer.body) == (421, False)
    for host in (f"localhost:{port}", NAME, f"[::1]:{port}"):
        assert direct(port, "/status.json", host=host).status == 200


def test_the_port_is_taken(tmp_path_factory: pytest.TempPathFactory, origin: Any, dns: Any) -> None:
    """The proxy is worth more than its pages."""
    with socket.create_server((LOCALHOST, 0)) as other:
        port = other.getsockname()[1]
        settings = settings_for(origin, dns, status={"listen": f"{LOCALHOST}:{port}"})
        with Gateway(tmp_path_factory.mktemp("taken"), settings) as gateway:
            assert gateway.ask("/livez", Way.ABSOLUTE, host=NAME).status == 200
            lines = [line for line in gateway.log.splitlines() if "status.listen" in line]
            assert len(lines) == 1
            assert f"{LOCALHOST}:{port}" in lines[0]
            assert "in use" in lines[0]


def test_not_ready(make_site: MakeSite) -> None:
    site, port = with_listener(make_site, upstream={"offline": True})
    answer = direct(port, "/readyz")
    assert (answer.status, b"imported" in answer.body) == (503, True)
    assert direct(port, "/livez").status == 200
    assert site.gateway.stop() == 0


def test_reload(make_site: MakeSite) -> None:
    """The listener goes on, with what is new."""
    site, port = with_listener(make_site)
    assert direct(port, "/status.json").status == 200
    settings = site.gateway.settings | {"status": {"listen": f"{LOCALHOST}:{port}", "token": TOKEN}}
    site.gateway.config.write_text(yaml.safe_dump(settings))
    os.kill(site.gateway.pid, signal.SIGHUP)

    def is_guarded() -> bool:
        with suppress(OSError, http.client.HTTPException):
            return direct(port, "/status.json").status == 401
        return False

    assert eventually(is_guarded), site.gateway.log
    assert direct(port, "/status.json", authorization=f"Bearer {TOKEN}").status == 200
    assert "status.listen" not in site.gateway.log


def test_history_goes_on_after_a_restart(admin: tuple[Site, int]) -> None:
    site, port = admin
    ask = ways_to(site, port)["admin"]
    site.warm(6)

    def counted() -> int:
        return sum(number or 0 for number in status_of(ask)["history"]["series"]["requests"])

    assert eventually(counted) > 0
    site.gateway.stop()  # all is written then
    before = site.gateway.stats()["requests"]
    site.gateway.start()
    assert eventually(lambda: connectable(port)), site.gateway.log
    assert eventually(lambda: counted() == before), (counted(), before)
    site.gateway.ask("/test-6.cdiff")
    assert eventually(lambda: counted() == before + 1), counted()


def test_many_viewers(admin: tuple[Site, int]) -> None:
    """They share a picture, and clients are served meanwhile."""
    site, port = admin
    site.warm(6)
    results: list[int] = []

    def look() -> None:
        results.extend(direct(port, "/status.json").status for _ in range(10))

    viewers = [threading.Thread(target=look) for _ in range(8)]
    for viewer in viewers:
        viewer.start()
    assert site.gateway.ask("/test-6.cdiff").status == 200
    for viewer in viewers:
        viewer.join(60)
    assert results == [200] * 80
