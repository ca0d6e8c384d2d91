"""The command line."""

from __future__ import annotations

import json
import os
import pwd
import re
import socket
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clamproxy import __version__, cli
from clamproxy.cache.store import Store
from clamproxy.cli.common import settings_of
from clamproxy.fleet.table import Table
from tests.support.fixtures import Child, MakeCvd
from tests.support.stored import cdiff, put, put_cvd


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
    Store(tmp_path / "cache").close()
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


@pytest.mark.parametrize("name", [b"100%41?mode=rw#x", b"caf\xe9"])
def test_stats_in_a_directory_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_cvd: MakeCvd, name: bytes
) -> None:
    directory = tmp_path / os.fsdecode(name)
    filled(directory / "cache", make_cvd)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("CLAMPROXY_CACHE__DIRECTORY")
    Path("proxy.yaml").write_text("state: {directory: cache}")
    values = json.loads(invoke("stats", "--json").output)
    assert (values["requests"], values["objects"]) == (1234567, 2)


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


@pytest.mark.parametrize(
    "arguments",
    [
        *(["stats"], ["ls"], ["verify"], ["purge", "--yes"], ["export", "x"]),
        *(["hold"], ["hold", "daily"], ["release", "daily"]),
    ],
    ids=" ".join,
)
def test_no_cache_directory_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    cache = tmp_path / "cache"
    assert result.stderr == f"clamproxy: {cache}: no such cache directory; has the proxy been started?\n"
    assert not any(tmp_path.iterdir())


def test_holds_before_the_first_start(tmp_path: Path, make_cvd: MakeCvd) -> None:
    """The cache came from an import; nothing has made the state directory yet."""
    filled(tmp_path / "cache", make_cvd)
    (tmp_path / "proxy.yaml").write_text("state: {directory: state}")
    result = invoke("release", "daily")
    assert (result.exit_code, result.stderr) == (1, "clamproxy: daily is not held.\n")


