"""The standard output of commands: when nobody reads it, the disk is full, or it can't show a character."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Buffer, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

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
    If the output can't be written, the process ends with one line and `CANNOT_WRITE`. Characters that its
    encoding doesn't have are written as escapes.
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
    """The standard output for data, where a reader that leaves is a failure, as for any program.

    Raises:
        OutputError: it is closed; also raised by the stream, as for text.
    """
    if sys.__stdout__ is None:
        raise OutputError("it is closed")
    if isinstance(sys.stdout, _Text):
        return io.BufferedWriter(_Descriptor(sys.stdout.fileno(), "wb", closefd=False))
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
        io.BufferedWriter(_TextDescriptor(number, "wb", closefd=False)),
        encoding=original.encoding,
        errors="backslashreplace",  # a name or a reason must not decide whether a command succeeds
        line_buffering=bool(original.line_buffering),
        write_through=bool(original.write_through),
    )


class _Text(io.TextIOWrapper):
    """The standard output while a command runs."""


class _Descriptor(io.FileIO):
    """The raw stream below. After a failure it discards everything, as Python would try again at its end."""

    _is_lost = False

    def write(self, data: Buffer, /) -> int:
        """Write, or discard what can't be written any more.

        Raises:
            BrokenPipeError: nobody reads it.
            OutputError: the system can't write it.
        """
        if self._is_lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            self._is_lost = True
            raise
        except OSError as error:
            self._is_lost = True
            raise OutputError(error.strerror or str(error)) from None


class _TextDescriptor(_Descriptor):
    """The same below text: nobody has to read it."""

    def write(self, data: Buffer, /) -> int:
        """Write, or discard what nobody reads."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes
