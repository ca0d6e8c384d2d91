"""New clients that may refuse a CVD without an external signature: ClamAV 1.5 and later in FIPS mode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clamproxy.messages import Result
from tests.harness.service import NEWEST, OFFLINE, RELEASES, ServiceHarness, open_harness, since
from tests.support import faults
from tests.support.forge import forge_sign
from tests.support.origin import OriginServer
from tests.support.stored import cvd, sign


def agent(version: str) -> str:
    return (
        f"ClamAV/{version} (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 00000000-0000-4000-8000-0000000000fe)"
    )


FIPS = agent("1.5.3")


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer) -> AsyncIterator[ServiceHarness]:
    """CVD 1 and the patches up to 4 are cached; the origin has the signature of CVD 4 only."""
    async with open_harness(tmp_path / "cache", origin) as harness:
        await harness.hold()
        harness.origin.remove("daily-1.cvd.sign")
        yield harness


@pytest.mark.parametrize("version", ["1.5.0", "1.5.3", "1.6.0", "1.10.0", "2.0", "1.5.0-beta", "devel-2f3a"])
async def test_signed_clients_get_the_advertised_version_whole(harness: ServiceHarness, version: str) -> None:
    response, content = await harness.ask(agent=agent(version))
    assert (response.status, response.version, content) == (200, NEWEST, RELEASES.cvd(NEWEST))
    assert (await harness.ask(f"/daily-{NEWEST}.cvd.sign", agent=agent(version)))[0].status == 200
    await harness.settle()
    assert harness.service.store.newest_version("daily") == NEWEST
    assert harness.origin.count("W") == 1


@pytest.mark.parametrize("version", ["0.103.12", "1.0.9", "1.4.6", "1.4.6+dfsg"])
async def test_older_clients_go_on_with_the_base(harness: ServiceHarness, version: str) -> None:
    _, content = await harness.ask(agent=agent(version))
    assert content == RELEASES.cvd(1)
    assert not harness.origin.requests()


async def test_the_new_base_is_everybodys(harness: ServiceHarness) -> None:
    await harness.ask(agent=FIPS)
    await harness.settle()
    for each in (FIPS, agent("1.4.6")):
        response, content = await harness.ask(agent=each)
        assert (response.result, content) == (Result.HIT, RELEASES.cvd(NEWEST))
    assert harness.origin.count("W") == 1


async def test_a_base_with_its_signature_will_do(harness: ServiceHarness) -> None:
    harness.origin.put("daily-1.cvd.sign", RELEASES.cvd_sign(1))
    for _ in range(2):
        assert (await harness.ask(agent=FIPS))[1] == RELEASES.cvd(1)
    assert (await harness.ask("/daily-1.cvd.sign", agent=FIPS))[0].result is Result.HIT
    assert harness.origin.trace == "/daily-1.cvd.sign"


async def test_a_base_with_the_signature_of_another_file_is_unsigned(harness: ServiceHarness) -> None:
    harness.origin.put("daily-1.cvd.sign", forge_sign(b"another"))
    assert (await harness.ask(agent=FIPS))[1] == RELEASES.cvd(NEWEST)


async def test_where_the_newest_is_unsigned_the_base_will_do(harness: ServiceHarness) -> None:
    harness.origin.remove(f"daily-{NEWEST}.cvd.sign")
    for _ in range(3):
        assert (await harness.ask(agent=FIPS))[1] == RELEASES.cvd(1)
    assert harness.origin.count("W") == 0
    assert harness.origin.count("/daily-1.cvd.sign") == 1


async def test_an_origin_that_fails_says_nothing(harness: ServiceHarness) -> None:
    harness.origin.rule("*", faults.status(503))
    assert (await harness.ask(agent=FIPS))[1] == RELEASES.cvd(1)


async def test_a_download_that_fails(harness: ServiceHarness) -> None:
    harness.origin.rule("W", faults.status(503))
    assert (await harness.ask(agent=FIPS))[1] == RELEASES.cvd(1)


async def test_an_unsigned_base_will_do_offline(harness: ServiceHarness) -> None:
    harness.restart(**OFFLINE)
    assert (await harness.ask(agent=FIPS))[1] == RELEASES.cvd(1)
    assert not harness.origin.requests()


async def test_who_only_looks_costs_nothing(harness: ServiceHarness) -> None:
    assert await harness.shown() == NEWEST
    response, _ = await harness.ask(agent=FIPS, Range="bytes=0-511")
    assert (response.status, response.version) == (206, NEWEST)
    response, _ = await harness.ask(agent=FIPS, If_Modified_Since=since(NEWEST))
    assert response.status == 304
    assert not harness.service.store.has(sign(cvd(1)))
    assert "/daily-1.cvd.sign" not in harness.origin.trace
