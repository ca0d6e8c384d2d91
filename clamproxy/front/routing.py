"""Where requests go: who responds to them, and which tunnels open. Pure, except for the machine's name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from clamproxy.config.settings import Settings
from clamproxy.config.units import normal_host
from clamproxy.front.client_request import Caller, ClientRequest
from clamproxy.site_files.site_files import is_file_path
from clamproxy.web.pages import is_page, own_names

TUNNEL_PORTS = (80, 443)
"""The ports of ClamAV's hosts."""


class Destination(Enum):
    """Who responds to a request."""

    DATABASES = auto()
    """The cache of ClamAV's files."""
    PAGES = auto()
    """The pages about the gateway itself."""
    FILES = auto()
    """The site's own files."""
    FEED = auto()
    """The cache of other feeds."""
    PASSED = auto()
    """The host itself, to which the request is forwarded unchanged."""
    NOBODY = auto()


@dataclass(frozen=True, slots=True)
class Routing:
    """The decisions that follow from a configuration."""

    settings: Settings

    def destination(self, request: ClientRequest) -> Destination:
        """Who responds to a request.

        A request in origin form, outside a tunnel, is for the gateway itself, whatever its Host says: the
        gateway may be known by many names, of a service, a container or a load balancer. Only the
        absolute form and tunnels ask for a host.
        """
        if not self.admits(request.caller):
            return Destination.NOBODY
        own = _own_destination(request.path)
        if self.is_for_gateway(request):
            return own
        if self.settings.serving.is_clamav_host(request.host):
            return own if self._is_own_name(request.host) else Destination.DATABASES
        if self.settings.feeds.covers(request.host):
            return Destination.FEED
        if self.passes_through(request.host, is_reverse=request.caller.is_reverse):
            return Destination.PASSED
        return own if self._is_own_name(request.host) else Destination.NOBODY

    def admits(self, caller: Caller) -> bool:
        """Whether a client that a balancer names may use the gateway; others were admitted at the door."""
        return caller.forwarded_by is None or self.settings.serving.admits(caller.address)

    def is_for_gateway(self, request: ClientRequest) -> bool:
        """Whether a request is for the gateway itself, which clients may also reach through their http_proxy.

        On the gateway's own port, any host that is asked for counts as a name of the gateway, except those
        that the configuration names as others.
        """
        is_own_port = request.port == request.caller.own_port
        return not request.asks_for_host or (is_own_port and not self._is_named_as_other(request))

    def is_direct(self, request: ClientRequest) -> bool:
        """Whether the client takes the gateway for the server rather than its proxy."""
        return request.method != "CONNECT" and self.is_for_gateway(request)

    def admits_tunnel(self, request: ClientRequest) -> bool:
        """Whether a CONNECT is answered with 200."""
        match self.destination(request):
            case Destination.NOBODY:
                return False
            case Destination.FEED | Destination.PASSED:
                return True
            case _:
                return request.port in (*TUNNEL_PORTS, request.caller.own_port) or self._is_own_name(
                    request.host
                )

    def passes_through(self, host: str, *, is_reverse: bool) -> bool:
        """Whether the gateway connects a client to a host itself.

        Args:
            host: without port.
            is_reverse: whether the client came to a port on which the gateway is the server.
        """
        settings = self.settings
        if is_reverse or settings.serving.is_clamav_host(host) or settings.feeds.covers(host):
            return False
        if host.lower() == settings.status.host:
            return False
        return settings.serving.passes_through(host) and not settings.upstream.offline

    def may_lead_to(self, host: str, address: str) -> bool:
        """Whether a host that is passed through may have an address of this machine, or of its link.

        It may if it is this machine by its name, or if the address is passed through as well.
        """
        is_this = normal_host(host) == "localhost" or self._is_own_name(host)
        return is_this or self.settings.serving.passes_through(address)

    def _is_named_as_other(self, request: ClientRequest) -> bool:
        """Whether the host is a feed's or in `serving.pass_through`, and is not this machine.

        A pattern in `serving.pass_through` doesn't count: it may cover names of the gateway, too.
        """
        settings, host = self.settings, normal_host(request.host)
        if not (settings.feeds.covers(host) or host in settings.serving.pass_through):
            return False
        is_this = host in ("localhost", request.caller.own_address) or self._is_own_name(host)
        return not (is_this or settings.serving.is_clamav_host(host))

    def _is_own_name(self, host: str) -> bool:
        return normal_host(host) in own_names(self.settings)


def _own_destination(path: str) -> Destination:
    """Who responds to a request for the gateway itself."""
    if is_page(path):
        return Destination.PAGES
    return Destination.FILES if is_file_path(path) else Destination.DATABASES
