"""What one process of a machine learns from DNS and the origin, the others know: nothing is asked twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.freshclam import OK
from tests.support.gateway import Gateway
from tests.support.scenes import PROBE, refreshed, whole
from tests.support.site import Site, eventually, signed

from .conftest import MakeSite

RARELY = {"versions": {"refresh": "1h"}, "serving": {"prefetch": "none"}}
"""Answers of DNS count during the whole test, and nothing is fetched that no client asks for."""


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    site = make_site(**RARELY)
    site.publish(4)
    return site


@pytest.fixture
def other(site: Site, tmp_path: Path) -> Iterator[Gateway]:
    """A second process with the cache of the first one."""
    with site.gateway.beside(tmp_path / "beside") as other:
        yield other


def test_a_herd_before_both_costs_what_it_costs_before_one(site: Site, other: Gateway) -> None:
    """Look-ups, header probes and transfers; freshclam's own probe comes first."""
    with ThreadPoolExecutor(8) as executor:
        both = [site.gateway, other] * 4
        probes = list(executor.map(lambda one: one.ask("/test.cvd", range=PROBE), both))
        answers = list(executor.map(whole, both))
    assert {probe.body for probe in probes} == {signed("test-4.cvd")[:512]}
    assert {answer.body for answer in answers} == {signed("test-4.cvd")}
    assert set(Counter(site.dns.queries).values()) == {1}, site.dns.queries
    assert site.origin.trace == "P W"


def test_what_the_origin_lacks_is_asked_for_once(site: Site, other: Gateway) -> None:
    path = "/test-9.cdiff"
    for gateway in (site.gateway, other):
        assert gateway.ask(path).status == 404
    assert site.origin.count(path) == 1


@pytest.mark.parametrize("status", [403, 429, 500])
def test_what_the_origin_refuses_is_asked_for_once(site: Site, other: Gateway, status: int) -> None:
    path = "/test-4.cdiff"
    # The first wait after a 500 would be one second.
    site.origin.rule(path, faults.status(status, retry_after="60"))
    for gateway in (site.gateway, other):
        assert gateway.ask(path).status == 503
    assert site.origin.count(path) == 1


def test_the_next_release(make_site: MakeSite, tmp_path: Path) -> None:
    """Machines of both processes get it, and one of them follows it; when that is killed, the other one."""
    site = make_site(versions={"refresh": "1s"})
    site.publish(4)
    with ExitStack() as stack:
        other = stack.enter_context(site.gateway.beside(tmp_path / "beside"))
        for gateway in (site.gateway, other):
            assert whole(gateway).body == signed("test-4.cvd")
        site.publish(5)
        assert eventually(lambda: site.origin.count("/test-5.cdiff.sign"))
        refreshed(site)
        assert (site.origin.count("/test-5.cdiff"), site.origin.count("/test-5.cdiff.sign")) == (1, 1)
        site.gateway.kill()
        site.publish(6)
        assert eventually(lambda: site.origin.count("/test-6.cdiff.sign")), "another one takes over"
        client = site.client("late", local=4, proxy=("127.0.0.1", other.port)).run()
        assert (client.code, client.version) == (OK, 6)
        patches = [seen.path for seen in site.origin.requests() if "cdiff" in seen.path]
        assert len(patches) == len(set(patches)), "each one is asked for once"
