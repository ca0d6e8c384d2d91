"""Whole databases: delta serving, CLDs, and what an offline gateway answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy import current as current_module
from clamproxy.config.settings import Settings
from clamproxy.formats.cld import verify_cld
from clamproxy.formats.header import CvdHeader
from clamproxy.messages import Body, Reply, Request, Result
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin import versions as versions_module
from clamproxy.origin.budget import PER_FILE
from clamproxy.service import Service
from tests.support import faults
from tests.support.dns_server import FakeDns
from tests.support.forge import forge_keys
from tests.support.origin import Origin
from tests.support.releases import Releases
from tests.unit.conftest import AGENT, OLD_AGENT, cdiff, cvd, read_all, until

PROBE = {"Range": "bytes=0-511"}
RELEASES = Releases(filler=100_000)
"""CVDs of 75 KB, cdiffs of 1 KB."""
NEWEST = 4


class Clock:
    """The time, and more: answers of DNS grow old by it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Site:
    """A gateway with what is around it. Nothing is fetched ahead unless a test does it."""

    def __init__(self, directory: Path, origin: Origin, dns: FakeDns, clock: Clock) -> None:
        self.directory, self.origin, self.dns, self.clock = directory, origin, dns, clock
        self.service = self.make()

    def make(self, **sections: dict[str, Any]) -> Service:
        settings = Settings.model_validate(
            {
                **sections,
                "cache": {"directory": self.directory, **sections.get("cache", {})},
                "upstream": {
                    "url": self.origin.url,
                    "read_timeout": "5s",
                    **sections.get("upstream", {}),
                },
                "versions": {"nameservers": [self.dns.nameserver], **sections.get("versions", {})},
            }
        )
        return Service(settings, forge_keys().trusted)

    def restart(self, **sections: dict[str, Any]) -> None:
        """With other settings."""
        self.service.stop()
        self.service = self.make(**sections)

    def release(self, version: int, *, base: int | None = None) -> None:
        """Publish a version, or all but its CVD, and advertise it; the record starts anew."""
        RELEASES.publish(self.origin, version, base=base)
        self.advertise(version)
        self.origin.forget()

    def advertise(self, version: int) -> None:
        self.dns.versions["daily"] = version
        self.clock.ahead += 400

    async def begin(self, base: int = 1) -> None:
        """Have a base cached."""
        self.release(base)
        assert (await self.ask())[0].version == base
        await self.settle()

    async def hold(self, base: int = 1, reached: int = NEWEST) -> None:
        """Have a base and the patches from there on cached; the origin has the whole of the last."""
        await self.begin(base)
        self.release(reached)
        assert (await self.ask())[0].version == base
        await self.settle()
        self.origin.forget()

    async def settle(self) -> None:
        """Wait until nothing is fetched, and what is superseded is gone."""
        await until(lambda: not self.service._prefetcher._running and not self.service._transfers._running)
        await self.service.writer.run(lambda: None)

    async def ask(
        self, path: str = "/daily.cvd", *, method: str = "GET", agent: str = AGENT, **fields: str
    ) -> tuple[Reply, bytes]:
        """One request, and its body as a sender reads it."""
        headers = Headers([("User-Agent", agent)])
        for name, value in fields.items():
            headers[name.replace("_", "-")] = value
        reply = await self.service.gateway.handle(Request(method, path, headers))
        if not isinstance(reply.body, Body):
            return reply, reply.body
        content = await read_all(reply.body.source)
        reply.body.source.close()
        return reply, content[reply.body.start : reply.body.start + reply.body.length]

    async def shown(self, path: str = "/daily.cvd") -> int:
        """The version that a header probe shows."""
        reply, content = await self.ask(path, **PROBE)
        assert (reply.status, len(content)) == (206, 512), content
        return CvdHeader.parse(content).version

    async def refused(self, path: str, **fields: str) -> bool:
        return (await self.ask(path, **fields))[0].status == 404


