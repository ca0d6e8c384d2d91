"""Visits: requests to a ClamAV host that have been answered, as far as they matter to the fleet."""

from __future__ import annotations

from dataclasses import dataclass

from clamproxy.objects import Target


@dataclass(slots=True)  # not frozen: that would cost the event loop more than the rest of a visit
class Visit:
    """A request and what became of it. Only what the gateway itself says in it can be trusted."""

    address: str
    """The client's address, as the socket gives it."""
    user_agent: str | None
    """The User-Agent field as the client sent it: anything, of any length."""
    target: Target | None
    """What the path asks for; None if it is not one of ClamAV's files."""
    range_probe: bool
    """Whether only a part was asked for, such as the header of a CVD or CLD (docs/protocol.md 1.3)."""
    if_modified_since: str | None
    """The field If-Modified-Since as sent: for freshclam, its own version's build time
    (docs/protocol.md 1.1)."""
    status: int
    """Status code of the response."""
    version: int | None
    """The version that the response was about; None if it was about none."""
    length: int
    """Bytes of content sent."""
    complete: bool
    """Whether the response was sent to its end."""
    at: float
    """When the response ended, in Unix seconds."""
    method: str = "GET"
    """freshclam sends only GET; HEAD comes from monitoring (trap 31)."""
    head: bytes = b""
    """The first bytes of the response if they are in memory: those of a probe tell the build time."""
    is_held_back: bool = False
    """Whether it got a 404 for a version that a hold or a delay hides from it."""
    is_relayed: bool = False
    """Whether another gateway sent the request: in a client's name, but for its own needs."""
