"""The front: what every request for the gateway itself goes through, whichever server received it.

It knows the service of the moment, the users, and where requests lead; nothing of sockets. A server

* makes one `Caller` for each connection, and an `Asked` of each request whose head it accepts. Values of
  fields have no line ends;
* asks `Front.routing` for the destination if it can't serve all of them. What is PASSED goes to mitmproxy;
* awaits `Front.open_tunnel` for CONNECT, `Front.answer` for all else; `Front.answer_at_once` may spare it
  that. They raise nothing. If the client leaves meanwhile, they go on: others may wait for what they have
  begun;
* writes `Exchange.reply`, which is complete but for what concerns the connection (Connection,
  Transfer-Encoding, the date of its own errors): status, header fields, body. A reply to HEAD has no body;
* sends a `Body` from its source within `Front.sending`, and closes the source, whatever happens;
* calls `Exchange.end` once the reply is sent, or has failed.
"""

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
