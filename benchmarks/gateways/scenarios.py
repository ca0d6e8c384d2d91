"""What a site of several gateways goes through, and what has to be true then. Each returns its figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.gateways.clients import STALE, Account, Client
from benchmarks.gateways.figures import Figures, most
from benchmarks.gateways.site import Running, Scale, Site, open_site
from tests.support.faketime import LIBRARY
from tests.support.gateway import Gateway
from tests.support.object_store import ObjectStore

RESTART = 2.0
"""Seconds from the death of a gateway to its restart by a service manager."""
CLOCKS = (0.0, 300.0, -420.0, 60.0)
"""Seconds by which the clocks of the gateways are wrong in the scenario about that."""
LEARNING = 5.0
"""Seconds within which a gateway knows what another one has learnt: they look every 2 s."""

type Scenario = Callable[[Path, Scale], Figures]
type Outage = Callable[[ObjectStore], Callable[[], object]]
"""Stops a store; returns what ends the outage."""


def cold_start(work: Path, scale: Scale) -> Figures:
    """New machines at new gateways: nobody has anything."""
    with open_site(work, scale) as site:
        figures = Figures("cold start")
        _finish(site, site.begin(site.clients()), figures)
        _claim_once(site, figures)
        return figures


def release_day(work: Path, scale: Scale) -> Figures:
    """All machines are up to date when a new version is released; then they look for updates."""
    with open_site(work, scale) as site:
        clients = _up_to_date(site)
        figures = Figures("release day")
        site.mirror.release()
        _finish(site, site.begin(clients), figures)
        _claim_once(site, figures)
        return figures


def gateway_killed(work: Path, scale: Scale) -> Figures:
    """The gateway that fetches main.cvd for all is killed in the middle, and restarted."""
    return _interrupted("gateway killed", work, scale, kills=True)


def store_down(work: Path, scale: Scale) -> Figures:
    """The store is stopped while new machines come to new gateways; afterwards there is a release."""
    return _interrupted("store stopped, cold start", work, scale, stops=_go_down)


def store_silent(work: Path, scale: Scale) -> Figures:
    """The store accepts connections, but doesn't respond any more."""
    return _interrupted("store silent, cold start", work, scale, stops=_fall_silent)


def both(work: Path, scale: Scale) -> Figures:
    """The gateway that fetches is killed, and the store is stopped at the same moment."""
    return _interrupted("gateway killed and store stopped", work, scale, kills=True, stops=_go_down)


def store_down_at_release(work: Path, scale: Scale) -> Figures:
    """The store is stopped just before a release."""
    with open_site(work, scale) as site:
        clients = _up_to_date(site)
        figures = Figures("store stopped, release day")
        stopped = _stop_store(site, _go_down)
        site.mirror.release()
        _finish(site, site.begin(clients), figures, alone=True)
        _claim_alone_at_worst(site, figures)
        _start_store(site, stopped, figures)
        return figures


def fresh_gateway(work: Path, scale: Scale) -> Figures:
    """A gateway with an empty disk joins, while the origin can't be reached at all."""
    with open_site(work, scale) as site:
        _up_to_date(site)
        site.mirror.release()
        site.wait_for_versions()
        site.mirror.origin.refuse()
        site.mirror.origin.forget()
        site.start(1)
        figures = Figures("fresh gateway, warm store")
        new = [client for client in site.clients() if client.ports == (site.gateways[-1].port,)]
        _finish(site, site.begin(new), figures)
        figures.claim("the origin isn't asked", not figures.origin, sum(figures.origin.values()))
        return figures


def wrong_clocks(work: Path, scale: Scale) -> Figures:
    """The clocks of the gateways are minutes apart: a cold start, then a release."""
    if LIBRARY is None:
        figures = Figures("clocks minutes apart")
        figures.claim("left out: libfaketime isn't installed", holds=True)
        return figures
    with open_site(work, scale, clocks=CLOCKS) as site:
        figures = Figures("clocks minutes apart")
        clients = _finish(site, site.begin(site.clients()), figures, "cold start: ")
        _claim_once(site, figures, "cold start: ")
        site.mirror.origin.forget()
        site.mirror.release()
        _finish(site, site.begin(clients), figures, "release: ")
        _claim_once(site, figures, "release: ")
        return figures


