"""Every way in that clients use leads to one cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.freshclam import OK
from tests.support.gateway import Way
from tests.support.site import Site, SitePool, eventually, origin_certificates, signed

from .conftest import MakeSite

WAYS = list(Way)


@pytest.mark.parametrize("way", WAYS)
def test_install_and_update(site: Site, way: Way) -> None:
    site.publish(5)
    client = site.client(way=way)
    outcome = client.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 5}), outcome.output + site.gateway.log
    site.publish(6)
    site.origin.forget()
    eventually(lambda: client.run().version == 6)
    assert client.run().databases == {"test.cld": 6}, site.gateway.log
    assert (site.origin.count("D6"), site.origin.count("W")) == (1, 0)


def test_all_ways_share_the_cache(site: Site) -> None:
    """Eight clients, four ways: the CDN gives each file once."""
    site.publish(6)
    for way in WAYS:
        fresh = site.client(f"fresh-{way}", way).run()
        behind = site.client(f"behind-{way}", way, local=4).run()
        assert (fresh.version, behind.version) == (6, 6), fresh.output + behind.output
    trace = [name for name in site.origin.trace.split() if not name.endswith(".sign")]
    assert sorted(set(trace) - {"P"}) == ["D5", "D6", "W"]
    assert len(trace) - trace.count("P") == 3
    assert trace.count("P") <= 2


@pytest.fixture(scope="module")
def offline(sites: SitePool) -> Iterator[Site]:
    """A site with version 6 in its cache and its origin gone."""
    site = sites.take()
    site.warm(6)
    site.origin.refuse()
    yield site
    site.close()


@pytest.mark.parametrize("use_dns", [False, True], ids=["http", "dns"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("local", [None, 5, 6], ids=["fresh", "behind", "current"])
def test_origin_down(offline: Site, tmp_path: Path, way: Way, use_dns: bool, local: int | None) -> None:
    """CONNECT is answered without the origin, and the cache serves."""
    outcome = offline.client(str(tmp_path / "client"), way, local=local, use_dns=use_dns).run()
    assert (outcome.code, outcome.version) == (OK, 6), outcome.output + offline.gateway.log


def test_https_origin_with_a_private_authority(make_site: MakeSite, tmp_path: Path) -> None:
    tls, bundle = origin_certificates(tmp_path / "tls")
    site = make_site(tls=tls, upstream={"ca_bundle": str(bundle)})
    site.publish(6)
    outcome = site.client().run()
    assert (outcome.code, outcome.version) == (OK, 6), outcome.output + site.gateway.log


def test_versions_without_dns(make_site: MakeSite) -> None:
    """``versions.dns: false``: the origin's header says what is current."""
    site = make_site(versions={"dns": False})
    site.publish(5)
    client = site.client()
    assert client.run().version == 5
    site.publish(6)
    assert eventually(lambda: client.run().version == 6), site.gateway.log
    assert site.dns.queries == []


def test_chain_of_gateways(make_site: MakeSite) -> None:
    """A gateway whose upstream is another one's reverse port."""
    parent = make_site()
    parent.publish(6)
    child = make_site(
        upstream={"url": f"http://localhost:{parent.gateway.reverse_port}"},
        versions={"nameservers": [parent.dns.nameserver], "refresh": "1s"},
    )
    outcomes = [child.client().run(), parent.client().run()]
    assert [outcome.version for outcome in outcomes] == [6, 6], child.gateway.log + parent.gateway.log
    assert parent.origin.count("W") == 1


def test_other_clients_get_the_same_bytes(site: Site) -> None:
    """The User-Agent goes upstream and is no part of the key."""
    site.publish(6)
    agents = ["ClamAV/0.103.12 (OS: linux-gnu, ARCH: x86_64, CPU: x86_64)", "CVDUPDATE/1.2.0 (0738ec71)"]
    answers = [site.gateway.ask("/test.cvd", way, user_agent=agent) for agent in agents for way in WAYS]
    assert {answer.body for answer in answers} == {signed("test-6.cvd")}
    assert site.origin.count("W") == 1
    assert site.origin.requests("W")[0].headers["user-agent"] == agents[0]


@pytest.mark.parametrize("private", [False, True], ids=["DatabaseMirror", "PrivateMirror"])
def test_the_proxy_port_is_a_mirror(site: Site, private: bool) -> None:
    """DatabaseMirror or PrivateMirror http://gateway:8080, without any proxy setting."""
    site.publish(6)
    url = f"http://127.0.0.1:{site.gateway.port}"
    outcome = site.client(way=Way.REVERSE, mirrors=[url], private=private).run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 6}), outcome.output + site.gateway.log
