"""Checks that mitmproxy has the internals that other modules rely on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def require(expected: Mapping[type, Iterable[str]]) -> None:
    """Check that classes have, or at least declare, certain members.

    Raises:
        RuntimeError: one is missing; the message names it.
    """
    missing = [
        f"{cls.__name__}.{name}"
        for cls, names in expected.items()
        for name in names
        if not hasattr(cls, name) and name not in cls.__annotations__
    ]
    if missing:
        raise RuntimeError(f"this version of mitmproxy has no {', '.join(missing)}")
