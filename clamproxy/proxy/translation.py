"""Between mitmproxy's types and the front's."""

from __future__ import annotations

import time
from http import HTTPStatus
from weakref import WeakKeyDictionary

from mitmproxy import connection, http
from mitmproxy.proxy import mode_specs
from werkzeug.datastructures import Headers

from clamproxy.front import Asked, Caller
from clamproxy.messages import Body, Reply


class Callers:
    """The callers behind mitmproxy's connections."""

    def __init__(self) -> None:
        self._callers: WeakKeyDictionary[connection.Client, Caller] = WeakKeyDictionary()

    def of(self, client: connection.Client) -> Caller:
        """The same one as long as the connection lasts."""
        caller = self._callers.get(client)
        if caller is None:
            caller = Caller(client.peername[0], *client.sockname[:2], is_reverse=_is_reverse(client))
            self._callers[client] = caller
        return caller


def asked_of(request: http.Request, caller: Caller) -> Asked:
    """A request as the front takes it."""
    return Asked(
        method=_method(request),
        path=request.path,
        headers=Headers([(_text(name), _text(value)) for name, value in request.headers.fields]),
        scheme=request.scheme,
        host=request.host,
        port=request.port,
        caller=caller,
        started_at=time.monotonic(),
    )


def response_of(reply: Reply) -> http.Response:
    """A reply as mitmproxy takes it; without its body, if that comes from disk."""
    return http.Response(
        http_version=b"HTTP/1.1",
        status_code=reply.status,
        reason=HTTPStatus(reply.status).phrase.encode(),
        headers=http.Headers([(name.encode(), value.encode()) for name, value in reply.headers]),
        content=b"" if isinstance(reply.body, Body) else reply.body,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )


def _is_reverse(client: connection.Client) -> bool:
    return isinstance(client.proxy_mode, mode_specs.ReverseMode)


def _text(raw: bytes) -> str:
    """As RFC 9110 5.5 has a recipient do: by HTTP/2 line ends can come in a value."""
    return raw.decode("latin-1").replace("\r", " ").replace("\n", " ")


def _method(request: http.Request) -> str:
    """As it was sent: mitmproxy shows all in upper case, but RFC 9110 9.1 has ``get`` be another method."""
    return _text(request.data.method)
