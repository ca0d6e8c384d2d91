"""Notices by mail."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from pathlib import Path

from clamproxy.config.targets import MailSection
from clamproxy.notices.notice import Notice
from clamproxy.origin.connections import CancelScope, trusting
from clamproxy.readable import one_line

STEP = 20.0
"""Seconds for each step of the conversation; the whole of it has a deadline as well."""
LONGEST_REASON = 200
"""Characters of what a server says that are shown, at most."""
_BODY = SMTP.clone(max_line_length=76)
"""The limit of quoted-printable (RFC 2045 6.7)."""
_HEAD = SMTP.clone(max_line_length=250)
"""With shorter lines, a subject that is a little too long is folded before its first word, where readers
show a space; 998 characters are allowed (RFC 5322 2.1.1)."""
_PORTS = {"starttls": 587, "tls": 465, "none": 25}


class MailError(Exception):
    """The mail server did not take a mail; the text is one line."""


def compose(notice: Notice, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """The mail with a notice."""
    mail = EmailMessage(policy=_BODY)
    mail["From"] = sender
    mail["To"] = ", ".join(recipients)
    mail["Subject"] = notice.subject
    mail["Date"] = formatdate(notice.at, localtime=True)
    mail["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834 5: nobody's holiday message answers it
    mail.set_content(notice.text(), charset="utf-8", cte="quoted-printable")
    mail.policy = _HEAD
    return mail


def send_mail(notice: Notice, mail: MailSection, ca_bundle: Path | None, scope: CancelScope) -> str | None:
    """Hand a notice to the mail server. Blocks; ending the scope ends it.

    Returns:
        What went wrong all the same, in one line: some of the recipients were refused.

    Raises:
        MailError: the server refused the mail.
        OSError: the server can't be reached, or its certificate is wrong.
    """
    sender = mail.sender or f"clamproxy@{socket.gethostname()}"
    context = trusting(ca_bundle)
    try:
        with _Conversation(mail, context, scope) as server:
            if mail.tls == "starttls":
                server.starttls(context=context)
            if mail.user is not None and mail.password is not None:
                server.login(mail.user, mail.password.get_secret_value())
            refused = server.send_message(compose(notice, sender, mail.recipients), sender, mail.recipients)
    except smtplib.SMTPRecipientsRefused as error:
        raise MailError(_refusal(error.recipients)) from error
    except smtplib.SMTPResponseException as error:
        raise MailError(f"the server answered {error.smtp_code} {_words(error.smtp_error)}") from error
    except smtplib.SMTPException as error:
        raise MailError(_words(str(error))) from error
    return _refusal(refused) if refused else None


def server_of(mail: MailSection) -> str:
    """The mail server with its port."""
    return f"{mail.server}:{mail.port or _PORTS[mail.tls]}"


class _Conversation(smtplib.SMTP):
    """A connection that belongs to a scope, encrypted from the beginning if it has to be."""

    def __init__(self, mail: MailSection, context: ssl.SSLContext, scope: CancelScope) -> None:
        self._scope = scope
        self._context = context if mail.tls == "tls" else None
        super().__init__(mail.server or "", mail.port or _PORTS[mail.tls], timeout=STEP)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connected = socket.create_connection((host, port), timeout)
        try:
            self._scope.hold(connected)
            if self._context is None:
                return connected
            return self._context.wrap_socket(connected, server_hostname=host)
        except BaseException:
            connected.close()
            raise


def _refusal(refused: dict[str, tuple[int, bytes]]) -> str:
    address, (code, text) = next(iter(refused.items()))
    return f"{len(refused)} refused, {address} with {code} {_words(text)}"


def _words(text: bytes | str) -> str:
    return one_line(text.decode("utf-8", "replace") if isinstance(text, bytes) else text, LONGEST_REASON)
