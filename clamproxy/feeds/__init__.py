"""Other signature feeds: an ordinary shared HTTP cache (RFC 9111) for the hosts in ``feeds.hosts``.

What a feed sends isn't signed by ClamAV, so nothing here is verified but its length. What a feed
refuses never reaches a client as 403 or 429: one of these would freeze its official updates too.
"""

from clamproxy.feeds.feeds import Feeds

__all__ = ["Feeds"]
