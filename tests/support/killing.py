"""Kills a separate process at each of its steps that change files."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

CHANGES = ("os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.utime", "os.truncate")
"""Audit events; opening a file for writing counts, too."""


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do something in a child process that is killed when it begins a step, counted from 0.

    Returns:
        Whether the child reached that step; otherwise, it finished its work.
    """
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(KillAtStep(step))
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL if killed else status == 0
    return killed


class KillAtStep:
    """An audit hook that kills its process when a step begins.

    Args:
        step: counted from 0.
        name: a part of a path; only steps that concern such a file count.
    """

    def __init__(self, step: int, name: str = "") -> None:
        self._left, self._name = step, name

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in CHANGES and not (event == "open" and self._writes(arguments)):
            return
        if not any(self._name in str(argument) for argument in arguments):
            return
        # Several threads may be here at once.
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def _writes(self, arguments: tuple[object, ...]) -> bool:
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
