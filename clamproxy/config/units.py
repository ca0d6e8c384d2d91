"""The values in proxy.yaml: units of sizes, hosts, addresses, URLs and secrets, and how they are written."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pydantic import SecretStr

from clamproxy.config.notation import Mistake, Notation

KIB = 2**10
MIB = 2**20
GIB = 2**30

MASK = "***"
"""Shown instead of a secret. No key that holds a secret accepts it as a value."""

# Hosts

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_MAX_HOST_LENGTH = 253


def normal_host(name: str) -> str:
    """The host name in lower case and without the dot of the DNS root."""
    return name.lower().removesuffix(".")


def _host(text: str) -> str:
    host = normal_host(text)
    if len(host.removeprefix("*.")) > _MAX_HOST_LENGTH:
        raise ValueError("too long")
    return host


HOST_NAME = Notation(pattern=rf"^{_LABEL}(\.{_LABEL})*\.?$", expected="a host name", read=_host)
"""Includes IPv4 addresses."""

HOST_PATTERN = Notation(
    pattern=rf"^({_LABEL}|\*)(\.({_LABEL}|\*))*\.?$",
    expected='a host name such as database.clamav.net or "db.*.clamav.net"',
    read=_host,
)
"""A host name in which ``*`` may stand for a label; see `host_matches`."""

DOMAIN_PATTERN = Notation(
    pattern=rf"^(\*\.)?{_LABEL}(\.{_LABEL})*\.?$",
    expected='a host name such as www.example.com or "*.example.com" (in quotes)',
    read=_host,
)
"""A host name, or ``*.example.com`` for every name below example.com; see `domain_matches`."""


def host_matches(pattern: str, host: str) -> bool:
    """Whether a `HOST_PATTERN` matches a host."""
    wanted, labels = pattern.split("."), normal_host(host).split(".")
    return len(wanted) == len(labels) and all(
        label and want in ("*", label) for want, label in zip(wanted, labels, strict=True)
    )


def domain_matches(pattern: str, host: str) -> bool:
    """Whether a `DOMAIN_PATTERN` matches a host."""
    name, suffix = normal_host(host), pattern.removeprefix("*")
    return name == pattern if suffix == pattern else name.endswith(suffix) and name != suffix


DATABASE = Notation(pattern="^[a-z]+$", expected="a name made of the letters a to z, such as daily", read=str)

# Addresses

ANY = "*"
"""All addresses of this machine, IPv4 and IPv6."""


class Nameserver(NamedTuple):
    """A DNS server: an IP address as text, and a port."""

    host: str
    port: int = 53

    def __str__(self) -> str:
        return self.host if self.port == 53 else host_and_port(self.host, self.port)


class Address(NamedTuple):
    """Where a server is: an IP address as text, and a port if it isn't the one in the server's URL."""

    host: str
    port: int | None = None

    def __str__(self) -> str:
        return self.host if self.port is None else host_and_port(self.host, self.port)


class Endpoint(NamedTuple):
    """Where to listen: an IP address or `ANY` as text, and a port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host != ANY and ipaddress.ip_address(self.host).is_loopback

    def clashes(self, other: Endpoint) -> bool:
        """Whether two servers can't listen on both of these at the same time."""
        return self.port == other.port and (self._includes(other) or other._includes(self))

    def _includes(self, other: Endpoint) -> bool:
        all_of_family = "::" if ":" in other.host else "0.0.0.0"  # noqa: S104
        return self.host in (ANY, all_of_family, other.host)

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def host_and_port(host: str, port: int) -> str:
    """Host and port as in URLs: an IPv6 address is in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_of(url: SplitResult) -> int:
    """The port of an http or https URL, given or implied."""
    return url.port or (443 if url.scheme == "https" else 80)


@lru_cache(16_384)  # each machine of a fleet connects anew for each file
def client_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse a client's address as its socket gives it; None if it isn't an IP address.

    A zone id (``fe80::1%eth0``) is dropped. An IPv4-mapped address (``::ffff:10.0.0.1``) becomes IPv4.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _network(text: str) -> Network:
    address = ipaddress.ip_interface(text)
    if address.ip != address.network.network_address:
        # 10.1.2.3/8 may mean that one machine, or a smaller network.
        raise Mistake(f"{address.network}, or {address.ip} for that address alone")
    return address.network


def _address_and_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, _, rest = text.removeprefix("[").partition("]")
        return str(ipaddress.IPv6Address(host)), _port(rest.removeprefix(":")) if rest else None
    if text.count(":") == 1:
        host, _, rest = text.partition(":")
        return str(ipaddress.IPv4Address(host)), _port(rest)
    return str(ipaddress.ip_address(text)), None


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise ValueError("not a port")
    return port


def _nameserver(text: str) -> Nameserver:
    host, port = _address_and_port(text)
    return Nameserver(host, port or 53)


def _endpoint(text: str) -> Endpoint:
    address, _, port = text.rpartition(":")
    return Endpoint(ANY if address in ("", ANY) else _address_and_port(address)[0], _port(port))


NETWORK = Notation[Network](
    pattern=r"^[0-9A-Fa-f.:]+(%[^\s/]+)?(/[0-9.]+)?$",
    expected='a network such as 10.0.0.0/8 or "fd00::/8" (IPv6 in quotes)',
    read=_network,
)
"""A network or a single address."""

NAMESERVER = Notation(
    pattern=r"^([0-9.]+|\[[^\]]+\])(:[0-9]{1,5})?$|^[0-9A-Fa-f.:]+(%\S+)?$",
    expected='an IP address with or without a port such as 192.0.2.1 or "[::1]:53"',
    read=_nameserver,
)

ADDRESS = Notation(
    pattern=NAMESERVER.pattern,
    expected='an IP address with or without a port such as 192.0.2.1, 192.0.2.1:8443 or "[2001:db8::1]:443"',
    read=lambda text: Address(*_address_and_port(text)),
)

ENDPOINT = Notation(
    pattern=r"^([0-9.]+|\[[^\]]+\]):[0-9]{1,5}$", expected="an address and a port", read=_endpoint
)
"""``127.0.0.1:8081`` or ``[::1]:8081``."""

LISTEN = Notation(
    pattern=r"^([0-9.]+:|\[[^\]]+\]:|\*:)?[0-9]{1,5}$",
    expected='a port, or an IP address and a port such as 192.0.2.1:8080, "[::1]:8080" or "*:8080"',
    read=_endpoint,
    integers={"type": "integer", "minimum": 1, "maximum": 65535},
)
"""As `ENDPOINT`, or ``*:8080`` or just a port, both of which mean all addresses."""

# URLs

_HTTP = r"^[Hh][Tt][Tt][Pp][Ss]?://"
_CHARACTERS = r"A-Za-z0-9._~:/\[\]!$&'()*+,;=%-"
"""The characters of URLs without a query, a fragment and credentials."""


@dataclass(frozen=True, slots=True)
class HttpProxy:
    """An HTTP proxy on the way to upstream.

    Attributes:
        url: ``http[s]://host[:port]``, without credentials.
        credentials: ``user:password`` as plain text (not percent-encoded), or None.
        scheme: how to log in: ``basic``, ``ntlm`` or ``negotiate``.
    """

    url: str
    credentials: str | None = field(default=None, repr=False)
    scheme: str = "basic"


def _base_url(text: str) -> str:
    parts = urlsplit(text)
    return _origin(parts) + parts.path.rstrip("/")


def _http_proxy(text: str) -> HttpProxy:
    parts = urlsplit(text)
    if parts.path not in ("", "/"):
        raise ValueError("a path in the URL of a proxy")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return HttpProxy(_origin(parts), f"{user}:{password}" if user or password else None)


def _origin(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        ipaddress.IPv6Address(host)
    else:
        HOST_NAME.parse(host)
    if parts.port == 0:
        raise ValueError("an impossible port")
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def _write_proxy(proxy: HttpProxy) -> str:
    if proxy.credentials is None:
        return proxy.url
    scheme, _, host = proxy.url.partition("://")
    user = proxy.credentials.partition(":")[0]
    return f"{scheme}://{quote(user, safe='')}:{MASK}@{host}"


FLEET_STORE = Notation(
    pattern=r"^(s3|gs|az)://[a-z0-9][a-z0-9._-]{1,62}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?$",
    expected="an s3://, gs:// or az:// URL such as s3://bucket/prefix, without credentials",
    read=lambda url: url.rstrip("/"),
)
"""A bucket, and what all paths in it begin with."""

BASE_URL = Notation(
    pattern=f"{_HTTP}[{_CHARACTERS}]+$",
    expected="an http:// or https:// URL without credentials, query or fragment",
    read=_base_url,
)
"""A URL to which paths are appended; a trailing slash is removed."""

HTTP_PROXY = Notation(
    pattern=f"{_HTTP}[@{_CHARACTERS}]+$",
    expected="an http:// or https:// URL such as http://user:password@proxy:3128",
    read=_http_proxy,
    write=_write_proxy,
)
"""User and password are percent-encoded."""

# Secrets


@dataclass(frozen=True, slots=True)
class SecretUrl:
    """A URL of which only the origin may be shown."""

    origin: str
    """``http[s]://host[:port]``"""
    url: str = field(repr=False)
    """All of it."""

    @classmethod
    def parse(cls, text: str) -> SecretUrl:
        """Read a URL.

        Raises:
            ValueError: its host or port is impossible.
        """
        return cls(_origin(urlsplit(text)), text)


TOKEN = Notation(
    pattern="^[A-Za-z0-9._~-]{16,256}$",
    expected="a string of at least 16 characters from A-Z, a-z, 0-9 and -._~",
    read=SecretStr,
    write=lambda _: MASK,
)
"""The value for ``Authorization: Bearer`` (RFC 6750 2.1, without ``+/=``)."""

USER = Notation(
    pattern=r"^[^:\s]{1,128}:(scrypt(:[0-9]{1,9}){3}|pbkdf2:sha256:[0-9]{1,9})\$[^$\s]{8,64}\$[0-9a-f]{64,128}$",
    expected="a line that `clamproxy hash-password` printed, beginning with - ",
    read=str,
    write=lambda line: f"{line.partition(':')[0]}:{MASK}",
)
"""A name, and the hash of a password as werkzeug.security writes it."""


def require_text(value: object) -> str:
    """Refuse anything but a string: YAML has numbers, dates and more."""
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value
