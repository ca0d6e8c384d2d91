"""``clamproxy stats --watch``: what it shows, and that it leaves the terminal as it was."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock, ioctl
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from clamproxy import cli
from clamproxy.cache.partial import PartialFile, Validators
from clamproxy.cache.store import Store
from clamproxy.cli.tables import plain
from clamproxy.cli.watch import Look, ask_status, look, partial_files, rates, screen
from clamproxy.config.settings import Settings, StatusSection
from clamproxy.config.units import Endpoint
from clamproxy.statistics import COUNTERS, FEED_COUNTERS, snapshot
from tests.support.fixtures import MakeCvd
from tests.support.stored import cvd, put_cvd

ROOT = Path(__file__).parents[2]
LIMIT = 40.0
"""Seconds until something must have been shown; only a guard."""
ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"
"""The other screen of the terminal."""
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
"""The cursor."""


def shown(now: Look, before: Look | None = None, width: int = 160) -> str:
    console = Console(width=width, height=80, color_system=None)
    with console.capture() as capture:
        console.print(screen(now, before, width))
    return capture.get()


def arriving(store: Store, version: int, have: int, size: int) -> PartialFile:
    partial = PartialFile.claim(store.partials, cvd(version))
    partial.begin(Validators(size, None, None))
    partial.append(bytes(have))
    return partial


class TestTransfers:
    """Partial files tell of transfers."""

    def test_running_and_interrupted(self, store: Store) -> None:
        running, interrupted = arriving(store, 5, 100, 1000), arriving(store, 6, 200, 2000)
        interrupted.release()
        first, second = partial_files(store)
        assert (first.name, first.have, first.size, first.is_running) == ("daily-5.cvd", 100, 1000, True)
        assert (second.name, second.have, second.size, second.is_running) == ("daily-6.cvd", 200, 2000, False)
        running.release()

    def test_looking_changes_nothing(self, store: Store) -> None:
        arriving(store, 5, 100, 1000).release()
        assert not partial_files(store)[0].is_running
        with (store.partials / "daily-5.cvd.part").open("rb") as file:
            flock(file, LOCK_EX)
        assert PartialFile.claim(store.partials, cvd(5)).have == 100

    @pytest.mark.parametrize("text", [None, "", "{", "[]", '{"size": "x"}', '{"size": true}'])
    def test_an_unknown_size(self, store: Store, text: str | None) -> None:
        (store.partials / "daily-5.cvd.part").write_bytes(b"body")
        if text is not None:
            (store.partials / "daily-5.cvd.json").write_text(text)
        (one,) = partial_files(store)
        assert (one.have, one.size) == (4, None)


class Listener(BaseHTTPRequestHandler):
    """Answers as an admin listener may."""

    status, body, seen = 200, b"", list[str | None]()

    def do_GET(self) -> None:
        self.seen.append(self.headers["Authorization"])
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening(body: bytes, status: int = 200) -> Iterator[tuple[Endpoint, list[str | None]]]:
    seen: list[str | None] = []
    handler = type("Handler", (Listener,), {"body": body, "status": status, "seen": seen})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield Endpoint("127.0.0.1", server.server_address[1]), seen
        server.shutdown()
        thread.join()


class TestStatusPage:
    """The proxy's own picture, if there is one."""

    def test_with_a_token(self) -> None:
        with listening(b'{"ready": true}') as (listen, seen):
            status = StatusSection.model_validate({"listen": str(listen), "token": "0123456789abcdef"})
            assert ask_status(status) == {"ready": True}
            assert ask_status(status.model_copy(update={"token": None})) == {"ready": True}
        assert seen == ["Bearer 0123456789abcdef", None]

    def test_of_all_addresses(self) -> None:
        with listening(b"{}") as (listen, seen):
            token = "0123456789abcdef"
            assert (
                ask_status(StatusSection.model_validate({"listen": f"0.0.0.0:{listen.port}", "token": token}))
                == {}
            )
        assert len(seen) == 1

    @pytest.mark.parametrize(
        ("body", "status"),
        [(b"", 200), (b"<html>", 200), (b"[]", 200), (b"\xff", 200), (b"[" * 100_000, 200), (b"{}", 401)],
    )
    def test_something_else_answers(self, body: bytes, status: int) -> None:
        with listening(body, status) as (listen, _):
            assert ask_status(StatusSection.model_validate({"listen": str(listen)})) == {}

    def test_nobody_answers(self) -> None:
        with listening(b"") as (listen, _):
            pass
        assert ask_status(StatusSection.model_validate({"listen": str(listen)})) == {}
        assert ask_status(StatusSection.model_validate({"listen": None})) == {}

    @pytest.mark.parametrize(
        "status", [{}, {"problems": 5, "fleet": []}, {"problems": [None, {}], "fleet": {"total": "x"}}]
    )
    def test_what_it_says_may_be_anything(self, store: Store, status: dict[str, Any]) -> None:
        assert "Databases" in shown(Look(0.0, snapshot(store), [], status))


