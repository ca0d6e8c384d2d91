"""Clients' connections: who may have one, and which protocol it carries."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from mitmproxy import connection, tls
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.layers import DNSLayer, TCPLayer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode

from clamproxy.front import Caller, Front, log_tunnel
from clamproxy.guarded_addresses import describe, find_guarded, is_guarded
from clamproxy.messages import Result
from clamproxy.proxy import dns_queries, stream
from clamproxy.proxy.client_trust import certified_by
from clamproxy.proxy.header_limits import HeadLimits
from clamproxy.proxy.translation import Callers

logger = logging.getLogger(__name__)


class Clients:
    """The hooks that concern connections."""

    def __init__(
        self, front: Front, callers: Callers, current_names: Callable[[], dns_queries.Names | None]
    ) -> None:
        self._front = front
        self._callers = callers
        self._names = current_names

    def client_connected(self, client: connection.Client) -> None:
        """Close connections that aren't allowed and came through no door, such as DNS over UDP."""
        address = client.peername[0]
        settings = self._front.settings
        if settings is None or not settings.serving.admits(address):
            logger.warning("%s is not in serving.clients: connection closed.", address)
            client.error = "not in serving.clients"
        elif dns_queries.is_dns(client):
            dns_queries.guard(client)
        elif (tls := stream.tls_of_lane(client)) is not None:
            self._callers.of(client).certified_by = certified_by(tls)

    def client_disconnected(self, client: connection.Client) -> None:
        """Close the connection, in case mitmproxy forgot to."""
        stream.close(client)

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Leave TLS with hosts that are passed through alone."""
        address, caller = data.context.server.address, self._callers.of(data.context.client)
        service = self._front.service
        if address is None or service is None or not self._front.is_known(caller):
            return
        if self._passes_through(address[0], caller):
            data.ignore_connection = True
            stream.leave_time(data.context.client)
            service.stats.count_request(Result.PASSED, 0)
            log_tunnel(caller.address, *address[:2])

    def tls_established_client(self, data: tls.TlsData) -> None:
        """Note that the client has presented a certificate, if it had to."""
        if data.ssl_conn is not None:
            self._callers.of(data.context.client).certified_by = certified_by(data.ssl_conn)

    def next_layer(self, next_layer: layer.NextLayer) -> None:
        """Choose as mitmproxy does, then make the layers send bodies from disk and limit heads."""
        stream.choose_layer(next_layer)
        if next_layer.layer is not None and isinstance(next_layer.layer, TCPLayer | DNSLayer):
            # Nothing is tunnelled blindly: a protocol other than TLS and HTTP gets a 400.
            next_layer.layer = HttpLayer(next_layer.context, HTTPMode.transparent)
        stream.install(next_layer.layer, self._head_limits())

    async def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        """The last guard: mitmproxy itself may connect only to hosts that are passed through."""
        data.server.error = "the gateway has an error"  # or mitmproxy would connect if the next lines failed
        refusal = self._refusal(data)
        if refusal is None and data.server.address is not None and not dns_queries.is_dns(data.client):
            host, port = data.server.address[:2]
            found = await find_guarded(host, port, partial(self._may_lead_to, host))
            refusal = describe(host, found) if found is not None else None
        data.server.error = refusal

    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        """Cut the connection if the name leads elsewhere than a moment ago, before anything is sent."""
        address, peer = data.server.address, data.server.peername
        if address is None or peer is None or dns_queries.is_dns(data.client):
            return
        if is_guarded(peer[0]) and not self._may_lead_to(address[0], peer[0]):
            logger.warning("%s.", describe(address[0], peer[0]))
            stream.cut(data.client, data.server)

    def _refusal(self, data: server_hooks.ServerConnectionHookData) -> str | None:
        """Why mitmproxy may not connect to a server; None if it may."""
        address = data.server.address
        if dns_queries.is_dns(data.client):
            known = self._names()
            is_allowed = known is not None and known.allows(address)
            return None if is_allowed else "serving.other_names is refuse"
        if address is None or not self._passes_through(address[0], self._callers.of(data.client)):
            return "not in serving.pass_through"
        return None

    def _may_lead_to(self, host: str, address: str) -> bool:
        routing = self._front.routing
        return routing is not None and routing.may_lead_to(host, address)

    def _passes_through(self, host: str, caller: Caller) -> bool:
        """Whether mitmproxy itself connects to a host for a client."""
        routing = self._front.routing
        return routing is not None and routing.passes_through(host, is_reverse=caller.is_reverse)

    def _head_limits(self) -> HeadLimits:
        settings = self._front.settings
        if settings is None:
            return HeadLimits()
        access = settings.access
        return HeadLimits(access.max_request_line, access.max_header_size, access.idle_timeout)
