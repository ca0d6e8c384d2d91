"""The front: what every request for the gateway itself goes through, whichever server received it.

It knows the current service, the users, and where requests lead. It knows nothing of sockets. A server

* makes one `Caller` for each connection, and one `ClientRequest` for each request whose head it accepts. The
  values of fields must have no line ends;
* asks `Front.routing` for the destination if it can't serve every one. Only mitmproxy serves PASSED;
* awaits `Front.open_tunnel` for CONNECT, and `Front.answer` for everything else; it may try
  `Front.opens_at_once` and `Front.answer_at_once` first. None of them raises anything. They must go on even
  if the client leaves: others may be waiting for what they have begun;
* writes the status, header fields and body of `Exchange.response`. Only what concerns the connection is
  missing (Connection, Transfer-Encoding). A response to HEAD has no body;
* sends a `Body` from its source within `Front.sending`, and closes the source, whatever happens;
* calls `Exchange.end` once the response is sent, or has failed.
"""

from clamproxy.front.access_log import log_tunnel
from clamproxy.front.client_request import LARGEST_CONTENT, Caller, ClientRequest
from clamproxy.front.exchange import Exchange
from clamproxy.front.front import Front
from clamproxy.front.refusals import forwards_left
from clamproxy.front.routing import TUNNEL_PORTS, Destination, Routing

__all__ = [
    "LARGEST_CONTENT",
    "TUNNEL_PORTS",
    "Caller",
    "ClientRequest",
    "Destination",
    "Exchange",
    "Front",
    "Routing",
    "forwards_left",
    "log_tunnel",
]
