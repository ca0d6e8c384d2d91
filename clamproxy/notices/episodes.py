"""Since when each alert lasts, and who has been told: a state machine without I/O.

An episode is the time from the beginning of an alert to its end. Each target of notices remembers what it
was told, and when. So what a target has to be told follows from both, at any time: if it can't be reached
for hours, it then gets one notice about the state of that moment, and nothing is queued.

An alert that comes and goes doesn't flood anybody: each time that it returns, it has to stay away twice as
long before its episode counts as over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from clamproxy.dates import as_past_time
from clamproxy.notices.rules import RULE_OF, Alert, Rule, key_of

MOST_DOUBLINGS = 16


class Stage(StrEnum):
    """What a target is told about an episode."""

    BEGUN = "begun"
    LASTING = "lasting"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon and how often there are notices, in seconds."""

    after: float
    repeat: float

    def ripens(self, rule: Rule) -> float:
        """How long an alert of a rule has to last before there is a notice."""
        return max(self.after, rule.lasting)


@dataclass(frozen=True, slots=True)
class Episode:
    """The alert of one rule and subject. Times are in Unix seconds."""

    rule: str
    subject: str
    text: str
    """What was last said about it."""
    since: float
    missing: float | None = None
    """Since when it hasn't been the case any more, though it may come back."""
    ended: float | None = None
    """When it ended; None while it lasts."""
    returns: int = 0
    """How many times it came back soon."""

    @property
    def key(self) -> str:
        return key_of(self.rule, self.subject)

    def is_ripe(self, pace: Pace, now: float) -> bool:
        """Whether it has lasted long enough to be told about."""
        lasted_until = now if self.missing is None else self.missing
        return self.ended is None and lasted_until - self.since >= pace.ripens(RULE_OF[self.rule])

    @classmethod
    def parse(cls, saved: Any, now: float) -> Self:
        """Read what was saved as JSON.

        Raises:
            ValueError: it is something else, or about a rule that no longer exists.
        """
        match saved:
            case {"rule": str(rule), "subject": str(subject), "text": str(text), "returns": int(returns)}:
                if rule in RULE_OF:
                    since, missing, ended = (
                        None if saved.get(key) is None else as_past_time(saved[key], now)
                        for key in ("since", "missing", "ended")
                    )
                    return cls(rule, subject, text, since or now, missing, ended, returns)
        raise ValueError("not an episode")


@dataclass(frozen=True, slots=True)
class Told:
    """What a target was last told about an episode. Times are in Unix seconds."""

    since: float
    """Which episode it was: the time when it began."""
    at: float


@dataclass(frozen=True, slots=True)
class LastAttempt:
    """How the last attempt to send a notice to a target went."""

    at: float
    """Unix seconds."""
    failures: int = 0
    """How many attempts in a row have failed."""
    reason: str | None = None
    """Why it failed, or did not work for all recipients, in one line."""


@dataclass(frozen=True, slots=True)
class Due:
    """A line of a notice that a target has to get."""

    episode: Episode
    stage: Stage


type Memory = Mapping[str, Told]
"""What one target was told, by the keys of the episodes."""


