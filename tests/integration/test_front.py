"""The front: its rules are the same for every server that receives a request, and every destination."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.datastructures import Headers

from clamproxy.access.users import user_line
from clamproxy.config.settings import Settings
from clamproxy.front import Caller, ClientRequest, Destination, Exchange, Front, Routing
from clamproxy.messages import DOCTOR_FIELD, Response, Result
from clamproxy.responses import complete, plain
from clamproxy.service import Service
from clamproxy.statistics import COUNTERS, FEED_COUNTERS
from tests.support.forge import forge_keys
from tests.support.front import CDN, CLIENT, OWN_ADDRESS, OWN_PORT, asked, caller

FEED, PASSED, OWN_NAME = "feeds.example.com", "pass.example.com", "gateway.example.net"
SECTIONS: dict[str, Any] = {
    "serving": {"pass_through": [PASSED, FEED, OWN_NAME, "*.wild.example"]},
    "feeds": {"hosts": [FEED]},
    "tls": {"names": [OWN_NAME]},
}
OFFLINE = {"upstream": {"offline": True}}
USERS = {"access": {"users": [user_line("clamav", "s3cret")]}}
LOGIN = "Basic " + base64.b64encode(b"clamav:s3cret").decode()
CHALLENGE = 'Basic realm="clamproxy"'
PROXY, SERVER = "Proxy-Authorization", "Authorization"


class FrontHarness:
    """A front with a service that asks nobody."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.front = Front()
        self.services: list[Service] = []

    def install(self, **sections: Any) -> Service:
        settings = Settings.model_validate(
            SECTIONS | OFFLINE | {"cache": {"directory": self.directory}} | sections
        )
        service = Service(settings, forge_keys().trusted)
        self.services.append(service)
        self.front.install(service)
        return service

    @property
    def service(self) -> Service:
        return self.services[-1]

    async def answer(
        self, url: str, method: str = "GET", by: Caller | None = None, **fields: str
    ) -> Exchange:
        return await self.front.answer(asked(url, method, headers(**fields), by))

    async def counted(self) -> dict[str, int]:
        """The counters that aren't 0."""
        await self.service.flush()
        counters = self.service.store.counters()
        return {name: counters[name] for name in (*COUNTERS, *FEED_COUNTERS) if counters.get(name)}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[FrontHarness]:
    harness = FrontHarness(tmp_path)
    harness.install()
    yield harness
    for service in harness.services:
        service.stop()


def headers(**fields: str) -> Headers:
    return Headers([(name.replace("_", "-"), value) for name, value in fields.items()])


# Where requests lead


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"http://{CDN}:80/daily.cvd", Destination.DATABASES),
        (f"https://{CDN}:443/daily.cvd", Destination.DATABASES),
        (f"http://{CDN}:80/status.json", Destination.DATABASES),
        (f"http://{FEED}:80/x", Destination.FEED),
        (f"http://{FEED}:80/status.json", Destination.FEED),
        (f"http://{PASSED}:8000/x", Destination.PASSED),
        (f"http://{OWN_NAME}:80/status.json", Destination.PASSED),  # names of hosts come first
        ("http://other.example.com:80/daily.cvd", Destination.NOBODY),
        ("http://other.example.com:80/livez", Destination.NOBODY),
        (f"http://other.example.com:{OWN_PORT}/daily.cvd", Destination.DATABASES),
        (f"http://{FEED}:{OWN_PORT}/livez", Destination.FEED),
        (f"http://{PASSED}:{OWN_PORT}/files/site.ign2", Destination.PASSED),
        (f"http://{OWN_NAME}:{OWN_PORT}/files/site.ign2", Destination.FILES),
        (f"http://localhost:{OWN_PORT}/files/site.ign2", Destination.FILES),
        (f"http://{OWN_ADDRESS}:{OWN_PORT}/files/site.ign2", Destination.FILES),
        (f"http://any.wild.example:{OWN_PORT}/files/site.ign2", Destination.FILES),
        ("http://any.wild.example:80/files/site.ign2", Destination.PASSED),
        (f"http://{CDN}:{OWN_PORT}/files/site.ign2", Destination.FILES),
        ("/daily.cvd", Destination.DATABASES),
        ("/", Destination.PAGES),
        ("/files/site.ign2", Destination.FILES),
        ("//files/site.ign2", Destination.FILES),
        ("/files", Destination.FILES),
        ("/filesystem.cvd", Destination.DATABASES),
        (f"http://other.example.com:{OWN_PORT}/files/site.ign2", Destination.FILES),
        (f"http://{CDN}:80/files/site.ign2", Destination.DATABASES),
        ("http://other.example.com:80/files/site.ign2", Destination.NOBODY),
    ],
)
def test_destination(url: str, expected: Destination) -> None:
    assert Routing(Settings.model_validate(SECTIONS)).destination(asked(url)) is expected


