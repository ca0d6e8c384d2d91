"""New clients get an older CVD and the cdiffs from there on, so that not every release costs a whole CVD."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.freshclam import OK, Outcome
from tests.support.gateway import Way
from tests.support.releases import Releases
from tests.support.scenes import (
    BASE,
    NEWER_AGENT,
    NEWEST,
    PROBE,
    ROOMY,
    advance,
    explain,
    hold,
    settle,
    shown,
    version_of,
    whole,
)
from tests.support.site import (
    Break,
    Site,
    answers,
    build_time,
    corrupts,
    eventually,
    http_date,
    lacks,
    signed,
)

from .conftest import MakeSite

CURL = "curl/8.5.0"
CVDUPDATE = "CVDUPDATE/1.2.0 (0738ec71-8d58-4bdf-8241-6ad688adc4fd)"


class TestBaseOfFourReleasesAgo:
    """What each kind of request gets, and that none of them costs the origin anything."""

    @pytest.fixture(autouse=True)
    def _costs_nothing(self, behind: Site) -> Iterator[None]:
        yield
        assert behind.origin.trace == "", behind.gateway.log

    @pytest.mark.parametrize("way", list(Way))
    def test_whole_file(self, behind: Site, way: Way) -> None:
        answer = whole(behind.gateway) if way is Way.CONNECT_HTTP else behind.gateway.ask("/test.cvd", way)
        assert (answer.status, answer.body) == (200, signed(f"test-{BASE}.cvd"))

    def test_whole_file_of_another_freshclam(self, behind: Site) -> None:
        answer = whole(behind.gateway, user_agent=NEWER_AGENT)
        assert answer.body == signed(f"test-{BASE}.cvd")
        sign = whole(behind.gateway, f"/test-{BASE}.cvd.sign", user_agent=NEWER_AGENT)
        assert sign.body == signed(f"test-{BASE}.cvd.sign")

    @pytest.mark.parametrize("way", list(Way))
    @pytest.mark.parametrize("since", [None, 1, 2, 4, 5])
    def test_header_probe(self, behind: Site, way: Way, since: int | None) -> None:
        condition = {} if since is None else {"if_modified_since": http_date(build_time(since))}
        answer = behind.gateway.ask("/test.cvd", way, range=PROBE, extra=condition)
        assert (answer.status, len(answer.body), version_of(answer.body)) == (206, 512, NEWEST)
        assert answer.body.decode("ascii").isprintable()

    def test_header_probe_of_a_current_client(self, behind: Site) -> None:
        since = http_date(build_time(NEWEST))
        answer = behind.gateway.ask("/test.cvd", range=PROBE, if_modified_since=since)
        assert answer.status == 304 or version_of(answer.body) == NEWEST

    @pytest.mark.parametrize("way", list(Way))
    @pytest.mark.parametrize("use_dns", [False, True], ids=["http", "dns"])
    def test_fresh_install(self, behind: Site, tmp_path: Path, way: Way, use_dns: bool) -> None:
        outcome = behind.client(str(tmp_path / "client"), way, use_dns=use_dns).run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(behind, outcome)

    @pytest.mark.parametrize("use_dns", [False, True], ids=["http", "dns"])
    @pytest.mark.parametrize("local", [2, 3, 4, 5, 6])
    def test_update(self, behind: Site, tmp_path: Path, use_dns: bool, local: int) -> None:
        outcome = behind.client(str(tmp_path / "client"), local=local, use_dns=use_dns).run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(behind, outcome)

    def test_second_run_of_a_fresh_install(self, behind: Site, tmp_path: Path) -> None:
        client = behind.client(str(tmp_path / "client"))
        assert client.run().version == NEWEST
        assert "up-to-date" in client.run().output

    def test_a_herd_of_fresh_installs(self, behind: Site, tmp_path: Path) -> None:
        clients = [behind.client(str(tmp_path / f"client-{number}")) for number in range(6)]
        with ThreadPoolExecutor(6) as executor:
            outcomes = list(executor.map(lambda client: client.run(), clients))
        assert [outcome.version for outcome in outcomes] == [NEWEST] * 6, explain(behind, outcomes[0])


@pytest.mark.parametrize("since", [1, 2, 3, 4, 5])
def test_a_condition_asks_for_the_advertised_version(roomy: Site, since: int) -> None:
    """A client that has a database and still wants a whole file, be it older or newer than the base."""
    hold(roomy, BASE)
    answer = whole(roomy.gateway, if_modified_since=http_date(build_time(since)))
    assert answer.body == signed("test-6.cvd")
    assert roomy.origin.count("W") == 1


@pytest.mark.parametrize("agent", [CURL, CVDUPDATE, "Mozilla/5.0"])
def test_other_programs_get_the_advertised_version(roomy: Site, agent: str) -> None:
    """They do not know of cdiffs, or do not ask for them after a whole file."""
    hold(roomy, BASE)
    assert whole(roomy.gateway, user_agent=agent).body == signed("test-6.cvd")
    assert whole(roomy.gateway, "/test.cvd?version=6", user_agent=agent).body == signed("test-6.cvd")
    assert roomy.origin.count("W") == 1


def test_a_demanded_version(roomy: Site) -> None:
    hold(roomy, BASE)
    assert whole(roomy.gateway, "/test.cvd?version=6", user_agent=CVDUPDATE).body == signed("test-6.cvd")
    assert roomy.origin.count("W") == 1


@pytest.mark.parametrize("use_dns", [False, True], ids=["http", "dns"])
@pytest.mark.parametrize("local", [None, 1, 4], ids=["fresh", "older", "newer"])
def test_without_scripted_updates(roomy: Site, local: int | None, use_dns: bool) -> None:
    """Such a client never asks for a cdiff."""
    hold(roomy, BASE)
    client = roomy.client(local=local, scripted=False, use_dns=use_dns)
    outcome = client.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(roomy, outcome)
    assert roomy.origin.count("W") <= 1


@pytest.mark.parametrize("base", [1, 2, 3, 4, 5, 6])
def test_table(roomy: Site, base: int) -> None:
    """Whatever a client has and how it asks: it ends at the advertised version and never goes backwards."""
    roomy.publish(base)
    whole(roomy.gateway)
    for advertised in range(base, NEWEST + 1):
        if advertised > base:
            advance(roomy, advertised - 1, advertised)
        locals_ = {None, base, advertised - 1, NEWEST} if advertised < NEWEST else {None, 1, 2, 3, 4, 5, 6}
        for use_dns in (False, True):
            run_all(roomy, advertised, locals_ - {0}, use_dns=use_dns, scripted=True)
        assert roomy.origin.count("W") <= 1, roomy.origin.trace
    # These need whole files, which makes the base newer.
    for use_dns in (False, True):
        run_all(roomy, NEWEST, {None, 1, 2, 3, 4, 5, 6}, use_dns=use_dns, scripted=False)


def run_all(site: Site, advertised: int, locals_: set[int | None], *, use_dns: bool, scripted: bool) -> None:
    """Run clients with these local versions, two at a time."""

    def run(local: int | None) -> Outcome:
        name = f"{advertised}-{local}-{use_dns}-{scripted}"
        return site.client(name, local=local, use_dns=use_dns, scripted=scripted).run()

    with ThreadPoolExecutor(2) as executor:
        for local, outcome in zip(locals_, executor.map(run, locals_), strict=True):
            expected = max(local or 0, advertised)
            assert (outcome.code, outcome.version, outcome.cooling) == (OK, expected, False), (
                f"local {local}, DNS {use_dns}, scripted {scripted}: {explain(site, outcome)}"
            )


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        pytest.param("empty", answers("D5", faults.empty()), id="empty"),
        pytest.param("missing", lacks("test-5.cdiff"), id="missing"),
        pytest.param("corrupt", corrupts("D5", "test-5.cdiff"), id="corrupt"),
    ],
)
def test_a_gap_in_the_chain(roomy: Site, name: str, broken: Break) -> None:
    """The base does not lead to the advertised version: the whole CVD is fetched, once."""
    hold(roomy, 3, 4)
    roomy.publish(6)
    broken(roomy.origin)
    assert eventually(lambda: roomy.origin.count("D5") and shown(roomy.gateway) == NEWEST), roomy.gateway.log
    for local in (None, 3, 4):
        outcome = roomy.client(f"{name}-{local}", local=local).run()
        # A client that has received one cdiff and misses the next settles for that (B6).
        expected = {4, NEWEST} if (local, name == "empty") == (3, False) else {NEWEST}
        assert (outcome.code, outcome.version in expected) == (OK, True), explain(roomy, outcome)
    assert roomy.origin.count("W") == 1, roomy.origin.trace


@pytest.mark.parametrize("limit", [{"max_patches": 2}, {"max_share": "10%"}], ids=["patches", "share"])
def test_beyond_a_limit(make_site: MakeSite, limit: dict[str, object]) -> None:
    """The base is given all the same, and the whole CVD is fetched in the background, exactly once."""
    site = make_site(delta={**ROOMY, **limit}, upstream={"read_timeout": "40s"})
    hold_slowly(site)
    answer = whole(site.gateway)
    assert answer.body == signed(f"test-{BASE}.cvd"), site.gateway.log
    outcome = site.client("during").run()
    assert (outcome.code, outcome.version) == (OK, NEWEST), explain(site, outcome)
    # Not at once: the CVD was asked for a moment ago, and the gateway keeps to its budget.
    assert eventually(lambda: site.origin.count("W") == 1), site.gateway.log
    site.origin.heal()
    assert eventually(lambda: whole(site.gateway).body == signed("test-6.cvd")), site.gateway.log
    outcomes = [site.client(f"after-{number}").run() for number in range(2)]
    assert [outcome.databases for outcome in outcomes] == [{"test.cvd": NEWEST}] * 2
    settle(site.origin)
    assert site.origin.count("W") == 1, site.origin.trace


@pytest.mark.parametrize("code", [403, 429, 503])
def test_beyond_a_limit_of_an_origin_in_trouble(make_site: MakeSite, code: int) -> None:
    """The whole CVD cannot be had: the base goes on being served, and the CDN is left in peace."""
    site = make_site(delta={**ROOMY, "max_patches": 2})
    site.publish(BASE)
    whole(site.gateway)
    site.origin.forget()
    site.origin.rule("W", faults.status(code))
    site.publish(NEWEST)
    for patch in range(BASE + 1, NEWEST + 1):
        whole(site.gateway, f"/test-{patch}.cdiff")
    assert eventually(lambda: shown(site.gateway) == NEWEST), site.gateway.log
    for number in range(4):
        outcome = site.client(f"client-{number}").run()
        assert (outcome.code, outcome.version, outcome.cooling) == (OK, NEWEST, False), explain(site, outcome)
    assert site.origin.count("W") <= 5, site.origin.trace


def hold_slowly(site: Site) -> None:
    """As `hold`, on an origin whose whole CVDs take until it is healed once the first is cached."""
    site.publish(BASE)
    whole(site.gateway)
    whole(site.gateway, f"/test-{BASE}.cvd.sign")
    site.origin.forget()
    site.origin.rule("W", faults.slow(250))
    site.publish(NEWEST)
    for patch in range(BASE + 1, NEWEST + 1):
        whole(site.gateway, f"/test-{patch}.cdiff")
    assert eventually(lambda: shown(site.gateway) == NEWEST), site.gateway.log


def test_within_the_limits_no_whole_file_is_fetched(make_site: MakeSite) -> None:
    site = make_site(delta={**ROOMY, "max_patches": 4})
    hold(site, BASE)
    assert site.client().run().version == NEWEST
    settle(site.origin)
    assert site.origin.trace == ""


def test_disabled(make_site: MakeSite) -> None:
    """Each release that a new client wants costs a whole CVD."""
    site = make_site(delta={**ROOMY, "enabled": False})
    hold(site, BASE)
    assert whole(site.gateway).body == signed("test-6.cvd")
    assert site.client().run().databases == {"test.cvd": NEWEST}
    assert site.client("private", Way.REVERSE, private=True).run().databases == {"test.cvd": NEWEST}
    assert site.origin.count("W") == 1


def test_five_releases_cost_one_whole_file(roomy: Site) -> None:
    """New clients after each release, in both modes."""
    roomy.publish(1)
    whole(roomy.gateway)
    for version in range(1, NEWEST + 1):
        if version > 1:
            advance(roomy, version - 1, version)
        for use_dns in (False, True):
            outcome = roomy.client(f"{version}-{use_dns}", use_dns=use_dns).run()
            assert (outcome.code, outcome.version) == (OK, version), explain(roomy, outcome)
        assert roomy.origin.count("W") == (version == 1), roomy.origin.trace


def test_many_releases_cost_one_whole_file(make_site: MakeSite, tmp_path: Path) -> None:
    """With the usual limits, where cdiffs are small beside the CVD as ClamAV's are."""
    releases = Releases(first=27_800, filler=600_000)
    site = make_site(**releases.trusted(tmp_path / "keys"))
    releases.publish(site.origin, 27_800)
    base = whole(site.gateway, "/daily.cvd").body
    assert base == releases.cvd(27_800)
    for version in (27_801, 27_803, 27_812):
        releases.publish(site.origin, version)
        site.dns.versions["daily"] = version
        last = f"/daily-{version}.cdiff"
        assert eventually(lambda path=last: site.origin.count(path)), site.gateway.log  # type: ignore[misc]
        assert eventually(lambda wanted=version: shown(site.gateway, "/daily.cvd") == wanted)  # type: ignore[misc]
        assert whole(site.gateway, "/daily.cvd").body == base
        for patch in range(27_801, version + 1):
            assert whole(site.gateway, f"/daily-{patch}.cdiff").body == releases.cdiff(patch)
    settle(site.origin)
    assert site.origin.count("W") == 1, site.origin.trace
    assert {site.origin.count(f"D{patch}") for patch in range(27_801, 27_813)} == {1}


