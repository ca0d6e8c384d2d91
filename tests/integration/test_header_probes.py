"""Header probes at a fake CDN (docs/protocol.md 1.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from clamproxy.formats.header import CvdHeader
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import KnownMissingError, NotFoundError, OriginError
from clamproxy.origin.header_probes import Sighting
from clamproxy.origin.transfers import CooldownError
from clamproxy.policy import RECHECK
from tests.harness.header_probes import HeadsHarness
from tests.support import faults
from tests.support.fixtures import MakeCvd
from tests.support.forge import info_line
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, NEW, OLD, until

HEADER = info_line(5).ljust(512)


@pytest.fixture
def harness(origin: OriginServer) -> Iterator[HeadsHarness]:
    harness = HeadsHarness(origin)
    yield harness
    harness.upstream.close()


async def test_nothing_is_known_before_a_probe(harness: HeadsHarness) -> None:
    assert harness.heads.get("daily") is None
    assert harness.heads.sighting("daily") == Sighting(0.0, 0, 0)


@pytest.mark.parametrize(
    "fault",
    [faults.Fault(), faults.Fault(ignore_range=True), faults.chunked()],
    ids=["206", "200 with the whole file", "chunked"],
)
async def test_a_probe_learns_the_header(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd, fault: faults.Fault
) -> None:
    body = make_cvd(5, 100_000)
    origin.put("daily.cvd", body)
    origin.rule("P", fault)
    assert await harness.probe(wanted=7) == 5
    head = harness.heads.get("daily")
    assert head is not None
    assert head.header.raw == body[:512]
    assert not head.is_proven
    assert harness.heads.sighting("daily").wanted == 7
    assert harness.heads.sighting("daily").at > 0
    (seen,) = origin.requests()
    assert (seen.headers["range"], seen.headers["user-agent"]) == ("bytes=0-511", AGENT)


async def test_trap_27_one_probe_for_a_herd(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    assert set(await asyncio.gather(*(harness.probe() for _ in range(20)))) == {5}
    assert origin.trace == "P"


async def test_a_client_that_leaves_ends_nobody_elses_probe(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    first, second = (asyncio.create_task(harness.probe()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 5
    assert origin.trace == "P"


async def test_trap_4_an_older_edge_changes_nothing(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    for version, known in ((5, 5), (4, 5), (6, 6)):
        origin.put("daily.cvd", make_cvd(version))
        assert await harness.probe() == known


async def test_trap_5_looks_that_bring_nothing_new_are_counted(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    for version, fruitless in ((5, 0), (5, 1), (5, 2), (7, 0), (7, 1), (6, 2), (8, 0)):
        origin.put("daily.cvd", make_cvd(version))
        await harness.probe(wanted=9)
        assert harness.heads.sighting("daily").fruitless == fruitless, version


async def test_a_failed_look_is_not_a_fruitless_one(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    await harness.probe(wanted=6)
    before = harness.heads.sighting("daily")
    origin.rule("P", faults.status(500))
    with pytest.raises(OriginError):
        await harness.probe(wanted=6)
    assert harness.heads.sighting("daily") == before


async def test_forgetting_lets_an_older_header_in(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    await harness.probe()
    harness.heads.forget("daily")
    assert harness.heads.get("daily") is None
    assert harness.notes == {}
    origin.put("daily.cvd", make_cvd(4))
    assert await harness.probe() == 4


@pytest.mark.parametrize(
    ("claimed", "came", "is_kept"),
    [
        pytest.param(5, 5, True, id="right"),
        pytest.param(7, 5, False, id="a version that doesn't come"),
        pytest.param(4, 5, True, id="older: it is of no use any more"),
    ],
)
async def test_a_head_is_held_against_the_file(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd, claimed: int, came: int, is_kept: bool
) -> None:
    origin.put("daily.cvd", make_cvd(claimed))
    await harness.probe()
    harness.heads.put_to_test("daily")(CvdHeader.parse(make_cvd(came)))
    assert (harness.heads.get("daily") is not None) is is_kept
    again = harness.make()
    assert (again.get("daily") is not None) is is_kept
    assert harness.heads.sighting("daily").at > 0, "the origin has answered all the same"


async def test_fields_that_differ_from_the_files_are_wrong(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    body = make_cvd(5, 100_000)
    origin.put("daily.cvd", body[:20].replace(b"20", b"19") + body[20:])
    await harness.probe()
    harness.heads.put_to_test("daily")(CvdHeader.parse(body))
    assert harness.heads.get("daily") is None


async def test_each_state_is_one_line_in_the_log(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    origin.put("daily.cvd", make_cvd(5))
    states = [
        (
            faults.status(500),
            "No header of daily.cvd (status 500 (cf-ray 6d8e7326cd40501e-TST)); next try in",
        ),
        (
            faults.html(),
            "No header of daily.cvd (not a CVD header: does not begin with ClamAV-VDB:); next try",
        ),
        (faults.status(404), "The origin has no daily.cvd: 404"),
        (None, "The header of daily.cvd is available again."),
    ]
    for fault, line in states:
        caplog.clear()
        origin.heal()
        if fault is not None:
            origin.rule("P", fault)
        for _ in range(3):
            harness.clock.now += RECHECK + 1
            with suppress(OriginError, NotFoundError):
                await harness.probe()
        assert len([text for text in caplog.messages if line in text]) == 1, caplog.messages


async def test_a_restart_forgets_nothing(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    await harness.probe()
    again = harness.make()
    assert again.get("daily") == harness.heads.get("daily")
    assert again.sighting("daily").at == harness.heads.sighting("daily").at


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        "x",
        [],
        {},
        {"header": "short", "seen_at": 1},
        {"header": "ClamAV-VDB:".ljust(512), "seen_at": 1},
        {"header": "\xe4" * 512, "seen_at": 1},
        {"header": 5, "seen_at": 1},
        {"header": HEADER, "seen_at": "x"},
        {"header": HEADER, "seen_at": 10**400},
    ],
)
async def test_a_note_that_makes_no_sense_is_dropped(harness: HeadsHarness, value: Any) -> None:
    harness.notes["daily"] = value
    assert harness.make().get("daily") is None
    assert harness.notes == {}


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        pytest.param(faults.status(403), FailureKind.FORBIDDEN, id="403"),
        pytest.param(faults.status(429), FailureKind.RATE_LIMITED, id="429"),
        pytest.param(faults.status(500), FailureKind.SERVER_ERROR, id="500"),
        pytest.param(faults.status(416), FailureKind.BAD_CONTENT, id="416"),
        pytest.param(faults.html(), FailureKind.BAD_CONTENT, id="trap 19"),
        pytest.param(faults.empty(), FailureKind.BAD_CONTENT, id="empty"),
        pytest.param(faults.replaced(b"ClamAV-VDB:x"), FailureKind.BAD_CONTENT, id="short"),
        pytest.param(faults.gzipped(), FailureKind.BAD_CONTENT, id="trap 32"),
        pytest.param(faults.short(100), FailureKind.INTERRUPTED, id="cut"),
        pytest.param(
            faults.Fault(headers={"Content-Range": "bytes 5-516/9999"}),
            FailureKind.BAD_CONTENT,
            id="another range",
        ),
    ],
)
async def test_a_failure_becomes_a_cooldown(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd, fault: faults.Fault, failure: FailureKind
) -> None:
    origin.put("daily.cvd", make_cvd(5, 100_000))
    origin.rule("P", fault)
    with pytest.raises(OriginError) as caught:
        await harness.probe()
    assert caught.value.failure is failure
    assert harness.heads.get("daily") is None
    assert harness.heads.sighting("daily").at == 0.0
    with pytest.raises(CooldownError):
        await harness.probe()
    assert origin.trace == "P"


async def test_trap_20_a_refused_client_does_not_stop_another(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    origin.rule("P", faults.status(403), times=1)
    with pytest.raises(OriginError):
        await harness.probe(requester=OLD)
    assert await harness.probe() == 5
    assert set(harness.cooldowns.in_force()) == {f"client {OLD.version}"}


async def test_trap_20_a_refused_client_does_not_stop_one_that_joined_it(
    harness: HeadsHarness, origin: OriginServer, make_cvd: MakeCvd
) -> None:
    origin.put("daily.cvd", make_cvd(5))
    origin.rule("P", faults.status(403), times=1)
    refused, served = await asyncio.gather(
        harness.probe(requester=OLD), harness.probe(requester=NEW), return_exceptions=True
    )
    assert isinstance(refused, OriginError)
    assert served == 5


async def test_a_missing_file_is_remembered(harness: HeadsHarness, origin: OriginServer) -> None:
    with pytest.raises(NotFoundError):
        await harness.probe("valhalla")
    with pytest.raises(KnownMissingError):
        await harness.probe("valhalla")
    assert harness.cooldowns.in_force() == {}
    assert len(origin.requests()) == 1


async def test_stop(harness: HeadsHarness, origin: OriginServer) -> None:
    origin.rule("*", faults.silent())
    probe = asyncio.create_task(harness.probe())
    await until(origin.requests)
    harness.heads.stop()
    with pytest.raises(asyncio.CancelledError):
        await probe
