"""``clamproxy stats`` and the log: exact figures, from a running proxy and a stopped one."""

from __future__ import annotations

from tests.support import faults
from tests.support.scenes import ROOMY, hold
from tests.support.site import Site, eventually, signed

from .conftest import MakeSite

KEYS = {
    "requests",
    "hits",
    "misses",
    "collapsed",
    "stale",
    "negative",
    "errors",
    "bytes_served",
    "upstream_requests",
    "upstream_bytes",
    "objects",
    "cache_bytes",
    "databases",
    "cooldown_until",
}


def test_figures(make_site: MakeSite) -> None:
    site = make_site(serving={"prefetch": "none"})
    site.publish(6)
    zero = site.gateway.stats()
    assert set(zero) >= KEYS
    assert {zero[name] for name in ("requests", "hits", "misses", "errors", "bytes_served", "objects")} == {0}
    for path in (
        "/test.cvd",
        "/test.cvd",
        "/test-6.cdiff",
        "/test-6.cdiff",
        "/test-6.cdiff",
        "/test-7.cdiff",
        "/test-7.cdiff",
    ):
        site.gateway.ask(path)
    site.gateway.ask("/test.cvd", range="bytes=0-511")
    figures = site.gateway.stats()
    cvd, cdiff = len(signed("test-6.cvd")), len(signed("test-6.cdiff"))
    assert (figures["requests"], figures["hits"], figures["errors"]) == (8, 4, 0)
    assert figures["misses"] + figures["negative"] == 4
    assert figures["negative"] >= 1
    assert (figures["collapsed"], figures["stale"]) == (0, 0)
    assert (figures["objects"], figures["cache_bytes"]) == (2, cvd + cdiff)
    assert 2 * cvd + 3 * cdiff + 512 <= figures["bytes_served"] <= 2 * cvd + 3 * cdiff + 512 + 2000
    assert figures["upstream_requests"] == len(site.origin.requests())
    assert figures["upstream_bytes"] >= cvd + cdiff
    assert set(figures["databases"]) == {"test"}
    assert not figures["cooldown_until"]


def test_versions(site: Site) -> None:
    site.publish(6)
    site.gateway.ask("/test.cvd")
    versions = site.gateway.stats()["databases"]["test"]
    assert versions == {"advertised": 6, "cached": 6, "reached": 6}


def test_versions_beyond_the_cvd(make_site: MakeSite) -> None:
    site = make_site(delta=ROOMY)
    hold(site, 5, 6)
    expected = {"advertised": 6, "cached": 5, "reached": 6}
    # What DNS has said is written a moment after the patch was served.
    assert eventually(lambda: site.gateway.stats()["databases"]["test"] == expected), site.gateway.stats()


def test_kept_when_stopped_and_across_restarts(make_site: MakeSite) -> None:
    site = make_site(serving={"prefetch": "none"})
    site.publish(6)
    for _ in range(3):
        site.gateway.ask("/test.cvd")
    before = site.gateway.stats()
    site.gateway.stop()
    assert site.gateway.stats() == before
    site.gateway.start()
    site.gateway.ask("/test.cvd")
    after = site.gateway.stats()
    assert (after["requests"], after["hits"]) == (before["requests"] + 1, before["hits"] + 1)


def test_stale_answers_and_errors_are_counted(site: Site) -> None:
    site.warm(5)
    site.publish(6)
    site.origin.rule("*", faults.status(429, retry_after="3600"))
    before = site.gateway.stats()

    def counted() -> bool:
        assert site.gateway.ask("/test.cvd").body == signed("test-5.cvd")
        return bool(site.gateway.stats()["stale"] > before["stale"])

    assert eventually(counted)
    assert site.gateway.ask("/test-6.cdiff").status == 503
    after = site.gateway.stats()
    assert after["errors"] == before["errors"] + 1
    assert after["cooldown_until"]


def test_table(site: Site) -> None:
    """Without ``--json`` a table for people."""
    site.publish(6)
    site.gateway.ask("/test.cvd")
    result = site.gateway.tool("stats")
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("requests", "test", "advertised", "cached", "reached"):
        assert word in result.stdout


def test_log_line_for_each_request(site: Site) -> None:
    """Time, client, what, version, result, bytes, duration."""
    site.publish(6)
    for path in ("/test-6.cdiff", "/test-6.cdiff", "/test-9.cdiff", "/test-9.cdiff"):
        site.gateway.ask(path)
    lines = site.gateway.log.splitlines()
    patches = [line for line in lines if "test-6.cdiff" in line and "127.0.0.1" in line]
    assert any("miss" in line for line in patches), site.gateway.log
    assert any("hit" in line and "973" in line for line in patches), site.gateway.log
    assert any("test-9.cdiff" in line and "negative" in line for line in lines), site.gateway.log
