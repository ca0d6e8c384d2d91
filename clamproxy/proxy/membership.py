"""What the addon does differently in one of several workers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from clamproxy.access.client_rates import ClientRates
from clamproxy.access.limits import ConnectionLimits
from clamproxy.config.settings import Settings
from clamproxy.config.units import Endpoint
from clamproxy.control import Marks, ReloadOutcome
from clamproxy.front.access_log import FIELDS
from clamproxy.origin.link import Link
from clamproxy.proxy.log_format import add_filter
from clamproxy.setup.place import explained
from clamproxy.surroundings import Surroundings
from clamproxy.workers.ports import Port
from clamproxy.workers.shared_limits import (
    OtherConnections,
    SharedClientPayments,
    SharedFigures,
    SharedLinkPayments,
    SharedMeter,
)
from clamproxy.workers.worker import Hush, Worker

TELL_EVERY = 1.0
"""Seconds: how old figures of another worker may be on the pages."""
_SAID_BY_ONE = "clamproxy.pace"
"""The logger of rates that change by the hour, in all workers at the same moment."""
_TELLS_OF_RELOADS = "clamproxy.proxy.addon"
"""The logger of the outcome, which the parent passes on if a worker's differs."""


class Membership:
    """The place of this process among the workers of its machine. Event loop only."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._figures = SharedFigures(worker.memory, worker.number)
        self._telling: asyncio.Task[None] | None = None

    def surround(self, surroundings: Surroundings) -> Surroundings:
        """The same surroundings, with what the workers share."""
        memory = self._worker.memory
        return replace(
            surroundings,
            started_at=self._worker.started_at,
            open_port=self._worker.open,
            link=Link(payments=SharedLinkPayments(memory), meter=SharedMeter(memory)),
            client_rates=ClientRates(payments=SharedClientPayments(memory)),
            others=self._figures.others,
            # The others begin when the first one may have been refused already.
            forgives_proxy=lambda: self._worker.hush is None,
        )

    def limit(self, connections: ConnectionLimits) -> None:
        """Count the connections of all workers together."""
        connections.elsewhere = OtherConnections(self._worker.memory, self._worker.number)

    def hush(self) -> None:
        """Leave out of the log what another worker says as well."""
        add_filter(self._is_worth_saying)

    def begin(
        self,
        reload: Callable[[], Awaitable[ReloadOutcome]],
        shut_down: Callable[[], None],
        figures: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Serve; see `Worker.begin`.

        Args:
            figures: gives what only this process knows, for the pages of all.
        """
        self._worker.begin(reload, shut_down)
        self._telling = asyncio.create_task(self._tell(figures), name="figures of the workers")
        asyncio.get_running_loop().call_soon(self._speak)  # after other addons have said that they run

    def declare(
        self, marks: Marks, ports: Iterable[tuple[Endpoint, socket.SocketKind]], settings: Settings
    ) -> None:
        """Say where this process listens from now on, and how commands find it.

        Args:
            ports: the proxy's.
        """
        needed = [Port(endpoint.host, endpoint.port, kind) for endpoint, kind in ports]
        if settings.status.listen is not None:
            needed.append(Port(*settings.status.listen))
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()
        self._worker.mark(marks, digest)
        self._worker.use(needed)

    def refusal(self, endpoint: Endpoint, kind: socket.SocketKind) -> str | None:
        """Why the workers can't listen there; None if they can."""
        try:
            found = self._worker.open(endpoint.host, endpoint.port, kind)
        except OSError as error:
            return explained(error)
        for one in found:
            one.close()
        return None

    def stop(self) -> None:
        """Tell the others nothing more."""
        if self._telling is not None:
            self._telling.cancel()

    async def _tell(self, figures: Callable[[], Mapping[str, Any]]) -> None:
        while True:
            self._figures.tell(figures())
            await asyncio.sleep(TELL_EVERY)

    def _speak(self) -> None:
        self._worker.hush = None

    def _is_worth_saying(self, record: logging.LogRecord) -> bool:
        if record.name == _SAID_BY_ONE and self._worker.number != 1:
            return False
        match self._worker.hush:
            case Hush.START:
                return record.levelno >= logging.ERROR or hasattr(record, FIELDS)
            case Hush.RELOAD:
                is_told = record.levelno < logging.WARNING or record.name == _TELLS_OF_RELOADS
                return not is_told or hasattr(record, FIELDS)
        return True
