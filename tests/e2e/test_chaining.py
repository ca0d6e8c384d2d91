"""Gateways in a chain: what the child needs costs the parent's origin one request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

import pytest

from tests.support import faults
from tests.support.fake_gateway import answer as fake_answer
from tests.support.fake_gateway import gateways
from tests.support.freshclam import OK
from tests.support.gateway import CDN, Way
from tests.support.raw import Relay
from tests.support.scenes import (
    NEWEST,
    PROBE,
    ROOMY,
    advance,
    explain,
    hold,
    members_of,
    settle,
    shown,
    version_of,
    whole,
)
from tests.support.site import LOCALHOST, Site, build_time, eventually, http_date, signed

from .conftest import MakeSite

BASE = 2
OLD_VERSION = "ClamAV/0.103.2"
OLD_CLIENT = f"{OLD_VERSION} (OS: linux-gnu, ARCH: x86_64, CPU: x86_64)"
STORM = 20
"""Requests that a loop may cost at most, with all retries."""


class Link(StrEnum):
    """How a child reaches its parent."""

    PORT = "port"
    REVERSE = "reverse"
    PROXY = "proxy"


def child_of(parent: Site, link: Link, make_site: MakeSite) -> Site:
    """A site whose gateway has the other's gateway for its upstream, and the same DNS server."""
    gateway = parent.gateway
    upstream = {
        Link.PORT: {"url": f"http://{LOCALHOST}:{gateway.port}"},
        Link.REVERSE: {"url": f"http://{LOCALHOST}:{gateway.reverse_port}"},
        Link.PROXY: {"url": f"http://{CDN}", "proxy": f"http://{LOCALHOST}:{gateway.port}"},
    }[link]
    child = make_site(upstream=upstream, versions={"nameservers": [parent.dns.nameserver]}, delta=ROOMY)
    child.dns.close()
    child.dns = parent.dns
    return child


def asked(parent: Site, name: str) -> int:
    """How many requests for a file are in the parent's log."""
    return sum(name in line and LOCALHOST in line for line in parent.gateway.log.splitlines())


def asked_for_old(parent: Site) -> int:
    """How many requests of the old client are in the parent's log."""
    return sum(OLD_VERSION in line for line in parent.gateway.log.splitlines())


links = pytest.mark.parametrize("link", list(Link))


@pytest.fixture
def parent(make_site: MakeSite) -> Site:
    """The gateway that has the CDN for its origin."""
    return make_site(delta=ROOMY)


@links
def test_releases_flow_down(parent: Site, link: Link, make_site: MakeSite) -> None:
    """A release reaches both caches before any client asks, and each object moves once on each leg."""
    child = child_of(parent, link, make_site)
    parent.publish(4)
    outcomes = [child.client("one").run(), child.client("two", local=3).run()]
    assert [outcome.version for outcome in outcomes] == [4, 4], explain(child, outcomes[0])
    parent.publish(NEWEST)
    assert eventually(lambda: asked(parent, "test-6.cdiff.sign") and parent.origin.count("D6"))
    settle(parent.origin)
    assert [parent.origin.count(name) for name in ("W", "D4", "D5", "D6")] == [1, 1, 1, 1]
    parent.origin.forget()
    for use_dns in (False, True):
        outcome = child.client(f"update-{use_dns}", local=4, use_dns=use_dns).run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(child, outcome)
    assert [asked(parent, f"/test-{patch}.cdiff ") for patch in (5, 6)] == [1, 1], parent.gateway.log
    assert parent.origin.trace == "", parent.gateway.log


@links
def test_fresh_clients_of_the_child(parent: Site, link: Link, make_site: MakeSite) -> None:
    """The parent holds an old CVD and its cdiffs; the child's cache is empty."""
    hold(parent, BASE)
    child = child_of(parent, link, make_site)
    for name in ("one", "two"):
        outcome = child.client(name).run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(child, outcome)
    assert parent.origin.count("W") <= 1, parent.origin.trace
    assert shown(child.gateway) == NEWEST


