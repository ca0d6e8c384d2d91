"""Requests and their answers: hooks that translate between mitmproxy and who answers."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from mitmproxy import http
from mitmproxy.net.http.url import hostport
from werkzeug.datastructures import Headers

from clamproxy.feeds import FeedRequest
from clamproxy.messages import CACHE_STATUS, Body, Reply, Request, Result
from clamproxy.objects import plain_path
from clamproxy.proxy import stream
from clamproxy.proxy.exchange import Exchange, exchange_of
from clamproxy.proxy.heads import LARGEST_REQUEST_BODY, TOO_LARGE, drop_hop_by_hop
from clamproxy.proxy.site import Destination, Site, is_asked_itself, is_own_port, is_reverse
from clamproxy.service import Service
from clamproxy.web.site import GUARDED
from clamproxy.web.sources import Place

logger = logging.getLogger(__name__)

FREEZING = (403, 429)
"""One of these stops a freshclam for hours, official databases included (trap 20)."""
_FAILURE = "the gateway has an error; see its log"
_CHALLENGE = 'Basic realm="clamproxy"'


class Requests:
    """The hooks that concern requests."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        """Refuse tunnels to foreign hosts, and to who doesn't say who it is."""
        if flow.response is not None:
            return
        try:
            await self._admit_tunnel(flow)
        except Exception:
            # mitmproxy would log it and open the tunnel.
            self._fail(flow)

    async def _admit_tunnel(self, flow: http.HTTPFlow) -> None:
        service = self._site.service
        if service is None:
            flow.response = _failure()
        elif not await self._is_known(flow):
            self._refuse(flow, service, _unknown_client(service, is_proxy=True))
        elif not self._site.admits_tunnel(flow.request, flow.client_conn):
            reason = f"no tunnel to {flow.request.host}:{flow.request.port}"
            self._refuse(flow, service, service.gateway.refuse(502, reason))

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Stream what is passed through; no other request has a body to speak of."""
        service = self._site.service
        try:
            if service is not None and flow.response is None:
                await self._admit_passed(flow, service)
        except Exception:
            # mitmproxy would log it and forward the request.
            self._fail(flow)
        if not flow.request.stream and _content_length(flow.request) > LARGEST_REQUEST_BODY:
            # mitmproxy would read all of it into memory before the answer, be it a refusal.
            flow.metadata[TOO_LARGE] = True

    async def _admit_passed(self, flow: http.HTTPFlow, service: Service) -> None:
        destination = self._site.destination(flow.request, flow.client_conn)
        if destination is not Destination.PASSED:
            return
        if not await self._is_known(flow):
            self._refuse(flow, service, _unknown_client(service, is_proxy=True))
        elif service.gateway.is_loop(_headers(flow)):
            self._refuse(flow, service, service.gateway.refuse(502, "loop"))
        elif not _count_down(flow.request):
            self._refuse(flow, service, _last_stop(service, flow.request.method))
        else:
            Exchange.begin(flow, destination).result = Result.PASSED
            flow.request.headers.pop("Proxy-Authorization", None)
            drop_hop_by_hop(flow.request.headers)
            _name_host(flow.request)
            flow.request.headers.add("Via", service.gateway.via)
            flow.request.stream = True

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answer, or leave it to mitmproxy to forward."""
        # A response is there already if it has been refused.
        if flow.response or flow.error or not flow.live:
            return
        try:
            await self._answer(flow)
        except Exception:
            # mitmproxy would log it and forward the request, wherever to.
            self._fail(flow)

    async def _answer(self, flow: http.HTTPFlow) -> None:
        service = self._site.service
        if service is None:
            flow.response = _failure()
            return
        destination = self._site.destination(flow.request, flow.client_conn)
        exchange = exchange_of(flow)
        if exchange is not None and exchange.result is Result.PASSED:
            return
        exchange = Exchange.begin(flow, destination)
        if destination is Destination.PASSED:
            # It was not when the head came: the configuration has changed since, nobody has looked at this.
            exchange.result, exchange.reason = Result.ERROR, "the configuration has just changed"
            flow.response = _failure()
            return
        with service.in_use():
            if _is_open(flow, service, destination) or await self._is_known(flow):
                reply = await self._reply(flow, service, destination)
            else:
                reply = _unknown_client(service, is_proxy=not self._is_direct(flow))
        exchange.take(reply)
        _set_response(flow, reply)

    async def _reply(self, flow: http.HTTPFlow, service: Service, destination: Destination) -> Reply:
        request, headers = flow.request, _headers(flow)
        match destination:
            case Destination.DATABASES:
                return await service.gateway.handle(Request(_method(request), request.path, headers))
            case Destination.PAGES:
                return await self._page(flow, service)
            case Destination.FEED:
                url = f"{request.scheme}://{request.host}:{request.port}{request.path}"
                return await service.feeds.handle(FeedRequest(url, _method(request), headers))
            case _:
                place = "is not in serving.hosts, feeds.hosts or serving.pass_through"
                hint = "if it is the gateway itself, put it in tls.names"
                return service.gateway.refuse(502, f"{request.host} {place}; {hint}")

    async def _page(self, flow: http.HTTPFlow, service: Service) -> Reply:
        request, client = flow.request, flow.client_conn
        asked = Request(_method(request), request.path, _headers(flow))
        # A reverse port is no proxy.
        place = Place(client.sockname[0], None if is_reverse(client) else client.sockname[1])
        reply = await service.pages.handle(asked, peer=client.peername[0], place=place)
        reply.headers["Via"] = service.gateway.via
        return reply

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Stream what is passed through."""
        exchange, service = exchange_of(flow), self._site.service
        if exchange is not None and exchange.result is Result.PASSED and flow.response is not None:
            flow.response.stream = exchange.count_passed
            flow.response.headers["Cache-Status"] = CACHE_STATUS[Result.PASSED]
            if service is not None:
                flow.response.headers.add("Via", service.gateway.via)
            if flow.response.status_code in FREEZING and _is_freshclam(flow.request):
                flow.response.status_code, flow.response.reason = 503, "Service Unavailable"

    def response(self, flow: http.HTTPFlow) -> None:
        """An answer goes out; one with a body from disk is accounted for at its end."""
        exchange = exchange_of(flow)
        if stream.job_of(flow) is None and flow.response is not None and exchange is not None:
            self._account(flow, exchange.passed or len(flow.response.raw_content or b""))

    def error(self, flow: http.HTTPFlow) -> None:
        """The client left, or the body could not be sent to its end."""
        job, exchange = stream.job_of(flow), exchange_of(flow)
        if exchange is None:
            # Before anybody has looked at it: its content did not come, or was too much.
            exchange = Exchange.begin(flow, self._site.destination(flow.request, flow.client_conn))
        if job is not None:
            job.body.source.close()
        self._account(flow, job.sent if job else exchange.passed, flow.error.msg if flow.error else "")

    async def send_body(self, job: stream.BodyJob) -> None:
        """Called by `stream.SendBodyHook`."""
        with self._site.sending():
            await stream.send_body(job)
        self._account_job(job)

    async def read_piece(self, job: stream.BodyJob) -> None:
        """Called by `stream.ReadPieceHook`."""
        await stream.read_piece(job)
        if job.error is None and job.sent + len(job.piece) == job.body.length:
            self._account_job(job)

    # Helpers

    async def _is_known(self, flow: http.HTTPFlow) -> bool:
        """Whether the client has said who it is, on this connection or with this request."""
        client = flow.client_conn.id
        if self._site.is_known(client):
            return True
        # freshclam sends a proxy's password with CONNECT alone, not inside the tunnel (protocol.md 9.1, A6).
        field = "Authorization" if self._is_direct(flow) else "Proxy-Authorization"
        # What follows a head is kept in memory meanwhile, whatever its size: nobody queues with much of it.
        is_large = _content_length(flow.request) > LARGEST_REQUEST_BODY
        known = await self._site.users.admit(flow.request.headers.get(field), at_once=is_large)
        if known and flow.request.method == "CONNECT":
            self._site.known_clients.add(client)
        return known

    def _is_direct(self, flow: http.HTTPFlow) -> bool:
        """Whether the gateway is the server to the client, not its proxy."""
        request, client = flow.request, flow.client_conn
        if request.method == "CONNECT":
            return False
        return is_asked_itself(request, client) or is_own_port(request, client)

    def _refuse(self, flow: http.HTTPFlow, service: Service, reply: Reply) -> None:
        Exchange.begin(flow, Destination.NOBODY).take(reply)
        _set_response(flow, reply)
        if flow.request.method == "CONNECT":
            self._account(flow, 0)

    def _fail(self, flow: http.HTTPFlow) -> None:
        """Answer in an exception's handler: whatever goes wrong, nothing is let through."""
        logger.exception("A request from %s failed.", flow.client_conn.peername[0])
        exchange = Exchange.begin(flow, Destination.NOBODY)
        exchange.result, exchange.reason = Result.ERROR, _FAILURE
        flow.response = _failure()
        if flow.request.method == "CONNECT":
            self._account(flow, 0)

    def _account_job(self, job: stream.BodyJob) -> None:
        if job.stream is not None and job.error is None:
            self._account(job.stream.flow, job.body.length)

    def _account(self, flow: http.HTTPFlow, length: int, error: str = "") -> None:
        exchange = exchange_of(flow)
        if exchange is not None and self._site.service is not None:
            exchange.account(flow, self._site.service, length, error)


