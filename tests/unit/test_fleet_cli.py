"""``clamproxy fleet``: a table for people, a list for programs, exit codes for monitoring."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from clamproxy.cache.store import Store
from clamproxy.cli.fleet import fleet
from clamproxy.fleet.observer import Failure
from clamproxy.fleet.table import FILE_NAME, Table
from tests.support import fleet_rows
from tests.support.fleet_rows import put_rows

DAY = 86400
FINE = "11111111-0000-4000-8000-000000000000"
BEHIND = "22222222-0000-4000-8000-000000000000"
SILENT = "33333333-0000-4000-8000-000000000000"
FRESHCLAM = "99.0.0"
"""One whose end of life nobody has dated."""
OLD = "44444444-0000-4000-8000-000000000000"

row = partial(fleet_rows.row, freshclam=FRESHCLAM)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache where daily 10 is advertised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", str(tmp_path / "cache"))
    store = Store(tmp_path / "cache")
    store.set_note("advertised/daily", [10, time.time()])
    store.close()
    return tmp_path / "cache"


@pytest.fixture
def site(cache: Path) -> Path:
    """Three machines: one fine, one 3 behind with trouble, one silent for 3 days."""
    now = time.time()
    put_rows(
        cache,
        row(FINE, daily=10, main=62, seen=now - 30),
        row(BEHIND, daily=7, seen=now - 7000, error=Failure(now, "daily-8.cdiff: status 503")),
        row(SILENT, daily=10, seen=now - 3 * DAY - 60),
        releases={8: now - 2 * DAY - 60},
    )
    return cache


def invoke(*arguments: str) -> Result:
    group = click.Group(commands={"fleet": fleet}, context_settings={"help_option_names": ["-h", "--help"]})
    return CliRunner().invoke(group, ["fleet", *arguments])


def line_of(result: Result, uuid: str) -> str:
    (line,) = (line for line in result.stdout.splitlines() if uuid in line)
    return line


@pytest.mark.usefixtures("site")
def test_the_table() -> None:
    result = invoke()
    assert (result.exit_code, result.stderr) == (0, "")
    first = result.stdout.splitlines()[0]
    assert first == (
        "CLAMPROXY FLEET OK - 3 machines, 1 up to date, 1 behind, 1 unknown | "
        "machines=3 up_to_date=1 behind=1 unknown=1 end_of_life=0"
    )
    assert "no request since" in result.stdout
    assert "offline" not in result.stdout
    behind = line_of(result, BEHIND)
    assert "daily 7 (3 behind for 2 d)" in behind
    assert "(117 min)" in behind
    assert "daily-8.cdiff: status 503" in behind
    assert "Linux x86_64" in behind
    assert "(3 d)" in line_of(result, SILENT)
    assert "daily 10, main 62" in line_of(result, FINE)
    assert "\x1b" not in result.stdout
    positions = [result.stdout.index(uuid) for uuid in (BEHIND, FINE, SILENT)]
    assert positions == sorted(positions)


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("columns", [80, 300])
def test_the_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """It has colours, fits, and no UUID is cut."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    output = invoke().stdout
    assert "\x1b[31m" in output
    plain = click.unstyle(output)
    assert all(len(line) <= columns for line in plain.splitlines()[1:])
    assert all(uuid in plain for uuid in (FINE, BEHIND, SILENT))
    for word in ("3 behind for 2 d", "no request since", "(3 d)", "daily-8.cdiff:"):
        assert word in plain


