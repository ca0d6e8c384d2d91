"""One transfer from the origin, many readers, with a CVD of some megabytes."""

from __future__ import annotations

import pytest

from tests.support import faults
from tests.support.big import NAME, PATH, SIZE, Download, Forgery, begun_download
from tests.support.gateway import ADDON, Way
from tests.support.site import Site, eventually, flipped

from .conftest import MakeForged

RATE = 8_000_000
"""Bytes per second of an origin that is slow enough for clients to meet."""
NEARLY_ALL = SIZE - 1_000_000


def whole_requests(site: Site) -> list[str]:
    """The Range headers of the requests for the file, "" for none, without header probes."""
    return [seen.headers.get("range", "") for seen in site.origin.requests(PATH) if seen.short_name != "P"]


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS])
def test_herd(big: Site, forgery: Forgery, way: Way) -> None:
    """Many clients on an empty cache cost the origin one download."""
    big.origin.rate = RATE
    downloads = [Download(big.gateway, way) for _ in range(12)]
    answers = [download.answer() for download in downloads]
    assert [answer.status for answer in answers] == [200] * 12
    assert all(answer.body == forgery.body for answer in answers)
    assert whole_requests(big) == [""]
    stats = big.gateway.stats()
    assert (stats["requests"], stats["misses"]) == (12, 1)
    assert stats["hits"] + stats["collapsed"] == 11


def test_transfer_goes_on_when_the_first_client_leaves(big: Site, forgery: Forgery) -> None:
    big.origin.rate = RATE
    with begun_download(big.gateway) as first:
        assert first.status == 200
        second = Download(big.gateway)
    assert second.answer().body == forgery.body
    assert whole_requests(big) == [""]


def test_transfer_finishes_when_all_clients_leave(big: Site, forgery: Forgery) -> None:
    big.origin.rate = RATE
    with begun_download(big.gateway) as only:
        assert only.status == 200
    assert eventually(lambda: big.origin.bytes_sent >= len(forgery.body))
    big.origin.refuse()
    answer = eventually(lambda: found if (found := big.gateway.ask(PATH)).status == 200 else None)
    assert answer is not None
    assert answer.body == forgery.body


@pytest.mark.parametrize("fault", [faults.reset(3_000_000), faults.short(3_000_000)], ids=["reset", "short"])
def test_break_is_resumed(big: Site, forgery: Forgery, fault: faults.Fault) -> None:
    big.origin.rule("W", fault, times=1)
    answer = big.gateway.ask(PATH)
    assert (answer.status, answer.complete, answer.body == forgery.body) == (200, True, True)
    resumed = big.origin.requests(PATH)[-1]
    first = int(resumed.headers["range"].removeprefix("bytes=").partition("-")[0])
    assert 0 < first <= 3_000_000
    assert "if-range" in resumed.headers
    # A reset makes the kernel drop what it had received and nobody had read yet.
    assert big.origin.bytes_sent < len(forgery.body) * 1.5


def test_two_versions_are_never_mixed(big: Site, forgery: Forgery) -> None:
    """The file changes at the origin between a break and its resumption."""
    big.origin.put(NAME, forgery.older)
    big.dns.versions["daily"] -= 1
    big.origin.rule("W", faults.stall(3_000_000), times=1)
    with begun_download(big.gateway) as client:
        big.origin.put(NAME, forgery.body)
        big.dns.versions["daily"] += 1
        big.origin.heal()
        body, complete = client.read()
    assert not complete or body == forgery.older
    assert forgery.older.startswith(body)
    answer = eventually(lambda: found if (found := big.gateway.ask(PATH)).complete else None)
    assert answer is not None
    assert answer.body == forgery.body


def test_stall_is_restarted(big: Site, forgery: Forgery) -> None:
    """The origin falls silent but keeps the connection; clients that come later don't hang on it."""
    big.origin.rule("W", faults.stall(2_000_000), times=1)
    first = Download(big.gateway)
    assert eventually(lambda: big.origin.count("W") == 1)
    later = Download(big.gateway)
    assert [download.answer().body == forgery.body for download in (first, later)] == [True, True]
    assert whole_requests(big)[0] == ""


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS])
def test_slow_reader_slows_nobody(big: Site, forgery: Forgery, way: Way) -> None:
    with begun_download(big.gateway, 1000, way, buffer=8192) as slow:
        others = [Download(big.gateway, each) for each in Way]
        assert all(other.answer().body == forgery.body for other in others)
        body, complete = slow.read()
        assert complete
        assert body == forgery.body
    assert whole_requests(big) == [""]


