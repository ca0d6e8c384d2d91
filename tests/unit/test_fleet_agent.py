"""What a User-Agent says about the machine behind it (docs/protocol.md 1.1)."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.fleet.agent import LONGEST, Agent, parse_agent, shown_address

UUID = "0738ec71-8d58-4bdf-8241-6ad688adc4fd"
SENT = f"ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {UUID})"
"""As Debian's freshclam sends it."""


@pytest.mark.parametrize(
    ("user_agent", "agent"),
    [
        pytest.param(SENT, Agent(UUID, "1.4.6", "Linux", "x86_64"), id="Debian"),
        pytest.param(
            f"ClamAV/1.5.0-rc2 (OS: freebsd14.1, ARCH: amd64, CPU: amd64, UUID: {UUID})",
            Agent(UUID, "1.5.0-rc2", "freebsd14.1", "amd64"),
            id="FreeBSD",
        ),
        pytest.param(
            f"ClamAV/0.103.12 (OS: linux-gnu, ARCH: aarch64, CPU: , UUID: {UUID.upper()})",
            Agent(UUID, "0.103.12", "linux-gnu", "aarch64"),
            id="an upper-case UUID is the same",
        ),
        pytest.param(
            f"ClamAV/1.4.6+dfsg~1 (UUID: {UUID})", Agent(UUID, "1.4.6+dfsg~1", None, None), id="UUID only"
        ),
        pytest.param(
            f"ClamAV/<b> (OS: [red], ARCH: \x1b[31m, UUID: {UUID})",
            Agent(UUID, None, None, None),
            id="hostile",
        ),
        pytest.param(
            f"ClamAV/{'1' * 33} (OS: {'x' * 33}, UUID: {UUID})", Agent(UUID, None, None, None), id="too long"
        ),
        pytest.param(
            f"ClamAV/1.4.6 (OS: Linux, ARCH: \u0665, UUID: {UUID})",
            Agent(UUID, "1.4.6", "Linux", None),
            id="\u0665",
        ),
        pytest.param("ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64)", None, id="no UUID"),
        pytest.param(SENT[:-2] + ")", None, id="half a UUID"),
        pytest.param(SENT.replace("7", "\u0667"), None, id="digits of another script"),
        pytest.param(SENT + " x", None, id="more behind it"),
        pytest.param(" " + SENT, None, id="more before it"),
        pytest.param(SENT + "x" * LONGEST, None, id="long"),
        pytest.param(f"CVDUPDATE/1.2.0 ({UUID})", None, id="cvdupdate"),
        pytest.param("curl/8.5.0", None, id="curl"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_the_machine_behind_a_user_agent(user_agent: str, agent: Agent | None) -> None:
    assert parse_agent(user_agent) == agent


pieces = st.sampled_from(
    ["ClamAV/", "1.4.6", " (", "OS: ", "Linux", ", ", "ARCH: ", "UUID: ", UUID, ")", "\n", "\ud800"]
)


@given(st.text() | st.lists(pieces | st.text(max_size=3), max_size=20).map("".join))
@example(SENT)
def test_whatever_is_sent(user_agent: str) -> None:
    """Only what is plain and short gets out."""
    agent = parse_agent(user_agent)
    if agent is not None:
        assert re.fullmatch("[0-9a-f-]{36}", agent.uuid)
        for text in (agent.freshclam, agent.os, agent.arch):
            assert text is None or re.fullmatch(r"[A-Za-z0-9 .+~/_-]{1,32}", text)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("/run/x\n", "/run/x\\n"),
        ("x" * 999, "x" * 64),
    ],
)
def test_addresses(address: str, shown: str) -> None:
    assert shown_address(address) == shown


@given(st.text())
def test_whatever_the_address_is(address: str) -> None:
    shown = shown_address(address)
    assert len(shown) <= 64
    assert shown.isascii()
    assert shown.isprintable()
