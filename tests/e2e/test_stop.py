"""SIGTERM: what clients read comes to its end, what arrives can be gone on with, nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import yaml

from tests.support import faults
from tests.support.big import PATH, SIZE, Forgery, begun_download
from tests.support.freshclam import OK
from tests.support.gateway import ADDON, END_LIMIT, ROOT, Gateway, Way, receive, send
from tests.support.processes import family
from tests.support.site import Site, eventually, signed

from .conftest import MakeSite

LITTLE = 1_000_000
NEARLY_ALL = SIZE - LITTLE
LOOKS = 2.5
"""Seconds in which mitmproxy would look at its script at least twice."""


def ask_to_stop(gateway: Gateway, number: signal.Signals = signal.SIGTERM) -> None:
    """Send the signal, and wait until the process has taken it in, which is not its end."""
    os.kill(gateway.pid, number)
    status = Path(f"/proc/{gateway.pid}/status")

    def is_taken_in() -> bool:
        try:
            return "ShdPnd:\t0000000000000000\n" in status.read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended already
            return True

    assert eventually(is_taken_in, every=0.02)


def wait_for_end(gateway: Gateway) -> int:
    """The exit status, without another signal: that could end the process in its last moment."""
    process = gateway._process
    assert process is not None
    return process.wait(END_LIMIT)


def refuses(gateway: Gateway) -> bool:
    """Whether nobody listens any more."""
    try:
        with gateway.connection(Way.ABSOLUTE):
            return False
    except OSError:
        return True


def assert_clean(gateway: Gateway) -> None:
    """The log has no traceback and no complaint about what was left open."""
    log = gateway.log
    assert not re.search(r"Traceback|never (awaited|retrieved)|was destroyed|ResourceWarning", log), log


def left(site: Site) -> set[str]:
    """What is in the gateway's directory, the contents of cache, CA and mitmproxy's own left out."""
    return {path.name for path in site.gateway.directory.iterdir()} - {"cache", "ca", "conf"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle(site: Site, number: signal.Signals) -> None:
    site.publish(2)
    assert site.client().run().code == OK
    ask_to_stop(site.gateway, number)
    assert wait_for_end(site.gateway) == 0
    assert refuses(site.gateway)
    assert_clean(site.gateway)
    assert left(site) == {"proxy.yaml", "gateway.log", "cache-state"}


def test_a_second_signal(big: Site) -> None:
    """Whoever is in a hurry sends another one."""
    big.origin.rule("W", faults.stall(LITTLE), times=1)
    with begun_download(big.gateway):
        ask_to_stop(big.gateway)
        assert big.gateway.stop() in (0, -signal.SIGTERM)
    assert_clean(big.gateway)


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS])
def test_answers_that_are_on_their_way_end(big: Site, forgery: Forgery, way: Way) -> None:
    """A freshclam can't go on with half a file."""
    assert big.gateway.ask(PATH).body == forgery.body
    with begun_download(big.gateway, 1000, way, buffer=8192) as client:
        ask_to_stop(big.gateway)
        assert client.read() == (forgery.body, True)
    assert wait_for_end(big.gateway) == 0
    assert_clean(big.gateway)


def test_a_transfer_that_takes_some_seconds_more_ends(big: Site, forgery: Forgery) -> None:
    big.origin.rule("W", faults.stall(NEARLY_ALL), times=1)
    with begun_download(big.gateway) as client:
        ask_to_stop(big.gateway)
        big.origin.heal()
        assert client.read() == (forgery.body, True)
    assert wait_for_end(big.gateway) == 0
    assert_clean(big.gateway)
    big.origin.refuse()
    big.gateway.start()
    assert big.gateway.ask(PATH).body == forgery.body


@pytest.mark.parametrize("is_reloaded", [False, True])
def test_a_response_that_has_not_begun_is_waited_for(site: Site, is_reloaded: bool) -> None:
    """Also that of a request which began before a reload."""
    site.publish(2)
    site.origin.rule("W", faults.Fault(held=True), times=1)
    with site.gateway.connection(Way.ABSOLUTE) as connection:
        send(connection, "/test.cvd", Way.ABSOLUTE)
        assert eventually(lambda: site.origin.count("W") == 1)
        if is_reloaded:
            changed = {**site.gateway.settings, "log": {"format": "json"}}
            site.gateway.config.write_text(yaml.safe_dump(changed))
            os.kill(site.gateway.pid, signal.SIGHUP)
            assert eventually(lambda: "was reloaded" in site.gateway.log)
        ask_to_stop(site.gateway)
        assert eventually(lambda: refuses(site.gateway))
        site.origin.heal()
        assert receive(connection).status == 200
    assert wait_for_end(site.gateway) == 0
    assert_clean(site.gateway)


