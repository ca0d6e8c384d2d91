"""Cool-downs: what is held back, for whom and for how long (docs/protocol.md, traps 20 and 21)."""

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
from tests.support.stored import AGENT, OLD_AGENT

CVD, CDIFF = "/daily.cvd", "/daily-7.cdiff"
NEW, OLD = "ClamAV/1.4.6", "ClamAV/0.103.2"


class CooldownHarness:
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
def harness() -> CooldownHarness:
    return CooldownHarness()


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
    harness: CooldownHarness,
    failure: FailureKind,
    same_file_other_client: bool,
    other_file_same_client: bool,
    other_file_other_client: bool,
) -> None:
    harness.fail(failure)
    assert harness.blocks()
    assert harness.blocks(agent=OLD) is same_file_other_client
    assert harness.blocks(path=CDIFF) is other_file_same_client
    assert harness.blocks(CDIFF, OLD) is other_file_other_client


@pytest.mark.parametrize("failure", FailureKind)
def test_delays_double_up_to_the_longest(harness: CooldownHarness, failure: FailureKind) -> None:
    backoff = BACKOFFS[failure]
    first, longest = backoff.first, backoff.longest
    assert [harness.fail(failure) for _ in range(backoff.free)] == [0.0] * backoff.free
    delays = []
    for _ in range(40):
        delays.append(harness.fail(failure))
        harness.clock.now += delays[-1]
    assert delays[0] == first
    assert delays[-1] == longest
    assert all(later == min(2 * earlier, longest) for earlier, later in pairwise(delays))


def test_what_was_under_way_at_a_407_counts_once(harness: CooldownHarness) -> None:
    first = BACKOFFS[FailureKind.PROXY_AUTHENTICATION].first
    assert [harness.fail(FailureKind.PROXY_AUTHENTICATION, path) for path in (CVD, CDIFF, CVD)] == [first] * 3
    harness.clock.now += first
    assert harness.cooldowns.admit(CVD, NEW) is None
    assert harness.fail(FailureKind.PROXY_AUTHENTICATION) == 2 * first


def test_after_a_407_one_request_alone_tries_again(harness: CooldownHarness) -> None:
    """Each wrong password counts at the proxy, and soon locks the account."""
    harness.clock.now += harness.fail(FailureKind.PROXY_AUTHENTICATION)
    assert not harness.blocks()
    assert harness.cooldowns.admit(CVD, NEW) is None
    assert harness.cooldowns.admit(CDIFF, OLD) is not None
    harness.clock.now += TRIAL  # what became of that request is not known
    assert harness.cooldowns.admit(CDIFF, OLD) is None
    harness.cooldowns.succeeded(CDIFF, OLD)
    assert harness.cooldowns.admit(CVD, NEW) is None
    assert harness.cooldowns.admit(CDIFF, OLD) is None


def test_a_407_locks_no_account(harness: CooldownHarness) -> None:
    tries: list[float] = []
    while harness.clock.now - (tries or [harness.clock.now])[0] < 12 * HOUR:
        if harness.cooldowns.admit(CVD, NEW) is None:
            tries.append(harness.clock.now)
            harness.fail(FailureKind.PROXY_AUTHENTICATION)
        harness.clock.now += 1
    assert all(len([one for one in tries if 0 <= one - at <= HOUR / 2]) <= 2 for at in tries)


@pytest.mark.parametrize("failure", FailureKind)
def test_whatever_comes_from_beyond_the_proxy_shows_that_it_admits(
    harness: CooldownHarness, failure: FailureKind
) -> None:
    harness.fail(FailureKind.PROXY_AUTHENTICATION)
    harness.fail(failure)
    is_from_here = failure in (
        FailureKind.PROXY_AUTHENTICATION,
        FailureKind.UNREACHABLE,
        FailureKind.INTERRUPTED,
        FailureKind.LOCAL,
        FailureKind.NO_ROOM,
    )
    assert (PROXY in harness.cooldowns.in_force()) is is_from_here


def test_a_cooldown_that_a_wrong_clock_noted_ends_over_many_restarts(harness: CooldownHarness) -> None:
    harness.fail(FailureKind.RATE_LIMITED)
    harness.notes[CVD]["until"] = 10.0**15
    restarts = 0
    while harness.blocks() or not restarts:
        harness.clock.now += LONGEST_RETRY_AFTER / 4
        harness.cooldowns = harness.make()
        restarts += 1
        assert restarts <= 6


