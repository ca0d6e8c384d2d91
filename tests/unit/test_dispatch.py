"""Hooks are called as mitmproxy itself calls them, with fewer addons asked."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from mitmproxy import exceptions, hooks, http, options
from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons import default_addons
from mitmproxy.master import Master
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.test import tflow

from clamproxy.proxy import dispatch

type Calls = list[str]
type Scene = Callable[[Any, Calls], Awaitable[None]]


def addon(name: str, calls: Calls, *, own: bool = False, **hooks: Callable[..., Any]) -> Any:
    """An addon of somebody's, or one that looks like mitmproxy's own.

    Args:
        name: of the addon.
        calls: where its calls of `request` are noted.
        own: whether it is mitmproxy's.
        hooks: what it implements.
    """

    def noted(hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(_: Any, *arguments: Any) -> Any:
            calls.append(f"{name}.{hook}")
            return function(*arguments)

        return call

    members: dict[str, Any] = {hook: noted(hook, function) for hook, function in hooks.items()}
    module = "mitmproxy.addons.made_up" if own else __name__
    members |= {"__module__": module, "__repr__": lambda _: name, "name": name}
    return type(name, (), members)()


def nothing(*_: Any) -> None:
    return None


async def ask(manager: Any, calls: Calls) -> None:
    """One request, in both ways that mitmproxy has."""
    flow = tflow.tflow()
    await manager.handle_lifecycle(HttpRequestHook(flow))
    manager.trigger(hooks.UpdateHook([flow]))
    calls.append("-")


async def in_order(manager: Any, calls: Calls) -> None:
    async def later(_: Any) -> None:
        calls.append("awaited")

    manager.add(
        addon("a", calls, own=True, request=nothing),
        addon("b", calls, own=True, update=nothing),
        addon("c", calls, request=later, update=nothing),
        addon("d", calls, own=True, request=nothing),
    )
    await ask(manager, calls)
    await ask(manager, calls)


async def one_is_added(manager: Any, calls: Calls) -> None:
    manager.add(addon("a", calls, own=True, request=nothing))
    await ask(manager, calls)
    manager.add(addon("b", calls, own=True, request=nothing), addon("c", calls, update=nothing))
    await ask(manager, calls)


async def one_is_removed(manager: Any, calls: Calls) -> None:
    parts = [addon(name, calls, own=True, request=nothing, done=nothing) for name in "abc"]
    manager.add(*parts)
    await ask(manager, calls)
    manager.remove(parts[1])
    await ask(manager, calls)
    assert manager.get("b") is None
    manager.clear()
    await ask(manager, calls)


async def one_takes_the_place_of_another(manager: Any, calls: Calls) -> None:
    first = addon("a", calls, own=True, update=nothing)
    manager.add(first)
    await ask(manager, calls)
    manager.remove(first)
    manager.add(addon("a", calls, own=True, request=nothing))
    await ask(manager, calls)


async def a_hook_adds_one(manager: Any, calls: Calls) -> None:
    def add(_: Any) -> None:
        if manager.get("new") is None:
            manager.add(addon("new", calls, own=True, request=nothing))

    manager.add(addon("a", calls, own=True, request=add), addon("b", calls, own=True, request=nothing))
    await ask(manager, calls)
    await ask(manager, calls)


async def a_hook_removes_one(manager: Any, calls: Calls) -> None:
    last = addon("last", calls, own=True, request=nothing)

    def remove(_: Any) -> None:
        if manager.get("last") is not None:
            manager.remove(last)

    manager.add(addon("a", calls, own=True, request=remove), last)
    await ask(manager, calls)
    await ask(manager, calls)


async def nested_ones_come_and_go(manager: Any, calls: Calls) -> None:
    """As mitmproxy's own ScriptLoader has them: without a word to the manager."""
    holder = addon("holder", calls, own=True)
    holder.addons = []
    manager.add(holder, addon("after", calls, own=True, request=nothing))
    await ask(manager, calls)
    inner = addon("inner", calls, request=nothing)
    holder.addons.append(inner)
    await ask(manager, calls)
    inner.addons = [addon("innermost", calls, request=nothing, update=nothing)]
    await ask(manager, calls)
    holder.addons = []
    await ask(manager, calls)