@pytest.fixture
async def site(tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    clock = Clock()
    monkeypatch.setattr(versions_module, "time", clock)
    with FakeDns() as dns:
        site = Site(tmp_path / "cache", origin, dns, clock)
        yield site
        await site.settle()
        site.service.stop()


def since(version: int, seconds: int = 0) -> str:
    """If-Modified-Since of a client that has a version."""
    return http_date(RELEASES.stime(version) + seconds)


# Delta serving


async def test_a_release_costs_its_patches(site: Site) -> None:
    await site.begin()
    site.release(NEWEST)
    for _ in range(2):
        reply, content = await site.ask()
        assert (reply.status, reply.result, content) == (200, Result.HIT, RELEASES.cvd(1))
    for version in range(2, NEWEST + 1):
        reply, content = await site.ask(f"/daily-{version}.cdiff")
        assert (reply.result, content) == (Result.HIT, RELEASES.cdiff(version))
    assert sorted(site.origin.trace.split()) == ["D2", "D3", "D4"]


async def test_trap_13_the_header_probe_shows_what_is_advertised(site: Site) -> None:
    await site.hold()
    reply, content = await site.ask(**PROBE)
    assert (reply.status, reply.result, reply.version) == (206, Result.HIT, NEWEST)
    assert content == RELEASES.cld_header(NEWEST)
    assert reply.headers["Content-Range"] == "bytes 0-511/*"
    assert "ETag" not in reply.headers
    assert site.origin.requests() == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"If_Modified_Since": since(1)}, id="a freshclam that has the base"),
        pytest.param({"If_Modified_Since": since(2)}, id="a freshclam that has a version between"),
        pytest.param({"If_Modified_Since": http_date(0)}, id="cvdupdate's epoch"),
        pytest.param({"If_None_Match": '"daily-1.cvd"'}, id="somebody who has a tag of it"),
        pytest.param({"Range": "bytes=0-"}, id="somebody who resumes"),
        pytest.param({"Range": "bytes=-100"}, id="somebody who wants the end"),
        pytest.param({"agent": "curl/8.5.0"}, id="no freshclam"),
        pytest.param({"agent": "CVDUPDATE/1.2.0 (x)"}, id="cvdupdate"),
        pytest.param({"agent": ""}, id="nobody"),
        pytest.param({"Via": "1.1 clamproxy-00000000"}, id="a gateway, to whom a header promised more"),
    ],
)
async def test_who_would_keep_the_older_version_gets_the_newest_whole(
    site: Site, fields: dict[str, str]
) -> None:
    await site.hold()
    reply, content = await site.ask(**fields)
    assert reply.version == NEWEST
    assert RELEASES.cvd(NEWEST).endswith(content)
    assert len(content) >= 100
    assert site.origin.trace == "P W"
    await site.settle()
    assert (await site.ask())[1] == RELEASES.cvd(NEWEST), "it is the base from then on"


@pytest.mark.parametrize(
    ("have", "status"),
    [
        pytest.param(since(1), 206, id="older"),
        pytest.param(since(NEWEST, -1), 206, id="a little older"),
        pytest.param(since(NEWEST), 304, id="trap 6: this very version"),
        pytest.param(since(NEWEST + 1), 304, id="newer"),
    ],
)
async def test_a_conditional_probe(site: Site, have: str, status: int) -> None:
    await site.hold()
    reply, _ = await site.ask(**PROBE, If_Modified_Since=have)
    assert (reply.status, reply.version) == (status, NEWEST)
    assert site.origin.count("W") == 0


async def test_trap_8_a_download_before_the_upload(site: Site) -> None:
    """Built but not uploaded: the origin's own header tells that this client has an older one."""
    await site.hold()
    reply, content = await site.ask(If_Modified_Since=since(NEWEST, 30))
    assert (reply.status, content) == (200, RELEASES.cvd(NEWEST))


async def test_trap_31_head(site: Site) -> None:
    await site.hold()
    reply, content = await site.ask(method="HEAD")
    assert (reply.status, content, reply.version) == (200, b"", NEWEST)
    assert reply.headers["Content-Length"] == str(len(RELEASES.cvd(NEWEST)))
    assert site.origin.count("W") == 0