def workers(work: Path, scale: Scale) -> Figures:
    """One gateway with one worker, then one with two: a cold start and a release have the same counts."""
    figures = Figures("two workers")
    counts = []
    for number in (1, 2):
        directory = work / f"{number}-workers"
        directory.mkdir()
        with open_site(directory, replace(scale, gateways=1, shared=False, workers=number)) as site:
            # Without DNS, what a client asks for depends on the moment.
            clients = [replace(client, has_dns=True) for client in site.clients()]
            clients = _finish(site, site.begin(clients), figures, f"{number}, cold start: ")
            asked = Counter(site.mirror.asked())
            site.mirror.origin.forget()
            site.mirror.release()
            _finish(site, site.begin(_some_anew(clients)), figures, f"{number}, release: ")
            figures.origin = dict(asked + Counter(site.mirror.asked()))
            counts.append({f"origin: {name}": count for name, count in figures.origin.items()})
            counts[-1] |= _counted(site.gateways[0])
    one, two = counts
    different = {name: (one.get(name), two.get(name)) for name in one | two if one.get(name) != two.get(name)}
    figures.claim("two workers have the same counts as one", not different, different or f"{len(one)} counts")
    return figures


def _counted(gateway: Gateway) -> dict[str, int]:
    """What a gateway has counted. Whether a client finds a file, or joins its transfer, is chance."""
    stats = gateway.stats()
    names = ("requests", "misses", "stale", "negative", "errors", "bytes_served")
    counts = {name: stats[name] for name in (*names, "upstream_requests", "upstream_bytes", "objects")}
    return counts | {"hits or collapsed": stats["hits"] + stats["collapsed"]}


SCENARIOS: Mapping[str, Scenario] = {
    "cold": cold_start,
    "release": release_day,
    "killed": gateway_killed,
    "store-down": store_down,
    "store-silent": store_silent,
    "store-down-release": store_down_at_release,
    "both": both,
    "fresh": fresh_gateway,
    "clocks": wrong_clocks,
    "workers": workers,
}


def _interrupted(
    name: str, work: Path, scale: Scale, *, kills: bool = False, stops: Outage | None = None
) -> Figures:
    """A cold start in which something breaks in the middle of the largest transfer; then a release."""
    with open_site(work, scale) as site, ExitStack() as cleanup:
        figures = Figures(name)
        running = site.begin(site.clients(balanced=kills))
        holder = site.wait_for_transfer("main-", 0.3)
        stopped = _stop_store(site, stops) if stops else None
        if kills:
            holder.kill()
            time.sleep(RESTART)
            holder.start(at_same_ports=True)
        cleanup.callback(running.cancel)
        clients = _finish(site, running, figures, alone=bool(stops))
        if stops:
            _claim_alone_at_worst(site, figures, crashes=int(kills))
        else:
            _claim_once(site, figures, crashes=int(kills))
        if stopped is not None:
            _start_store(site, stopped, figures)
        _release_afterwards(site, clients, figures)
        return figures


def _up_to_date(site: Site) -> list[Client]:
    """Machines after a cold start; some are installed anew. The origin's record is empty then."""
    running = site.begin(site.clients())
    clients = running.finish()
    if running.account.failures:
        raise RuntimeError(f"no cold start: {running.account.failures[:3]}")
    site.wait_for_versions()
    site.mirror.origin.forget()
    return _some_anew(clients)


def _some_anew(clients: Sequence[Client]) -> list[Client]:
    return [client if number % 20 else replace(client, versions={}) for number, client in enumerate(clients)]


