"""What mitmproxy can't read, whether from clients or from hosts that are passed through."""

from __future__ import annotations

import re

from h11 import Data, EndOfMessage
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers import ClientTLSLayer, http
from mitmproxy.proxy.layers.http import _http1
from mitmproxy.proxy.layers.tls import TLSLayer
from mitmproxy.proxy.tunnel import TunnelState

_INTERIM = re.compile(rb"(?:HTTP/1\.[0-9] 1(?!01)[0-9]{2}[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n)+")
"""The heads of 1xx responses, except 101."""


def install() -> None:
    """Make mitmproxy use these classes for all connections from now on."""
    setattr(_http1, "ChunkedReader", _UntrailedReader)  # noqa: B010  (mypy takes it for the name of a class)
    setattr(http, "Http1Client", _FinalClient)  # noqa: B010
    setattr(ClientTLSLayer, "receive_data", _receive_unless_over)  # noqa: B010


class _UntrailedReader(ChunkedReader):
    """Drops trailers, as RFC 9110 6.5.1 allows, because mitmproxy fails on them."""

    def __call__(self, buf: ReceiveBuffer) -> Data | EndOfMessage | None:
        event = super().__call__(buf)
        return EndOfMessage() if isinstance(event, EndOfMessage) else event


class _FinalClient(_http1.Http1Client):
    """Drops 1xx responses, which mitmproxy takes for the final one (RFC 9110 15.2).

    Nobody asked for them: Expect is answered before a request is forwarded.
    """

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, events.DataReceived) and (interim := _INTERIM.match(bytes(self.buf))):
            self.buf.maybe_extract_at_most(interim.end())
        yield from super().read_headers(event)


def _receive_unless_over(self: ClientTLSLayer, data: bytes) -> layer.CommandGenerator[None]:
    """Drop what arrives after a handshake has failed: mitmproxy may have no TLS to give it to."""
    if self.tunnel_state is not TunnelState.CLOSED:
        yield from TLSLayer.receive_data(self, data)
