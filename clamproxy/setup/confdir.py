"""The directory where mitmproxy keeps its own authority; system users have no home directory for it."""

from __future__ import annotations

import os
from pathlib import Path

from clamproxy.config.loading import ConfigurationError
from clamproxy.config.settings import Settings

DEFAULT = "~/.mitmproxy"
"""mitmproxy's default."""


def find_confdir(settings: Settings) -> Path | None:
    """Find a directory for mitmproxy, and create it if necessary.

    Returns:
        The directory; None if mitmproxy's default can be used.

    Raises:
        ConfigurationError: no directory can be used.
    """
    home = Path(os.path.expanduser(DEFAULT))  # noqa: PTH111  # Path.expanduser raises without a home directory
    if home.is_absolute() and _can_hold_authority(home):
        return None
    for directory in (settings.tls.directory, settings.cache.directory):
        place = directory / "mitmproxy"
        if _is_made(directory) and _is_made(place) and _can_hold_authority(place):
            return place
    raise ConfigurationError(
        f"there is no place for mitmproxy's certificate authority: neither {home} nor "
        f"{settings.tls.directory} can be written to; set tls.directory, or use --set confdir=DIRECTORY"
    )


def _can_hold_authority(directory: Path) -> bool:
    """Whether mitmproxy finds its authority there, or can create one."""
    if os.access(directory / "mitmproxy-ca.pem", os.R_OK):
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
