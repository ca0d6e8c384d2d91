"""Where mitmproxy listens: at the places in the section listen, unless the command line overrides them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from mitmproxy import optmanager
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import mode_specs

from clamproxy.config.loading import ConfigurationError
from clamproxy.config.settings import ListenSection
from clamproxy.config.units import ANY, Endpoint
from clamproxy.setup.freshclam_lines import CDN, DEFAULT_PORT
from clamproxy.setup.place import refusal

OPTIONS = ("mode", "listen_host", "listen_port")
"""The options of mitmproxy that are set here, unless the user has set them."""

_KINDS = {
    "tcp": (socket.SOCK_STREAM,),
    "udp": (socket.SOCK_DGRAM,),
    "both": (socket.SOCK_STREAM, socket.SOCK_DGRAM),
}


class Listening:
    """Makes mitmproxy listen. What the user has set on the command line wins.

    Args:
        options: mitmproxy's.
        given: the names of the options that the user has set.
        proxy: mitmproxy's addon that listens.
        refusal: says why the system doesn't allow listening at an endpoint.
    """

    def __init__(
        self,
        options: optmanager.OptManager,
        given: Collection[str],
        proxy: Proxyserver,
        refusal: Callable[[Endpoint, socket.SocketKind], str | None] = refusal,
    ) -> None:
        self._options = options
        self._given = frozenset(given)
        self._proxy = proxy
        self._refusal = refusal
        self.is_given = not self._given.isdisjoint(OPTIONS)
        """Whether the command line overrides where the proxy listens."""

    def check(self, listen: ListenSection) -> None:
        """Check that the gateway can listen where it should.

        mitmproxy's own errors point to its own options. At a reload, they come only after it has given up
        the old ports.

        Raises:
            ConfigurationError: it can't.
        """
        held = {address[1] for address in self._proxy.listen_addrs()}
        for mode in self._parsed(listen):
            endpoint = self._endpoint(mode)
            if not 0 <= endpoint.port <= 65535:  # the system would use another port
                raise ConfigurationError(f"{mode.description} on {endpoint}: expected a port up to 65535")
            if endpoint.port in held or self._may_hold(mode, endpoint):
                continue
            for kind in _KINDS[mode.transport_protocol]:
                if (reason := self._refusal(endpoint, kind)) is not None:
                    raise ConfigurationError(f"{mode.description} on {endpoint}: {reason}")

    def follow(self, listen: ListenSection) -> None:
        """Make mitmproxy listen where the configuration says, without touching servers that stay."""
        modes = self._modes(listen)
        self._options.update(mode=modes)  # type: ignore[no-untyped-call]
        if not all(server.mode.full_spec in modes for server in self._proxy.servers):
            self.hold_back()

    def hold_back(self) -> None:
        """Stop mitmproxy from opening ports at its start, which begins before this addon is loaded.

        The default port may belong to another program. After the start, this does nothing.
        """
        for task in asyncio.all_tasks():
            if getattr(task.get_coro(), "cr_code", None) is Proxyserver.setup_servers.__code__:
                task.cancel()

    async def begin(self) -> bool:
        """Open the ports that mitmproxy didn't open on its own at its start.

        Returns:
            Whether all are open; the log names those that aren't.
        """
        servers = self._proxy.servers
        # Servers whose start was cancelled would be stopped, but they can't be.
        servers._instances = {mode: one for mode, one in servers._instances.items() if one.is_running}
        return await self._proxy.setup_servers()

    def served_at(self) -> list[Endpoint]:
        """Where machines reach the running proxy; its reverse ports if it has no others."""
        by_mode: dict[type[mode_specs.ProxyMode], list[Endpoint]] = {}
        for server in self._proxy.servers:
            host = server.mode.listen_host(self._options.listen_host)
            found = (Endpoint(address[0] if host else ANY, address[1]) for address in server.listen_addrs)
            by_mode.setdefault(type(server.mode), []).extend(dict.fromkeys(found))
        return by_mode.get(mode_specs.RegularMode) or by_mode.get(mode_specs.ReverseMode) or []

    def proxies(self, listen: ListenSection) -> list[Endpoint]:
        """Where machines reach the proxy after `follow`."""
        modes = self._parsed(listen)
        return [self._endpoint(mode) for mode in modes if isinstance(mode, mode_specs.RegularMode)]

    def ports(self, listen: ListenSection) -> list[tuple[Endpoint, socket.SocketKind]]:
        """All ports that are needed after `follow`."""
        modes = self._parsed(listen)
        return [(self._endpoint(mode), kind) for mode in modes for kind in _KINDS[mode.transport_protocol]]

    def _modes(self, listen: ListenSection) -> list[str]:
        if "mode" in self._given:
            return list(self._options.mode)
        port = self._options.listen_port if "listen_port" in self._given else None
        proxies = (one if port is None else Endpoint(one.host, port) for one in listen.proxy)
        # The URL is only a name: requests to the CDN are made by the origin's side alone.
        kinds = {"regular": proxies, f"reverse:http://{CDN}": listen.reverse, "dns": listen.dns}
        specs = (self._spec(kind, one) for kind, endpoints in kinds.items() for one in endpoints)
        return list(dict.fromkeys(specs))

    def _spec(self, kind: str, endpoint: Endpoint) -> str:
        # Without an address, the option listen_host applies.
        is_open = endpoint.host == ANY or "listen_host" in self._given
        if is_open and kind == "regular" and endpoint.port == (self._options.listen_port or DEFAULT_PORT):
            return kind  # mitmproxy's own default
        return f"{kind}@{endpoint.port}" if is_open else f"{kind}@{endpoint.host}:{endpoint.port}"

    def _parsed(self, listen: ListenSection) -> Iterator[mode_specs.ProxyMode]:
        """The modes that listen at an address. mitmproxy itself reports texts that aren't a mode."""
        for text in self._modes(listen):
            with suppress(ValueError):
                mode = mode_specs.ProxyMode.parse(text)
                if mode.listen_port(self._options.listen_port) is not None:
                    yield mode

    def _may_hold(self, mode: mode_specs.ProxyMode, endpoint: Endpoint) -> bool:
        """Whether mitmproxy has begun to listen there, so that it may already have the port.

        For all addresses it first asks the system's resolver, in a thread, so it can't have the port yet.
        """
        is_slow = endpoint.host == ANY and mode.transport_protocol == "tcp"
        has_begun = any(server.mode == mode for server in self._proxy.servers)
        return has_begun and not is_slow

    def _endpoint(self, mode: mode_specs.ProxyMode) -> Endpoint:
        host = mode.listen_host(self._options.listen_host)
        return Endpoint(host or ANY, mode.listen_port(self._options.listen_port) or 0)