@links
def test_whole_files_of_the_child(parent: Site, link: Link, make_site: MakeSite) -> None:
    """A client of the child that needs the advertised version whole must not get the parent's base."""
    hold(parent, BASE)
    child = child_of(parent, link, make_site)
    outcome = child.client(local=4, scripted=False).run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(child, outcome)
    answer = whole(child.gateway, user_agent="curl/8.5.0")
    assert answer.body == signed("test-6.cvd")
    sign = whole(child.gateway, "/test-6.cvd.sign")
    assert sign.body == signed("test-6.cvd.sign")
    assert (parent.origin.count("W"), parent.origin.count("/test-6.cvd.sign")) == (1, 1)


@links
def test_delta_serving_of_the_child(parent: Site, link: Link, make_site: MakeSite) -> None:
    """The child has an old CVD itself."""
    parent.publish(BASE)
    child = child_of(parent, link, make_site)
    assert whole(child.gateway).body == signed(f"test-{BASE}.cvd")
    parent.publish(NEWEST)
    for patch in range(BASE + 1, NEWEST + 1):
        assert whole(child.gateway, f"/test-{patch}.cdiff").body == signed(f"test-{patch}.cdiff")
    assert eventually(lambda: shown(child.gateway) == NEWEST), child.gateway.log
    assert eventually(
        lambda: all(parent.origin.count(f"/test-{one}.cdiff.sign") for one in range(BASE + 1, NEWEST + 1))
    )
    settle(parent.origin)
    parent.origin.forget()
    assert whole(child.gateway).body == signed(f"test-{BASE}.cvd")
    fresh = child.client("fresh").run()
    assert (fresh.code, fresh.databases) == (OK, {"test.cld": NEWEST}), explain(child, fresh)
    private = child.client("private", Way.REVERSE, private=True).run()
    assert (private.code, private.databases) == (OK, {"test.cld": NEWEST}), explain(child, private)
    built = whole(child.gateway, "/test.cld").body
    assert members_of(built) == members_of(signed("test-6.cld"))
    assert parent.origin.trace == "", parent.gateway.log


@links
def test_private_mirror_behind_an_empty_child(parent: Site, link: Link, make_site: MakeSite) -> None:
    hold(parent, BASE)
    child = child_of(parent, link, make_site)
    outcome = child.client(way=Way.REVERSE, private=True, local=3).run()
    assert (outcome.code, outcome.version) == (OK, NEWEST), explain(child, outcome)
    assert parent.origin.count("W") <= 1
    assert parent.origin.count("/test.cld") == 0


@links
def test_a_herd_behind_the_child(parent: Site, link: Link, make_site: MakeSite) -> None:
    child = child_of(parent, link, make_site)
    parent.publish(NEWEST)
    clients = [child.client(f"client-{number}", local=number % 2 + 4) for number in range(4)]
    clients += [child.client(f"fresh-{number}") for number in range(2)]
    with ThreadPoolExecutor(6) as executor:
        outcomes = list(executor.map(lambda client: client.run(), clients))
    assert [outcome.version for outcome in outcomes] == [NEWEST] * 6, explain(child, outcomes[0])
    assert [parent.origin.count(name) for name in ("D5", "D6", "W")] == [1, 1, 1]
    assert [asked(parent, f"/test-{patch}.cdiff ") for patch in (5, 6)] == [1, 1], parent.gateway.log


@links
def test_the_parent_is_down(parent: Site, link: Link, make_site: MakeSite) -> None:
    child = child_of(parent, link, make_site)
    parent.publish(BASE)
    whole(child.gateway)
    advance(Site(child.directory, parent.origin, parent.dns, child.gateway), BASE, NEWEST)
    parent.gateway.kill()
    for local in (None, 2, 5, 6):
        outcome = child.client(f"local-{local}", local=local).run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(child, outcome)


