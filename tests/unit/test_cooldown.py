"""Cool-downs: what is held back, for whom and for how long (protocol.md traps 20 and 21)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.messages import Requester
from clamproxy.origin.cooldown import (
    BACKOFFS,
    ENOUGH_REFUSALS,
    HOUR,
    LONGEST_RETRY_AFTER,
    PROXY,
    TRIAL,
    Backoff,
    Cooldowns,
    FailureKind,
)
from tests.support.clock import Clock
from tests.support.notes import notes_in
from tests.unit.conftest import AGENT, OLD_AGENT

CVD, CDIFF = "/daily.cvd", "/daily-7.cdiff"
NEW, OLD = "ClamAV/1.4.6", "ClamAV/0.103.2"


class Bench:
    """Cool-downs with a clock and a notebook."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.notes: dict[str, Any] = {}
        self.cooldowns = self.make()

    def make(self) -> Cooldowns:
        return Cooldowns(notes_in(self.notes), self.clock)

    def fail(self, failure: FailureKind, path: str = CVD, agent: str = NEW, **more: Any) -> float:
        """Note a failure; gives the seconds to wait."""
        return self.cooldowns.failed(failure, path, agent, "why", **more).until - self.clock.now

    def blocks(self, path: str = CVD, agent: str = NEW) -> bool:
        return self.cooldowns.check(path, agent) is not None


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("failure", "same_file_other_client", "other_file_same_client", "other_file_other_client"),
    [
        pytest.param(
            FailureKind.FORBIDDEN, False, True, False, id="trap 20: a 403 concerns one client version"
        ),
        pytest.param(FailureKind.RATE_LIMITED, True, False, False, id="trap 21: a 429 concerns one file"),
        pytest.param(FailureKind.SERVER_ERROR, True, False, False, id="an error concerns one file"),
        pytest.param(FailureKind.BAD_CONTENT, True, False, False, id="bad content concerns one file"),
        pytest.param(FailureKind.INTERRUPTED, True, False, False, id="a broken transfer concerns one file"),
        pytest.param(FailureKind.LOCAL, True, False, False, id="a local error concerns one file"),
        pytest.param(FailureKind.UNREACHABLE, True, True, True, id="an unreachable server concerns all"),
        pytest.param(FailureKind.PROXY_AUTHENTICATION, True, True, True, id="a 407 concerns all"),
    ],
)
def test_what_a_failure_concerns(
    bench: Bench,
    failure: FailureKind,
    same_file_other_client: bool,
    other_file_same_client: bool,
    other_file_other_client: bool,
) -> None:
    bench.fail(failure)
    assert bench.blocks()
    assert bench.blocks(agent=OLD) is same_file_other_client
    assert bench.blocks(path=CDIFF) is other_file_same_client
    assert bench.blocks(CDIFF, OLD) is other_file_other_client


@pytest.mark.parametrize("failure", FailureKind)
def test_delays_double_up_to_the_longest(bench: Bench, failure: FailureKind) -> None:
    backoff = BACKOFFS[failure]
    first, longest = backoff.first, backoff.longest
    assert [bench.fail(failure) for _ in range(backoff.free)] == [0.0] * backoff.free
    delays = [bench.fail(failure) for _ in range(40)]
    assert delays[0] == first
    assert delays[-1] == longest
    assert all(later == min(2 * earlier, longest) for earlier, later in pairwise(delays))


def test_after_a_407_one_request_alone_tries_again(bench: Bench) -> None:
    """Each wrong password counts at the proxy, and soon locks the account."""
    bench.clock.now += bench.fail(FailureKind.PROXY_AUTHENTICATION)
    assert not bench.blocks()
    assert bench.cooldowns.admit(CVD, NEW) is None
    assert bench.cooldowns.admit(CDIFF, OLD) is not None
    bench.clock.now += TRIAL  # what became of that request is not known
    assert bench.cooldowns.admit(CDIFF, OLD) is None
    bench.cooldowns.succeeded(CDIFF, OLD)
    assert bench.cooldowns.admit(CVD, NEW) is None
    assert bench.cooldowns.admit(CDIFF, OLD) is None


