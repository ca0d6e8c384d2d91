"""Calls a hook only for those of mitmproxy's own addons that implement it.

mitmproxy itself asks each of its 36 addons at each of the 17 hooks of a tunnel with one request. That was
a quarter of the cost of a small response from the cache. The order of calls and the handling of errors
are as in mitmproxy.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import islice
from operator import is_
from typing import Any

from mitmproxy import hooks
from mitmproxy.addonmanager import AddonManager, safecall
from mitmproxy.exceptions import AddonHalt


class Dispatch(AddonManager):
    """An `AddonManager` that remembers which addons to ask for each hook, until the chain changes."""

    _seen: list[Any] = []  # noqa: RUF012  (replaced, never changed)
    """The chain that `_listening` was made from."""
    _listening: dict[str, list[Any]] = {}  # noqa: RUF012
    """The addons to ask, by the name of the hook."""

    async def trigger_event(self, event: hooks.Hook) -> None:
        """Call a hook of all addons, one after another."""
        for addon in self._listeners(event.name):
            try:
                with safecall():
                    await self.invoke_addon(addon, event)
            except AddonHalt:
                return

    def trigger(self, event: hooks.Hook) -> None:
        """Like `trigger_event`, for hooks that are called synchronously."""
        for addon in self._listeners(event.name):
            try:
                with safecall():
                    self.invoke_addon_sync(addon, event)
            except AddonHalt:
                return

    def _listeners(self, name: str) -> Iterator[Any]:
        """The addons to ask, in the order of the chain."""
        chain = self.chain
        length = len(chain)
        if length != len(self._seen) or not all(map(is_, chain, self._seen)):
            self._seen, self._listening = list(chain), {}
        found = self._listening.get(name)
        if found is None:
            found = self._listening[name] = [addon for addon in chain if not _is_deaf(addon, name)]
        yield from found
        if len(chain) > length:  # mitmproxy also asks an addon that one of these has just added
            yield from islice(chain, length, None)


def install(manager: AddonManager) -> None:
    """Make mitmproxy call hooks through `Dispatch`.

    Raises:
        RuntimeError: this version of mitmproxy calls them in another way.
    """
    names = ("chain", "trigger", "trigger_event", "invoke_addon", "invoke_addon_sync")
    is_known = type(manager) in (AddonManager, Dispatch) and all(hasattr(manager, name) for name in names)
    if not is_known or not inspect.iscoroutinefunction(AddonManager.trigger_event):
        raise RuntimeError("this version of mitmproxy calls the hooks of addons in another way")
    manager.__class__ = Dispatch


def _is_deaf(addon: Any, name: str) -> bool:
    """Whether an addon certainly doesn't implement a hook, now or later.

    That is certain only of mitmproxy's own addons, except those that hold others: a script may change.
    """
    is_own = type(addon).__module__.startswith("mitmproxy.")
    return is_own and not hasattr(addon, "addons") and not hasattr(addon, name)
