"""Other signature feeds: an ordinary shared HTTP cache (RFC 9111) for the hosts in ``feeds.hosts``.

A feed's files aren't signed by ClamAV, so nothing here is verified except the length. A refusal by a feed
never reaches a client as 403 or 429: that would also stop the client's official updates.
"""

from clamproxy.feeds.feeds import Feeds

__all__ = ["Feeds"]
