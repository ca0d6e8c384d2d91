"""An origin that answers anything: nothing false is published, nobody goes back, and it ends."""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from clamproxy.formats.header import CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.messages import Response, Result
from clamproxy.objects import Kind, ObjectId
from clamproxy.service import Service
from tests.harness.genuine import MAIN
from tests.harness.impatient import LARGEST, make_impatient
from tests.harness.service import RELEASES
from tests.support.byzantine import DRIPS, Trick
from tests.support.forge import ForgeKeys, forge_sign
from tests.support.processes import peak_of
from tests.support.raw import RawHost
from tests.support.site import eventually
from tests.support.stored import put
from tests.torture.byzantine import CURL, HEADER, Byzantine, Totals, watch_contacts
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

PARTS = rounds(usual=1, full=4)
"""Tests, so that two processes share the work."""
RUNS = rounds(usual=120, full=2500)
"""For each part."""
AT_ONCE = 250
"""Runs that Hypothesis does at once: it remembers all of them, with some 100 KB each."""
STEPS = 6
MOST_MEMORY = 200 * 2**20
"""Bytes by which the process may grow over the runs of a part."""


def _gateways() -> int:
    """How many there are in this process."""
    gc.collect()
    return sum(type(one) is Service for one in gc.get_objects())


def _peak(*, anew: bool = False) -> int:
    """The most bytes that this process has had in memory; anew: from now on, as other tests need more."""
    gc.collect()
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * peak_of(os.getpid())


