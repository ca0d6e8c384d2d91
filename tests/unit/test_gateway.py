"""The application: requests in, responses out, between a fake CDN and a fake DNS server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from werkzeug.http import http_date

from clamproxy.messages import CACHE_STATUS, Requester, Result, SourceError
from clamproxy.policy import OLDEST_CDIFF
from clamproxy.serving import gateway as gateway_module
from tests.support import faults
from tests.support.dns_server import FakeDns
from tests.support.forge import forge_cdiff
from tests.support.origin import OriginServer
from tests.unit.conftest import AGENT, OLD_AGENT, MakeCvd, stime_of
from tests.unit.gateway_site import Site

PROBE = {"Range": "bytes=0-511"}


@pytest.fixture
async def site(tmp_path: Path, origin: OriginServer, make_cvd: MakeCvd) -> AsyncIterator[Site]:
    """Version 5 is advertised and there, as a CVD of 300 KB and a patch."""
    with FakeDns() as dns:
        dns.versions["daily"] = 5
        origin.put("daily.cvd", make_cvd(5, 300_000))
        origin.put("daily-5.cdiff", forge_cdiff("daily", 5))
        site = Site(tmp_path / "cache", origin, dns)
        yield site
        site.service.stop()


async def test_miss_and_hit(site: Site, make_cvd: MakeCvd) -> None:
    for path, body in (("/daily.cvd", make_cvd(5, 300_000)), ("/daily-5.cdiff", forge_cdiff("daily", 5))):
        for result in (Result.MISS, Result.HIT):
            response, content = await site.ask(path)
            assert (response.status, response.result, content, response.version) == (200, result, body, 5)
            assert response.headers["Cache-Status"] == CACHE_STATUS[result]
            assert response.headers["Via"].startswith("1.1 clamproxy-")
            assert "Date" in response.headers
            await site.settle()
    assert site.origin.trace == "P W D5"
    assert site.dns.queries == ["current.cvd.clamav.net"]


async def test_trap_11_a_probe_on_a_cold_cache_costs_a_probe(site: Site, make_cvd: MakeCvd) -> None:
    for result in (Result.MISS, Result.HIT):
        response, content = await site.ask("/daily.cvd", **PROBE)
        assert (response.status, response.result, content) == (206, result, make_cvd(5, 300_000)[:512])
    assert site.origin.trace == "P"


async def test_the_doctor_is_no_client_in_whose_name_to_ask(site: Site) -> None:
    """What only the doctor asks for is of no use to anybody, so nothing of it is looked for later."""
    await site.ask("/daily.cvd", **PROBE, Clamproxy_Doctor="yes")
    await site.ask("/daily.cvd", agent=OLD_AGENT, **PROBE)
    assert site.service._origin.agents.requester() is None
    await site.ask("/daily.cvd", **PROBE)
    assert site.service._origin.agents.requester() == Requester(AGENT)


async def test_trap_13_probe_and_file_agree_while_the_cdn_moves_on(site: Site, make_cvd: MakeCvd) -> None:
    await site.ask("/daily.cvd")
    await site.settle()
    site.origin.put("daily.cvd", make_cvd(6, 300_000))
    probe, head = await site.ask("/daily.cvd", **PROBE)
    whole, body = await site.ask("/daily.cvd")
    assert (probe.version, whole.version) == (5, 5)
    assert body[:512] == head


async def test_trap_3_news_are_fetched_at_once(site: Site, make_cvd: MakeCvd) -> None:
    await site.ask("/daily.cvd")
    await site.settle()
    site.origin.put("daily.cvd", make_cvd(6, 300_000))
    site.dns.versions["daily"] = 6
    site.restart()
    site.service._origin.versions._known.clear()  # the refresh interval has passed
    response, _ = await site.ask("/daily.cvd")
    assert (response.version, response.result) == (6, Result.MISS)


async def test_trap_25_a_demand_is_looked_into(site: Site, make_cvd: MakeCvd) -> None:
    await site.ask("/daily.cvd")
    await site.settle()
    site.origin.put("daily.cvd", make_cvd(6, 300_000))
    response, _ = await site.ask("/daily.cvd?version=6")
    assert (response.version, response.result) == (6, Result.MISS)


async def test_trap_5_the_cdn_lags_behind_dns(site: Site) -> None:
    site.dns.versions["daily"] = 6
    for result in (Result.MISS, Result.HIT, Result.HIT):
        response, _ = await site.ask("/daily.cvd")
        assert (response.status, response.version, response.result) == (200, 5, result)
        await site.settle()
    # The patch that would lead on is looked for, once.
    assert site.origin.trace == "P W D6"


@pytest.mark.parametrize(
    "fault",
    [faults.status(403), faults.status(429), faults.status(500), faults.html(), faults.short(10)],
    ids=["403", "429", "500", "HTML", "cut"],
)
@pytest.mark.parametrize("path", ["/daily.cvd", "/daily-5.cdiff", "/daily-5.cdiff.sign"])
async def test_trap_20_trouble_of_the_origin_is_a_503(site: Site, path: str, fault: faults.Fault) -> None:
    site.origin.rule("*", fault)
    site.origin.put("daily-5.cdiff.sign", b"#clamsign-1.0\n" * 10)
    for _ in range(3):
        response, _ = await site.ask(path)
        assert (response.status, response.result) == (503, Result.ERROR)
        assert int(response.headers["Retry-After"]) >= 1
    assert len(site.origin.requests()) <= 3


@pytest.mark.parametrize("fault", [faults.status(403), faults.status(500), faults.html(), faults.short(99)])
async def test_trap_29_stale_rather_than_an_error(site: Site, make_cvd: MakeCvd, fault: faults.Fault) -> None:
    await site.ask("/daily.cvd")
    await site.settle()
    site.dns.versions["daily"] = 6
    site.restart()
    site.service._origin.versions._known.clear()
    site.origin.rule("*", fault)
    response, body = await site.ask("/daily.cvd")
    assert (response.status, response.version, response.result) == (200, 5, Result.STALE)
    assert body == make_cvd(5, 300_000)
    assert response.headers["Cache-Status"] == "clamproxy; fwd=stale"


async def test_trap_29_a_new_cvd_that_is_corrupt(site: Site, make_cvd: MakeCvd) -> None:
    await site.ask("/daily.cvd")
    await site.settle()
    corrupt = make_cvd(6, 300_000)[:-1] + b"x"
    site.origin.put("daily.cvd", corrupt[:512] + b"x" + corrupt[513:])
    site.dns.versions["daily"] = 6
    site.service._origin.versions._known.clear()
    with pytest.raises(SourceError, match="MD5"):  # who reads along is cut
        await site.ask("/daily.cvd")
    await site.settle()
    response, body = await site.ask("/daily.cvd")
    assert (response.version, body) == (5, make_cvd(5, 300_000))


async def test_trap_20_an_old_client_does_not_stop_a_new_one(site: Site) -> None:
    site.origin.rule("*", faults.status(403), times=1)
    old, _ = await site.ask("/daily-5.cdiff", agent=OLD_AGENT)
    new, _ = await site.ask("/daily-5.cdiff", agent=AGENT)
    assert (old.status, new.status) == (503, 200)


async def test_trap_20_nor_when_the_new_one_joined_it(site: Site) -> None:
    site.origin.rule("*", faults.status(403), times=1)
    (old, _), (new, _) = await asyncio.gather(
        site.ask("/daily-5.cdiff", agent=OLD_AGENT), site.ask("/daily-5.cdiff", agent=AGENT)
    )
    assert (old.status, new.status) == (503, 200)


async def test_trap_16_a_404_and_its_memory(site: Site) -> None:
    for result in (Result.MISS, Result.NEGATIVE, Result.NEGATIVE):
        response, _ = await site.ask("/daily-6.cdiff")
        assert (response.status, response.result) == (404, result)
    assert site.origin.trace == "D6"


async def test_trap_22_a_cld_is_not_asked_for(site: Site) -> None:
    response, _ = await site.ask("/daily.cld", **PROBE)
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert site.origin.requests() == []


@pytest.mark.parametrize("path", ["/", "/x.cvd", "/../daily.cvd", "/daily-5.cvd", "/dns.txt"])
async def test_a_path_that_the_cdn_has_not(site: Site, path: str) -> None:
    response, _ = await site.ask(path)
    assert (response.status, response.result) == (404, Result.REFUSED)
    assert site.origin.requests() == []


@pytest.mark.parametrize("method", ["POST", "PUT", "OPTIONS", "DELETE", "get"])
async def test_other_methods(site: Site, method: str) -> None:
    response, _ = await site.ask("/daily.cvd", method=method)
    assert (response.status, response.result, response.headers["Allow"]) == (405, Result.REFUSED, "GET, HEAD")
    assert site.origin.requests() == []


async def test_a_loop_is_cut(site: Site) -> None:
    first, _ = await site.ask("/daily-5.cdiff")
    via = f"1.1 squid, {first.headers['Via']}"
    looped, _ = await site.ask("/daily-5.cdiff", Via=via)
    other, _ = await site.ask("/daily-5.cdiff", Via="1.1 clamproxy-00000000")
    assert (looped.status, looped.result, other.status) == (502, Result.REFUSED, 200)


async def test_trap_31_head_fetches_no_body(site: Site) -> None:
    response, body = await site.ask("/daily.cvd", method="HEAD")
    assert (response.status, body) == (200, b"")
    assert "Content-Length" not in response.headers  # nobody knows it for sure
    assert site.origin.trace == "P"


async def test_trap_6_nothing_newer(site: Site) -> None:
    for _ in range(2):
        response, _ = await site.ask("/daily.cvd", If_Modified_Since=http_date(stime_of(5)))
        assert response.status == 304
    assert site.origin.trace == "P W"  # that nothing is newer is known when the file is here


@pytest.mark.parametrize("path", ["/daily.cvd", "/daily-5.cdiff"])
async def test_trap_28_patience_ends(site: Site, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "PATIENCE", 0.2)
    site.origin.rule("*", faults.silent())
    response, _ = await site.ask(path)
    assert (response.status, response.result) == (503, Result.ERROR)


async def test_a_bug_is_a_503_and_logged(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(site.service.store, "open", broken)
    response, _ = await site.ask("/daily-5.cdiff")
    assert (response.status, response.result) == (503, Result.ERROR)
    assert "a bug" in caplog.text


async def test_a_cooldown_survives_a_restart(site: Site) -> None:
    site.origin.rule("D5", faults.status(429, retry_after="3600"))
    await site.ask("/daily-5.cdiff")
    await site.settle()
    site.restart()
    response, _ = await site.ask("/daily-5.cdiff")
    assert response.status == 503
    assert 1000 < int(response.headers["Retry-After"]) <= 3600
    assert site.origin.trace == "D5"


async def test_what_is_cached_is_served_without_origin_and_dns(site: Site) -> None:
    await site.ask("/daily.cvd")
    await site.ask("/daily-5.cdiff")
    await site.settle()
    site.restart()
    site.origin.refuse()
    site.dns.close()
    for path in ("/daily.cvd", "/daily-5.cdiff"):
        assert (await site.ask(path))[0].result is Result.HIT


async def test_a_version_that_a_client_made_up_is_not_asked_for(site: Site) -> None:
    response, _ = await site.ask("/daily-11.cdiff")
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert site.origin.requests() == []
    response, _ = await site.ask("/daily-10.cdiff")
    assert (response.status, response.result) == (404, Result.MISS)


async def test_nor_is_a_patch_that_the_cdn_gave_up_long_ago(site: Site) -> None:
    site.dns.versions["daily"] = 5 + OLDEST_CDIFF + 1
    response, _ = await site.ask("/daily-5.cdiff")
    assert (response.status, response.result) == (404, Result.NEGATIVE)
    assert site.origin.requests() == []
    response, _ = await site.ask("/daily-6.cdiff")
    assert (response.status, response.result) == (404, Result.MISS)
    assert site.origin.trace == "D6"


async def test_but_without_a_fresh_answer_of_dns_it_is(site: Site) -> None:
    site.dns.versions["daily"] = 5 + OLDEST_CDIFF + 1
    await site.ask("/daily.cld")
    site.service._origin.versions._known = {"daily": (5 + OLDEST_CDIFF + 1, 1.0)}
    site.dns.close()
    assert (await site.ask("/daily-5.cdiff"))[0].status == 200


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
async def test_an_odd_user_agent_stays_here(site: Site, agent: str) -> None:
    for path in ("/daily.cvd", "/daily-5.cdiff"):
        assert (await site.ask(path, agent=agent))[0].status == 200
    assert site.origin.trace == "P W D5"
    assert [seen.headers.get("user-agent") for seen in site.origin.requests()] == [None] * 3
    assert site.service._origin.agents.requester() is None, "nor is anything else asked in its name"


async def test_a_refusal_of_an_odd_one_is_nobody_elses(site: Site) -> None:
    site.origin.rule("*", faults.status(403), times=1)
    assert (await site.ask("/daily-5.cdiff", agent="ClamAV/1.4.6 \x01"))[0].status == 503
    assert (await site.ask("/daily-5.cdiff"))[0].status == 200


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
async def test_a_via_that_cannot_be_true_is_a_loop(site: Site, via: str, status: int) -> None:
    response, _ = await site.ask("/daily-5.cdiff", Via=via)
    assert response.status == status
    assert (response.result is Result.REFUSED) is (status == 502)
    seen = [request.headers["via"] for request in site.origin.requests()]
    assert seen == ([f"{via}, {site.service.via}"] if status == 200 else [])


# Refusals


async def test_trap_20_not_each_version_finds_out_that_the_address_is_blocked(site: Site) -> None:
    await site.ask("/daily.cvd", agent="ClamAV/1.5.0")
    await site.settle()
    site.origin.forget()
    site.origin.rule("*", faults.status(403))
    for patch in range(4):
        response, _ = await site.ask("/daily-5.cdiff", agent=f"ClamAV/1.4.{patch}")
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        await site.settle()
    agents = [seen.headers["user-agent"] for seen in site.origin.requests()]
    assert agents == ["ClamAV/1.4.0", "ClamAV/1.4.1", "ClamAV/1.4.2"]
    site.origin.heal()
    assert (await site.ask("/daily-5.cdiff", agent="ClamAV/1.4.3"))[0].status == 503
    assert (await site.ask("/daily-5.cdiff", agent="ClamAV/1.5.0"))[0].status == 200
    await site.settle()
    assert (await site.ask("/daily-5.cdiff", agent="ClamAV/1.4.3"))[0].status == 200, "it is here now"
