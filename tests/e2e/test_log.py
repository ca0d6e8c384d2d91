"""The log on stdout, as text and as JSON, and without anybody who reads it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import ADDON, END_LIMIT, ROOT, START_LIMIT, Gateway, Way
from tests.support.raw_http import exchange
from tests.support.scenes import whole
from tests.support.site import Site, eventually, signed

from .conftest import MakeSite

REQUEST = {
    "time",
    "level",
    "event",
    "client",
    "method",
    "host",
    "path",
    "database",
    "version",
    "result",
    "status",
    "bytes",
    "duration",
    "agent",
    "uuid",
    "error",
}
FIRST = "Loading script"


def entries(gateway: Gateway) -> list[dict[str, Any]]:
    """All whole lines but mitmproxy's first, which it prints before the addon is there."""
    whole_lines = gateway.log.rpartition("\n")[0].splitlines()
    return [json.loads(line) for line in whole_lines if FIRST not in line]


def requests(gateway: Gateway) -> list[dict[str, Any]]:
    return [entry for entry in entries(gateway) if entry.get("event") == "request"]


JSON = {"format": "json"}


class TestJson:
    """One object a line."""

    def test_requests(self, make_site: MakeSite) -> None:
        site = make_site(log=JSON)
        site.publish(6)
        for way in (Way.CONNECT_HTTP, Way.CONNECT_HTTPS, Way.ABSOLUTE, Way.REVERSE):
            assert site.gateway.ask("/test.cvd?secret=1", way).body == signed("test-6.cvd")
        site.gateway.ask("/test-6.cdiff")
        assert eventually(lambda: len(requests(site.gateway)) >= 5), site.gateway.log
        for entry in requests(site.gateway):
            assert set(entry) == REQUEST
            assert (entry["client"], entry["method"], entry["status"]) == ("127.0.0.1", "GET", 200)
            assert (entry["database"], entry["version"], entry["agent"]) == ("test", 6, "ClamAV/1.4.6")
            assert entry["uuid"] == "0738ec71-8d58-4bdf-8241-6ad688adc4fd"
            assert entry["error"] is None
        assert "secret" not in site.gateway.log
        sizes = [entry["bytes"] for entry in requests(site.gateway)]
        assert sizes == [len(signed("test-6.cvd"))] * 4 + [len(signed("test-6.cdiff"))]

    def test_everything_else_once(self, make_site: MakeSite) -> None:
        site = make_site(log=JSON)
        site.origin.refuse()
        site.gateway.ask("/test.cvd")
        site.gateway.ask("/", Way.ABSOLUTE, host="www.example.com")
        site.gateway.stop()
        others = [entry for entry in entries(site.gateway) if "event" not in entry]
        assert others
        for entry in others:
            assert set(entry) - {"exception", "client"} == {"time", "level", "logger", "message"}
        messages = [entry["message"] for entry in others]
        assert sum("listening at" in message for message in messages) == 2  # a line for each mode

    def test_nothing_a_client_sends_makes_a_line(self, make_site: MakeSite) -> None:
        site = make_site(log=JSON)
        for path in (
            b"/%0a%7b%7d.cvd",
            b"/a\tb.cvd",
            b"/\x1b[2Jtest.cvd",
            b"/test.cvd\x85\xff",
            b"/a\rb.cvd",
        ):
            head = b"GET " + path + b" HTTP/1.1\r\nHost: database.clamav.net\r\nConnection: close\r\n"
            for agent in (b"x\xc2\x85\xff", b"x\x1b[2J\x7f"):
                exchange(site.gateway.reverse_port, head + b"User-Agent: " + agent + b"\r\n\r\n")
        site.gateway.stop()  # all is written then
        assert requests(site.gateway)
        for line in site.gateway.log.splitlines():
            assert line.isascii(), line
            assert FIRST in line or json.loads(line)


LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (debug|info|warning|error) \S.*"


def test_text(make_site: MakeSite) -> None:
    """Each line once, with time and level, mitmproxy's own too."""
    site = make_site(log={"format": "text"})
    site.publish(6)
    site.gateway.ask("/test.cvd")
    assert eventually(lambda: "miss 200" in site.gateway.log)
    lines = [line for line in site.gateway.log.splitlines() if FIRST not in line]
    for line in lines:
        assert re.fullmatch(LINE, line), line
    assert sum("listening at" in line for line in lines) == 2
    (line,) = [line for line in lines if "/test.cvd" in line]
    assert line.endswith("ClamAV/1.4.6")


