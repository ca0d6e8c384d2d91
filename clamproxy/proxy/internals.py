"""What modules that reach into mitmproxy rely on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def require(expected: Mapping[type, Iterable[str]]) -> None:
    """See that classes have some members, or that these are declared.

    Raises:
        RuntimeError: they don't.
    """
    missing = [
        f"{cls.__name__}.{name}"
        for cls, names in expected.items()
        for name in names
        if not hasattr(cls, name) and name not in cls.__annotations__
    ]
    if missing:
        raise RuntimeError(f"this version of mitmproxy has no {', '.join(missing)}")
