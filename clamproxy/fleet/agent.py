"""Agents: what a User-Agent says about the client's machine (docs/protocol.md 1.1).

freshclam sends ``ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: <uuid4>)``, where the UUID
identifies the installation. A client without a UUID can't be told from others and isn't counted as a
machine: cvdupdate, curl, a freshclam with HTTPUserAgent. The field comes from outside, so any part that
doesn't have the expected form is left out; nothing else reaches the table, pages or terminals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from clamproxy.config.units import client_ip

LONGEST = 255
"""Length of a User-Agent in characters, at most; freshclam's have no more than 127."""
_LONGEST_ADDRESS = 64

_FRESHCLAM = re.compile(r"ClamAV/([^ ]+) \(([^()]*)\)", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_VERSION = re.compile(r"[0-9A-Za-z.+~_-]{1,32}", re.ASCII)
_SYSTEM = re.compile(r"[0-9A-Za-z.+/_-][0-9A-Za-z .+/_-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Agent:
    """A freshclam and its machine; None for what wasn't sent, or not in a form that any freshclam sends."""

    uuid: str
    freshclam: str | None
    os: str | None
    arch: str | None


_REMEMBERED = 16_384
"""User-Agents and addresses to cache, some 500 bytes each: enough for a fleet of ten thousand machines."""


@lru_cache(_REMEMBERED)
def parse_agent(user_agent: str) -> Agent | None:
    """The machine that a User-Agent identifies; None if it identifies none."""
    match = _FRESHCLAM.fullmatch(user_agent) if len(user_agent) <= LONGEST else None
    if match is None:
        return None
    fields = dict(field.partition(": ")[::2] for field in match[2].split(", "))
    uuid = fields.get("UUID", "").lower()
    if not _UUID.fullmatch(uuid):
        return None
    return Agent(
        uuid=uuid,
        freshclam=_plain(_VERSION, match[1]),
        os=_plain(_SYSTEM, fields.get("OS")),
        arch=_plain(_SYSTEM, fields.get("ARCH")),
    )


@lru_cache(_REMEMBERED)
def shown_address(address: str) -> str:
    """A client's address without its zone; an IPv4-mapped IPv6 address as IPv4."""
    ip = client_ip(address)
    if ip is None:  # a Unix socket, for example
        return address[:_LONGEST_ADDRESS].encode("unicode_escape").decode("ascii")[:_LONGEST_ADDRESS]
    return str(ip)


def _plain(form: re.Pattern[str], text: str | None) -> str | None:
    return text if text is not None and form.fullmatch(text) else None
