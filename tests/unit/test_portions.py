"""Lines of the log that are longer than what a pipe takes at once."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import select
from collections import deque
from pathlib import Path

import pytest
from mitmproxy.addons.termlog import TermLogHandler

from clamproxy.proxy.log_format import LineHandler
from clamproxy.proxy.portions import next_portion

LINES = {
    "long": ["x" * 6000],
    "long and not ASCII": ["…" * 2500],
    "many that are not ASCII": ["…" * 600] * 9,
    "a long one between others": ["x" * 10, "y" * 9000, "z" * 10, "…" * 3000],
}


class Unbuffered(io.FileIO):
    """Takes what it can at once, and loses the rest, where a pipe would make the gateway wait."""

    def __init__(self, file: int | Path) -> None:
        super().__init__(file, "w")
        self.writes = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.writes += 1
        return super().write(data) or 0


def as_text(raw: io.RawIOBase) -> io.TextIOWrapper:
    return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)  # type: ignore[arg-type]


def handler_of(file: io.TextIOWrapper) -> LineHandler:
    handler = LineHandler(TermLogHandler(file))
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("clamproxy.x", logging.WARNING, "", 0, message, (), None)


@pytest.mark.parametrize("lines", LINES.values(), ids=LINES)
def test_no_write_waits_for_the_reader(lines: list[str]) -> None:
    """A pipe that is full but for one page takes this page; the rest comes as it is read."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 2 * select.PIPE_BUF)
    os.write(writing, b"." * select.PIPE_BUF)
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb", buffering=0) as reader, as_text(Unbuffered(writing)) as file:
        handler = handler_of(file)
        for line in lines:
            handler.emit(record(line))
        told = b""
        while piece := reader.read(select.PIPE_BUF):
            told += piece
            handler.flush()
    assert told[select.PIPE_BUF :].decode().splitlines() == lines


def test_in_a_file_each_line_stays_in_one_piece(tmp_path: Path) -> None:
    """Several workers append to it."""
    raw = Unbuffered(tmp_path / "log")
    with as_text(raw) as file:
        handler = handler_of(file)
        for lines in LINES.values():
            handler.emit(record(lines[0]))
        assert raw.writes == len(LINES)


def test_joined_lines_are_written_at_once() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w", encoding="utf-8") as file:
        for line in ("short\n", "…" * 100 + "\n"):
            waiting = deque([line] * 500)
            while waiting:
                portion = next_portion(waiting, file)
                assert portion.endswith("\n")
                assert len(portion.encode()) <= select.PIPE_BUF
            assert len(portion) > len(line)
