"""When a file of the site counts as published, and whether a machine has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.site_files.publication_dates import has_current, publication_date

NOW = 1_800_000_000.5
PUBLISHED = 1_799_990_000


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        pytest.param(0, 1_800_000_001, id="first"),
        pytest.param(1_799_000_000, 1_800_000_001, id="later"),
        pytest.param(1_800_000_001, 1_800_000_002, id="twice_in_a_second"),
        pytest.param(1_800_000_040, 1_800_000_041, id="the_clock_was_set_back_a_little"),
        pytest.param(1_900_000_000, 1_800_000_001, id="the_clock_was_wrong"),
    ],
)
def test_publication_date(last: int, expected: int) -> None:
    assert publication_date(NOW, last) == expected


@given(st.floats(1e9, 2e9), st.integers(0, 2 * 10**9))
def test_no_copy_of_the_former_content_is_as_new(now: float, last: int) -> None:
    assert publication_date(now, last) > int(now)


@pytest.mark.parametrize(
    ("since", "known", "expected"),
    [
        pytest.param(PUBLISHED - 1, None, False, id="older"),
        pytest.param(PUBLISHED, None, True, id="the_same_second"),
        pytest.param(PUBLISHED + 1, None, True, id="newer"),
        pytest.param(NOW + 1, None, True, id="within_the_same_second"),
        pytest.param(NOW + 600, None, False, id="in_the_future"),
        pytest.param(NOW + 600, True, True, id="in_the_future_but_sent_before"),
        pytest.param(PUBLISHED + 1, False, False, id="dated_ahead_but_not_sent"),
        # A client may have thrown away what it was sent.
        pytest.param(PUBLISHED - 1, True, False, id="sent_but_not_kept"),
    ],
)
def test_has_current(since: float, known: bool | None, expected: bool) -> None:
    assert has_current(since, PUBLISHED, NOW, known) is expected
