"""The way to a server without a request: DNS, TCP and TLS, as the gateway itself would use them."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

from clamproxy.config.settings import UpstreamSection
from clamproxy.config.units import host_and_port, port_of
from clamproxy.doctor.findings import bounded
from clamproxy.doctor.wire import Proxy, connected, open_tunnel

_USER_AGENT = "clamproxy-doctor"


def reach(upstream: UpstreamSection, seconds: float) -> str:
    """Connect to the origin, request nothing, and disconnect.

    Args:
        upstream: how the gateway gets there.
        seconds: time limit for each step.

    Returns:
        What was reached, in a form that can follow "there is".

    Raises:
        OSError: it can't be reached, or its certificate is not trusted.
        WireError: the proxy on the way doesn't respond.
        TunnelRefused: the proxy refuses to make a tunnel.
    """
    is_secure, origin = _endpoint(upstream.url)
    context, name = _context(upstream), host_and_port(*origin)
    if upstream.proxy is None:
        with connected(_first_open(upstream, origin, seconds), seconds) as stream:
            return _secured(stream, context, origin) if is_secure else f"a connection to {name}"
    proxy_is_secure, address = _endpoint(upstream.proxy.url)
    with connected(address, seconds) as stream, ExitStack() as stack:
        if proxy_is_secure:
            stream = stack.enter_context(context.wrap_socket(stream, server_hostname=address[0]))
        # Without a tunnel, only the request itself would show more; with NTLM, only the gateway's own way.
        if not is_secure or upstream.proxy_auth != "basic":
            return f"a connection to {upstream.proxy.url}"
        open_tunnel(stream, Proxy(*address, _USER_AGENT, upstream.proxy.credentials), name)
        # Python's sockets can't wrap a TLS connection in TLS once more.
        return f"a tunnel to {name}" if proxy_is_secure else _secured(stream, context, origin)


def _first_open(upstream: UpstreamSection, origin: tuple[str, int], seconds: float) -> tuple[str, int]:
    """Where to connect: the first of `upstream.address` that accepts a connection, else the last."""
    places = [(address.host, address.port or origin[1]) for address in upstream.address]
    for place in places[:-1]:
        with suppress(OSError), socket.create_connection(place, seconds):
            return place
    return places[-1] if places else origin


def look_up(host: str, seconds: float) -> list[str]:
    """The addresses of a host, each once.

    Raises:
        OSError: there are none, or the resolver takes too long.
    """
    try:
        entries = bounded(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM), seconds)
    except UnicodeError as error:  # an impossible name
        raise OSError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def is_own_address(address: str) -> bool:
    """Whether an address is this machine's own: packets to it are then sent from the same address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # a datagram socket: nothing is sent
        return str(probe.getsockname()[0]) == address
    return False


def _secured(stream: socket.socket, context: ssl.SSLContext, origin: tuple[str, int]) -> str:
    with context.wrap_socket(stream, server_hostname=origin[0]) as secured:
        return f"a connection to {host_and_port(*origin)} ({secured.version()}, its certificate is trusted)"


def _context(upstream: UpstreamSection) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if upstream.ca_bundle is not None:
        context.load_verify_locations(cafile=upstream.ca_bundle)
    return context


def _endpoint(url: str) -> tuple[bool, tuple[str, int]]:
    parts = urlsplit(url)
    return parts.scheme == "https", (parts.hostname or "", port_of(parts))