@pytest.mark.parametrize("url", [f"http://{FEED}:80/daily.cvd", "http://other.example.com:80/daily.cvd"])
def test_on_a_reverse_port_the_gateway_is_the_server(url: str) -> None:
    request = asked(url, by=caller(is_reverse=True))
    assert Routing(Settings.model_validate(SECTIONS)).destination(request) is Destination.DATABASES


def test_offline_nothing_is_passed_through() -> None:
    routing = Routing(Settings.model_validate(SECTIONS | OFFLINE))
    assert routing.destination(asked(f"http://{PASSED}:80/x")) is Destination.NOBODY
    assert routing.destination(asked(f"http://{PASSED}:{OWN_PORT}/x")) is Destination.NOBODY
    assert routing.destination(asked(f"http://{OWN_NAME}:80/livez")) is Destination.PAGES
    assert routing.destination(asked(f"http://{OWN_NAME}:80/daily.cvd")) is Destination.DATABASES


# Tunnels


@pytest.mark.parametrize(
    ("authority", "is_admitted"),
    [
        (f"{CDN}:80", True),
        (f"{CDN}:443", True),
        (f"{CDN}:22", False),
        (f"{FEED}:8443", True),
        (f"{OWN_NAME}:8443", True),
        (f"{OWN_ADDRESS}:{OWN_PORT}", True),
        ("other.example.com:443", False),
    ],
)
async def test_tunnel(harness: FrontHarness, authority: str, is_admitted: bool) -> None:
    request = asked(authority, "CONNECT")
    exchange = await harness.front.open_tunnel(request)
    host, _, port = authority.rpartition(":")
    if is_admitted:
        assert (exchange, request.caller.tunnel) == (None, (host, int(port)))
    else:
        assert exchange is not None
        assert (exchange.response.status, exchange.response.result) == (502, Result.REFUSED)
        assert request.caller.tunnel is None
        exchange.end(exchange.response.length)
        assert (await harness.counted())["refused"] == 1


# Users


async def test_a_login_with_connect_holds_inside_the_tunnel(harness: FrontHarness) -> None:
    harness.install(**USERS)
    by = caller()
    refusal = await harness.front.open_tunnel(asked(f"{CDN}:80", "CONNECT", by=by))
    assert refusal is not None
    assert (refusal.response.status, refusal.response.headers["Proxy-Authenticate"]) == (407, CHALLENGE)
    assert not harness.front.is_known(by)
    fields = Headers({PROXY: LOGIN})
    assert await harness.front.open_tunnel(asked(f"{CDN}:80", "CONNECT", fields, by)) is None
    assert harness.front.is_known(by)
    assert (await harness.answer(f"http://{CDN}:80/x", by=by)).response.status == 404
    assert (await harness.answer(f"http://{CDN}:80/x")).response.status == 407, "another connection"


@pytest.mark.parametrize(
    "url",
    [
        f"http://{CDN}:80/x",
        f"http://{FEED}:80/x",
        f"http://{FEED}:{OWN_PORT}/x",
        "http://other.example.com:80/",
    ],
)
async def test_a_proxy_asks_for_a_proxys_password(harness: FrontHarness, url: str) -> None:
    harness.install(**USERS)
    exchange = await harness.front.answer(asked(url, headers=Headers({SERVER: LOGIN})))
    assert (exchange.response.status, exchange.response.headers["Proxy-Authenticate"]) == (407, CHALLENGE)
    exchange = await harness.front.answer(asked(url, headers=Headers({PROXY: LOGIN})))
    assert exchange.response.status != 407
    assert not harness.front.is_known(exchange.request.caller), "one request is no connection"


