"""The pages: routes, tokens, conditional requests, headers."""

from __future__ import annotations

import base64
import itertools
import json
import socket
from pathlib import Path

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.messages import CACHE_STATUS, Response, Result
from clamproxy.sharing.reports import unpacked
from clamproxy.web import pages as site_module
from clamproxy.web.pages import GUARDED, PATHS
from clamproxy.web.sources import Place
from tests.harness.status import TOKEN, StatusHarness, text_of

PAGE = b"<!doctype html><title>clamproxy</title>"


@pytest.fixture
def harness(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StatusHarness:
    folder = tmp_path / "static"
    folder.mkdir()
    for name in site_module._STATIC.values():
        (folder / name).write_bytes(PAGE)
    monkeypatch.setattr(site_module, "_FOLDER", folder)
    return StatusHarness(
        store, authority=b"-----BEGIN CERTIFICATE-----\n", record="0.103.0:62:27780:1:0:90:1:339"
    )


def basic(password: str, user: str = "anybody") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def assert_decent(response: Response) -> None:
    """What every answer has in common."""
    assert response.status not in (403, 429, 500)
    assert response.result is Result.STATUS
    assert response.headers["Cache-Status"] == CACHE_STATUS[Result.STATUS]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert "Date" in response.headers


SCRIPTS = ("app", "charts", "dom", "fleet", "format", "sections")
STATIC = set(site_module._STATIC)
CONTENT_TYPES = {
    "/": "text/html; charset=utf-8",
    "/status.json": "application/json",
    "/fleet.json": "application/json",
    "/fleet.csv": "text/csv; charset=utf-8; header=present",
    "/metrics": "text/plain; version=0.0.4; charset=utf-8",
    "/ca.pem": "application/x-pem-file",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By path or suffix; plain text else."""


def test_paths() -> None:
    guarded = {"/status.json", "/fleet.json", "/fleet.csv", "/metrics"}
    assert STATIC | guarded == GUARDED
    assert {"/livez", "/readyz", "/ca.pem", "/client-config", "/dns.txt"} == PATHS - GUARDED
    assert {"/", "/style.css", "/app.js"} <= STATIC
    assert "/index.html" not in PATHS


@pytest.mark.parametrize("path", sorted(PATHS))
async def test_page(harness: StatusHarness, path: str) -> None:
    expected = CONTENT_TYPES.get(path) or CONTENT_TYPES.get(Path(path).suffix, "text/plain; charset=utf-8")
    for asked in (path, f"{path}?v=1"):
        response = await harness.ask(asked)
        assert_decent(response)
        assert (response.status, response.headers["Content-Type"]) == (200, expected)
        assert response.body


@pytest.mark.parametrize("path", sorted(PATHS - {*site_module._STATIC, "/dns.txt"}))
async def test_live_pages_are_not_stored(harness: StatusHarness, path: str) -> None:
    assert (await harness.ask(path)).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "get"])
async def test_other_methods(harness: StatusHarness, method: str) -> None:
    for path in PATHS:
        response = await harness.ask(path, method)
        assert_decent(response)
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_options(harness: StatusHarness) -> None:
    """What haproxy checks the health of a server with by default."""
    for path in (*PATHS, "*"):
        response = await harness.ask(path, "OPTIONS", Host="evil.example.com")
        assert_decent(response)
        assert (response.status, response.body, response.headers["Allow"]) == (204, b"", "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    "path", ["/nothing", "//nothing", "", "/static/app.js", "/../web/site.py", "/%2e%2e", "/Livez"]
)
async def test_no_such_page(harness: StatusHarness, path: str) -> None:
    harness.guard()
    response = await harness.ask(path)
    assert_decent(response)
    assert response.status == 404


async def test_head_is_like_get(harness: StatusHarness) -> None:
    got, head = await harness.ask("/style.css"), await harness.ask("/style.css", "HEAD")
    names = ("Content-Length", "Content-Type", "ETag")
    assert (head.status, head.body) == (200, b"")
    assert [head.headers[name] for name in names] == [got.headers[name] for name in names]


async def test_conditional_requests_of_files(harness: StatusHarness) -> None:
    tag = (await harness.ask("/app.js")).headers["ETag"]
    for field in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        response = await harness.ask("/app.js", If_None_Match=field)
        assert_decent(response)
        assert (response.status, response.body, response.headers["ETag"]) == (304, b"", tag)
    assert (await harness.ask("/app.js", If_None_Match='"other"')).status == 200
    assert (await harness.ask("/livez", If_None_Match="*")).status == 200


async def test_a_page_that_was_not_installed(harness: StatusHarness) -> None:
    (site_module._FOLDER / "app.js").unlink()
    response = await harness.ask("/app.js")
    assert_decent(response)
    assert response.status == 404


@pytest.mark.parametrize(
    "field",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        TOKEN,
        f"Digest {TOKEN}",
        "Basic",
        "Basic ???",
        "Basic \xff\xff",
        basic(""),
        basic("wrong"),
        basic("", TOKEN),
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
    ],
)
async def test_without_the_token(harness: StatusHarness, field: str | None) -> None:
    harness.guard()
    fields = {} if field is None else {"Authorization": field}
    for path, method in itertools.product(sorted(GUARDED), ("GET", "HEAD")):
        response = await harness.ask(path, method, None, **fields)
        assert_decent(response)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith('Basic realm="clamproxy"')
        assert TOKEN not in text_of(response)


@pytest.mark.parametrize(
    "field",
    [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN), basic(TOKEN, ""), f"BASIC {basic(TOKEN)[6:]}"],
)
async def test_with_the_token(harness: StatusHarness, field: str) -> None:
    harness.guard()
    for path in GUARDED:
        assert (await harness.ask(path, Authorization=field)).status == 200


@pytest.mark.parametrize("path", sorted(PATHS - GUARDED))
async def test_what_clients_and_probes_need_is_open(harness: StatusHarness, path: str) -> None:
    harness.guard()
    assert (await harness.ask(path)).status == 200
    assert (await harness.ask(path, Authorization="Bearer wrong")).status == 200


@pytest.mark.parametrize(
    ("host", "is_meant"),
    [
        ("10.0.0.1:8080", True),
        ("[fd00::1]:8080", True),
        ("localhost:8080", True),
        ("clamproxy", True),
        ("gateway:8080", True),
        ("Gateway.Example.net:8080", True),
        (socket.gethostname(), True),
        ("evil.example.com:8080", False),
        ("gateway.example.net.evil.example.com", False),
        ("10.0.0.1.evil.example.com", False),
        ("", False),
        ("a b", False),
    ],
)
async def test_dns_rebinding(harness: StatusHarness, host: str, is_meant: bool) -> None:
    """A page on the internet can have its name lead here, but it has no token."""
    harness.settings = Settings.model_validate({"tls": {"names": ["gateway.example.net"]}})
    for path in GUARDED:
        response = await harness.ask(path, Host=host)
        assert_decent(response)
        assert response.status == (200 if is_meant else 421)
    for path in PATHS - GUARDED:
        assert (await harness.ask(path, Host=host)).status == 200
    harness.guard()
    assert (await harness.ask("/status.json", Host=host)).status == 401
    assert (await harness.ask("/status.json", Host=host, Authorization=basic(TOKEN))).status == 200


async def test_a_reload_changes_the_token(harness: StatusHarness) -> None:
    harness.guard("x" * 20)
    assert (await harness.ask("/status.json", Authorization=f"Bearer {'x' * 20}")).status == 200
    harness.guard("y" * 20)
    assert (await harness.ask("/status.json", Authorization=f"Bearer {'x' * 20}")).status == 401


async def test_a_wrong_token_is_logged_without_it(
    harness: StatusHarness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.guard()
    await harness.ask("/metrics", Authorization="Bearer mistyped-secret")
    assert "192.0.2.7" in caplog.text
    assert "mistyped" not in caplog.text


async def test_there_is_no_authority(harness: StatusHarness) -> None:
    harness.authority = None
    response = await harness.ask("/ca.pem")
    assert_decent(response)
    assert response.status == 404
    assert "clamproxy ca init" in text_of(response)


async def test_the_authority(harness: StatusHarness) -> None:
    assert harness.authority == (await harness.ask("/ca.pem")).body


async def test_the_record(harness: StatusHarness) -> None:
    response = await harness.ask("/dns.txt")
    assert text_of(response) == f"{harness.record}\n"
    assert response.headers["Cache-Control"] == "no-cache"
    harness.record = None
    assert (await harness.ask("/dns.txt")).status == 503


@pytest.mark.parametrize(
    ("query", "mode"),
    [("", "http"), ("?mode=https", "https"), ("?mode=mirror", "mirror"), ("?mode=private&x=y", "private")],
)
async def test_modes_of_the_configuration(harness: StatusHarness, query: str, mode: str) -> None:
    response = await harness.ask(f"/client-config{query}", Host="gateway.example.net:8080")
    assert text_of(response) == f"# {mode}\n"


@pytest.mark.parametrize("query", ["?mode=other", "?mode=http&mode=https", "?mode=%3Cscript%3E"])
async def test_no_such_mode(harness: StatusHarness, query: str) -> None:
    response = await harness.ask(f"/client-config{query}")
    assert_decent(response)
    assert (response.status, harness.configured) == (400, [])
    assert "script" not in text_of(response)


LOCAL = Place("10.0.0.1", 8080)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("gateway.example.net:8080", Place("gateway.example.net", 8080)),
        ("Gateway.Example.net.", Place("gateway.example.net", 80)),
        ("10.9.8.7:3128", Place("10.9.8.7", 3128)),
        ("[fd00::1]:8080", Place("[fd00::1]", 8080)),
        ("clamproxy", LOCAL),  # the name that exists through the proxy only
        ("CLAMPROXY:80", LOCAL),
        ("127.0.0.1:8081", LOCAL),
        ("[::1]:8081", LOCAL),
        ("localhost", LOCAL),
        ("", LOCAL),
        ("evil\nHTTPProxyServer x", LOCAL),
        ("a b", LOCAL),
        ("x" * 300, LOCAL),
    ],
)
async def test_the_place_is_what_the_client_knows(harness: StatusHarness, host: str, expected: Place) -> None:
    await harness.ask("/client-config", place=LOCAL, Host=host.replace("\n", " "))
    assert harness.configured == [("http", expected)]


async def test_a_place_that_is_not_known(harness: StatusHarness) -> None:
    """On the pages' own port: Host says nothing about the proxy's."""
    await harness.ask("/client-config", Host="127.0.0.1:8081")
    await harness.ask("/client-config", Host="gateway.example.net:8081")
    assert harness.configured == [("http", Place(None, None)), ("http", Place("gateway.example.net", None))]


async def test_a_name_that_can_not_be_one(harness: StatusHarness) -> None:
    response = await harness.ask("/client-config", Host="bad..name")
    assert (response.status, text_of(response)) == (400, "clamproxy: a host name\n")


async def test_alive_though_nothing_can_be_read(
    harness: StatusHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[str, int]:
        raise OSError("disk I/O error")

    monkeypatch.setattr(harness.store, "counters", fail)
    assert (await harness.ask("/livez")).status == 200
    for path in ("/status.json", "/metrics"):
        response = await harness.ask(path)
        assert_decent(response)
        assert (response.status, "Retry-After" in response.headers) == (503, True)


async def test_a_report_stays_the_same_while_nothing_happens(harness: StatusHarness) -> None:
    """Whoever puts it into the object store compares: it may have to put the same once more."""
    first, second = await harness.site.report(), await harness.site.report()
    assert first is not None
    assert first == second
    assert json.loads(next(unpacked(first)))["gateway"]["now"] == 0


async def test_status_json_is_json(harness: StatusHarness) -> None:
    values = json.loads(text_of(await harness.ask("/status.json")))
    assert values["gateway"]["host"] == "clamproxy"
