"""More patience than in life, for tests of what happens while nothing is too slow.

On a machine that does a lot besides, an object store in the test's own process may well be silent for three
seconds, and a client that is simulated along with thousands of others for five. What the gateway does then is
right, and has tests of its own; all others give it these limits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from clamproxy.bucket import bucket, bucket_requests
from clamproxy.origin import connections, versions
from clamproxy.origin.cooldown import BACKOFFS
from clamproxy.proxy import patience
from clamproxy.releases import object_exchange
from clamproxy.serving import resolution

LIMIT = 60.0
"""Seconds."""
BACKOFF = "CLAMPROXY_TEST_BACKOFF"
"""The environment variable with the least seconds until the origin is asked again after a failure."""


def be_patient(change: Callable[[object, str, object], object] = setattr) -> None:
    """Give this process's gateway more time for an object store, the origin, DNS and clients.

    Args:
        change: sets an attribute; a test gives `MonkeyPatch.setattr`.
    """
    options = dict.fromkeys(("connect_timeout", "read_timeout"), f"{LIMIT:.0f}s")
    change(bucket_requests, "_CLIENT_OPTIONS", bucket_requests._CLIENT_OPTIONS | options)
    for module, name in (
        (bucket, "CALL_LIMIT"),
        (bucket, "LIST_LIMIT"),
        (object_exchange, "LONGEST_BRING"),
        (resolution, "PATIENCE_WITH_STALE"),
        (connections, "PATIENCE_WITH_REUSED"),
        (versions, "PATIENCE"),
        (patience, "PATIENCE_AT_LIMIT"),
    ):
        change(module, name, LIMIT)
    least = float(os.environ.get(BACKOFF, "0"))
    for failure, backoff in BACKOFFS.items():
        first, longest = max(backoff.first, least), max(backoff.longest, least)
        BACKOFFS[failure] = replace(backoff, first=first, longest=longest)