def test_a_407_locks_no_account(bench: Bench) -> None:
    tries: list[float] = []
    while bench.clock.now - (tries or [bench.clock.now])[0] < 12 * HOUR:
        if bench.cooldowns.admit(CVD, NEW) is None:
            tries.append(bench.clock.now)
            bench.fail(FailureKind.PROXY_AUTHENTICATION)
        bench.clock.now += 1
    assert all(len([one for one in tries if 0 <= one - at <= HOUR / 2]) <= 2 for at in tries)


@pytest.mark.parametrize("failure", FailureKind)
def test_whatever_comes_from_beyond_the_proxy_shows_that_it_admits(
    bench: Bench, failure: FailureKind
) -> None:
    bench.fail(FailureKind.PROXY_AUTHENTICATION)
    bench.fail(failure)
    is_from_here = failure in (
        FailureKind.PROXY_AUTHENTICATION,
        FailureKind.UNREACHABLE,
        FailureKind.INTERRUPTED,
        FailureKind.LOCAL,
        FailureKind.NO_ROOM,
    )
    assert (PROXY in bench.cooldowns.in_force()) is is_from_here


def test_a_cooldown_that_a_wrong_clock_noted_ends_over_many_restarts(bench: Bench) -> None:
    bench.fail(FailureKind.RATE_LIMITED)
    bench.notes[CVD]["until"] = 10.0**15
    restarts = 0
    while bench.blocks() or not restarts:
        bench.clock.now += LONGEST_RETRY_AFTER / 4
        bench.cooldowns = bench.make()
        restarts += 1
        assert restarts <= 6


def test_a_file_that_changes_again_and_again_is_not_fetched_at_once(bench: Bench) -> None:
    """An origin that gives a wrong length seems to change at the end of each download."""
    assert bench.fail(FailureKind.CHANGED) == 0
    bench.cooldowns.succeeded(CVD, NEW, verified=False)  # its header is right
    assert bench.fail(FailureKind.CHANGED) == 2
    bench.cooldowns.succeeded(CVD, NEW, verified=False)
    assert bench.blocks()
    assert bench.fail(FailureKind.CHANGED) == 4
    bench.cooldowns.succeeded(CVD, NEW)
    assert bench.fail(FailureKind.CHANGED) == 0


def test_another_kind_of_failure_begins_anew(bench: Bench) -> None:
    bench.fail(FailureKind.SERVER_ERROR)
    bench.fail(FailureKind.SERVER_ERROR)
    assert bench.fail(FailureKind.BAD_CONTENT) == BACKOFFS[FailureKind.BAD_CONTENT].first


@pytest.mark.parametrize(
    ("retry_after", "delay"),
    [
        (7.0, 7.0),
        (86400.0, 86400.0),
        pytest.param(10 * 86400.0, LONGEST_RETRY_AFTER, id="never more than a day"),
        pytest.param(0.0, 300.0, id="protocol.md 2.2: not positive counts as absent"),
        pytest.param(-5.0, 300.0, id="a date that has passed"),
        (None, 300.0),
    ],
)
def test_trap_21_retry_after(bench: Bench, retry_after: float | None, delay: float) -> None:
    assert bench.fail(FailureKind.RATE_LIMITED, retry_after=retry_after) == delay


def test_it_ends(bench: Bench) -> None:
    delay = bench.fail(FailureKind.RATE_LIMITED)
    bench.clock.now += delay - 1
    assert bench.blocks()
    bench.clock.now += 1
    assert not bench.blocks()
    assert bench.cooldowns.in_force() == {}


