"""What a feed is asked for. URLs contain subscribers' keys, so only the feed gets to see them."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from clamproxy.config.units import normal_host

_PORTS = {"http": 80, "https": 443}


class TargetError(ValueError):
    """This isn't a feed's URL; the text doesn't repeat it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A normalized URL, without user and password."""

    scheme: str
    host: str
    port: int
    path: str = field(repr=False)
    """Path and query, as received."""
    credentials: str | None = field(default=None, repr=False)
    """User and password from the URL, as an Authorization field."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """Parse a URL.

        Raises:
            TargetError: a feed can't have such a URL.
        """
        try:
            parts = urlsplit(url)
            host, port = normal_host(parts.hostname or ""), parts.port
            user, password = parts.username, parts.password
        except ValueError:
            raise TargetError("not a URL") from None
        if parts.scheme not in _PORTS or not host or port == 0:
            raise TargetError("not an http or https URL")
        if any(character <= " " or character > "~" for character in url):
            raise TargetError("a character that URLs can't contain")
        path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        credentials = None if user is None else _basic(user, password or "")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme], path, credentials)

    @property
    def url(self) -> str:
        """The URL to ask for."""
        return f"{self.origin}{self.path}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def place(self) -> str:
        """Host and port, for logs and cool-downs; without the scheme's default port."""
        usual = self.port == _PORTS[self.scheme]
        return self.host if usual else f"{self.host}:{self.port}"

    @property
    def server(self) -> str:
        """Scheme and place: a server that responds over http may be silent over https."""
        return f"{self.scheme}://{self.place}"

    def key(self, authorization: str | None) -> str:
        """Stands for the URL without revealing it: the SHA-256 of the URL and the credentials.

        Args:
            authorization: the Authorization field of the request.
        """
        return hashlib.sha256(f"{self.url}\n{authorization or ''}".encode()).hexdigest()

    def follow(self, location: str) -> Target:
        """Where a redirect leads.

        Raises:
            TargetError: it must not be followed.
        """
        try:
            url = urljoin(self.url, location.strip())
        except ValueError:
            raise TargetError("not a URL") from None
        target = Target.parse(url)
        if self.scheme == "https" and target.scheme == "http":
            raise TargetError("from https to http")
        return replace(target, credentials=None)


def _basic(user: str, password: str) -> str:
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"