def _finish(
    site: Site, running: Running, figures: Figures, when: str = "", *, alone: bool = False
) -> list[Client]:
    """Wait for the clients, and note what they say and what the origin and the store were asked.

    Args:
        when: begins the claims, if there are several such runs.
        alone: the gateways can't tell each other anything meanwhile.
    """
    clients = running.finish()
    account = running.account
    values = {
        "clients": len(clients),
        "requests": account.requests,
        "bytes": account.received,
        "seconds": time.monotonic() - running.start,
        "longest": account.longest,
        "retries": sum(account.retries),
        "failures": len(account.failures),
        "unconfirmed": account.results[STALE],
    }
    if site.store is not None:
        values["store requests"] = len(site.store.seen)
    figures.values |= {f"{when}{name}": value for name, value in values.items()}
    _claim_served(account, figures, site.scale.refresh if alone or site.store is None else LEARNING, when)
    figures.origin = site.mirror.asked()
    return clients


def _claim_served(account: Account, figures: Figures, learning: float, when: str) -> None:
    failures, outdated, lag = account.failures, account.outdated, _probes_lag(account)
    for text, holds, seen in (
        ("each client is up to date, and got the right bytes", not failures, failures[:3] or ""),
        ("no client tries again more than once", most(account.retries) <= 1, dict(account.troubles) or ""),
        ("no stale response was older than advertised", not outdated, outdated or ""),
        (f"all gateways say the same version within {learning:.0f} s", lag <= learning, f"{lag:.1f} s"),
    ):
        figures.claim(f"{when}{text}", holds, seen)


def _probes_lag(account: Account) -> float:
    """The most seconds from the first response with a version to a request that got an older one."""
    lag = 0.0
    for _, ended, database, version in account.probed:
        older = [begun for begun, _, name, other in account.probed if name == database and other < version]
        lag = max(lag, max(older, default=ended) - ended)
    return lag


def _claim_once(site: Site, figures: Figures, when: str = "", *, crashes: int = 0) -> None:
    asked = figures.origin = site.mirror.asked()
    limit = 1 + crashes
    worst = {name: count for name, count in asked.items() if count > limit}
    text = (
        "the origin is asked once for each object"
        if not crashes
        else ("the origin is asked at most once more for each object")
    )
    figures.claim(f"{when}{text}", bool(asked) and not worst, worst or f"{len(asked)} objects")


def _claim_alone_at_worst(site: Site, figures: Figures, *, crashes: int = 0) -> None:
    asked = figures.origin = site.mirror.asked()
    limit = len(site.gateways) + crashes
    worst = {name: count for name, count in asked.items() if count > limit}
    figures.claim(
        "each gateway asks the origin at most once for each object",
        bool(asked) and not worst,
        worst or most(asked.values()),
    )


def _go_down(store: ObjectStore) -> Callable[[], object]:
    """Refuse connections; returns what ends that."""
    store.go_down()
    return store.come_back


def _fall_silent(store: ObjectStore) -> Callable[[], object]:
    """Accept requests and answer none; returns what ends that."""
    store.faults.is_stalled = True
    return partial(setattr, store.faults, "is_stalled", False)


@dataclass(frozen=True, slots=True)
class _Stopped:
    at: float
    """In monotonic seconds."""
    end: Callable[[], object]


def _stop_store(site: Site, outage: Outage) -> _Stopped:
    assert site.store is not None
    return _Stopped(time.monotonic(), outage(site.store))


def _start_store(site: Site, stopped: _Stopped, figures: Figures) -> None:
    """Wait until the outage is over, and until all gateways have noticed the end."""
    site.wait_for_store(works=False)
    time.sleep(max(0.0, stopped.at + site.scale.outage - time.monotonic()))
    stopped.end()
    began = time.monotonic()
    site.wait_for_store(works=True)
    figures.values["back after"] = time.monotonic() - began


def _release_afterwards(site: Site, clients: Sequence[Client], figures: Figures) -> None:
    """What broke is mended: a release costs what it always costs."""
    site.wait_for_versions()
    site.mirror.origin.forget()
    site.mirror.release()
    running = site.begin(clients)
    running.finish()
    failures = running.account.failures
    figures.claim("afterwards: each client gets the next release", not failures, failures[:3])
    asked = site.mirror.asked()
    worst = {name: count for name, count in asked.items() if count > 1}
    figures.claim("afterwards: the origin is asked once for each object", bool(asked) and not worst, worst)