def test_range_of_a_body_that_is_still_arriving(big: Site, forgery: Forgery) -> None:
    big.origin.rule("W", faults.stall(4_000_000), times=1)
    with begun_download(big.gateway):
        answer = big.gateway.ask(PATH, range="bytes=1000-1999")
        assert (answer.status, answer.body) == (206, forgery.body[1000:2000])
        assert answer.headers["content-range"] == f"bytes 1000-1999/{len(forgery.body)}"
        assert big.origin.count("W") == 1
        big.origin.heal()


def test_headers_arrive_with_the_origins(big: Site, forgery: Forgery) -> None:
    """A client is not kept waiting for the whole file, or ReceiveTimeout would end its patience."""
    big.origin.rule("W", faults.stall(1_000_000), times=1)
    with begun_download(big.gateway, 500_000) as client:
        assert client.status == 200
        assert client.response.getheader("content-length") == str(len(forgery.body))
        assert client.begun == forgery.body[:500_000]
        big.origin.heal()
        assert client.read() == (forgery.body, True)


@pytest.mark.parametrize("times", [1, 2])
def test_last_bytes_are_withheld_from_a_corrupt_body(big: Site, forgery: Forgery, times: int) -> None:
    """No client ever holds a complete body that is not verified, nor is it stored."""
    bad = flipped(forgery.body, SIZE // 2)
    big.origin.rule("W", faults.replaced(bad), times=times)
    downloads = [Download(big.gateway, way) for way in Way]
    for download in downloads:
        given = download.answer()
        assert given.status == 503 or not given.complete or given.body == forgery.body
        assert len(given.body) < len(bad) or given.body == forgery.body
    answer = eventually(
        lambda: found if (found := big.gateway.ask(PATH)).complete and found.status == 200 else None
    )
    assert answer is not None, big.gateway.log
    assert answer.body == forgery.body


def test_kill_and_restart_in_a_transfer(big: Site, forgery: Forgery) -> None:
    """A partial file that is still valid is gone on with."""
    big.origin.rule("W", faults.stall(NEARLY_ALL), times=1)
    with begun_download(big.gateway, 6_000_000):
        big.gateway.kill()
    big.origin.heal()
    big.gateway.start()
    answer = big.gateway.ask(PATH)
    assert (answer.status, answer.body == forgery.body) == (200, True), big.gateway.log
    resumed = big.origin.requests(PATH)[-1].headers
    assert int(resumed["range"].removeprefix("bytes=").partition("-")[0]) > 0
    assert "if-range" in resumed


def test_file_changed_while_the_proxy_was_down(big: Site, forgery: Forgery) -> None:
    """A partial file of the older version is not gone on with."""
    big.origin.put(NAME, forgery.older)
    big.dns.versions["daily"] -= 1
    big.origin.rule("W", faults.stall(NEARLY_ALL), times=1)
    with begun_download(big.gateway, 4_000_000):
        big.gateway.kill()
    big.origin.heal()
    big.origin.put(NAME, forgery.body)
    big.dns.versions["daily"] += 1
    big.gateway.start()
    answer = big.gateway.ask(PATH)
    assert (answer.status, answer.body == forgery.body) == (200, True), big.gateway.log


def test_new_version_while_clients_read_the_old_one(make_forged: MakeForged, forgery: Forgery) -> None:
    big = make_forged(delta={"enabled": False})
    big.origin.put(NAME, forgery.older)
    big.dns.versions["daily"] -= 1
    assert big.gateway.ask(PATH).body == forgery.older
    with begun_download(big.gateway, 1000, buffer=8192) as reader:
        big.origin.put(NAME, forgery.body)
        big.dns.versions["daily"] += 1
        newer = eventually(lambda: big.gateway.ask(PATH).body == forgery.body, every=0.5)
        assert newer
        assert reader.read() == (forgery.older, True)


def test_real_daily_is_refused_by_the_real_keys(make_forged: MakeForged, forgery: Forgery) -> None:
    """No setting of the proxy makes it trust a forgery: only the test's own script does."""
    site = make_forged(script=ADDON)
    answer = site.gateway.ask(PATH)
    assert answer.status == 503 or len(answer.body) < len(forgery.body)
    site.origin.refuse()
    assert site.gateway.ask(PATH).status == 503
