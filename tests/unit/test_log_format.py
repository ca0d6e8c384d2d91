"""The log on stdout: formats, and what takes the place of mitmproxy's own handler."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy.addons.termlog import TermLog, TermLogHandler
from mitmproxy.log import ALERT

from clamproxy.front.access_log import FIELDS, Outcome, log_request, take_directly
from clamproxy.messages import Result
from clamproxy.proxy import log_format
from clamproxy.proxy.log_format import JsonFormatter, LineHandler, TextFormatter, before_start, use_format
from tests.support.front import asked
from tests.support.stored import until

logger = logging.getLogger("clamproxy.tests")


@pytest.fixture
def printed() -> Iterator[io.StringIO]:
    """What stands for stdout, with mitmproxy's own handler in place."""
    file = io.StringIO()
    yield from _with_termlog(file, file)


def _with_termlog[T](file: IO[str], value: T) -> Iterator[T]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    termlog = TermLog(file)
    termlog.logger._initiated_in_test = None  # mitmproxy's own fixtures go by it
    termlog.logger.setLevel(logging.INFO)
    yield value
    restore()
    termlog.uninstall()
    root.setLevel(level)


def restore() -> None:
    """Give stdout back to mitmproxy's own handler."""
    root = logging.getLogger()
    for output in [handler for handler in root.handlers if isinstance(handler, LineHandler)]:
        output.flush()
        take_directly(None)
        root.addHandler(output.replaced)
        root.removeHandler(output)


def entries(printed: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.getvalue().splitlines()]


def record(message: str, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.INFO, __file__, 1, message, (), None)
    made.__dict__.update(fields)
    return made


STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
"""RFC 3339, in local time."""


def test_text_has_date_and_level(printed: io.StringIO) -> None:
    use_format("text")
    logger.info("one %s", 1)
    logger.warning("two")
    logger.error("three")
    logging.getLogger("mitmproxy.addons").log(ALERT, "four")
    lines = printed.getvalue().splitlines()
    said = ("info one 1", "warning two", "error three", "info four")
    for line, text in zip(lines, said, strict=True):
        assert re.fullmatch(f"{STAMP} {text}", line)
        assert datetime.fromisoformat(line.partition(" ")[0]).tzinfo is not None


def test_text_names_the_client_and_keeps_the_traceback_together() -> None:
    try:
        raise OSError("no")
    except OSError as error:
        made = record(
            "failed", client=("192.0.2.7", 4711), exc_info=(type(error), error, error.__traceback__)
        )
    first, *others = TextFormatter().format(made).splitlines()
    assert first.endswith(" info 192.0.2.7:4711: failed")
    assert others[-1].strip() == "OSError: no"
    assert all(line.startswith("    ") for line in others)


def test_colours_are_for_terminals() -> None:
    made = record("x")
    made.levelno, made.levelname = logging.ERROR, "ERROR"
    assert "\x1b[" in TextFormatter(colorize=True).format(made)
    assert "\x1b[" not in TextFormatter().format(made)


def test_the_journal_gets_levels_and_no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the date itself; a level counts for each line (sd-daemon(3))."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with os.fdopen(writing, "w") as file, os.fdopen(reading) as journal:
        for _ in _with_termlog(file, None):
            use_format("text")
            logger.info("one")
            logger.error("two\nlines")
        file.close()
        assert journal.read().splitlines() == ["<6>one", "<3>two", "<3>    lines"]


def test_a_file_is_no_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable is inherited; what counts is where the lines go."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    with (tmp_path / "log").open("w") as file:
        for _ in _with_termlog(file, None):
            use_format("text")
            logger.info("one")
    assert re.fullmatch(f"{STAMP} info one\n", (tmp_path / "log").read_text())


