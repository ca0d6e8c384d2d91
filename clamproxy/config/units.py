"""Values as people write them in proxy.yaml: sizes, durations, shares, addresses, URLs.

Each ``parse_`` function takes any value that YAML can hold, and raises a ValueError for
what it does not understand; the text of those for items of lists says what was expected.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import SecretStr

KIB = 2**10
MIB = 2**20
GIB = 2**30

MAX_SIZE = 2**63 - 1
"""Bytes; file offsets and the integers of SQLite end here."""

_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,9})?"
_SIZE = re.compile(rf"({_NUMBER})\s*([kmgt]?)(i?)(b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(
    rf"(?:({_NUMBER})\s*d\s*)?"
    rf"(?:({_NUMBER})\s*h\s*)?"
    rf"(?:({_NUMBER})\s*m(?:in)?(?!s)\s*)?"
    rf"(?:({_NUMBER})\s*s\s*)?"
    rf"(?:({_NUMBER})\s*ms)?"
)
_SECONDS = (Fraction(86400), Fraction(3600), Fraction(60), Fraction(1), Fraction(1, 1000))
_SHARE = re.compile(rf"({_NUMBER})\s*%")


def parse_size(value: object) -> int:
    """Read a size.

    ``KiB``, ``MiB``, ... and the bare letters ``K``, ``M``, ... are powers of 1024, ``kB``,
    ``MB``, ... powers of 1000, as in GNU's tools. Case does not matter.

    Args:
        value: A whole number of bytes, or a text such as ``4GiB``, ``500MB``, ``64k``.

    Returns:
        Bytes, rounded down.

    Raises:
        ValueError: It is not a size, or not below 8 EiB.
    """
    size = value if isinstance(value, int) and not isinstance(value, bool) else _size_of_text(value)
    if not 0 <= size <= MAX_SIZE:
        raise ValueError("a size is at least 0 and below 8 EiB")
    return size


def _size_of_text(value: object) -> int:
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("not a size such as 4GiB")
    number, prefix, binary, byte = match.groups()
    if binary and not prefix:
        raise ValueError("not a size such as 4GiB")
    base = 1000 if byte and not binary else 1024
    return int(Fraction(number) * base ** _POWERS[prefix.lower()])


def parse_duration(value: object) -> float:
    """Read a duration.

    Args:
        value: A number of seconds, or a text of ``d``, ``h``, ``min`` (or ``m``), ``s`` and
            ``ms`` in this order, such as ``10s``, ``1h30min``, ``250ms``.

    Returns:
        Seconds, finite and not negative.

    Raises:
        ValueError: It is not a duration.
    """
    number = _plain_number(value)
    if number is not None:
        return number
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not any(match.groups()):
        raise ValueError("not a duration such as 10s or 1h30min")
    parts = zip(match.groups(), _SECONDS, strict=True)
    return float(sum(Fraction(count) * seconds for count, seconds in parts if count))


def parse_share(value: object) -> float:
    """Read a share of a whole.

    Args:
        value: A number such as 0.1, or a text such as ``10%``.

    Returns:
        The share, 1.0 for the whole. More than the whole is not refused here.

    Raises:
        ValueError: It is not a share.
    """
    number = _plain_number(value)
    if number is not None:
        return number
    match = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("not a share such as 10% or 0.1")
    return float(Fraction(match[1]) / 100)


def _plain_number(value: object) -> float | None:
    """Give a number as float, or None if the value is none (a bool is none).

    Raises:
        ValueError: The number is negative, infinite or too large for a float.
    """
    if isinstance(value, str) and re.fullmatch(_NUMBER, value.strip()):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError("not a finite number of at least 0")
    return number


Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST_PATTERN = re.compile(rf"(?:{_LABEL}|\*)(?:\.(?:{_LABEL}|\*))*")
_MAX_HOST_LENGTH = 253
_NAMESERVER = re.compile(
    r"\[(?P<v6>[^\]]+)\](?::(?P<v6_port>[0-9]{1,5}))?|(?P<v4>[^:]+)(?::(?P<v4_port>[0-9]{1,5}))?"
)
_USER = re.compile(
    r"[^:\s]{1,128}:(?:scrypt(?::[0-9]{1,9}){3}|pbkdf2:sha256:[0-9]{1,9})\$[^$\s]{8,64}\$[0-9a-f]{64,128}"
)
"""A name, and the hash as werkzeug.security writes it."""
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/\[\]@!$&'()*+,;=%-]+")  # no query, no fragment


ANY = "*"
"""Stands for all addresses of this machine, IPv4 and IPv6."""


class Nameserver(NamedTuple):
    """A DNS server: an IP address as text, and a port."""

    host: str
    port: int = 53


class Endpoint(NamedTuple):
    """Where to listen: an IP address or `ANY` as text, and a port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host != ANY and ipaddress.ip_address(self.host).is_loopback

    def clashes(self, other: Endpoint) -> bool:
        """Whether two servers can't have both of these at a time."""
        return self.port == other.port and (self._includes(other) or other._includes(self))

    def _includes(self, other: Endpoint) -> bool:
        all_of_family = "::" if ":" in other.host else "0.0.0.0"  # noqa: S104
        return self.host in (ANY, all_of_family, other.host)

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