@pytest.mark.parametrize("use_dns", [False, True], ids=["http", "dns"])
def test_origin_down(roomy: Site, use_dns: bool) -> None:
    hold(roomy, BASE)
    roomy.origin.refuse()
    for local in (None, 2, 5, 6):
        outcome = roomy.client(f"local-{local}", local=local, use_dns=use_dns).run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(roomy, outcome)


def test_after_a_restart(roomy: Site) -> None:
    hold(roomy, BASE)
    roomy.gateway.stop()
    roomy.gateway.start()
    assert whole(roomy.gateway).body == signed(f"test-{BASE}.cvd")
    outcome = roomy.client().run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(roomy, outcome)
    assert roomy.origin.trace == ""


def test_a_newer_base_takes_over(roomy: Site) -> None:
    """A client that needs a whole file renews the base for all."""
    hold(roomy, BASE, 4)
    assert roomy.client("whole", local=3, scripted=False).run().databases == {"test.cvd": 4}
    assert whole(roomy.gateway).body == signed("test-4.cvd")
    advance(roomy, 4, NEWEST)
    assert whole(roomy.gateway).body == signed("test-4.cvd")
    outcome = roomy.client("fresh").run()
    assert (outcome.code, outcome.version) == (OK, NEWEST), explain(roomy, outcome)
    assert roomy.origin.trace == ""
