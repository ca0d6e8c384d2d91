"""Clients in DNS mode: they know the version that they want before they ask the proxy."""

from __future__ import annotations

import pytest

from tests.support import faults
from tests.support.dns_server import PRIMARY, Mode
from tests.support.freshclam import FAILED, OK
from tests.support.gateway import Way
from tests.support.site import Break, Site, answers, lacks

EXTRA = "test.cvd.clamav.net"


@pytest.mark.parametrize("way", list(Way))
def test_each_way(site: Site, way: Way) -> None:
    """F1, F1b, F2: a new client, a current one, one that is two behind."""
    site.publish(6)
    for local, bodies in ((None, ["W"]), (6, []), (4, ["D5", "D6"])):
        site.origin.forget()
        outcome = site.client(f"local-{local}", way, local=local, use_dns=True).run()
        assert (outcome.code, outcome.version) == (OK, 6), outcome.output + site.gateway.log
        # A probe of the proxy's own is cheap, signatures come by themselves; the bodies are asked for once.
        asked = [name for name in site.origin.trace.split() if name != "P" and not name.endswith(".sign")]
        assert asked == bodies


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(PRIMARY, Mode.STALE, id="F3"),
        pytest.param(EXTRA, Mode.STALE, id="F4"),
        pytest.param(EXTRA, Mode.NXDOMAIN, id="F5"),
        pytest.param(PRIMARY, Mode.SHORT, id="F16"),
        pytest.param(PRIMARY, Mode.GARBAGE, id="garbage"),
        pytest.param(PRIMARY, Mode.SERVFAIL, id="servfail"),
        pytest.param(PRIMARY, Mode.SILENT, id="silent"),
    ],
)
def test_dns_trouble_for_client_and_proxy(site: Site, name: str, mode: Mode) -> None:
    """Both fall back to the header of the CVD."""
    site.publish(6)
    site.dns.modes[name] = mode
    outcome = site.client(local=5, use_dns=True, resolver_timeout=1).run()
    assert (outcome.code, outcome.version) == (OK, 6), outcome.output + site.gateway.log


@pytest.mark.parametrize(
    ("local", "published", "broken", "version"),
    [
        pytest.param(5, 6, None, 6, id="F6"),
        pytest.param(None, 6, None, 6, id="F7"),
        pytest.param(5, 5, None, 5, id="F9"),
        pytest.param(5, 6, lacks("test-6.cdiff"), 6, id="F9_current"),
        pytest.param(3, 6, answers("D4", faults.status(429)), 6, id="F15_429"),
    ],
)
def test_dns_ahead_of_the_cdn(
    site: Site, local: int | None, published: int, broken: Break | None, version: int
) -> None:
    """DNS says 7; the CDN has 6 or 5."""
    site.publish(published)
    site.dns.versions["test"] = 7
    if broken is not None:
        broken(site.origin)
    outcome = site.client(local=local, use_dns=True).run()
    assert (outcome.code, outcome.version, outcome.cooling) == (OK, version, False), (
        outcome.output + site.gateway.log
    )
    assert site.origin.count("W") <= 1
    assert site.origin.count("D7") <= 1


def test_debian_layout_without_scripted_updates(site: Site) -> None:
    """F14: a mirror named twice, five attempts; the CDN's CVD is one behind. Alone it costs 10 downloads."""
    site.publish(5, advertised=6)
    client = site.client(use_dns=True, scripted=False, attempts=5)
    client.mirrors *= 2
    outcome = client.run()
    assert (outcome.code, outcome.version) == (OK, 5), outcome.output + site.gateway.log
    assert site.origin.count("W") == 1


def test_everything_fails_debian_layout(site: Site) -> None:
    """F15: the retries of a client are not passed on to a CDN that is in trouble."""
    site.publish(6)
    site.origin.rule("*", faults.status(503))
    client = site.client(use_dns=True, local=3, attempts=1)
    client.mirrors *= 2
    outcome = client.run()
    assert (outcome.code, outcome.version, outcome.cooling) == (FAILED, 3, False), outcome.output
    asked = site.gateway.stats()["requests"]
    assert len(site.origin.requests()) <= asked, site.origin.trace


@pytest.mark.parametrize("code", [404, 429, 403], ids=["F10", "F12", "F13"])
def test_standard_databases_refused(site: Site, code: int) -> None:
    """A 403 would end a daemon, a 429 would silence it for hours: an error that is retried comes instead."""
    site.origin.rule("*", faults.status(code))
    outcome = site.client(use_dns=True, database=None, attempts=1).run()
    assert (outcome.code, outcome.cooling, outcome.databases) == (FAILED, False, {}), outcome.output
    assert site.origin.count("/daily.cvd") <= 2


def test_new_release_is_seen_within_refresh(site: Site) -> None:
    site.publish(5)
    client = site.client(use_dns=True)
    assert client.run().version == 5
    site.publish(6)
    outcome = client.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cld": 6}), outcome.output
    assert site.origin.trace.count("W") == 1
