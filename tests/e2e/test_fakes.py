"""freshclam straight at the fake CDN does what docs/protocol.md 9.2 measured at the real one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.data import TESTDATA
from tests.support.dns_server import PRIMARY, FakeDns, Mode
from tests.support.freshclam import Freshclam
from tests.support.origin import OriginServer
from tests.support.site import Break, answers, build_time, corrupts, lacks, publish, resolver_of, signed

# Row, local version, what is wrong at the origin, requests, exit code, version at the end, cool-down.
ROWS: list[tuple[str, int | None, Break | None, str, int, int | None, bool]] = [
    ("A1", None, None, "P W", 0, 6, False),
    ("B1", 5, None, "P D6", 0, 6, False),
    ("B2", 2, None, "P D3 D4 D5 D6", 0, 6, False),
    ("B3", 5, lacks("test-6.cdiff"), "P D6 D6", 0, 5, False),
    ("B4", 3, lacks("test-6.cdiff"), "P D4 D5 D6 D6", 0, 5, False),
    ("B5", 3, lacks("test-4.cdiff"), "P D4 D4 W", 0, 6, False),
    ("B7", 5, answers("D6", faults.empty()), "P D6 W", 0, 6, False),
    ("B8", 3, corrupts("D5", "test-5.cdiff"), "P D4 D5 W", 0, 6, False),
    ("B9", 5, answers("D6", faults.short(500)), "P D6 D6", 0, 5, False),
    ("B10", 5, answers("D6", faults.short_without_length(500)), "P D6 W", 0, 6, False),
    ("B11", 5, answers("D6", faults.chunked(500)), "P D6 D6", 0, 5, False),
    ("B12", 5, answers("D6", faults.html()), "P D6 W", 0, 6, False),
    ("B17", 5, answers("D6", faults.gzipped()), "P D6 W", 0, 6, False),
    ("B19", 5, answers("D6", faults.status(304, b"")), "P D6", 0, 5, False),
    ("C2_403", None, answers("W", faults.status(403)), "P W", 17, None, True),
    ("C2_429", None, answers("W", faults.status(429, retry_after="700")), "P W", 0, None, True),
    ("C3", None, answers("P", faults.Fault(ignore_range=True)), "P W", 0, 6, False),
    ("C10", None, answers("W", faults.empty()), "P W", 6, None, False),
    ("C13", None, answers("W", faults.Fault(force_status=206)), "P W", 0, 6, False),
]


def direct(tmp_path: Path, origin: OriginServer, local: int | None = None, **options: object) -> Freshclam:
    client = Freshclam(directory=tmp_path / "client", mirrors=[origin.url], **options)  # type: ignore[arg-type]
    if local is not None:
        client.install(TESTDATA / f"test-{local}.cvd")
    return client


@pytest.mark.parametrize(
    ("local", "broken", "trace", "code", "version", "cooling"),
    [pytest.param(*row[1:], id=row[0]) for row in ROWS],
)
def test_http_mode(
    tmp_path: Path,
    origin: OriginServer,
    local: int | None,
    broken: Break | None,
    trace: str,
    code: int,
    version: int | None,
    cooling: bool,
) -> None:
    publish(origin, 6)
    if broken is not None:
        broken(origin)
    outcome = direct(tmp_path, origin, local).run()
    found = (origin.trace, outcome.code, outcome.version, outcome.cooling)
    assert found == (trace, code, version, cooling), outcome.output


def test_conditional_probe_is_sent_with_the_build_time(tmp_path: Path, origin: OriginServer) -> None:
    """A3: an up-to-date client whose probe is answered with 304."""
    publish(origin, 6)
    origin.put("test.cvd", signed("test-6.cvd"), modified="Wed, 23 Jun 2021 01:34:05 GMT")
    outcome = direct(tmp_path, origin, 6).run()
    assert build_time(6) == 1624412045
    assert [seen.status for seen in origin.requests()] == [304]
    assert "up-to-date" in outcome.output


@pytest.mark.parametrize(
    ("local", "advertised", "trace", "version"),
    [
        pytest.param(None, 6, "W", 6, id="F1"),
        pytest.param(6, 6, "", 6, id="F1b"),
        pytest.param(4, 6, "D5 D6", 6, id="F2"),
        pytest.param(5, 7, "D6 D7 D7", 6, id="F6"),
        pytest.param(None, 7, "W D7 D7", 6, id="F7"),
    ],
)
def test_dns_mode(
    tmp_path: Path,
    origin: OriginServer,
    dns: FakeDns,
    local: int | None,
    advertised: int,
    trace: str,
    version: int,
) -> None:
    publish(origin, 6)
    dns.versions["test"] = advertised
    outcome = direct(tmp_path, origin, local, resolver=resolver_of(dns)).run()
    assert (origin.trace, outcome.code, outcome.version) == (trace, 0, version), outcome.output
    assert dns.count() == 1


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (PRIMARY, Mode.STALE),
        (PRIMARY, Mode.SHORT),
        (PRIMARY, Mode.GARBAGE),
        (PRIMARY, Mode.SERVFAIL),
        (PRIMARY, Mode.SILENT),
        ("test.cvd.clamav.net", Mode.STALE),
        ("test.cvd.clamav.net", Mode.NXDOMAIN),
    ],
)
def test_dns_trouble_makes_freshclam_probe(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, name: str, mode: Mode
) -> None:
    """F3, F4, F5, F16."""
    publish(origin, 6)
    dns.versions["test"] = 6
    dns.modes[name] = mode
    outcome = direct(tmp_path, origin, resolver=resolver_of(dns), resolver_timeout=1).run()
    assert (origin.trace, outcome.version) == ("P W", 6), outcome.output


def test_refused_connections_and_recovery_on_the_same_port(tmp_path: Path, origin: OriginServer) -> None:
    publish(origin, 6)
    origin.refuse()
    client = direct(tmp_path, origin, attempts=1)
    assert client.run().code == 11
    origin.accept()
    assert client.run().version == 6


def test_a_stalled_answer_keeps_the_connection_open_until_it_is_healed(origin: OriginServer) -> None:
    publish(origin, 6)
    origin.rule("W", faults.stall(5000))
    with socket.create_connection(("127.0.0.1", origin.port), timeout=10) as client:
        client.sendall(b"GET /test.cvd HTTP/1.1\r\n\r\n")
        received = b""
        while len(received.partition(b"\r\n\r\n")[2]) < 5000:
            received += client.recv(65536)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(65536)
        origin.heal()
        client.settimeout(10)
        assert client.recv(65536) == b""
    assert (origin.trace, origin.bytes_sent) == ("W", 5000)
