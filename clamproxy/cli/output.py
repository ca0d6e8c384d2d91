"""The standard output of commands: what becomes of it when nobody reads it, or the disk is full."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Buffer, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, cast

CANNOT_WRITE = 3
"""Exit code: what was to be printed can't be. For monitoring plugins that is UNKNOWN."""


class OutputError(Exception):
    """The standard output can't be written; the text is the system's reason.

    No OSError: commands tell of those as troubles of the cache.
    """


@contextmanager
def checked_output() -> Iterator[None]:
    """While a command runs, which prints to `sys.stdout`.

    Whoever reads the beginning alone (``| head -1``) changes neither the rest of the command nor its
    exit code. If the output can't be written, the process ends with one line and `CANNOT_WRITE`.
    """
    original = sys.stdout
    sys.stdout = _opened(original)
    try:
        try:
            yield
        finally:
            with suppress(OSError):  # of what the command has put in its place
                sys.stdout.flush()
    except OutputError as error:
        with suppress(OSError):
            sys.stderr.write(f"clamproxy: the standard output can't be written: {error}\n")
            sys.stderr.flush()
        sys.exit(CANNOT_WRITE)
    finally:
        sys.stdout = original


def binary_output() -> BinaryIO:
    """The standard output for data: of that, a reader that leaves is a failure, as it is for any program."""
    if isinstance(sys.stdout, _Text) and sys.__stdout__ is not None:
        return cast("BinaryIO", sys.__stdout__.buffer)
    return sys.stdout.buffer


def _opened(original: TextIO | None) -> TextIO:
    if original is None:  # closed by whoever started this: what is opened next must not take its place
        return Path(os.devnull).open("w")
    try:
        number = original.fileno()
    except OSError:  # it is somebody's memory
        return original
    if not isinstance(original, io.TextIOWrapper):
        return original
    original.flush()
    return _Text(
        io.BufferedWriter(_Descriptor(number, "wb", closefd=False)),
        encoding=original.encoding,
        errors=original.errors,
        line_buffering=bool(original.line_buffering),
        write_through=bool(original.write_through),
    )


class _Text(io.TextIOWrapper):
    """The standard output while a command runs."""


class _Descriptor(io.FileIO):
    """What is below it. After a failure everything vanishes: Python would try once more at its end."""

    _is_lost = False

    def write(self, data: Buffer, /) -> int:
        """Write, or lose what nobody reads.

        Raises:
            OutputError: the system refuses it.
        """
        if self._is_lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._is_lost = True
            if isinstance(error, BrokenPipeError):
                return memoryview(data).nbytes
            raise OutputError(error.strerror or str(error)) from None
