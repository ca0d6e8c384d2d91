"""A time limit for calls that have none of their own: the system's resolver, a peer that sends slowly."""

from __future__ import annotations

import threading
from collections.abc import Callable

from clamproxy.readable import shown_span


def bounded[T](function: Callable[[], T], seconds: float) -> T:
    """Run a function in a thread, which is abandoned when the time is up.

    Args:
        seconds: how long to wait for it.

    Raises:
        TimeoutError: it took too long.
        Exception: what the function raised.
    """
    results: list[T] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:
            failures.append(error)

    # A daemon: one that hangs must not keep the program from ending.
    thread = threading.Thread(target=run, name="clamproxy-doctor", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {shown_span(seconds)}")
    return results[0]
