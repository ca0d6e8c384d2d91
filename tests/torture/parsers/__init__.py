"""Every place that reads bytes from outside: one table for the property-based tests and for the fuzzer.

What has no row is read by libraries: TLS and certificates by OpenSSL, HTTP/2 by hyper-h2, answers of name
servers by dnspython, those of object stores by obstore. What they hand on to the gateway's own code has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.torture.parsers import clients, databases, gateways, origins, saved, settings
from tests.torture.parsers.parser import Parser

GROUPS: Final[Mapping[str, tuple[Parser, ...]]] = {
    "clients": clients.PARSERS,
    "origins": origins.PARSERS,
    "databases": databases.PARSERS,
    "other gateways": gateways.PARSERS,
    "records": saved.PARSERS,
    "settings": settings.PARSERS,
}
"""By who, or what, the bytes come from."""
PARSERS: Final = tuple(parser for group in GROUPS.values() for parser in group)
BY_NAME: Final = {parser.name: parser for parser in PARSERS}