@dataclass(frozen=True, slots=True)
class Chronicle:
    """All that outlives the process. Immutable."""

    episodes: Mapping[str, Episode] = field(default_factory=dict)
    """By key; those that are over stay while somebody has to be told, or they may come back."""
    told: Mapping[str, Memory] = field(default_factory=dict)
    """By target."""
    deliveries: Mapping[str, LastAttempt] = field(default_factory=dict)
    """By target."""

    def seen(self, alerts: Iterable[Alert], pace: Pace, now: float, unknown: Collection[str] = ()) -> Self:
        """The state after a look at what is the case now.

        Args:
            unknown: the keys of alerts of which that isn't known; these neither begin nor end.
        """
        present = {alert.key: alert for alert in alerts}
        episodes: dict[str, Episode] = {}
        for key in [*self.episodes, *(key for key in present if key not in self.episodes)]:
            former, current = self.episodes.get(key), None
            if key in present:
                current = _present(former, present[key], pace, now)
            elif former is not None:
                current = _unseen(former, now) if key in unknown else _absent(former, pace, now)
            if current is not None:
                episodes[key] = current
        told = {
            target: {key: one for key, one in memory.items() if key in episodes}
            for target, memory in self.told.items()
        }
        return replace(self, episodes=episodes, told=told)

    def due(self, target: str, pace: Pace, now: float) -> list[Due]:
        """What a target has to be told now, in the order of the rules; nothing if it knows everything.

        If there is something new, what lasts is told too: a notice shows the whole state.
        """
        memory = self.told.get(target, {})
        found = [
            (one, stage)
            for one in self.episodes.values()
            if (stage := _stage(one, memory.get(one.key), pace, now))
        ]
        if not any(is_news for _, (_, is_news) in found):
            return []
        places = {name: place for place, name in enumerate(RULE_OF)}
        due = [Due(one, stage) for one, (stage, _) in found]
        return sorted(due, key=lambda one: (one.stage is Stage.OVER, places[one.episode.rule]))

    def after_telling(self, target: str, due: Iterable[Due], now: float) -> Self:
        """The state after a target was told."""
        memory = dict(self.told.get(target, {}))
        for one in due:
            if one.stage is Stage.OVER:
                memory.pop(one.episode.key, None)
            else:
                memory[one.episode.key] = Told(one.episode.since, now)
        return replace(self, told={**self.told, target: memory})

    def after_attempt(self, target: str, failure: str | None, now: float, remark: str | None = None) -> Self:
        """The state after a notice was sent, or could not be.

        Args:
            failure: why not; None if it was.
            remark: what went wrong all the same.
        """
        former = self.deliveries.get(target)
        failures = 0 if failure is None else (former.failures if former else 0) + 1
        delivery = LastAttempt(now, failures, failure or remark)
        return replace(self, deliveries={**self.deliveries, target: delivery})

    def only_for(self, targets: Iterable[str]) -> Self:
        """The state without targets that are no longer configured."""
        kept = frozenset(targets)
        return replace(
            self,
            told={name: one for name, one in self.told.items() if name in kept},
            deliveries={name: one for name, one in self.deliveries.items() if name in kept},
        )

    def saved(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "episodes": [asdict(one) for one in self.episodes.values()],
            "told": {
                target: {key: asdict(one) for key, one in memory.items()}
                for target, memory in self.told.items()
            },
            "deliveries": {target: asdict(one) for target, one in self.deliveries.items()},
        }

    @classmethod
    def parse(cls, saved: Any, now: float) -> Self:
        """The inverse of `saved`. What can't be read is left out.

        Raises:
            ValueError: it is something else.
        """
        match saved:
            case {"episodes": [*episodes], "told": dict(told), "deliveries": dict(deliveries)}:
                return cls(
                    dict(_readable_episodes(episodes, now)),
                    {str(target): _memory(memory, now) for target, memory in told.items()},
                    dict(_readable_deliveries(deliveries, now)),
                )
        raise ValueError("not a chronicle")


def _present(former: Episode | None, alert: Alert, pace: Pace, now: float) -> Episode:
    """The episode of an alert that is the case now."""
    if former is None:
        return Episode(alert.rule.name, alert.subject, alert.text, now)
    since = min(former.since, now)  # the clock may have been set back
    if former.ended is None:
        return replace(former, text=alert.text, missing=None, since=since)
    returns = former.returns + 1 if now - former.ended < pace.repeat else 0
    return Episode(alert.rule.name, alert.subject, alert.text, now, returns=returns)


def _unseen(former: Episode, now: float) -> Episode:
    """The episode of an alert of which it isn't known whether it is the case."""
    if former.ended is not None or former.missing is not None:
        return former
    return replace(former, missing=now)  # so it isn't told as something that is the case


def _absent(former: Episode, pace: Pace, now: float) -> Episode | None:
    """The episode of an alert that isn't the case any more; None if nothing about it matters any more."""
    if former.ended is not None:
        return former if now - former.ended < pace.repeat else None
    episode = former if former.missing is not None else replace(former, missing=now)
    away, gap = now - min(episode.missing or now, now), RULE_OF[episode.rule].gap
    if not episode.is_ripe(pace, now):
        if away <= gap and gap:
            return episode
        # Nobody was told. What came back before keeps its count.
        return replace(episode, ended=episode.missing) if episode.returns else None
    quiet = min(max(pace.after, gap) * 2 ** min(episode.returns, MOST_DOUBLINGS), pace.repeat)
    return replace(episode, ended=episode.missing) if away >= quiet else episode


def _stage(episode: Episode, told: Told | None, pace: Pace, now: float) -> tuple[Stage, bool] | None:
    """What is said about an episode, and whether it is news; None for nothing."""
    knows = told is not None and told.since == episode.since
    if episode.ended is not None:
        return (Stage.OVER, True) if knows else None
    is_present = episode.missing is None
    if knows and told is not None:
        return Stage.LASTING, is_present and not 0 <= now - told.at < pace.repeat
    return (Stage.BEGUN, True) if is_present and episode.is_ripe(pace, now) else None


def _readable_episodes(saved: Iterable[Any], now: float) -> Iterator[tuple[str, Episode]]:
    for one in saved:
        try:
            episode = Episode.parse(one, now)
        except (TypeError, ValueError):
            continue
        yield episode.key, episode


def _readable_deliveries(saved: Mapping[Any, Any], now: float) -> Iterator[tuple[str, LastAttempt]]:
    for target, one in saved.items():
        match one:
            case {"at": int() | float() as at, "failures": int(failures), "reason": None | str() as reason}:
                yield str(target), LastAttempt(min(at, now), failures, reason)


def _memory(saved: Any, now: float) -> Memory:
    found = {}
    for key, one in saved.items() if isinstance(saved, dict) else ():
        match one:
            case {"since": int() | float() as since, "at": int() | float() as at}:
                found[key] = Told(since, min(at, now))
    return found
