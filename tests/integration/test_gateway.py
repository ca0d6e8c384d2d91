"""The application: requests in, responses out, between a fake CDN and a fake DNS server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from werkzeug.http import http_date

from clamproxy.formats.version_record import OLDEST_RECORD
from clamproxy.messages import CACHE_STATUS, Requester, Result, SourceError
from clamproxy.policy import OLDEST_CDIFF
from clamproxy.serving import gateway as gateway_module
from tests.harness.service import ServiceHarness
from tests.support import faults
from tests.support.clock import ClockAhead
from tests.support.dns_server import FakeDns
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, OLD_AGENT, stime_of

PROBE = {"Range": "bytes=0-511"}
REFRESH = 301
"""Seconds; then the answers of DNS count no more."""


@pytest.fixture
async def harness(tmp_path: Path, origin: OriginServer, make_cvd: MakeCvd) -> AsyncIterator[ServiceHarness]:
    """Version 5 is advertised and there, as a CVD of 300 KB and a patch."""
    with FakeDns() as dns:
        dns.versions["daily"] = 5
        origin.put("daily.cvd", make_cvd(5, 300_000))
        origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
        harness = ServiceHarness(tmp_path / "cache", origin, dns, ClockAhead())
        yield harness
        harness.service.stop()


async def test_miss_and_hit(harness: ServiceHarness, make_cvd: MakeCvd) -> None:
    for path, body in (("/daily.cvd", make_cvd(5, 300_000)), ("/daily-5.cdiff", forge_cdiff("daily", 5))):
        for result in (Result.MISS, Result.HIT):
            response, content = await harness.ask(path)
            assert (response.status, response.result, content, response.version) == (200, result, body, 5)
            assert response.headers["Cache-Status"] == CACHE_STATUS[result]
            assert response.headers["Via"].startswith("1.1 clamproxy-")
            assert "Date" in response.headers
            await harness.settle()
    assert harness.origin.trace == "P W D5"
    assert harness.dns.queries == ["current.cvd.clamav.net"]


async def test_trap_11_a_probe_on_a_cold_cache_costs_a_probe(
    harness: ServiceHarness, make_cvd: MakeCvd
) -> None:
    for result in (Result.MISS, Result.HIT):
        response, content = await harness.ask("/daily.cvd", **PROBE)
        assert (response.status, response.result, content) == (206, result, make_cvd(5, 300_000)[:512])
    assert harness.origin.trace == "P"


async def test_the_doctor_is_no_client_in_whose_name_to_ask(harness: ServiceHarness) -> None:
    """What only the doctor asks for is of no use to anybody, so nothing of it is looked for later."""
    await harness.ask("/daily.cvd", **PROBE, Clamproxy_Doctor="yes")
    await harness.ask("/daily.cvd", agent=OLD_AGENT, **PROBE)
    assert harness.service.clamav.origin.agents.requester() is None
    await harness.ask("/daily.cvd", **PROBE)
    assert harness.service.clamav.origin.agents.requester() == Requester(AGENT)


async def test_trap_13_probe_and_file_agree_while_the_cdn_moves_on(
    harness: ServiceHarness, make_cvd: MakeCvd
) -> None:
    await harness.ask("/daily.cvd")
    await harness.settle()
    harness.origin.put("daily.cvd", make_cvd(6, 300_000))
    probe, head = await harness.ask("/daily.cvd", **PROBE)
    whole, body = await harness.ask("/daily.cvd")
    assert (probe.version, whole.version) == (5, 5)
    assert body[:512] == head


async def test_trap_3_news_are_fetched_at_once(harness: ServiceHarness, make_cvd: MakeCvd) -> None:
    await harness.ask("/daily.cvd")
    await harness.settle()
    harness.origin.put("daily.cvd", make_cvd(6, 300_000))
    harness.dns.versions["daily"] = 6
    harness.restart()
    harness.clock.ahead += REFRESH
    response, _ = await harness.ask("/daily.cvd")
    assert (response.version, response.result) == (6, Result.MISS)


async def test_trap_25_a_demand_is_looked_into(harness: ServiceHarness, make_cvd: MakeCvd) -> None:
    await harness.ask("/daily.cvd")
    await harness.settle()
    harness.origin.put("daily.cvd", make_cvd(6, 300_000))
    response, _ = await harness.ask("/daily.cvd?version=6")
    assert (response.version, response.result) == (6, Result.MISS)


async def test_trap_5_the_cdn_lags_behind_dns(harness: ServiceHarness) -> None:
    harness.dns.versions["daily"] = 6
    for result in (Result.MISS, Result.HIT, Result.HIT):
        response, _ = await harness.ask("/daily.cvd")
        assert (response.status, response.version, response.result) == (200, 5, result)
        await harness.settle()
    # The patch that would lead on is looked for, once.
    assert harness.origin.trace == "P W D6"


@pytest.mark.parametrize(
    "fault",
    [faults.status(403), faults.status(429), faults.status(500), faults.html(), faults.short(10)],
    ids=["403", "429", "500", "HTML", "cut"],
)
@pytest.mark.parametrize("path", ["/daily.cvd", "/daily-5.cdiff", "/daily-5.cdiff.sign"])
async def test_trap_20_trouble_of_the_origin_is_a_503(
    harness: ServiceHarness, path: str, fault: faults.Fault
) -> None:
    harness.origin.rule("*", fault)
    harness.origin.put("daily-5.cdiff.sign", b"#clamsign-1.0\n" * 10)
    for _ in range(3):
        response, _ = await harness.ask(path)
        assert (response.status, response.result) == (503, Result.ERROR)
        assert int(response.headers["Retry-After"]) >= 1
    assert len(harness.origin.requests()) <= 3


@pytest.mark.parametrize("fault", [faults.status(403), faults.status(500), faults.html(), faults.short(99)])
async def test_trap_29_stale_rather_than_an_error(
    harness: ServiceHarness, make_cvd: MakeCvd, fault: faults.Fault
) -> None:
    await harness.ask("/daily.cvd")
    await harness.settle()
    harness.dns.versions["daily"] = 6
    harness.restart()
    harness.clock.ahead += REFRESH
    harness.origin.rule("*", fault)
    response, body = await harness.ask("/daily.cvd")
    assert (response.status, response.version, response.result) == (200, 5, Result.STALE)
    assert body == make_cvd(5, 300_000)
    assert response.headers["Cache-Status"] == "clamproxy; fwd=stale"


async def test_trap_29_a_new_cvd_that_is_corrupt(harness: ServiceHarness, make_cvd: MakeCvd) -> None:
    await harness.ask("/daily.cvd")
    await harness.settle()
    corrupt = make_cvd(6, 300_000)[:-1] + b"x"
    harness.origin.put("daily.cvd", corrupt[:512] + b"x" + corrupt[513:])
    harness.dns.versions["daily"] = 6
    harness.clock.ahead += REFRESH
    with pytest.raises(SourceError, match="MD5"):  # who reads along is cut
        await harness.ask("/daily.cvd")
    await harness.settle()
    response, body = await harness.ask("/daily.cvd")
    assert (response.version, body) == (5, make_cvd(5, 300_000))


async def test_trap_20_an_old_client_does_not_stop_a_new_one(harness: ServiceHarness) -> None:
    harness.origin.rule("*", faults.status(403), times=1)
    old, _ = await harness.ask("/daily-5.cdiff", agent=OLD_AGENT)
    new, _ = await harness.ask("/daily-5.cdiff", agent=AGENT)
    assert (old.status, new.status) == (503, 200)


async def test_trap_20_an_old_client_does_not_stop_a_new_one_that_joined_it(harness: ServiceHarness) -> None:
    harness.origin.rule("*", faults.status(403), times=1)
    (old, _), (new, _) = await asyncio.gather(
        harness.ask("/daily-5.cdiff", agent=OLD_AGENT), harness.ask("/daily-5.cdiff", agent=AGENT)
    )
    assert (old.status, new.status) == (503, 200)


async def test_trap_16_a_404_and_its_memory(harness: ServiceHarness) -> None:
    for result in (Result.MISS, Result.NEGATIVE, Result.NEGATIVE):
        response, _ = await harness.ask("/daily-6.cdiff")
        assert (response.status, response.result) == (404, result)
    assert harness.origin.trace == "D6"


async def test_trap_22_a_cld_is_not_asked_for(harness: ServiceHarness) -> None:
    response, _ = await harness.ask("/daily.cld", **PROBE)
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert harness.origin.requests() == []


@pytest.mark.parametrize("path", ["/", "/x.cvd", "/../daily.cvd", "/daily-5.cvd", "/dns.txt"])
async def test_a_path_that_the_cdn_has_not(harness: ServiceHarness, path: str) -> None:
    response, _ = await harness.ask(path)
    assert (response.status, response.result) == (404, Result.REFUSED)
    assert harness.origin.requests() == []


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE", "get"])
async def test_other_methods(harness: ServiceHarness, method: str) -> None:
    response, _ = await harness.ask("/daily.cvd", method=method)
    assert (response.status, response.result, response.headers["Allow"]) == (405, Result.REFUSED, "GET, HEAD")
    assert harness.origin.requests() == []


async def test_a_loop_is_cut(harness: ServiceHarness) -> None:
    first, _ = await harness.ask("/daily-5.cdiff")
    via = f"1.1 squid, {first.headers['Via']}"
    looped, _ = await harness.ask("/daily-5.cdiff", Via=via)
    other, _ = await harness.ask("/daily-5.cdiff", Via="1.1 clamproxy-00000000")
    assert (looped.status, looped.result, other.status) == (502, Result.REFUSED, 200)


async def test_trap_31_head_fetches_no_body(harness: ServiceHarness) -> None:
    response, body = await harness.ask("/daily.cvd", method="HEAD")
    assert (response.status, body) == (200, b"")
    assert "Content-Length" not in response.headers  # nobody knows it for sure
    assert harness.origin.trace == "P"


async def test_trap_6_nothing_newer(harness: ServiceHarness) -> None:
    for _ in range(2):
        response, _ = await harness.ask("/daily.cvd", If_Modified_Since=http_date(stime_of(5)))
        assert response.status == 304
    assert harness.origin.trace == "P W"  # that nothing is newer is known when the file is here


@pytest.mark.parametrize("path", ["/daily.cvd", "/daily-5.cdiff"])
async def test_trap_28_patience_ends(
    harness: ServiceHarness, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "PATIENCE", 0.2)
    harness.origin.rule("*", faults.silent())
    response, _ = await harness.ask(path)
    assert (response.status, response.result) == (503, Result.ERROR)


async def test_a_bug_is_a_503_and_logged(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(harness.service.store, "open", broken)
    response, _ = await harness.ask("/daily-5.cdiff")
    assert (response.status, response.result) == (503, Result.ERROR)
    assert "a bug" in caplog.text


async def test_a_cooldown_survives_a_restart(harness: ServiceHarness) -> None:
    harness.origin.rule("D5", faults.status(429, retry_after="3600"))
    await harness.ask("/daily-5.cdiff")
    await harness.settle()
    harness.restart()
    response, _ = await harness.ask("/daily-5.cdiff")
    assert response.status == 503
    assert 1000 < int(response.headers["Retry-After"]) <= 3600
    assert harness.origin.trace == "D5"


async def test_what_is_cached_is_served_without_origin_and_dns(harness: ServiceHarness) -> None:
    await harness.ask("/daily.cvd")
    await harness.ask("/daily-5.cdiff")
    await harness.settle()
    harness.restart()
    harness.origin.refuse()
    harness.dns.close()
    for path in ("/daily.cvd", "/daily-5.cdiff"):
        assert (await harness.ask(path))[0].result is Result.HIT


async def test_a_version_that_a_client_made_up_is_not_asked_for(harness: ServiceHarness) -> None:
    response, _ = await harness.ask("/daily-11.cdiff")
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert harness.origin.requests() == []
    response, _ = await harness.ask("/daily-10.cdiff")
    assert (response.status, response.result) == (404, Result.MISS)


async def test_a_patch_that_the_cdn_gave_up_long_ago_is_not_asked_for(harness: ServiceHarness) -> None:
    harness.dns.versions["daily"] = 5 + OLDEST_CDIFF + 1
    response, _ = await harness.ask("/daily-5.cdiff")
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert harness.origin.requests() == []
    response, _ = await harness.ask("/daily-6.cdiff")
    assert (response.status, response.result) == (404, Result.MISS)
    assert harness.origin.trace == "D6"


async def test_without_a_fresh_answer_of_dns_any_version_is_asked_for(harness: ServiceHarness) -> None:
    harness.dns.versions["daily"] = 5 + OLDEST_CDIFF + 1
    await harness.ask("/daily.cld")
    harness.dns.close()
    harness.clock.ahead += OLDEST_RECORD
    assert (await harness.ask("/daily-5.cdiff"))[0].status == 200


# Fields that no client sends


@pytest.mark.parametrize(
    "agent",
    [
        pytest.param("ClamAV/1.4.6 " + "x" * 20_000, id="20 KB"),
        pytest.param("ClamAV/1.4.6 (OS: \x01\x1b[2J)", id="control characters"),
        pytest.param("ClamAV/1.4.6 \t(x)", id="a tab"),
        pytest.param("ClamAV/1.4.6 (OS: L\u00efnux)", id="Latin-1"),
        pytest.param("ClamAV/1.4.6 (OS: \u2665)", id="beyond Latin-1"),
        pytest.param("", id="empty"),
    ],
)
async def test_an_odd_user_agent_stays_here(harness: ServiceHarness, agent: str) -> None:
    for path in ("/daily.cvd", "/daily-5.cdiff"):
        assert (await harness.ask(path, agent=agent))[0].status == 200
    assert harness.origin.trace == "P W D5"
    assert [seen.headers.get("user-agent") for seen in harness.origin.requests()] == [None] * 3
    assert harness.service.clamav.origin.agents.requester() is None, "nor is anything else asked in its name"


async def test_a_refusal_of_an_odd_user_agent_is_nobody_elses(harness: ServiceHarness) -> None:
    harness.origin.rule("*", faults.status(403), times=1)
    assert (await harness.ask("/daily-5.cdiff", agent="ClamAV/1.4.6 \x01"))[0].status == 503
    assert (await harness.ask("/daily-5.cdiff"))[0].status == 200


@pytest.mark.parametrize(
    ("via", "status"),
    [
        pytest.param("1.1 a, " * 146 + "ab", 200, id="1024 characters"),
        pytest.param("1.1 a, " * 146 + "abc", 502, id="1025"),
        pytest.param("1.1 gateway, " * 2000, 502, id="26 KB"),
        pytest.param("1.1 a\x01", 502, id="a control character"),
        pytest.param("1.1 \u00fc", 502, id="not ASCII"),
    ],
)
async def test_a_via_that_cannot_be_true_is_a_loop(harness: ServiceHarness, via: str, status: int) -> None:
    response, _ = await harness.ask("/daily-5.cdiff", Via=via)
    assert response.status == status
    assert (response.result is Result.REFUSED) is (status == 502)
    seen = [request.headers["via"] for request in harness.origin.requests()]
    assert seen == ([f"{via}, {harness.service.via}"] if status == 200 else [])


# Refusals


async def test_trap_20_not_each_version_finds_out_that_the_address_is_blocked(
    harness: ServiceHarness,
) -> None:
    await harness.ask("/daily.cvd", agent="ClamAV/1.5.0")
    await harness.settle()
    harness.origin.forget()
    harness.origin.rule("*", faults.status(403))
    for patch in range(4):
        response, _ = await harness.ask("/daily-5.cdiff", agent=f"ClamAV/1.4.{patch}")
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        await harness.settle()
    agents = [seen.headers["user-agent"] for seen in harness.origin.requests()]
    assert agents == ["ClamAV/1.4.0", "ClamAV/1.4.1", "ClamAV/1.4.2"]
    harness.origin.heal()
    assert (await harness.ask("/daily-5.cdiff", agent="ClamAV/1.4.3"))[0].status == 503
    assert (await harness.ask("/daily-5.cdiff", agent="ClamAV/1.5.0"))[0].status == 200
    await harness.settle()
    assert (await harness.ask("/daily-5.cdiff", agent="ClamAV/1.4.3"))[0].status == 200, "it is here now"
