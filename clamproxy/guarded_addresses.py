"""Addresses to which no foreign name may lead the gateway.

Whoever owns a name that is passed through, or a feed's, decides where it leads. It must not lead clients to
what only this machine should reach: its own services, and those of its link, such as a cloud's metadata
service at 169.254.169.254.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any

type Allows = Callable[[str], bool]
"""Tells whether an address is allowed although it is guarded."""


def describe(host: str, address: str) -> str:
    """Why the gateway doesn't connect to a host."""
    return f"{host} leads to {address}, an address of this machine or its link"


def is_guarded(address: str) -> bool:
    """Whether an address is this machine's own or its link's, or no single host's."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast


async def find_guarded(host: str, port: int, allows: Allows) -> str | None:
    """The first address of a host that is guarded and not allowed; None if there is none."""
    loop = asyncio.get_running_loop()
    try:
        return _first(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), allows)
    except (OSError, UnicodeError):
        return None  # connecting will fail as well


def find_guarded_blocking(host: str, port: int, allows: Allows) -> str | None:
    """The same. Blocks."""
    try:
        return _first(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), allows)
    except (OSError, UnicodeError):
        return None


def _first(found: Iterable[tuple[Any, ...]], allows: Allows) -> str | None:
    addresses = (str(end[0]) for *_, end in found)
    return next((one for one in addresses if is_guarded(one) and not allows(one)), None)
