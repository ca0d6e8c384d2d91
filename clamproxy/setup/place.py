"""Where the proxy of this machine listens, for commands: they don't know its command line."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from ipaddress import ip_address

import diskcache

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.config.units import ANY, Endpoint, parse_listen

_NOTE = "listen/proxy"


def note_proxies(store: Store, endpoints: Sequence[Endpoint] | None) -> None:
    """Note where the proxy listens. Blocks.

    Args:
        store: the cache.
        endpoints: from its command line; None if the configuration says it.
    """
    store.set_note(_NOTE, [str(endpoint) for endpoint in endpoints] if endpoints else None)


def proxies(settings: Settings) -> Sequence[Endpoint]:
    """Where the proxy of this machine listens, or did when it last ran. Blocks."""
    return _noted(settings) or settings.listen.proxy


def nearest(endpoint: Endpoint) -> tuple[str, int]:
    """The address and port by which a program on this machine gets to an endpoint."""
    if endpoint.host == ANY:
        return "127.0.0.1", endpoint.port
    address = ip_address(endpoint.host)
    if address.is_unspecified:
        return ("::1" if address.version == 6 else "127.0.0.1"), endpoint.port
    return endpoint.host, endpoint.port


def _noted(settings: Settings) -> list[Endpoint]:
    directory = settings.cache.directory
    # Whoever may not read the cache goes by the configuration.
    with suppress(OSError, sqlite3.Error, diskcache.Timeout, TypeError, ValueError):
        if directory.is_dir():
            with closing(Store(directory, tidy=False)) as store:
                return [parse_listen(text) for text in store.note(_NOTE) or ()]
    return []
