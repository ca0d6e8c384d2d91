"""Loaded by mitmdump in tests that kill it: trusts the test keys, and kills itself at a step when told to."""

from __future__ import annotations

from tests.support.forged_addon import addons
from tests.support.mortal import listen

__all__ = ["addons"]

listen()
