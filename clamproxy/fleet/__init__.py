"""The fleet: which machine has which database version, learned from the requests of their freshclams."""

from clamproxy.fleet.machine import Machine, summary
from clamproxy.fleet.reading import UnreadableFleetError, advertised_to_clients, read_fleet
from clamproxy.fleet.recorder import Fleet
from clamproxy.fleet.visit import Visit

__all__ = [
    "Fleet",
    "Machine",
    "UnreadableFleetError",
    "Visit",
    "advertised_to_clients",
    "read_fleet",
    "summary",
]
