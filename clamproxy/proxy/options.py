"""mitmproxy's options as the gateway needs them, so that no flag has to be remembered."""

from __future__ import annotations

import logging

from mitmproxy import optmanager

DEFAULTS: dict[str, bool | str | int] = {
    # Answer CONNECT without the origin: else nothing is served while it is down (trap 2).
    "connection_strategy": "lazy",
    "upstream_cert": False,
    # HTTP/1.1 goes from disk to the socket, HTTP/2 piece by piece through the layers.
    "http2": False,
    # Who may use the proxy is decided by serving.clients.
    "block_global": False,
    # The access log is clamproxy's own; nothing else is printed or kept for each request.
    "flow_detail": 0,
}


def set_defaults(options: optmanager.OptManager) -> None:
    """Set the defaults above.

    What the user has set, on the command line or in mitmproxy's own file, stays as it is.
    """
    unset = {name: value for name, value in DEFAULTS.items() if not _is_set(options, name)}
    options.update(**unset)  # type: ignore[no-untyped-call]
    # A record for each connect and disconnect costs as much as serving a small file.
    logging.getLogger("mitmproxy.proxy.server").setLevel(logging.WARNING)


def _is_set(options: optmanager.OptManager, name: str) -> bool:
    """Whether the user has given the option a value, be it the default one."""
    return options._options[name].value is not optmanager.unset