def test_a_refusal_that_a_wrong_clock_noted_ends_with_the_next_delivery(harness: CooldownHarness) -> None:
    harness.clock.now += 365 * 86400
    harness.fail(FailureKind.FORBIDDEN)
    harness.clock.now -= 365 * 86400
    harness.cooldowns = harness.make()
    harness.cooldowns.succeeded(CVD, NEW, asked_at=harness.clock.now)
    assert not harness.cooldowns.was_refused(NEW)


@pytest.mark.parametrize("hours", [1, 3, 48, 3 * 365 * 24])
def test_a_cooldown_from_before_the_clock_was_set_back_holds_nothing_back(
    harness: CooldownHarness, hours: int
) -> None:
    harness.fail(FailureKind.UNREACHABLE)
    harness.clock.now -= hours * HOUR
    assert not harness.blocks()
    assert harness.cooldowns.in_force() == {}


def test_a_restart_after_the_clock_was_set_back_begins_a_cooldown_once(harness: CooldownHarness) -> None:
    wait = harness.fail(FailureKind.RATE_LIMITED)
    harness.clock.now -= 3 * HOUR
    for _ in range(3):
        harness.cooldowns = harness.make()
        assert harness.blocks()
        harness.clock.now += wait / 3
    assert not harness.blocks()


@pytest.mark.parametrize("field", ["until", "noted_at"])
def test_a_note_without_a_time_is_dropped(harness: CooldownHarness, field: str) -> None:
    harness.fail(FailureKind.RATE_LIMITED)
    harness.notes[CVD][field] = float("nan")
    harness.cooldowns = harness.make()
    assert not harness.blocks()
    assert CVD not in harness.notes


def test_a_file_that_changes_again_and_again_is_not_fetched_at_once(harness: CooldownHarness) -> None:
    """An origin that gives a wrong length seems to change at the end of each download."""
    assert harness.fail(FailureKind.CHANGED) == 0
    harness.cooldowns.succeeded(CVD, NEW, verified=False)  # its header is right
    assert harness.fail(FailureKind.CHANGED) == 2
    harness.cooldowns.succeeded(CVD, NEW, verified=False)
    assert harness.blocks()
    harness.clock.now += 2
    assert harness.fail(FailureKind.CHANGED) == 4
    harness.cooldowns.succeeded(CVD, NEW)
    assert harness.fail(FailureKind.CHANGED) == 0


def test_another_kind_of_failure_begins_anew(harness: CooldownHarness) -> None:
    harness.fail(FailureKind.SERVER_ERROR)
    harness.fail(FailureKind.SERVER_ERROR)
    assert harness.fail(FailureKind.BAD_CONTENT) == BACKOFFS[FailureKind.BAD_CONTENT].first


@pytest.mark.parametrize(
    ("retry_after", "delay"),
    [
        (7.0, 7.0),
        (86400.0, 86400.0),
        pytest.param(10 * 86400.0, LONGEST_RETRY_AFTER, id="never more than a day"),
        pytest.param(0.0, 300.0, id="docs/protocol.md 2.2: not positive counts as absent"),
        pytest.param(-5.0, 300.0, id="a date that has passed"),
        (None, 300.0),
    ],
)
def test_trap_21_retry_after(harness: CooldownHarness, retry_after: float | None, delay: float) -> None:
    assert harness.fail(FailureKind.RATE_LIMITED, retry_after=retry_after) == delay


def test_a_cooldown_ends(harness: CooldownHarness) -> None:
    delay = harness.fail(FailureKind.RATE_LIMITED)
    harness.clock.now += delay - 1
    assert harness.blocks()
    harness.clock.now += 1
    assert not harness.blocks()
    assert harness.cooldowns.in_force() == {}


def test_the_longest_of_several_is_told(harness: CooldownHarness) -> None:
    harness.fail(FailureKind.UNREACHABLE)
    harness.fail(FailureKind.RATE_LIMITED)
    harness.fail(FailureKind.FORBIDDEN)
    found = harness.cooldowns.check(CVD, NEW)
    assert found is not None
    assert found.failure is FailureKind.RATE_LIMITED
    assert set(harness.cooldowns.in_force()) == {CVD, f"client {NEW}", "origin"}


def test_success_clears_what_it_disproves(harness: CooldownHarness) -> None:
    for path in (CVD, CDIFF):
        harness.fail(FailureKind.RATE_LIMITED, path)
    for agent in (NEW, OLD):
        harness.fail(FailureKind.FORBIDDEN, agent=agent)
    harness.fail(FailureKind.UNREACHABLE)
    harness.cooldowns.succeeded(CVD, NEW)
    assert not harness.blocks()
    assert set(harness.cooldowns.in_force()) == {CDIFF, f"client {OLD}"} == set(harness.notes)


