"""Names of machines from reverse DNS (PTR records): asked for in the background, slowly."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

import dns.exception
import dns.name
import dns.resolver

from clamproxy.fleet.machine_names import LONGEST, Name
from clamproxy.origin.resolver import LIFETIME, stub_resolver

AT_ONCE = 8
"""Lookups at the same time."""
PER_SECOND = 20
"""Lookups per second at most: those for ten thousand machines take some eight minutes."""
SHORTEST = 3600.0
"""Seconds for which a name counts, whatever its TTL is; `LONGEST` at most."""
WITHOUT_NAME = 6 * 3600.0
"""Seconds until an address that has no name is asked for again."""
WITHOUT_ANSWER = 900.0
"""The same if no name server has answered."""

_NOT_IN_NAMES = re.compile(rb"[^A-Za-z0-9_-]")
_LONGEST_NAME = 253


class PtrAnswer(NamedTuple):
    """What some lookups have found."""

    names: Sequence[Name]
    has_answers: bool
    """Whether any name server has answered at all."""


async def look_up(addresses: Sequence[str], nameservers: Sequence[tuple[str, int]], now: float) -> PtrAnswer:
    """Ask for the names of addresses, a few at a time.

    Args:
        addresses: IP addresses; anything else has no name.
        nameservers: address and port of each; if empty, the system's are asked.
        now: Unix seconds.
    """
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(address: str) -> tuple[Name, bool]:
        async with slots:
            name, lifetime, is_answered = await _ask(address, nameservers)
        return Name(address, name, now + lifetime), is_answered

    found = await asyncio.gather(*map(ask, addresses))
    return PtrAnswer([name for name, _ in found], any(is_answered for _, is_answered in found))


async def _ask(address: str, nameservers: Sequence[tuple[str, int]]) -> tuple[str | None, float, bool]:
    """The name, for how many seconds it counts, and whether a name server has answered."""
    try:
        answer = await stub_resolver(nameservers).resolve_address(address, lifetime=LIFETIME, search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.exception.SyntaxError):
        return None, WITHOUT_NAME, True
    except (dns.exception.DNSException, OSError):
        return None, WITHOUT_ANSWER, False
    if answer.rrset is None:
        return None, WITHOUT_NAME, True
    name = plain_name(answer.rrset[0].target)
    return name, min(max(float(answer.rrset.ttl), SHORTEST), LONGEST), True


def plain_name(name: dns.name.Name) -> str | None:
    """A name without the characters that no host name has: whoever owns an address writes its name."""
    labels = filter(None, (_NOT_IN_NAMES.sub(b"", label) for label in name.labels))
    return b".".join(labels).decode("ascii").lower()[:_LONGEST_NAME] or None
