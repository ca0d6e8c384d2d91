"""The object store, tried as the gateway does when it starts."""

from __future__ import annotations

import asyncio
import secrets
import time

from clamproxy.bucket.bucket import Bucket, open_bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.doctor.findings import Verdict, ok, problem, warning
from clamproxy.readable import shown_span

MOST_DIFFERENCE = 300.0
"""Seconds that the clocks may differ. S3 refuses requests from 900 on."""


def try_fleet_store(url: str) -> Verdict:
    """Write, replace, list and delete a small document. Takes some seconds at most."""
    return asyncio.run(_try(url))


async def _try(url: str) -> Verdict:
    try:
        bucket = open_bucket(url)
        missing = await bucket.check()
        if missing is not None:
            return problem(
                f"{url}: {missing}", "use another object store; docs/several-gateways.md names some."
            )
        difference = await _clock_difference(bucket)
    except BucketError as error:
        return problem(
            f"{url} can't be used, so each gateway works alone: {error}",
            "check its address, the credentials and their rights; "
            "run this with the variables that the gateway has in its environment.",
        )
    if abs(difference) > MOST_DIFFERENCE:
        direction = "ahead of" if difference > 0 else "behind"
        return warning(
            f"this machine's clock is {shown_span(abs(difference))} {direction} the object store's",
            "let NTP set the clock; a store refuses requests if it is too far off.",
        )
    return ok(f"{url} can be used, with conditional writes; the clocks differ by {abs(difference):.0f} s")


async def _clock_difference(bucket: Bucket) -> float:
    """This machine's clock minus the store's, in seconds; exact to about a second.

    Raises:
        BucketError: the store can't be used.
    """
    path = f"checks/{secrets.token_hex(8)}"
    await bucket.put(path, b"")
    now = time.time()
    try:
        stored = await bucket.get(path)
    finally:
        await bucket.delete(path)
    return now - stored.modified if stored is not None else 0.0