def test_a_good_header_says_nothing_about_the_rest(harness: CooldownHarness) -> None:
    harness.fail(FailureKind.BAD_CONTENT)
    harness.fail(FailureKind.FORBIDDEN)
    harness.cooldowns.succeeded(CVD, NEW, verified=False)
    assert set(harness.cooldowns.in_force()) == {CVD}
    harness.cooldowns.succeeded(CVD, NEW)
    assert not harness.blocks()


LATER = [
    pytest.param(FailureKind.FORBIDDEN, None, True, id="403"),
    pytest.param(FailureKind.RATE_LIMITED, None, True, id="429"),
    pytest.param(FailureKind.RATE_LIMITED, 7200.0, True, id="429 with Retry-After"),
    pytest.param(FailureKind.SERVER_ERROR, 7200.0, True, id="503 with Retry-After"),
    pytest.param(FailureKind.PROXY_AUTHENTICATION, None, True, id="407"),
    pytest.param(FailureKind.UNREACHABLE, None, False, id="no connection"),
    pytest.param(FailureKind.INTERRUPTED, None, False, id="a broken transfer"),
    pytest.param(FailureKind.BAD_CONTENT, None, False, id="bad content"),
]


@pytest.mark.parametrize(("failure", "retry_after", "goes_on"), LATER)
def test_an_answer_to_an_earlier_request_takes_back_no_refusal(
    harness: CooldownHarness, failure: FailureKind, retry_after: float | None, goes_on: bool
) -> None:
    asked_at = harness.clock.now
    harness.clock.now += 0.5
    harness.fail(failure, retry_after=retry_after)
    harness.clock.now += 0.5
    harness.cooldowns.succeeded(CVD, NEW, asked_at=asked_at)
    assert harness.blocks() is goes_on
    harness.cooldowns.succeeded(CVD, NEW, asked_at=harness.clock.now)
    assert not harness.blocks()


@pytest.mark.parametrize("failure", [FailureKind.FORBIDDEN, FailureKind.SERVER_ERROR])
def test_no_answer_to_an_earlier_request_shows_that_the_proxy_admits(
    harness: CooldownHarness, failure: FailureKind
) -> None:
    asked_at = harness.clock.now
    harness.clock.now += 1
    harness.fail(FailureKind.PROXY_AUTHENTICATION)
    harness.fail(failure, asked_at=asked_at)
    harness.cooldowns.forgive_proxy(asked_at)  # a 404, say
    assert PROXY in harness.cooldowns.in_force()
    harness.cooldowns.forgive_proxy()
    assert PROXY not in harness.cooldowns.in_force()


@pytest.mark.parametrize(
    "long", [FailureKind.RATE_LIMITED, FailureKind.SERVER_ERROR, FailureKind.BAD_CONTENT]
)
@pytest.mark.parametrize("short", [FailureKind.INTERRUPTED, FailureKind.SERVER_ERROR, FailureKind.CHANGED])
def test_no_failure_shortens_what_is_in_force(
    harness: CooldownHarness, long: FailureKind, short: FailureKind
) -> None:
    wait = harness.fail(long, retry_after=14400.0)
    harness.clock.now += 10
    assert harness.fail(short) == wait - 10
    assert set(harness.cooldowns.in_force()) == {CVD} == set(harness.notes)
    harness.clock.now += wait - 11
    assert harness.blocks()
    harness.clock.now += 1
    assert harness.fail(short) == BACKOFFS[short].delay(2 if long is short else 1)


@pytest.mark.parametrize("failure", [kind for kind in FailureKind if not BACKOFFS[kind].free])
def test_what_is_under_way_at_a_failure_fails_once_with_it(
    harness: CooldownHarness, failure: FailureKind
) -> None:
    first = BACKOFFS[failure].first
    waits = []
    for _ in range(4):
        waits.append(harness.fail(failure))
        harness.clock.now += 0.1
    assert waits == pytest.approx([first] * 4)
    assert harness.fail(failure, retry_after=7200.0) == 7200.0, "the later end counts"
    harness.clock.now += 7200
    assert harness.fail(failure) == BACKOFFS[failure].delay(2)


def test_a_restart_forgets_nothing(harness: CooldownHarness) -> None:
    harness.fail(FailureKind.RATE_LIMITED, retry_after=7200.0)
    harness.fail(FailureKind.FORBIDDEN)
    again = harness.make()
    assert again.in_force() == harness.cooldowns.in_force()
    # the count of failures goes on, too
    harness.clock.now += 60
    assert again.failed(FailureKind.FORBIDDEN, CVD, NEW, "why").failures == 2


