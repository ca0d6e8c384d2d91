"""A time limit for what has none of its own: the system's resolver, a peer that drips."""

from __future__ import annotations

import threading
from collections.abc import Callable

from clamproxy.readable import shown_span


def bounded[T](function: Callable[[], T], seconds: float) -> T:
    """Run a function in a thread, which is left to itself when the time is over.

    Args:
        function: what to run.
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

    thread = threading.Thread(target=run, name="clamproxy-doctor", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {shown_span(seconds)}")
    return results[0]
