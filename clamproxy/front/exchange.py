"""Exchanges: a request, its response, and what is recorded about them at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from clamproxy.access.client_rates import ClientShare
from clamproxy.dates import LONGEST_DATE
from clamproxy.fleet import Visit
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.front.access_log import Outcome, log_request
from clamproxy.front.client_request import ClientRequest
from clamproxy.front.routing import Destination
from clamproxy.messages import HELD_BACK, Response, Result
from clamproxy.objects import Latest, parse_path
from clamproxy.service import Service

_ASKED_BY_DOCTOR = (Destination.DATABASES, Destination.NOBODY)
"""Destinations of the doctor's requests."""
_SHOWN = (Destination.DATABASES, Destination.PAGES, Destination.FILES)
"""Destinations whose paths hold no secrets."""
_ORDINARY = (Result.MISS, Result.NEGATIVE)
"""Results whose reason isn't logged: freshclam asks for files that don't exist all the time."""
_LONGEST_METHOD = 16
"""Characters."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what became of it."""

    request: ClientRequest
    destination: Destination
    response: Response
    """The response to be sent, complete. For a request that is passed through: the host's response."""
    running: Callable[[], Service | None]
    """Returns the current service. A reload may have replaced the one that answered."""
    share: ClientShare | None = None
    """Paces a body that isn't in memory; None if nothing does."""
    sent: int = 0
    """Bytes of content so far, if the sender counts them here."""
    ended: bool = False

    def end(self, length: int, error: str = "") -> None:
        """Count and log the exchange, and tell the fleet. Only the first call does anything.

        Every request counts once. A refusal counts as ``refused``, whatever the request was for: no cache
        was asked. Otherwise, a request on a feed's host counts among those of the feeds, one for a file of
        the site among those of the files, and any other among the requests. Pages and the doctor's requests
        are logged but not counted.

        Args:
            length: bytes of content that were sent.
            error: why not all of it was sent, if it wasn't.
        """
        service = self.running()
        if self.ended or service is None:
            return
        self.ended = True
        request, destination, response = self.request, self.destination, self.response
        result = response.result
        if request.is_doctors and destination in _ASKED_BY_DOCTOR:
            result = Result.STATUS
        elif destination is Destination.FEED and result is not Result.REFUSED:
            service.stats.count_feed_request(result, length)
        elif destination is Destination.FILES and result is not Result.REFUSED:
            service.stats.count_file_request(length if response.status in (200, 206) else 0)
            if not error:
                service.site_files.note_sent(request, request.caller.address, response)
        elif destination is not Destination.PAGES:
            service.stats.count_request(result, length)
        if destination is Destination.DATABASES:
            # Including the doctor's requests: no machine can hide by sending the doctor's field.
            service.fleet.see(self._visit(service, length, is_complete=not error))
        is_shown = response.result not in _ORDINARY or response.reason == HELD_BACK
        reason = response.reason if is_shown else ""
        outcome = Outcome(
            client=request.caller.address,
            result=result,
            version=response.version,
            status=response.status,
            length=length,
            seconds=time.monotonic() - request.started_at,
            error=error or reason,
        )
        # A request for an unknown host, or from an unknown client, may have been meant for a feed.
        hides_path = destination not in _SHOWN
        log_request(request, outcome, hides_path=hides_path)

    def _visit(self, service: Service, length: int, *, is_complete: bool) -> Visit:
        """What the exchange tells about the machine that sent the request."""
        request, response, fields = self.request, self.response, self.request.fields
        since = fields.get("if-modified-since")
        target = parse_path(request.path, service.databases)
        body = response.body if isinstance(target, Latest) else b""
        return Visit(
            address=request.caller.address,
            user_agent=fields.get("user-agent"),
            target=target,
            range_probe="range" in fields,
            # Thousands of visits may wait to be written, so no more than a date is kept.
            if_modified_since=since and since[:LONGEST_DATE],
            status=response.status,
            version=response.version,
            length=length,
            complete=is_complete,
            at=time.time(),
            method=request.method[:_LONGEST_METHOD],
            head=body[:HEADER_SIZE] if isinstance(body, bytes) else b"",
            is_held_back=response.reason == HELD_BACK,
            is_relayed=request.is_relayed,
        )
