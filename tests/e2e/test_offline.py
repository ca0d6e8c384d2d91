"""A gateway in a closed network (``upstream.offline``): what is in its cache is all there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.freshclam import OK
from tests.support.gateway import Way
from tests.support.scenes import NEWER_AGENT, NEWEST, PROBE, ROOMY, explain, hold, members_of, shown, whole
from tests.support.site import Site, eventually, open_site, resolver_of, signed

from .conftest import MakeSite

BASE = 4
CLD = "/test.cld"
NO_DNS_OF_ITS_OWN: list[str] = []


@dataclass(frozen=True, slots=True)
class Closed:
    """A gateway that is offline, and the site where its cache was filled."""

    site: Site
    """Its origin and its DNS server are there, and must not be asked."""
    outside: Site


def filled(outside: Site) -> dict[str, Any]:
    """Stop a gateway; returns the sections of one that goes on offline with its cache."""
    outside.gateway.stop()
    return {
        "cache": {"directory": str(outside.gateway.cache)},
        "upstream": {"offline": True},
        "delta": ROOMY,
    }


def assert_alone(site: Site) -> None:
    """Nothing has left the gateway."""
    assert site.origin.trace == "", site.gateway.log
    assert site.dns.queries == NO_DNS_OF_ITS_OWN


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    """An offline gateway with version 4 and cdiffs 5 and 6 in its cache; tests do not change that."""
    directory = tmp_path_factory.mktemp("offline")
    outside = open_site(directory / "outside", delta=ROOMY)
    hold(outside, BASE)
    whole(outside.gateway, "/test-6.cdiff.sign")
    site = open_site(directory / "inside", **filled(outside))
    # What the fake servers would say, were they asked.
    site.publish(NEWEST, advertised=9)
    yield Closed(site, outside)
    site.close()
    outside.close()


class TestWithTheCacheOfAnOnlineGateway:
    """Base, cdiffs, and no way out."""

    @pytest.fixture(autouse=True)
    def _alone(self, closed: Closed) -> Iterator[None]:
        yield
        assert_alone(closed.site)

    @pytest.mark.parametrize("way", list(Way))
    @pytest.mark.parametrize("local", [None, 4, 5, 6], ids=["fresh", "base", "behind", "current"])
    def test_client(self, closed: Closed, tmp_path: Path, way: Way, local: int | None) -> None:
        site = closed.site
        outcome = site.client(str(tmp_path / "client"), way, local=local).run()
        assert (outcome.code, outcome.version, outcome.cooling) == (OK, NEWEST, False), explain(site, outcome)

    @pytest.mark.parametrize("local", [None, 5, 6], ids=["fresh", "behind", "current"])
    def test_client_with_dns(self, closed: Closed, tmp_path: Path, local: int | None) -> None:
        """The network has a DNS server of its own for its clients."""
        resolver = resolver_of(closed.outside.dns)
        outcome = closed.site.client(str(tmp_path / "client"), local=local, resolver=resolver).run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(closed.site, outcome)

    @pytest.mark.parametrize("local", [None, 3, 5])
    def test_private_mirror(self, closed: Closed, tmp_path: Path, local: int | None) -> None:
        client = closed.site.client(str(tmp_path / "client"), Way.REVERSE, private=True, local=local)
        outcome = client.run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(closed.site, outcome)
        assert "up-to-date" in client.run().output

    @pytest.mark.parametrize("local", [3, 5, 6])
    def test_no_client_goes_backwards(self, closed: Closed, tmp_path: Path, local: int) -> None:
        """Neither one that wants whole CVDs, of which the newest is not there."""
        client = closed.site.client(str(tmp_path / "client"), local=local, scripted=False, attempts=1)
        outcome = client.run()
        assert not outcome.cooling
        assert (outcome.version or 0) >= local, explain(closed.site, outcome)

    def test_header_probes(self, closed: Closed) -> None:
        gateway = closed.site.gateway
        assert [shown(gateway, "/test.cvd", way) for way in Way] == [NEWEST] * 4
        assert [shown(gateway, CLD, way) for way in Way] == [NEWEST] * 4

    def test_objects(self, closed: Closed) -> None:
        gateway = closed.site.gateway
        for name in ("test-5.cdiff", "test-6.cdiff", "test-6.cdiff.sign", f"test-{BASE}.cvd.sign"):
            assert whole(gateway, f"/{name}", user_agent=NEWER_AGENT).body == signed(name)
        assert whole(gateway).body == signed(f"test-{BASE}.cvd")
        assert members_of(whole(gateway, CLD).body) == members_of(signed("test-6.cld"))

    @pytest.mark.parametrize(
        "name", ["test-2.cdiff", "test-7.cdiff", "test-9.cdiff", "test-6.cvd.sign", "test-7.cdiff.sign"]
    )
    def test_what_is_not_there(self, closed: Closed, name: str) -> None:
        assert closed.site.gateway.ask(f"/{name}", timeout=20).status == 404

    def test_a_database_that_is_not_there(self, closed: Closed) -> None:
        for headers in ({}, {"range": PROBE}):
            assert closed.site.gateway.ask("/daily.cvd", timeout=20, extra=headers).status in (404, 503)


def test_the_newest_version_is_the_one_that_can_be_had(make_site: MakeSite) -> None:
    """Cdiff 6 is missing: the advertised version is 5, whatever DNS said before."""
    outside = make_site(delta=ROOMY)
    hold(outside, BASE, 5)
    site = make_site(**filled(outside))
    assert shown(site.gateway) == 5
    for name, local in (("fresh", None), ("base", BASE), ("current", 5), ("newer", NEWEST)):
        outcome = site.client(name, local=local).run()
        assert (outcome.code, outcome.version) == (OK, max(local or 0, 5)), explain(site, outcome)
    assert_alone(site)


def test_a_whole_cvd_alone(make_site: MakeSite) -> None:
    outside = make_site()
    outside.publish(NEWEST)
    whole(outside.gateway)
    site = make_site(**filled(outside))
    assert shown(site.gateway) == NEWEST
    outcome = site.client().run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(site, outcome)
    private = site.client("private", Way.REVERSE, private=True, local=5).run()
    assert (private.code, private.databases) == (OK, {"test.cvd": NEWEST}), explain(site, private)
    assert site.client("whole", local=5, scripted=False).run().databases == {"test.cvd": NEWEST}
    assert_alone(site)


def test_an_empty_cache(make_site: MakeSite) -> None:
    site = make_site(upstream={"offline": True})
    site.publish(NEWEST)
    for path in ("/test.cvd", CLD, "/test-6.cdiff", "/test-6.cvd.sign"):
        assert site.gateway.ask(path, timeout=20).status in (404, 503), path
    outcome = site.client(attempts=1, local=5).run()
    assert (outcome.version, outcome.cooling) == (5, False), outcome.output
    assert_alone(site)


def test_back_online(make_site: MakeSite) -> None:
    """The same cache goes on where it was."""
    outside = make_site(delta=ROOMY)
    hold(outside, BASE, 5)
    inside = make_site(**filled(outside))
    assert shown(inside.gateway) == 5
    inside.gateway.stop()
    outside.publish(NEWEST)
    outside.gateway.start()
    assert eventually(lambda: shown(outside.gateway) == NEWEST)  # DNS of before counts a moment
    outcome = outside.client().run()
    assert (outcome.code, outcome.version) == (OK, NEWEST), explain(outside, outcome)
    assert outside.origin.count("W") == 0
