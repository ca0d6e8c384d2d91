"""The worst of a Byzantine origin's tricks, from outside: a real gateway, one trick after the other.

`test_byzantine_origin.py` tries thousands of combinations within one process. Here it is seen that the
real one behaves the same, and that its memory stays where it was. And no certificate but the right one is
trusted.
"""

from __future__ import annotations

import datetime
import random
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from clamproxy.formats.header import CvdHeader
from tests.support.byzantine import BEFORE, CONTENTS, ENDINGS, FRAMINGS, RANGES, ByzantineOrigin, Trick
from tests.support.byzantine_tricks import FIELDS
from tests.support.dns_server import FakeDns
from tests.support.gateway import Gateway
from tests.support.processes import peak_of
from tests.support.releases import Releases
from tests.support.site import eventually
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

RELEASES = Releases(filler=100_000)
OLD, NEW = 2, 3
MOST_MEMORY = 150 * 1024
"""KiB by which the gateway may grow."""
TRICKS = [
    *(Trick(content=content) for content in CONTENTS),
    *(Trick(framing=framing) for framing in FRAMINGS),
    *(Trick(range=how) for how in RANGES),
    *(Trick(before=before) for before in BEFORE),
    *(Trick(ending=ending) for ending in ENDINGS),
    *(Trick(fields=fields) for fields in FIELDS),
    *(Trick(status=status) for status in (206, 302, 304, 403, 404, 407, 416, 429, 503, 999)),
]


@pytest.fixture
def origin() -> Iterator[ByzantineOrigin]:
    with ByzantineOrigin() as origin:
        yield origin


@pytest.fixture
def dns() -> Iterator[FakeDns]:
    with FakeDns() as dns:
        yield dns


def make_gateway(directory: Path, origin: ByzantineOrigin, dns: FakeDns, **upstream: object) -> Gateway:
    trusted = RELEASES.trusted(directory / "keys")
    settings = {
        "upstream": {"url": origin.url, "connect_timeout": 1, "read_timeout": 1, **upstream},
        "versions": {"nameservers": [dns.nameserver], "refresh": 1},
    }
    return Gateway(directory, settings, **trusted)


def is_served(gateway: Gateway) -> bool:
    """Whether the gateway gets the file; on a busy machine, an honest origin may be slow for once."""
    return eventually(lambda: gateway.ask("/daily.cvd").status == 200)


def meet(gateway: Gateway) -> int:
    """What clients ask; returns how many answers were checked."""
    right = {RELEASES.cvd(OLD), RELEASES.cvd(NEW)}
    paths = ("/daily.cvd", f"/daily-{NEW}.cdiff", f"/daily-{NEW}.cdiff.sign", "/daily.cvd")
    for path in paths:
        for fields in ({}, {"range": "bytes=0-511"}):
            answer = gateway.ask(path, extra=fields)
            assert answer.status in {200, 206, 404, 416, 503}, answer
            if not answer.complete or answer.status not in (200, 206):
                continue
            if path == "/daily.cvd":
                assert CvdHeader.parse(answer.body).version >= OLD
                assert answer.status == 206 or answer.body in right
            elif path.endswith(".cdiff") and answer.status == 200:
                assert answer.body in (RELEASES.cdiff(NEW), b"")
    return len(paths) * 2


def test_tricks_from_outside(tmp_path: Path, origin: ByzantineOrigin, dns: FakeDns, figures: Figures) -> None:
    answers = grown = 0
    chosen = random.Random(SEED).sample(TRICKS, rounds(usual=2, full=len(TRICKS)))
    for number, trick in enumerate(chosen):
        origin.heal()
        RELEASES.publish(origin, OLD)
        dns.versions["daily"] = OLD
        with make_gateway(tmp_path / str(number), origin, dns) as gateway:
            assert is_served(gateway)
            assert gateway.ask("/daily.cvd").body == RELEASES.cvd(OLD)
            before = peak_of(gateway.pid)
            RELEASES.publish(origin, NEW)
            dns.versions["daily"] = NEW
            origin.tricks = [trick]
            answers += meet(gateway)
            grown = max(grown, peak_of(gateway.pid) - before)
            assert "Traceback" not in gateway.log, trick
        assert grown < MOST_MEMORY, trick
    figures("Byzantine origin from outside", tricks=len(chosen), answers=answers, most_memory_kib=grown)


def certificate(name: str) -> tuple[ssl.SSLContext, trustme.CA]:
    """A server's certificate, and the authority that the gateway trusts."""
    authority, stranger = trustme.CA(), trustme.CA()
    now = datetime.datetime.now(datetime.UTC)
    issuer = stranger if name == "of a stranger" else authority
    host = "elsewhere.example" if name == "of another host" else "localhost"
    ends = now - datetime.timedelta(days=1) if name == "expired" else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(host, not_before=now - datetime.timedelta(days=9), not_after=ends).configure_cert(
        context
    )
    return context, authority


@pytest.mark.parametrize("name", ["of a stranger", "of another host", "expired", "right"])
def test_only_the_right_certificate_is_trusted(name: str, tmp_path: Path, dns: FakeDns) -> None:
    context, authority = certificate(name)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    with ByzantineOrigin(context) as origin:
        RELEASES.publish(origin, OLD)
        dns.versions["daily"] = OLD
        with make_gateway(tmp_path / "gateway", origin, dns, ca_bundle=str(bundle)) as gateway:
            if name == "right":
                assert is_served(gateway)
            else:
                assert gateway.ask("/daily.cvd").status == 503
        assert bool(origin.requests()) == (name == "right")
