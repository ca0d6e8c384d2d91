"""What a gateway leaves for those that waited, and what they make of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.endings import TransferEnding
from clamproxy.origin.learnt import ending_found, ending_left

AGENT, OLD_AGENT = "ClamAV/1.4.6", "ClamAV/0.103.2"


def passed_on(ending: TransferEnding | None, agent: str = AGENT) -> TransferEnding | None:
    """By way of the object store."""
    return ending_found(json.loads(json.dumps(ending_left(ending))), agent)


@pytest.mark.parametrize(
    ("failure", "is_everybodys"),
    [
        (None, True),
        (FailureKind.FORBIDDEN, True),
        (FailureKind.RATE_LIMITED, True),
        (FailureKind.SERVER_ERROR, True),
        (FailureKind.BAD_CONTENT, True),
        (FailureKind.UNREACHABLE, False),
        (FailureKind.INTERRUPTED, False),
        (FailureKind.PROXY_AUTHENTICATION, False),
        (FailureKind.CHANGED, False),
        (FailureKind.NO_ROOM, False),
        (FailureKind.LOCAL, False),
    ],
)
def test_whose_failure_it_is(failure: FailureKind | None, is_everybodys: bool) -> None:
    found = passed_on(TransferEnding("why", failure, AGENT, 50.0))
    assert (found is not None) is is_everybodys
    if found is not None:
        assert (found.reason, found.failure, found.retry_after) == ("why", failure, 50.0)


def test_a_refusal_is_of_one_client_version() -> None:
    assert passed_on(TransferEnding("no", FailureKind.FORBIDDEN, OLD_AGENT)) is None
    assert passed_on(TransferEnding("no", FailureKind.RATE_LIMITED, OLD_AGENT)) is not None


def test_nothing_is_left_after_nothing() -> None:
    assert ending_left(None) == {}
    assert ending_found({}, AGENT) is None


@pytest.mark.parametrize("wait", [-1, 1e12, float("nan"), float("inf"), "soon", [], None])
def test_a_wait_that_makes_no_sense(wait: Any) -> None:
    learnt = ending_left(TransferEnding("no", FailureKind.RATE_LIMITED, AGENT)) | {"retry_after": wait}
    found = ending_found(learnt, AGENT)
    assert found is None or found.retry_after is None


@pytest.mark.parametrize("version", [-1, 0, 2**64, 10**400])
def test_a_version_that_makes_no_sense(version: int) -> None:
    assert passed_on(TransferEnding("changed", version=version)) is None


def test_a_reason_that_is_nested_too_deeply() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert ending_found(ending_left(TransferEnding("no")) | {"reason": deep}, AGENT) is None


def test_a_reason_is_one_harmless_line() -> None:
    found = passed_on(TransferEnding("first\nsecond\x1b[31m" + "x" * 1000))
    assert found is not None
    assert found.reason == "first"


@given(
    st.dictionaries(
        st.sampled_from(["reason", "failure", "agent", "retry_after", "needed", "version", "at"]),
        st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers()),
    )
)
def test_nonsense_is_harmless(learnt: dict[str, Any]) -> None:
    ending_found(learnt, AGENT)
