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
    delays = [cooldowns.failed("h", "k", FailureKind.FORBIDDEN, "no", None) for _ in range(3)]
    assert delays == [60, 120, 240]
    assert cooldowns.check("h", "k") is not None
    assert cooldowns.check("h", "other") is None
    notes |= {"x": {"until": "soon"}, "y": None}
    again = FeedCooldowns(notes_in(notes), lambda: now[0])
    assert again.check("h", "k") == cooldowns.check("h", "k")
    assert set(notes) == {"k"}
    cooldowns.succeeded("h", "k")
    assert cooldowns.check("h", "k") is None
    assert notes == {}
    for number in range(MOST + 10):
        cooldowns.failed("h", str(number), FailureKind.FORBIDDEN, "no", None)
    assert len(notes) <= MOST


def test_few_hosts_are_counted() -> None:
    counts = Counts()
    for number in range(300):
        counts.add(f"{number:03}.example", Result.HIT)
    figures = counts.figures(lambda _: None)
    assert (len(figures), figures[-1]["host"]) == (256, "299.example")
