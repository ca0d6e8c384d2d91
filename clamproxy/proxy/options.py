"""mitmproxy's options as the gateway needs them, so that users need not remember any flag."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from mitmproxy import optmanager
from mitmproxy.log import LegacyLogEvents
from mitmproxy.master import Master
from mitmproxy.tools.dump import DumpMaster

from clamproxy.config.loading import ConfigurationError
from clamproxy.config.settings import Settings
from clamproxy.proxy.listening import OPTIONS as LISTENING
from clamproxy.setup.confdir import find_confdir

DEFAULTS: dict[str, bool | str | int] = {
    # Answer CONNECT without the origin; otherwise, nothing is served while it is down
    # (docs/protocol.md, trap 2).
    "connection_strategy": "lazy",
    "upstream_cert": False,
    # HTTP/1.1 goes from disk to the socket, HTTP/2 piece by piece through the layers.
    "http2": False,
    # serving.clients decides who may use the proxy.
    "block_global": False,
    # The pages depend on the name that the client asked for, on a reverse port as well.
    "keep_host_header": True,
    # mitmproxy's page about its own authority would be served to anyone before the addon is asked.
    "onboarding": False,
    # clamproxy has its own access log; nothing else is printed or kept per request.
    "flow_detail": 0,
}

HAVING_A_SAY = ("proxyauth", "block_list", "block_global", "block_private", "modify_headers", "modify_body")
"""Options by which mitmproxy itself refuses requests or changes responses."""


class OwnOptions:
    """Sets the options that the user has not set, on the command line or in mitmproxy's own file."""

    def __init__(self) -> None:
        self.given: frozenset[str] = frozenset()
        """The names of the options that the user has set."""

    def set_defaults(self, options: optmanager.OptManager) -> None:
        """Set `DEFAULTS`, and note what the user has set."""
        ours = ("tcp_timeout", "confdir", *LISTENING, *DEFAULTS)
        self.given = frozenset(name for name in ours if _is_set(options, name))
        unset = {name: value for name, value in DEFAULTS.items() if name not in self.given}
        options.update(**unset)  # type: ignore[no-untyped-call]
        # A record for each connect and disconnect costs as much as serving a small file.
        logging.getLogger("mitmproxy.proxy.server").setLevel(logging.WARNING)
        # So does passing each line of the access log to all addons, as mitmproxy used to do.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, LegacyLogEvents):
                handler.addFilter(lambda record: record.name != "clamproxy.access")

    def follow(self, options: optmanager.OptManager, settings: Settings) -> None:
        """Set what the configuration says; open connections keep their settings."""
        if "tcp_timeout" not in self.given:
            options.update(tcp_timeout=math.ceil(settings.access.idle_timeout))  # type: ignore[no-untyped-call]

    def place_authority(self, options: optmanager.OptManager, settings: Settings) -> None:
        """Give mitmproxy's own authority a writable directory.

        Raises:
            ConfigurationError: there is none.
        """
        if "confdir" not in self.given and (directory := find_confdir(settings)) is not None:
            options.update(confdir=str(directory))  # type: ignore[no-untyped-call]


def find_having_a_say(options: optmanager.OptManager) -> str | None:
    """The name of an option by which mitmproxy affects requests; None if the user has set none."""
    return next((name for name in HAVING_A_SAY if getattr(options, name, None)), None)


def find_unseeing(master: Master) -> str | None:
    """Names, for the log, what expects to see every request in mitmproxy; None if nothing does."""
    options = master.options
    if not isinstance(master, DumpMaster):
        return type(master).__name__
    if options.save_stream_file:
        return "save_stream_file (-w)"
    others = options.scripts[1:]
    return f"The script {others[0]}" if others else None


def require_no_stray(options: optmanager.OptManager) -> None:
    """Refuse arguments that were meant for the gateway, but went elsewhere.

    mitmproxy takes an argument that isn't an option for a filter of the flows it prints, and it prints
    none.

    Raises:
        ConfigurationError: there is one.
    """
    argument = getattr(options, "dumper_filter", None)
    if argument is not None and (options.flow_detail == 0 or Path(argument).is_file()):
        raise ConfigurationError(
            f"unexpected argument {argument!r}; to name a configuration file, use --config FILE "
            "(mitmdump: --set clamproxy_config=FILE)"
        )
    for name in options.deferred:
        if "clamproxy" in name:
            raise ConfigurationError(f"there is no option {name}; did you mean clamproxy_config?")


def _is_set(options: optmanager.OptManager, name: str) -> bool:
    """Whether the user has set the option, even to its default."""
    return name in options and options._options[name].value is not optmanager.unset
