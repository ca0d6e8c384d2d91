"""What all tests have in common."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test may depend on an idle machine: hypothesis's own limit is 200 ms for an example.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no name for a test: they may be signed anew in each process."""
    return argname if isinstance(val, bytes) else None
