"""An origin that answers anything: nothing false is published, nobody goes back, and it ends."""

from __future__ import annotations

import gc
import logging
import resource
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from clamproxy.objects import Kind, ObjectId
from clamproxy.service import Service
from tests.harness.impatient import make_impatient
from tests.harness.service import RELEASES
from tests.support.byzantine import Trick
from tests.support.raw import RawHost
from tests.support.stored import put
from tests.torture.byzantine import CURL, HEADER, Byzantine, Totals, watch_connects
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
    watch_connects()
    Totals.reset()
    gateways = _gateways()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
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


def test_the_checks_notice_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    make_impatient(monkeypatch)
    with RawHost(b"") as Byzantine.stranger:
        machine = Byzantine()
        machine.begin(3, [])
        machine.ask("/daily.cvd", CURL, {}, 1)
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