def test_json(printed: io.StringIO) -> None:
    use_format("json")
    logger.warning("a %s\nb", "\x1b[0m")
    (entry,) = entries(printed)
    assert list(entry) == ["time", "level", "logger", "message"]
    assert (entry["level"], entry["logger"], entry["message"]) == (
        "warning",
        "clamproxy.tests",
        "a \x1b[0m\nb",
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
    assert datetime.fromisoformat(entry["time"]).tzinfo is not None


def test_a_request(printed: io.StringIO) -> None:
    use_format("json")
    logger.info("as text", extra={FIELDS: lambda: {"client": "192.0.2.7", "version": None}})
    (entry,) = entries(printed)
    assert list(entry) == ["time", "level", "event", "client", "version"]
    assert (entry["event"], entry["version"]) == ("request", None)


def log_a_request(number: int) -> None:
    logger.info("request %d", number, extra={FIELDS: dict})


def said(printed: io.StringIO) -> list[str]:
    return [line.partition(" info ")[2] for line in printed.getvalue().splitlines()]


async def test_requests_are_written_together(printed: io.StringIO) -> None:
    use_format("text")
    log_a_request(1)
    log_a_request(2)
    assert said(printed) == []
    await until(lambda: said(printed))
    assert said(printed) == ["request 1", "request 2"]
    log_a_request(3)
    await until(lambda: len(said(printed)) == 3)


async def test_whatever_else_is_written_at_once_and_in_order(printed: io.StringIO) -> None:
    use_format("text")
    log_a_request(1)
    logger.info("something else")
    assert said(printed) == ["request 1", "something else"]
    log_a_request(2)
    await asyncio.to_thread(log_a_request, 3)  # where no loop would write it later
    assert said(printed)[2:] == ["request 2", "request 3"]
    log_a_request(4)
    restore()
    assert said(printed)[4:] == ["request 4"]


@pytest.mark.parametrize("name", ["text", "json"])
async def test_a_request_is_the_same_line_whichever_way_it_takes(
    printed: io.StringIO, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Alone, the handler takes it directly; with others, it is a record for all of them."""
    use_format(name)
    log_an_outcome()
    assert caplog.records
    root = logging.getLogger()
    others = [one for one in root.handlers if not hasattr(one, "take")]
    for other in others:
        root.removeHandler(other)
    try:
        caplog.clear()
        log_an_outcome()
        await until(lambda: len(requests_in(printed)) == 2)
    finally:
        for other in others:
            root.addHandler(other)
    assert not caplog.records
    first, second = (re.sub(r"\d\d:\d\d\.\d+", "", line) for line in requests_in(printed))
    assert first == second


def log_an_outcome() -> None:
    """A request, after something that makes the handler look around."""
    logger.warning("something else")
    given = {"client": "192.0.2.7", "result": Result.HIT, "version": 1, "status": 200, "length": 2}
    outcome = Outcome(**given, seconds=0.5, error="\n")  # type: ignore[arg-type]
    log_request(asked(method="G\\ET"), outcome, hides_path=False)


def requests_in(printed: io.StringIO) -> list[str]:
    return [line for line in printed.getvalue().splitlines() if "192.0.2.7" in line]


def test_a_loop_that_ends_loses_nothing(printed: io.StringIO) -> None:
    use_format("text")

    async def log(number: int) -> None:
        log_a_request(number)

    for number in range(3):
        asyncio.run(log(number))
    logging.getLogger("clamproxy").warning("later")
    assert said(printed)[:3] == ["request 0", "request 1", "request 2"]


_CRASH = """
import asyncio, logging, sys
from mitmproxy.addons.termlog import TermLog
from clamproxy.front.access_log import FIELDS
from clamproxy.proxy.log_format import use_format
TermLog(sys.stdout).logger.setLevel(logging.INFO)
logging.getLogger().setLevel(logging.INFO)
use_format("text")
async def crash():
    logging.info("the last request", extra={FIELDS: dict})
    raise KeyError("a crash")
asyncio.run(crash())
"""


def test_a_crash_loses_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _CRASH], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.stdout.endswith(" info the last request\n")
    assert "a crash" in ended.stderr


def test_switching_prints_each_line_once(printed: io.StringIO) -> None:
    for name in ("json", "json", "text", "text", "json"):
        use_format(name)
        logger.info("line")
    lines = printed.getvalue().splitlines()
    assert [line.startswith("{") for line in lines] == [True, True, False, False, True]


def test_the_verbosity_of_mitmproxy_counts(printed: io.StringIO) -> None:
    use_format("json")
    (termlog,) = [one for one in _replaced() if isinstance(one, TermLogHandler)]
    logger.debug("too fine")
    termlog.setLevel(logging.DEBUG)
    logger.debug("shown")
    termlog.setLevel(logging.ERROR)
    logger.warning("not any more")
    assert [entry["message"] for entry in entries(printed)] == ["shown"]


def _replaced() -> list[logging.Handler]:
    return [getattr(one, "replaced", one) for one in logging.getLogger().handlers]


def test_where_mitmproxy_prints_no_log() -> None:
    before = list(logging.getLogger().handlers)
    use_format("json")
    assert logging.getLogger().handlers == before


def test_mitmproxys_fields(printed: io.StringIO) -> None:
    use_format("json")
    logger.log(ALERT, "look", extra={"client": ("192.0.2.7", 1234)})
    (entry,) = entries(printed)
    assert (entry["level"], entry["client"]) == ("info", "192.0.2.7:1234")


@pytest.mark.parametrize("name", ["text", "json"])
def test_exceptions(printed: io.StringIO, name: str) -> None:
    use_format(name)
    try:
        raise ValueError("of\n[12:00:00.000] forged")
    except ValueError:
        logger.exception("It failed.")
    if name == "json":
        (entry,) = entries(printed)
        assert entry["message"] == "It failed."
        assert "ValueError: of\n" in entry["exception"]
    else:
        first, *others = printed.getvalue().splitlines()
        assert first.endswith("It failed.")
        assert all(line.startswith("    ") for line in others)


@pytest.mark.parametrize(("name", "length"), [("mitmproxy.proxy.server", 403), ("clamproxy.x", 9000)])
def test_what_mitmproxy_quotes_is_cut_off(name: str, length: int) -> None:
    """It may quote all that a client has sent; the gateway's own messages are as long as they are."""
    said = logging.LogRecord(name, logging.WARNING, "", 0, "x" * 9000, (), None)
    assert len(json.loads(JsonFormatter().format(said))["message"]) == length
    assert TextFormatter().format(said).endswith("x..." if length < 9000 else "x" * 9000)


@given(st.text(), st.text(st.characters()))
def test_json_is_always_one_ascii_line(message: str, other: str) -> None:
    made = record("%s", args=(message,), **{FIELDS: lambda: {"path": other}})
    line = JsonFormatter().format(made)
    assert line.isascii()
    assert line.isprintable()
    assert isinstance(json.loads(line)["path"], str)
    plain = JsonFormatter().format(record("%s", args=(message,)))
    assert plain.isprintable()
    json.loads(plain)["message"].encode()  # no lone surrogates


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_no_message_looks_like_two(message: str) -> None:
    text = TextFormatter().format(record("%s", args=(message,)))
    first, *others = text.split("\n")
    assert re.match(f"{STAMP} info ", first)
    assert all(line.startswith("    ") for line in others)
    assert len(text.splitlines()) == 1 + len(others)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    text.encode()


def test_a_reader_that_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        for _ in _with_termlog(file, None):
            use_format("json")
            os.close(reading)
            for _number in range(3):
                logger.info("line")
    assert capsys.readouterr().err.count("nobody reads") == 1


def test_a_reader_that_stops_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't wait any more is lost, and counted."""
    monkeypatch.setattr(log_format, "MOST_WAITING", 5)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as file:
        for _ in _with_termlog(file, None):
            use_format("text")
            for number in range(20):
                logger.info("%d%s", number, "." * 1000)
            told = ""
            for _ in range(50):
                told += os.read(reader.fileno(), 65536).decode()
                logger.info("later")
    numbers = [int(one) for one in re.findall(r" info (\d+)\.", told)]
    (lost,) = re.findall(r"Nobody read the log for a while: (\d+) lines are missing here", told)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 5
    assert len(numbers) + int(lost) >= 20


async def test_a_reader_that_stops_costs_no_more_with_each_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer looks after all that waits."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    loop, begun = asyncio.get_running_loop(), []
    call_later = loop.call_later

    def count(delay: float, *arguments: Any) -> asyncio.TimerHandle:
        begun.append(delay)
        return call_later(delay, *arguments)

    monkeypatch.setattr(loop, "call_later", count)
    with os.fdopen(reading), os.fdopen(writing, "w") as file:
        for _ in _with_termlog(file, None):
            use_format("text")
            for _number in range(200):
                logger.warning("." * 1000)
    assert len(begun) == 1


def test_the_last_lines_wait_for_a_slow_reader(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    told = bytearray()

    def read() -> None:
        while piece := os.read(reading, 4096):
            told.extend(piece)

    with os.fdopen(writing, "w") as file:
        for _ in _with_termlog(file, None):
            use_format("text")
            for number in range(50):
                logger.warning("%d%s", number, "." * 1000)
            reader = threading.Thread(target=read)
            reader.start()
            logging.getLogger().handlers[-1].close()
    reader.join()
    os.close(reading)
    assert [int(one) for one in re.findall(rb" warning (\d+)\.", told)] == list(range(50))


class Full(io.StringIO):
    """A file on a full disk, for a while."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_passes() -> None:
    file = Full()
    for _ in _with_termlog(file, None):
        use_format("json")
        logger.info("lost")
        file.full = False
        logger.info("kept")
    assert [entry["message"] for entry in entries(file)] == ["kept"]


def test_a_locale_without_unicode(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as file:
        for _ in _with_termlog(file, None):
            use_format("text")
            logger.info("Größe…")
    assert (tmp_path / "log").read_text().endswith("Gr\\xf6\\xdfe\\u2026\n")


def test_the_first_line_is_kept_back() -> None:
    loader = logging.getLogger("mitmproxy.addons.script")
    before = loader.level
    try:
        before_start()
        assert not loader.isEnabledFor(logging.INFO)
    finally:
        loader.setLevel(before)


def test_a_record_that_cannot_be_formatted(printed: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    use_format("json")
    with suppress(TypeError):  # raised by pytest's own handler
        logger.info("%d", "no number")
    logger.info("next")
    assert [entry["message"] for entry in entries(printed)] == ["next"]
