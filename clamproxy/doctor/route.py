"""The route of freshclam's requests: through which proxy, if any, and to which server.

Source: docs/protocol.md 1.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from clamproxy.config.units import host_and_port
from clamproxy.doctor.freshclam import FreshclamConf
from clamproxy.setup.freshclam_lines import CDN

DEFAULT_PORT = 8080
"""The proxy's port if HTTPProxyPort is not set (docs/protocol.md 1.4)."""

_PORTS = {"http": 80, "https": 443}
_OFFICIAL = "clamav.net"


@dataclass(frozen=True, slots=True)
class Route:
    """How a machine reaches the gateway."""

    host: str
    """The gateway's name or address."""
    port: int = DEFAULT_PORT
    credentials: str | None = field(default=None, repr=False)
    """As ``user:password``."""
    uses_https: bool = False
    """Whether TLS is used with the server, inside the gateway's tunnel."""
    target: str = f"{CDN}:80"
    """The server that is asked for through the gateway, as host and port."""
    is_mirror: bool = False
    """Whether the gateway is the server itself, rather than a proxy."""


def route_of(conf: FreshclamConf, environ: Mapping[str, str]) -> Route | None:
    """The way to the gateway; None if requests go to ClamAV's servers directly.

    Args:
        environ: freshclam's environment; without HTTPProxyServer, libcurl takes the proxy from there.
    """
    servers = [server for url in conf.mirrors if (server := url_parts(url))]
    is_https = any(server.scheme == "https" for server in servers)
    target = _target(servers[0]) if servers else f"{CDN}:80"
    if (named := conf.first("HTTPProxyServer")) is not None:
        host, port = _proxy(named.removeprefix("http://"), conf.first("HTTPProxyPort"))
        user, password = conf.first("HTTPProxyUsername"), conf.first("HTTPProxyPassword")
        credentials = f"{user}:{password}" if user and password else None
        return Route(host, port, credentials, is_https, target)
    for server in servers:
        if server.scheme == "http" and not is_official(server.hostname or ""):
            host, port = server.hostname or "", server.port or _PORTS["http"]
            return Route(host, port, _credentials(server), target=_target(server), is_mirror=True)
    proxy = url_parts(_proxy_in(environ, is_https=is_https)) if servers else None
    if proxy is not None and proxy.hostname:
        # Without a port in the variable, libcurl uses 1080 (CURLOPT_PROXY(3)).
        return Route(proxy.hostname, proxy.port or 1080, _credentials(proxy), is_https, target)
    return None


def is_official(host: str) -> bool:
    """Whether a server is one of ClamAV's own."""
    return host == _OFFICIAL or host.endswith(f".{_OFFICIAL}")


def bypass(conf: FreshclamConf, environ: Mapping[str, str]) -> str | None:
    """The variable, with its value, that makes requests bypass the proxy; it overrides freshclam.conf.

    Args:
        environ: freshclam's environment.
    """
    for name in ("no_proxy", "NO_PROXY"):
        if (value := environ.get(name)) is None:
            continue
        hosts = [server.hostname or "" for url in conf.mirrors if (server := url_parts(url))]
        # If the first variable is set, the second is ignored.
        return f"{name}={value}" if any(_is_listed(host, value) for host in hosts) else None
    return None


def _is_listed(host: str, value: str) -> bool:
    """Whether libcurl connects to a host without a proxy (CURLOPT_NOPROXY(3))."""
    entries = [entry.lstrip(".").lower() for entry in value.replace(",", " ").split()]
    return value.strip() == "*" or any(f".{host}".endswith(f".{entry}") for entry in entries if entry)


def _proxy(server: str, option: str | None) -> tuple[str, int]:
    """Host and port; a port after the host name takes precedence over HTTPProxyPort in libcurl."""
    parts = url_parts(server if "://" in server else f"//{server}")
    number = int(option[:9]) if option and option.isascii() and option.isdecimal() else 0
    if parts is None or not parts.hostname:
        return server, number or DEFAULT_PORT
    return parts.hostname, parts.port or number or DEFAULT_PORT


def _proxy_in(environ: Mapping[str, str], *, is_https: bool) -> str:
    """The proxy that libcurl takes from the environment; it ignores HTTP_PROXY in capitals."""
    names = ("https_proxy", "HTTPS_PROXY") if is_https else ("http_proxy",)
    value = next((environ[name] for name in (*names, "all_proxy", "ALL_PROXY") if environ.get(name)), "")
    return value if "://" in value or not value else f"http://{value}"


def _credentials(parts: SplitResult) -> str | None:
    if not parts.username:
        return None
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}"


def _target(server: SplitResult) -> str:
    """The server in the form for CONNECT, with the port for plain HTTP: that is tried first."""
    port = server.port if server.scheme == "http" else None
    return host_and_port(server.hostname or CDN, port or _PORTS["http"])


def url_parts(url: str) -> SplitResult | None:
    """The parts of a URL; None if it is invalid."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is not a number
    except ValueError:
        return None
    return parts if parts.netloc else None
