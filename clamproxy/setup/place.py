"""Where this machine's proxy listens, or could listen: commands don't know its command line."""

from __future__ import annotations

import errno
import socket
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from ipaddress import ip_address
from typing import Any

from clamproxy.cache.layout import is_cache
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.config.units import ANY, LISTEN, Endpoint

_NOTE = "listen/proxy"
_REASONS = {
    errno.EADDRINUSE: "address already in use, by another program or a running clamproxy",
    errno.EACCES: "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address",
}


def note_proxies(store: Store, endpoints: Sequence[Endpoint] | None) -> None:
    """Note where the proxy listens. Blocks.

    Args:
        endpoints: from the proxy's command line; None if the configuration decides.
    """
    store.set_note(_NOTE, [str(endpoint) for endpoint in endpoints] if endpoints else None)


def proxies(settings: Settings) -> Sequence[Endpoint]:
    """Where this machine's proxy listens, or did when it last ran. Blocks."""
    return _noted(settings) or settings.listen.proxy


def nearest(endpoint: Endpoint) -> tuple[str, int]:
    """The address and port by which a program on this machine reaches an endpoint."""
    if endpoint.host == ANY:
        return "127.0.0.1", endpoint.port
    address = ip_address(endpoint.host)
    if address.is_unspecified:
        return ("::1" if address.version == 6 else "127.0.0.1"), endpoint.port
    return endpoint.host, endpoint.port


def _noted(settings: Settings) -> list[Endpoint]:
    directory = settings.cache.directory
    # A user who may not read the cache gets what the configuration says.
    with suppress(OSError, sqlite3.Error, TypeError, ValueError):
        if is_cache(directory):
            with closing(Store(directory, tidy=False)) as store:
                return [LISTEN.parse(text) for text in store.note(_NOTE) or ()]
    return []


def refusal(endpoint: Endpoint, kind: socket.SocketKind = socket.SOCK_STREAM) -> str | None:
    """Why the system doesn't allow listening there; None if it does."""
    host = None if endpoint.host == ANY else endpoint.host
    try:
        places = socket.getaddrinfo(host, endpoint.port, type=kind, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"the address isn't known: {error.strerror or error}"
    errors = (_error_of_bind(family, kind, address) for family, *_, address in places)
    # A machine without IPv6 can still listen on "all addresses".
    counts = _REASONS.keys() - ({errno.EADDRNOTAVAIL} if host is None else set())
    return next((_REASONS[error] for error in errors if error in counts), None)


def explained(error: OSError) -> str:
    """Why a port can't be opened, for users."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def _error_of_bind(family: socket.AddressFamily, kind: socket.SocketKind, address: Any) -> int:
    """The errno of an attempt to bind; 0 if it worked."""
    try:
        with socket.socket(family, kind) as probe:
            # As servers do. With datagrams it would let two sockets share a port.
            if kind is socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
