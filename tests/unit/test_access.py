"""Who may use the gateway: users and their passwords, and how many connections there may be."""

from __future__ import annotations

import asyncio
import base64
import resource
from typing import TYPE_CHECKING

import pytest
import werkzeug.security
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.access import users as users_module
from clamproxy.access.limits import (
    DESCRIPTORS_PER_CONNECTION,
    LEAST_CONNECTIONS,
    OTHER_DESCRIPTORS,
    ConnectionLimits,
    descriptors_for,
    provide_descriptors,
    require_descriptors,
)
from clamproxy.access.users import MOST_REMEMBERED, Users, user_line
from clamproxy.config.loading import ConfigurationError
from clamproxy.config.units import USER

if TYPE_CHECKING:
    pass

LINES = [user_line("clamav", "s3cret"), user_line("mail gate".replace(" ", "-"), "pass:word with ümlaut")]


def basic(name: str, password: str, scheme: str = "Basic") -> str:
    return f"{scheme} " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (basic("clamav", "s3cret"), True),
        (basic("clamav", "s3cret", "basic"), True),
        (basic("mail-gate", "pass:word with ümlaut"), True),
        (basic("clamav", "S3cret"), False),
        (basic("clamav", ""), False),
        (basic("clamav", "pass:word with ümlaut"), False),
        (basic("", "s3cret"), False),
        (basic("nobody", "s3cret"), False),
        (None, False),
        ("", False),
        ("Basic", False),
        ("Basic !", False),
        ("Basic \u00e9", False),
        ("Basic \udcff", False),
        ("Bearer s3cret", False),
        ("Basic " + base64.b64encode(b"clamav").decode(), False),
        ("Basic " + base64.b64encode(b"\xff\xfe:\x80").decode(), False),
    ],
)
async def test_who_is_admitted(field: str | None, expected: bool) -> None:
    assert await Users(LINES).admit(field) is expected


async def test_who_cannot_wait_is_refused_while_others_are_checked() -> None:
    users = Users(LINES)
    checks = [asyncio.create_task(users.admit(basic("clamav", str(number)))) for number in range(2)]
    await asyncio.sleep(0)
    assert not await users.admit(basic("clamav", "s3cret"), at_once=True)
    await asyncio.gather(*checks)
    assert await users.admit(basic("clamav", "s3cret"), at_once=True)
    checks = [asyncio.create_task(users.admit(basic("clamav", str(number)))) for number in range(2, 4)]
    await asyncio.sleep(0)
    assert await users.admit(basic("clamav", "s3cret"), at_once=True)  # known by now
    await asyncio.gather(*checks)


async def test_one_check_for_many_with_the_same_password(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def check(pwhash: str, password: str) -> bool:
        checked.append(password)
        return True

    monkeypatch.setattr("clamproxy.access.users.check_password_hash", check)
    users = Users(LINES)
    crowd = [users.admit(basic("clamav", "s3cret")) for _ in range(30)]
    assert all(await asyncio.gather(*crowd))
    assert len(checked) <= 2  # as many as are checked at a time


async def test_without_users_everybody_is_admitted() -> None:
    users = Users([])
    assert not users
    assert await users.admit(None)
    assert await users.admit("anything")


async def test_a_password_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def check(pwhash: str, password: str) -> bool:
        calls.append(password)
        return werkzeug.security.check_password_hash(pwhash, password)

    monkeypatch.setattr(users_module, "check_password_hash", check)
    users = Users(LINES[:1])
    for _ in range(3):
        assert await users.admit(basic("clamav", "s3cret"))
        assert not await users.admit(basic("clamav", "wrong"))
    assert sorted(calls) == ["s3cret", "wrong"]


async def test_tried_passwords_push_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users_module, "check_password_hash", lambda _, password: password == "s3cret")
    users = Users(LINES[:1])
    assert await users.admit(basic("clamav", "s3cret"))
    for number in range(MOST_REMEMBERED + 10):
        assert not await users.admit(basic("clamav", f"try {number}"))
    monkeypatch.setattr(users_module, "check_password_hash", lambda *_: pytest.fail("hashed again"))
    assert await users.admit(basic("clamav", "s3cret"))


