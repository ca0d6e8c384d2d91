"""Has a process kill itself when it begins a step that changes files; see `killing`.

A kill from outside meets these moments only by chance: most of them last some microseconds.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from tests.support.forge import ForgeKeys
from tests.support.killing import KillAtStep
from tests.support.prefork import Program

STEPS = "CLAMPROXY_TEST_STEPS"
"""The environment variable with a file: the number of the step, perhaps with a part of the files' names."""
ARM = signal.SIGUSR2
"""Makes a process read that file, and count from then on."""


def listen() -> None:
    """Wait for `ARM`. In the main thread."""
    signal.signal(ARM, lambda *_: _arm())


def command() -> None:
    """``clamproxy``, which trusts the test keys and counts from its beginning."""
    from clamproxy.cli import common, main

    keys = ForgeKeys.load(Path(os.environ["CLAMPROXY_TEST_KEYS"])).trusted
    for module in (common, import_module("clamproxy.cli.hold")):  # `cli.hold` is the command
        module.CLAMAV_KEYS = keys  # type: ignore[attr-defined]
    if STEPS in os.environ:
        _arm()
    main(prog_name="clamproxy")


COMMAND = Program("clamproxy", __name__, command.__name__)


def _arm() -> None:
    step, _, name = Path(os.environ[STEPS]).read_text().partition(" ")
    sys.addaudithook(KillAtStep(int(step), name))
