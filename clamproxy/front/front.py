"""The front: what every request for the gateway itself goes through, whichever server received it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clamproxy.access.balancers import Balancers
from clamproxy.access.client_rates import LONGEST_PAUSE, ClientRates
from clamproxy.access.limits import ConnectionLimits
from clamproxy.access.users import Users
from clamproxy.config.settings import Settings
from clamproxy.front import refusals
from clamproxy.front.client_request import LARGEST_CONTENT, Caller, ClientRequest
from clamproxy.front.exchange import Exchange
from clamproxy.front.routing import Destination, Routing
from clamproxy.messages import Body, Response, Result
from clamproxy.objects import plain_path
from clamproxy.responses import complete
from clamproxy.service import Service
from clamproxy.waiting import wait_while
from clamproxy.web.pages import GUARDED
from clamproxy.web.sources import Place

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.1
"""In seconds."""
_FOR_READING = (Destination.DATABASES, Destination.FEED, Destination.FILES)
"""Destinations that know only GET and HEAD."""
_HTTPS = 443
_FAILURE = "internal error; see the gateway's log"
_JUST_CHANGED = "the configuration has just changed"
_NAMELESS = "1.1 clamproxy"
"""The Via field if there is no service, which would have its own name."""


class Front:
    """Makes the current service respond to requests. Event loop only; never sends 403 or 429.

    Source: docs/protocol.md, trap 20.

    Without a service, every response is 503.
    """

    def __init__(self) -> None:
        self.service: Service | None = None
        self.routing: Routing | None = None
        """Where requests go, by the service's configuration."""
        self.limits = ConnectionLimits(1, 1)
        """For the connections to all servers together."""
        self.balancers = Balancers()
        self._users = Users(())
        self._client_ca: Path | None = None
        self._rates = ClientRates()
        self._unanswered = 0

    def install(self, service: Service) -> None:
        """Make a service respond to requests from now on."""
        access = service.settings.access
        if self.service is None or access.users != self.service.settings.access.users:
            self._users = Users(access.users)
        self._client_ca = access.client_ca
        self._rates = service.surroundings.client_rates
        self.limits.in_all = access.max_connections
        self.limits.per_client = access.max_connections_per_client
        self.balancers.announcing, self.balancers.forwarding = access.proxy_protocol, access.forwarded_for
        self.service, self.routing = service, Routing(service.settings)

    def remove(self) -> None:
        self.service = self.routing = None

    @property
    def settings(self) -> Settings | None:
        return self.service.settings if self.service is not None else None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Find or send a response inside this context, so that `answered` waits for it."""
        self._unanswered += 1
        try:
            yield
        finally:
            self._unanswered -= 1

    async def answered(self, limit: float) -> None:
        """Wait until all requests are answered, but no longer than `limit` seconds."""
        await wait_while(lambda: self._unanswered, limit, LOOK_EVERY)

    def is_known(self, caller: Caller) -> bool:
        """Whether a client needn't authenticate: it has done so on this connection, or nobody has to."""
        if self._client_ca is not None and caller.certified_by == self._client_ca:
            return True
        return caller.known_to is self._users if self._users else self._client_ca is None

    def attribute(self, request: ClientRequest) -> ClientRequest:
        """Give a request that a balancer has forwarded the caller whose request it is.

        Inside a tunnel, all requests are those of the client that asked for it; only that client can
        set fields there.
        """
        caller, balancers = request.caller, self.balancers
        if not balancers.forwarding:
            return request
        if caller.tunnel is None and caller.forwarded_by is None and balancers.forwards(caller.address):
            client = balancers.client_of(caller.address, request.headers.getlist("X-Forwarded-For"))
            request.caller = replace(caller, address=client, forwarded_by=caller.address)
        return request

    # Answers

    def opens_at_once(self, request: ClientRequest) -> bool:
        """Admit a CONNECT without waiting for anything. `open_tunnel` decides the same, but costs more.

        Returns:
            Whether that is possible: then answer 200.
        """
        routing = self.routing
        try:
            return routing is not None and self.is_known(request.caller) and _opens(request, routing)
        except Exception:
            logger.exception("A request from %s failed.", request.caller.address)
            return False

    async def open_tunnel(self, request: ClientRequest) -> Exchange | None:
        """Admit or refuse a CONNECT.

        Returns:
            The refusal, to be sent and then ended. None: answer 200; the client needn't authenticate
            again inside the tunnel.
        """
        service, routing = self.service, self.routing
        if service is None or routing is None:
            return self._failed(request)
        known_to = request.caller.known_to
        try:
            if not routing.admits(request.caller):
                refusal = refusals.stranger(request.caller.address)
            elif not (self._certifies_inside(request, routing) or await self._admits(request)):
                refusal = self._unknown(is_proxy=True)
            elif not _opens(request, routing):
                request.caller.known_to = known_to  # there is no tunnel that it counts for
                refusal = refusals.no_tunnel(request.host, request.port)
            else:
                return None
        except Exception:
            logger.exception("A request from %s failed.", request.caller.address)
            return self._failed(request)
        return self._exchange(request, Destination.NOBODY, refusal, service)

    def answer_at_once(self, request: ClientRequest) -> Exchange | None:
        """Respond if the response is ready in memory; `answer` gives the same one, but costs more."""
        service, routing = self.service, self.routing
        if service is None or routing is None or not self.is_known(request.caller):
            return None
        try:
            if self._rates.delay_of(request.caller.address) > 0:
                return None
            if routing.destination(request) is not Destination.DATABASES:
                return None
            if refusals.unfit(request, service.pseudonym) is not None:
                return None
            response = service.gateway.answer_at_once(request)
        except Exception:
            logger.exception("A request from %s failed.", request.caller.address)
            return None
        return None if response is None else self._exchange(request, Destination.DATABASES, response, service)

    async def answer(self, request: ClientRequest) -> Exchange:
        """Respond to any request except those for hosts that are passed through, whatever happens.

        Must not be cancelled when the client leaves: others may be waiting for what it has begun.

        Returns:
            What to send, and then end. The sender also closes the source of a `Body`.
        """
        service, routing = self.service, self.routing
        if service is None or routing is None:
            return self._failed(request)
        try:
            destination = routing.destination(request)
            if not routing.admits(request.caller):
                response = refusals.stranger(request.caller.address)
            else:
                with service.in_use(), self.answering():
                    response = await self._response(request, destination, service)
        except Exception:
            logger.exception("A request from %s failed.", request.caller.address)
            return self._failed(request)
        return self._exchange(request, destination, response, service)

    async def pass_on(self, request: ClientRequest) -> Exchange | None:
        """Decide whether a request is forwarded to the host that it asks for.

        Returns:
            None: the host isn't passed through. If the result is PASSED, the request may go on, with
            `Service.via` added, Max-Forwards reduced by one, and without the fields that were meant for
            the gateway; the host's answer becomes the response. Any other response is to be sent.
        """
        service, routing = self.service, self.routing
        if service is None or routing is None:
            return self._failed(request)
        try:
            if routing.destination(request) is not Destination.PASSED:
                return None
            refusal = await self._refusal_to_pass(request, service)
        except Exception:
            logger.exception("A request from %s failed.", request.caller.address)
            return self._failed(request)
        if refusal is not None:
            return self._exchange(request, Destination.NOBODY, refusal, service)
        return Exchange(request, Destination.PASSED, Response(0, Result.PASSED), self._running)

    async def _refusal_to_pass(self, request: ClientRequest, service: Service) -> Response | None:
        if not await self._admits(request):
            return self._unknown(is_proxy=True)
        return refusals.loop(request, service.pseudonym) or refusals.last_stop(request)

    def unanswered(self, request: ClientRequest) -> Exchange:
        """The exchange for a request that ended before anything could answer it."""
        destination = self.routing.destination(request) if self.routing is not None else Destination.NOBODY
        return Exchange(request, destination, Response(0, Result.REFUSED), self._running)

    async def _response(self, request: ClientRequest, destination: Destination, service: Service) -> Response:
        if not (_is_open(request, destination, service) or await self._admits(request)):
            return self._unknown(is_proxy=not self._is_direct(request))
        if destination in _FOR_READING:
            if (refusal := refusals.unfit(request, service.pseudonym)) is not None:
                return refusal
            if (delay := self._rates.delay_of(request.caller.address)) > 0:
                await asyncio.sleep(min(delay, LONGEST_PAUSE))
        match destination:
            case Destination.DATABASES:
                return await service.gateway.handle(request)
            case Destination.FEED:
                return await service.feeds.handle(request)
            case Destination.FILES:
                return await service.site_files.handle(request, request.caller.address)
            case Destination.PAGES:
                caller = request.caller
                # A reverse port is not a proxy.
                place = Place(caller.own_address, None if caller.is_reverse else caller.own_port)
                return await service.pages.handle(request, peer=caller.address, place=place)
            case Destination.PASSED:
                # It was not PASSED when its head arrived, so there was a reload.
                return refusals.failure(_JUST_CHANGED)
            case _:
                return refusals.nobody(request.host)

    async def _admits(self, request: ClientRequest) -> bool:
        """Whether the client has authenticated, on this connection or with this request."""
        if self.is_known(request.caller):
            return True
        users = self._users
        if not users:  # only a certificate would do
            return False
        # freshclam sends a proxy's password only with CONNECT, not inside the tunnel
        # (docs/protocol.md 9.1, A6).
        field = "Authorization" if self._is_direct(request) else "Proxy-Authorization"
        # Content of any size stays in memory in the meantime, so a request with a lot must not queue.
        is_large = request.content_length > LARGEST_CONTENT
        known = await users.admit(request.headers.get(field), at_once=is_large)
        if known and request.method == "CONNECT":
            request.caller.known_to = users
        return known

    def _is_direct(self, request: ClientRequest) -> bool:
        return self.routing is not None and self.routing.is_direct(request)

    def _certifies_inside(self, request: ClientRequest, routing: Routing) -> bool:
        """Whether a client may present its certificate inside the tunnel that it asks for.

        Whoever has a password is checked here, and may go on without TLS.
        """
        is_ours = routing.destination(request) in (*_FOR_READING, Destination.PAGES)
        has_password = bool(self._users) and "Proxy-Authorization" in request.headers
        return self._client_ca is not None and request.port == _HTTPS and is_ours and not has_password

    def _unknown(self, *, is_proxy: bool) -> Response:
        return refusals.unknown_client(
            is_proxy=is_proxy, users=bool(self._users), certificates=self._client_ca is not None
        )

    def _failed(self, request: ClientRequest) -> Exchange:
        """The response to a request that can't be handled: whatever goes wrong, nothing is let through."""
        return self._exchange(request, Destination.NOBODY, refusals.failure(_FAILURE), self.service)

    def _exchange(
        self, request: ClientRequest, destination: Destination, response: Response, service: Service | None
    ) -> Exchange:
        complete(response, request.method, service.via if service is not None else _NAMELESS)
        exchange = Exchange(request, destination, response, self._running)
        address = request.caller.address
        if isinstance(response.body, Body):
            exchange.share = self._rates.share_of(address)
        else:
            self._rates.charge(address, len(response.body))
        return exchange

    def _running(self) -> Service | None:
        return self.service


def _opens(request: ClientRequest, routing: Routing) -> bool:
    """Open the tunnel that a client asks for, if it may lead there."""
    if not routing.admits_tunnel(request):
        return False
    request.caller.tunnel = request.host, request.port
    return True


def _is_open(request: ClientRequest, destination: Destination, service: Service) -> bool:
    """Whether no user is needed: for health checks, the set-up of clients, and pages guarded by a token."""
    if destination is not Destination.PAGES:
        return False
    has_token = service.settings.status.token is not None
    return has_token or plain_path(request.path) not in GUARDED
