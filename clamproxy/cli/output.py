"""The standard output of commands: what happens when nobody reads it, or the disk is full."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Buffer, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO, cast

CANNOT_WRITE = 3
"""Exit code: the output can't be written. For monitoring plugins, this is UNKNOWN."""


class OutputError(Exception):
    """The standard output can't be written; the text is the system's reason.

    Not an OSError, because commands report those as trouble with the cache.
    """


@contextmanager
def checked_output() -> Iterator[None]:
    """Run a command, which prints to `sys.stdout`, inside this context.

    A reader that stops early (``| head -1``) changes neither the rest of the command nor its exit code.
    If the output can't be written, the process ends with one line and `CANNOT_WRITE`.
    """
    original = sys.stdout
    sys.stdout = _opened(original)
    try:
        try:
            yield
        finally:
            with suppress(OSError):  # the command may have replaced sys.stdout
                sys.stdout.flush()
    except OutputError as error:
        with suppress(OSError):
            sys.stderr.write(f"clamproxy: the standard output can't be written: {error}\n")
            sys.stderr.flush()
        sys.exit(CANNOT_WRITE)
    finally:
        sys.stdout = original


def binary_output() -> BinaryIO:
    """The standard output for data, where a reader that leaves is a failure, as for any program."""
    if isinstance(sys.stdout, _Text) and sys.__stdout__ is not None:
        return cast("BinaryIO", sys.__stdout__.buffer)
    return sys.stdout.buffer


def _opened(original: TextIO | None) -> TextIO:
    if original is None:  # it was closed before the start; the next file opened must not take its place
        return Path(os.devnull).open("w")
    try:
        number = original.fileno()
    except OSError:  # it is a stream in memory
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
    """The raw stream below. After a failure it discards everything, as Python would try again at its end."""

    _is_lost = False

    def write(self, data: Buffer, /) -> int:
        """Write, or discard what nobody reads.

        Raises:
            OutputError: the system can't write it.
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
