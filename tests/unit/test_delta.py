"""When a cached CVD and the patches after it stand for a newer version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.config.settings import Delta
from clamproxy.releases.delta import Lineage, Renewal, renewal

LIMITS = Delta(max_patches=90, max_share=0.1, renew_after=30)
SIZE = 1000

NOT_NEEDED, QUIET, AT_ONCE = Renewal.NOT_NEEDED, Renewal.IN_A_QUIET_HOUR, Renewal.AT_ONCE


def lineage(patches: int = 0, patch_bytes: int = 0, *, is_blocked: bool = False) -> Lineage:
    return Lineage(100, SIZE, 100 + patches, patch_bytes, is_blocked)


@pytest.mark.parametrize(
    ("patches", "patch_bytes", "within"),
    [
        pytest.param(0, 0, True, id="the CVD alone"),
        pytest.param(90, 0, True, id="as many patches as may be"),
        pytest.param(91, 0, False, id="one too many"),
        pytest.param(1, 100, True, id="as many bytes as may be"),
        pytest.param(1, 101, False, id="a byte too many"),
    ],
)
def test_a_good_deal_for_a_new_client(patches: int, patch_bytes: int, within: bool) -> None:
    assert lineage(patches).patches == patches
    assert lineage(patches, patch_bytes).is_within(LIMITS) is within


def test_a_share_of_nothing_admits_empty_hands_only() -> None:
    limits = Delta(max_share=0)
    assert lineage().is_within(limits)
    assert not lineage(1, 1).is_within(limits)


@pytest.mark.parametrize(
    ("state", "next_is_gone", "expected"),
    [
        pytest.param(lineage(), False, NOT_NEEDED, id="no patches"),
        pytest.param(lineage(29, 10), False, NOT_NEEDED, id="few patches"),
        pytest.param(lineage(30, 10), False, QUIET, id="renew_after is reached"),
        pytest.param(lineage(90, 100), False, QUIET, id="the limits are reached"),
        pytest.param(lineage(91, 10), False, AT_ONCE, id="too many patches"),
        pytest.param(lineage(1, 101), False, AT_ONCE, id="too many bytes"),
        pytest.param(lineage(is_blocked=True), False, AT_ONCE, id="trap 15: an empty patch"),
        pytest.param(lineage(5, 10, is_blocked=True), False, AT_ONCE, id="an empty patch after others"),
        pytest.param(lineage(), True, AT_ONCE, id="the origin has the next patch no more"),
        pytest.param(lineage(40, 10), True, AT_ONCE, id="the same after many others"),
    ],
)
def test_when_the_base_is_renewed(state: Lineage, next_is_gone: bool, expected: Renewal) -> None:
    assert renewal(state, LIMITS, next_is_gone=next_is_gone) is expected


lineages = st.builds(
    lambda patches, size, patch_bytes, blocked: Lineage(100, size, 100 + patches, patch_bytes, blocked),
    st.integers(0, 200),
    st.integers(1, 10**9),
    st.integers(0, 10**9),
    st.booleans(),
)


@given(lineages, st.booleans())
def test_switched_off_delta_serving_renews_only_what_patches_do_not_lead_on_from(
    state: Lineage, next_is_gone: bool
) -> None:
    due = renewal(state, Delta(enabled=False), next_is_gone=next_is_gone)
    assert due is (AT_ONCE if state.is_blocked or next_is_gone else NOT_NEEDED)


@given(lineages, st.integers(1, 200), st.integers(1, 200))
def test_what_is_no_good_deal_is_never_left_alone(state: Lineage, most: int, renew_after: int) -> None:
    limits = Delta(max_patches=most, renew_after=renew_after)
    due = renewal(state, limits)
    assert (due is AT_ONCE) == (state.is_blocked or not state.is_within(limits))
    assert (due is NOT_NEEDED) <= (state.patches < renew_after)
