"""Requests and responses: the hooks by which mitmproxy serves the responses of the front."""

from __future__ import annotations

from mitmproxy import http
from mitmproxy.net.http.url import hostport

from clamproxy.front import LARGEST_CONTENT, ClientRequest, Exchange, Front, forwards_left
from clamproxy.messages import CACHE_STATUS, Body, Result
from clamproxy.proxy import stream
from clamproxy.proxy.header_limits import TOO_LARGE, drop_hop_by_hop
from clamproxy.proxy.translation import Callers, asked_of, response_of

FREEZING = (403, 429)
"""Either of these stops a freshclam for hours, including official databases (docs/protocol.md, trap 20)."""
FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-IP")
"""Fields in which balancers give a client's address, which is none of the host's business."""
_EXCHANGE = "clamproxy_exchange"
"""The attribute of a flow that holds its `Exchange`. Not in its metadata, which mitmproxy writes to files."""


class Requests:
    """The hooks that concern requests. The front raises nothing: mitmproxy would log it and go on."""

    def __init__(self, front: Front, callers: Callers) -> None:
        self._front = front
        self._callers = callers

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        """Refuse tunnels to foreign hosts, and to clients that must authenticate and don't."""
        if flow.response is not None:
            return
        request = self._asked(flow)
        refusal = await self._front.open_tunnel(request)
        if refusal is None:
            self._callers.enter_tunnel(flow.client_conn, request.caller)
        else:
            _respond(flow, refusal)
            refusal.end(refusal.response.length)

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Stream requests that are passed through; no other request has content that matters."""
        request = self._asked(flow)
        if flow.response is None and (exchange := await self._front.pass_on(request)) is not None:
            self._pass_on(flow, exchange)
        if not flow.request.stream and request.content_length > LARGEST_CONTENT:
            # mitmproxy would read all of it into memory before the response, even before a refusal.
            flow.metadata[TOO_LARGE] = True

    def _pass_on(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        service = self._front.service
        if exchange.response.result is not Result.PASSED or service is None:
            _respond(flow, exchange)
            return
        vars(flow)[_EXCHANGE] = exchange
        stream.leave_time(flow.client_conn)
        headers = flow.request.headers
        headers.pop("Proxy-Authorization", None)
        drop_hop_by_hop(headers)
        if exchange.request.caller.forwarded_by is not None:
            for name in FORWARDED:
                headers.pop(name, None)
        _name_host(flow.request)
        headers.add("Via", service.via)
        if (left := forwards_left(exchange.request)) is not None:
            headers["Max-Forwards"] = str(left - 1)
        flow.request.stream = True

    async def request(self, flow: http.HTTPFlow) -> None:
        """Respond, or leave the request to mitmproxy to forward."""
        # There is a response already if the request was refused.
        if flow.response or flow.error or not flow.live or _passed(flow) is not None:
            return
        _respond(flow, await self._front.answer(self._asked(flow)))

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Stream responses that are passed through."""
        exchange, response, service = _passed(flow), flow.response, self._front.service
        if exchange is None or response is None:
            return

        def count(data: bytes) -> bytes:
            exchange.sent += len(data)
            return data

        response.stream = count
        response.headers["Cache-Status"] = CACHE_STATUS[Result.PASSED]
        if service is not None:
            response.headers.add("Via", service.via)
        if response.status_code in FREEZING and exchange.request.is_freshclams:
            response.status_code, response.reason = 503, "Service Unavailable"
        exchange.response.status = response.status_code

    def response(self, flow: http.HTTPFlow) -> None:
        """Account for a response that is sent; one with a body from disk is accounted for at its end."""
        exchange = _exchange_of(flow)
        if stream.job_of(flow) is None and flow.response is not None and exchange is not None:
            exchange.end(exchange.sent or len(flow.response.raw_content or b""))

    def error(self, flow: http.HTTPFlow) -> None:
        """Account for a client that left, or a body that could not be sent completely."""
        job, exchange = stream.job_of(flow), _exchange_of(flow)
        if exchange is None:
            # It ended before the front saw it, because its content didn't arrive or was too large.
            exchange = self._front.unanswered(self._asked(flow))
        if job is not None:
            job.body.source.close()
        exchange.end(job.sent if job else exchange.sent, flow.error.msg if flow.error else "")

    async def send_body(self, job: stream.BodyJob) -> None:
        """Send a body from disk. mitmproxy calls this for a `stream.SendBodyHook`."""
        with self._front.answering():
            await stream.send_body(job)
        if job.error is None:
            _end_job(job)

    async def read_piece(self, job: stream.BodyJob) -> None:
        """Read the next piece of a body. mitmproxy calls this for a `stream.ReadPieceHook`."""
        await stream.read_piece(job)
        if job.error is None and job.sent + len(job.piece) == job.body.length:
            _end_job(job)

    def _asked(self, flow: http.HTTPFlow) -> ClientRequest:
        return self._front.attribute(asked_of(flow.request, self._callers.of(flow.client_conn)))


def _respond(flow: http.HTTPFlow, exchange: Exchange) -> None:
    vars(flow)[_EXCHANGE] = exchange
    flow.response = response_of(exchange.response)
    if isinstance(exchange.response.body, Body):
        vars(flow)[stream.JOB] = stream.BodyJob(exchange.response.body, exchange.share)


def _end_job(job: stream.BodyJob) -> None:
    exchange = _exchange_of(job.stream.flow) if job.stream is not None else None
    if exchange is not None:
        exchange.end(job.body.length)


def _exchange_of(flow: http.HTTPFlow) -> Exchange | None:
    """The exchange of a flow; None before the front has seen its request."""
    exchange = vars(flow).get(_EXCHANGE)
    return exchange if isinstance(exchange, Exchange) else None


def _passed(flow: http.HTTPFlow) -> Exchange | None:
    """The exchange if the request is forwarded to its host; None for others."""
    exchange = _exchange_of(flow)
    return exchange if exchange is not None and exchange.response.result is Result.PASSED else None


def _name_host(request: http.Request) -> None:
    """Set Host to where the request goes (RFC 9112 3.2.2), or it reaches any site of a shared server."""
    request.host_header = hostport(request.scheme, request.host, request.port)
