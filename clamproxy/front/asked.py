"""What is asked: a request as it reached the gateway, and the connection that it came by."""

from __future__ import annotations

from dataclasses import dataclass, field

from clamproxy.access.users import Users
from clamproxy.messages import Request

LARGEST_CONTENT = 64 * 1024
"""Bytes of a request's content that are read before it is refused."""


@dataclass(slots=True, eq=False)
class Caller:
    """The connection that requests come by; one object for as long as it lasts."""

    address: str
    """The client's IP address, as its socket gives it."""
    own_address: str
    """Where it has reached the gateway: the name of its socket at this end."""
    own_port: int
    is_reverse: bool = False
    """Whether it came to a port on which the gateway is the server, not a proxy."""
    tunnel: tuple[str, int] | None = None
    """Where its CONNECT leads, once that was admitted: the front notes it for the server."""
    known_to: Users | None = field(default=None, repr=False)
    """The users among whom it named itself with its CONNECT; others may be in force by now."""


@dataclass(slots=True, kw_only=True)
class Asked(Request):
    """A request, as it reached the gateway.

    Without a scheme it came in origin form and outside a tunnel: such a request is for the gateway itself,
    whatever its Host. Inside a tunnel, scheme, host and port are the tunnel's; CONNECT has no scheme.
    """

    caller: Caller
    started_at: float
    """When its head was complete, by the monotonic clock."""

    @property
    def is_for_gateway(self) -> bool:
        """Whether the gateway itself is asked for: as a server, or through itself, as http_proxy has it."""
        caller = self.caller
        return (
            caller.is_reverse or self.port == caller.own_port or not (self.scheme or self.method == "CONNECT")
        )

    @property
    def is_direct(self) -> bool:
        """Whether the client takes the gateway for the server, not for its proxy."""
        return self.method != "CONNECT" and self.is_for_gateway

    @property
    def content_length(self) -> int:
        """Bytes of content that are announced; 0 if they come in chunks."""
        text = self.headers.get("Content-Length", "0")
        return int(text) if text.isascii() and text.isdigit() else 0
