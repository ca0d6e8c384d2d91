"""How much a test of this folder tries, and where it says so.

`make test` tries a few moments, inputs or days; `make torture` many. Both print what was tried at their end.
"""

from __future__ import annotations

import os
import random
import secrets
from typing import Final

FULL: Final = "CLAMPROXY_TORTURE" in os.environ
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex()  # the same in all processes of a run
SEED: Final = int(os.environ.get("CLAMPROXY_TORTURE_SEED") or random.Random(_RUN).getrandbits(32))
"""What random choices are made from. It is printed with the figures; set the variable to repeat a run."""


def rounds(usual: int, full: int) -> int:
    """How often to try: `usual` in `make test`, `full` in `make torture`."""
    return full if FULL else usual
