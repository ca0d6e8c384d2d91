"""The access log: one line, without secrets, whatever the client sends."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy import http

from clamproxy.messages import Result
from clamproxy.proxy.access_log import log_request
from tests.unit.conftest import AGENT


def request(
    method: str = "GET",
    path: str = "/daily.cvd",
    agent: str | None = AGENT,
    host: str = "database.clamav.net",
) -> http.Request:
    made = http.Request.make(method, f"http://{host}/")
    if agent is not None:
        made.headers["User-Agent"] = agent
    made.path = path
    return made


def line(caplog: pytest.LogCaptureFixture, asked: http.Request, **fields: Any) -> str:
    values: dict[str, Any] = {
        "client": "192.0.2.7",
        "is_passed_through": False,
        "version": 27800,
        "result": Result.HIT,
        "status": 200,
        "length": 62_000_000,
        "seconds": 1.2345,
        "error": "",
    }
    caplog.clear()
    with caplog.at_level(logging.INFO, "clamproxy.access"):
        log_request(request=asked, **values | fields)
    (record,) = caplog.records
    return record.getMessage()


def test_a_line(caplog: pytest.LogCaptureFixture) -> None:
    assert line(caplog, request()) == ("192.0.2.7 GET /daily.cvd 27800 hit 200 62000000B 1.234s ClamAV/1.4.6")


@pytest.mark.parametrize(
    ("asked", "fields", "there", "not_there"),
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
            {"is_passed_through": True, "result": Result.PASSED},
            "GET feeds.example.com/... ",
            "secret",
            id="a path of another site",
        ),
        pytest.param(request(), {}, "ClamAV/1.4.6", "UUID", id="trap 26: not the machine's id"),
        pytest.param(request(path="/" + "x" * 5000), {}, "xxx", "x" * 300, id="a long path"),
        pytest.param(request(agent="x" * 5000), {}, "xxx", "x" * 300, id="a long User-Agent"),
    ],
)
def test_what_is_in_it(
    caplog: pytest.LogCaptureFixture,
    asked: http.Request,
    fields: dict[str, Any],
    there: str,
    not_there: str | None,
) -> None:
    text = line(caplog, asked, **fields)
    assert there in text
    assert not_there is None or not_there not in text


def test_connect_is_logged_by_its_target(caplog: pytest.LogCaptureFixture) -> None:
    asked = request("CONNECT", "")
    asked.host, asked.port = "database.clamav.net", 443
    assert "CONNECT database.clamav.net:443 " in line(caplog, asked)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=30), st.binary(max_size=30), st.text(max_size=30))
def test_it_is_always_one_printable_line(
    caplog: pytest.LogCaptureFixture, path: bytes, agent: bytes, error: str
) -> None:
    asked = request()
    asked.data.path = b"/" + path
    asked.headers.fields = ((b"User-Agent", agent),)
    text = line(caplog, asked, error=error)
    assert text.isprintable()
    assert text.isascii()
