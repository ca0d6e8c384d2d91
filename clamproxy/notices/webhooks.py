"""Notices by webhook.

Of what a server says, only the status is told: it may quote the URL or the token, whole or in part.
"""

from __future__ import annotations

import json
from http.client import HTTPException, responses
from pathlib import Path

from urllib3.exceptions import ProtocolError
from urllib3.util import Timeout

from clamproxy.config.servers import Webhook
from clamproxy.config.units import HttpProxy
from clamproxy.notices.notice import FORMS, Notice
from clamproxy.origin.connections import ONCE, make_pool

CONNECT, READ = 10.0, 20.0
"""Seconds for the connection, and for each read; the whole request has a deadline as well."""


class WebhookError(Exception):
    """A server did not take a notice; the text is one line of our own words."""


def post(notice: Notice, hook: Webhook, proxy: HttpProxy | None, ca_bundle: Path | None) -> None:
    """Post a notice. Blocks; a scope around it ends it.

    Args:
        proxy: the proxy on the way, if the webhook is to be reached through it.

    Raises:
        WebhookError: the server answered with something other than success.
        OSError, HTTPError: it can't be reached, or its certificate is wrong.
    """
    pool = make_pool(proxy if hook.through_proxy else None, ca_bundle, Timeout(connect=CONNECT, read=READ))
    headers = {"Content-Type": "application/json", "User-Agent": "clamproxy", "Accept-Encoding": "identity"}
    if hook.token is not None:
        headers["Authorization"] = f"Bearer {hook.token.get_secret_value()}"
    try:
        response = pool.request(
            "POST",
            hook.url.url,
            body=json.dumps(FORMS[hook.form](notice), ensure_ascii=False).encode(),
            headers=headers,
            retries=ONCE,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        response.close()
    except ProtocolError as error:
        cause = error.args[-1]
        if isinstance(cause, HTTPException) and not isinstance(cause, OSError):  # it quotes what arrived
            raise WebhookError("the server answered with something other than HTTP") from error
        raise
    finally:
        pool.clear()
    _check(response.status)


def _check(status: int) -> None:
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise WebhookError(f"the server answered {status}, and redirects are not followed")
    raise WebhookError(f"the server answered {status} {responses.get(status, '')}".strip())