def test_the_log_says_why(make_site: MakeSite) -> None:
    """What the client is told in its answer; nothing for what freshclam asks for in its usual course."""
    site = make_site(log=JSON)
    site.publish(5)
    site.gateway.ask("/test.cvd")
    site.gateway.ask("/test.cld")  # freshclam's first question; there is none
    site.dns.versions["test"] = 6
    site.origin.refuse()
    told = [
        site.gateway.ask("/test-6.cdiff"),
        site.gateway.ask("/no-such-file"),
        site.gateway.ask("/test.cvd", method="DELETE"),
        site.gateway.ask("/", Way.ABSOLUTE, host="www.example.com"),
    ]
    assert eventually(lambda: len(requests(site.gateway)) >= 6), site.gateway.log
    usual, others = requests(site.gateway)[:2], requests(site.gateway)[2:]
    assert [entry["error"] for entry in usual] == [None, None]
    assert [entry["status"] for entry in others] == [503, 404, 405, 502]
    for entry, answer in zip(others, told, strict=True):
        assert entry["error"]
        assert answer.body.decode() == f"clamproxy: {entry['error']}\n"


def test_the_log_says_why_something_older_is_served(make_site: MakeSite) -> None:
    site = make_site(log={"format": "text"}, delta={"enabled": False}, versions={"refresh": "1ms"})
    site.publish(5)
    site.gateway.ask("/test.cvd")
    site.dns.versions["test"] = 6
    site.origin.refuse()

    def is_stale() -> bool:
        """DNS may tell of the new version a moment after a client has asked."""
        assert site.gateway.ask("/test.cvd").status == 200
        return "stale 200" in site.gateway.log

    assert eventually(is_stale), site.gateway.log
    line = next(line for line in site.gateway.log.splitlines() if "stale 200" in line)
    assert re.search(r" info \S+ GET /test\.cvd 5 stale 200 \d+B \S+ ClamAV/1\.4\.6 \(the origin .+\)$", line)


class Piped:
    """A proxy whose stdout is a small pipe, as in ``… | head``. Its reader stops after the start."""

    def __init__(self, site: Site) -> None:
        mitmdump = Path(sys.executable).with_name("mitmdump")
        gateway = site.gateway
        command = [str(mitmdump), "-s", ADDON, "--mode", f"regular@127.0.0.1:{gateway.port}"]
        command += ["--set", f"clamproxy_config={gateway.config}"]
        command += ["--set", f"confdir={gateway.directory / 'conf'}"]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("CLAMPROXY_")}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
        self.lines: list[str] = []
        self._listens = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode())
            if "listening at" in self.lines[-1]:
                self._listens.set()
                break

    def wait(self) -> None:
        assert self._listens.wait(START_LIMIT), self.lines

    def leave(self) -> None:
        """Let the reader go away."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def read_on(self) -> None:
        """Let the reader go on, to the end."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def end(self) -> tuple[int, str]:
        """Stop it; returns its exit code and what it said on stderr."""
        self.process.terminate()
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            errors = stderr.read().decode()
        return self.process.wait(END_LIMIT), errors


@pytest.fixture(params=["text", "json"])
def piped(request: pytest.FixtureRequest, make_site: MakeSite) -> Iterator[tuple[Site, Piped]]:
    site = make_site(log={"format": request.param})
    site.gateway.stop()  # its ports and files are free now
    proxy = Piped(site)
    yield site, proxy
    if proxy.process.poll() is None:
        proxy.process.kill()
        proxy.process.wait(30)


def test_a_reader_that_leaves(piped: tuple[Site, Piped]) -> None:
    """The proxy goes on serving, says so once, and ends as usual."""
    site, proxy = piped
    proxy.wait()
    proxy.leave()
    site.publish(6)
    for _ in range(20):
        assert whole(site.gateway).body == signed("test-6.cvd")
    code, errors = proxy.end()
    assert code == 0, errors
    assert errors.count("nobody reads the standard output any more") == 1
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def test_a_reader_that_stops_for_a_while(piped: tuple[Site, Piped]) -> None:
    """The proxy goes on serving, and the reader gets all lines when it goes on. ``tee`` to a hung disk."""
    site, proxy = piped
    proxy.wait()
    site.publish(6)
    for _ in range(100):
        assert whole(site.gateway).body == signed("test-6.cvd")
    assert sum("test.cvd" in line for line in proxy.lines) == 0
    proxy.read_on()
    assert eventually(lambda: sum("/test.cvd" in line for line in proxy.lines) == 100)
    code, errors = proxy.end()
    assert (code, errors) == (0, "")
