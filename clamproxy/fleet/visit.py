"""Visits: one answered request on a ClamAV host, as far as the fleet is concerned."""

from __future__ import annotations

from dataclasses import dataclass

from clamproxy.objects import Target


@dataclass(slots=True)  # not frozen: that would be the larger part of what a visit costs the event loop
class Visit:
    """A request and what became of it. Nothing in it is trusted but what the gateway itself says."""

    address: str
    """Of the client, as a socket gives it."""
    user_agent: str | None
    """The field as it was sent: anything, of any length."""
    target: Target | None
    """What the path asked for; None if it is no file of ClamAV's."""
    range_probe: bool
    """Whether only a part was asked for: the header of a CVD or CLD (protocol.md 1.3)."""
    if_modified_since: str | None
    """The field as it was sent: for freshclam the build time of its own version (protocol.md 1.1)."""
    status: int
    """Of the answer."""
    version: int | None
    """The version that the answer was about; None if it was about none."""
    length: int
    """Bytes of content that were sent."""
    complete: bool
    """Whether the answer reached its end."""
    at: float
    """When it did, in Unix seconds."""
    method: str = "GET"
    """freshclam sends nothing but GET; HEAD comes from monitoring (trap 31)."""
    head: bytes = b""
    """The first bytes of the answer where they are in memory: a probe's tell the build time."""
    is_relayed: bool = False
    """Whether another gateway asks: in a client's name, but for what it wants itself."""
