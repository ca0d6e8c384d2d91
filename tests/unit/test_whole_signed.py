"""New clients that may refuse a CVD without an external signature: ClamAV 1.5 and later in FIPS mode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from tests.support import faults
from tests.support.forge import forge_sign
from tests.support.origin import OriginServer
from tests.unit.conftest import cvd, sign
from tests.unit.whole_site import NEWEST, OFFLINE, RELEASES, Site, open_site, since


def agent(version: str) -> str:
    return (
        f"ClamAV/{version} (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 00000000-0000-4000-8000-0000000000fe)"
    )


FIPS = agent("1.5.3")


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """CVD 1 and the patches up to 4 are cached; the origin has the signature of CVD 4 only."""
    async with open_site(tmp_path / "cache", origin, monkeypatch) as site:
        await site.hold()
        site.origin.remove("daily-1.cvd.sign")
        yield site


@pytest.mark.parametrize("version", ["1.5.0", "1.5.3", "1.6.0", "1.10.0", "2.0", "1.5.0-beta", "devel-2f3a"])
async def test_get_the_advertised_version_whole(site: Site, version: str) -> None:
    response, content = await site.ask(agent=agent(version))
    assert (response.status, response.version, content) == (200, NEWEST, RELEASES.cvd(NEWEST))
    assert (await site.ask(f"/daily-{NEWEST}.cvd.sign", agent=agent(version)))[0].status == 200
    await site.settle()
    assert site.service.store.newest_version("daily") == NEWEST
    assert site.origin.count("W") == 1


@pytest.mark.parametrize("version", ["0.103.12", "1.0.9", "1.4.6", "1.4.6+dfsg"])
async def test_older_ones_go_on_with_the_base(site: Site, version: str) -> None:
    _, content = await site.ask(agent=agent(version))
    assert content == RELEASES.cvd(1)
    assert not site.origin.requests()


async def test_the_new_base_is_everybodys(site: Site) -> None:
    await site.ask(agent=FIPS)
    await site.settle()
    for each in (FIPS, agent("1.4.6")):
        response, content = await site.ask(agent=each)
        assert (response.result, content) == (Result.HIT, RELEASES.cvd(NEWEST))
    assert site.origin.count("W") == 1


async def test_with_its_signature_the_base_will_do(site: Site) -> None:
    site.origin.put("daily-1.cvd.sign", RELEASES.cvd_sign(1))
    for _ in range(2):
        assert (await site.ask(agent=FIPS))[1] == RELEASES.cvd(1)
    assert (await site.ask("/daily-1.cvd.sign", agent=FIPS))[0].result is Result.HIT
    assert site.origin.trace == "/daily-1.cvd.sign"


async def test_a_signature_of_another_file_is_none(site: Site) -> None:
    site.origin.put("daily-1.cvd.sign", forge_sign(b"another"))
    assert (await site.ask(agent=FIPS))[1] == RELEASES.cvd(NEWEST)


async def test_where_the_newest_has_none_either_nothing_is_gained(site: Site) -> None:
    site.origin.remove(f"daily-{NEWEST}.cvd.sign")
    for _ in range(3):
        assert (await site.ask(agent=FIPS))[1] == RELEASES.cvd(1)
    assert site.origin.count("W") == 0
    assert site.origin.count("/daily-1.cvd.sign") == 1


async def test_an_origin_that_fails_says_nothing(site: Site) -> None:
    site.origin.rule("*", faults.status(503))
    assert (await site.ask(agent=FIPS))[1] == RELEASES.cvd(1)


async def test_a_download_that_fails(site: Site) -> None:
    site.origin.rule("W", faults.status(503))
    assert (await site.ask(agent=FIPS))[1] == RELEASES.cvd(1)


async def test_offline(site: Site) -> None:
    site.restart(**OFFLINE)
    assert (await site.ask(agent=FIPS))[1] == RELEASES.cvd(1)
    assert not site.origin.requests()


async def test_who_only_looks_costs_nothing(site: Site) -> None:
    assert await site.shown() == NEWEST
    response, _ = await site.ask(agent=FIPS, Range="bytes=0-511")
    assert (response.status, response.version) == (206, NEWEST)
    response, _ = await site.ask(agent=FIPS, If_Modified_Since=since(NEWEST))
    assert response.status == 304
    assert not site.service.store.has(sign(cvd(1)))
    assert "/daily-1.cvd.sign" not in site.origin.trace
