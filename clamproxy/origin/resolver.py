"""TXT lookups by name servers, or by a DNS-over-HTTPS server (RFC 8484)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import dns.asyncresolver
import dns.message
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset
import urllib3
from urllib3.util import SKIP_HEADER, Timeout

from clamproxy.config.settings import Settings
from clamproxy.config.units import HttpProxy
from clamproxy.origin.connections import ONCE, make_pool
from clamproxy.origin.scope import in_scope

TIMEOUT = 2.0
"""Seconds for one name server."""
LIFETIME = 4.0
"""Seconds for one lookup with all name servers."""
DOH_TIMEOUT = 5.0
"""Seconds to connect to a DNS-over-HTTPS server, and seconds of silence from it."""
DOH_LIFETIME = 10.0
"""Seconds for one lookup there, which may need a tunnel through a proxy, and TLS."""
LARGEST_MESSAGE = 65535
"""The largest DNS message in bytes (RFC 8484 6)."""

_MEDIA_TYPE = "application/dns-message"


class Resolver(Protocol):
    """Looks up TXT records."""

    async def txt(self, name: str) -> str:
        """The first character-string of the first record, which is all that freshclam looks at.

        Args:
            name: fully qualified, without the final dot.

        Raises:
            Exception: any failure; its text says what went wrong.
        """

    def close(self) -> None: ...


class DnsResolver:
    """Asks name servers.

    Args:
        nameservers: address and port of each; if empty, the system's are asked.
    """

    def __init__(self, nameservers: Sequence[tuple[str, int]]) -> None:
        self._nameservers = nameservers

    async def txt(self, name: str) -> str:
        resolver = stub_resolver(self._nameservers)
        answer = await resolver.resolve(f"{name}.", dns.rdatatype.TXT, lifetime=LIFETIME, search=False)
        return _first_string(answer.rrset)

    def close(self) -> None:
        pass


def stub_resolver(nameservers: Sequence[tuple[str, int]]) -> dns.asyncresolver.Resolver:
    """A resolver for one lookup, because resolv.conf may have changed before the next.

    Args:
        nameservers: address and port of each; if empty, the system's are asked.
    """
    resolver = dns.asyncresolver.Resolver(configure=not nameservers)
    if nameservers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(address, port) for address, port in nameservers]
    resolver.timeout = TIMEOUT
    return resolver


class DohResolver:
    """Asks a DNS-over-HTTPS server, through the proxy towards upstream if there is one.

    Args:
        ca_bundle: certificates to trust besides the system's.
    """

    def __init__(self, url: str, proxy: HttpProxy | None, ca_bundle: Path | None) -> None:
        self._url = url
        self._pool = make_pool(proxy, ca_bundle, Timeout(connect=DOH_TIMEOUT, read=DOH_TIMEOUT))

    async def txt(self, name: str) -> str:
        return await in_scope(f"look-up {name}", DOH_LIFETIME, lambda _: self._ask(name))

    def close(self) -> None:
        self._pool.clear()

    def _ask(self, name: str) -> str:
        query = dns.message.make_query(f"{name}.", dns.rdatatype.TXT, id=0)
        answer = dns.message.from_wire(self._post(query.to_wire()))
        if not query.is_response(answer):
            raise ValueError("an answer to another question")
        if answer.rcode() != dns.rcode.NOERROR:
            raise ValueError(f"{dns.rcode.to_text(answer.rcode())} for {name}")
        return _first_string(answer.resolve_chaining().answer)  # type: ignore[attr-defined]

    def _post(self, wire: bytes) -> bytes:
        # Caches on the way don't answer a POST (RFC 8484 5.1).
        response = self._pool.request(
            "POST",
            self._url,
            body=wire,
            headers={
                "Content-Type": _MEDIA_TYPE,
                "Accept": _MEDIA_TYPE,
                "Accept-Encoding": "identity",
                "User-Agent": SKIP_HEADER,
            },
            retries=ONCE,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            message = _read_message(response)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return message


def _read_message(response: urllib3.BaseHTTPResponse) -> bytes:
    """The body, if it is a DNS message.

    Raises:
        ValueError: it isn't.
    """
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if response.status != 200 or media_type != _MEDIA_TYPE:
        raise ValueError(f"the DNS-over-HTTPS server answers with status {response.status}, {media_type!r}")
    message = bytearray()
    while piece := response.read1(LARGEST_MESSAGE + 1, decode_content=False):
        message += piece
        if len(message) > LARGEST_MESSAGE:
            raise ValueError("the DNS-over-HTTPS server's answer is too long for a DNS message")
    return bytes(message)


def _first_string(records: dns.rrset.RRset | None) -> str:
    for record in records or ():
        return str(record.strings[0].decode("ascii"))
    raise ValueError("an answer without a record")


def make_resolver(settings: Settings) -> Resolver | None:
    """The configured way to look up advertised versions; None if DNS isn't asked."""
    versions, upstream = settings.versions, settings.upstream
    if not settings.asks_dns:
        return None
    if versions.doh is not None:
        return DohResolver(versions.doh, upstream.parent_proxy, upstream.ca_bundle)
    return DnsResolver(versions.nameservers)
