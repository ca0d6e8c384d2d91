"""Notices by webhook."""

from __future__ import annotations

import json
from pathlib import Path

import urllib3
from urllib3.util import Timeout

from clamproxy.config.targets import Webhook
from clamproxy.config.units import HttpProxy, SecretUrl
from clamproxy.notices.notice import FORMS, Notice
from clamproxy.origin.connections import ONCE, make_pool

CONNECT, READ = 10.0, 20.0
"""Seconds for the connection, and for each read; the whole request has a deadline as well."""
LARGEST_ANSWER = 2000
"""Bytes of an answer that are read: it may say why a notice was refused."""


class WebhookError(Exception):
    """A server did not take a notice; the text is one line, and doesn't hold the URL."""


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
        try:
            _check(response, hook.url)
        finally:
            response.close()
    finally:
        pool.clear()


def _check(response: urllib3.BaseHTTPResponse, url: SecretUrl) -> None:
    if 200 <= response.status < 300:
        return
    if 300 <= response.status < 400:
        raise WebhookError(f"the server answered {response.status}, and redirects are not followed")
    words = " ".join(response.read(LARGEST_ANSWER).decode("utf-8", "replace").split())
    if url.secret and url.secret in words:  # some servers quote the path that they don't know
        words = ""
    raise WebhookError(f"the server answered {response.status} {words}".strip())