async def test_a_server_asks_for_a_servers(harness: FrontHarness) -> None:
    harness.install(**USERS)
    for by in (caller(), caller(is_reverse=True)):
        exchange = await harness.front.answer(asked("/x", headers=Headers({PROXY: LOGIN}), by=by))
        assert (exchange.response.status, exchange.response.headers["WWW-Authenticate"]) == (401, CHALLENGE)
        exchange = await harness.front.answer(asked("/x", headers=Headers({SERVER: LOGIN}), by=by))
        assert exchange.response.status == 404


async def test_health_checks_need_no_user(harness: FrontHarness) -> None:
    harness.install(**USERS)
    assert (await harness.answer("/livez")).response.status == 200
    assert (await harness.answer("/status.json")).response.status == 401


async def test_a_reload_forgets_who_is_known_if_the_users_change(harness: FrontHarness) -> None:
    by = caller()
    assert harness.front.is_known(by)
    harness.install(**USERS)
    assert not harness.front.is_known(by)
    await harness.front.open_tunnel(asked(f"{CDN}:80", "CONNECT", Headers({PROXY: LOGIN}), by))
    harness.install(versions={"refresh": "7m"}, **USERS)
    assert harness.front.is_known(by)
    harness.install(access={"users": [user_line("clamav", "another")]})
    assert not harness.front.is_known(by)


# Loops and methods


LOOPS = [
    pytest.param("{own}", id="this gateway"),
    pytest.param("1.1 a, {own}, 1.1 b", id="among others"),
    pytest.param("1.1 a, " * 146 + "abc", id="1025 characters"),
    pytest.param("1.1 a\x01", id="a control character"),
    pytest.param("1.1 \u00fc", id="not ASCII"),
]


@pytest.mark.parametrize("via", LOOPS)
@pytest.mark.parametrize("url", [f"http://{CDN}:80/daily.cvd", f"http://{FEED}:80/x", "/daily.cvd"])
async def test_a_loop_ends_here(harness: FrontHarness, url: str, via: str) -> None:
    response = (await harness.answer(url, Via=via.format(own=harness.service.via))).response
    assert (response.status, response.result) == (502, Result.REFUSED)
    assert "loop" in response.reason


@pytest.mark.parametrize("via", LOOPS)
async def test_a_loop_ends_here_before_it_is_passed_through(harness: FrontHarness, via: str) -> None:
    harness.install(upstream={})
    fields = headers(Via=via.format(own=harness.service.via))
    exchange = await harness.front.pass_on(asked(f"http://{PASSED}:80/x", headers=fields))
    assert exchange is not None
    assert (exchange.response.status, exchange.response.result) == (502, Result.REFUSED)
    assert "loop" in exchange.response.reason


async def test_requests_through_other_gateways_are_no_loops(harness: FrontHarness) -> None:
    via = "1.1 a, " * 146 + "ab"
    assert (await harness.answer(f"http://{CDN}:80/x", Via=via)).response.status == 404
    assert (await harness.answer(f"http://{FEED}:80/x", Via=via)).response.status == 503


@pytest.mark.parametrize("url", [f"http://{CDN}:80/daily.cvd", f"http://{FEED}:80/x", "/daily.cvd"])
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "get", "TRACE", "FOO"])
async def test_methods(harness: FrontHarness, url: str, method: str) -> None:
    response = (await harness.answer(url, method)).response
    assert (response.status, response.result, response.headers["Allow"]) == (405, Result.REFUSED, "GET, HEAD")


# What is passed through


@pytest.mark.parametrize(
    ("method", "left", "status"),
    [("GET", "0", 0), ("OPTIONS", "1", 0), ("OPTIONS", "x", 0), ("OPTIONS", "0", 204), ("TRACE", "0", 405)],
)
async def test_max_forwards(harness: FrontHarness, method: str, left: str, status: int) -> None:
    harness.install(upstream={})
    exchange = await harness.front.pass_on(asked(f"http://{PASSED}:80/x", method, headers(Max_Forwards=left)))
    assert exchange is not None
    assert exchange.response.status == status
    assert exchange.response.result is (Result.REFUSED if status else Result.PASSED)
    if status:
        assert exchange.response.headers["Allow"] == "GET, HEAD, OPTIONS"
        assert (status == 204) == (exchange.response.body == b"")