def host_and_port(host: str, port: int) -> str:
    """Give both as URLs have them: an IPv6 address in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """An HTTP proxy on the way to upstream.

    Attributes:
        url: ``http[s]://host[:port]``, without credentials.
        credentials: ``user:password`` as plain text (not percent-encoded), or None.
    """

    url: str
    credentials: str | None = field(default=None, repr=False)


def normal_host(name: str) -> str:
    """Give a host name in lower case and without the dot of the DNS root."""
    return name.lower().removesuffix(".")


def parse_host_name(value: object) -> str:
    """Read a host name, an IPv4 address included."""
    return _host(value, _HOST_NAME, "a host name")


def parse_host_pattern(value: object) -> str:
    """Read a host name in which ``*`` may stand for a label (``db.*.clamav.net``)."""
    return _host(value, _HOST_PATTERN, 'a host name such as database.clamav.net or "db.*.clamav.net"')


def parse_domain_pattern(value: object) -> str:
    """Read a host name or ``*.example.com``, which is every name below example.com."""
    expected = 'a host name such as www.example.com or "*.example.com" (in quotes)'
    if isinstance(value, str) and value.startswith("*."):
        return "*." + _host(value[2:], _HOST_NAME, expected)
    return _host(value, _HOST_NAME, expected)


def host_matches(pattern: str, host: str) -> bool:
    """Tell whether a host is meant by what `parse_host_pattern` gave."""
    wanted, labels = pattern.split("."), normal_host(host).split(".")
    return len(wanted) == len(labels) and all(
        label and want in ("*", label) for want, label in zip(wanted, labels, strict=True)
    )


def domain_matches(pattern: str, host: str) -> bool:
    """Tell whether a host is meant by what `parse_domain_pattern` gave."""
    name, suffix = normal_host(host), pattern.removeprefix("*")
    return name == pattern if suffix == pattern else name.endswith(suffix) and name != suffix


def _host(value: object, pattern: re.Pattern[str], expected: str) -> str:
    host = normal_host(value) if isinstance(value, str) else ""
    if not pattern.fullmatch(host) or len(host) > _MAX_HOST_LENGTH:
        raise ValueError(expected)
    return host


def parse_database(value: object) -> str:
    """Read the name of a database."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z]+", value):
        raise ValueError("a name made of the letters a to z, such as daily")
    return value


def parse_network(value: object) -> Network:
    """Read an IP network or a single address."""
    if isinstance(value, Network):
        return value
    try:
        address = ipaddress.ip_interface(require_text(value))
    except ValueError:
        raise ValueError('a network such as 10.0.0.0/8 or "fd00::/8" (IPv6 in quotes)') from None
    if address.ip != address.network.network_address:
        # 10.1.2.3/8 may be meant as that one machine, or as a smaller network.
        raise ValueError(f"{address.network}, or {address.ip} for that address alone")
    return address.network


