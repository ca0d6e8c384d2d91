"""Where names that are passed through may lead."""

from __future__ import annotations

import pytest

from clamproxy.config.settings import Settings
from clamproxy.front.routing import Routing
from clamproxy.guarded_addresses import find_guarded, find_guarded_blocking, is_guarded


@pytest.mark.parametrize(
    ("address", "guarded"),
    [
        *((address, True) for address in ("127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1")),
        *((address, True) for address in ("169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0")),
        *((address, True) for address in ("0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1")),
        *((address, False) for address in ("10.0.0.5", "192.168.1.1", "fd00::5", "192.0.2.1", "2001:db8::1")),
    ],
)
def test_is_guarded(address: str, guarded: bool) -> None:
    assert is_guarded(address) == guarded


@pytest.mark.parametrize(
    ("host", "address", "may"),
    [
        ("www.example.com", "127.0.0.1", False),
        ("www.example.com", "127.0.0.5", True),  # listed as well
        ("LOCALHOST.", "127.0.0.1", True),
        ("clamproxy", "127.0.1.1", True),  # the gateway's own name
        ("127.0.0.5", "127.0.0.5", True),
    ],
)
def test_may_lead_to(host: str, address: str, may: bool) -> None:
    settings = Settings.model_validate(
        {"serving": {"pass_through": ["www.example.com", "localhost", "127.0.0.5"]}}
    )
    assert Routing(settings).may_lead_to(host, address) == may


async def test_find_guarded() -> None:
    assert await find_guarded("127.0.0.1", 80, lambda _: False) == "127.0.0.1"
    assert find_guarded_blocking("127.0.0.1", 80, lambda _: False) == "127.0.0.1"
    assert await find_guarded("127.0.0.1", 80, lambda _: True) is None
    assert await find_guarded("192.0.2.1", 80, lambda _: False) is None
    assert await find_guarded("no such name", 80, lambda _: False) is None