@pytest.mark.parametrize("path", ["/daily.cvd?version=1", "/daily.cvd?version=4"])
async def test_cvdupdate_gets_the_version_that_it_names(site: Site, path: str) -> None:
    await site.hold()
    for _ in range(2):
        _, content = await site.ask(path, agent="CVDUPDATE/1.2.0 (x)", If_Modified_Since=http_date(0))
        assert content == RELEASES.cvd(int(path[-1]))
        await site.settle()
    assert site.origin.count("W") == (0 if path.endswith("1") else 1)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda origin: origin.remove("daily-3.cdiff"), id="missing"),
        pytest.param(lambda origin: origin.put("daily-3.cdiff", b""), id="trap 15: empty"),
        pytest.param(lambda origin: origin.rule("D3", faults.html()), id="trap 19: a page"),
        pytest.param(lambda origin: origin.rule("D3", faults.status(429)), id="refused"),
        pytest.param(
            lambda origin: origin.put("daily-3.cdiff", Releases(filler=100_100).cdiff(3)),
            id="trap 18: does not fit",
        ),
    ],
)
async def test_where_patches_do_not_lead_on_the_whole_is_fetched(site: Site, spoil: Any) -> None:
    await site.begin()
    site.release(NEWEST)
    spoil(site.origin)
    reply, content = await site.ask()
    assert (reply.version, content) == (NEWEST, RELEASES.cvd(NEWEST))
    assert await site.shown() == NEWEST
    assert site.origin.count("W") == 1


async def test_trap_5_patch_and_cvd_are_late(site: Site) -> None:
    await site.begin()
    site.release(3, base=1)
    site.origin.remove("daily-3.cdiff")
    for _ in range(3):
        assert await site.shown() == 2
        assert (await site.ask())[1] == RELEASES.cvd(1)
    assert site.origin.count("D3") <= 2
    assert site.origin.count("P") <= 2


async def test_trap_30_an_origin_that_is_gone(site: Site) -> None:
    await site.hold()
    site.origin.refuse()
    site.advertise(NEWEST + 1)
    assert (await site.ask())[1] == RELEASES.cvd(1)
    assert await site.shown() == NEWEST
    # Who has version 3 wants a newer one, whole, and must not get the base.
    reply, _ = await site.ask(If_Modified_Since=since(3))
    assert reply.status in (304, 503)


