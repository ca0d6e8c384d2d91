"""What the gateways of a site tell each other: the notes of which topics, and how others read them.

What another gateway says is untrusted input. Anybody who can write to the object store can say anything, so
each value is checked for type, range and length, and a version that is far ahead of what DNS told this
gateway itself doesn't count. What is left can make this gateway wait (cool-downs, 404s, budget), ask (heads,
versions, patches that count as stuck), or end a delay early; it never gets anything served that ClamAV
hasn't signed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from clamproxy.dates import as_time
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.verification import InvalidObject
from clamproxy.formats.version_record import VersionRecord
from clamproxy.messages import PLAIN_FIELD
from clamproxy.notes import UNREADABLE
from clamproxy.objects import MAX_VERSION
from clamproxy.policy import PLAUSIBLE_LEAD
from clamproxy.readable import one_line

type Notes = dict[str, dict[str, Any]]
"""JSON values by topic and key."""

MOST_NOTES = 500
"""Notes of one gateway that are told, at most; a busy gateway has some 150."""
LONGEST_WAIT = 86400.0
"""Seconds for which another gateway can make this one wait, at most."""

_LONGEST_REASON = 300
_MOST_TIMES = 20
_MOST_VERSIONS = 1000
_SAID_BY_ORIGIN = frozenset({"forbidden", "rate limited", "server error", "changed", "bad content"})
"""The failures that concern every gateway. Whether the origin can be reached, whether a proxy on the way
accepts the password, and whether the disk has room is each gateway's own."""

_DATABASE = re.compile(r"[a-z]{1,32}")
_FILE = re.compile(r"[a-z]{1,32}-[1-9][0-9]{0,9}\.(?:cvd|cld|cdiff|(?:cvd|cdiff)\.sign)")
_PATH = re.compile(r"/[a-z]{1,32}(?:-[1-9][0-9]{0,9})?\.(?:cvd|cld|cdiff|(?:cvd|cdiff)\.sign)")
_PATH_OR_CLIENT = re.compile(rf"{_PATH.pattern}|client [!-~]{{1,64}}")
_DOMAIN = re.compile(r"[a-z0-9._-]{1,253}")
_RELEASE = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,4}){1,3}")


@dataclass(frozen=True, slots=True)
class Reading:
    """What it takes to read another gateway's notes."""

    difference: float
    """Seconds to add to its times."""
    now: float
    """Unix seconds, by this gateway's clock."""
    advertised: Mapping[str, int] = field(default_factory=dict)
    """The versions that DNS told this gateway lately."""

    def past(self, value: Any) -> float:
        """A time that has been: never later than now."""
        return min(self._time(value), self.now)

    def coming(self, value: Any) -> float:
        """A time until which to wait: never later than `LONGEST_WAIT` from now."""
        return min(self._time(value), self.now + LONGEST_WAIT)

    def version(self, database: str, value: Any) -> int:
        """A version that can be one."""
        if type(value) is not int or not 0 < value <= MAX_VERSION:
            raise ValueError("no version")
        known = self.advertised.get(database)
        if known is not None and value > known + PLAUSIBLE_LEAD:
            raise ValueError("far ahead of what DNS says")
        return value

    def _time(self, value: Any) -> float:
        return max(0.0, as_time(value) + self.difference)


@dataclass(frozen=True, slots=True)
class Topic:
    """One kind of notes that gateways tell each other."""

    name: str
    what: str
    """What it is, and which of its times are translated."""
    key: re.Pattern[str]
    read: Callable[[str, Any, Reading], Any]
    """Reads the value of a key; raises ValueError if it isn't one."""
    tells: Callable[[Any], bool] = lambda _: True
    """Whether one of this gateway's own values is of interest to others."""


def _advertised(key: str, saved: Any, reading: Reading) -> Any:
    version, learnt_at = saved
    return [reading.version(key, version), reading.past(learnt_at)]


def _record(_: str, saved: Any, reading: Reading) -> Any:
    if not isinstance(saved, str) or len(saved) > 255 or not saved.isascii() or not saved.isprintable():
        raise ValueError("no record")
    record = VersionRecord.parse(saved)
    if record.recorded_at > reading.now + LONGEST_WAIT:
        raise ValueError("a record of the future, which would never be replaced")
    for database, version in record.versions.items():
        reading.version(database, version)
    return saved


def _head(key: str, saved: Any, reading: Reading) -> Any:
    header = saved["header"]
    if header is not None:
        reading.version(key, CvdHeader.parse(header.encode("ascii")).version)
    hopes = {
        name: reading.version(key, saved[name]) if saved.get(name) else 0 for name in ("advertised", "wanted")
    }
    fruitless = _count(saved["fruitless"]) if saved.get("fruitless") else 0
    # 0 stands for "never", which is no time.
    seen_at = reading.past(saved["seen_at"]) if saved["seen_at"] else 0.0
    return {"header": header, "seen_at": seen_at, **hopes, "fruitless": fruitless}


