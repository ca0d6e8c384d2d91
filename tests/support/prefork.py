"""Starts programs by forks of a process that has imported them already, at a fifth of what their starts cost.

A fork is what the installed program is once its imports are done: it calls the same function, with
arguments, environment, working directory and files of its own. What that can't show (the program itself, its
command line, an interpreter under other rules) is for tests that start the real one: see `Gateway` and
`start_tool`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection, reduction
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Program(NamedTuple):
    """An installed program, and what it calls."""

    name: str
    module: str
    function: str


MITMDUMP = Program("mitmdump", "mitmproxy.tools.main", "mitmdump")
CLAMPROXY = Program("clamproxy", "clamproxy.cli", "main")

_PRELOADED = [
    "mitmproxy.tools.main",
    "mitmproxy.tools.dump",
    "clamproxy.proxy.addon",
    "clamproxy.cli",
    "tests.support.forge",
    __name__,
]
_CONTEXT = multiprocessing.get_context("forkserver")
_starting = threading.Lock()


class Forked:
    """A process that was started so; as much of `subprocess.Popen` as tests use."""

    def __init__(
        self,
        program: Program,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdin: IO[bytes] | int,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
    ) -> None:
        """Start it.

        Args:
            program: `MITMDUMP` or `CLAMPROXY`.
            arguments: without the program's name.
            environment: all of it.
            stdin: an open file or its descriptor, which stays the caller's.
            stdout: another.
            stderr: another.
        """
        files = [_Descriptor(each) for each in (stdin, stdout, stderr)]
        self._process = _CONTEXT.Process(
            target=_run, args=(program, list(arguments), dict(environment), files), daemon=True
        )
        with _starting, _imports_from_here():
            _CONTEXT.set_forkserver_preload(_PRELOADED)
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        # A start asks for every child's exit status, which can be read once only: the next reader gets 255.
        with _starting:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended in the meantime
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Descriptor:
    """An open file on its way into the child."""

    def __init__(self, file: IO[bytes] | int) -> None:
        self._number = file if isinstance(file, int) else file.fileno()

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (reduction.DupFd(self._number),)


def _detach(duplicate: Any) -> int:
    number: int = duplicate.detach()
    return number


@contextlib.contextmanager
def _imports_from_here() -> Iterator[None]:
    """The process that forks is brought about by the first start, and must find this checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(program: Program, arguments: list[str], environment: dict[str, str], files: list[int]) -> None:
    """What the installed program does, in the child."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1, closefd=False)  # noqa: SIM115
        for number, mode in enumerate(("r", "w", "w"))
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [program.name, *arguments]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sys.exit(getattr(importlib.import_module(program.module), program.function)())
    finally:
        atexit._run_exitfuncs()


def _end_with_parent() -> None:
    """Nothing outlives the tests, even if they are killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
