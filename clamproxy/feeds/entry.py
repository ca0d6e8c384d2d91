"""What is known about a stored response: the text file beside its body."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Self

from werkzeug.datastructures import Headers

from clamproxy.dates import as_time, parse_http_date
from clamproxy.feeds.sharing_rules import KEPT_FIELDS, ResponseHead
from clamproxy.untrusted import parse_json

KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A stored response. It contains neither its URL nor any secret of the request."""

    key: str
    """Stands for the URL, see `Target.key`."""
    place: str
    """The feed's host and port."""
    head: ResponseHead
    selection: dict[str, str]
    """What a request must have in common with the one that brought it, see `sharing_rules.selection`."""
    size: int
    """Length of the body in bytes."""
    sha256: str
    """SHA-256 of the body."""
    obtained_at: float
    """When this very body first arrived, in Unix seconds; a 304 doesn't change it."""
    replaced_until: float = field(default=0.0)
    """Until when a client was still sent an older body, in Unix seconds."""

    @property
    def body_name(self) -> str:
        """Name of the file that holds the body."""
        return f"{self.key}.{self.sha256[:16]}"

    def is_not_newer(self, since: float) -> bool:
        """Whether a client that got its copy at a certain time has this body or a later one.

        freshclam sends the time when it wrote its file as If-Modified-Since (docs/protocol.md, trap 8). If
        the gateway served an older copy, that time may be after Last-Modified of a version that the gateway
        didn't have yet. So what counts is when the gateway got its own copy.

        Args:
            since: If-Modified-Since, in Unix seconds.
        """
        if since == parse_http_date(self.head.headers.get("Last-Modified")):
            return True
        return since >= int(self.obtained_at) and since > int(self.replaced_until)

    def to_json(self) -> str:
        """The content of the text file."""
        return json.dumps(
            {
                "key": self.key,
                "place": self.place,
                "headers": list(self.head.headers),
                "requested_at": self.head.requested_at,
                "received_at": self.head.received_at,
                "redirect_lifetime": self.head.redirect_lifetime,
                "selection": self.selection,
                "size": self.size,
                "sha256": self.sha256,
                "obtained_at": self.obtained_at,
                "replaced_until": self.replaced_until,
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read the content of the text file.

        Raises:
            ValueError: it is damaged.
        """
        try:
            return cls._from_values(parse_json(text))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("not an entry") from error

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        headers = Headers([(str(name), str(value)) for name, value in values["headers"]])
        limit = values["redirect_lifetime"]
        head = ResponseHead(
            headers,
            as_time(values["requested_at"]),
            as_time(values["received_at"]),
            None if limit is None else as_time(limit),
        )
        entry = cls(
            str(values["key"]),
            str(values["place"]),
            head,
            {str(name): str(digest) for name, digest in values["selection"].items()},
            int(values["size"]),
            str(values["sha256"]),
            as_time(values["obtained_at"]),
            as_time(values["replaced_until"]),
        )
        names = {name.lower() for name, _ in headers}
        if not KEY.fullmatch(entry.key) or not KEY.fullmatch(entry.sha256) or not names <= KEPT_FIELDS:
            raise ValueError("not an entry")
        return entry