def test_a_file_in_the_way_of_the_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "partial").write_text("in the way")
    result = invoke("stats")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["-p", "3128"], ["-p", "3128"]),
        (["--mode", "regular", "-q"], ["--mode", "regular", "-q"]),
        (["--config", "x.yaml"], ["--set", "clamproxy_config=x.yaml"]),
        (
            ["-p", "3128", "--config", "x.yaml", "-q"],
            ["-p", "3128", "-q", "--set", "clamproxy_config=x.yaml"],
        ),
        (["--set", "http2=true"], ["--set", "http2=true"]),
    ],
)
def test_run_is_mitmdump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: list[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("mitmproxy.tools.main.mitmdump", started.append)
    monkeypatch.setattr("clamproxy.cli.run.refusal", lambda _: None)
    (tmp_path / "x.yaml").write_text("")
    assert invoke("run", *arguments).exit_code == 0
    ((option, script, *rest),) = started
    assert option == "-s"
    assert Path(script).is_file()
    assert rest == expected


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything starts; with options that name other places mitmproxy tells it."""
    started: list[list[str]] = []
    monkeypatch.setattr("mitmproxy.tools.main.mitmdump", started.append)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = invoke("run", "-p", port)
        assert (result.exit_code, result.stdout, result.stderr.count("\n"), started) == (1, "", 1, [])
        assert f"*:{port}: address already in use" in result.stderr
        assert "-p PORT" in result.stderr
        monkeypatch.setenv("CLAMPROXY_LISTEN__PROXY", port)
        configured = invoke("run")
        assert (configured.exit_code, configured.stderr) == (1, result.stderr)
        monkeypatch.delenv("CLAMPROXY_LISTEN__PROXY")
        for options in (["--mode", "regular@1"], ["-m", "regular@1"], ["--listen-host", "127.0.0.9"]):
            assert invoke("run", "-p", port, *options).exit_code == 0
    assert invoke("run", "-p", port).exit_code == 0
    assert len(started) == 4


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["my.yaml"], "did you mean --config my.yaml?"),
        (["my.conf"], "did you mean --config my.conf?"),
        (["3128"], "did you mean --port 3128?"),
        (["start"], "takes only options"),
        (["-p", "3128", "my.yaml"], "did you mean --config my.yaml?"),
        (["--", "my.yaml"], "did you mean --config my.yaml?"),
        (["--set", "http2=true", "my.yaml", "-q"], "did you mean --config my.yaml?"),
    ],
)
def test_a_stray_argument_of_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], hint: str
) -> None:
    """mitmdump would take it for a filter of flows, and start with the defaults."""
    monkeypatch.setattr("mitmproxy.tools.main.mitmdump", lambda _: pytest.fail("started"))
    (tmp_path / "my.conf").touch()
    result = invoke("run", *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "unexpected argument" in result.stderr
    assert hint in result.stderr


@pytest.mark.parametrize("command", ["run", "stats", "fleet", "config check"])
def test_one_configuration_file(command: str) -> None:
    result = invoke(*command.split(), "--config", "a.yaml", "--config", "b.yaml")
    assert result.exit_code != 0
    assert "given 2 times" in result.stderr


CREATORS = (
    ["prefetch"],
    ["mirror", "x"],
    ["mirror", "--cached-only", "x"],
    ["import", os.devnull],
    ["ca", "init"],
)


@pytest.mark.parametrize("arguments", CREATORS, ids=" ".join)
def test_nothing_is_made_in_a_directory_that_is_not_the_proxys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.delenv("CLAMPROXY_CACHE__DIRECTORY")
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "neither a configuration" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known_by", ["cache/", "proxy.yaml", "variable"])
def test_a_configuration_or_a_cache_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_by: str
) -> None:
    monkeypatch.delenv("CLAMPROXY_CACHE__DIRECTORY")
    if known_by == "variable":
        monkeypatch.setenv("CLAMPROXY_TLS__NAMES", "[gateway.example.net]")
    elif known_by.endswith("/"):
        (tmp_path / known_by).mkdir()
    else:
        (tmp_path / known_by).touch()
    assert invoke("ca", "init").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["purge", "--older-than", "30"], 2),
        (["purge", "--older-than", "1.5"], 2),
        (["ca", "rotate", "--overlap", "30"], 2),
        (["fleet", "--stale", "2"], 3),
    ],
)
def test_a_time_without_a_unit(arguments: list[str], code: int) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert re.search(r"a duration such as \d+d.*: [\d.]+ has no unit", result.stderr)


@pytest.mark.parametrize("arguments", [[], ["ca"], ["config"]])
def test_no_summary_is_cut(arguments: list[str]) -> None:
    output = CliRunner(env={"COLUMNS": "80"}).invoke(cli.main, [*arguments, "--help"]).output
    _, _, commands = output.partition("Commands:\n")
    assert commands
    assert "..." not in commands


@pytest.mark.parametrize("feeds", [{}, {"feed_requests": 7, "feed_bytes_served": 2048}])
def test_stats_of_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feeds: dict[str, int]) -> None:
    """They are shown where feeds are configured, or were."""
    store = Store(tmp_path / "cache")
    store.add_to_counters(feeds)
    store.close()
    assert ("feed requests" in invoke("stats").output) == bool(feeds)
    monkeypatch.setenv("CLAMPROXY_FEEDS__HOSTS", "[urlhaus.abuse.ch]")
    output = invoke("stats").output
    assert "feed upstream bytes" in output
    assert ("2.0 KiB" in output) == bool(feeds)


@pytest.mark.parametrize("name", ["alice", "o'brien"])
def test_hash_password(name: str) -> None:
    """It is an item of a list in YAML, and pasted below "users:" it is one of access.users."""
    result = CliRunner().invoke(cli.main, ["hash-password", name], input="s3cret\n")
    assert (result.exit_code, result.stderr) == (0, "")
    Path("proxy.yaml").write_text(f"access:\n  users:\n  {result.stdout}")
    (line,) = settings_of(None).access.users
    assert line.startswith(f"{name}:scrypt:")


@pytest.mark.parametrize("name", ["a\x01b", "a\nb", "a\x85b", "a\udce4b", "a\u2028b"])
def test_hash_password_of_a_name_that_yaml_does_not_take(name: str) -> None:
    result = CliRunner().invoke(cli.main, ["hash-password", name], input="s3cret\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        result.stderr
        == f"clamproxy: the name is {name!r}; expected printable characters without white space.\n"
    )


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_hash_password_tells_nothing_of_a_password(
    tmp_path: Path, child: Child, errors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that isn't UTF-8 is an error or not when it is read, by the locale."""
    monkeypatch.setenv("PYTHONIOENCODING", f"utf-8:{errors}")
    (tmp_path / "password").write_bytes(b"s3cr\xe4t\n")
    result = child(
        "import os, sys; from clamproxy import cli; "
        "os.dup2(os.open(sys.argv.pop(), os.O_RDONLY), 0); cli.main()",
        "hash-password",
        "alice",
        tmp_path / "password",
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "clamproxy: the password is not text in UTF-8.\n"


@pytest.mark.parametrize("name", ["", "a b", "a:b"])
def test_hash_password_of_an_impossible_name(name: str) -> None:
    result = CliRunner().invoke(cli.main, ["hash-password", name], input="s3cret\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "colons" in result.stderr


COMMANDS = (
    ["stats"],
    ["stats", "--json"],
    ["ls"],
    ["verify"],
    ["purge", "--yes"],
    ["export", "x"],
    ["mirror", "x", "--cached-only"],
    ["prefetch"],
    ["hold"],
    ["hold", "daily"],
    ["release", "daily"],
    ["fleet"],
    ["ca", "show"],
    ["ca", "init"],
)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_cache_that_is_closed_to_this_user(
    tmp_path: Path, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Every command tells whose it is, and whom to be."""
    filled(tmp_path / "cache", make_cvd)
    with Table(tmp_path / "cache").writing():
        pass
    (tmp_path / "proxy.yaml").write_text("tls: {directory: cache}")
    owner = (tmp_path / "cache").stat().st_uid

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "cache" / "index"))

    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("clamproxy.authority.Authority.load", refuse)
    result = invoke(*arguments)
    assert result.exit_code == (3 if arguments == ["fleet"] else 1)
    name = pwd.getpwuid(owner).pw_name
    expected = f"{tmp_path / 'cache'}: belongs to user {name}; run this as that user\n"
    assert result.output.endswith(expected)
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("is_listed", [True, False])
def test_the_cache_of_another_user(
    tmp_path: Path, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    """Its name is told, or its number where the system has no name for it, as in a container."""
    filled(tmp_path / "cache", make_cvd)
    owner = (tmp_path / "cache").stat().st_uid
    name = pwd.getpwuid(owner).pw_name if is_listed else str(owner)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if not is_listed:
        monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    result = invoke("verify")
    assert result.exit_code == 1
    assert (
        result.stderr == f"clamproxy: {tmp_path / 'cache'}: belongs to user {name}; run this as that user\n"
    )
