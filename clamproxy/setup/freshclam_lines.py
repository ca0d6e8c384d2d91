"""The lines that a machine needs in its freshclam.conf to use this gateway."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from urllib.parse import quote

from clamproxy.config.settings import Settings
from clamproxy.config.units import HOST_NAME
from clamproxy.site_files.file_names import PREFIX

CDN = "database.clamav.net"
DEFAULT_PORT = 8080
"""The port that the proxy listens on by default, like mitmproxy."""
USER, PASSWORD = "USERNAME", "PASSWORD"
"""Placeholders: the configuration holds only hashes of passwords."""

_SOMEWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses reserved for documentation; nothing is sent to them."""


class Mode(StrEnum):
    """The ways in which a machine can use the gateway."""

    HTTP = "http"
    """As a proxy, with plain HTTP inside: no certificate has to be trusted."""
    HTTPS = "https"
    """As a proxy that intercepts TLS."""
    MIRROR = "mirror"
    """As the mirror, without a proxy."""
    PRIVATE = "private"
    """As the mirror, but without DNS and only for whole files."""


_TITLES = {
    Mode.HTTP: "Use clamproxy as a proxy, over http.",
    Mode.HTTPS: "Use clamproxy as a proxy, over https.",
    Mode.MIRROR: "Use clamproxy as the mirror.",
    Mode.PRIVATE: "Use clamproxy as a private mirror: no DNS, no patches, whole files only.",
}
_INSTEAD = "These replace all other lines with DatabaseMirror, PrivateMirror and HTTPProxy*."
_FILES = "The site's own files. freshclam fetches them from the gateway itself, in any mode."
_OWN_RECORD = "This one replaces another DNSDatabaseInfo: the versions have a name of this site's own."
_TRUST = (
    "This machine has to trust the gateway's certificate authority: run `clamproxy ca install` on the",
    "gateway, and its script here. On Linux and BSD, freshclam then trusts no other. If it also fetches",
    "from https hosts that the gateway passes through, append the public ones: see docs/https.md.",
)
_USERS = (
    f"Replace {PASSWORD} with the user's own. Only the owner may then be able to read this file",
    "(chmod 600): freshclam insists on that.",
)
_USERS_IN_URL = (
    f"freshclam has no other setting for a mirror's user, so it is in the URL. Replace {PASSWORD}",
    "with the user's own, percent-encoded. Close this file to others (chmod 600).",
    "freshclam's log shows the URL as it is.",
)


def client_config(
    settings: Settings,
    mode: Mode,
    gateway: str,
    port: int,
    *,
    files: Sequence[str] = (),
    names_user: bool = False,
) -> str:
    """The lines for one way to use the gateway, with short comments.

    Args:
        gateway: a host name or an IP address by which machines reach the gateway.
        port: the proxy's port.
        files: the names of the site's own files, in their order.
        names_user: whether to name the user if there is just one, instead of a placeholder. Lines that
            anybody may fetch must not reveal the name.

    Returns:
        Whole lines of ASCII, which can be appended to a freshclam.conf.

    Raises:
        ValueError: the name or the port is invalid; the text says what was expected.
    """
    host = _shown_host(gateway)
    if not 1 <= port <= 65535:
        raise ValueError("a port from 1 to 65535")
    comments, lines, credentials = [_TITLES[mode], _INSTEAD], [], ""
    if mode in (Mode.HTTP, Mode.HTTPS):
        lines += [f"HTTPProxyServer {host}", f"HTTPProxyPort {port}"]
        user = _user(settings, names_user)
        lines += [f"HTTPProxyUsername {user}", f"HTTPProxyPassword {PASSWORD}"] if user else []
        lines.append(f"DatabaseMirror {mode}://{_cdn(settings)}")
        comments += _TRUST if mode is Mode.HTTPS else ()
        comments += _USERS if user else ()
    else:
        key = "DatabaseMirror" if mode is Mode.MIRROR else "PrivateMirror"
        user = _user(settings, names_user)
        credentials = f"{quote(user, safe='')}:{PASSWORD}@" if user else ""
        lines.append(f"{key} http://{credentials}{host}:{port}")
        comments += _USERS_IN_URL if user else ()
    base = f"{_scheme(settings, mode, gateway)}://{credentials}{host}:{port}{PREFIX}"
    custom = [f"DatabaseCustomURL {base}{name}" for name in files]
    comment = [f"# {_FILES}"] if files else []
    if settings.serving.dns_name is not None and mode is not Mode.PRIVATE:
        comments.append(_OWN_RECORD)
        lines.append(f"DNSDatabaseInfo {settings.serving.dns_name}")
    return "".join(
        f"{line}\n" for line in [*(f"# {comment}" for comment in comments), *lines, *comment, *custom]
    )


def _scheme(settings: Settings, mode: Mode, gateway: str) -> str:
    """How the site's own files are fetched: by https only if the gateway has a certificate for its name."""
    return "https" if mode is Mode.HTTPS and gateway in settings.tls.names else "http"


def own_name() -> str | None:
    """The name or address by which other machines probably reach this one; None if it has none.

    Blocks for as long as the system's resolver does.
    """
    name = socket.getfqdn()
    return name if _is_public(name) else _own_address()


def _user(settings: Settings, names_user: bool) -> str | None:
    """The user's name or the placeholder for one; None if there are no users."""
    users = [line.partition(":")[0] for line in settings.access.users]
    if not users:
        return None
    return users[0] if names_user and len(users) == 1 else USER


def _cdn(settings: Settings) -> str:
    """A name of the CDN that the gateway answers to."""
    if settings.serving.is_clamav_host(CDN):
        return CDN
    return next((host for host in settings.serving.hosts if "*" not in host), CDN)


def _shown_host(gateway: str) -> str:
    """The name in the form for URLs; it may come from a request, so anything but a valid name is refused."""
    if "%" in gateway:  # a zone, which means something on this machine only
        raise ValueError("a host name or an IP address")
    with suppress(ValueError):
        return f"[{ipaddress.IPv6Address(gateway.removeprefix('[').removesuffix(']'))}]"
    return HOST_NAME.parse(gateway)


def _is_public(name: str) -> bool:
    """Whether a name resolves to addresses other than this machine's loopback addresses."""
    try:
        HOST_NAME.parse(name)
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return False
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return bool(addresses) and not any(address.is_loopback for address in addresses)


def _own_address() -> str | None:
    """The address from which packets to the outside are sent."""
    for family, somewhere in zip((socket.AF_INET, socket.AF_INET6), _SOMEWHERE, strict=True):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))  # a datagram socket: nothing is sent
            address = str(probe.getsockname()[0])
            if not ipaddress.ip_address(address).is_loopback:
                return address
    return None
