"""Decisions about versions: pure functions of what is known, what is asked for, and the time.

The rules, each with the trap of docs/protocol.md section 10 that it answers:

* a cached CVD is current while nothing newer is advertised, however old it is (3);
* the header probe, the whole file and all clients see the same version at any moment (13);
* that version never goes backwards (4), whatever the cache has lost since;
* while DNS is ahead of the origin, the cached version is served, and the origin is asked for its
  header again after a minute, then less and less often (5);
* where the cached patches continue from the cached CVD, the version that they lead to counts as
  cached;
* what is announced can be delivered: while the newest CVD can't be fetched, the newest cached
  one is announced (29, 30);
* under a ceiling, nothing above it counts: not as advertised, seen or demanded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clamproxy.dates import elapsed
from clamproxy.objects import Kind, ObjectId

RECHECK = 60.0
"""Seconds after which an origin that lags behind DNS is asked for its header again."""
LONGEST_RECHECK = 900.0
"""The longest pause between requests for the origin's header while they bring nothing new, in seconds: the
CDN allows some ten requests per hour for a file."""
PLAUSIBLE_LEAD = 5
"""How many versions a client may be ahead of what the gateway knows."""
OLDEST_CDIFF = 120
"""A missing cdiff this many versions below the advertised one won't come back: the CDN keeps about 90
(docs/protocol.md 3)."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the gateway knows about one database at one moment. Times are in Unix seconds."""

    now: float
    refresh: float
    """How long an answer from DNS is valid, or without DNS one from the origin, in seconds."""
    advertised: int | None = None
    advertised_is_fresh: bool = False
    demanded: int | None = None
    """The version that the client demands by ``?version=N``."""
    cached: int | None = None
    """The newest CVD in the store."""
    patched: int | None = None
    """The version that the cached patches lead to from that CVD, where that counts."""
    seen: int | None = None
    """The newest version in a header from the origin."""
    seen_at: float = 0.0
    """When the origin last answered with a header."""
    probed_advertised: int = 0
    """The version that was advertised when the origin last answered."""
    probed_for: int = 0
    """The version that was wanted when the origin last answered."""
    fruitless: int = 0
    """How often in a row the origin had nothing new."""
    can_fetch: bool = True
    """Whether no cool-down prevents fetching the whole file."""
    proven: int = 0
    """The newest version that was ever proven here, cached or not; 0 if there was none."""
    hears_dns: bool = True
    """Whether the gateway has heard from DNS what clients hear."""
    hidden: int = 0
    """The newest version above the client's ceiling; 0 if nothing is hidden from it."""

    @property
    def held(self) -> int:
        """The newest version that can be served from the cache; 0 if there is none."""
        return max(self.cached or 0, self.patched or 0)

    @property
    def offered(self) -> int:
        """The newest version in a header from the origin; 0 if what was proven here is newer."""
        return self.seen if self.seen and self.seen >= self.proven else 0

    @property
    def best(self) -> int:
        """The newest version that can be had from cache or origin; 0 if there is none."""
        return max(self.held, self.offered)

    @property
    def wanted(self) -> int:
        """The newest version that is advertised, demanded, or was proven; 0 if there is none."""
        return max(self.advertised or 0, self.demanded or 0, self.proven)

    @property
    def newest(self) -> int:
        """The newest version that has been seen, proven, advertised or demanded."""
        return max(self.best, self.wanted)

    def is_newest(self, version: int) -> bool:
        """Whether no client can have a newer version, hidden ones included."""
        return version >= self.newest and not self.hidden

    def may_be_behind(self, version: int) -> bool:
        """Whether clients may have heard of a newer version, from DNS or from here."""
        return not (self.hears_dns and self.is_newest(version))

    def under(self, ceiling: int | None) -> Known:
        """What is known to a client that is shown no version above a ceiling; None: to any other client.

        `cached` and `patched` are left alone: what is served has to be looked up under the same ceiling.
        """
        if ceiling is None:
            return self
        above = [n for n in (self.advertised, self.seen, self.proven) if n is not None and n > ceiling]
        return replace(
            self,
            advertised=None if self.advertised is None else min(self.advertised, ceiling),
            demanded=None if self.demanded is None else min(self.demanded, ceiling),
            seen=None if self.seen is None or self.seen > ceiling else self.seen,
            probed_advertised=min(self.probed_advertised, ceiling),
            probed_for=min(self.probed_for, ceiling),
            proven=min(self.proven, ceiling),
            hidden=max([self.hidden, *above]),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The version that all clients get at this moment."""

    version: int
    is_cached: bool
    stale: bool
    """Whether there should be a newer version, which is not available."""
    by_patches: bool = False
    """Whether clients reach it from the cached CVD by the cached patches."""


def must_probe(known: Known) -> bool:
    """Whether the origin has to be asked for the header of its CVD."""
    age = elapsed(known.seen_at, known.now)
    if not known.best and not known.proven:
        # Whatever the origin has is above the ceiling, then: asking again won't change that soon.
        return not known.hidden or age >= _pause(known.refresh, known.fruitless)
    if known.best < known.wanted:
        return _is_news(known) or age >= _pause(RECHECK, known.fruitless)
    return not known.advertised_is_fresh and age >= _pause(known.refresh, known.fruitless)


def _pause(first: float, fruitless: int) -> float:
    """Seconds until the next request for the origin's header: doubled while it has nothing new."""
    doublings = min(max(0, fruitless - 1), 32)
    return max(first, min(first * float(2**doublings), LONGEST_RECHECK))


def _is_news(known: Known) -> bool:
    """Whether a version is wanted that nobody had heard of when the origin last answered."""
    best, advertised = max(known.best, known.proven), known.advertised or 0
    heard = plausible(known.probed_advertised, best)
    # Whatever is invented, by DNS or a client, is not looked into at once: that would have no end.
    if advertised != known.probed_advertised and plausible(advertised, best) > max(best, heard):
        return True
    return plausible(known.probed_for, best) < known.wanted <= best + PLAUSIBLE_LEAD


def plausible(version: int, best: int) -> int:
    """The version itself, or 0 if it can't be right: a wrong one must not make later news look old.

    Args:
        version: once advertised by DNS, or demanded by a client.
        best: the newest version that has been seen.
    """
    return version if version <= best + PLAUSIBLE_LEAD else 0


def choose(known: Known) -> Choice | None:
    """The one version of a database to serve; None if none is available.

    Call it after the probe that `must_probe` asked for, whatever came of that.
    """
    if not known.best:
        return None
    # While the newest can't be fetched, what is cached is served, as announced (29, 30).
    if known.offered > known.held and (known.can_fetch or not known.cached):
        return Choice(known.offered, is_cached=False, stale=False)
    if not known.cached:
        return None
    newer_exists = max(known.best, known.proven) > known.held or must_probe(known)
    by_patches = known.held > known.cached
    return Choice(known.held, is_cached=True, stale=newer_exists, by_patches=by_patches)


def shown_last_modified(origin: float | None, stime: int) -> float:
    """The Last-Modified that is sent to clients with a CVD, in Unix seconds.

    libcurl throws away a body whose Last-Modified is not later than the If-Modified-Since that freshclam
    sent, the build time of its own version (trap 7). The origin's value, the time of the upload, is right
    for all kinds of clients (trap 8), and is never before the build.
    """
    return max(origin or 0.0, float(stime))


def is_not_modified(since: float, stime: int, last_modified: float, is_newest: bool) -> bool:
    """Whether a CVD is not newer than what the client has (traps 6 to 9, 30).

    Between build and upload, the two kinds of clients can't be told apart. If the CVD is the newest there
    is, nobody can have a newer one, so the client downloaded an older one before the upload. Otherwise
    the client may have a newer one, which an older one must not replace.

    Args:
        since: the client's If-Modified-Since: the build time of its own version or, for a
            DatabaseCustomURL, the time when it downloaded its copy.
        stime: build time of the CVD that would be served.
        last_modified: the Last-Modified that would be sent with it.
        is_newest: whether that CVD is the advertised version.
    """
    if since >= last_modified or since == stime:
        return True
    return since > stime and not is_newest


def negative_ttl(object_id: ObjectId, advertised: int | None) -> float:
    """Seconds for which a 404 is remembered (traps 16 and 23).

    A patch near the advertised version is published late; one far below it is gone. A signature may be
    published after its CVD, and every freshclam 1.5 asks for it again at each check.
    """
    if object_id.kind.is_signature:
        return 120.0
    if advertised is None or object_id.version >= advertised - 1:
        return 30.0
    if object_id.kind is Kind.CDIFF and object_id.version < advertised - OLDEST_CDIFF:
        return 3600.0
    return 120.0