async def test_what_is_not_a_passed_host_is_not_passed_through(harness: FrontHarness) -> None:
    harness.install(upstream={})
    for url in (f"http://{CDN}:80/x", f"http://{FEED}:80/x", "http://other.example.com:80/x", "/x"):
        assert await harness.front.pass_on(asked(url)) is None


async def test_nothing_is_passed_through_for_unknown_clients(harness: FrontHarness) -> None:
    harness.install(upstream={}, **USERS)
    exchange = await harness.front.pass_on(asked(f"http://{PASSED}:80/x"))
    assert exchange is not None
    assert exchange.response.status == 407


async def test_answer_refuses_what_a_reload_has_just_made_passed_through(harness: FrontHarness) -> None:
    harness.install(upstream={})
    response = (await harness.answer(f"http://{PASSED}:80/x")).response
    assert (response.status, response.result) == (503, Result.ERROR)


# What every response carries


@pytest.mark.parametrize(
    ("url", "method", "status"),
    [
        (f"http://{CDN}:80/x", "GET", 404),
        (f"http://{CDN}:80/x", "HEAD", 404),
        (f"http://{CDN}:80/x", "POST", 405),
        (f"http://{FEED}:80/x", "GET", 503),
        (f"http://{FEED}:80/x", "HEAD", 503),
        (f"http://{FEED}:80/x", "POST", 405),
        ("http://other.example.com:80/x", "GET", 502),
        ("/livez", "GET", 200),
        ("/livez", "HEAD", 200),
        ("/livez", "POST", 405),
        ("/livez", "OPTIONS", 204),
    ],
)
async def test_responses_are_complete(harness: FrontHarness, url: str, method: str, status: int) -> None:
    response = (await harness.answer(url, method)).response
    assert response.status == status
    for name in ("Cache-Status", "Date", "Via"):
        assert len(response.headers.getlist(name)) == 1, name
    assert response.headers["Via"] == harness.service.via
    assert isinstance(response.body, bytes)
    if status == 204:
        assert "Content-Length" not in response.headers
    elif method == "HEAD":
        assert int(response.headers["Content-Length"]) > 0
    else:
        assert int(response.headers["Content-Length"]) == len(response.body) > 0
    assert bool(response.body) is (method != "HEAD" and status != 204)


@pytest.mark.parametrize(
    ("response", "method", "expected"),
    [
        pytest.param(Response(200, Result.HIT, body=b"abc"), "GET", ("3", b"abc"), id="content"),
        pytest.param(Response(200, Result.HIT, body=b"abc"), "HEAD", ("3", b""), id="HEAD"),
        pytest.param(Response(200, Result.HIT), "GET", ("0", b""), id="empty"),
        pytest.param(Response(200, Result.HIT), "HEAD", (None, b""), id="HEAD, length not known"),
        pytest.param(
            Response(200, Result.HIT, Headers({"Content-Length": "9"})), "HEAD", ("9", b""), id="known"
        ),
        pytest.param(Response(304, Result.HIT), "GET", (None, b""), id="304"),
        pytest.param(plain(204, Result.REFUSED, "words"), "OPTIONS", (None, b""), id="204"),
    ],
)
def test_content(response: Response, method: str, expected: tuple[str | None, bytes]) -> None:
    complete(response, method)
    assert (response.headers.get("Content-Length"), response.body) == expected
    assert "Via" not in response.headers


def test_what_a_feed_says_of_itself_stays() -> None:
    response = Response(200, Result.HIT, Headers({"Date": "then", "Cache-Status": "clamproxy; fwd=bypass"}))
    complete(response, "GET", "1.1 me")
    assert (response.headers["Date"], response.headers["Cache-Status"]) == ("then", "clamproxy; fwd=bypass")


# What goes wrong


async def test_without_a_service(tmp_path: Path) -> None:
    front = Front()
    for exchange in (
        await front.answer(asked()),
        await front.pass_on(asked()),
        await front.open_tunnel(asked(f"{CDN}:80", "CONNECT")),
    ):
        assert exchange is not None
        assert (exchange.response.status, exchange.response.headers["Via"]) == (503, "1.1 clamproxy")
        exchange.end(0)


