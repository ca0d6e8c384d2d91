"""CLDs for PrivateMirror clients, which the gateway builds of an older CVD and its cdiffs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.freshclam import OK
from tests.support.gateway import Way
from tests.support.releases import Releases
from tests.support.scenes import (
    BASE,
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
from tests.support.site import (
    Break,
    Site,
    answers,
    build_time,
    eventually,
    http_date,
    lacks,
    signed,
)

from .conftest import MakeSite

CLD = "/test.cld"


class TestBuilt:
    """Base and cdiffs are in the cache: all this costs the origin nothing."""

    @pytest.fixture(autouse=True)
    def _costs_nothing(self, behind: Site) -> Iterator[None]:
        yield
        assert behind.origin.trace == "", behind.gateway.log

    @pytest.mark.parametrize("way", list(Way))
    def test_header_probe(self, behind: Site, way: Way) -> None:
        """A CLD has X for its checksum and its signature, which makes its header predictable."""
        answer = behind.gateway.ask(CLD, way, range=PROBE)
        assert (answer.status, answer.body) == (206, signed("test-6.cld")[:512])

    def test_header_probe_of_an_older_client(self, behind: Site) -> None:
        since = http_date(build_time(4))
        answer = behind.gateway.ask(CLD, range=PROBE, if_modified_since=since)
        assert (answer.status, version_of(answer.body)) == (206, NEWEST)

    def test_header_probe_of_a_current_client(self, behind: Site) -> None:
        since = http_date(build_time(NEWEST))
        answer = behind.gateway.ask(CLD, range=PROBE, if_modified_since=since)
        assert answer.status == 304 or version_of(answer.body) == NEWEST

    def test_contents(self, behind: Site) -> None:
        answer = whole(behind.gateway, CLD)
        assert answer.body[:512] == signed("test-6.cld")[:512]
        assert members_of(answer.body) == members_of(signed("test-6.cld"))
        assert answer.headers["content-length"] == str(len(answer.body))
        assert list(members_of(answer.body))[:2] == ["COPYING", "test.info"]

    @pytest.mark.parametrize("since", [1, 2, 5])
    def test_condition_of_an_older_client(self, behind: Site, since: int) -> None:
        """libcurl drops a body whose Last-Modified is not after what the client sent."""
        answer = whole(behind.gateway, CLD, if_modified_since=http_date(build_time(since)))
        assert version_of(answer.body) == NEWEST

    def test_part(self, behind: Site) -> None:
        answer = whole(behind.gateway, CLD)
        part = behind.gateway.ask(CLD, range="bytes=1000-1999")
        assert (part.status, part.body) == (206, answer.body[1000:2000])
        assert part.headers["etag"] == answer.headers["etag"]

    def test_head(self, behind: Site) -> None:
        answer = behind.gateway.ask(CLD, method="HEAD")
        length = str(len(whole(behind.gateway, CLD).body))
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", length)

    def test_all_get_the_same_bytes(self, behind: Site) -> None:
        with ThreadPoolExecutor(6) as executor:
            bodies = set(executor.map(lambda _: whole(behind.gateway, CLD).body, range(6)))
        assert len(bodies) == 1

    @pytest.mark.parametrize("local", [None, 1, 2, 4, 5])
    def test_client(self, behind: Site, tmp_path: Path, local: int | None) -> None:
        """Fresh, or updating from an old CVD."""
        client = behind.client(str(tmp_path / "client"), Way.REVERSE, private=True, local=local)
        outcome = client.run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(behind, outcome)
        assert "up-to-date" in client.run().output

    def test_client_with_a_current_cvd(self, behind: Site, tmp_path: Path) -> None:
        client = behind.client(str(tmp_path / "client"), Way.REVERSE, private=True, local=NEWEST)
        outcome = client.run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(behind, outcome)

    def test_client_at_the_proxy_port(self, behind: Site, tmp_path: Path) -> None:
        mirrors = [f"http://127.0.0.1:{behind.gateway.port}"]
        outcome = behind.client(str(tmp_path / "client"), Way.REVERSE, private=True, mirrors=mirrors).run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(behind, outcome)


def test_no_cld_while_the_cvd_is_current(roomy: Site) -> None:
    roomy.publish(NEWEST)
    whole(roomy.gateway)
    roomy.origin.put("test.cld", signed("test-6.cld"))
    assert [roomy.gateway.ask(CLD, range=PROBE).status, roomy.gateway.ask(CLD).status] == [404, 404]
    outcome = roomy.client(way=Way.REVERSE, private=True).run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(roomy, outcome)
    assert roomy.origin.count(CLD) == 0


def test_no_cld_from_an_empty_cache(roomy: Site) -> None:
    roomy.publish(NEWEST)
    assert roomy.gateway.ask(CLD, range=PROBE).status == 404
    assert roomy.origin.count(CLD) == 0


def test_from_cld_to_cld(roomy: Site) -> None:
    """A client that has an older CLD of the gateway's."""
    hold(roomy, BASE, 4)
    client = roomy.client(way=Way.REVERSE, private=True)
    assert client.run().databases == {"test.cld": 4}, roomy.gateway.log
    advance(roomy, 4, NEWEST)
    outcome = client.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(roomy, outcome)
    assert roomy.origin.trace == ""


