"""Translates between mitmproxy's types and those of the front."""

from __future__ import annotations

import time
from http import HTTPStatus
from weakref import WeakKeyDictionary

from mitmproxy import connection, http
from mitmproxy.proxy import mode_specs
from werkzeug.datastructures import Headers

from clamproxy.front import Caller, ClientRequest
from clamproxy.messages import Body, Response


class Callers:
    """The callers behind mitmproxy's connections."""

    def __init__(self) -> None:
        self._callers: WeakKeyDictionary[connection.Client, Caller] = WeakKeyDictionary()

    def of(self, client: connection.Client) -> Caller:
        """The caller of a connection; the same object until the connection becomes a forwarded tunnel."""
        caller = self._callers.get(client)
        if caller is None:
            caller = Caller(client.peername[0], *client.sockname[:2], is_reverse=_is_reverse(client))
            self._callers[client] = caller
        return caller

    def enter_tunnel(self, client: connection.Client, caller: Caller) -> None:
        """From now on, a connection belongs to the caller that asked for the tunnel."""
        self._callers[client] = caller


def asked_of(request: http.Request, caller: Caller) -> ClientRequest:
    return ClientRequest(
        method=_method(request),
        path=request.path,
        headers=Headers([(_text(name), _text(value)) for name, value in request.headers.fields]),
        scheme=request.scheme,
        host=request.host,
        port=request.port,
        caller=caller,
        started_at=time.monotonic(),
    )


def response_of(response: Response) -> http.Response:
    """Turn a response into mitmproxy's, without its body if that is sent from disk."""
    return http.Response(
        http_version=b"HTTP/1.1",
        status_code=response.status,
        reason=HTTPStatus(response.status).phrase.encode(),
        headers=http.Headers([(name.encode(), value.encode()) for name, value in response.headers]),
        content=b"" if isinstance(response.body, Body) else response.body,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def _is_reverse(client: connection.Client) -> bool:
    return isinstance(client.proxy_mode, mode_specs.ReverseMode)


def _text(raw: bytes) -> str:
    """Replace line ends, which HTTP/2 lets through, by spaces, as RFC 9110 5.5 requires of a recipient."""
    return raw.decode("latin-1").replace("\r", " ").replace("\n", " ")


def _method(request: http.Request) -> str:
    """The method as it was sent; mitmproxy converts it to upper case, but case matters (RFC 9110 9.1)."""
    return _text(request.data.method)