@lru_cache(16_384)  # each machine of a fleet connects anew for each file
def client_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read the address of a client, as its socket gives it; None if it is no IP address.

    A zone id (``fe80::1%eth0``) is left out, and an IPv4-mapped address (``::ffff:10.0.0.1``) is IPv4.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def parse_nameserver(value: object) -> Nameserver:
    """Read ``192.0.2.1``, ``192.0.2.1:5353``, ``[2001:db8::1]:53`` or ``2001:db8::1``."""
    if isinstance(value, Nameserver):
        return value
    try:
        return _nameserver(require_text(value))
    except ValueError:
        raise ValueError('an IP address with or without a port such as 192.0.2.1 or "[::1]:53"') from None


def _nameserver(text: str) -> Nameserver:
    match = _NAMESERVER.fullmatch(text)
    if match is None:
        return Nameserver(str(ipaddress.IPv6Address(text)))
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    address = ipaddress.IPv6Address(match["v6"]) if match["v6"] else ipaddress.IPv4Address(match["v4"])
    port = int(match["v6_port"] or match["v4_port"] or 53)
    if not 1 <= port <= 65535:
        raise ValueError("not a port")
    return Nameserver(str(address), port)


def parse_endpoint(value: object) -> Endpoint:
    """Read ``127.0.0.1:8081`` or ``[::1]:8081``."""
    if isinstance(value, Endpoint):
        return value
    match = _NAMESERVER.fullmatch(require_text(value))
    if match is None or not (match["v6_port"] or match["v4_port"]):
        raise ValueError("not an address and a port")
    return Endpoint(*_nameserver(match[0]))


def parse_listen(value: object) -> Endpoint:
    """Read what `parse_endpoint` does, ``*:8080`` or a mere port: both are on all addresses."""
    if isinstance(value, Endpoint):
        return value
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        text = require_text(text)
        port = text.removeprefix(f"{ANY}:")
        if re.fullmatch("[0-9]{1,5}", port):
            return Endpoint(ANY, _nameserver(f"127.0.0.1:{port}").port)
        return parse_endpoint(text)
    except ValueError:
        raise ValueError(
            'a port, or an IP address and a port such as 192.0.2.1:8080, "[::1]:8080" or "*:8080"'
        ) from None


def one_or_more(value: object) -> object:
    """Make a list of a single value, and an empty one of null."""
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


def parse_token(value: object) -> SecretStr:
    """Read a token that goes into ``Authorization: Bearer`` (RFC 6750 2.1, without ``+/=``)."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else require_text(value)
    if not re.fullmatch(r"[A-Za-z0-9._~-]{16,256}", text):
        raise ValueError("not a token")
    return SecretStr(text)


def parse_user(value: object) -> str:
    """Read a user and the hash of a password, as `clamproxy hash-password` prints them."""
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise ValueError("a line that `clamproxy hash-password` printed, beginning with - ")
    return value


def parse_base_url(value: object) -> str:
    """Read an http or https URL to which paths are appended; no trailing slash is kept."""
    parts = _split_url(value)
    if "@" in parts.netloc:
        raise ValueError("credentials in the URL")
    return _origin(parts) + parts.path.rstrip("/")


def parse_http_proxy(value: object) -> HttpProxy:
    """Read ``http[s]://[user[:password]@]host[:port]``, user and password percent-encoded."""
    if isinstance(value, HttpProxy):
        return value
    parts = _split_url(value)
    if parts.path not in ("", "/"):
        raise ValueError("a path in the URL of a proxy")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return HttpProxy(_origin(parts), f"{user}:{password}" if user or password else None)


def _split_url(value: object) -> SplitResult:
    text = require_text(value)
    if not _URL_CHARACTERS.fullmatch(text):
        raise ValueError("a query, a fragment or a character that URLs can't contain")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or parts.port == 0:
        raise ValueError("not http or https, or an impossible port")
    host = parts.hostname or ""
    if ":" in host:
        ipaddress.IPv6Address(host)
    else:
        parse_host_name(host)
    return parts


def _origin(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return (
        f"{parts.scheme}://"
        + (f"[{host}]" if ":" in host else host)
        + (f":{parts.port}" if parts.port else "")
    )


def require_text(value: object) -> str:
    """Refuse what is not a text: YAML has numbers, dates and more."""
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value