def test_the_longest_of_several_is_told(bench: Bench) -> None:
    bench.fail(FailureKind.UNREACHABLE)
    bench.fail(FailureKind.RATE_LIMITED)
    bench.fail(FailureKind.FORBIDDEN)
    found = bench.cooldowns.check(CVD, NEW)
    assert found is not None
    assert found.failure is FailureKind.RATE_LIMITED
    assert set(bench.cooldowns.in_force()) == {CVD, f"client {NEW}", "origin"}


def test_success_clears_what_it_disproves(bench: Bench) -> None:
    for path in (CVD, CDIFF):
        bench.fail(FailureKind.RATE_LIMITED, path)
    for agent in (NEW, OLD):
        bench.fail(FailureKind.FORBIDDEN, agent=agent)
    bench.fail(FailureKind.UNREACHABLE)
    bench.cooldowns.succeeded(CVD, NEW)
    assert not bench.blocks()
    assert set(bench.cooldowns.in_force()) == {CDIFF, f"client {OLD}"} == set(bench.notes)


def test_a_good_header_says_nothing_about_the_rest(bench: Bench) -> None:
    bench.fail(FailureKind.BAD_CONTENT)
    bench.fail(FailureKind.FORBIDDEN)
    bench.cooldowns.succeeded(CVD, NEW, verified=False)
    assert set(bench.cooldowns.in_force()) == {CVD}
    bench.cooldowns.succeeded(CVD, NEW)
    assert not bench.blocks()


def test_a_restart_forgets_nothing(bench: Bench) -> None:
    bench.fail(FailureKind.RATE_LIMITED, retry_after=7200.0)
    bench.fail(FailureKind.FORBIDDEN)
    again = bench.make()
    assert again.in_force() == bench.cooldowns.in_force()
    # the count of failures goes on, too
    assert again.failed(FailureKind.FORBIDDEN, CVD, NEW, "why").failures == 2


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], {}, {"failure": "forbidden"}, {"failure": "unheard of"}, {"until": 5}]
)
def test_a_note_that_makes_no_sense_is_dropped(bench: Bench, value: Any) -> None:
    bench.notes[CVD] = value
    assert bench.make().in_force() == {}
    assert CVD not in bench.notes


def test_a_note_with_values_of_the_wrong_type_is_dropped(bench: Bench) -> None:
    bench.notes[CVD] = {"until": "x", "failures": 1, "failure": "forbidden", "reason": ""}
    bench.cooldowns = bench.make()
    assert not bench.blocks()


def test_old_ones_do_not_pile_up(bench: Bench) -> None:
    for number in range(100):
        bench.fail(FailureKind.SERVER_ERROR, path=f"/daily-{number}.cdiff")
    bench.clock.now += HOUR
    bench.fail(FailureKind.SERVER_ERROR)
    assert list(bench.notes) == [CVD]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(FailureKind),
            st.sampled_from([CVD, CDIFF]),
            st.sampled_from([NEW, OLD, "", "curl/8"]),
            st.none() | st.floats(-1e6, 1e6),
            st.floats(0, 30000),
        ),
        max_size=30,
    )
)
def test_no_cooldown_outlasts_the_longest(
    events: list[tuple[FailureKind, str, str, float | None, float]],
) -> None:
    bench = Bench()
    for failure, path, agent, retry_after, pause in events:
        bench.fail(failure, path, agent, retry_after=retry_after)
        longest = LONGEST_RETRY_AFTER if retry_after else BACKOFFS[failure].longest
        for cooldown in bench.cooldowns.in_force().values():
            assert cooldown.until - bench.clock.now <= LONGEST_RETRY_AFTER + 0.001
        found = bench.cooldowns.check(path, agent)
        assert found is not None or BACKOFFS[failure].free or (retry_after and 0 < retry_after < 1)
        assert bench.fail(failure, "/other.cvd", "other", retry_after=retry_after) <= longest + 0.001
        bench.clock.now += pause


agents = st.text(max_size=200) | st.builds("ClamAV/1.4.{} (x)".format, st.integers(0, 20))


