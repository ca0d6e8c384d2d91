"""What the log tells about an object store that fails."""

from __future__ import annotations

import pytest

from clamproxy.bucket.bucket_condition import SAY_AGAIN_AFTER, STEADY, BucketCondition
from tests.support.clock import Clock


def lines(caplog: pytest.LogCaptureFixture) -> int:
    count = len(caplog.records)
    caplog.clear()
    return count


def test_each_outage_is_told_with_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    condition = BucketCondition("s3://site", clock)
    for _ in range(3):
        condition.failed("down")
        condition.failed("still down")
        assert lines(caplog) == 1
        condition.recovered()
        condition.recovered()
        assert lines(caplog) == 1
        clock.now += STEADY


def test_a_store_that_can_be_used_for_moments_is_told_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    condition = BucketCondition("s3://site", clock)
    changes: list[bool] = []
    condition.changed = lambda: changes.append(condition.state is not None)
    rounds = int(2.5 * SAY_AGAIN_AFTER / 20)
    for _ in range(rounds):
        condition.failed("full")
        clock.now += 10
        condition.recovered()
        clock.now += 10
    assert lines(caplog) == 6
    assert changes == [True, False] * rounds, "everything else shows it"
    condition.failed("no conditional writes", is_lasting=True)
    assert lines(caplog) == 1
