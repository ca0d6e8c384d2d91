"""The command line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clamproxy import __version__, cli
from clamproxy.cache.store import Store
from clamproxy.cli.common import shown_size
from tests.unit.conftest import MakeCvd, cdiff, put, put_cvd


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory of its own, with a wide terminal and without settings of the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", str(tmp_path / "cache"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def filled(directory: Path, make_cvd: MakeCvd) -> None:
    store = Store(directory)
    put_cvd(store, 5, make_cvd(5))
    put(store, cdiff(5), b"patch")
    store.set_note("advertised/daily", [6, time.time()])
    store.set_note(
        "cooldown//daily.cvd",
        {"until": time.time() + 99, "failures": 1, "failure": "rate limited", "reason": "status 429"},
    )
    store.add_to_counters(
        {"requests": 1234567, "hits": 12, "bytes_served": 5 * 2**30, "upstream_bytes": 3 * 2**20}
    )
    store.close()


def test_version_and_help() -> None:
    assert invoke("--version").output == f"clamproxy, version {__version__}\n"
    commands = ("run", "stats", "mirror", "export", "import")
    for arguments in (["--help"], ["-h"], *([command, "-h"] for command in commands)):
        result = invoke(*arguments)
        assert result.exit_code == 0
        assert "Usage: " in result.output
    assert set(commands) <= set(invoke("--help").output.split())


def test_help_of_run() -> None:
    output = invoke("run", "--help").output
    assert "--port" in output
    assert "8080" in output
    assert "--config FILE" in output


def test_stats_of_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    result = invoke("stats")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "requests" in result.output
    assert "Cool-downs" not in result.output
    values = json.loads(invoke("stats", "--json").output)
    assert (values["requests"], values["databases"]) == (0, {})


def test_stats_of_a_filled_cache(tmp_path: Path, make_cvd: MakeCvd) -> None:
    filled(tmp_path / "cache", make_cvd)
    result = invoke("stats")
    assert result.exit_code == 0
    for words in ("1,234,567", "5.0 GiB", "daily", "reached", "status 429", "Cool-downs"):
        assert words in result.output
    values = json.loads(invoke("stats", "--json").output)
    assert values["requests"] == 1234567
    assert values["databases"] == {"daily": {"advertised": 6, "cached": 5, "reached": 5}}
    assert values["cooldown_until"] > time.time()


def test_all_sizes_have_units(tmp_path: Path, make_cvd: MakeCvd) -> None:
    filled(tmp_path / "cache", make_cvd)
    assert "3.0 MiB" in invoke("stats").output


def test_stats_work_while_the_proxy_runs(tmp_path: Path, make_cvd: MakeCvd) -> None:
    filled(tmp_path / "cache", make_cvd)
    running = Store(tmp_path / "cache")
    (running.partials / "daily-6.cvd.part").write_bytes(b"arriving")
    assert json.loads(invoke("stats", "--json").output)["objects"] == 2
    assert (running.partials / "daily-6.cvd.part").exists()
    running.close()


def test_stats_change_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "cache").close()
    orphan = tmp_path / "cache" / "index" / "00" / "orphan.val"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x")
    assert invoke("stats").exit_code == 0
    assert orphan.exists()


def test_the_directory_of_the_configuration_file_counts(
    tmp_path: Path, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLAMPROXY_CACHE__DIRECTORY")
    filled(tmp_path / "elsewhere", make_cvd)
    (tmp_path / "other.yaml").write_text("cache:\n  directory: elsewhere\n")
    result = invoke("stats", "--json", "--config", "other.yaml")
    assert json.loads(result.output)["objects"] == 2


@pytest.mark.parametrize("arguments", [["stats"], ["run"]])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("cache:\n  size_limit: 5 apples\n", "cache.size_limit"),
        ("chache:\n  size_limit: 5GiB\n", "chache"),
        ("serving: [", "not valid YAML"),
        (None, "no such configuration file"),
    ],
)
def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], content: str | None, words: str
) -> None:
    monkeypatch.setattr("mitmproxy.tools.main.mitmdump", lambda _: pytest.fail("started"))
    if content is not None:
        (tmp_path / "x.yaml").write_text(content)
    result = invoke(*arguments, "--config", "x.yaml")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("clamproxy: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_no_cache_directory_is_one_line() -> None:
    result = invoke("stats")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "no such cache directory" in result.stderr


def test_a_file_in_the_way_of_the_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "partial").write_text("in the way")
    result = invoke("stats")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["-p", "8080"]),
        (["-p", "3128"], ["-p", "3128"]),
        (["--mode", "regular", "-q"], ["-p", "8080", "--mode", "regular", "-q"]),
        (["--config", "x.yaml"], ["-p", "8080", "--set", "clamproxy_config=x.yaml"]),
        (["--set", "http2=true"], ["-p", "8080", "--set", "http2=true"]),
    ],
)
def test_run_is_mitmdump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("mitmproxy.tools.main.mitmdump", started.append)
    (tmp_path / "x.yaml").write_text("")
    assert invoke("run", *arguments).exit_code == 0
    ((option, script, *rest),) = started
    assert option == "-s"
    assert Path(script).is_file()
    assert rest == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (3 * 2**40, "3.0 TiB"),
        (5000 * 2**40, "5,000.0 TiB"),
    ],
)
def test_sizes(value: int, text: str) -> None:
    assert shown_size(value) == text
