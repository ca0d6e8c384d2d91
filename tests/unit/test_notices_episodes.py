"""Who is told what, and when: the state machine as a story on a clock."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.notices.episodes import Chronicle, Pace
from clamproxy.notices.rules import RULE_OF, Alert

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
START = 1_790_000_000.0
PACE = Pace(after=10 * MINUTE, repeat=DAY)
NOT_READY = Alert(RULE_OF["ClamproxyNotReady"], "", "the clock is wrong")
COOLDOWN = Alert(RULE_OF["ClamproxyCooldown"], "origin", "no route")
DISK = Alert(RULE_OF["ClamproxyDiskFull"], "", "1 MiB")


@dataclass
class Story:
    """A gateway that looks every minute, with one target that takes each notice, or doesn't."""

    pace: Pace = PACE
    now: float = START
    state: Chronicle = field(default_factory=Chronicle)
    works: bool = True

    def go_on(self, minutes: float, *alerts: Alert, unknown: Alert | None = None) -> list[tuple[int, str]]:
        """The notices of some minutes: when, since the beginning, and what they say."""
        sent = []
        for _ in range(round(minutes)):
            self.now += MINUTE
            keys = [unknown.key] if unknown else []
            self.state = self.state.seen(alerts, self.pace, self.now, keys)
            due = self.state.due("mail", self.pace, self.now)
            if due and self.works:
                said = " ".join(f"{one.stage}:{one.episode.rule.removeprefix('Clamproxy')}" for one in due)
                sent.append((round((self.now - START) / MINUTE), said))
                self.state = self.state.after_telling("mail", due, self.now)
        return sent

    def restart(self, after: float = 0.0) -> None:
        """What is saved comes back as it was."""
        self.now += after
        saved = json.loads(json.dumps(self.state.saved()))
        assert Chronicle.parse(saved, self.now) == self.state
        self.state = Chronicle.parse(saved, self.now)


def test_a_blip_is_not_told() -> None:
    story = Story()
    assert story.go_on(9, NOT_READY) == []
    assert story.go_on(60) == []
    assert story.state == Chronicle()


def test_beginning_repetition_and_end() -> None:
    story = Story()
    assert story.go_on(15, NOT_READY) == [(11, "begun:NotReady")]
    assert story.go_on(2 * 24 * 60, NOT_READY) == [(1451, "lasting:NotReady"), (2891, "lasting:NotReady")]
    assert story.go_on(60) == [(2906, "over:NotReady")]
    assert story.go_on(24 * 60) == []
    assert story.state == Chronicle(told={"mail": {}})


def test_the_end_tells_how_long_it_lasted() -> None:
    story = Story()
    story.go_on(100, NOT_READY)
    for _ in range(30):
        story.now += MINUTE
        story.state = story.state.seen((), PACE, story.now)
    (due,) = story.state.due("mail", PACE, story.now)
    assert due.episode.ended is not None
    assert due.episode.ended - due.episode.since == 100 * MINUTE


@pytest.mark.parametrize("alert", [NOT_READY, COOLDOWN])
def test_what_has_to_last_longer_has_its_own_time(alert: Alert) -> None:
    expected = max(10.0, alert.rule.lasting / 60) + 1
    ((at, _),) = Story().go_on(300, alert)
    assert at == expected


def test_short_gaps_are_bridged_where_a_rule_says_so() -> None:
    story, told = Story(), []
    for _ in range(20):  # the origin is tried again every 10 minutes
        told += story.go_on(9, COOLDOWN) + story.go_on(1)
    assert [said for _, said in told] == ["begun:Cooldown"]
    story, told = Story(), []
    for _ in range(20):
        told += story.go_on(9, NOT_READY) + story.go_on(1)
    assert told == []


def test_several_at_once_are_one_notice_worst_first() -> None:
    story = Story()
    assert story.go_on(20, DISK, NOT_READY) == [(11, "begun:NotReady begun:DiskFull")]


def test_something_new_shows_what_lasts_as_well() -> None:
    story = Story()
    story.go_on(60, DISK)
    assert story.go_on(30, DISK, NOT_READY) == [(71, "begun:NotReady lasting:DiskFull")]
    assert story.go_on(30, DISK) == [(101, "lasting:DiskFull over:NotReady")]
    assert story.go_on(24 * 60 - 30, DISK) == []  # the repetition counts from the last notice


def test_a_restart_repeats_nothing_and_forgets_nothing() -> None:
    story = Story()
    assert story.go_on(15, NOT_READY) == [(11, "begun:NotReady")]
    story.restart(after=5 * MINUTE)
    assert story.go_on(60, NOT_READY) == []
    story.restart()
    assert story.go_on(60) == [(91, "over:NotReady")]


def test_a_restart_does_not_shorten_the_wait() -> None:
    story = Story()
    story.go_on(5, NOT_READY)
    story.restart()
    assert story.go_on(10, NOT_READY) == [(11, "begun:NotReady")]