async def test_a_defect_is_503(
    harness: FrontHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Destination:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Routing, "destination", fail)
    for exchange in (
        await harness.front.answer(asked()),
        await harness.front.pass_on(asked()),
        await harness.front.open_tunnel(asked(f"{CDN}:80", "CONNECT")),
    ):
        assert exchange is not None
        assert (exchange.response.status, exchange.response.result) == (503, Result.ERROR)
        assert exchange.response.headers["Retry-After"] == "1"
    assert caplog.text.count(f"A request from {CLIENT} failed.") == 3


# Accounting


COUNTED = [
    pytest.param(f"http://{CDN}:80/x", {}, {"requests": 1, "refused": 1}, id="no file of ClamAV's"),
    pytest.param(f"http://{CDN}:80/daily.cvd", {}, {"requests": 1, "misses": 1}, id="a miss"),
    pytest.param(f"http://{CDN}:80/x", {DOCTOR_FIELD: "1"}, {}, id="the doctor"),
    pytest.param("http://other.example.com:80/", {}, {"requests": 1, "refused": 1}, id="nobody"),
    pytest.param(f"http://{FEED}:80/x", {}, {"feed_requests": 1, "feed_errors": 1}, id="a feed's error"),
    pytest.param(
        f"http://{FEED}:80/x", {DOCTOR_FIELD: "1"}, {"feed_requests": 1, "feed_errors": 1}, id="no doctor"
    ),
    pytest.param(
        f"http://{FEED}:80/x", {"Via": "\u00fc"}, {"requests": 1, "refused": 1}, id="a loop on a feed's host"
    ),
    pytest.param("/livez", {}, {}, id="a page"),
]


@pytest.mark.parametrize(("url", "fields", "expected"), COUNTED)
async def test_what_counts_as_what(
    harness: FrontHarness, url: str, fields: dict[str, str], expected: dict[str, int]
) -> None:
    exchange = await harness.front.answer(asked(url, headers=Headers(fields)))
    exchange.end(0)
    exchange.end(0)
    assert await harness.counted() == expected


@pytest.mark.parametrize("host", [CDN, FEED, "other.example.com"])
async def test_unknown_clients_count_as_refused(harness: FrontHarness, host: str) -> None:
    harness.install(**USERS)
    exchange = await harness.answer(f"http://{host}:80/x")
    exchange.end(exchange.response.length)
    assert await harness.counted() == {"requests": 1, "refused": 1, "bytes_served": exchange.response.length}
    assert harness.service.feeds.figures()["hosts"] == []


async def test_the_service_that_runs_at_the_end_counts(harness: FrontHarness) -> None:
    exchange = await harness.answer(f"http://{CDN}:80/x")
    earlier = harness.service
    harness.install(versions={"refresh": "7m"})
    earlier.stop()
    exchange.end(3)
    assert await harness.counted() == {"requests": 1, "refused": 1, "bytes_served": 3}


async def test_the_log_says_what_became_of_it(
    harness: FrontHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clamproxy.access")
    (await harness.answer(f"http://{CDN}:80/x", Clamproxy_Doctor="1")).end(28)
    (await harness.answer(f"http://{FEED}:80/secret")).end(0, "client left")
    harness.front.unanswered(asked(f"http://{CDN}:80/daily.cvd")).end(0, "the content is too large")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"{CLIENT} GET /x - status 404 28B ")
    assert f"GET {FEED}/... - error 503 0B " in lines[1]
    assert lines[1].endswith(" (client left)")
    assert "GET /daily.cvd - refused 0 0B" in lines[2]


# Ends


async def test_answers_and_bodies_are_waited_for(
    harness: FrontHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def wait(_: ClientRequest) -> Response:
        await go_on.wait()
        return Response(200, Result.HIT)

    monkeypatch.setattr(harness.service.gateway, "handle", wait)
    answering = asyncio.create_task(harness.front.answer(asked()))
    waiting = asyncio.create_task(harness.front.answered(60))
    await asyncio.sleep(0)
    with harness.front.answering():
        go_on.set()
        await answering
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done, "a body is on its way"
    await asyncio.wait_for(waiting, 60)
