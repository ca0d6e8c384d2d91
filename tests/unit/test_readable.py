"""Figures for people."""

from __future__ import annotations

import time

import pytest

from clamproxy.readable import shortened, shown_count, shown_share, shown_size, shown_span, shown_time


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (10 * 2**30, "10.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5,000.0 TiB"),
    ],
)
def test_sizes(value: int, text: str) -> None:
    assert shown_size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "a moment"),
        (0.0, "a moment"),
        (0.4, "a moment"),
        (0.9, "1 s"),
        (90, "90 s"),
        (119.6, "2 min"),
        (7100, "118 min"),
        (7200, "2 h"),
        (47 * 3600, "47 h"),
        (2 * 86400, "2 d"),
        (4000 * 86400, "4,000 d"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    assert shown_span(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1234, "1,234 files")]
)
def test_counts(number: int, text: str) -> None:
    assert shown_count(number, "file") == text


def test_times() -> None:
    at = time.mktime((2026, 11, 22, 8, 5, 9, 0, 0, -1))
    assert shown_time(at) == "2026-11-22 08:05"
    assert shown_time(at, exact=True) == "2026-11-22 08:05:09"
    assert shown_time(None) == "-"
    assert shown_time(1e300) == "?"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("ten chars.", "ten chars."),
        ("this is a longer text", "this is …"),
        ("first, second", "first …"),
        ("unbreakable", "unbreaka …"),
    ],
)
def test_long_texts_are_cut_between_words(text: str, shown: str) -> None:
    assert shortened(text, 10) == shown


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"),
        (0, "0%"),
        (0.0004, "0.0%"),
        (0.9742, "97.4%"),
        (0.99999, "99.9%"),
        (1, "100%"),
        (1.0, "100%"),
    ],
)
def test_shares(share: float | None, text: str) -> None:
    """Only what is perfect is called 100%."""
    assert shown_share(share) == text
