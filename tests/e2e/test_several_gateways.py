"""Several gateways with one object store: together, they cost the origin what one costs.

The same scenarios with thousands of clients are a benchmark: `python -m benchmarks.gateways`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from benchmarks.gateways.scenarios import SCENARIOS
from benchmarks.gateways.site import SMALL
from tests.support.dns_server import FakeDns
from tests.support.faketime import LIBRARY
from tests.support.freshclam import OK, Freshclam
from tests.support.gateway import PATIENT_ADDON, Gateway, Way
from tests.support.object_store import ObjectStore
from tests.support.origin import OriginServer
from tests.support.programs import give_up
from tests.support.site import client_fields, eventually, publish, settings_for

pytestmark = pytest.mark.timeout(240)
"""For a machine that does a lot besides; a scenario takes about half a minute."""


@pytest.mark.parametrize("name", ["killed", "both", "fresh", "clocks"])
def test_scenario(name: str, tmp_path: Path) -> None:
    if name == "clocks" and LIBRARY is None:
        give_up("libfaketime is not installed")
    figures = SCENARIOS[name](tmp_path, SMALL)
    assert figures.claims
    assert not figures.missed, "\n".join(figures.lines())


@pytest.fixture
def gateways(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, object_store: ObjectStore
) -> Iterator[list[Gateway]]:
    """Three gateways with the usual settings and empty caches."""
    environment = {"CLAMPROXY_FLEET_STORE": object_store.url, **object_store.environment}
    started = [
        Gateway(
            tmp_path / f"gateway-{number}",
            settings_for(origin, dns),
            script=PATIENT_ADDON,
            environment=environment,
        )
        for number in range(3)
    ]
    try:
        with ThreadPoolExecutor() as threads:
            list(threads.map(Gateway.start, started))
        yield started
    finally:
        for gateway in started:
            gateway.kill()


def asked(origin: OriginServer) -> Counter[str]:
    """How often the origin was asked for each thing."""
    return Counter(f"{seen.short_name} of {seen.path}" for seen in origin.requests())


def have_all(machines: list[Freshclam], version: int) -> bool:
    """Run all at once; returns whether each has reached a version. None may fail."""
    with ThreadPoolExecutor() as threads:
        outcomes = list(threads.map(Freshclam.run, machines))
    for outcome in outcomes:
        assert outcome.code == OK, outcome.output
    return all(outcome.version == version for outcome in outcomes)


def test_real_freshclams(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, gateways: list[Gateway], object_store: ObjectStore
) -> None:
    """A first download, a release, and another one while the store is down, for three freshclams."""
    machines = [
        Freshclam(directory=tmp_path / f"machine-{number}", **client_fields(Way.CONNECT_HTTP, gateway))
        for number, gateway in enumerate(gateways)
    ]
    steps: list[tuple[int, Callable[[], object] | None, int]] = [
        (4, None, 1),
        (5, None, 1),
        (6, object_store.go_down, len(gateways)),
    ]
    for version, breaks, most in steps:
        if breaks is not None:
            breaks()
        origin.forget()
        publish(origin, version)
        dns.versions["test"] = version
        # They have no DNS: until a gateway has looked at it again, they are told the version before.
        assert eventually(partial(have_all, machines, version)), [gateway.log for gateway in gateways]
        counts = asked(origin)
        assert counts
        assert max(counts.values()) <= most, (version, counts)
