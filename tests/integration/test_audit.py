"""`tools/audit.py` against a server that speaks OSV's API: https://google.github.io/osv.dev/post-v1-query/."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.gateway import free_ports

ROOT = Path(__file__).parents[2]
VULNERABLE = "pyyaml"
ADVISORY = {
    "id": "PYSEC-2026-1",
    "summary": "It is only a test",
    "affected": [
        {
            "package": {"name": VULNERABLE, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.1"}]}],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    """Knows a vulnerability of one package, if `known`; None: it has an error."""

    known: bool | None

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = [ADVISORY] if self.known and asked["package"]["name"] == VULNERABLE else []
        body = json.dumps({"vulns": found} if found else {}).encode()
        self.send_response(500 if self.known is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def advisories(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of the server."""
    handler = type("Known", (Advisories,), {"known": request.param})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def audit(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/audit.py", "-s", "osv", "--osv-url", url, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("advisories", "code", "told"),
    [(False, 0, " 0 unknown, 0 vulnerabilities"), (True, 1, "PYSEC-2026-1, mended in 999.1")],
    indirect=["advisories"],
    ids=["none", "one"],
)
def test_a_known_vulnerability_is_named(advisories: str, code: int, told: str) -> None:
    done = audit(advisories)
    assert told in done.stdout, done.stderr
    assert done.returncode == code


@pytest.mark.parametrize(
    ("advisories", "options", "told"),
    [(None, (), "ServiceError"), (False, ("--no-such-option",), "unrecognized arguments: --no-such-option")],
    indirect=["advisories"],
    ids=["an error of the server", "a wrong option"],
)
def test_a_failure_is_not_silence(advisories: str, options: tuple[str, ...], told: str) -> None:
    """CI goes on where no server can be reached, and nowhere else."""
    done = audit(advisories, *options)
    assert told in done.stderr
    assert done.returncode == 2


def test_nobody_answers_is_not_an_all_clear() -> None:
    done = audit(f"http://127.0.0.1:{free_ports(1)[0]}")
    assert done.returncode == 75
    assert "Connection refused" in done.stderr
