"""What the hooks share: the service that runs at the moment, and where a request leads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

from mitmproxy import connection, http
from mitmproxy.proxy import mode_specs

from clamproxy.access.limits import ConnectionLimits
from clamproxy.access.users import Users
from clamproxy.config.settings import Settings
from clamproxy.config.units import normal_host
from clamproxy.proxy.heads import is_origin_form
from clamproxy.proxy.names import Names
from clamproxy.service import Service
from clamproxy.waiting import wait_while
from clamproxy.web.site import is_page, own_names

LOOK_EVERY = 0.1
"""Seconds."""


class Destination(Enum):
    """Who answers a request."""

    DATABASES = auto()
    """The cache of ClamAV's files."""
    PAGES = auto()
    """The pages about the gateway itself."""
    FEED = auto()
    """The cache of other feeds."""
    PASSED = auto()
    """The host itself: the request is forwarded as it is."""
    NOBODY = auto()


@dataclass(slots=True)
class Site:
    """The service, replaced as a whole at a reload, and what is kept meanwhile."""

    service: Service | None = None
    names: Names | None = None
    users: Users = field(default_factory=lambda: Users(()))
    limits: ConnectionLimits = field(default_factory=lambda: ConnectionLimits(1, 1))
    known_clients: set[str] = field(default_factory=set)
    """Connections, by id, on which the client has said who it is."""
    bodies: int = 0
    """Answers that are on their way from the disk."""

    def install(self, service: Service) -> None:
        """Have requests answered by a service from now on."""
        settings = service.settings
        access, serving = settings.access, settings.serving
        forwards = serving.other_names == "forward" and not settings.upstream.offline
        self.names = Names(settings.versions.domain, serving.databases, forwards)
        if self.service is None or access.users != self.service.settings.access.users:
            self.users = Users(access.users)
            self.known_clients.clear()
        self.limits.in_all = access.max_connections
        self.limits.per_client = access.max_connections_per_client
        self.service = service

    def is_known(self, client: str) -> bool:
        """Whether a client, by the id of its connection, need not say any more who it is."""
        return not self.users or client in self.known_clients

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While a body is on its way."""
        self.bodies += 1
        try:
            yield
        finally:
            self.bodies -= 1

    async def answered(self, limit: float) -> None:
        """Wait until all requests are answered, or for so many seconds."""
        await wait_while(lambda: self.bodies or (self.service and self.service.requests), limit, LOOK_EVERY)

    @property
    def settings(self) -> Settings | None:
        """The configuration that is in force."""
        return self.service.settings if self.service is not None else None

    def destination(self, request: http.Request, client: connection.Client) -> Destination:
        """Who answers a request.

        Whoever asks in origin form, outside a tunnel, takes the gateway for the server, by whatever name: it
        may be known by many, of a service, a container or a load balancer. Only an absolute form and a
        tunnel ask for a host.

        Args:
            request: its path does not count for CONNECT.
            client: its connection.
        """
        page = Destination.PAGES if is_page(request.path) else Destination.DATABASES
        is_own_name = self._is_own_name(request.host)
        if is_asked_itself(request, client) or is_own_port(request, client):
            return page
        if self.is_clamav(request.host, client):
            return page if is_own_name else Destination.DATABASES
        if self.service is not None and self.service.settings.feeds.covers(request.host):
            return Destination.FEED
        if self.passes_through(request.host, client):
            return Destination.PASSED
        return page if is_own_name else Destination.NOBODY

    def admits_tunnel(self, request: http.Request, client: connection.Client) -> bool:
        """Whether a CONNECT is answered with 200."""
        match self.destination(request, client):
            case Destination.NOBODY:
                return False
            case Destination.FEED | Destination.PASSED:
                return True
            case _:
                is_own = is_own_port(request, client) or self._is_own_name(request.host)
                return request.port in (80, 443) or is_own

    def is_clamav(self, host: str, client: connection.Client) -> bool:
        """Whether requests to a host are answered as the CDN's."""
        if is_reverse(client):
            return True
        return self.service is not None and self.service.settings.serving.is_clamav_host(host)

    def passes_through(self, host: str, client: connection.Client) -> bool:
        """Whether mitmproxy itself connects to a host for a client."""
        if self.service is None or self.is_clamav(host, client):
            return False
        settings = self.service.settings
        if self._is_status_host(host) or settings.feeds.covers(host):
            return False
        return settings.serving.passes_through(host) and not settings.upstream.offline

    def _is_status_host(self, host: str) -> bool:
        return self.service is not None and host.lower() == self.service.settings.status.host

    def _is_own_name(self, host: str) -> bool:
        return self.service is not None and normal_host(host) in own_names(self.service.settings)


def is_asked_itself(request: http.Request, client: connection.Client) -> bool:
    """Whether the client takes the gateway for the server, not for its proxy."""
    return is_reverse(client) or is_origin_form(request)


def is_own_port(request: http.Request, client: connection.Client) -> bool:
    """Whether the gateway itself is asked for through itself, as http_proxy has clients do."""
    return bool(request.port == client.sockname[1])


def is_reverse(client: connection.Client) -> bool:
    """Whether a client takes the gateway for the server itself, by a port of its own."""
    return isinstance(client.proxy_mode, mode_specs.ReverseMode)