@pytest.mark.parametrize(
    "value", [None, 5, "x", [], {}, {"failure": "forbidden"}, {"failure": "unheard of"}, {"until": 5}]
)
def test_a_note_that_makes_no_sense_is_dropped(harness: CooldownHarness, value: Any) -> None:
    harness.notes[CVD] = value
    assert harness.make().in_force() == {}
    assert CVD not in harness.notes


def test_a_note_with_values_of_the_wrong_type_is_dropped(harness: CooldownHarness) -> None:
    harness.notes[CVD] = {"until": "x", "failures": 1, "failure": "forbidden", "reason": ""}
    harness.cooldowns = harness.make()
    assert not harness.blocks()


def test_old_cooldowns_do_not_pile_up(harness: CooldownHarness) -> None:
    for number in range(100):
        harness.fail(FailureKind.SERVER_ERROR, path=f"/daily-{number}.cdiff")
    harness.clock.now += HOUR
    harness.fail(FailureKind.SERVER_ERROR)
    assert list(harness.notes) == [CVD]


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
    harness = CooldownHarness()
    is_demanded = False
    for failure, path, agent, retry_after, pause in events:
        is_demanded |= bool(retry_after)
        harness.fail(failure, path, agent, retry_after=retry_after)
        for cooldown in harness.cooldowns.in_force().values():
            assert cooldown.until - harness.clock.now <= LONGEST_RETRY_AFTER + 0.001
        found = harness.cooldowns.check(path, agent)
        assert found is not None or BACKOFFS[failure].free or (retry_after and 0 < retry_after < 1)
        cooldown = harness.cooldowns.failed(failure, "/other.cvd", "other", "why", retry_after)
        longest = LONGEST_RETRY_AFTER if is_demanded else BACKOFFS[cooldown.failure].longest
        assert cooldown.until - harness.clock.now <= longest + 0.001
        harness.clock.now += pause


agents = st.text(max_size=200) | st.builds("ClamAV/1.4.{} (x)".format, st.integers(0, 20))


@given(agents, agents)
def test_trap_20_one_version_never_blocks_another(refused: str, other: str) -> None:
    harness = CooldownHarness()
    one, another = Requester(refused).version, Requester(other).version
    harness.fail(FailureKind.FORBIDDEN, agent=one)
    assert harness.blocks(agent=another) is (one == another)


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


def refuse(harness: CooldownHarness, agents: list[str], pause: float = 0.0) -> None:
    for agent in agents:
        harness.fail(FailureKind.FORBIDDEN, agent=agent)
        harness.clock.now += pause


def test_after_some_refusals_the_next_version_does_not_try(harness: CooldownHarness) -> None:
    refuse(harness, REFUSED[:-1])
    assert not harness.blocks(agent=STRANGER)
    refuse(harness, REFUSED[-1:])
    for agent in (STRANGER, "other"):
        assert harness.blocks(agent=agent)
        assert harness.blocks(CDIFF, agent)
    found = harness.cooldowns.check(CVD, STRANGER)
    assert found is not None
    assert found.failure is FailureKind.FORBIDDEN


def test_a_version_that_was_admitted_before_is_not_held_back(harness: CooldownHarness) -> None:
    harness.cooldowns.succeeded(CDIFF, ADMITTED)
    refuse(harness, REFUSED)
    assert not harness.blocks(agent=ADMITTED)
    assert harness.blocks(agent=STRANGER)
    refuse(harness, [ADMITTED])
    assert harness.blocks(agent=ADMITTED), "until it is refused itself"


def test_a_version_tries_as_soon_as_the_first_of_the_refusals_ends(harness: CooldownHarness) -> None:
    refuse(harness, REFUSED, pause=10)
    assert harness.cooldowns.check(CVD, STRANGER) == harness.cooldowns.in_force()[f"client {REFUSED[0]}"]
    harness.clock.now += BACKOFFS[FailureKind.FORBIDDEN].first - 10 * ENOUGH_REFUSALS
    assert not harness.blocks(agent=STRANGER)
    assert harness.blocks(agent=REFUSED[-1])


def test_one_admission_among_refusals_lets_others_try(harness: CooldownHarness) -> None:
    refuse(harness, REFUSED)
    harness.cooldowns.succeeded(CVD, REFUSED[0])
    assert not harness.blocks(agent=STRANGER)


def test_other_failures_do_not_count_as_refusals(harness: CooldownHarness) -> None:
    for number in range(2 * ENOUGH_REFUSALS):
        harness.fail(FailureKind.RATE_LIMITED, f"/daily-{number}.cdiff", f"ClamAV/1.4.{number}")
    assert not harness.blocks(agent=STRANGER)


def test_refusals_count_after_a_restart(harness: CooldownHarness) -> None:
    refuse(harness, REFUSED)
    again = harness.make()
    assert again.check(CVD, STRANGER) is not None
