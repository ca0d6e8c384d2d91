"""Failures of the origin are noticed, remembered for what they concern, bounded, and healed."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.support import faults
from tests.support.big import PATH, VERSION, Forgery
from tests.support.gateway import Answer, Gateway, Way, send
from tests.support.site import Site, corrupts, eventually, flipped, open_site, settings_for, signed

from .conftest import MakeSite

IMPOSSIBLE_DATE = "Mon, 01 Jan 99999999999 00:00:00 GMT"
OLD_CLIENT = "ClamAV/0.99.2 (OS: linux-gnu, ARCH: x86_64)"
MEBIBYTE = 1024 * 1024


def be_slow(site: Site) -> None:
    """From now on, the header takes 23 s, and the body does not come."""
    site.publish(6)
    site.origin.rule("P", faults.slow(22))
    site.origin.rule("W", faults.silent())


@pytest.fixture(scope="module", autouse=True)
def slow_answer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Answer]]:
    """Under way while the other tests run, as it takes its time. A client bears 30 s of silence."""
    site = open_site(tmp_path_factory.mktemp("slow"), upstream={"read_timeout": "30s"})
    be_slow(site)
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(site.gateway.ask, "/test.cvd", timeout=30)
        site.close()


WHOLE: dict[str, Any] = {"delta": {"enabled": False}}
"""Each version is fetched whole."""


def whole(site: Site, path: str = PATH) -> bytes | None:
    """A file as a client gets it now, None if it doesn't."""
    answer = site.gateway.ask(path)
    return answer.body if answer.status == 200 and answer.complete else None


