"""Exchanges: a request, its answer, and what is noted of them at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from clamproxy.fleet import Visit
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.front.access_log import Outcome, log_request
from clamproxy.front.asked import Asked
from clamproxy.front.routing import Destination
from clamproxy.messages import Reply, Result
from clamproxy.objects import Latest, parse_path
from clamproxy.service import Service

_ASKED_BY_DOCTOR = (Destination.DATABASES, Destination.NOBODY)
_ORDINARY = (Result.MISS, Result.NEGATIVE)
"""How a file that isn't there is answered: freshclam asks for such in its usual course."""
_LONGEST_DATE, _LONGEST_METHOD = 64, 16
"""Characters; a date of HTTP has at most 33 (RFC 9110 5.6.7)."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what became of it."""

    asked: Asked
    destination: Destination
    reply: Reply
    """What is to be sent, complete. For what is passed through: what the host has answered."""
    running: Callable[[], Service | None]
    """The service at the end, which may be another than at the beginning."""
    sent: int = 0
    """Bytes of content, where whoever sends counts them."""
    ended: bool = False

    def end(self, length: int, error: str = "") -> None:
        """Count and log the exchange, and tell the fleet. Only the first call does anything.

        Every request counts once: a refusal as ``refused``, wherever it led to, since nothing was asked of a
        cache; the rest on a feed's host among the feeds' own, and all else among the requests. Pages are
        logged, but not counted, and neither is what the doctor asks for.

        Args:
            length: bytes of content that were sent.
            error: why that isn't all.
        """
        service = self.running()
        if self.ended or service is None:
            return
        self.ended = True
        result, reply = self.reply.result, self.reply
        if self.asked.is_doctors and self.destination in _ASKED_BY_DOCTOR:
            result = Result.STATUS
        elif self.destination is Destination.FEED and result is not Result.REFUSED:
            service.stats.count_feed_request(result, length)
        elif self.destination is not Destination.PAGES:
            service.stats.count_request(result, length)
        if self.destination is Destination.DATABASES:
            # The doctor's, too: nobody hides behind its field.
            service.fleet.see(self._visit(service, length, is_complete=not error))
        reason = "" if reply.result in _ORDINARY else reply.reason
        outcome = Outcome(
            client=self.asked.caller.address,
            result=result,
            version=reply.version,
            status=reply.status,
            length=length,
            seconds=time.monotonic() - self.asked.started_at,
            error=error or reason,
        )
        # A refusal for a host that isn't configured, or to nobody known, may concern a feed, too.
        hides_path = self.destination not in (Destination.DATABASES, Destination.PAGES)
        log_request(self.asked, outcome, hides_path=hides_path)

    def _visit(self, service: Service, length: int, *, is_complete: bool) -> Visit:
        """What the answer tells of the machine that asked."""
        asked, reply = self.asked, self.reply
        since = asked.fields.get("if-modified-since")
        target = parse_path(asked.path, service.databases)
        return Visit(
            address=asked.caller.address,
            user_agent=asked.fields.get("user-agent"),
            target=target,
            range_probe="range" in asked.fields,
            # Thousands of visits may wait to be written: no more than a date is kept.
            if_modified_since=since and since[:_LONGEST_DATE],
            status=reply.status,
            version=reply.version,
            length=length,
            complete=is_complete,
            at=time.time(),
            method=asked.method[:_LONGEST_METHOD],
            head=reply.body[:HEADER_SIZE]
            if isinstance(target, Latest) and isinstance(reply.body, bytes)
            else b"",
            is_relayed=asked.is_relayed,
        )
