"""mitmproxy's options: the job's defaults, and the user's will."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from mitmproxy import options
from mitmproxy.addons import block, dumper, onboarding, proxyserver
from mitmproxy.test import taddons

from clamproxy.config.settings import AccessSection, Settings
from clamproxy.proxy.options import DEFAULTS, OwnOptions


@pytest.fixture
def mitmproxy_options() -> Iterator[options.Options]:
    """Options as mitmdump has them."""
    level = logging.getLogger("mitmproxy.proxy.server").level
    addons = (block.Block(), dumper.Dumper(), onboarding.Onboarding(), proxyserver.Proxyserver())  # type: ignore[no-untyped-call]
    with taddons.context(*addons) as context:  # type: ignore[no-untyped-call]
        yield context.options
    logging.getLogger("mitmproxy.proxy.server").setLevel(level)


def values(known: options.Options) -> dict[str, object]:
    return {name: getattr(known, name) for name in DEFAULTS}


def test_our_options_differ_from_mitmproxys_own(mitmproxy_options: options.Options) -> None:
    assert all(getattr(mitmproxy_options, name) != value for name, value in DEFAULTS.items())


def test_our_options_are_set(mitmproxy_options: options.Options) -> None:
    OwnOptions().set_defaults(mitmproxy_options)
    assert values(mitmproxy_options) == DEFAULTS


def test_trap_2_connect_is_answered_without_the_origin() -> None:
    assert DEFAULTS["connection_strategy"] == "lazy"
    assert DEFAULTS["upstream_cert"] is False


@pytest.mark.parametrize(
    ("name", "value"),
    [("http2", True), ("connection_strategy", "eager"), ("flow_detail", 1), ("block_global", True)],
)
def test_what_the_user_has_set_stays(
    mitmproxy_options: options.Options, name: str, value: bool | str | int
) -> None:
    mitmproxy_options.update(**{name: value})  # type: ignore[no-untyped-call]
    OwnOptions().set_defaults(mitmproxy_options)
    assert values(mitmproxy_options) == {**DEFAULTS, name: value}


def test_setting_the_options_again_changes_nothing(mitmproxy_options: options.Options) -> None:
    for _ in range(2):
        OwnOptions().set_defaults(mitmproxy_options)
    assert values(mitmproxy_options) == DEFAULTS


def test_connections_are_not_logged_one_by_one(mitmproxy_options: options.Options) -> None:
    OwnOptions().set_defaults(mitmproxy_options)
    assert not logging.getLogger("mitmproxy.proxy.server").isEnabledFor(logging.INFO)


@pytest.mark.parametrize(("given", "expected"), [(None, 8), (600, 600), (90, 90)])
def test_idle_connections(mitmproxy_options: options.Options, given: int | None, expected: int) -> None:
    own = OwnOptions()
    if given is not None:
        mitmproxy_options.update(tcp_timeout=given)  # type: ignore[no-untyped-call]
    own.set_defaults(mitmproxy_options)
    own.follow(mitmproxy_options, Settings(access=AccessSection(idle_timeout=7.2)))
    assert mitmproxy_options.tcp_timeout == expected


def test_a_reload_changes_the_timeout(mitmproxy_options: options.Options) -> None:
    own = OwnOptions()
    own.set_defaults(mitmproxy_options)
    for seconds in (30.0, 60.0):
        own.follow(mitmproxy_options, Settings(access=AccessSection(idle_timeout=seconds)))
        assert mitmproxy_options.tcp_timeout == seconds