def test_a_new_cvd_takes_over(roomy: Site) -> None:
    """The newest CVD comes into the cache, too: who was told of the CLD still gets it."""
    hold(roomy, BASE)
    client = roomy.client(way=Way.REVERSE, private=True)
    assert client.run().databases == {"test.cld": NEWEST}
    assert whole(roomy.gateway, user_agent="curl/8.5.0").body == signed("test-6.cvd")
    assert shown(roomy.gateway, CLD) == NEWEST
    for again in (client, roomy.client("fresh", Way.REVERSE, private=True)):
        outcome = again.run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(roomy, outcome)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(answers("D5", faults.empty()), id="empty"),
        pytest.param(lacks("test-5.cdiff"), id="missing"),
    ],
)
@pytest.mark.parametrize("local", [None, 4])
def test_a_gap_in_the_chain(roomy: Site, broken: Break, local: int | None) -> None:
    """No CLD can be built: the client takes the CVD."""
    hold(roomy, 3, 4)
    roomy.publish(NEWEST)
    broken(roomy.origin)
    assert eventually(lambda: roomy.origin.count("D5") and shown(roomy.gateway) == NEWEST), roomy.gateway.log
    assert roomy.gateway.ask(CLD, range=PROBE).status == 404
    assert roomy.gateway.ask(CLD).status == 404
    outcome = roomy.client(way=Way.REVERSE, private=True, local=local).run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(roomy, outcome)
    settle(roomy.origin)
    assert roomy.origin.count("W") == 1


def test_after_a_restart(roomy: Site) -> None:
    hold(roomy, BASE)
    before = whole(roomy.gateway, CLD).body
    roomy.gateway.stop()
    roomy.gateway.start()
    assert members_of(whole(roomy.gateway, CLD).body) == members_of(before)
    assert roomy.origin.trace == ""


def test_disabled(make_site: MakeSite) -> None:
    site = make_site(delta={**ROOMY, "enabled": False})
    hold(site, BASE)
    assert site.gateway.ask(CLD, range=PROBE).status == 404
    assert site.client(way=Way.REVERSE, private=True).run().databases == {"test.cvd": NEWEST}


def test_every_command_of_a_cdiff(make_site: MakeSite, tmp_path: Path) -> None:
    """Releases that delete, move and remove; ClamAV's test data only add and exchange."""
    releases = Releases(first=27_800, filler=400_000, patch_filler=300)
    site = make_site(**releases.trusted(tmp_path / "keys"))
    releases.publish(site.origin, 27_800)
    assert whole(site.gateway, "/daily.cvd").body == releases.cvd(27_800)
    newest = 27_812
    releases.publish(site.origin, newest)
    site.dns.versions["daily"] = newest
    assert eventually(lambda: site.origin.count(f"D{newest}")), site.gateway.log
    assert eventually(lambda: shown(site.gateway, "/daily.cld") == newest), site.gateway.log
    answer = whole(site.gateway, "/daily.cld")
    assert answer.body[:512] == releases.cld_header(newest)
    assert members_of(answer.body) == releases.members(newest)
    assert site.origin.count("W") == 1, site.origin.trace
