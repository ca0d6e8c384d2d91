"""Cool-downs: when the origin may be asked again after it refused or failed.

A refusal concerns only what it was given for (docs/protocol.md, traps 20 and 21):

* 429 concerns one file: the CDN limits requests per address and file;
* 403 concerns one client version: the CDN refuses old freshclams by their User-Agent. If a supported
  version is refused too, the address is blocked. The versions in use then find that out one by one,
  and after some of them, no others try;
* a server error or a broken transfer concerns one file;
* a server that can't be reached concerns all files;
* 407 concerns all files, and comes from the proxy on the way. Each try with a wrong password counts
  there, and soon locks the account.

What one process notes holds back the others as well. Pure, except for the clock and the notes, which are
passed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from clamproxy.notes import Merge, Notes, best


class FailureKind(StrEnum):
    """Why the origin did not deliver."""

    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate limited"
    SERVER_ERROR = "server error"
    UNREACHABLE = "unreachable"
    PROXY_AUTHENTICATION = "proxy authentication"
    """The proxy on the way wants other credentials, or wants some and got none."""
    INTERRUPTED = "interrupted"
    CHANGED = "changed"
    """The file is no longer the one whose transfer began."""
    BAD_CONTENT = "bad content"
    NO_ROOM = "no room"
    """The disk has no room for a file of that size."""
    LOCAL = "local error"


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long until the origin is asked again: seconds, doubling from `first` up to `longest`."""

    first: float
    longest: float
    free: int = 0
    """How many failures in a row cause no wait at all."""

    def delay(self, failures: int) -> float:
        """Seconds to wait after this many failures in a row."""
        counted = failures - self.free
        return float(min(self.first * 2 ** min(counted - 1, 32), self.longest)) if counted > 0 else 0.0


HOUR = 3600.0
BACKOFFS = {
    # freshclam itself waits 24 h after a 403 and 4 h after a 429 without Retry-After. The gateway
    # asks for a whole site, so it may look more often, but only once for everybody.
    FailureKind.FORBIDDEN: Backoff(60, 4 * HOUR),
    FailureKind.RATE_LIMITED: Backoff(300, 4 * HOUR),
    FailureKind.SERVER_ERROR: Backoff(1, 15),
    FailureKind.UNREACHABLE: Backoff(1, 15),
    FailureKind.INTERRUPTED: Backoff(1, 15),
    # Directories lock accounts after some three to ten failures within half an hour.
    FailureKind.PROXY_AUTHENTICATION: Backoff(900, 4 * HOUR),
    # The new file can be fetched at once. But with an origin that lies about a length, the file
    # seems to change at the end of each download.
    FailureKind.CHANGED: Backoff(2, 600, free=1),
    # Each further try may cost a whole download.
    FailureKind.BAD_CONTENT: Backoff(2, 600),
    FailureKind.NO_ROOM: Backoff(60, 60),
    FailureKind.LOCAL: Backoff(5, 60),
}
_FROM_BEYOND_THE_PROXY = frozenset(
    {
        FailureKind.FORBIDDEN,
        FailureKind.RATE_LIMITED,
        FailureKind.SERVER_ERROR,
        FailureKind.CHANGED,
        FailureKind.BAD_CONTENT,
    }
)
_ABOUT_THE_BODY = (FailureKind.BAD_CONTENT, FailureKind.CHANGED)
_OWN = (FailureKind.LOCAL, FailureKind.NO_ROOM)
_REFUSALS = (FailureKind.FORBIDDEN, FailureKind.RATE_LIMITED, FailureKind.PROXY_AUTHENTICATION)
LONGEST_RETRY_AFTER = 24 * HOUR
ORIGIN = "origin"
PROXY = "parent proxy"
TRIAL = 30.0
"""Seconds for which one request tries whether the proxy admits us again, while all others wait."""
ENOUGH_REFUSALS = 3
"""How many client versions must be refused at the same time to keep versions that were never admitted from
trying."""
MOST_ADMITTED = 64