@pytest.mark.timeout(rounds(usual=600, full=5400))
@pytest.mark.parametrize("part", range(PARTS))
def test_a_byzantine_origin(
    part: int,
    figures: Figures,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    make_impatient(monkeypatch)
    request.addfinalizer(partial(logging.disable, logging.NOTSET))
    logging.disable(logging.WARNING)  # pytest keeps each line, and with its error the gateway
    watch_contacts()
    Totals.reset()
    gateways = _gateways()
    before = _peak(anew=True)
    with RawHost(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as Byzantine.stranger:
        Byzantine.elsewhere = f"127.0.0.1:{Byzantine.stranger.port}"
        for first in range(0, RUNS, AT_ONCE):
            run_state_machine_as_test(
                seed(f"{SEED}-{part}-{first}")(Byzantine),
                settings=settings(
                    max_examples=min(AT_ONCE, RUNS - first),
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate],  # six steps need no shrinking, which takes minutes
                ),
            )
            assert _gateways() <= gateways, "a gateway outlives its stop"
    assert not caplog.records, "no error, and no traceback"
    grown = _peak() - before
    assert grown < MOST_MEMORY, f"{grown / 2**20:.0f} MB more"
    figures(
        "Byzantine origin",
        runs=Totals.runs,
        answers=dict(Totals.answers),
        requests_upstream=Totals.asked,
        megabytes_grown=grown // 2**20,
        hours_until_all_is_right=Totals.slowest_recovery,
        wrong_objects=0,
    )


def fetch(machine: Byzantine, database: str, version: int) -> None:
    """Ask an honest origin until the file is cached: on a busy machine, it may be slow for once."""
    for _ in range(20):
        machine.ask(f"/{database}.cvd", CURL, {}, 1)
        if ObjectId(database, version, Kind.CVD) in set(machine.harness.service.store.object_ids()):
            return
        machine.clock.ahead += 3600
    raise AssertionError(database)


def test_the_checks_notice_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    make_impatient(monkeypatch)
    with RawHost(b"") as Byzantine.stranger:
        machine = Byzantine()
        machine.begin(3, [])
        fetch(machine, "daily", 3)
        machine.only_what_verifies_is_published()
        store = machine.harness.service.store
        put(store, ObjectId("daily", 4, Kind.CDIFF), RELEASES.cdiff(5))
        with pytest.raises(AssertionError):
            machine.only_what_verifies_is_published()
        store.drop(ObjectId("daily", 4, Kind.CDIFF))
        store.newest_proven.note("daily", 5)
        machine.proven = 5
        response, content = machine.run(machine.answer("/daily.cvd", CURL, HEADER))
        with pytest.raises(AssertionError):
            machine.check("/daily.cvd", CURL, HEADER, response, content)
        machine.origin.tricks = [Trick(status=503, fields=(("Retry-After", "900"),))]
        machine.ask("/main.cvd", CURL, {}, 1)
        machine.clock.ahead += 901
        machine.ask("/main.cvd", CURL, {}, 1)
        cooldowns = machine.harness.service.clamav.origin.cooldowns
        with monkeypatch.context() as deaf:
            deaf.setattr(cooldowns, "check", lambda *_: None)
            with pytest.raises(AssertionError, match="cool-down"):
                machine.ask("/main.cvd", CURL, {}, 1)
        machine.newest = 5
        machine.teardown()


WRONG_ANSWERS: dict[str, tuple[str, int, bytes]] = {
    "another database": ("/daily.cvd", 200, MAIN.cvd(3)),
    "a demanded version": ("/daily.cvd?version=3", 200, MAIN.cvd(3)),
    "an older version": ("/daily.cvd?version=2", 200, RELEASES.cvd(2)),
    "the end of a CVD": ("/daily.cvd?version=3", 200, RELEASES.cvd(3) + b"x"),
    "the beginning of a CVD": ("/daily.cvd", 206, MAIN.cvd(3)[:512]),
    "a CVD as CLD": ("/daily.cld", 200, RELEASES.cvd(3)),
    "a patch": ("/daily-3.cdiff", 200, RELEASES.cdiff(2)),
    "the beginning of a patch": ("/daily-3.cdiff", 206, RELEASES.cdiff(2)[:512]),
    "no signature": ("/daily-4.cvd.sign", 200, b"#clamsign-1.0\nx"),
    "a stranger's signature": ("/daily-4.cvd.sign", 200, forge_sign(b"x", ForgeKeys.generate())),
    "a signature of another file": ("/daily-3.cvd.sign", 200, RELEASES.cvd_sign(2)),
}
"""Each with its path and status, to a gateway that has version 3 of daily."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Byzantine]:
    """A gateway that has had version 3 of daily from an origin that is still honest."""
    make_impatient(monkeypatch)
    watch_contacts()
    with RawHost(b"") as Byzantine.stranger:
        machine = Byzantine()
        machine.begin(3, [])
        fetch(machine, "daily", 3)
        fetch(machine, "main", 1)
        machine.no_other_host_is_contacted()
        yield machine
        machine.teardown()


@pytest.mark.parametrize("what", WRONG_ANSWERS)
def test_wrong_content_is_noticed(machine: Byzantine, what: str) -> None:
    path, status, content = WRONG_ANSWERS[what]
    machine.known = set(machine.harness.service.store.object_ids())
    version = CvdHeader.parse(content).version if path.startswith("/daily.c") else None
    response = Response(status, Result.HIT, version=version)
    with pytest.raises((AssertionError, InvalidObject)):
        machine.check(path, CURL, {}, response, content)


@pytest.mark.parametrize("place", ["127.0.0.2:{port}", "127.0.0.1:9", "elsewhere.example:{port}"])
def test_other_hosts_are_noticed(machine: Byzantine, place: str) -> None:
    """An address, a port, and a name that is only looked up."""
    host, port = place.format(port=machine.origin.port).split(":")
    with suppress(OSError):
        if host.endswith(".example"):
            socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)  # asks no name server
        else:
            socket.create_connection((host, int(port))).close()
    with pytest.raises(AssertionError):
        machine.no_other_host_is_contacted()


@pytest.mark.parametrize("framing", ["endless", "endless-chunks"])
@pytest.mark.parametrize("place", ["/bytecode.cvd", "https://elsewhere.example/"])
def test_the_body_of_a_redirect_does_not_matter(machine: Byzantine, framing: str, place: str) -> None:
    machine.purge(())
    machine.origin.tricks = [Trick(status=307, fields=(("Location", place),), framing=framing)]
    response, _ = machine.run(machine.answer("/main.cvd", CURL, {}))
    assert response.status == 503
    assert eventually(lambda: machine.origin.longest_sent > 0)
    machine.nothing_piles_up()


@pytest.mark.parametrize(
    "trick",
    [
        *(Trick(framing=framing) for framing in ("endless", "endless-chunks")),
        *(Trick(ending=ending) for ending in DRIPS),
    ],
    ids=lambda trick: trick.framing if trick.framing != "right" else trick.ending,
)
def test_a_body_that_does_not_end_is_given_up(machine: Byzantine, trick: Trick) -> None:
    """It is either far longer than any file may be, or so slow that it would take hours."""
    machine.purge(())
    machine.origin.tricks = [trick]
    response, content = machine.run(machine.answer("/main.cvd", CURL, {}))
    assert content is None or response.status == 503
    machine.nothing_piles_up()
    if "endless" in trick.framing:
        assert eventually(lambda: machine.origin.longest_sent > LARGEST)
    else:
        assert machine.origin.longest_sent < len(MAIN.cvd(1))
