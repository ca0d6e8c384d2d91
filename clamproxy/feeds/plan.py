"""What is fetched from a feed, and for which request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from werkzeug.datastructures import Headers

from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.sharing_rules import ResponseHead, is_shareable
from clamproxy.feeds.target import Target


@dataclass(frozen=True, slots=True)
class Plan:
    """What is fetched, and for which request."""

    target: Target
    key: str
    sent: Headers
    """The fields that are sent to the feed."""
    request: Headers
    """The fields of the client's request."""
    stored: StoredResponse | None = None
    """The response to be revalidated."""
    conditions: Mapping[str, str] | None = None
    """The client's own validators, if nobody else gets the response."""

    def allows_sharing(self, head: ResponseHead) -> bool:
        """Whether others may have the response as well; a password in the URL counts as sent."""
        asked = Headers(self.request)
        if "Authorization" in self.sent:
            asked["Authorization"] = self.sent["Authorization"]
        return is_shareable(asked, head)
