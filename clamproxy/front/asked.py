"""Requests as they reach the gateway, and the connections that they come by."""

from __future__ import annotations

from dataclasses import dataclass, field

from clamproxy.access.users import Users
from clamproxy.messages import Request

LARGEST_CONTENT = 64 * 1024
"""Bytes of a request's content that are read before it is refused."""


@dataclass(slots=True, eq=False)
class Caller:
    """A client's connection; one object for as long as it lasts."""

    address: str
    """The client's IP address, as its socket gives it."""
    own_address: str
    """The address at which it has reached the gateway, as its socket gives it."""
    own_port: int
    is_reverse: bool = False
    """Whether it came to a port on which the gateway is the server, not a proxy."""
    tunnel: tuple[str, int] | None = None
    """Host and port of its CONNECT, once that was admitted. The front sets it for the server."""
    known_to: Users | None = field(default=None, repr=False)
    """The users that its CONNECT was checked against. A reload may have brought others since."""


@dataclass(slots=True, kw_only=True)
class Asked(Request):
    """A request, as it reached the gateway.

    One without a scheme came in origin form and outside a tunnel. It is for the gateway itself, whatever its
    Host says. Inside a tunnel, scheme, host and port are those of the tunnel. CONNECT has no scheme.
    """

    caller: Caller
    started_at: float
    """When its head was complete, by the monotonic clock."""

    @property
    def is_for_gateway(self) -> bool:
        """Whether it is for the gateway itself, which a client may also ask for by way of its http_proxy."""
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
        """Bytes of content that the head announces; 0 if they come in chunks."""
        text = self.headers.get("Content-Length", "0")
        return int(text) if text.isascii() and text.isdigit() else 0
