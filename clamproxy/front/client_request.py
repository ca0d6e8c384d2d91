"""Requests as they reach the gateway, and the connections over which they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from werkzeug.datastructures import Headers

from clamproxy.access.users import Users
from clamproxy.messages import Request

LARGEST_CONTENT = 64 * 1024
"""How many bytes of a request's content are read before it is refused."""
_LONGEST_NUMBER = 18
"""Digits of a length that are looked at; that many are too much in any case."""


@dataclass(slots=True, eq=False)
class Caller:
    """A client's connection; one object for as long as it lasts, unless clients of a balancer share it."""

    address: str
    """The client's IP address, as its socket or a balancer gives it."""
    own_address: str
    """The address at which it reached the gateway, as its socket gives it."""
    own_port: int
    is_reverse: bool = False
    """Whether it came to a port on which the gateway is the server, not a proxy."""
    tunnel: tuple[str, int] | None = None
    """Host and port of its CONNECT, once that was admitted. The front sets it for the server."""
    certified_by: Path | None = None
    """The `access.client_ca` by which its certificate was verified in the handshake, if it was."""
    forwarded_by: str | None = None
    """The balancer that gave the client's address in X-Forwarded-For; None if the connection is the client's.
    A balancer may send the requests of many clients on one connection: each request has its own caller."""
    known_to: Users | None = field(default=None, repr=False)
    """The users that its CONNECT was checked against. A reload may have installed others since."""


class ClientRequest(Request):
    """A request, as it reached the gateway.

    A request without a scheme came in origin form and outside a tunnel. It is for the gateway itself,
    whatever its Host says. Inside a tunnel, scheme, host and port are the tunnel's. CONNECT has no
    scheme.

    Args:
        caller: the connection that it came by.
        started_at: when its head was complete, in monotonic seconds.
    """

    __slots__ = ("caller", "started_at")

    def __init__(
        self,
        method: str,
        path: str,
        headers: Headers | Sequence[tuple[str, str]],
        scheme: str,
        host: str,
        port: int,
        *,
        caller: Caller,
        started_at: float,
    ) -> None:
        super().__init__(method, path, headers, scheme, host, port)
        self.caller = caller
        self.started_at = started_at

    @property
    def address(self) -> str:
        return self.caller.address

    @property
    def asks_for_host(self) -> bool:
        """Whether the client has named a host, taking the gateway for its proxy."""
        return not self.caller.is_reverse and bool(self.scheme or self.method == "CONNECT")

    @property
    def content_length(self) -> int:
        """How many bytes of content the head announces; 0 if the content is chunked."""
        text = self.headers.get("Content-Length", "0")
        is_number = text.isascii() and text.isdigit()
        return int(text[:_LONGEST_NUMBER]) if is_number else 0