def test_a_long_stop_alone_ends_nothing() -> None:
    """At first, a gateway may not know yet what is wrong."""
    story = Story()
    story.go_on(15, NOT_READY)
    story.restart(after=3 * HOUR)
    assert story.go_on(5) == []
    assert story.go_on(60, NOT_READY) == []


@pytest.mark.parametrize("after", [0.0, 10 * MINUTE])
def test_what_is_not_known_neither_begins_nor_ends(after: float) -> None:
    story = Story(Pace(after, repeat=30 * MINUTE))
    assert story.go_on(5, unknown=NOT_READY) == []
    story.go_on(15, NOT_READY)
    story.restart()
    assert story.go_on(60, unknown=NOT_READY) == []  # nor is it repeated
    assert [said for _, said in story.go_on(1, NOT_READY)] == ["lasting:NotReady"]
    assert story.go_on(60, unknown=NOT_READY) == []
    assert [said for _, said in story.go_on(30)] == ["over:NotReady"]


def test_nothing_begins_while_it_is_not_known_to_go_on() -> None:
    story = Story()
    story.go_on(5, NOT_READY)
    assert story.go_on(60, unknown=NOT_READY) == []
    assert story.go_on(30) == []
    assert story.state == Chronicle()


def test_flapping_does_not_flood() -> None:
    """Every 15 minutes, which is slower than notify.after, for a week."""
    story, told = Story(), []
    for _ in range(7 * 24 * 2):
        told += story.go_on(15, NOT_READY) + story.go_on(15)
    begun = [at for at, said in told if said.startswith("begun")]
    assert 1 <= len(begun) <= 3
    assert len(told) <= 7 + 5
    assert story.go_on(2 * 24 * 60)[-1][1] == "over:NotReady"


def test_a_target_that_fails_gets_the_state_of_the_moment() -> None:
    story = Story(works=False)
    assert story.go_on(60, NOT_READY) == []
    assert story.go_on(60, DISK) == []
    story.works = True
    assert story.go_on(1, DISK) == [(121, "begun:DiskFull")]  # nothing about what is over meanwhile


def test_each_target_is_told_on_its_own() -> None:
    story = Story()
    story.go_on(15, NOT_READY)
    assert [one.stage for one in story.state.due("webhook", PACE, story.now)] == ["begun"]
    assert story.state.only_for(["webhook"]).told == {}


def test_failures_are_counted_until_one_works() -> None:
    state = Chronicle().after_attempt("mail", "refused", 1.0).after_attempt("mail", "refused", 2.0)
    assert (state.deliveries["mail"].failures, state.deliveries["mail"].reason) == (2, "refused")
    state = state.after_attempt("mail", None, 3.0, "1 recipient was refused")
    assert (state.deliveries["mail"].failures, state.deliveries["mail"].reason) == (
        0,
        "1 recipient was refused",
    )
    assert Chronicle.parse(json.loads(json.dumps(state.saved())), 4.0) == state


def test_a_clock_that_is_set_back() -> None:
    story = Story()
    story.go_on(15, NOT_READY)
    story.now -= 30 * DAY
    assert len(story.go_on(60, NOT_READY)) <= 1
    assert story.go_on(60)[-1][1] == "over:NotReady"


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [],
        {},
        {"episodes": {}, "told": {}, "deliveries": {}},
        {"episodes": [], "told": [], "deliveries": {}},
    ],
)
def test_other_values_are_not_a_state(saved: Any) -> None:
    with pytest.raises(ValueError, match="not a chronicle"):
        Chronicle.parse(saved, START)


def test_what_is_damaged_or_of_another_version_is_left_out() -> None:
    good = {"rule": "ClamproxyNotReady", "subject": "", "text": "", "since": 1.0, "returns": 0}
    bad = [{**good, "rule": "ClamproxyGone"}, {**good, "since": "x"}, 7, {}]
    saved = {"episodes": [*bad, good], "told": {"a": 7, "b": {"x": {}}}, "deliveries": {"a": 7}}
    state = Chronicle.parse(saved, START)
    assert (list(state.episodes), state.told) == (["ClamproxyNotReady/"], {"a": {}, "b": {}})


@given(st.lists(st.tuples(st.integers(1, 90), st.booleans()), max_size=40))
def test_notices_are_bounded_and_end_well(spells: list[tuple[int, bool]]) -> None:
    """However an alert comes and goes: begun and over alternate, and after a calm day nothing is open."""
    story, told = Story(), []
    for minutes, is_there in spells:
        told += story.go_on(minutes, *((NOT_READY,) if is_there else ()))
    told += story.go_on(2 * 24 * 60)
    stages = [said.partition(":")[0] for _, said in told if not said.startswith("lasting")]
    assert stages == ["begun", "over"] * (len(stages) // 2)
    assert story.state.episodes == {}
