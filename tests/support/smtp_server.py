"""A real SMTP server on loopback (aiosmtpd), and one that says nothing."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope

from tests.support.gateway import free_ports

USER, PASSWORD = "gateway", "a secret, with spaces"


@dataclass
class Mailbox:
    """What the server took, and what it answers."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    users: list[str | None] = field(default_factory=list)
    """Who was logged in for each mail."""
    answers: list[str] = field(default_factory=list)
    """To the next mails, instead of 250."""
    farewell: str = "221 bye"
    """The answer to QUIT."""
    refused: set[str] = field(default_factory=set)
    """Recipients."""

    # aiosmtpd calls these in its own thread.

    async def handle_QUIT(self, *_: Any) -> str:  # noqa: N802
        return self.farewell

    async def handle_RCPT(  # noqa: N802
        self, _: Any, __: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, _: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        if self.answers:
            return self.answers.pop(0)
        assert isinstance(envelope.content, bytes)
        self.users.append(session.auth_data)
        self.recipients.append(list(envelope.rcpt_tos))
        mail = message_from_bytes(envelope.content, policy=policy.SMTP)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 taken"


@contextmanager
def mail_server(
    *, tls: ssl.SSLContext | None = None, starttls: ssl.SSLContext | None = None, login: bool = False
) -> Iterator[Mailbox]:
    """A server that takes mails.

    Args:
        tls: encrypted from the beginning.
        starttls: only with STARTTLS.
        login: only from `USER` with `PASSWORD`.
    """

    def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        shown = (data.login.decode(), data.password.decode())
        if shown == (USER, PASSWORD):
            return AuthResult(success=True, handled=False, auth_data=USER)
        quoted = f"535 5.7.8 no such login: {' '.join(shown)}"  # as some servers do
        return AuthResult(success=False, handled=False, message=quoted)

    box = Mailbox()
    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=free_ports(1)[0],
        ssl_context=tls,
        tls_context=starttls,
        require_starttls=starttls is not None,
        authenticator=authenticate,
        auth_required=login,
        auth_require_tls=starttls is not None,
        ready_timeout=30,
    )
    controller.start()
    box.port = controller.port
    try:
        yield box
    finally:
        controller.stop()


@contextmanager
def silent_server(greeting: bytes = b"") -> Iterator[int]:
    """A port that accepts connections and says nothing, or nothing more after a greeting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        if not greeting:
            yield port  # the system completes the handshake
            return
        kept: list[socket.socket] = []

        def greet() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            kept.append(connection)
            connection.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            yield port
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in kept:
                connection.close()