@dataclass(frozen=True, slots=True)
class Cooldown:
    """One thing that the origin is not asked for until a certain time."""

    until: float
    """When it ends, in Unix seconds."""
    failures: int
    failure: FailureKind
    reason: str
    noted_at: float = 0.0
    """When the failure was noted, in Unix seconds."""

    @classmethod
    def after(
        cls,
        previous: Cooldown | None,
        failure: FailureKind,
        reason: str,
        retry_after: float | None,
        now: float,
    ) -> Cooldown:
        """The cool-down after a failure: as long as the origin demands, or else longer each time.

        While one is in force, nothing is asked for. So a request that fails in the meantime began before:
        it doesn't count as another failure in a row, and what the origin demanded isn't shortened.

        Args:
            previous: the last one noted for the same thing; it is also the result, if it ends later.
            reason: one line for logs and statistics.
            retry_after: in seconds, as the origin demanded.
            now: Unix seconds.
        """
        present = previous if previous is not None and previous.holds(now) else None
        failures = 1
        if previous is not None and previous.failure is failure:
            failures = previous.failures + (present is None)
        delay = BACKOFFS[failure].delay(failures)
        if retry_after is not None and retry_after > 0:
            delay = min(retry_after, LONGEST_RETRY_AFTER)
        if present is not None and present.until >= now + delay:
            return present
        return cls(now + delay, failures, failure, reason, now)

    @classmethod
    def parse(cls, saved: Any, now: float) -> Cooldown:
        """Read a cool-down that was saved as JSON.

        Args:
            saved: any JSON value.
            now: Unix seconds; from then on, a cool-down lasts no longer than the origin can demand. What was
                noted later was noted by a wrong clock, and counts as noted now.

        Raises:
            ValueError: it isn't a cool-down.
        """
        try:
            until, noted_at = float(saved["until"]), float(saved.get("noted_at", 0.0))
            if math.isnan(until) or math.isnan(noted_at):
                raise ValueError("no time")
            ahead = max(0.0, noted_at - now)
            return cls(
                min(until - ahead, now + LONGEST_RETRY_AFTER),
                int(saved["failures"]),
                FailureKind(saved["failure"]),
                str(saved["reason"]),
                noted_at - ahead,
            )
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise ValueError("no cool-down") from error

    def holds(self, now: float) -> bool:
        """Whether it is in force. One that was noted later, or lasts too long, was noted by a wrong clock."""
        return self.noted_at <= now < self.until <= now + LONGEST_RETRY_AFTER

    @property
    def is_demanded(self) -> bool:
        """Whether a server wants it: it refused, or the wait is longer than the gateway's own ones."""
        is_long = self.until - self.noted_at > BACKOFFS[self.failure].longest + 1
        return self.failure in _REFUSALS or (is_long and self.failure not in _OWN)

    def outlasts_answer(self, asked_at: float, now: float) -> bool:
        """Whether it goes on in spite of a good answer: it is a server's last word, and the request is older.

        Args:
            asked_at: when the request began, in Unix seconds.
            now: Unix seconds; what was noted later was noted by a wrong clock.
        """
        is_last_word = self.is_demanded or self.failure is FailureKind.SERVER_ERROR
        return is_last_word and asked_at < self.noted_at <= now

    @property
    def is_forgiven_at(self) -> float:
        """When the next failure counts as the first one again, in Unix seconds."""
        return self.until + BACKOFFS[self.failure].longest


def load_cooldowns(notes: Notes, clock: Callable[[], float]) -> dict[str, Cooldown]:
    """The cool-downs that earlier processes and other gateways noted.

    Args:
        notes: where they are.
        clock: gives Unix seconds.
    """
    now = clock()
    for key, cooldown in notes.load(_parser(clock)).items():
        if cooldown.noted_at >= now or cooldown.until >= now + LONGEST_RETRY_AFTER:
            # Noted by a wrong clock; unless the new times are kept, each restart would begin it anew.
            notes.save(key, asdict(cooldown))
    return notes.load(_parser(clock), _last_to_end)


