"""The route of freshclam's requests: past or through which proxy, to which server (protocol.md 1.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from clamproxy.config.units import host_and_port
from clamproxy.doctor.freshclam import FreshclamConf
from clamproxy.setup.freshclam_lines import CDN

DEFAULT_PORT = 8080
"""Of the proxy, without HTTPProxyPort (protocol.md 1.4)."""

_PORTS = {"http": 80, "https": 443}
_OFFICIAL = "clamav.net"


@dataclass(frozen=True, slots=True)
class Route:
    """How a machine gets to the gateway."""

    host: str
    """Of the gateway."""
    port: int = DEFAULT_PORT
    credentials: str | None = field(default=None, repr=False)
    """``user:password``."""
    uses_https: bool = False
    """Whether there is TLS to the server, in the gateway's tunnel."""
    target: str = f"{CDN}:80"
    """The server that is asked for through the gateway."""
    is_mirror: bool = False
    """The gateway is itself the server, not a proxy."""


def route_of(conf: FreshclamConf, environ: Mapping[str, str]) -> Route | None:
    """The way to the gateway; None if requests go to ClamAV's servers without one.

    Args:
        conf: of freshclam.
        environ: freshclam's environment: without HTTPProxyServer libcurl takes the proxy from there.
    """
    servers = [server for url in conf.mirrors if (server := _split(url))]
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
    proxy = _split(_proxy_in(environ, is_https=is_https)) if servers else None
    if proxy is not None and proxy.hostname:
        return Route(proxy.hostname, proxy.port or 1080, _credentials(proxy), is_https, target)
    return None


def is_official(host: str) -> bool:
    """Whether a server is one of ClamAV's own."""
    return host == _OFFICIAL or host.endswith(f".{_OFFICIAL}")


def bypass(conf: FreshclamConf, environ: Mapping[str, str]) -> str | None:
    """The variable that sends requests past the proxy, with its value: it counts more than freshclam.conf.

    Args:
        conf: of freshclam.
        environ: freshclam's environment.
    """
    for name in ("no_proxy", "NO_PROXY"):
        if (value := environ.get(name)) is None:
            continue
        hosts = [server.hostname or "" for url in conf.mirrors if (server := _split(url))]
        # The second is not looked at where there is the first.
        return f"{name}={value}" if any(_is_listed(host, value) for host in hosts) else None
    return None


def _is_listed(host: str, value: str) -> bool:
    """Whether libcurl connects to a host without a proxy (CURLOPT_NOPROXY(3))."""
    entries = [entry.lstrip(".").lower() for entry in value.replace(",", " ").split()]
    return value.strip() == "*" or any(f".{host}".endswith(f".{entry}") for entry in entries if entry)


def _proxy(server: str, option: str | None) -> tuple[str, int]:
    """Host and port; libcurl takes the port behind the host rather than HTTPProxyPort."""
    parts = _split(server if "://" in server else f"//{server}")
    number = int(option) if option and option.isascii() and option.isdecimal() else 0
    if parts is None or not parts.hostname:
        return server, number or DEFAULT_PORT
    return parts.hostname, parts.port or number or DEFAULT_PORT


def _proxy_in(environ: Mapping[str, str], *, is_https: bool) -> str:
    """The proxy that libcurl takes: HTTP_PROXY in capitals is not among them."""
    names = ("https_proxy", "HTTPS_PROXY") if is_https else ("http_proxy",)
    value = next((environ[name] for name in (*names, "all_proxy", "ALL_PROXY") if environ.get(name)), "")
    return value if "://" in value or not value else f"http://{value}"


def _credentials(parts: SplitResult) -> str | None:
    if not parts.username:
        return None
    return f"{unquote(parts.username)}:{unquote(parts.password or '')}"


def _target(server: SplitResult) -> str:
    """The server as CONNECT names it; what is asked for is tried without TLS first."""
    port = server.port if server.scheme == "http" else None
    return host_and_port(server.hostname or CDN, port or _PORTS["http"])


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None if it is none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is no number
    except ValueError:
        return None
    return parts if parts.netloc else None