def test_a_transfer_that_does_not_end_is_gone_on_with(big: Site, forgery: Forgery) -> None:
    """The origin is silent: the process ends in time all the same, and the next one asks for the rest."""
    big.origin.rule("W", faults.stall(NEARLY_ALL))
    big.origin.rule("R", faults.silent())
    with begun_download(big.gateway, LITTLE) as client:
        assert big.gateway.stop() == 0
        body, complete = client.read()
    assert not complete
    assert forgery.body.startswith(body)
    assert_clean(big.gateway)
    big.origin.heal()
    big.origin.forget()
    big.gateway.start()
    assert eventually(lambda: big.gateway.ask(PATH).body == forgery.body)  # after a cool-down
    resumed = big.origin.requests("R")[0].headers
    assert int(resumed["range"].removeprefix("bytes=").partition("-")[0]) > LITTLE / 2
    assert "if-range" in resumed
    assert big.origin.count("W") == 0


def test_a_transfer_that_nobody_reads_is_gone_on_with(big: Site, forgery: Forgery) -> None:
    big.origin.rule("W", faults.stall(NEARLY_ALL), times=1)
    with begun_download(big.gateway):
        pass
    assert eventually(lambda: big.origin.bytes_sent > LITTLE)
    assert big.gateway.stop() == 0
    assert_clean(big.gateway)
    big.origin.heal()
    big.origin.forget()
    big.gateway.start()
    assert big.gateway.ask(PATH).body == forgery.body
    assert big.origin.bytes_sent < len(forgery.body)


def test_no_new_clients_meanwhile(big: Site, forgery: Forgery) -> None:
    """A new connection is refused, or answered rightly; it is not left hanging."""
    big.origin.rule("W", faults.stall(NEARLY_ALL), times=1)
    with begun_download(big.gateway) as client, ExitStack() as stack:
        ask_to_stop(big.gateway)
        late = None
        with suppress(OSError):
            late = stack.enter_context(big.gateway.connection(Way.ABSOLUTE))
            send(late, PATH, Way.ABSOLUTE)
        big.origin.heal()
        assert client.read() == (forgery.body, True)
        if late is not None:
            with suppress(OSError):
                answer = receive(late)
                assert answer.body == forgery.body or not answer.complete
    assert wait_for_end(big.gateway) == 0
    assert_clean(big.gateway)


def test_figures_are_kept(site: Site) -> None:
    """What was counted until the last moment is there after the restart."""
    site.publish(2)
    for _ in range(5):
        assert site.gateway.ask("/test.cvd").body == signed("test-2.cvd")
    assert site.gateway.stop() == 0
    assert site.gateway.stats()["requests"] == 5
    assert site.gateway.stats()["hits"] == 4
    site.gateway.start()
    assert site.gateway.ask("/test.cvd").cache_status == "clamproxy; hit"


def test_a_stop_during_the_start(site: Site) -> None:
    """A service manager may think better of it at once."""
    site.gateway.kill()
    for _ in range(3):
        site.gateway.start()
        code = site.gateway.stop()
        # Before mitmproxy has set up its handlers the signal just ends the process.
        assert code in (0, -signal.SIGTERM)
    assert_clean(site.gateway)
    site.gateway.start()
    site.publish(2)
    assert site.gateway.ask("/test.cvd").status == 200


def test_no_process_is_left(big: Site) -> None:
    big.origin.rule("W", faults.stall(LITTLE), times=1)
    with begun_download(big.gateway):
        processes = family(big.gateway.pid)
        assert big.gateway.stop() == 0
    for each in processes:
        assert not Path(f"/proc/{each}").exists()
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=20).stdout
    assert str(big.gateway.config) not in listing


def test_an_upgrade_in_place_ends_nothing(make_site: MakeSite, tmp_path: Path) -> None:
    """The program's files go and come back while it runs; mitmproxy looks at its script each second."""
    script = tmp_path / "script.py"
    text = (ROOT / ADDON).read_text()
    script.write_text(text)
    site = make_site(script=str(script))
    site.publish(2)
    script.unlink()
    time.sleep(LOOKS)
    assert site.gateway.ask("/test.cvd").body == signed("test-2.cvd")
    script.write_text(text)
    time.sleep(LOOKS)
    assert site.gateway.ask("/test.cvd").body == signed("test-2.cvd")
    assert_clean(site.gateway)
