"""Decisions about versions: pure functions of what is known, asked and the clock.

The rules, each with the trap of protocol.md section 10 that it answers:

* a cached CVD is current while nothing newer is advertised, however old it is (3);
* the header probe, the whole file and all clients see one version at a time (13);
* that version never goes backwards (4);
* when DNS is ahead of the origin, the origin is asked for its header again after a minute, then
  less and less often, and what is there is served (5);
* where the cached patches lead on from the cached CVD, the version that they lead to counts as
  cached;
* what is announced can be delivered: while the newest CVD can't be fetched, the newest cached
  one is the one that is announced (29, 30).
"""

from __future__ import annotations

from dataclasses import dataclass

from clamproxy.objects import Kind, ObjectId

RECHECK = 60.0
"""Seconds after which an origin that lags behind DNS is asked for its header again."""
LONGEST_RECHECK = 900.0
"""The same after some fruitless looks: the CDN allows some ten requests per hour for a file."""
PLAUSIBLE_LEAD = 5
"""Versions that a client may know of before the gateway does."""
OLDEST_CDIFF = 120
"""Versions below the advertised one at which no cdiff comes back: the CDN keeps about 90
(protocol.md 3)."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the gateway knows of one database at one moment. Times are in Unix seconds."""

    now: float
    refresh: float
    """Seconds for which an answer of DNS, or without DNS of the origin, counts."""
    advertised: int | None = None
    advertised_is_fresh: bool = False
    demanded: int | None = None
    """The version that the client asks for by ``?version=N``."""
    cached: int | None = None
    """The newest CVD in the store."""
    patched: int | None = None
    """The version that the cached patches lead to from that CVD on, where that counts."""
    seen: int | None = None
    """The newest version whose header was seen at the origin."""
    seen_at: float = 0.0
    """When the origin last answered with a header."""
    probed_advertised: int = 0
    """The version that was advertised then."""
    probed_for: int = 0
    """The version that was wanted then."""
    fruitless: int = 0
    """How often in a row the origin answered with nothing new."""
    can_fetch: bool = True
    """Whether no cool-down holds back the whole file."""

    @property
    def held(self) -> int:
        """The newest version that can be served from the cache; 0 if none."""
        return max(self.cached or 0, self.patched or 0)

    @property
    def best(self) -> int:
        """The newest version that has been seen at all; 0 if none."""
        return max(self.held, self.seen or 0)

    @property
    def wanted(self) -> int:
        """The version that a client hopes for; 0 if nothing says so."""
        return max(self.advertised or 0, self.demanded or 0)

    @property
    def newest(self) -> int:
        """The newest version that is known or hoped for."""
        return max(self.best, self.wanted)


@dataclass(frozen=True, slots=True)
class Choice:
    """The version that all clients get at this moment."""

    version: int
    is_cached: bool
    stale: bool
    """Whether something newer should be there, but could not be had."""
    by_patches: bool = False
    """Whether it is not the cached CVD itself, but what the cached patches make of it."""


def must_probe(known: Known) -> bool:
    """Whether the origin has to be asked for the header of its CVD."""
    age = known.now - known.seen_at
    if not known.best:
        return True
    if known.best < known.wanted:
        return _is_news(known) or age >= _pause(RECHECK, known.fruitless)
    return not known.advertised_is_fresh and age >= _pause(known.refresh, known.fruitless)


def _pause(first: float, fruitless: int) -> float:
    """Seconds until the next look at the origin's header: doubling while it has nothing new."""
    doublings = min(max(0, fruitless - 1), 32)
    return max(first, min(first * float(2**doublings), LONGEST_RECHECK))


def _is_news(known: Known) -> bool:
    """Whether a version is wanted of which nobody had heard when the origin last answered."""
    best, advertised = known.best, known.advertised or 0
    heard = plausible(known.probed_advertised, best)
    if advertised != known.probed_advertised and advertised > max(best, heard):
        return True
    # What a client demands may be invented: it is looked into at once if it is plausible.
    return plausible(known.probed_for, best) < known.wanted <= best + PLAUSIBLE_LEAD


def plausible(version: int, best: int) -> int:
    """A version that somebody spoke of, 0 if it can't be: it must not make later news look old.

    Args:
        version: that DNS gave once, or a client demanded.
        best: the newest version that has been seen.
    """
    return version if version <= best + PLAUSIBLE_LEAD else 0


def choose(known: Known) -> Choice | None:
    """The one version of a database; None if there is none to be had.

    To be called after the probe that `must_probe` asked for, whatever became of it.
    """
    if not known.best:
        return None
    seen = known.seen or 0
    if seen > known.held and (known.can_fetch or not known.cached):
        return Choice(seen, is_cached=False, stale=False)
    if not known.cached:
        return None
    newer_exists = known.best > known.held or must_probe(known)
    by_patches = known.held > known.cached
    return Choice(known.held, is_cached=True, stale=newer_exists, by_patches=by_patches)


def shown_last_modified(origin: float | None, stime: int) -> float:
    """The Last-Modified of a CVD that is sent to clients, in Unix seconds.

    libcurl throws away a body whose Last-Modified is not after the If-Modified-Since that
    freshclam sent, the build time of its own version (trap 7). The origin's value, the time of
    the upload, is right for all kinds of clients (trap 8), and never before the build.
    """
    return max(origin or 0.0, float(stime))


def is_not_modified(since: float, stime: int, last_modified: float, is_newest: bool) -> bool:
    """Whether a CVD is not newer than what the client has (traps 6 to 9, 30).

    Args:
        since: the client's If-Modified-Since: the build time of its own version, or for a
            DatabaseCustomURL the time when it downloaded its copy.
        stime: build time of the CVD that would be served.
        last_modified: the Last-Modified that would be sent with it.
        is_newest: whether that CVD is what is advertised.

    Between build and upload the two kinds of clients can't be told apart. If the CVD is the
    newest there is, nobody can have a newer one: the client downloaded an older one before the
    upload. Otherwise it may have a newer one, which must not be replaced by an older one.
    """
    if since >= last_modified or since == stime:
        return True
    return since > stime and not is_newest


def negative_ttl(object_id: ObjectId, advertised: int | None) -> float:
    """Seconds for which a 404 is remembered (traps 16 and 23).

    A patch near the advertised version is published late, one far below is gone. A signature
    may be published after its CVD, and each freshclam 1.5 asks again at every check.
    """
    if object_id.kind.is_signature:
        return 120.0
    if advertised is None or object_id.version >= advertised - 1:
        return 30.0
    if object_id.kind is Kind.CDIFF and object_id.version < advertised - OLDEST_CDIFF:
        return 3600.0
    return 120.0
