"""Two gateway processes on one cache directory, as a machine's workers are, cost the origin what one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import faults
from tests.support.big import PATH, SIZE, Download, Forgery, begun_download
from tests.support.faults import Fault
from tests.support.gateway import PATIENT_ADDON, Answer, Gateway, Way
from tests.support.patience import BACKOFF
from tests.support.site import Site, eventually, flipped, signed

from .conftest import MakeForged, MakeSite

RATE = 8_000_000
"""Bytes per second of an origin that is slow enough for clients to meet."""
CUT = 3_000_000
FEED_HOST = "127.0.0.1"
FEED = "/feed.ndb"
PATCH = "test-3.cdiff"

SLOW_TO_FORGIVE: dict[str, Any] = {"script": PATIENT_ADDON, "environment": {BACKOFF: "60"}}
"""A site whose first waits after failures, some seconds, don't end before a busy machine has looked."""

type Beside = Callable[[Site], Gateway]


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    """Starts a second process for a site."""
    with ExitStack() as stack:
        yield lambda site: stack.enter_context(site.gateway.beside(tmp_path / "beside"))


def whole_requests(site: Site) -> list[str]:
    """The Range headers of the requests for the file, "" for none, without header probes."""
    return [seen.headers.get("range", "") for seen in site.origin.requests(PATH) if seen.short_name != "P"]


def has_open(gateway: Gateway, name: str) -> bool:
    """Whether a process has a file open whose name begins so."""
    for descriptor in Path(f"/proc/{gateway.pid}/fd").iterdir():
        with suppress(OSError):
            if descriptor.readlink().name.startswith(name):
                return True
    return False


# While a file arrives


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS])
def test_a_herd_before_both_costs_one_transfer(big: Site, beside: Beside, forgery: Forgery, way: Way) -> None:
    check_herd(big, [big.gateway, beside(big)], forgery, way)


def test_a_herd_before_two_workers_costs_one_transfer(make_forged: MakeForged, forgery: Forgery) -> None:
    big = make_forged(workers=2)
    check_herd(big, [big.gateway], forgery, Way.CONNECT_HTTP)


def check_herd(big: Site, gateways: list[Gateway], forgery: Forgery, way: Way) -> None:
    """A dozen clients get the file, at the cost of one."""
    big.origin.rate = RATE
    downloads = [Download(gateways[number % len(gateways)], way) for number in range(12)]
    answers = [download.answer() for download in downloads]
    assert [answer.status for answer in answers] == [200] * 12
    assert all(answer.body == forgery.body for answer in answers)
    assert whole_requests(big) == [""]
    # Each process writes down what it has counted, and asks for the signature, a little later.
    assert eventually(lambda: booked(big) == fetched(big)), (booked(big), fetched(big))
    assert eventually(lambda: big.gateway.stats()["requests"] == 12)
    asked, stats = big.origin.trace.split(), big.gateway.stats()
    assert sorted(asked) == sorted(set(asked))
    assert stats["misses"] == 1
    assert stats["hits"] + stats["collapsed"] == 11


def booked(big: Site) -> tuple[int, int]:
    """Requests to the origin and bytes of content from it, as the gateways count them."""
    stats = big.gateway.stats()
    return stats["upstream_requests"], stats["upstream_bytes"]


def fetched(big: Site) -> tuple[int, int]:
    """The same, as the origin counts them."""
    requests = big.origin.requests()
    return len(requests), sum(seen.sent for seen in requests if seen.status < 400)


