"""Which versions of freshclam ClamAV still supports, by its end-of-life policy.

Source: https://docs.clamav.net/faq/faq-eol.html, "Version Support Matrix", as read in November 2026, with
the release date of 1.5, 7 October 2025, filled in where the matrix says "1.5 + 4 months".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime

type FeatureRelease = tuple[int, int]
"""The first two numbers of a version, such as 1.4 in 1.4.6."""


@dataclass(frozen=True, slots=True)
class Support:
    """Until when a feature release is supported and served."""

    until: date
    """The end of its life: the last day of support."""
    served_until: date
    """The last day on which ClamAV's CDN lets it download databases."""


# Long-term support releases may download for one year after their support has ended.
TABLE: dict[FeatureRelease, Support] = {
    (0, 103): Support(date(2024, 9, 14), date(2025, 9, 14)),
    (0, 104): Support(date(2023, 3, 28), date(2023, 3, 28)),
    (0, 105): Support(date(2023, 9, 1), date(2023, 9, 1)),
    (1, 0): Support(date(2025, 11, 28), date(2026, 11, 28)),
    (1, 1): Support(date(2024, 6, 7), date(2024, 6, 7)),
    (1, 2): Support(date(2024, 12, 15), date(2024, 12, 15)),
    (1, 3): Support(date(2026, 2, 7), date(2026, 2, 7)),
    (1, 4): Support(date(2027, 8, 15), date(2028, 8, 15)),
}
"""Releases with a known end. That of 1.5 comes four months after 1.7, which has no date yet."""
NEWEST_BLOCKED: FeatureRelease = (0, 105)
"""The policy says that this release and all older ones are refused, and others past their date may be."""
_OLDER = Support(date(2022, 1, 3), date(2022, 1, 3))
"""Support of all releases before 0.103."""

_NUMBERS = re.compile(r"(\d{1,4})\.(\d{1,4})(?!\d)", re.ASCII)


def is_end_of_life(freshclam: str | None, now: float) -> bool:
    """Whether a version is known to be no longer supported.

    Args:
        freshclam: its version, or None if that is unknown.
        now: Unix seconds.
    """
    support = _support_of(freshclam)
    return support is not None and support.until < _day(now)


def explain_end_of_life(freshclam: str | None, now: float) -> str | None:
    """What the end of a version's life means, in one line; None if it hasn't come yet."""
    release, support = _feature_release(freshclam), _support_of(freshclam)
    if release is None or support is None or not is_end_of_life(freshclam, now):
        return None
    served = support.served_until
    if release <= NEWEST_BLOCKED:
        access = "ClamAV's CDN refuses it"
    elif served < _day(now):
        access = f"ClamAV's CDN may have refused it since {served}"
    else:
        access = f"ClamAV's CDN serves it until {served}"
    return f"freshclam {release[0]}.{release[1]}: support ended on {support.until}; {access}"


def _feature_release(freshclam: str | None) -> FeatureRelease | None:
    """The feature release of a version: (1, 4) for ``1.4.6+dfsg``; None if it has no number."""
    match = _NUMBERS.match(freshclam or "")
    return (int(match[1]), int(match[2])) if match else None


def _support_of(freshclam: str | None) -> Support | None:
    """Until when a version is supported; None if that hasn't been announced yet."""
    release = _feature_release(freshclam)
    if release is None:
        return None
    return _OLDER if release < min(TABLE) else TABLE.get(release)


def _day(now: float) -> date:
    return datetime.fromtimestamp(now, UTC).date()
