"""mitmproxy's options as the gateway needs them, so that no flag has to be remembered."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from mitmproxy import optmanager

from clamproxy.config.loading import ConfigurationError
from clamproxy.config.settings import Settings
from clamproxy.proxy.listening import OPTIONS as LISTENING

DEFAULTS: dict[str, bool | str | int] = {
    # Answer CONNECT without the origin: else nothing is served while it is down (trap 2).
    "connection_strategy": "lazy",
    "upstream_cert": False,
    # HTTP/1.1 goes from disk to the socket, HTTP/2 piece by piece through the layers.
    "http2": False,
    # Who may use the proxy is decided by serving.clients.
    "block_global": False,
    # mitmproxy's page about its own authority would answer before the addon is asked, whoever asks.
    "onboarding": False,
    # The access log is clamproxy's own; nothing else is printed or kept for each request.
    "flow_detail": 0,
}


class OwnOptions:
    """Sets what the user has not set, on the command line or in mitmproxy's own file."""

    def __init__(self) -> None:
        self.given: frozenset[str] = frozenset()
        """The names of those that the user has set."""

    def set_defaults(self, options: optmanager.OptManager) -> None:
        """Set `DEFAULTS`, and note what the user has set."""
        ours = ("tcp_timeout", "confdir", *LISTENING, *DEFAULTS)
        self.given = frozenset(name for name in ours if _is_set(options, name))
        unset = {name: value for name, value in DEFAULTS.items() if name not in self.given}
        options.update(**unset)  # type: ignore[no-untyped-call]
        # A record for each connect and disconnect costs as much as serving a small file.
        logging.getLogger("mitmproxy.proxy.server").setLevel(logging.WARNING)

    def follow(self, options: optmanager.OptManager, settings: Settings) -> None:
        """Set what the configuration says; connections that are open keep what they have."""
        if "tcp_timeout" not in self.given:
            options.update(tcp_timeout=math.ceil(settings.access.idle_timeout))  # type: ignore[no-untyped-call]

    def place_authority(self, options: optmanager.OptManager, settings: Settings) -> None:
        """Give mitmproxy's own authority a place that can be written: system users have no home.

        Raises:
            ConfigurationError: there is none.
        """
        if "confdir" in self.given:
            return
        home = Path(os.path.expanduser(options.confdir))  # noqa: PTH111  # Path's raises where there is no home
        if home.is_absolute() and _can_hold_authority(home):
            return
        for directory in (settings.tls.directory, settings.cache.directory):
            place = directory / "mitmproxy"
            if _is_made(directory) and _is_made(place) and _can_hold_authority(place):
                options.update(confdir=str(place))  # type: ignore[no-untyped-call]
                return
        raise ConfigurationError(
            f"mitmproxy's authority has no place: neither {home} nor {settings.tls.directory} "
            "can be written; set tls.directory, or give --set confdir=DIRECTORY"
        )


def _is_set(options: optmanager.OptManager, name: str) -> bool:
    """Whether the user has given the option a value, be it the default one."""
    return name in options and options._options[name].value is not optmanager.unset


def _can_hold_authority(directory: Path) -> bool:
    """Whether mitmproxy finds its authority there, or can make it."""
    if os.access(directory / "mitmproxy-ca.pem", os.R_OK):
        return True
    place = directory if os.access(directory, os.F_OK) else directory.parent
    return os.access(place, os.W_OK | os.X_OK)


def _is_made(directory: Path) -> bool:
    """Make a directory that only its owner can look into, if it isn't there."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return True
