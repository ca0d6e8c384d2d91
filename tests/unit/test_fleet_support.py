"""Which freshclams are past their end of life."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from clamproxy.fleet.support import NEWEST_BLOCKED, explain_end_of_life, is_end_of_life
from clamproxy.origin.agents import OLDEST_SUPPORTED

NOW = datetime(2026, 11, 23, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("freshclam", "at", "ended"),
    [
        ("0.99.4", "2026-11-23", True),
        ("0.102.5", "2026-11-23", True),
        ("0.103.12", "2024-09-14", False),
        ("0.103.12", "2024-09-15", True),
        ("0.105.2", "2026-11-23", True),
        ("1.0.9", "2025-11-28", False),
        ("1.0.9", "2025-11-29", True),
        ("1.3.2", "2026-11-23", True),
        ("1.4.6", "2026-11-23", False),
        ("1.4.6+dfsg", "2027-08-16", True),
        ("1.5.3", "2026-11-23", False),
        ("1.10.0", "2026-11-23", False),
        ("1.6.0-devel-20260701", "2030-01-01", False),
        ("2.0", "2030-01-01", False),
        ("devel-20200101", "2030-01-01", False),
        ("1.", "2030-01-01", False),
        (None, "2030-01-01", False),
    ],
)
def test_end_of_life(freshclam: str | None, at: str, ended: bool) -> None:
    now = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()
    assert is_end_of_life(freshclam, now) is ended
    assert (explain_end_of_life(freshclam, now) is not None) is ended


@pytest.mark.parametrize(
    ("freshclam", "text"),
    [
        ("0.103.12", "freshclam 0.103: support ended on 2024-09-14; ClamAV's CDN refuses it"),
        ("1.0.9", "freshclam 1.0: support ended on 2025-11-28; ClamAV's CDN serves it until 2026-11-28"),
        (
            "1.3.2",
            "freshclam 1.3: support ended on 2026-02-07; ClamAV's CDN may have refused it since 2026-02-07",
        ),
        ("1.4.6", None),
    ],
)
def test_what_the_end_of_life_means(freshclam: str, text: str | None) -> None:
    assert explain_end_of_life(freshclam, NOW) == text


def test_what_is_refused_is_in_no_request_of_the_gateway() -> None:
    assert NEWEST_BLOCKED < OLDEST_SUPPORTED