def take_in(cooldowns: dict[str, Cooldown], notes: Notes, clock: Callable[[], float]) -> None:
    """Add to the cool-downs what others have noted since, and remove what they have forgotten. Quick."""
    for key, cooldown in notes.news(_parser(clock), _last_to_end).items():
        if cooldown is None:
            cooldowns.pop(key, None)
        else:
            cooldowns[key] = cooldown


def _parser(clock: Callable[[], float]) -> Callable[[Any], Cooldown]:
    return lambda saved: Cooldown.parse(saved, clock())


# Not what was noted last: a gateway may note a short one before it hears of a longer one.
_last_to_end: Merge[Cooldown] = best(lambda cooldown: cooldown.until)


def longest_in_force(cooldowns: Iterable[Cooldown | None], now: float) -> Cooldown | None:
    """The cool-down that ends last, of those in force; None if there is none."""
    running = [cooldown for cooldown in cooldowns if cooldown is not None and cooldown.holds(now)]
    return max(running, key=lambda cooldown: cooldown.until, default=None)


class Cooldowns:
    """All cool-downs in force. Event loop only.

    Args:
        notes: where they are kept over a restart.
        clock: gives Unix seconds.
    """

    def __init__(self, notes: Notes, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._notes = notes
        self._active = load_cooldowns(notes, clock)
        self._admitted: dict[str, None] = {}
        """Client versions that the origin delivered to; the most recent is at the end."""
        self._trial: Cooldown | None = None
        """What holds all others back while one request tries whether the proxy admits us again."""

    def check(self, path: str, agent: str) -> Cooldown | None:
        """The longest cool-down that forbids asking for a file now; None if there is none.

        Args:
            path: at the origin.
            agent: the client version, see `Requester.version`.
        """
        self._take_in()
        now = self._clock()
        found = [self._active.get(key) for key in (path, _agent_key(agent), ORIGIN, PROXY)]
        if agent not in self._admitted:
            found.append(self._refusal_of_all(now))
        return longest_in_force(found, now)

    def admit(self, path: str, agent: str) -> Cooldown | None:
        """Like `check`, for a caller that asks at once if nothing forbids it.

        After a proxy refused the credentials, one request of all processes finds out whether it still does.
        """
        cooldown, refusal = self.check(path, agent), self._active.get(PROXY)
        return self._try_proxy(refusal) if cooldown is None and refusal is not None else cooldown

    def _try_proxy(self, refusal: Cooldown) -> Cooldown | None:
        """Hold back all others until one request has tried, or this one if another process was quicker."""
        now = self._clock()
        trial = replace(refusal, until=now + TRIAL)

        def is_over(saved: Any) -> bool:
            return saved is not None and not Cooldown.parse(saved, now).holds(now)

        if self._notes.save_if(PROXY, asdict(trial), is_over):
            self._active[PROXY] = self._trial = trial
            return None
        self._notes.refresh()
        self._take_in()
        present = self._active.get(PROXY)
        if present is None or present.holds(now):
            return present
        return replace(present, until=now + 1)  # another process is about to try

    def refused_since(self, path: str, agent: str, admitted_at: float) -> Cooldown | None:
        """What forbids going on asking for a file, although it was allowed before: None if nothing does.

        Short waits, such as after a broken connection, don't forbid it.

        Args:
            path: at the origin.
            agent: the client version, see `Requester.version`.
            admitted_at: when `admit` allowed it, in Unix seconds. The trial that it may have begun is no
                obstacle.
        """
        self._take_in()
        noted = [self._active.get(key) for key in (path, _agent_key(agent), PROXY)]
        since = (one for one in noted if one and one.is_demanded and one.noted_at > admitted_at)
        return longest_in_force(since, self._clock())

    def failed(
        self,
        failure: FailureKind,
        path: str,
        agent: str,
        reason: str,
        retry_after: float | None = None,
        asked_at: float = math.inf,
    ) -> Cooldown:
        """Note a failure. Gives the cool-down that is in force now, see `Cooldown.after`.

        Args:
            path: at the origin.
            agent: the client version that was shown to the origin.
            reason: one line for logs and statistics.
            retry_after: in seconds, as the origin demanded.
            asked_at: see `succeeded`.
        """
        self._notes.refresh()
        self._take_in()
        self._forget_old()
        if failure in _FROM_BEYOND_THE_PROXY:
            self.forgive_proxy(asked_at)
        keys = {
            FailureKind.FORBIDDEN: _agent_key(agent),
            FailureKind.UNREACHABLE: ORIGIN,
            FailureKind.PROXY_AUTHENTICATION: PROXY,
        }
        key = keys.get(failure, path)
        previous, now = self._active.get(key), self._clock()
        if previous is not None and previous == self._trial:
            previous = replace(previous, until=now)  # the trial held back the others, and ends with this
        cooldown = Cooldown.after(previous, failure, reason, retry_after, now)
        if cooldown is not previous:
            self._active[key] = cooldown
            self._notes.save(key, asdict(cooldown))
        return cooldown

    def succeeded(self, path: str, agent: str, *, verified: bool = True, asked_at: float = math.inf) -> None:
        """Note that the origin delivered this file to this client version, which ends their cool-downs.

        Args:
            path: at the origin.
            agent: the client version that was shown to the origin.
            verified: whether the content was verified as well. If not, a cool-down for bad or changing
                content goes on: a good header says nothing about the rest of the file.
            asked_at: when the request began, in Unix seconds. What the origin demanded later goes on, see
                `Cooldown.outlasts_answer`.
        """
        self._take_in()
        self._admitted.pop(agent, None)
        self._admitted[agent] = None
        if len(self._admitted) > MOST_ADMITTED:
            del self._admitted[next(iter(self._admitted))]
        self.forgive_proxy(asked_at)
        for key in (path, _agent_key(agent), ORIGIN):
            cooldown = self._active.get(key)
            if cooldown is not None and (verified or cooldown.failure not in _ABOUT_THE_BODY):
                self._end(key, cooldown, asked_at)

    def forgive_proxy(self, asked_at: float = math.inf) -> None:
        """Note that the proxy let a request through, or that its password may have been corrected.

        Args:
            asked_at: see `succeeded`.
        """
        self._take_in()
        if (refusal := self._active.get(PROXY)) is not None:
            self._end(PROXY, refusal, asked_at)

    def _end(self, key: str, cooldown: Cooldown, asked_at: float) -> None:
        if not cooldown.outlasts_answer(asked_at, self._clock()):
            del self._active[key]
            self._notes.forget(key)

    def _take_in(self) -> None:
        take_in(self._active, self._notes, self._clock)

    def _refusal_of_all(self, now: float) -> Cooldown | None:
        """The shortest refusal, if there are enough of them that further versions need not try."""
        refusals = [
            cooldown
            for cooldown in self._active.values()
            if cooldown.failure is FailureKind.FORBIDDEN and cooldown.holds(now)
        ]
        if len(refusals) < ENOUGH_REFUSALS:
            return None
        return min(refusals, key=lambda cooldown: cooldown.until)

    def was_refused(self, agent: str) -> bool:
        """Whether the origin's last word to a client version was a refusal, however long ago.

        Args:
            agent: see `Requester.version`.
        """
        self._take_in()
        cooldown = self._active.get(_agent_key(agent))
        return cooldown is not None and cooldown.failure is FailureKind.FORBIDDEN

    def in_force(self) -> dict[str, Cooldown]:
        """What is held back now: by file, by client version, or the origin or proxy as a whole."""
        self._take_in()
        now = self._clock()
        return {key: cooldown for key, cooldown in self._active.items() if cooldown.holds(now)}

    def _forget_old(self) -> None:
        """Forget what ended long ago: clients choose the keys (versions, files), so they must not pile up."""
        now = self._clock()
        for key, cooldown in list(self._active.items()):
            if cooldown.is_forgiven_at < now:
                del self._active[key]
                self._notes.forget(key)


def _agent_key(agent: str) -> str:
    return f"client {agent}"
