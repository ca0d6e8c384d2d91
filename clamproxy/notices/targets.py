"""Where notices go: the mail server and the webhooks of the configuration, each with the way to send."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from clamproxy.config.servers import Webhook
from clamproxy.config.settings import Settings
from clamproxy.notices.mail import send_mail, server_of
from clamproxy.notices.notice import Notice
from clamproxy.notices.webhooks import post
from clamproxy.origin.errors import reason_of
from clamproxy.origin.scope import CancelScope, in_scope
from clamproxy.readable import shown_count

DEADLINE = 60.0
"""Seconds for sending one notice to one target."""


class DeliveryError(Exception):
    """A notice could not be sent; the text is one line without secrets."""


@dataclass(frozen=True, slots=True)
class NoticeTarget:
    id: str
    """By this the target is remembered. It tells nothing about the target."""
    name: str
    """For people: without secrets."""
    send: Callable[[Notice, CancelScope], str | None]
    """Sends a notice. Blocks. Returns what went wrong all the same, and raises anything."""


def targets_of(settings: Settings) -> list[NoticeTarget]:
    """All targets that are configured."""
    mail, upstream = settings.mail, settings.upstream
    found = []
    if mail.server is not None:
        found.append(
            NoticeTarget(
                _id("mail", mail.server, *mail.recipients),
                # Without the recipients: everybody who may see the status page sees this.
                f"mail to {shown_count(len(mail.recipients), 'recipient')} by {server_of(mail)}",
                lambda notice, scope: send_mail(notice, mail, upstream.ca_bundle, scope),
            )
        )
    return found + [_webhook(hook, settings) for hook in settings.notify.webhooks]


async def deliver(target: NoticeTarget, notice: Notice) -> str | None:
    """Send a notice to a target, in a thread that ends when nobody waits for it any more.

    Returns:
        What went wrong all the same, in one line; None if nothing did.

    Raises:
        DeliveryError: it was not sent, or not in time.
    """
    try:
        return await in_scope("clamproxy-notice", DEADLINE, lambda scope: target.send(notice, scope))
    except TimeoutError as error:
        raise DeliveryError(f"it took longer than {DEADLINE:.0f} seconds") from error
    except Exception as error:
        raise DeliveryError(reason_of(error)) from error


def _webhook(hook: Webhook, settings: Settings) -> NoticeTarget:
    upstream = settings.upstream

    def send(notice: Notice, _: CancelScope) -> None:
        post(notice, hook, upstream.proxy, upstream.ca_bundle)

    return NoticeTarget(_id(hook.form, hook.url.url), f"{hook.form} webhook at {hook.url.origin}", send)


def _id(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