def _is_open(flow: http.HTTPFlow, service: Service, destination: Destination) -> bool:
    """Whether the client needs no user: for health, for how to become a client, or as a token guards it."""
    if destination is not Destination.PAGES:
        return False
    has_token = service.settings.status.token is not None
    return has_token or plain_path(flow.request.path) not in GUARDED


def _unknown_client(service: Service, *, is_proxy: bool) -> Reply:
    reply = service.gateway.refuse(407 if is_proxy else 401, "a user of access.users is needed")
    reply.headers["Proxy-Authenticate" if is_proxy else "WWW-Authenticate"] = _CHALLENGE
    return reply


def _is_freshclam(request: http.Request) -> bool:
    return bool(request.headers.get("User-Agent", "").startswith("ClamAV/"))


def _set_response(flow: http.HTTPFlow, reply: Reply) -> None:
    is_head = flow.request.method == "HEAD"
    headers = http.Headers([(name.encode(), value.encode()) for name, value in reply.headers])
    has_length = reply.length or not is_head  # the answer to a HEAD may leave out a length that isn't known
    if reply.status not in (204, 304) and "content-length" not in headers and has_length:
        headers["content-length"] = str(reply.length)
    content = b"" if isinstance(reply.body, Body) or is_head else reply.body
    flow.response = http.Response(
        http_version=b"HTTP/1.1",
        status_code=reply.status,
        reason=HTTPStatus(reply.status).phrase.encode(),
        headers=headers,
        content=content,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )
    if isinstance(reply.body, Body):
        flow.metadata[stream.JOB] = stream.BodyJob(reply.body)