class TestScreen:
    """What is shown."""

    @pytest.mark.parametrize("width", [60, 80, 160])
    def test_all_of_it(self, store: Store, make_cvd: MakeCvd, width: int) -> None:
        put_cvd(store, 5, make_cvd(5))
        store.set_note("advertised/daily", [6, time.time()])
        until = time.time() + 99
        trouble = {"until": until, "failures": 1, "failure": "x", "reason": "[/b]\x1b[2J"}
        store.set_note("cooldown//daily.cvd", trouble)
        arriving(store, 6, 2048, 4096).release()
        status = {"problems": ["the disk is full"], "fleet": {"total": 9, "up_to_date": 5, "behind": 4}}
        text = shown(Look(1.0, snapshot(store), partial_files(store), status), None, width)
        for words in (
            "daily",
            "interrupted",
            "2.0 KiB",
            "the disk is full",
            "9 total, 5 up to date, 4 behind",
        ):
            assert words in " ".join(text.split())
        assert "\x1b" not in text

    def test_rates(self, store: Store) -> None:
        before = Look(10.0, snapshot(store), [])
        store.add_to_counters({"requests": 30, "bytes_served": 2 * 2**20})
        now = Look(20.0, snapshot(store), [])
        assert rates(now, None) == {}
        assert rates(now, before) == dict.fromkeys((*COUNTERS, *FEED_COUNTERS), 0.0) | {
            "requests": 3.0,
            "bytes_served": 2 * 2**20 / 10,
        }
        text = shown(now, before)
        assert "3.0/s" in text
        assert "204.8 KiB/s" in text

    def test_counters_that_began_anew(self, store: Store) -> None:
        store.add_to_counters({"requests": 30})
        before = Look(10.0, snapshot(store), [])
        store.add_to_counters({"requests": -30})
        assert rates(Look(20.0, snapshot(store), []), before)["requests"] == 0

    def test_look(self, store: Store) -> None:
        settings = Settings.model_validate(
            {"cache": {"directory": str(store.directory)}, "status": {"listen": None}}
        )
        found = look(settings, store)
        assert (found.transfers, found.status) == ([], {})
        assert found.stats["requests"] == 0

    def test_plain_text(self) -> None:
        assert plain("[red]a[/red]").plain == "[red]a[/red]"
        assert plain("a\x1b[2J\n").plain == r"a\x1b[2J\n"


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._own, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, pack("HHHH", 50, 160, 0, 0))
        self.before = termios.tcgetattr(theirs)
        environment = {name: text for name, text in os.environ.items() if not name.startswith("CLAMPROXY_")}
        environment |= {
            "TERM": "xterm",
            "PYTHONPATH": str(ROOT),
            "CLAMPROXY_CACHE__DIRECTORY": str(directory),
            "CLAMPROXY_STATUS__LISTEN": "null",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "clamproxy.cli", "stats", "--watch", "--interval", "200ms", *arguments],
            cwd=directory.parent,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        self._theirs = theirs
        self._pieces: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._own, 65536)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            self._pieces.append(piece.decode(errors="replace"))

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + LIMIT
        while words not in self.text and time.monotonic() < deadline and self.process.poll() is None:
            time.sleep(0.05)
        assert words in self.text, self.text

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(LIMIT)
        os.close(self._theirs)
        self._thread.join(LIMIT)
        os.close(self._own)

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)


@pytest.fixture
def terminal(store: Store, make_cvd: MakeCvd) -> Iterator[Terminal]:
    put_cvd(store, 5, make_cvd(5))
    terminal = Terminal(store.directory)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_on_a_terminal(terminal: Terminal, store: Store, number: signal.Signals, code: int) -> None:
    terminal.wait_for("daily")
    store.add_to_counters({"requests": 12345})
    terminal.wait_for("12,345")
    assert terminal.end(number) == code
    terminal.wait_for(SHOWN)
    text = terminal.text
    assert (text.count(ENTERED), text.count(LEFT)) == (1, 1)
    assert text.rindex(SHOWN) > text.rindex(HIDDEN)
    assert "Traceback" not in text
    assert terminal.attributes() == terminal.before


def test_a_cache_that_goes_away(store: Store) -> None:
    """One line, on the screen that was there before."""
    terminal = Terminal(store.directory)
    try:
        terminal.wait_for("Databases")
        store.directory.rename(store.directory.with_name("elsewhere"))
        assert terminal.process.wait(LIMIT) == 1
        terminal.wait_for("No such file or directory")
        after = terminal.text[terminal.text.rindex(LEFT) :]
        assert after.count("clamproxy: ") == 1
    finally:
        terminal.close()


def test_refused_without_a_terminal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", str(store.directory))
    result = CliRunner().invoke(cli.main, ["stats", "--watch"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "needs a terminal" in result.stderr
    assert CliRunner().invoke(cli.main, ["stats", "--watch", "--json"]).exit_code == 2
    assert json.loads(CliRunner().invoke(cli.main, ["stats", "--json"]).stdout)["requests"] == 0


@pytest.mark.parametrize("interval", ["", "0s", "x", "2h", "1ms"])
def test_intervals(interval: str) -> None:
    result = CliRunner().invoke(cli.main, ["stats", "--watch", "--interval", interval])
    assert result.exit_code == 2
    assert "from 200ms to 1h" in result.stderr