def _first_seen(key: str, saved: Any, reading: Reading) -> Any:
    if len(saved) > _MOST_VERSIONS:
        raise ValueError("too many versions")
    # 0 stands for "before I heard of any", which is no time.
    return {
        str(reading.version(key, int(version[:10]))): reading.past(at) if at else 0.0
        for version, at in saved.items()
    }


def _agent(_: str, saved: Any, reading: Reading) -> Any:
    agent = saved["user_agent"]
    if not isinstance(agent, str) or PLAIN_FIELD.fullmatch(agent) is None:
        raise ValueError("no User-Agent")
    return {"user_agent": agent, "seen_at": reading.past(saved["seen_at"])}


def _demand(_: str, saved: Any, reading: Reading) -> Any:
    return reading.past(saved)


def _stuck(_: str, saved: Any, reading: Reading) -> Any:
    failures, since, last = (
        _count(saved["failures"]),
        reading.past(saved["since"]),
        reading.past(saved["last"]),
    )
    return {"failures": failures, "since": min(since, last), "last": last}


def _cooldown(_: str, saved: Any, reading: Reading) -> Any:
    if saved["failure"] not in _SAID_BY_ORIGIN or not isinstance(saved["reason"], str):
        raise ValueError("no cool-down that concerns others")
    return {
        "until": reading.coming(saved["until"]),
        "failures": _count(saved["failures"]),
        "failure": saved["failure"],
        "reason": one_line(saved["reason"], _LONGEST_REASON),
        "noted_at": reading.past(saved["noted_at"]),
    }


def _missing(_: str, saved: Any, reading: Reading) -> Any:
    noted_at, seconds = saved
    if type(seconds) not in (int, float) or not 0 <= seconds <= LONGEST_WAIT:
        raise ValueError("no time")
    return [reading.past(noted_at), float(seconds)]


def _budget(_: str, saved: Any, reading: Reading) -> Any:
    if not isinstance(saved, list) or not 0 < len(saved) <= _MOST_TIMES:
        raise ValueError("no times")
    return sorted(map(reading.past, saved))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError("no count")
    return value


TOPICS = (
    # The order says what is left out if there is too much: the last ones.
    Topic("advertised", "versions by DNS, and when they were learnt", _DATABASE, _advertised),
    Topic("record", "the primary record's text; its own time is ClamAV's", _DOMAIN, _record),
    Topic("head", "headers of the CVDs at the origin, and when they were seen", _DATABASE, _head),
    Topic("first-seen", "when each version was seen first, for releases.delay", _DATABASE, _first_seen),
    Topic("agent", "User-Agents of freshclams, and when they came by last", _RELEASE, _agent),
    Topic("cld", "when a CLD was last asked for", _DATABASE, _demand),
    Topic("stuck", "patches that failed verification: the first and last time", _FILE, _stuck),
    Topic(
        "cooldown",
        "until when the origin isn't asked for a file or on behalf of a client, and when it refused",
        _PATH_OR_CLIENT,
        _cooldown,
        lambda saved: saved["failure"] in _SAID_BY_ORIGIN,
    ),
    Topic("headless", "databases that the origin didn't have, and when", _DATABASE, _missing),
    Topic("missing", "files that the origin didn't have, and when", _FILE, _missing),
    Topic("budget", "when a file was requested within the last hour", _PATH, _budget),
)
"""All topics that are told. The rest is each gateway's own: the quiet hour, counters, and what is cached."""

_BY_NAME = {topic.name: topic for topic in TOPICS}
_WRONG = (*UNREADABLE, InvalidObject)


def told(own: Callable[[str], Mapping[str, Any]]) -> Notes:
    """The notes that others get to know.

    Args:
        own: gives this gateway's own notes on a topic, by key.
    """
    found: Notes = {}
    left = MOST_NOTES
    for topic in TOPICS:
        values = [(key, value) for key, value in own(topic.name).items() if _tells(topic, value)]
        if values[:left]:
            found[topic.name] = dict(values[:left])
        left -= len(values[:left])
    return found


def understood(notes: Any, reading: Reading) -> Notes:
    """What another gateway's notes say, in this gateway's time. What is wrong is left out.

    Args:
        notes: any JSON value.
    """
    found: Notes = {}
    for topic, key, value in _first_ones(notes):
        try:
            found.setdefault(topic.name, {})[key] = topic.read(key, value, reading)
        except _WRONG:
            continue
    return {name: values for name, values in found.items() if values}


def _tells(topic: Topic, value: Any) -> bool:
    try:
        return value is not None and topic.tells(value)
    except _WRONG:
        return False


def _first_ones(notes: Any) -> Iterator[tuple[Topic, str, Any]]:
    left = MOST_NOTES
    for name, values in _items(notes):
        topic = _BY_NAME.get(name)
        for key, value in _items(values) if topic is not None else ():
            if topic is not None and left and topic.key.fullmatch(key):
                left -= 1
                yield topic, key, value


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()
