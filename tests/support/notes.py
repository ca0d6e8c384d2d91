"""Notes that a test can look at."""

from __future__ import annotations

import json
from typing import Any

from clamproxy.notes import Notes


class DictKeeper:
    """Keeps the notes of one topic in a dict, as they come back from a disk."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self._saved = saved

    def notes(self, prefix: str) -> dict[str, Any]:
        return dict(self._saved)

    def set_note(self, key: str, value: Any) -> None:
        key = key.partition("/")[2]
        if value is None:
            self._saved.pop(key, None)
        else:
            self._saved[key] = json.loads(json.dumps(value))


def notes_in(saved: dict[str, Any]) -> Notes:
    """Notes that are kept in a dict, by their keys."""
    return Notes(DictKeeper(saved), None, "topic")
