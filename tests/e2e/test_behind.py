"""New machines in DNS mode, while the gateway's newest CVD is two versions behind what DNS tells them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from clamproxy.objects import STANDARD_DATABASES
from tests.support import faults
from tests.support.freshclam import OK, Freshclam
from tests.support.scenes import NEWEST, ROOMY, explain, refreshed, shown
from tests.support.site import Site, build_time, eventually, http_date

from .conftest import MakeSite
from .test_chaining import Link, child_of
from .test_holds import MINE, run, wholes

HAS = 4
"""The version that the gateway has."""

type Situation = Callable[[MakeSite], Site]


def begun(make_site: MakeSite, workers: int = 1) -> Site:
    """A site that is up to date."""
    site = make_site(delta=ROOMY, workers=workers)
    site.publish(HAS)
    assert site.gateway.ask("/test.cvd").status == 200
    assert eventually(lambda: shown(site.gateway) == HAS), site.gateway.log
    return site


def refused(make_site: MakeSite, workers: int = 1) -> Site:
    site = begun(make_site, workers)
    site.origin.rule("*", faults.status(403))
    site.publish(NEWEST)
    return site


def refused_with_workers(make_site: MakeSite) -> Site:
    return refused(make_site, workers=2)


def down(make_site: MakeSite) -> Site:
    site = begun(make_site)
    site.origin.refuse()
    site.publish(NEWEST)
    return site


def offline(make_site: MakeSite) -> Site:
    """It doesn't know what DNS says."""
    site = begun(make_site)
    site.gateway.stop()
    site.gateway.settings["upstream"]["offline"] = True
    site.gateway.config.write_text(yaml.safe_dump(site.gateway.settings))
    site.gateway.start()
    site.publish(NEWEST)
    return site


def below_a_hold(make_site: MakeSite, *, is_empty: bool = False) -> Site:
    parent = begun(make_site)
    assert parent.gateway.tool("hold", "test").returncode == 0
    child = child_of(parent, Link.PORT, make_site)
    if not is_empty:
        assert child.gateway.ask("/test.cvd").status == 200
    parent.publish(NEWEST)
    return child


def empty_below_a_hold(make_site: MakeSite) -> Site:
    """The CVD comes from the origin first, from the cache then."""
    return below_a_hold(make_site, is_empty=True)


def new_machine(site: Site) -> Freshclam:
    """One with a database of its own after `test`: it shows whether the run goes on."""
    others = [f"ExcludeDatabase {name}" for name in STANDARD_DATABASES]
    client = site.client("new", use_dns=True, database=None, extra=[*others, "ExtraDatabase test"])
    mine = site.directory / MINE
    mine.write_bytes(b"44d88612fea8a8f36de82e1278abb02f:68:Eicar-Test\n")
    client.custom_urls = [f"file://{mine}"]
    return client


@pytest.mark.parametrize(
    "situation", [refused, refused_with_workers, down, offline, below_a_hold, empty_below_a_hold]
)
def test_a_first_run_gets_everything_and_later_ones_cost_nothing(
    make_site: MakeSite, situation: Situation
) -> None:
    site = situation(make_site)
    assert situation is offline or refreshed(site, 6)
    client = new_machine(site)
    logged = len(site.gateway.log)
    outcome, goes_on = run(client)
    assert (outcome.code, outcome.version, outcome.cooling) == (OK, HAS, False), explain(site, outcome)
    assert goes_on, explain(site, outcome)
    assert eventually(lambda: len(wholes(site, logged)) == 2), site.gateway.log
    for _ in range(2):
        outcome, _ = run(client)
        assert (outcome.code, outcome.version, outcome.cooling) == (OK, HAS, False), explain(site, outcome)
    assert eventually(lambda: site.gateway.log[logged:].count(" 304 ") == 2), site.gateway.log
    assert len(wholes(site, logged)) == 2


def test_only_a_machine_that_was_just_given_it_gets_it_again(make_site: MakeSite) -> None:
    """All others have had it for longer, or have a newer one, which freshclam would replace."""
    site = refused(make_site)
    assert refreshed(site)
    asked = [("given", HAS, 304), ("given", HAS + 1, 304), ("new", None, 200), ("new", HAS + 1, 304)]
    for agent, has, status in [*asked, ("new", HAS, 200), ("new", HAS, 304)]:
        fields = {"user_agent": f"ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {agent})"}
        if has is not None:
            fields["if_modified_since"] = http_date(build_time(has))
        answer = site.gateway.ask("/test.cvd", extra=fields)
        assert answer.status == status, (agent, has, site.gateway.log)