def test_what_one_process_fetches_is_read_along_at_the_other(
    big: Site, beside: Beside, forgery: Forgery
) -> None:
    other = beside(big)
    big.origin.rule("W", faults.stall(CUT), times=1)
    with begun_download(big.gateway, CUT // 2) as first, begun_download(other, CUT // 2) as second:
        assert second.response.getheader("Cache-Status") == "clamproxy; fwd=miss; collapsed"
        assert first.begun == second.begun == forgery.body[: CUT // 2]
        for name in ("ETag", "Last-Modified", "Content-Length", "Cache-Control", "Accept-Ranges"):
            assert first.response.getheader(name) == second.response.getheader(name)
        big.origin.heal()
        assert first.read() == second.read() == (forgery.body, True)
    assert big.origin.bytes_sent < SIZE * 1.1


@pytest.mark.parametrize("end", [Gateway.kill, Gateway.stop], ids=["killed", "stopped"])
def test_a_process_that_ends_is_taken_over_by_the_other(
    big: Site, beside: Beside, forgery: Forgery, end: Callable[[Gateway], object]
) -> None:
    other = beside(big)
    big.origin.rule("W", faults.stall(CUT), times=1)
    with begun_download(big.gateway, CUT // 2), begun_download(other, CUT // 2) as second:
        end(big.gateway)
        assert second.read() == (forgery.body, True)
    first, resumed = whole_requests(big)
    assert (first, resumed.startswith("bytes=")) == ("", True)
    assert big.origin.bytes_sent < SIZE * 1.3


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (faults.status(404), 404),
        (faults.status(403), 503),
        (faults.status(429), 503),
        (faults.status(500), 503),
        (faults.replaced(flipped(signed(PATCH))), 503),
    ],
    ids=["404", "403", "429", "500", "bad content"],
)
def test_a_failure_is_found_out_once(make_site: MakeSite, beside: Beside, fault: Fault, status: int) -> None:
    site = make_site(**SLOW_TO_FORGIVE)
    other = beside(site)
    site.publish(3)
    site.origin.rule("D3", replace(fault, held=True))
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(site.gateway.ask, f"/{PATCH}")
        assert eventually(lambda: site.origin.count("D3"))
        second = executor.submit(other.ask, f"/{PATCH}")
        assert eventually(lambda: has_open(other, PATCH))
        site.origin.heal()
        assert [each.result(30).status for each in (first, second)] == [status] * 2
    assert site.origin.count("D3") == 1
    # And both know it from then on.
    site.origin.rule("D3", fault)
    assert [gateway.ask(f"/{PATCH}").status for gateway in (site.gateway, other)] == [status] * 2
    assert site.origin.count("D3") == 1


# What is counted


@dataclass
class Work:
    """The same requests, before one process or before two in turn."""

    site: Site
    gateways: list[Gateway]
    asked: int = 0

    def ask(self, path: str, **options: Any) -> Answer:
        self.asked += 1
        return self.gateways[self.asked % len(self.gateways)].ask(path, **options)

    def ask_feed(self, **options: Any) -> Answer:
        return self.ask(FEED, host=f"{FEED_HOST}:{self.site.origin.port}", **options)

    def figures(self) -> dict[str, Any]:
        """What was counted, and what the origin was asked."""
        stats = self.site.gateway.stats()
        names = (
            *("requests", "hits", "misses", "collapsed", "stale", "negative", "errors", "bytes_served"),
            *("upstream_requests", "upstream_bytes", "cooldown_until"),
            *("feed_requests", "feed_hits", "feed_errors", "feed_bytes_served"),
            *("feed_upstream_requests", "feed_upstream_bytes"),
        )
        figures = {name: stats[name] for name in names}
        figures["cooldown_until"] = bool(figures["cooldown_until"])
        return {**figures, "origin": sorted(self.site.origin.trace.split())}


def a_patch(work: Work) -> None:
    assert {work.ask(f"/{PATCH}").status for _ in range(4)} == {200}
    assert {work.ask(f"/{PATCH}.sign").status for _ in range(4)} == {200}


def a_missing_patch(work: Work) -> None:
    work.site.origin.remove(PATCH)
    assert {work.ask(f"/{PATCH}").status for _ in range(4)} == {404}


def a_refused_patch(work: Work) -> None:
    work.site.origin.rule("D3", faults.status(403))
    assert {work.ask(f"/{PATCH}").status for _ in range(4)} == {503}


def a_bad_patch(work: Work) -> None:
    work.site.origin.rule("D3", faults.replaced(flipped(signed(PATCH))))
    assert {work.ask(f"/{PATCH}").status for _ in range(4)} == {503}


def a_database(work: Work) -> None:
    assert {work.ask("/test.cvd", range="bytes=0-511").status for _ in range(4)} == {206}
    assert {work.ask("/test.cvd").body == signed("test-3.cvd") for _ in range(4)} == {True}
    assert {work.ask("/test.cvd", range="bytes=0-511").status for _ in range(4)} == {206}
    assert {work.ask("/test.cld").status for _ in range(4)} == {404}


def a_release(work: Work) -> None:
    a_database(work)
    work.site.publish(4)
    assert {work.ask("/test-4.cdiff").status for _ in range(4)} == {200}
    assert {work.ask("/test-5.cdiff").status for _ in range(4)} == {404}


def a_feed(work: Work) -> None:
    work.site.origin.rule(FEED, Fault(headers={"Cache-Control": "max-age=3600"}))
    assert {work.ask_feed().body for _ in range(4)} == {b"feed\n"}


def a_feed_that_is_revalidated(work: Work) -> None:
    work.site.origin.rule(FEED, Fault(headers={"Cache-Control": "max-age=0"}))
    records, leases = work.site.gateway.cache / "feeds", work.site.gateway.cache / "leases"
    for _ in range(4):
        assert work.ask_feed().body == b"feed\n"
        # The body comes before the transfer ends, and a request meanwhile would share the answer.
        assert eventually(lambda: list(records.glob("*.json")) and not list(leases.glob("feed*")))


def a_missing_feed(work: Work) -> None:
    work.site.origin.remove(FEED[1:])
    assert {work.ask_feed().status for _ in range(4)} == {404}


def a_refused_feed(work: Work) -> None:
    work.site.origin.rule(FEED, faults.status(429))
    assert {work.ask_feed().status for _ in range(4)} == {503}


@pytest.mark.parametrize(
    "script",
    [
        a_patch,
        a_missing_patch,
        a_refused_patch,
        a_bad_patch,
        a_database,
        a_release,
        a_feed,
        a_feed_that_is_revalidated,
        a_missing_feed,
        a_refused_feed,
    ],
)
def test_two_processes_count_what_one_does(
    make_site: MakeSite, beside: Beside, script: Callable[[Work], None]
) -> None:
    found = []
    for count in (1, 2):
        site = make_site(**SLOW_TO_FORGIVE, feeds={"hosts": [FEED_HOST]}, serving={"prefetch": "none"})
        site.publish(3)
        site.origin.put(FEED[1:], b"feed\n")
        work = Work(site, [site.gateway, beside(site)][:count] if count == 2 else [site.gateway])
        script(work)
        found.append(work.figures())
    assert found[0] == found[1]


# The real client


def test_freshclams_before_both_cost_the_origin_what_is_new(site: Site, beside: Beside) -> None:
    sites = site, replace(site, gateway=beside(site))
    clients = [sites[number % 2].client(f"client-{number}") for number in range(4)]
    for version in (3, 4):
        site.publish(version)
        site.origin.forget()

        def update() -> set[int | None]:
            with ThreadPoolExecutor(4) as executor:
                return {outcome.version for outcome in executor.map(lambda one: one.run(), clients)}

        # The gateways may look for new versions only a second later.
        assert eventually(lambda: update() == {version}), site.origin.trace  # noqa: B023
        names = [seen.path for seen in site.origin.requests() if seen.short_name != "P"]
        assert sorted(set(names)) == sorted(names), site.origin.trace
