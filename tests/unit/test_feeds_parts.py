"""Parts of the cache of feeds: URLs, cool-downs, what is remembered and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clamproxy.feeds.counts import Counts
from clamproxy.feeds.feed_cooldowns import MOST, FeedCooldowns
from clamproxy.feeds.target import Target, TargetError
from clamproxy.messages import Result
from clamproxy.origin.cooldown import FailureKind
from tests.support.notes import notes_in


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://Feed.Example/a", "http://feed.example.:80/a#x", True),
        ("https://feed.example/a", "https://feed.example:443/a", True),
        ("http://feed.example", "http://feed.example/", True),
        ("http://feed.example/a", "https://feed.example/a", False),
        ("http://feed.example/a", "http://feed.example/A", False),
        ("http://feed.example/a?x", "http://feed.example/a?y", False),
    ],
)
def test_which_urls_are_the_same(one: str, other: str, same: bool) -> None:
    assert (Target.parse(one).key(None) == Target.parse(other).key(None)) is same


def test_no_redirection_from_https_to_http() -> None:
    with pytest.raises(TargetError):
        Target.parse("https://feed.example/a").follow("http://feed.example/a")
    assert Target.parse("https://feed.example/a/b").follow("../c?d").path == "/c?d"


def test_cool_downs_grow_end_and_are_few(tmp_path: Path) -> None:
    now, notes = [1000.0], dict[str, Any]()
    cooldowns = FeedCooldowns(notes_in(notes), lambda: now[0])
    for delay in (60, 120, 240):
        now[0] = 1000.0 + delay
        assert cooldowns.failed("h", "k", FailureKind.FORBIDDEN, "no", None) == delay
    assert cooldowns.check("h", "k") is not None
    assert cooldowns.check("h", "other") is None
    notes |= {"x": {"until": "soon"}, "y": None}
    again = FeedCooldowns(notes_in(notes), lambda: now[0])
    assert again.check("h", "k") == cooldowns.check("h", "k")
    assert set(notes) == {"k"}
    cooldowns.succeeded("h", "k", asked_at=now[0])
    assert cooldowns.check("h", "k") is None
    assert notes == {}
    for number in range(MOST + 10):
        cooldowns.failed("h", str(number), FailureKind.FORBIDDEN, "no", None)
    assert len(notes) <= MOST


@pytest.mark.parametrize(
    ("failure", "retry_after", "goes_on"),
    [
        (FailureKind.RATE_LIMITED, None, True),
        (FailureKind.RATE_LIMITED, 14400.0, True),
        (FailureKind.SERVER_ERROR, 14400.0, True),
        (FailureKind.FORBIDDEN, None, True),
        (FailureKind.UNREACHABLE, None, False),
        (FailureKind.INTERRUPTED, None, False),
    ],
)
def test_an_answer_to_an_earlier_request_takes_back_no_refusal(
    failure: FailureKind, retry_after: float | None, goes_on: bool
) -> None:
    now = [1000.0]
    cooldowns = FeedCooldowns(notes_in({}), lambda: now[0])
    now[0] += 0.5
    cooldowns.failed("h", "k", failure, "no", retry_after)
    cooldowns.succeeded("h", "k", asked_at=1000.0)
    assert (cooldowns.check("h", "k") is not None) is goes_on
    cooldowns.succeeded("h", "k", asked_at=now[0])
    assert cooldowns.check("h", "k") is None


def test_what_fails_at_the_same_time_counts_once_and_shortens_nothing() -> None:
    now = [1000.0]
    cooldowns = FeedCooldowns(notes_in({}), lambda: now[0])
    for number in range(8):
        now[0] = 1000.0 + number
        wait = cooldowns.failed("h", str(number), FailureKind.RATE_LIMITED, "too many", None)
        assert wait == 300
    assert cooldowns.failed("h", "8", FailureKind.UNREACHABLE, "no connection", None) == 300
    found = cooldowns.check("h", "k")
    assert found is not None
    assert (found.failure, found.until) == (FailureKind.RATE_LIMITED, now[0] + 300)


def test_few_hosts_are_counted() -> None:
    counts = Counts()
    for number in range(300):
        counts.add(f"{number:03}.example", Result.HIT)
    figures = counts.figures(lambda _: None)
    assert (len(figures), figures[-1]["host"]) == (256, "299.example")
