"""Exchanges: what is noted of a request until it is counted and logged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from mitmproxy import http

from clamproxy.fleet import Visit
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.messages import DOCTOR_FIELD, Reply, Result
from clamproxy.objects import parse_path
from clamproxy.proxy.access_log import Outcome, log_request
from clamproxy.proxy.site import Destination
from clamproxy.service import Service
from clamproxy.serving.whole import GATEWAY_IN_VIA

_KEY = "clamproxy_exchange"
"""Of an `Exchange` in the metadata of a flow."""
_ASKED_BY_DOCTOR = (Destination.DATABASES, Destination.NOBODY)
_ORDINARY = (Result.MISS, Result.NEGATIVE)
"""How a file that isn't there is answered: freshclam asks for such in its usual course."""
_LONGEST_DATE, _LONGEST_METHOD = 64, 16
"""Characters; a date of HTTP has at most 33 (RFC 9110 5.6.7)."""


@dataclass(slots=True)
class Exchange:
    """One request and what became of it."""

    client: str
    started_at: float
    destination: Destination
    result: Result = Result.REFUSED
    version: int | None = None
    reason: str = ""
    """Why the client doesn't get what it asked for, or not the newest of it."""
    passed: int = 0
    """Bytes of a streamed answer of a host that is passed through."""
    done: bool = False

    @classmethod
    def begin(cls, flow: http.HTTPFlow, destination: Destination) -> Self:
        """Note that a request has come; until more is known it counts as refused."""
        exchange = cls(flow.client_conn.peername[0], time.monotonic(), destination)
        flow.metadata[_KEY] = exchange
        return exchange

    def take(self, reply: Reply) -> None:
        """Note how a request was answered."""
        self.result, self.version = reply.result, reply.version
        if self.result not in _ORDINARY:
            self.reason = reply.reason

    def count_passed(self, data: bytes) -> bytes:
        """Called by mitmproxy with each piece that it streams."""
        self.passed += len(data)
        return data

    def account(self, flow: http.HTTPFlow, service: Service, length: int, error: str) -> None:
        """Count and log a request, once."""
        if self.done:
            return
        self.done = True
        if self._is_doctors(flow):
            self.result = Result.STATUS
        elif self.destination is Destination.FEED:
            service.stats.count_feed_request(self.result, length)
        elif self.destination is not Destination.PAGES:
            service.stats.count_request(self.result, length)
        if self.destination is Destination.DATABASES:
            service.fleet.see(self._visit(flow, service, length, is_complete=not error))
        outcome = Outcome(
            client=self.client,
            result=self.result,
            version=self.version,
            status=flow.response.status_code if flow.response else 0,
            length=length,
            seconds=time.monotonic() - self.started_at,
            error=error or self.reason,
        )
        # A refusal for a host that isn't configured, or to nobody known, may concern a feed, too.
        hides_path = self.destination not in (Destination.DATABASES, Destination.PAGES)
        log_request(flow.request, outcome, hides_path=hides_path)

    def _is_doctors(self, flow: http.HTTPFlow) -> bool:
        """Whether it is no machine that asks; the fleet sees it all the same, so nobody hides behind that."""
        return DOCTOR_FIELD in flow.request.headers and self.destination in _ASKED_BY_DOCTOR

    def _visit(self, flow: http.HTTPFlow, service: Service, length: int, *, is_complete: bool) -> Visit:
        """What the answer tells of the machine that asked."""
        request, answer = flow.request, flow.response
        since = request.headers.get("If-Modified-Since")
        return Visit(
            address=self.client,
            user_agent=request.headers.get("User-Agent"),
            target=parse_path(request.path, frozenset(service.settings.serving.databases)),
            range_probe="Range" in request.headers,
            # Thousands of visits may wait to be written: no more than a date is kept.
            if_modified_since=since and since[:_LONGEST_DATE],
            status=answer.status_code if answer else 0,
            version=self.version,
            length=length,
            complete=is_complete,
            at=time.time(),
            method=request.method[:_LONGEST_METHOD],
            head=(answer.raw_content or b"")[:HEADER_SIZE] if answer else b"",
            is_relayed=GATEWAY_IN_VIA in ", ".join(request.headers.get_all("Via")),
        )


def exchange_of(flow: http.HTTPFlow) -> Exchange | None:
    """What is noted of a flow's request, if it is one of ours."""
    exchange = flow.metadata.get(_KEY)
    return exchange if isinstance(exchange, Exchange) else None
