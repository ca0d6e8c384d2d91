"""Notices by mail.

Of what a server says, only the codes are told: it may quote the password that it was sent.
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from pathlib import Path

from clamproxy.config.servers import MailSection
from clamproxy.notices.notice import Notice
from clamproxy.origin.connections import trusting
from clamproxy.origin.scope import CancelScope
from clamproxy.readable import one_line, shown_count

STEP = 20.0
"""Seconds for each step of the conversation; the whole of it has a deadline as well."""
FAREWELL = 2.0
"""Seconds for the answer to QUIT, which changes nothing."""
LONGEST_REASON = 200
"""Characters of an error that are shown, at most."""
_BODY = SMTP.clone(max_line_length=76)
"""The limit of quoted-printable (RFC 2045 6.7)."""
_HEAD = SMTP.clone(max_line_length=250)
"""With shorter lines, a subject that is a little too long is folded before its first word, where readers
show a space; 998 characters are allowed (RFC 5322 2.1.1)."""
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_ENHANCED = re.compile(rb"[245]\.\d{1,3}\.\d{1,3}\b")
"""An enhanced status code (RFC 3463 2)."""
_STEPS: Mapping[type[smtplib.SMTPResponseException], str] = {
    smtplib.SMTPAuthenticationError: "the login",
    smtplib.SMTPSenderRefused: "the sender",
    smtplib.SMTPDataError: "the mail",
}


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
        raise MailError(_refusal(error.recipients, mail)) from error
    except smtplib.SMTPResponseException as error:
        answer, step = _codes(error.smtp_code, error.smtp_error), _STEPS.get(type(error))
        raise MailError(f"the server answered {answer}{f' to {step}' if step else ''}") from error
    except smtplib.SMTPException as error:  # smtplib's own words
        raise MailError(one_line(str(error), LONGEST_REASON)) from error
    return _refusal(refused, mail) if refused else None


def server_of(mail: MailSection) -> str:
    """The mail server with its port."""
    return f"{mail.server}:{mail.port or _PORTS[mail.tls]}"


class _Conversation(smtplib.SMTP):
    """A connection that belongs to a scope, encrypted from the beginning if it has to be."""

    def __init__(self, mail: MailSection, context: ssl.SSLContext, scope: CancelScope) -> None:
        self._scope = scope
        self._context = context if mail.tls == "tls" else None
        super().__init__(mail.server or "", mail.port or _PORTS[mail.tls], timeout=STEP)

    def __exit__(self, *_: object) -> None:
        """Leave. Whatever the server says now, it has taken the mail, or refused it, before."""
        with suppress(OSError):  # smtplib's errors are such
            if self.sock is not None:
                self.sock.settimeout(FAREWELL)
                self.quit()
        self.close()

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


def _refusal(refused: Mapping[str, tuple[int, bytes]], mail: MailSection) -> str:
    """Which recipients were refused. Their addresses aren't told: whoever may see the page sees this."""
    address, (code, text) = next(iter(refused.items()))
    count = f"{len(refused)} of {shown_count(len(mail.recipients), 'recipient')} refused"
    return f"{count}, number {mail.recipients.index(address) + 1} with {_codes(code, text)}"


def _codes(code: int, text: bytes | str) -> str:
    """The codes at the beginning of an answer."""
    enhanced = _ENHANCED.match(text.encode() if isinstance(text, str) else text)
    return f"{code} {enhanced[0].decode()}" if enhanced else f"{code}"
