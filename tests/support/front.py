"""Requests as a server hands them to the front."""

from __future__ import annotations

import time

from werkzeug.datastructures import Headers

from clamproxy.front import Caller, ClientRequest, Front
from clamproxy.messages import Response
from clamproxy.service import Service

CDN = "database.clamav.net"
CLIENT, OWN_ADDRESS, OWN_PORT = "192.0.2.7", "192.0.2.1", 8080


def caller(*, is_reverse: bool = False) -> Caller:
    """A new connection."""
    return Caller(CLIENT, OWN_ADDRESS, OWN_PORT, is_reverse=is_reverse)


def asked(
    url: str = f"http://{CDN}:80/daily.cvd",
    method: str = "GET",
    headers: Headers | None = None,
    by: Caller | None = None,
) -> ClientRequest:
    """A request for a URL with a port; for CONNECT a host and a port, for the origin form a path."""
    scheme, _, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    host, _, port = (authority or f"{OWN_ADDRESS}:{OWN_PORT}").rpartition(":")
    return ClientRequest(
        method=method,
        path=slash + path,
        headers=Headers() if headers is None else headers,
        scheme=scheme,
        host=host,
        port=int(port),
        caller=caller() if by is None else by,
        started_at=time.monotonic(),
    )


async def answer(service: Service, request: ClientRequest) -> Response:
    """The response of the whole application."""
    front = Front()
    front.install(service)
    return (await front.answer(request)).response