def _headers(flow: http.HTTPFlow) -> Headers:
    """The request's header fields as the gateway takes them."""
    return Headers([(_text(name), _text(value)) for name, value in flow.request.headers.fields])


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _method(request: http.Request) -> str:
    """As it was sent: mitmproxy shows all in upper case, but RFC 9110 9.1 has ``get`` be another method."""
    return _text(request.data.method)


def _content_length(request: http.Request) -> int:
    """Bytes of content that a request announces; 0 if they come in chunks."""
    return int(request.headers.get("content-length", "0"))


def _count_down(request: http.Request) -> bool:
    """Count Max-Forwards down; False: the request goes no further (RFC 9110 7.6.2)."""
    left = request.headers.get("max-forwards", "")
    if request.method not in ("OPTIONS", "TRACE") or not (left.isascii() and left.isdigit()):
        return True
    request.headers["max-forwards"] = str(max(0, int(left[:9]) - 1))
    return int(left[:9]) > 0


def _last_stop(service: Service, method: str) -> Reply:
    """The answer in place of the host's, where Max-Forwards is 0. TRACE would show passwords."""
    reply = service.gateway.refuse(204 if method == "OPTIONS" else 405, "Max-Forwards is 0")
    reply.headers["Allow"] = "GET, HEAD, OPTIONS"
    reply.body = b"" if reply.status == 204 else reply.body
    return reply


def _name_host(request: http.Request) -> None:
    """Have Host name where the request goes (RFC 9112 3.2.2): else it reaches any site of a shared server."""
    request.host_header = hostport(request.scheme, request.host, request.port)


def _failure() -> http.Response:
    """The answer when nothing else can be answered; 503 makes freshclam try again."""
    headers = {"Cache-Status": CACHE_STATUS[Result.ERROR], "Via": "1.1 clamproxy", "Retry-After": "1"}
    return http.Response.make(503, f"clamproxy: {_FAILURE}\n".encode(), headers)
