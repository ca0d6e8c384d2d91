"""mitmproxy's options as the gateway needs them, so that no flag has to be remembered."""

from __future__ import annotations

import logging
import math

from mitmproxy import optmanager

from clamproxy.config.settings import Settings

DEFAULTS: dict[str, bool | str | int] = {
    # Answer CONNECT without the origin: else nothing is served while it is down (trap 2).
    "connection_strategy": "lazy",
    "upstream_cert": False,
    # HTTP/1.1 goes from disk to the socket, HTTP/2 piece by piece through the layers.
    "http2": False,
    # Who may use the proxy is decided by serving.clients.
    "block_global": False,
    # On a reverse port too, the pages go by the name that the client asked for.
    "keep_host_header": True,
    # mitmproxy's page about its own authority would answer before the addon is asked, whoever asks.
    "onboarding": False,
    # The access log is clamproxy's own; nothing else is printed or kept for each request.
    "flow_detail": 0,
}


class OwnOptions:
    """Sets what the user has not set, on the command line or in mitmproxy's own file."""

    def __init__(self) -> None:
        self._sets_timeout = False

    def set_defaults(self, options: optmanager.OptManager) -> None:
        """Set `DEFAULTS`."""
        unset = {name: value for name, value in DEFAULTS.items() if not _is_set(options, name)}
        options.update(**unset)  # type: ignore[no-untyped-call]
        self._sets_timeout = not _is_set(options, "tcp_timeout")
        # A record for each connect and disconnect costs as much as serving a small file.
        logging.getLogger("mitmproxy.proxy.server").setLevel(logging.WARNING)

    def follow(self, options: optmanager.OptManager, settings: Settings) -> None:
        """Set what the configuration says; connections that are open keep what they have."""
        if self._sets_timeout:
            options.update(tcp_timeout=math.ceil(settings.access.idle_timeout))  # type: ignore[no-untyped-call]


def _is_set(options: optmanager.OptManager, name: str) -> bool:
    """Whether the user has given the option a value, be it the default one."""
    return options._options[name].value is not optmanager.unset