@given(agents, agents)
def test_trap_20_one_version_never_blocks_another(refused: str, other: str) -> None:
    bench = Bench()
    one, another = Requester(refused).version, Requester(other).version
    bench.fail(FailureKind.FORBIDDEN, agent=one)
    assert bench.blocks(agent=another) is (one == another)


@pytest.mark.parametrize(
    ("user_agent", "version"),
    [
        (AGENT, NEW),
        (OLD_AGENT, OLD),
        pytest.param("CVDUPDATE/1.2.0 (uuid)", "CVDUPDATE/1.2.0", id="9.5: cvdupdate"),
        pytest.param("curl/8.5.0", "other", id="others are one: clients choose the keys"),
        ("ClamAV", "other"),
        ("ClamAV/", "other"),
        ("xClamAV/1.4.6", "other"),
        ("ClamAV/\u0661", "other"),
        (None, "other"),
        ("", "other"),
        ("ClamAV/" + "1" * 500, "ClamAV/" + "1" * 32),
    ],
)
def test_client_version(user_agent: str | None, version: str) -> None:
    assert Requester(user_agent).version == version


@given(st.floats(0.001, 1e3), st.floats(0.001, 1e5), st.integers(1, 10**6))
def test_backoff_stays_finite(first: float, longest: float, failures: int) -> None:
    assert 0 < Backoff(first, longest).delay(failures) <= longest


# So many refusals that the address may be blocked


REFUSED = [f"ClamAV/1.4.{number}" for number in range(ENOUGH_REFUSALS)]
ADMITTED, STRANGER = "ClamAV/1.5.0", "ClamAV/1.5.3"


def refuse(bench: Bench, agents: list[str], pause: float = 0.0) -> None:
    for agent in agents:
        bench.fail(FailureKind.FORBIDDEN, agent=agent)
        bench.clock.now += pause


def test_after_some_refusals_the_next_version_does_not_try(bench: Bench) -> None:
    refuse(bench, REFUSED[:-1])
    assert not bench.blocks(agent=STRANGER)
    refuse(bench, REFUSED[-1:])
    for agent in (STRANGER, "other"):
        assert bench.blocks(agent=agent)
        assert bench.blocks(CDIFF, agent)
    found = bench.cooldowns.check(CVD, STRANGER)
    assert found is not None
    assert found.failure is FailureKind.FORBIDDEN


def test_one_that_was_admitted_before_is_not_held_back(bench: Bench) -> None:
    bench.cooldowns.succeeded(CDIFF, ADMITTED)
    refuse(bench, REFUSED)
    assert not bench.blocks(agent=ADMITTED)
    assert bench.blocks(agent=STRANGER)
    refuse(bench, [ADMITTED])
    assert bench.blocks(agent=ADMITTED), "until it is refused itself"


def test_as_soon_as_the_first_of_the_refusals_ends_it_tries(bench: Bench) -> None:
    refuse(bench, REFUSED, pause=10)
    assert bench.cooldowns.check(CVD, STRANGER) == bench.cooldowns.in_force()[f"client {REFUSED[0]}"]
    bench.clock.now += BACKOFFS[FailureKind.FORBIDDEN].first - 10 * ENOUGH_REFUSALS
    assert not bench.blocks(agent=STRANGER)
    assert bench.blocks(agent=REFUSED[-1])


def test_one_admission_among_them_lets_others_try(bench: Bench) -> None:
    refuse(bench, REFUSED)
    bench.cooldowns.succeeded(CVD, REFUSED[0])
    assert not bench.blocks(agent=STRANGER)


def test_other_failures_do_not_count_as_refusals(bench: Bench) -> None:
    for number in range(2 * ENOUGH_REFUSALS):
        bench.fail(FailureKind.RATE_LIMITED, f"/daily-{number}.cdiff", f"ClamAV/1.4.{number}")
    assert not bench.blocks(agent=STRANGER)


def test_refusals_count_after_a_restart_too(bench: Bench) -> None:
    refuse(bench, REFUSED)
    again = bench.make()
    assert again.check(CVD, STRANGER) is not None
