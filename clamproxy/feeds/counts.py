"""Counts for each feed host, since the process started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from clamproxy.messages import FROM_CACHE, Result

MOST = 256
"""How many hosts are counted: with ``*.example.com``, clients can name any number."""


class Counts:
    """How requests to feeds were answered."""

    def __init__(self) -> None:
        self._hosts: dict[str, Counter[str]] = {}

    def add(self, place: str, result: Result) -> None:
        counter = self._hosts.pop(place, None) or Counter()
        counter["requests"] += 1
        counter["hits"] += result in FROM_CACHE
        counter["errors"] += result is Result.ERROR
        self._hosts[place] = counter
        if len(self._hosts) > MOST:
            del self._hosts[next(iter(self._hosts))]

    def figures(self, cooldown_until: Callable[[str], float | None]) -> list[dict[str, Any]]:
        """The counts for status.json, sorted by host.

        Args:
            cooldown_until: gives when the cool-down of a host ends.
        """
        return [
            {
                "host": place,
                **{name: counter[name] for name in ("requests", "hits", "errors")},
                "cooldown_until": cooldown_until(place),
            }
            for place, counter in sorted(self._hosts.items())
        ]
