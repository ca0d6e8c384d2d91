"""What commands fetch from the origin, by the same rules as the proxy, whether or not it is running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from clamproxy.cli.bars import shown_downloads
from clamproxy.cli.common import fail, shown_trouble
from clamproxy.config.settings import Settings
from clamproxy.formats.signatures import CLAMAV_KEYS
from clamproxy.objects import STANDARD_DATABASES, ObjectId
from clamproxy.releases.holds import HoldsError

if TYPE_CHECKING:
    from clamproxy.service import Service

NOT_DELIVERED = 2
"""Exit code: the origin didn't deliver everything."""


def default_databases(settings: Settings, cached: set[str]) -> list[str]:
    """The databases that a command covers if none is named: the usual ones, and all that are cached."""
    served = [name for name in STANDARD_DATABASES if name in settings.serving.databases]
    return served + sorted(cached - set(served))


def fetch_releases(settings: Settings, databases: Iterable[str]) -> dict[str, str]:
    """Bring the cache up to date, with progress bars.

    Returns:
        Why the origin doesn't deliver everything, for each such database.
    """
    return _for_each(settings, databases, lambda service, database: service.clamav.renew(database))


def refetch(settings: Settings, objects: Iterable[ObjectId]) -> dict[ObjectId, str]:
    """Fetch dropped objects again, as far as the budget and cool-downs allow.

    A CVD is replaced by the origin's newest one. A patch or signature that the origin no longer has isn't
    missed, because the CDN gives clients the same response.

    Args:
        objects: CVDs, patches and signatures.

    Returns:
        Why some of them aren't available now, in one line each.
    """
    return _for_each(settings, objects, lambda service, object_id: service.clamav.refetch(object_id))


def _for_each[T](
    settings: Settings, things: Iterable[T], fetch: Callable[[Service, T], Awaitable[None]]
) -> dict[T, str]:
    """Fetch things one by one, with progress bars; returns why some aren't available."""
    try:
        return asyncio.run(_fetch_each(settings, things, fetch))
    except HoldsError as error:
        fail(str(error))
    except OSError as error:
        fail(shown_trouble(settings.cache.directory, error))


async def _fetch_each[T](
    settings: Settings, things: Iterable[T], fetch: Callable[[Service, T], Awaitable[None]]
) -> dict[T, str]:
    # Not at the top: the parts that talk to the origin take a while to import.
    from clamproxy.origin.transfers import ORIGIN_TROUBLE
    from clamproxy.service import open_service

    failures = {}
    async with open_service(settings, CLAMAV_KEYS) as service, shown_downloads(service.under_way):
        for thing in things:
            try:
                await fetch(service, thing)
            except ORIGIN_TROUBLE as error:
                failures[thing] = _in_words(error)
    return failures


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__
