"""The freshclam of this machine: what it is told of proxy and mirrors, and how it introduces itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

PLACES = (
    Path("/etc/clamav/freshclam.conf"),
    Path("/etc/freshclam.conf"),
    Path("/usr/local/etc/freshclam.conf"),
)
DEFAULT_PORT = 8080
"""Without HTTPProxyPort (protocol.md 1.4)."""
ANY_VERSION = "1.4.3"
"""What a machine without freshclam says: one that ClamAV supports."""


@dataclass(frozen=True, slots=True)
class FreshclamConf:
    """The lines that matter here."""

    host: str | None = None
    """Of the proxy, or of a mirror that is not ClamAV's; None if there is neither."""
    port: int = DEFAULT_PORT
    credentials: str | None = field(default=None, repr=False)
    uses_https: bool = False


def find_conf(places: Iterable[Path] = PLACES) -> Path | None:
    """The configuration of the freshclam here, if it can be read."""
    for path in places:
        try:
            with path.open("rb"):
                return path
        except OSError:
            continue
    return None


def read_conf(path: Path) -> FreshclamConf:
    """Read a freshclam.conf.

    Raises:
        OSError: it can't be read.
    """
    return parse_conf(path.read_text(encoding="utf-8", errors="replace"))


def parse_conf(text: str) -> FreshclamConf:
    """See `read_conf`; a key that is there more than once has its last value."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key and not key.startswith("#"):
            values.setdefault(key, []).append(value.strip().strip('"'))
    last = {key: found[-1] for key, found in values.items()}
    mirrors = values.get("PrivateMirror") or values.get("DatabaseMirror") or []
    uses_https = any(_is_https(mirror, "PrivateMirror" in values) for mirror in mirrors)
    if server := last.get("HTTPProxyServer", "").removeprefix("http://"):
        port = last.get("HTTPProxyPort", "")
        user, password = last.get("HTTPProxyUsername"), last.get("HTTPProxyPassword")
        credentials = f"{user}:{password}" if user and password else None
        number = int(port) if re.fullmatch("[0-9]{1,5}", port) else DEFAULT_PORT
        return FreshclamConf(server.strip("[]"), number, credentials, uses_https)
    return _mirror(mirrors)


def user_agent() -> str:
    """As the freshclam of this machine introduces itself, without the machine's UUID."""
    system = os.uname()
    version = _installed_version() or ANY_VERSION
    return f"ClamAV/{version} (OS: {system.sysname}, ARCH: {system.machine}, CPU: {system.machine})"


def _installed_version() -> str | None:
    program = shutil.which("freshclam")
    if program is None:
        return None
    try:
        result = subprocess.run(  # noqa: S603
            [program, "--version"], capture_output=True, text=True, timeout=3, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"ClamAV (\d+(?:\.\d+){1,2})", result.stdout)
    return match[1] if match else None


def _is_https(mirror: str, is_private: bool) -> bool:
    """DatabaseMirror without a scheme is https, and so is db.*.clamav.net (protocol.md 1.1)."""
    return mirror.startswith("https://") or ("://" not in mirror and not is_private)


def _mirror(mirrors: list[str]) -> FreshclamConf:
    """A gateway that is used as a mirror: its port is the proxy's, too."""
    for mirror in mirrors:
        try:
            parts = urlsplit(mirror if "://" in mirror else f"http://{mirror}")
            host, port = parts.hostname, parts.port
        except ValueError:
            continue
        if host and not host.endswith("clamav.net") and parts.scheme == "http":
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
            return FreshclamConf(host, port or 80, f"{user}:{password}" if user else None)
    return FreshclamConf()