@pytest.mark.parametrize("columns", [40, 80])
def test_a_narrow_terminal(cache: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Each machine has lines of its own, whatever is known of it, and no line is too long."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    error = Failure(time.time(), "daily-8.cdiff: interrupted after 1,234,567 bytes, " * 3)
    many: dict[str, Any] = {f"database{n}": n for n in range(1, 20)}
    put_rows(cache, row(FINE, daily=10, error=error, **many), row(SILENT, freshclam=None), row(OLD, daily=1))
    *entries, last = click.unstyle(invoke().stdout).split("\n\n")
    assert [uuid in entry for uuid, entry in zip((OLD, FINE, SILENT), [*entries, last], strict=True)] == [
        True
    ] * 3
    lines = [line for entry in [*entries, last] for line in entry.splitlines()]
    assert all(len(line) <= columns for line in lines[1:])
    assert "not known" in last
    assert " ".join(entries[1].split()).count("interrupted after") == 3


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_a_terminal_without_colours(site: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv(variable, "dumb")
    assert "\x1b" not in invoke().stdout


def test_what_a_bad_disk_has_written_moves_no_cursor(cache: Path) -> None:
    now = time.time()
    odd: dict[str, Any] = {"dai\x1b[2Jly": 1}
    put_rows(cache, row(FINE, error=Failure(now, "\x1b[2J\n"), **odd))
    output = invoke().stdout
    assert "\x1b" not in output
    assert len(output.splitlines()) == 3


def test_a_large_fleet(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would measure and wrap 70,000 cells, for ten seconds: it lays out nothing here."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("rich.console.Console.render", fail)
    machines = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(10_000)]
    put_rows(cache, *(row(uuid, daily=10 - n % 3, main=62) for n, uuid in enumerate(machines)))
    for arguments, count in ([], 10_000), (["--behind", "2"], 3333):
        first, heading, *lines = invoke(*arguments).stdout.splitlines()
        assert "10,000 machines" in first
        assert len(lines) == count
        assert {line.index("daily ") for line in lines} == {heading.index("databases")}


@pytest.mark.usefixtures("site")
def test_the_list() -> None:
    result = invoke("--json")
    machines = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [one["uuid"] for one in machines] == [BEHIND, FINE, SILENT]
    assert {"uuid", "address", "freshclam", "os", "last_seen", "databases"} <= set(machines[0])
    assert (
        machines[0]["databases"]["daily"] | {"version": 7, "behind": 3} == machines[0]["databases"]["daily"]
    )


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("arguments", "code", "word", "listed"),
    [
        ([], 0, "OK", [BEHIND, FINE, SILENT]),
        (["--behind", "1"], 2, "CRITICAL", [BEHIND]),
        (["--behind", "3"], 2, "CRITICAL", [BEHIND]),
        (["--behind", "4"], 0, "OK", []),
        (["--stale", "2d"], 2, "CRITICAL", [SILENT]),
        (["--stale", "1h"], 2, "CRITICAL", [BEHIND, SILENT]),
        (["--stale", "4d"], 0, "OK", []),
        (["--behind", "2", "--stale", "3d"], 2, "CRITICAL", [BEHIND, SILENT]),
        (["--behind", "9", "--stale", "9d"], 0, "OK", []),
        (["--behind-for", "0s"], 2, "CRITICAL", [BEHIND]),
        (["--behind-for", "24h"], 2, "CRITICAL", [BEHIND]),
        (["--behind-for", "49h"], 0, "OK", []),
        (["--behind", "3", "--behind-for", "24h"], 2, "CRITICAL", [BEHIND]),
        (["--behind", "4", "--behind-for", "24h"], 0, "OK", []),
        (["--behind", "3", "--behind-for", "49h"], 0, "OK", []),
        (["--behind-for", "49h", "--stale", "2d"], 2, "CRITICAL", [SILENT]),
    ],
)
def test_filters_and_exit_codes(arguments: list[str], code: int, word: str, listed: list[str]) -> None:
    shown, machines = invoke(*arguments), invoke("--json", *arguments)
    assert (shown.exit_code, machines.exit_code) == (code, code)
    first, *rest = shown.stdout.splitlines()
    assert first.startswith(f"CLAMPROXY FLEET {word} - 3 machines")
    if arguments:
        assert first.endswith(f" listed={len(listed)}")
    assert [one["uuid"] for one in json.loads(machines.stdout)] == listed
    assert all(any(uuid in line for line in rest) for uuid in listed)
    assert bool(rest) == bool(listed)


@pytest.mark.parametrize(("arguments", "code"), [([], 1), (["--behind", "5"], 1), (["--behind", "1"], 2)])
def test_end_of_life_is_a_warning(cache: Path, arguments: list[str], code: int) -> None:
    now = time.time()
    put_rows(cache, row(OLD, daily=9, freshclam="0.103.12", seen=now), row(FINE, daily=10, seen=now))
    result = invoke(*arguments)
    assert result.exit_code == code
    assert "1 end of life" in result.stdout.splitlines()[0]
    if not arguments:
        assert "0.103.12 (end of life)" in line_of(result, OLD)
        assert result.stdout.count("support ended on 2024-09-14; ClamAV's CDN refuses it") == 1
    assert [one["end_of_life"] for one in json.loads(invoke("--json").stdout)] == [True, False]


def test_no_machines(cache: Path) -> None:
    put_rows(cache)
    result = invoke("--behind", "1")
    assert result.exit_code == 0
    assert result.stdout == (
        "CLAMPROXY FLEET OK - 0 machines, 0 listed | "
        "machines=0 up_to_date=0 behind=0 unknown=0 end_of_life=0 listed=0\n"
    )
    assert invoke("--json").stdout == "[]\n"


class TestNothingAdvertised:
    """Nobody can tell who is behind; OK would be a lie."""

    @pytest.fixture(autouse=True)
    def _site(self, site: Path) -> None:
        store = Store(site)
        store.set_note("advertised/daily", None)
        store.close()

    @pytest.mark.parametrize(
        ("arguments", "code", "word"),
        [
            ([], 3, "UNKNOWN"),
            (["--behind", "1"], 3, "UNKNOWN"),
            (["--behind", "1", "--stale", "4d"], 3, "UNKNOWN"),
            (["--behind", "1", "--stale", "2d"], 2, "CRITICAL"),
            (["--behind-for", "24h"], 3, "UNKNOWN"),
            (["--stale", "2d"], 2, "CRITICAL"),
            (["--stale", "4d"], 0, "OK"),
        ],
    )
    def test_exit_codes(self, arguments: list[str], code: int, word: str) -> None:
        result, as_json = invoke(*arguments), invoke("--json", *arguments)
        assert (result.exit_code, as_json.exit_code) == (code, code)
        line, *_ = result.stdout.splitlines()
        assert line.startswith(f"CLAMPROXY FLEET {word} - ")
        is_told = arguments[:1] != ["--stale"]
        for told in (line, as_json.stderr):
            assert ("no advertised version is known" in told) == is_told
        assert isinstance(json.loads(as_json.stdout), list)
        assert "3 machines, " in line

    def test_without_machines(self, site: Path) -> None:
        (site / FILE_NAME).unlink()
        put_rows(site)
        assert invoke("--behind", "1").exit_code == 0


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_who_reads_the_first_line_only(arguments: list[str]) -> None:
    """A pipe that was closed changes nothing about the exit code."""
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
        "from clamproxy.cli import main; main(['fleet', '--behind', '1', *sys.argv[1:]])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (2, "")


def unknown(*arguments: str) -> str:
    """The reason that is told where nothing can be told; the same in both forms."""
    shown, as_json = invoke(*arguments), invoke(*arguments, "--json")
    assert (shown.exit_code, as_json.exit_code) == (3, 3)
    (line,) = shown.stdout.splitlines()
    start = "CLAMPROXY FLEET UNKNOWN - "
    assert line.startswith(start)
    assert (as_json.stdout, shown.stderr) == ("", "")
    assert as_json.stderr.replace("clamproxy: ", "").rstrip().replace("|", "/") == line.removeprefix(start)
    return line


def test_no_table_yet() -> None:
    assert "has the proxy been started?" in unknown()


def test_switched_off(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAMPROXY_FLEET__ENABLED", "false")
    assert "fleet.enabled is false" in unknown()


def test_a_damaged_table(site: Path) -> None:
    (site / FILE_NAME).write_bytes(b"x" * 9999)
    assert FILE_NAME in unknown("--behind", "1")


def test_a_bad_configuration(site: Path) -> None:
    assert "nowhere.yaml" in unknown("--config", "nowhere.yaml")
    Path("proxy.yaml").write_text("fleet: {keep: ever}\n")
    assert "fleet.keep" in unknown()


def test_something_nobody_thought_of(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a|b")

    monkeypatch.setattr("clamproxy.cli.fleet.read_fleet", fail)
    assert "RuntimeError: a/b" in unknown()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--behind", "0"],
        ["--behind", "x"],
        ["--behind-for", "soon"],
        ["--stale", "soon"],
        ["--stale"],
        ["x"],
        ["--json", "forget", FINE],
        ["--behind", "1", "forget", FINE],
    ],
)
def test_misuse_is_unknown(site: Path, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "Error: " in result.stderr


def test_the_help_names_the_exit_codes() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("OK", "WARNING", "CRITICAL", "UNKNOWN"):
        assert word in result.stdout


# forget


def listed() -> list[str]:
    return [one["uuid"] for one in json.loads(invoke("--json").stdout)]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("uuids", "code", "left", "told"),
    [
        ([SILENT], 0, [BEHIND, FINE], ["Forgot 1 machine, 1 row."]),
        ([SILENT, FINE], 0, [BEHIND], ["Forgot 2 machines, 2 rows."]),
        ([SILENT, SILENT.upper()], 0, [BEHIND, FINE], ["Forgot 1 machine, 1 row."]),
        ([SILENT, "nobody"], 1, [BEHIND, FINE], ["no machine 'nobody'", "Forgot 1 machine, 1 row."]),
        (["nobody"], 1, [BEHIND, FINE, SILENT], ["no machine 'nobody'"]),
        (["\x1b[2J'; --"], 1, [BEHIND, FINE, SILENT], ["no machine"]),
    ],
)
def test_forget(uuids: list[str], code: int, left: list[str], told: list[str]) -> None:
    result = invoke("forget", *uuids)
    assert (result.exit_code, result.stdout) == (code, "")
    for line, words in zip(result.stderr.splitlines(), told, strict=True):
        assert words in line
    assert "\x1b" not in result.stderr
    assert listed() == left


def test_forget_all_rows(cache: Path) -> None:
    rows = [replace(row(FINE, daily=10), address=f"10.0.0.{n}") for n in range(5)]
    put_rows(cache, *rows, row(BEHIND))
    assert "Forgot 1 machine, 5 rows." in invoke("forget", FINE).stderr
    assert listed() == [BEHIND]


@pytest.mark.parametrize("place", [0, 1])
def test_forget_with_a_configuration(site: Path, place: int) -> None:
    """It may be named before the command or after it."""
    arguments = ["forget"]
    arguments[place:place] = ["--config", "missing.yaml"]
    result = invoke(*arguments, FINE)
    assert result.exit_code == 1
    assert "missing.yaml" in result.stderr


def test_forget_makes_no_table(cache: Path) -> None:
    result = invoke("forget", FINE)
    assert result.exit_code == 1
    assert "has the proxy been started?" in result.stderr
    assert not (cache / FILE_NAME).exists()


def test_forget_in_a_damaged_table(site: Path) -> None:
    (site / FILE_NAME).write_bytes(b"x" * 9999)
    result = invoke("forget", FINE)
    assert result.exit_code == 1
    assert "damaged" in result.stderr


def test_forget_nobody() -> None:
    result = invoke("forget")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "UUID" in result.stderr
    shown = invoke("forget", "--help")
    assert shown.exit_code == 0
    assert "Exit codes" in shown.stdout


# Names, groups, and one machine


@pytest.fixture
def labelled(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same machines with a file of labels."""
    path = tmp_path / "labels.txt"
    path.write_text(f"{FINE} = web01.example.net, servers\n{BEHIND} = , servers\n{SILENT} = laptop\n")
    monkeypatch.setenv("CLAMPROXY_FLEET__LABELS", str(path))
    return path


@pytest.mark.usefixtures("labelled")
def test_names_and_groups_are_listed() -> None:
    lines = invoke().stdout.splitlines()
    assert lines[1].split()[:4] == ["UUID", "address", "name", "group"]
    assert line_of(invoke(), FINE).split()[2:4] == ["web01.example.net", "servers"]
    assert line_of(invoke(), SILENT).split()[2:4] == ["laptop", "-"]


@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize(
    ("arguments", "code", "listed"),
    [
        (["--group", "servers"], 0, [BEHIND, FINE]),
        (["--group", "servers", "--behind", "1"], 2, [BEHIND]),
        (["--group", "servers", "--stale", "2d"], 0, []),
        (["--group", "-"], 0, [SILENT]),
        (["--group", "-", "--stale", "2d"], 2, [SILENT]),
    ],
)
def test_a_group(arguments: list[str], code: int, listed: list[str]) -> None:
    shown, as_json, as_csv = invoke(*arguments), invoke(*arguments, "--json"), invoke(*arguments, "--csv")
    assert (shown.exit_code, as_json.exit_code, as_csv.exit_code) == (code, code, code)
    assert [one["uuid"] for one in json.loads(as_json.stdout)] == listed
    assert [line.split(",")[2] for line in as_csv.stdout.splitlines()[1:]] == listed


@pytest.mark.usefixtures("labelled")
def test_a_group_that_is_not_there_is_not_a_group_without_trouble() -> None:
    result = invoke("--group", "server")
    assert result.exit_code == 3
    assert "there is no group 'server', only servers" in result.stdout


def test_labels_with_a_mistake(labelled: Path) -> None:
    """The list goes on without them, as far as they don't decide what is listed."""
    labelled.write_text("web01 = x\n")
    result = invoke()
    assert result.exit_code == 0
    assert "labels.txt: line 1: 'web01'" in result.stderr
    assert "web01" not in result.stdout
    assert invoke("--group", "servers").exit_code == 3


@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize("name", [FINE, FINE.upper(), "web01.example.net", "WEB01"])
@pytest.mark.parametrize("word", [[], ["show"]])
def test_one_machine(name: str, word: list[str]) -> None:
    shown = invoke(*word, name)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert FINE in shown.stdout
    assert "web01.example.net" in shown.stdout
    for as_json in (invoke(*word, name, "--json"), invoke("--json", *word, name)):
        assert json.loads(as_json.stdout)["uuid"] == FINE


@pytest.mark.usefixtures("labelled")
def test_several_machines_with_one_address() -> None:
    result = invoke("10.0.0.1")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "'10.0.0.1' is 3 machines; give the UUID of one:" in result.stderr
    assert all(uuid in result.stderr for uuid in (FINE, BEHIND, SILENT))


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    "arguments", [["--csv", "--json"], ["--csv", FINE], ["--group", "x", FINE], [FINE, "x"]]
)
def test_misuse_of_the_new_options(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "Error: " in result.stderr


def test_clones_are_pointed_out(site: Path) -> None:
    with Table(site).writing() as rows:
        rows._connection.execute("INSERT INTO clones VALUES (?, ?)", (FINE, time.time()))
    result = invoke()
    assert "10.0.0.1 (cloned)" in line_of(result, FINE)
    assert "1 cloned |" in result.stdout.splitlines()[0]
    assert "remove freshclam.dat" in result.stdout.splitlines()[-1]
    assert [one["cloned"] for one in json.loads(invoke("--json").stdout)].count(True) == 1
