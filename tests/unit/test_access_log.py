"""The access log: one line, without secrets, whatever the client sends."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamproxy.front.access_log import FIELDS, Outcome, log_request, log_tunnel
from clamproxy.front.client_request import ClientRequest
from clamproxy.messages import Result
from tests.support.front import CDN, asked
from tests.support.stored import AGENT


def request(
    method: str = "GET", path: str = "/daily.cvd", agent: str | None = AGENT, host: str = CDN, port: int = 80
) -> ClientRequest:
    made = asked(f"http://{host}:{port}/", method)
    if agent is not None:
        made.headers["User-Agent"] = agent
    made.path = path
    return made


def line(caplog: pytest.LogCaptureFixture, given: ClientRequest, **fields: Any) -> str:
    values: dict[str, Any] = {
        "client": "192.0.2.7",
        "version": 27800,
        "result": Result.HIT,
        "status": 200,
        "length": 62_000_000,
        "seconds": 1.2345,
        "error": "",
    }
    caplog.clear()
    with caplog.at_level(logging.INFO, "clamproxy.access"):
        values |= fields
        hides_path = values.pop("hides_path", False)
        log_request(given, Outcome(**values), hides_path=hides_path)
    (record,) = caplog.records
    return record.getMessage()


def test_a_line(caplog: pytest.LogCaptureFixture) -> None:
    assert line(caplog, request()) == ("192.0.2.7 GET /daily.cvd 27800 hit 200 62000000B 1.234s ClamAV/1.4.6")


@pytest.mark.parametrize(
    ("given", "fields", "there", "not_there"),
    [
        pytest.param(request(), {"version": None}, "/daily.cvd - hit", "None", id="no version"),
        pytest.param(request(), {"error": "client left"}, "(client left)", None, id="an error"),
        pytest.param(request(agent=None), {}, "1.234s -", None, id="no User-Agent"),
        pytest.param(
            request(path="/daily.cvd?version=5&key=secret"),
            {},
            "GET /daily.cvd 27800",
            "secret",
            id="a query",
        ),
        pytest.param(
            request(path="/secret/feed.db?key=secret", host="feeds.example.com"),
            {"hides_path": True, "result": Result.PASSED},
            "GET feeds.example.com/... ",
            "secret",
            id="a path of another site",
        ),
        pytest.param(request(), {}, "ClamAV/1.4.6", "UUID", id="trap 26: not the machine's id"),
        pytest.param(request(path="/" + "x" * 5000), {}, "xxx", "x" * 300, id="a long path"),
        pytest.param(request(agent="x" * 5000), {}, "xxx", "x" * 300, id="a long User-Agent"),
    ],
)
def test_what_is_in_a_line(
    caplog: pytest.LogCaptureFixture,
    given: ClientRequest,
    fields: dict[str, Any],
    there: str,
    not_there: str | None,
) -> None:
    text = line(caplog, given, **fields)
    assert there in text
    assert not_there is None or not_there not in text


def fields(caplog: pytest.LogCaptureFixture, given: ClientRequest, **changed: Any) -> dict[str, Any]:
    """What goes into the JSON object."""
    line(caplog, given, **changed)
    (record,) = caplog.records
    found: dict[str, Any] = getattr(record, FIELDS)()
    return found


def test_fields(caplog: pytest.LogCaptureFixture) -> None:
    assert fields(caplog, request(path="/daily-27800.cdiff?key=secret")) == {
        "client": "192.0.2.7",
        "method": "GET",
        "host": "database.clamav.net",
        "path": "/daily-27800.cdiff",
        "database": "daily",
        "version": 27800,
        "result": "hit",
        "status": 200,
        "bytes": 62_000_000,
        "duration": 1.2345,
        "agent": "ClamAV/1.4.6",
        "uuid": "00000000-0000-4000-8000-000000000000",
        "error": None,
    }


@pytest.mark.parametrize(
    ("given", "changed", "expected"),
    [
        pytest.param(request(path="/main.cvd"), {}, {"database": "main"}, id="a CVD"),
        pytest.param(request(path="/main.cvd.sign"), {}, {"database": "main"}, id="a signature"),
        pytest.param(
            request(path="//main.cvd"),
            {},
            {"database": "main", "path": "//main.cvd"},
            id="a mirror that ends in a slash",
        ),
        pytest.param(request(path="//main-62.cdiff"), {}, {"database": "main"}, id="a patch from there"),
        pytest.param(request(path="main.cvd"), {}, {"database": None}, id="no path"),
        pytest.param(request(path="/index.html"), {}, {"database": None}, id="something else"),
        pytest.param(request(agent=None), {}, {"agent": None, "uuid": None}, id="no User-Agent"),
        pytest.param(request(agent="x UUID: nonsense"), {}, {"agent": "x", "uuid": None}, id="no UUID"),
        pytest.param(request(), {"error": "client left"}, {"error": "client left"}, id="an error"),
        pytest.param(
            request(path="/secret/main.cvd?key=secret", host="feeds.example.com"),
            {"hides_path": True},
            {"host": "feeds.example.com", "path": None, "database": None},
            id="a path of another site",
        ),
        pytest.param(request(path="/" + "x" * 5000), {}, {"path": "/" + "x" * 199}, id="a long path"),
    ],
)
def test_what_is_in_the_fields(
    caplog: pytest.LogCaptureFixture, given: ClientRequest, changed: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = fields(caplog, given, **changed)
    assert {name: found[name] for name in expected} == expected
    assert "secret" not in str(found)


def test_fields_of_a_connect(caplog: pytest.LogCaptureFixture) -> None:
    tunnel = request("CONNECT", "", port=443)
    found = fields(caplog, tunnel)
    assert (found["host"], found["path"]) == ("database.clamav.net:443", None)


def test_a_tunnel(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "clamproxy.access"):
        log_tunnel("192.0.2.7", "feeds.example.com", 443)
    (record,) = caplog.records
    assert record.getMessage() == "192.0.2.7 CONNECT feeds.example.com:443 passed"
    assert getattr(record, FIELDS)().keys() == fields(caplog, request()).keys()


def test_connect_is_logged_by_its_target(caplog: pytest.LogCaptureFixture) -> None:
    tunnel = request("CONNECT", "", port=443)
    assert "CONNECT database.clamav.net:443 " in line(caplog, tunnel)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=30), st.binary(max_size=30), st.text(max_size=30))
def test_an_entry_is_always_one_printable_line(
    caplog: pytest.LogCaptureFixture, path: bytes, agent: bytes, error: str
) -> None:
    odd = request(
        path="/" + path.decode("latin-1"),
        agent=agent.translate(bytes.maketrans(b"\r\n", b"  ")).decode("latin-1"),
    )
    text = line(caplog, odd, error=error)
    assert text.isprintable()
    assert text.isascii()
