"""Connections of clients: who may have one, how many, and what is spoken on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mitmproxy import connection, tls
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.layers import DNSLayer, TCPLayer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode

from clamproxy.front import Caller, Front, log_tunnel
from clamproxy.messages import Result
from clamproxy.proxy import names, stream
from clamproxy.proxy.heads import HeadLimits
from clamproxy.proxy.translation import Callers

logger = logging.getLogger(__name__)


class Clients:
    """The hooks that concern connections."""

    def __init__(
        self, front: Front, callers: Callers, current_names: Callable[[], names.Names | None]
    ) -> None:
        self._front = front
        self._callers = callers
        self._names = current_names
        self._counted: dict[str, str] = {}
        """The address of each connection that counts, by its id."""
        self._reached: str | None = None
        """The limit that was reached last, so that a crowd is one line in the log."""

    def client_connected(self, client: connection.Client) -> None:
        """Close the connection of whoever may not have one."""
        address = client.peername[0]
        settings = self._front.settings
        if settings is None or not settings.serving.admits(address):
            logger.warning("%s is not in serving.clients: connection closed.", address)
            client.error = "not in serving.clients"
            return
        if names.is_dns(client):
            names.guard(client)
        if client.transport_protocol == "tcp":
            self._count(client, address)

    def client_disconnected(self, client: connection.Client) -> None:
        """Forget a connection."""
        stream.close(client)
        address = self._counted.pop(client.id, None)
        if address is not None:
            self._front.limits.leave(address)
            self._reached = None

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """TLS of hosts that are passed through is not intercepted."""
        address, caller = data.context.server.address, self._callers.of(data.context.client)
        service = self._front.service
        if address is None or service is None or not self._front.is_known(caller):
            return
        if self._passes_through(address[0], caller):
            data.ignore_connection = True
            service.stats.count_request(Result.PASSED, 0)
            log_tunnel(caller.address, *address[:2])

    def next_layer(self, next_layer: layer.NextLayer) -> None:
        """Choose as mitmproxy does, then have bodies sent from disk and heads limited."""
        stream.choose_layer(next_layer)
        if next_layer.layer is not None and isinstance(next_layer.layer, TCPLayer | DNSLayer):
            # Nothing is ever tunnelled blindly: what is neither TLS nor HTTP gets a 400.
            next_layer.layer = HttpLayer(next_layer.context, HTTPMode.transparent)
        stream.install(next_layer.layer, self._head_limits())

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        """The last guard: mitmproxy itself connects to hosts that are passed through, and to none else."""
        address = data.server.address
        if names.is_dns(data.client):
            known = self._names()
            if known is None or not known.allows(address):
                data.server.error = "serving.other_names is refuse"
        elif address is None or not self._passes_through(address[0], self._callers.of(data.client)):
            data.server.error = "not in serving.pass_through"

    def _passes_through(self, host: str, caller: Caller) -> bool:
        """Whether mitmproxy itself connects to a host for a client."""
        routing = self._front.routing
        return routing is not None and routing.passes_through(host, is_reverse=caller.is_reverse)

    def _count(self, client: connection.Client, address: str) -> None:
        limit = self._front.limits.take(address)
        if limit is None:
            self._counted[client.id] = address
            return
        client.error = f"{limit} is reached"
        if limit != self._reached:
            logger.warning("%s is reached: a connection of %s is closed; others may be, too.", limit, address)
            self._reached = limit

    def _head_limits(self) -> HeadLimits:
        settings = self._front.settings
        if settings is None:
            return HeadLimits()
        access = settings.access
        return HeadLimits(access.max_request_line, access.max_header_size, access.idle_timeout)