async def test_trap_28_patches_that_do_not_come(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.begin()
    monkeypatch.setattr(current_module, "PATIENCE_WITH_STALE", 0.2)
    site.release(NEWEST)
    site.origin.rule("*", faults.silent())
    reply, content = await site.ask()
    assert (reply.result, content) == (Result.STALE, RELEASES.cvd(1))
    assert await site.shown() == 1
    site.origin.heal()


async def test_trap_27_a_herd_of_new_clients(site: Site) -> None:
    await site.begin()
    site.release(NEWEST)
    answers = await asyncio.gather(*(site.ask() for _ in range(20)))
    assert {content for _, content in answers} == {RELEASES.cvd(1)}
    assert sorted(site.origin.trace.split()) == ["D2", "D3", "D4"]


async def test_trap_20_a_refused_client_costs_no_whole_cvd(site: Site) -> None:
    await site.begin()
    site.release(2)
    site.origin.rule("D2", faults.status(403), times=1)
    await asyncio.gather(site.ask(agent=OLD_AGENT), site.ask(agent=AGENT))
    await site.settle()
    assert await site.shown() == 2
    assert site.origin.count("W") == 0


async def test_beyond_the_most_patches_the_whole_is_fetched(site: Site) -> None:
    site.restart(delta={"max_patches": 2})
    await site.begin()
    site.release(NEWEST)
    assert (await site.ask())[1] == RELEASES.cvd(NEWEST)
    assert site.origin.trace == "P W"


async def test_too_large_patches_are_served_and_a_new_base_is_fetched(site: Site) -> None:
    site.restart(delta={"max_share": "1%"}, versions={"refresh": "10ms"})
    await site.hold(reached=2)
    await asyncio.sleep(0.1)  # the budget's pauses are short with so short a refresh
    _, content = await site.ask()
    assert content in (RELEASES.cvd(1), RELEASES.cvd(2))
    await until(lambda: site.service.store.newest_version("daily") == 2)
    assert (await site.ask())[1] == RELEASES.cvd(2)
    assert await site.shown() == 2


async def test_a_new_base_that_lags_is_not_asked_for_by_each_client(site: Site) -> None:
    site.restart(delta={"max_share": "1%"})
    await site.begin()
    site.release(2, base=1)
    for _ in range(20):
        assert (await site.ask())[1] == RELEASES.cvd(1)
        await site.settle()
    assert site.origin.count("P") + site.origin.count("W") <= PER_FILE


async def test_switched_off(site: Site) -> None:
    site.restart(delta={"enabled": False})
    await site.begin()
    site.release(2)
    assert (await site.ask())[1] == RELEASES.cvd(2)
    assert site.origin.trace == "P W"
    assert await site.refused("/daily.cld")


async def test_where_nothing_is_fetched_ahead_a_probe_costs_a_probe(site: Site) -> None:
    site.restart(serving={"prefetch": "none"})
    await site.begin()
    site.release(NEWEST)
    assert await site.shown() == NEWEST
    assert site.origin.trace == "P"
    assert (await site.ask())[1] == RELEASES.cvd(1)
    assert sorted(site.origin.trace.split()) == ["D2", "D3", "D4", "P"]


async def test_patches_are_not_fetched_to_be_dropped_again(site: Site) -> None:
    """Fewer patches are kept than there are releases since the base, and the CDN lags."""
    site.restart(cache={"keep_cdiffs": 1})
    await site.begin()
    site.release(NEWEST, base=1)
    for _ in range(10):
        reply, _ = await site.ask()
        assert reply.status == 200
        await site.settle()
    asked = site.origin.trace.split()
    assert {name: asked.count(name) for name in asked if asked.count(name) > 2} == {}


@pytest.mark.parametrize("seed", range(4))
async def test_trap_4_what_is_announced_can_be_had_and_never_goes_backwards(site: Site, seed: int) -> None:
    """Releases, edges that lag, patches that are late, outages, renewals, restarts: in any order."""
    choose = random.Random(seed)
    version, last = 1, 0
    await site.begin()
    for _ in range(40):
        match choose.choice(["release", "release", "late", "lag", "outage", "back", "whole", "restart"]):
            case "release" if version < 12:
                version += 1
                site.release(version)
            case "late":
                site.origin.remove(f"daily-{version}.cdiff")
            case "lag":
                site.origin.put("daily.cvd", RELEASES.cvd(choose.randint(1, version)))
            case "outage":
                site.origin.refuse()
            case "back":
                site.origin.accept()
                RELEASES.publish(site.origin, version)
            case "whole":
                have = choose.randint(1, max(1, last))
                reply, _ = await site.ask(If_Modified_Since=since(have))
                assert reply.status in (304, 503) or (reply.version or 0) > have
            case "restart":
                site.restart()
        await site.settle()
        shown = await site.shown()
        assert last <= shown <= version
        last = shown
        base, content = await site.ask()
        assert content == RELEASES.cvd(base.version or 0)
        for patch in range((base.version or 0) + 1, shown + 1):
            assert (await site.ask(f"/daily-{patch}.cdiff"))[1] == RELEASES.cdiff(patch)


# CLDs


async def test_a_cld_where_patches_lead_further(site: Site, tmp_path: Path) -> None:
    await site.hold()
    assert await site.shown("/daily.cld") == NEWEST
    reply, content = await site.ask("/daily.cld")
    assert (reply.status, reply.version) == (200, NEWEST)
    path = tmp_path / "cld"
    path.write_bytes(content)
    with path.open("rb") as file:
        verify_cld(file, ObjectId("daily", NEWEST, Kind.CLD), forge_keys().trusted)
    again, same = await site.ask("/daily.cld")
    assert (again.result, same) == (Result.HIT, content)
    assert site.origin.requests() == []


@pytest.mark.parametrize(
    ("have", "status"), [(since(1), 200), (since(NEWEST), 304), (since(NEWEST + 1), 304)]
)
async def test_a_conditional_request_for_a_cld(site: Site, have: str, status: int) -> None:
    await site.hold()
    for _ in range(2):  # while it is not built, and afterwards
        assert (await site.ask("/daily.cld", If_Modified_Since=have))[0].status == status
        assert (await site.ask("/daily.cld", **PROBE))[0].status == 206


async def test_trap_22_otherwise_there_is_none(site: Site) -> None:
    assert await site.refused("/daily.cld", **PROBE), "nothing is here"
    assert site.origin.requests() == []
    await site.begin()
    for fields in ({}, PROBE, {"If_Modified_Since": since(1)}):
        assert await site.refused("/daily.cld", **fields), "the CVD is current"
    await site.hold()
    await site.ask(If_Modified_Since=since(1))
    await site.settle()
    assert await site.refused("/daily.cld"), "there is a new CVD"
    assert not [seen for seen in site.origin.requests() if "cld" in seen.path]


async def test_a_cld_of_the_next_release(site: Site) -> None:
    await site.hold(reached=2)
    assert await site.shown("/daily.cld") == 2
    await site.ask("/daily.cld")
    site.release(3)
    assert await site.shown("/daily.cld") == 3
    assert (await site.ask("/daily.cld"))[0].version == 3
    assert site.origin.trace == "D3"


# Offline


OFFLINE = {"upstream": {"offline": True}}


async def test_offline_the_newest_that_is_cached_is_all_there_is(site: Site) -> None:
    await site.hold()
    site.restart(**OFFLINE)
    site.advertise(NEWEST + 1)
    site.release(NEWEST + 1)
    asked = len(site.dns.queries)
    assert await site.shown() == NEWEST
    reply, content = await site.ask()
    assert (reply.result, content) == (Result.HIT, RELEASES.cvd(1))
    for version in range(2, NEWEST + 1):
        assert (await site.ask(f"/daily-{version}.cdiff"))[1] == RELEASES.cdiff(version)
    assert (await site.ask("/daily.cld"))[0].version == NEWEST
    for path in (f"/daily-{NEWEST + 1}.cdiff", "/daily-4.cdiff.sign", "/main.cvd", "/main.cld"):
        assert await site.refused(path), path
    assert site.origin.requests() == []
    assert len(site.dns.queries) == asked


@pytest.mark.parametrize("version", [1, 2, 3, NEWEST, NEWEST + 1])
async def test_offline_no_client_is_set_back(site: Site, version: int) -> None:
    await site.hold()
    site.restart(**OFFLINE)
    reply, _ = await site.ask(If_Modified_Since=since(version))
    assert reply.status in (304, 404, 503) or (reply.version or 0) > version


@pytest.mark.parametrize("version", [2, 3, NEWEST])
async def test_offline_nor_by_a_base_that_was_uploaded_late(site: Site, version: int) -> None:
    """The Last-Modified of a mirror is the time when it fetched the file."""
    site.release(1)
    site.origin.put("daily.cvd", RELEASES.cvd(1), since(NEWEST + 5))
    await site.ask()
    await site.settle()
    site.release(NEWEST)
    await site.ask()
    await site.settle()
    site.restart(**OFFLINE)
    reply, _ = await site.ask(If_Modified_Since=since(version))
    assert reply.status in (304, 404, 503) or (reply.version or 0) > version


async def test_offline_with_nothing_cached(site: Site) -> None:
    site.release(1)
    site.restart(**OFFLINE)
    for _ in range(2):
        for path in ("/daily.cvd", "/daily-1.cdiff", "/daily.cld", "/daily.cvd?version=1"):
            assert await site.refused(path), path
    assert site.origin.requests() == []


async def test_online_again(site: Site) -> None:
    await site.hold()
    site.restart(**OFFLINE)
    await site.ask()
    site.restart()
    site.release(NEWEST + 1)
    assert await site.shown() == NEWEST + 1
    assert site.origin.trace == f"D{NEWEST + 1}"


# Databases side by side


async def test_other_objects_of_the_base_are_left_alone(site: Site) -> None:
    await site.hold()
    assert site.service.store.has(cvd(1))
    assert [site.service.store.has(cdiff(version)) for version in (2, 3, 4)] == [True] * 3
    assert not site.service.store.has(cvd(NEWEST))
