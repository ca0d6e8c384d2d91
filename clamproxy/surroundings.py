"""What the service can't know on its own: about the process, and about the proxy that uses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clamproxy.access.client_rates import ClientRates
from clamproxy.clock import Clock
from clamproxy.origin.link import Link
from clamproxy.web.listener import OpenPort, open_port


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all services of a process share, and what only the proxy knows."""

    started_at: float = field(default_factory=time.time)
    """When the process began to serve, in Unix seconds."""
    certificates: Callable[[], bytes | None] = lambda: None
    """Gives the certificates that clients must trust for https, in PEM. Blocks."""
    port: Callable[[], int | None] = lambda: None
    """Gives the port where the proxy listens."""
    clock: Clock = time
    """Tells the time to all that ask the origin."""
    link: Link = field(default_factory=Link)
    """The internet link: one for the process, as what began before a reload still uses it."""
    client_rates: ClientRates = field(default_factory=ClientRates)
    """What clients may get; one for the process."""
    open_port: OpenPort = open_port
    """Opens the port of the pages."""
    others: Callable[[], Sequence[Mapping[str, Any]]] = lambda: ()
    """Gives `Service.own_figures` of the other workers, with their pids."""
    forgives_proxy: Callable[[], bool] = lambda: True
    """Whether the parent proxy may be asked again although it has refused the password, because it may have
    been corrected there. Of several workers, one does it."""
