"""Where the origin is reached, whatever DNS says (`upstream.address`)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from clamproxy.config.units import Address


class Addresses:
    """The addresses of a host, of which one that has answered is used as long as it does. Thread-safe.

    Args:
        addresses: in the order in which to try them; at least one.
        port: of the URL to which the addresses belong. Their own ports stand for this one only.
    """

    def __init__(self, addresses: Sequence[Address], port: int) -> None:
        self._addresses = tuple(addresses)
        self._port = port
        self._answered = self._addresses[0]

    def connect(self, port: int, connect: Callable[[str, int], socket.socket]) -> socket.socket:
        """Connect to the one that answered last, or else to the first that answers.

        Args:
            port: in the URL that is asked for; a redirect may lead from http to https.
            connect: connects to an address and port, or raises an error of urllib3.
        """
        # Sorting is stable: all others keep their order.
        *others, last = sorted(self._addresses, key=lambda address: address != self._answered)
        for address in others:
            try:
                return self._connected(address, port, connect)
            except (ConnectTimeoutError, NewConnectionError):
                continue
        return self._connected(last, port, connect)

    def _connected(
        self, address: Address, port: int, connect: Callable[[str, int], socket.socket]
    ) -> socket.socket:
        connected = connect(address.host, (address.port if port == self._port else None) or port)
        self._answered = address
        return connected
