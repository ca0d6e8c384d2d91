"""The directory where mitmproxy keeps its own authority; system users have no home directory for it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from clamproxy.cache.owners import claim
from clamproxy.config.loading import ConfigurationError
from clamproxy.config.settings import Settings
from clamproxy.files import sync_directory

_AUTHORITY = "mitmproxy-ca.pem"
_DAMAGED = ".damaged"
DEFAULT = "~/.mitmproxy"
"""mitmproxy's default."""


def find_confdir(settings: Settings) -> Path | None:
    """Find a directory for mitmproxy, and create it if necessary.

    Returns:
        The directory; None if mitmproxy's default can be used.

    Raises:
        ConfigurationError: no directory can be used.
        OSError: others need the cache directory.
    """
    home = Path(os.path.expanduser(DEFAULT))  # noqa: PTH111  # Path.expanduser raises without a home directory
    if home.is_absolute() and _can_hold_authority(home):
        return None
    for directory in (settings.tls.directory, settings.cache.directory):
        place = directory / "mitmproxy"
        claim(settings.cache.directory, place)
        if _is_made(directory) and _is_made(place) and _can_hold_authority(place):
            return place
    raise ConfigurationError(
        f"there is no place for mitmproxy's certificate authority: neither {home} nor "
        f"{settings.tls.directory} can be written to; set tls.directory, or use --set confdir=DIRECTORY"
    )


def _can_hold_authority(directory: Path) -> bool:
    """Whether mitmproxy finds its authority there, or can create one."""
    if os.access(directory / _AUTHORITY, os.R_OK):
        return True
    place = directory if os.access(directory, os.F_OK) else directory.parent
    return os.access(place, os.W_OK | os.X_OK)


def _is_made(directory: Path) -> bool:
    """Create a directory for its owner alone, unless it exists; returns whether there is one then."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def set_damaged_aside(directory: Path) -> Path | None:
    """Make way for a new authority if a power failure has left a file without a key.

    Nobody could use that one any more, and mitmproxy would not start.

    Returns:
        Where the damaged file is now; None if there is none.
    """
    path = directory / _AUTHORITY
    with suppress(OSError, TypeError):  # the latter: the key has a passphrase
        try:
            load_pem_private_key(path.read_bytes(), None)
        except ValueError:
            return path.replace(path.with_name(path.name + _DAMAGED))
    return None


def sync_authority(directory: Path) -> None:
    """Make the files of mitmproxy's authority survive a power failure; mitmproxy doesn't. Blocks."""
    with suppress(OSError):
        for path in directory.glob("mitmproxy-*"):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(directory)
        sync_directory(directory.parent)
