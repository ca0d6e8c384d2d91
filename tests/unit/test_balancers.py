"""Whose request it is: X-Forwarded-For from balancers, and from everybody else."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.access.balancers import Balancers

BALANCER, OTHER_BALANCER, CLIENT, FORGED = "10.0.0.5", "fd00::5", "10.1.0.7", "192.0.2.66"


@pytest.fixture
def balancers() -> Balancers:
    balancers = Balancers()
    balancers.forwarding = [ip_network(BALANCER), ip_network("fd00::/64")]
    return balancers


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], BALANCER),  # a health check
        ([CLIENT], CLIENT),
        (["2001:db8::7"], "2001:db8::7"),
        (["2001:DB8:0::7"], "2001:db8::7"),
        (["::ffff:10.1.0.7"], CLIENT),
        ([f"{CLIENT}:40000"], CLIENT),
        (["[2001:db8::7]"], "2001:db8::7"),
        (["[2001:db8::7]:40000"], "2001:db8::7"),
        ([f" \t{CLIENT} "], CLIENT),
        # What the client sent comes before what the balancer has appended.
        ([f"{FORGED}, {CLIENT}"], CLIENT),
        ([f"{FORGED},{CLIENT}"], CLIENT),
        ([FORGED, CLIENT], CLIENT),
        ([f"{FORGED}, {BALANCER}, {CLIENT}"], CLIENT),
        ([f"unknown, {CLIENT}"], CLIENT),
        ([f"{BALANCER}, {CLIENT}"], CLIENT),
        # Two balancers, one behind the other.
        ([f"{CLIENT}, {OTHER_BALANCER}"], CLIENT),
        ([f"{FORGED}, {CLIENT}, {OTHER_BALANCER}"], CLIENT),
        ([f"{CLIENT}, {OTHER_BALANCER}, {BALANCER}"], CLIENT),
        ([OTHER_BALANCER], OTHER_BALANCER),
        # Nothing before an element that isn't an address is believed.
        ([""], BALANCER),
        (["unknown"], BALANCER),
        (["_hidden"], BALANCER),
        ([f"{FORGED}, unknown"], BALANCER),
        ([f"{FORGED}, "], BALANCER),
        ([f"{FORGED}, , {OTHER_BALANCER}"], OTHER_BALANCER),
        ([f"{FORGED} {CLIENT}"], BALANCER),
        ([f"{FORGED};{CLIENT}"], BALANCER),
        ([f'"{CLIENT}"'], BALANCER),
        ([f"for={CLIENT}"], BALANCER),
        (["10.1.7"], BALANCER),
        (["10.1.0.07"], BALANCER),
        (["10.1.0.0/16"], BALANCER),
        (["database.clamav.net"], BALANCER),
    ],
)
def test_client_of(balancers: Balancers, fields: list[str], expected: str) -> None:
    assert balancers.client_of(BALANCER, fields) == expected


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_field(fields: list[str]) -> None:
    """Whatever a client sends ahead of the address that the balancer appends is without effect."""
    balancers = Balancers()
    balancers.forwarding = [ip_network(BALANCER)]
    assert balancers.client_of(BALANCER, [*fields, CLIENT]) == CLIENT
    balancers.client_of(BALANCER, fields)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (BALANCER, True),
        (f"::ffff:{BALANCER}", True),
        ("fd00::1", True),
        ("fd00::1%eth0", True),
        ("10.0.0.6", False),
        (CLIENT, False),
        ("", False),
        ("x", False),
    ],
)
def test_who_is_a_balancer(balancers: Balancers, address: str, expected: bool) -> None:
    assert balancers.forwards(address) is expected
    assert not balancers.announces(address)
    balancers.announcing, balancers.forwarding = balancers.forwarding, ()
    assert balancers.announces(address) is expected
    assert not balancers.forwards(address)


def test_nobody_is_by_default() -> None:
    assert not Balancers().announces(BALANCER)
    assert not Balancers().forwards(BALANCER)
