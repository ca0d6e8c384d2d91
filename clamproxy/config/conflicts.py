"""Values that are valid alone but can't work together, or not where the proxy listens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from clamproxy.config.settings import Settings
from clamproxy.config.units import Endpoint, host_and_port, port_of

TIDIED = ("index", "objects", "partial", "quarantine", "feeds", "build", "staging")
"""Directories of the cache from which the gateway removes anything it doesn't know."""


def find_conflict(settings: Settings, listening: Sequence[Endpoint]) -> str | None:
    """The first conflict: key, value, and what was expected.

    Args:
        listening: where the proxy listens: listen.proxy, unless the command line says otherwise.

    Returns:
        One line; None if there is no conflict.
    """
    pages = settings.status.listen
    for endpoint in listening:
        if pages is not None and endpoint.clashes(pages):
            return f"status.listen is {pages}; expected another port, as the proxy listens on {endpoint}"
    return (
        _loop(settings, listening)
        or _unused_address(settings)
        or _nothing_to_log_in_with(settings)
        or _dns_loop(settings)
        or _hidden_host(settings)
        or _records_among_objects(settings)
        or _unknown_database(settings)
    )


def _loop(settings: Settings, listening: Sequence[Endpoint]) -> str | None:
    urls = {"upstream.url": settings.upstream.url}
    if settings.upstream.proxy is not None:
        urls["upstream.proxy"] = settings.upstream.proxy.url
    for key, url in urls.items():
        if any(_leads_to(url, endpoint) for endpoint in listening):
            return f"{key} is {url}; expected another address, as that is this gateway itself"
    parts = urlsplit(settings.upstream.url)
    for address in settings.upstream.address:
        port = address.port or port_of(parts)
        if any(port == endpoint.port and _is_own(address.host, endpoint) for endpoint in listening):
            return f"upstream.address has {address}; expected another address, as that is this gateway itself"
    return None


def _unused_address(settings: Settings) -> str | None:
    upstream = settings.upstream
    if not upstream.address or upstream.proxy is None:
        return None
    where = ", ".join(map(str, upstream.address))
    return f"upstream.address is {where}; expected null, as upstream.proxy connects to upstream instead"


def _nothing_to_log_in_with(settings: Settings) -> str | None:
    upstream = settings.upstream
    if upstream.proxy_auth == "basic":
        return None
    if upstream.proxy is None:
        return f"upstream.proxy_auth is {upstream.proxy_auth}; expected basic, as upstream.proxy is not set"
    if upstream.proxy_auth == "ntlm" and upstream.proxy.credentials is None:
        return "upstream.proxy_auth is ntlm; expected basic, as upstream.proxy has no user and password"
    return None


def _dns_loop(settings: Settings) -> str | None:
    servers = {"versions": settings.versions.nameservers, "fleet": settings.fleet.nameservers}
    for section, server in ((name, one) for name, given in servers.items() for one in given):
        for endpoint in settings.listen.dns:
            if server.port == endpoint.port and _is_own(server.host, endpoint):
                return (
                    f"{section}.nameservers has {host_and_port(*server)}; "
                    "expected another address, as that is this gateway itself"
                )
    return None


def _hidden_host(settings: Settings) -> str | None:
    """A host that can't serve its purpose, because the gateway answers for it as the CDN."""
    named = {
        "serving.pass_through": settings.serving.pass_through,
        "feeds.hosts": settings.feeds.hosts,
        "status.host": [settings.status.host] if settings.status.host else [],
    }
    for key, hosts in named.items():
        for host in hosts:
            if not host.startswith("*.") and settings.serving.is_clamav_host(host):
                return f"{key} has {host}; expected none of serving.hosts, which the gateway answers itself"
    return None


def _records_among_objects(settings: Settings) -> str | None:
    """Records, files or keys that would be tidied up with the cache: they would be lost at the next start."""
    kept = {
        "state.directory": settings.state.directory,
        "files.directory": settings.files.directory,
        "tls.directory": settings.tls.directory,
    }
    for key, directory in kept.items():
        for name in TIDIED:
            if directory is not None and directory.is_relative_to(settings.cache.directory / name):
                return f"{key} is {directory}; expected a directory outside of the cache's own {name}"
    return None


def _leads_to(url: str, endpoint: Endpoint) -> bool:
    """Whether a URL leads to this machine, as far as that can be told without a DNS lookup."""
    parts = urlsplit(url)
    if port_of(parts) != endpoint.port:
        return False
    hosts = ["127.0.0.1", "::1"] if parts.hostname == "localhost" else [parts.hostname or ""]
    return any(_is_own(host, endpoint) for host in hosts)


def _is_own(host: str, endpoint: Endpoint) -> bool:
    with suppress(ValueError):
        address = ip_address(host)
        if str(address) == endpoint.host:
            return True
        here = address.is_loopback or address.is_unspecified
        return here and endpoint.clashes(Endpoint(str(address), endpoint.port))
    return False


def _unknown_database(settings: Settings) -> str | None:
    served = settings.serving.databases
    for database in settings.releases.delay:
        if database not in served:
            return f"releases.delay has {database}; expected one of serving.databases: {', '.join(served)}"
    return None