@links
def test_an_old_client_holds_back_no_others(parent: Site, link: Link, make_site: MakeSite) -> None:
    """The CDN refuses a client version. Whatever gateway its machines ask, only they have to wait."""
    child = child_of(parent, link, make_site)
    grandchild = child_of(child, link, make_site)
    parent.publish(NEWEST)
    parent.origin.rule("D4", faults.status(403, retry_after="7200"), times=1)
    assert parent.gateway.ask("/test-4.cdiff", user_agent=OLD_CLIENT).status == 503
    refused = grandchild.gateway.ask("/test-5.cdiff", user_agent=OLD_CLIENT)
    assert (refused.status, 1 < int(refused.headers["retry-after"]) <= 60) == (503, True), refused
    asked_before = asked_for_old(parent), asked_for_old(child)
    for path in ("/test-5.cdiff", "/test-6.cdiff", "/test.cvd"):
        for site in (grandchild, child):
            assert site.gateway.ask(path, user_agent=OLD_CLIENT).status == 503
    assert (asked_for_old(parent), asked_for_old(child)) == (asked_before[0], asked_before[1] + 3)
    assert parent.origin.trace == "D4"
    assert whole(grandchild.gateway, "/test-5.cdiff").body == signed("test-5.cdiff")
    fresh = grandchild.client("fresh").run()
    assert (fresh.code, fresh.version) == (OK, NEWEST), explain(grandchild, fresh)


def test_a_child_does_not_wait_for_a_corrected_password(make_site: MakeSite) -> None:
    """The parent waits for a quarter of an hour, but as soon as it is mended, it could deliver."""
    with gateways() as make:
        refusing = make(fake_answer(407, proxy_authenticate='Basic realm="squid"'))
        parent = make_site(upstream={"url": f"http://{CDN}", "proxy": f"http://{LOCALHOST}:{refusing.port}"})
        child = child_of(parent, Link.PORT, make_site)
        parent.dns.versions["test"] = NEWEST
        assert parent.gateway.ask("/test-6.cdiff").status == 503
        for _ in range(2):
            refused = child.gateway.ask("/test-6.cdiff")
            assert (refused.status, 1 < int(refused.headers["retry-after"]) <= 60) == (503, True), refused


def test_both_gateways_agree_on_conditions(parent: Site, make_site: MakeSite) -> None:
    """What a child passes on is nothing that makes the parent answer with less."""
    hold(parent, BASE)
    child = child_of(parent, Link.PROXY, make_site)
    since = http_date(build_time(5))
    probe = child.gateway.ask("/test.cvd", range=PROBE, if_modified_since=since)
    assert (probe.status, version_of(probe.body)) == (206, NEWEST)
    assert whole(child.gateway, if_modified_since=since).body == signed("test-6.cvd")


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A port that leads to whichever gateway is named later."""
    with Relay() as relay:
        yield relay


@pytest.mark.parametrize("length", [1, 2], ids=["itself", "two"])
@pytest.mark.parametrize("path", ["/test.cvd", "/test-6.cdiff", "/test-6.cvd.sign"])
def test_a_loop_ends(relay: Relay, make_site: MakeSite, length: int, path: str) -> None:
    """A gateway that has itself for its upstream, or its own child."""
    first = make_site(upstream={"url": relay.url})
    last = first
    for _ in range(length - 1):
        last = make_site(upstream={"url": f"http://{LOCALHOST}:{first.gateway.reverse_port}"})
    relay.target = last.gateway.reverse_port
    for site in {id(first): first, id(last): last}.values():
        site.dns.versions["test"] = NEWEST
    answer = first.gateway.ask(path)
    assert answer.status in (404, 502, 503, 504, 508), answer
    settled_at = relay.accepted
    assert settled_at <= STORM
    assert first.client(attempts=1).run().version is None
    assert relay.accepted <= 2 * STORM
    for site in (first, last):
        assert site.gateway.stats()["upstream_requests"] <= 2 * STORM
    assert first.origin.requests() == []
