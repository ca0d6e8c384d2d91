"""TLS with a client of the express lane, in memory: bytes in, bytes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from OpenSSL import SSL

from clamproxy.proxy.client_trust import certified_by, failure_of

RECORD = 16 * 1024
"""Bytes that one record can hold (RFC 8446 5.1)."""
_ROOM = 128 * 1024
_DISTRUST = ("unknown ca", "bad certificate", "certificate unknown")
"""Alerts from clients, as OpenSSL names them."""


class UnfitError(Exception):
    """The client expects a host other than the one its tunnel leads to, or its TLS can't be understood."""


class Session:
    """The TLS of one connection. It must not be used after an exception.

    Args:
        context: has the host's certificate.
        host: where the client's tunnel leads.
    """

    def __init__(self, context: SSL.Context, host: str) -> None:
        self.connection = SSL.Connection(context)
        self.connection.set_accept_state()
        self.has_ended = False
        """Whether the client will send no more."""
        self.heard = b""
        """What arrived before anything was sent to the client: another server can start with it."""
        self._host = host.lower()
        self._is_established = False
        self._has_said = False

    def receive(self, data: bytes) -> tuple[bytes, bytes]:
        """Process what has arrived.

        Returns:
            What the client has sent, decrypted, and the bytes to send to it unchanged.

        Raises:
            UnfitError: another server has to continue; nothing was sent to the client yet.
            SSL.Error: TLS has failed after that; `take` returns the alert.
        """
        if not self._has_said:
            self.heard += data
        self.connection.bio_write(data)
        said = b""
        if not self._is_established:
            self._shake_hands()
        if self._is_established:
            said = self._decrypt()
        to_send = self.take()
        if to_send and not self._has_said:
            self._has_said, self.heard = True, b""
        return said, to_send

    @property
    def certified_by(self) -> Path | None:
        """The `access.client_ca` by which the client was verified; None before that, or if it wasn't."""
        return certified_by(self.connection) if self._is_established else None

    def encrypt(self, data: bytes) -> bytes:
        """Encrypt some bytes; returns what to send to the client.

        Raises:
            SSL.Error: TLS has failed, or was closed.
        """
        self.connection.sendall(data)
        return self.take()

    def end(self) -> bytes:
        """Close TLS; returns what to send to the client."""
        try:
            self.connection.shutdown()
        except SSL.Error:  # for example, before the handshake
            return b""
        return self.take()

    def take(self) -> bytes:
        """Everything that is waiting to be sent."""
        pieces = []
        try:
            while True:
                pieces.append(self.connection.bio_read(_ROOM))
        except SSL.WantReadError:
            return b"".join(pieces)

    def explain(self, error: SSL.Error) -> str:
        """Explain why TLS has failed, in mitmproxy's words: administrators know those from its log."""
        reason = error.args[0][-1][2] if error.args and error.args[0] else type(error).__name__
        if any(alert in reason for alert in _DISTRUST):
            reason = f"The client does not trust the proxy's certificate for {self._host} ({reason})"
        if (failure := failure_of(self.connection)) is not None:
            reason = f"{reason}: {failure}"
        return f"{'TLS' if self._is_established else 'Client TLS handshake'} failed. {reason}"

    def _shake_hands(self) -> None:
        try:
            self.connection.do_handshake()
            self._is_established = True
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            if not self._has_said:
                raise UnfitError from error
            raise
        name = self.connection.get_servername()
        if not self._has_said and name is not None and name.decode("latin-1").lower() != self._host:
            raise UnfitError

    def _decrypt(self) -> bytes:
        pieces = []
        try:
            while True:
                pieces.append(self.connection.recv(RECORD))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.has_ended = True
        return b"".join(pieces)


@dataclass(slots=True)
class Tunnel:
    """A tunnel that the lane has opened."""

    connect: bytes
    """The head of its CONNECT request; another server can use it to open the tunnel again."""
    host: str
    session: Session | None = None
    """Its TLS, once that has started."""