def cooldowns(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.gateway.stats()["cooldowns"]
    return found


# Failures of a transfer that clients read along with


def test_corrupt_body_is_not_fetched_for_each_client(big: Site, forgery: Forgery) -> None:
    big.origin.rule("W", faults.replaced(flipped(forgery.body)))
    assert [whole(big) for _ in range(8)] == [None] * 8
    assert big.origin.count("W") <= 2
    # The cool-down of two seconds may be over before `clamproxy stats` has started.
    assert "was rejected and quarantined" in big.gateway.log


def test_corrupt_body_does_not_cut_clients_that_could_have_the_last_good_one(
    big: Site, forgery: Forgery
) -> None:
    big.origin.put("daily.cvd", forgery.older)
    big.dns.versions["daily"] = VERSION - 1
    assert whole(big) == forgery.older
    big.origin.put("daily.cvd", flipped(forgery.body))
    big.dns.versions["daily"] = VERSION
    assert eventually(lambda: whole(big) is None), "one client reads along and is cut"
    assert [whole(big) == forgery.older for _ in range(5)] == [True] * 5
    assert "fwd=stale" in big.gateway.ask(PATH).cache_status
    big.origin.put("daily.cvd", forgery.body)
    assert eventually(lambda: whole(big) == forgery.body, limit=40)


@pytest.mark.parametrize("code", [403, 429])
def test_refusal_of_a_resumption_is_noted(big: Site, code: int) -> None:
    big.origin.rule("R", faults.status(code, retry_after="600"))
    big.origin.rule("W", faults.short(1_000_000), times=1)
    assert whole(big) is None
    assert len(cooldowns(big)) == 1
    asked = len(big.origin.requests())
    assert big.gateway.ask(PATH).status == 503
    assert big.origin.count("R") == 1
    assert len(big.origin.requests()) == asked


def test_breaks_without_progress_are_bounded(big: Site) -> None:
    """A few bytes at each attempt are no progress."""
    big.origin.rule("W", faults.short(200_000))
    big.origin.rule("R", faults.short(20))
    assert whole(big) is None
    assert 1 <= big.origin.count("R") <= 6
    assert big.origin.count("W") == 1


def test_clients_that_leave_are_no_errors(big: Site, forgery: Forgery) -> None:
    """While the body arrives and afterwards, politely and by a reset."""
    for rate in (4_000_000, None):
        big.origin.rate = rate
        for linger in (None, struct.pack("ii", 1, 0)):
            with big.gateway.connection(buffer=4096) as connection:
                if linger is not None:
                    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                send(connection, PATH)
                assert connection.getresponse().read(70_000) == forgery.body[:70_000]
    assert eventually(lambda: whole(big) == forgery.body)
    assert eventually(lambda: big.gateway.stats()["requests"] == 5)
    assert "Traceback" not in big.gateway.log


# Back-off


def test_good_header_does_not_end_the_back_off_of_a_bad_body(site: Site) -> None:
    site.publish(6)
    corrupts("W", "test-6.cvd")(site.origin)

    def has_backed_off() -> bool:
        assert site.gateway.ask("/test.cvd").status == 503
        failures = re.findall(r"test-6.cvd could not be fetched .*; next try in (\d) s", site.gateway.log)
        return failures == ["2", "4"]

    assert eventually(has_backed_off)
    assert site.origin.count("W") == 2
    assert site.origin.count("P") >= 2, "the header was asked for in between, and was good"


def test_truncated_cdiff_holds_back_itself_only(site: Site) -> None:
    site.publish(6)
    site.origin.rule("D6", faults.short(10))
    assert site.gateway.ask("/test-6.cdiff").status == 503
    assert whole(site, "/test-5.cdiff") == signed("test-5.cdiff")
    assert whole(site, "/test.cvd") == signed("test-6.cvd")
    assert set(cooldowns(site)) <= {"/test-6.cdiff"}


def test_403_of_an_old_client_is_not_passed_to_others_that_wait(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header probe under an old name is on its way when a new client comes."""
    site.publish(6)
    refuse = threading.Event()
    answer = site.origin._compose

    def hesitate(
        fault: faults.Fault, path: str, request: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        if request["user-agent"] != OLD_CLIENT:
            return answer(fault, path, request)
        refuse.wait(20)
        return 403, {"Content-Length": "0"}, b""

    monkeypatch.setattr(site.origin, "_compose", hesitate)
    with ThreadPoolExecutor(2) as executor:
        old = executor.submit(site.gateway.ask, "/test.cvd", user_agent=OLD_CLIENT)
        assert eventually(lambda: site.origin.count("P") == 1)
        new = executor.submit(site.gateway.ask, "/test.cvd")
        time.sleep(0.5)  # until it waits for the same answer
        refuse.set()
        assert new.result().body == signed("test-6.cvd")
        assert old.result().status in (200, 503)


# What origin and clients send


def test_impossible_last_modified(make_site: MakeSite) -> None:
    site = make_site(**WHOLE)
    site.warm(5)
    site.origin.rule("*", faults.Fault(modified=None, headers={"Last-Modified": IMPOSSIBLE_DATE}))
    site.publish(6)
    assert eventually(lambda: whole(site, "/test.cvd") == signed("test-6.cvd"))
    assert whole(site, "/test-6.cdiff") == signed("test-6.cdiff")


@pytest.mark.parametrize("field", ["If-Modified-Since", "If-Range"])
def test_impossible_date_of_a_client(site: Site, field: str) -> None:
    site.publish(6)
    for _ in range(2):
        answer = site.gateway.ask("/test.cvd", extra={field: IMPOSSIBLE_DATE})
        assert (answer.status, answer.body) == (200, signed("test-6.cvd"))


@pytest.mark.parametrize("with_length", [True, False])
def test_oversized_body_does_not_fill_the_disk(site: Site, with_length: bool) -> None:
    site.publish(6)
    site.origin.put("test-6.cvd.sign", signed("test-6.cvd.sign") + b"#" * 8 * MEBIBYTE)
    site.origin.rule("/test-6.cvd.sign", faults.Fault(length=with_length))
    assert site.gateway.ask("/test-6.cvd.sign").status == 503
    # The helper files of the fleet's database come and go.
    files = [path for path in site.gateway.cache.rglob("*") if path.is_file() and "sqlite" not in path.name]
    assert sum(path.stat().st_size for path in files) < MEBIBYTE
    # The cool-down of two seconds may be over before `clamproxy stats` has started.
    assert f"more than {MEBIBYTE} bytes); next try in" in site.gateway.log


def test_404_leaves_nothing_behind(site: Site) -> None:
    site.publish(6)
    for patch in (4, 5):
        site.origin.remove(f"test-{patch}.cdiff")
        assert site.gateway.ask(f"/test-{patch}.cdiff").status == 404
    assert (site.origin.count("D4"), site.origin.count("D5")) == (1, 1)
    assert list((site.gateway.cache / "partial").iterdir()) == []


# Waiting and loops


def test_slow_header_and_silent_body_where_nothing_is_cached(slow_answer: Future[Answer]) -> None:
    """The client's 30 s hold for the header and the body together."""
    assert slow_answer.result().status == 503


def test_slow_header_where_something_is_cached(make_site: MakeSite) -> None:
    site = make_site(upstream={"read_timeout": "30s"}, **WHOLE)
    site.warm(5)
    be_slow(site)
    assert eventually(lambda: "fwd=stale" in site.gateway.ask("/test.cvd", timeout=30).cache_status)
    assert whole(site, "/test.cvd") == signed("test-5.cvd")


@pytest.mark.parametrize("path", ["/test.cvd", "/test-6.cdiff"])
def test_loop_over_two_gateways(make_site: MakeSite, path: str) -> None:
    """Each is the other's origin."""
    site = make_site()
    site.publish(6)
    first = site.gateway
    settings = settings_for(site.origin, site.dns)
    settings["upstream"]["url"] = f"http://localhost:{first.port}"
    with Gateway(site.directory / "second", settings) as second:
        first.stop()
        first.settings["upstream"]["url"] = f"http://localhost:{second.port}"
        first.config.write_text(yaml.safe_dump(first.settings))
        first.start(at_same_ports=True)
        assert first.ask(path, timeout=30).status == 503
        assert second.ask(path, Way.ABSOLUTE, timeout=30).status == 503
        assert "loop" in first.log + second.log
        # A break at the start of a transfer is retried once; nothing goes round.
        assert sum(gateway.log.count(f"GET {path} ") for gateway in (first, second)) <= 8


@pytest.mark.parametrize("path", ["/test.cvd", "/test-6.cdiff"])
def test_a_redirect_to_another_port_leads_nowhere(site: Site, path: str) -> None:
    """It may be that of another gateway, or of the status page."""
    site.publish(6)
    site.origin.rule("*", faults.redirect(f"http://localhost:{site.gateway.reverse_port}{path}"))
    assert site.gateway.ask(path, timeout=30).status == 503
    assert "a redirect to another scheme, host or port" in site.gateway.log
    assert len(site.origin.requests()) <= 4
    site.origin.heal()
    assert eventually(lambda: whole(site, path) == signed(path.removeprefix("/").replace("test.", "test-6.")))
