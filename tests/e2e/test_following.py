"""New releases are in the cache before any client asks for them (settings `serving.prefetch`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import faults
from tests.support.freshclam import OK
from tests.support.gateway import USER_AGENT
from tests.support.scenes import NEWER_AGENT, explain, refreshed, settle, shown, whole
from tests.support.site import Site, eventually, signed

from .conftest import MakeSite

OLD_AGENT = "ClamAV/0.103.2 (OS: linux-gnu, ARCH: x86_64, CPU: x86_64)"
CVDUPDATE = "CVDUPDATE/1.2.0 (0738ec71-8d58-4bdf-8241-6ad688adc4fd)"
CURL = "curl/8.5.0"
PATCHES = [f"/test-{version}.cdiff{end}" for version in (5, 6) for end in ("", ".sign")]
LIMIT = 5
"""Background requests for one file in an hour."""
WHILE = 4
"""Seconds, some times `versions.refresh`, for what must not happen."""


@pytest.fixture
def site(roomy: Site) -> Site:
    """The cdiffs of the test data are large for their CVDs: elsewhere these would soon be renewed."""
    return roomy


def use(site: Site, version: int = 4, agent: str = USER_AGENT) -> None:
    """Release a version that some client fetches: the database is in use from then on."""
    site.publish(version)
    assert whole(site.gateway, user_agent=agent).body == signed(f"test-{version}.cvd")


def fetched(site: Site, *paths: str) -> bool:
    """Wait until the origin has been asked for all of these."""
    return eventually(lambda: all(site.origin.count(path) for path in paths or PATCHES))


def never(look: Callable[[], object]) -> bool:
    """Wait a while for what must not happen."""
    return not eventually(look, limit=WHILE)


def release(site: Site, version: int = 6) -> None:
    """Two more releases, and nobody asks for them; the record of the origin starts anew afterwards."""
    site.publish(version)
    assert fetched(site), site.origin.trace + site.gateway.log
    settle(site.origin)
    assert {site.origin.count(path) for path in PATCHES} == {1}, site.origin.trace
    site.origin.forget()


@pytest.mark.parametrize("use_dns", [False, True], ids=["http", "dns"])
def test_an_update_costs_the_origin_nothing(site: Site, use_dns: bool) -> None:
    site.publish(4)
    client = site.client(use_dns=use_dns)
    assert client.run().version == 4, site.gateway.log
    release(site)
    outcome = client.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cld": 6}), explain(site, outcome)
    assert site.origin.trace == "", site.gateway.log


def test_signatures_are_fetched_with_their_files(site: Site) -> None:
    """A freshclam 1.5 asks for the signature of each cdiff."""
    use(site, agent=NEWER_AGENT)
    release(site)
    for path in PATCHES:
        assert whole(site.gateway, path, user_agent=NEWER_AGENT).body == signed(path.removeprefix("/"))
    assert site.origin.trace == "", site.gateway.log


def test_nothing_new_costs_nothing_and_other_databases_are_left_alone(site: Site) -> None:
    use(site)
    release(site)
    assert refreshed(site)
    assert site.origin.trace == "", site.gateway.log


def test_the_newest_supported_agent_asks(site: Site) -> None:
    """The CDN refuses old versions, and knows only the programs of ClamAV."""
    use(site)
    for agent in (NEWER_AGENT, OLD_AGENT, CURL, CVDUPDATE):
        whole(site.gateway, user_agent=agent)
    site.publish(6)
    assert fetched(site), site.gateway.log
    assert {site.origin.requests(path)[0].headers["user-agent"] for path in PATCHES} == {NEWER_AGENT}


@pytest.mark.parametrize("agent", [CURL, CVDUPDATE, OLD_AGENT], ids=["curl", "cvdupdate", "old"])
def test_the_follower_waits_for_a_supported_freshclam(site: Site, agent: str) -> None:
    use(site, agent=agent)
    site.publish(6)
    assert never(lambda: any(site.origin.count(path) for path in PATCHES)), site.gateway.log
    site.gateway.ask("/test.cvd", range="bytes=0-511")
    assert fetched(site), site.gateway.log


def test_the_agent_of_the_settings(make_site: MakeSite) -> None:
    own = "ClamAV/1.4.3 (OS: Linux, ARCH: x86_64)"
    site = make_site(upstream={"user_agent": own})
    use(site, agent=CURL)
    site.publish(6)
    assert fetched(site), site.gateway.log
    assert {site.origin.requests(path)[0].headers["user-agent"] for path in PATCHES} == {own}


def test_the_follower_catches_up_after_an_outage(site: Site) -> None:
    use(site)
    site.origin.refuse()
    site.publish(5)
    assert refreshed(site, 2)
    site.publish(6)
    assert refreshed(site, 2)
    site.origin.accept()
    assert fetched(site), site.gateway.log
    settle(site.origin)
    site.origin.forget()
    assert site.client(local=4).run().version == 6
    assert site.origin.trace == ""


def test_the_follower_catches_up_after_a_restart(site: Site) -> None:
    """Releases that appeared while the proxy was stopped; no client comes by."""
    use(site)
    site.gateway.stop()
    site.publish(6)
    site.gateway.start()
    assert fetched(site), site.gateway.log
    settle(site.origin)
    assert {site.origin.count(path) for path in PATCHES} == {1}, site.origin.trace


def test_a_cdiff_that_is_not_there_yet(site: Site) -> None:
    """DNS is ahead of the CDN: clients get what there is, and the CDN is not asked on and on."""
    use(site)
    site.publish(6)
    site.origin.remove("test-6.cdiff")
    assert fetched(site, "/test-5.cdiff", "/test-6.cdiff"), site.gateway.log
    assert site.client(local=4).run().version == 5
    assert site.origin.count("D6") <= LIMIT


@pytest.mark.parametrize(
    "fault", [faults.status(429, retry_after="3600"), faults.status(429)], ids=["timed", "bare"]
)
def test_cool_downs_are_respected(site: Site, fault: faults.Fault) -> None:
    """429 concerns one file, and is remembered over a restart; the others are fetched."""
    use(site)
    site.origin.rule("D5", fault)
    site.publish(6)
    assert fetched(site, "/test-5.cdiff"), site.gateway.log
    assert never(lambda: site.origin.count("D5") > 1), site.gateway.log
    site.gateway.stop()
    site.gateway.start()
    assert never(lambda: site.origin.count("D5") > 1), site.gateway.log
    assert site.client(local=4).run().cooling is False
    assert site.origin.count("D5") == 1, site.gateway.log


def test_a_refusal_is_respected(site: Site) -> None:
    """403 means the gateway's address or its User-Agent: asking again soon makes it no better."""
    use(site)
    site.origin.rule("D5", faults.status(403))
    site.publish(6)
    assert fetched(site, "/test-5.cdiff"), site.gateway.log
    assert never(lambda: site.origin.count("D5") > 1), site.gateway.log
    assert site.client(local=4).run().cooling is False
    assert site.client("another", local=4).run().cooling is False
    assert site.origin.count("D5") <= LIMIT, site.gateway.log