async def one_gets_its_hook_later(manager: Any, calls: Calls) -> None:
    """A script may do that: it is a module."""
    module = SimpleNamespace(name="script")
    manager.add(module)
    await ask(manager, calls)
    module.request = lambda _: calls.append("script.request")
    await ask(manager, calls)
    del module.request
    await ask(manager, calls)


async def one_has_all_hooks_there_are(manager: Any, calls: Calls) -> None:
    class CatchAll:
        name = "all"
        addons = ()

        def __getattr__(self, hook: str) -> Any:
            return lambda *_: calls.append(f"all.{hook}")

    mock = Mock(addons=[], request=Mock(return_value=None))
    mock.name = "mock"
    manager.add(CatchAll(), mock)
    await ask(manager, calls)
    calls.append(str(mock.request.call_count + mock.update.call_count))


async def one_fails(manager: Any, calls: Calls) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("of the addon")

    holder = addon("holder", calls, request=fail)
    holder.addons = [addon("inner", calls, request=nothing)]  # not called, as the one around it failed
    manager.add(
        holder,
        addon("own", calls, own=True, request=fail, update=fail),
        addon("last", calls, request=nothing),
    )
    await ask(manager, calls)


async def one_halts(manager: Any, calls: Calls) -> None:
    def halt(*_: Any) -> None:
        raise exceptions.AddonHalt

    manager.add(
        addon("a", calls, own=True, request=halt, update=halt),
        addon("b", calls, own=True, request=nothing, update=nothing),
    )
    await ask(manager, calls)


async def one_has_something_else_of_that_name(manager: Any, calls: Calls) -> None:
    module, number, flag = (addon(name, calls) for name in ("module", "number", "flag"))
    module.request, number.request, flag.request = http, 7, False
    manager.add(module, number, flag, addon("last", calls, request=nothing))
    await ask(manager, calls)


async def a_coroutine_where_none_may_be(manager: Any, calls: Calls) -> None:
    async def later(_: Any) -> None:
        raise AssertionError

    odd = addon("odd", calls)
    odd.update = later
    manager.add(odd, addon("last", calls, own=True, update=nothing))
    manager.trigger(hooks.UpdateHook([]))


SCENES = [
    in_order,
    one_is_added,
    one_is_removed,
    one_takes_the_place_of_another,
    a_hook_adds_one,
    a_hook_removes_one,
    nested_ones_come_and_go,
    one_gets_its_hook_later,
    one_has_all_hooks_there_are,
    one_fails,
    one_halts,
    one_has_something_else_of_that_name,
    a_coroutine_where_none_may_be,
]


def made(*, installed: bool) -> Any:
    manager = Master(options.Options()).addons
    if installed:
        dispatch.install(manager)
    return manager


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_the_same_calls_and_the_same_log(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    runs = []
    for installed in (False, True):
        calls: Calls = []
        caplog.clear()
        with caplog.at_level(logging.INFO):
            await scene(made(installed=installed), calls)
        errors = [record.exc_info[2] for record in caplog.records if record.exc_info]
        where = [trace.tb_frame.f_code.co_name for trace in errors if trace is not None]
        runs.append((calls, [record.getMessage() for record in caplog.records], where))
    assert runs[0] == runs[1]
    assert runs[0][0]


async def test_of_mitmproxys_own_only_those_that_implement_a_hook_are_asked() -> None:
    manager = made(installed=True)
    manager.add(*default_addons())  # type: ignore[no-untyped-call]
    asked: list[Any] = []

    async def note(one: Any, _: hooks.Hook) -> None:
        asked.append(one)

    manager.invoke_addon = note
    assert len(manager) > 30
    for hook in hooks.all_hooks.values():
        asked.clear()
        await manager.trigger_event(object.__new__(hook))
        implementing = [one for one in manager.chain if hasattr(one, hook.name)]
        assert set(map(id, implementing)) <= set(map(id, asked)), hook.name
        assert all(hasattr(one, "addons") for one in asked if one not in implementing), hook.name


class OtherManager(AddonManager):
    """Of a mitmproxy to come."""


async def test_a_mitmproxy_that_is_built_otherwise_is_refused() -> None:
    manager = made(installed=False)
    manager.__class__ = OtherManager
    with pytest.raises(RuntimeError, match="this version of mitmproxy"):
        dispatch.install(manager)
