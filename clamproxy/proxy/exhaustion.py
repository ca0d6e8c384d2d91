"""What the log says while there are no file descriptors: one line a minute, not a traceback for each failure.

Almost anything can fail then, at any place, and all of it for the same reason. So the log's handler sees to
this, not those who log.
"""

from __future__ import annotations

import copy
import logging
import time

from clamproxy.storage.condition import is_out_of_descriptors

TELL_EVERY = 60.0
"""Seconds between two lines."""
_REASON = "Too many open files: while that lasts, such failures are logged once a minute."


class Exhaustion:
    """A filter for a log's handler."""

    def __init__(self) -> None:
        self._told_at = -TELL_EVERY

    def __call__(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        """The record as it is, if the failure has another cause; else one short line, or nothing."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or not is_out_of_descriptors(error):
            return True
        now = time.monotonic()
        if now - self._told_at < TELL_EVERY:
            return False
        self._told_at = now
        short = copy.copy(record)  # other handlers get the traceback
        short.msg, short.args = "%s %s", (record.getMessage(), _REASON)
        short.exc_info = short.exc_text = None
        return short
