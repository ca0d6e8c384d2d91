"""The labels in force: the file of labels, read again whenever it has changed."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from clamproxy.config.labels import NO_LABELS, Labels, read_labels
from clamproxy.config.loading import ConfigurationError
from clamproxy.files import Stamp, stamp_of

logger = logging.getLogger(__name__)


class LiveLabels:
    """The labels of a file. Any thread.

    Args:
        path: None if there is no such file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._state: Stamp | None = None
        self._labels = NO_LABELS
        self._is_read = False

    def get(self) -> Labels:
        """The present labels, or the last good ones while there is a mistake in the file. Blocks."""
        if self._path is None:
            return NO_LABELS
        with self._lock:
            state = stamp_of(self._path)
            if state != self._state or not self._is_read:
                self._state = state
                self._read(self._path)
            return self._labels

    def _read(self, path: Path) -> None:
        try:
            labels = read_labels(path)
        except ConfigurationError as error:
            logger.error("The labels of the machines stay as they were: %s", error)  # noqa: TRY400
        else:
            if self._is_read:
                logger.info("The labels of the machines were read again: %s", path)
            self._labels = labels
        self._is_read = True