def test_a_line_is_what_the_configuration_takes() -> None:
    for line in LINES:
        assert USER.parse(line) == line
        assert "s3cret" not in line
    assert user_line("clamav", "same") != user_line("clamav", "same")


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a\n", "x" * 129])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ValueError, match="a name"):
        user_line(name, "password")


@pytest.mark.parametrize("line", ["clamav:plain", "clamav", ":scrypt:1:1:1$aaaaaaaa$00", 1, None, ["x"]])
def test_other_lines_are_refused(line: object) -> None:
    with pytest.raises(ValueError, match="hash-password"):
        USER.parse(line)


def test_limits() -> None:
    limits = ConnectionLimits(in_all=3, per_client=2)
    assert [limits.take("a"), limits.take("a")] == [None, None]
    assert limits.take("a") == "access.max_connections_per_client"
    assert limits.take("b") is None
    assert limits.take("c") == "access.max_connections"
    limits.leave("a")
    assert limits.take("c") is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_limits_hold_whatever_comes_and_goes(steps: list[tuple[bool, str]]) -> None:
    limits, open_now = ConnectionLimits(in_all=4, per_client=2), []
    for comes, address in steps:
        if comes:
            if limits.take(address) is None:
                open_now.append(address)
        elif address in open_now:
            open_now.remove(address)
            limits.leave(address)
        assert len(open_now) <= 4
        assert all(open_now.count(one) <= 2 for one in "abc")
    refused = limits.take("d") is not None
    assert refused == (len(open_now) == 4)


def test_no_more_connections_than_there_is_room_for() -> None:
    """Those of other processes take none of this one's room."""
    limits = ConnectionLimits(in_all=10, per_client=10)
    limits.elsewhere = Others()
    limits.room = 2
    assert [limits.take("a"), limits.take("b")] == [None, None]
    assert limits.is_full
    assert limits.take("c") == "The limit of open files"
    limits.leave("a")
    assert limits.take("c") is None


class Others:
    """Five connections in other processes."""

    def total(self) -> int:
        return 5

    def of(self, address: str) -> int:
        return 0

    def came(self, address: str) -> None: ...

    def left(self, address: str) -> None: ...


def test_a_lowered_limit_counts_at_once() -> None:
    limits = ConnectionLimits(10, 10)
    assert [limits.take("a") for _ in range(3)] == [None] * 3
    limits.per_client = 2
    assert limits.take("a") == "access.max_connections_per_client"


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "room"),
    [
        (1024, 524288, 2 * 2000 + OTHER_DESCRIPTORS, 2000),
        (1024, 1024, None, (1024 - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION),
        (100000, 100000, None, 2000),
        (1024, resource.RLIM_INFINITY, 2 * 2000 + OTHER_DESCRIPTORS, 2000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 2000),
    ],
)
def test_descriptors(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None, room: int
) -> None:
    current = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: current[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: current.append(pair))
    assert provide_descriptors(2000) == room
    assert current[-1][0] == (soft if raised is None else raised)


@pytest.mark.parametrize("error", [PermissionError, ValueError, OverflowError])
def test_a_system_that_gives_no_more_descriptors(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert provide_descriptors(2000) == (1024 - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION


@pytest.mark.parametrize(
    ("limit", "connections", "needed"),
    [
        (96, 2000, descriptors_for(LEAST_CONNECTIONS)),
        (descriptors_for(LEAST_CONNECTIONS) - 1, 2000, descriptors_for(LEAST_CONNECTIONS)),
        (descriptors_for(LEAST_CONNECTIONS), 2000, None),
        (descriptors_for(3), 3, None),
        (descriptors_for(3) - 1, 3, descriptors_for(3)),
        (resource.RLIM_INFINITY, 2000, None),
    ],
)
def test_descriptors_that_a_gateway_needs(
    monkeypatch: pytest.MonkeyPatch, limit: int, connections: int, needed: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    if needed is None:
        require_descriptors(connections)
        return
    with pytest.raises(ConfigurationError, match=rf"is {limit}: at least {needed} are needed"):
        require_descriptors(connections)
