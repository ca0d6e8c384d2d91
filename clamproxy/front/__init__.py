"""The front: what every request for the gateway itself goes through, whichever server received it."""

from clamproxy.front.access_log import log_tunnel
from clamproxy.front.asked import LARGEST_CONTENT, Asked, Caller
from clamproxy.front.exchange import Exchange
from clamproxy.front.front import Front
from clamproxy.front.refusals import forwards_left
from clamproxy.front.routing import Destination, Routing

__all__ = [
    "LARGEST_CONTENT",
    "Asked",
    "Caller",
    "Destination",
    "Exchange",
    "Front",
    "Routing",
    "forwards_left",
    "log_tunnel",
]