def test_a_cool_down_ends(site: Site) -> None:
    use(site)
    site.origin.rule("D5", faults.status(429, retry_after="2"), times=1)
    site.publish(6)
    assert eventually(lambda: site.origin.count("D5") == 2), site.gateway.log
    assert fetched(site), site.gateway.log
    settle(site.origin)
    site.origin.forget()
    assert site.client(local=4).run().version == 6
    assert site.origin.trace == ""


@pytest.mark.parametrize("code", [404, 503])
def test_the_budget_of_a_file(site: Site, code: int) -> None:
    use(site)
    site.origin.rule("D5", faults.status(code))
    site.publish(6)
    assert fetched(site, "/test-5.cdiff"), site.gateway.log
    assert refreshed(site, 5)
    assert 1 <= site.origin.count("D5") <= LIMIT
    assert used(site, "/test-5.cdiff") == site.origin.count("D5")


def test_the_budget_survives_restarts(site: Site) -> None:
    use(site)
    site.origin.rule("D5", faults.status(503))
    site.publish(6)
    for _ in range(2):
        assert fetched(site, "/test-5.cdiff"), site.gateway.log
        assert refreshed(site, 2)
        site.gateway.stop()
        assert used(site, "/test-5.cdiff") == site.origin.count("D5") <= LIMIT
        site.gateway.start()
    assert refreshed(site, 2)
    assert used(site, "/test-5.cdiff") == site.origin.count("D5") <= LIMIT


def used(site: Site, path: str) -> int:
    """What the statistics say was spent for a file."""
    budget: dict[str, dict[str, Any]] = site.gateway.stats()["budget"]
    return int(budget.get(path, {"used": 0})["used"])


def test_prefetch_none(make_site: MakeSite) -> None:
    site = make_site(serving={"prefetch": "none"})
    use(site)
    site.origin.forget()
    site.publish(6)
    assert never(site.origin.requests), site.gateway.log
    assert site.client(local=4).run().version == 6


def test_prefetch_all(make_site: MakeSite) -> None:
    """Whole CVDs of new versions as well, with their signatures."""
    site = make_site(serving={"prefetch": "all"})
    use(site)
    site.origin.forget()
    site.publish(6)
    assert fetched(site, *PATCHES, "W", "/test-6.cvd.sign"), site.gateway.log
    settle(site.origin)
    assert site.origin.count("W") == 1
    site.origin.forget()
    assert whole(site.gateway, user_agent=CURL).body == signed("test-6.cvd")
    assert whole(site.gateway, "/test-6.cvd.sign").body == signed("test-6.cvd.sign")
    assert shown(site.gateway) == 6
    assert site.client(scripted=False, local=4).run().databases == {"test.cvd": 6}
    assert site.client("behind", local=4).run().databases == {"test.cld": 6}
    assert site.origin.trace == ""


def test_many_clients_ask_while_the_follower_fetches(site: Site) -> None:
    """What is fetched in the background is shared with the clients that come meanwhile."""
    use(site)
    site.origin.rule("D5", faults.slow(1000))
    site.publish(6)
    assert fetched(site, "/test-5.cdiff"), site.gateway.log
    outcomes = [site.client(f"client-{number}", local=4).run() for number in range(2)]
    assert [outcome.version for outcome in outcomes] == [6, 6], explain(site, outcomes[0])
    assert (site.origin.count("D5"), site.origin.count("D6")) == (1, 1), site.origin.trace
