"""What all tests have in common."""

from __future__ import annotations


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no name for a test: they may be signed anew in each process."""
    return argname if isinstance(val, bytes) else None
