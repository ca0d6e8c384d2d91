"""The man pages, the completion and the example: they follow the command line and proxy.yaml."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from clamproxy.cli import main
from clamproxy.config import example as example_module
from clamproxy.config.settings import Settings
from clamproxy.manual import PAGES, page
from tests.support.contrib import ROOT
from tests.support.programs import require_program

SHIPPED = ROOT / "proxy.yaml"


def shown(name: str) -> str:
    """A page as a reader sees it, on one line."""
    command = [require_program("mandoc"), "-T", "ascii", "-O", "width=1000"]
    source = page(name, main, "1.0")
    text = subprocess.run(
        command, input=source, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    return " ".join(re.sub(".\b", "", text).split())


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_clean_roff(name: str, tmp_path: Path) -> None:
    path = tmp_path / Path(PAGES[name]).name
    path.write_text(page(name, main, "1.0"))
    lint = subprocess.run(
        [require_program("mandoc"), "-T", "lint", str(path)], capture_output=True, text=True, timeout=60
    )
    # A date would make each build another one; a sentence on one line is longer than 80 bytes.
    others = [line for line in lint.stdout.splitlines() if not re.search("missing date|longer than 80", line)]
    assert others == []
    environ = os.environ | {"MANROFFSEQ": "", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    man = [require_program("man"), "--warnings", "--local-file", str(path)]
    result = subprocess.run(man, capture_output=True, text=True, timeout=60, env=environ)
    assert (result.returncode, result.stderr) == (0, "")


def test_all_commands_and_options_are_there() -> None:
    text = shown("clamproxy")
    for path, command in commands(main, "clamproxy"):
        assert path in text
        for option in command.params:
            if isinstance(option, click.Option):
                assert all(flag in text for flag in option.opts), (path, option.name)
                assert (option.help or "").replace("`", "") in text


def test_a_page_changes_nothing_for_other_commands() -> None:
    """In the same process, -h of run was mitmdump's after a page."""
    code = """
from click.testing import CliRunner
from clamproxy.cli import main
for arguments in (["man"], ["run", "-h"]):
    print(CliRunner().invoke(main, arguments).output.splitlines()[0])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[1].startswith("Usage: main run "), result


def test_all_keys_are_there_with_default_and_variable() -> None:
    text = shown("proxy.yaml")
    assert "Environment: CLAMPROXY_FLEET_STORE" in text
    for section, field in Settings.model_fields.items():
        assert f" {section}: " in text
        if section == "fleet_store":
            continue
        for key in field.annotation.model_fields:  # type: ignore[union-attr]
            assert f"Environment: CLAMPROXY_{section}__{key}".upper() in text.upper()
    keys = SHIPPED.read_text().partition("\n\n")[2]
    for line in re.findall(r"^ *# (?!Default|Environment)(\S[^`\n]+)$", keys, re.MULTILINE):
        assert line in text


def test_unknown_pages_are_refused() -> None:
    result = CliRunner().invoke(main, ["man", "freshclam"])
    assert result.exit_code == 2


def test_pages_are_written_where_man_looks(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["man", "--into", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, "")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.?")} == set(PAGES.values())


# proxy.yaml


def test_example_is_the_shipped_file() -> None:
    result = CliRunner().invoke(main, ["config", "example"])
    assert (result.exit_code, result.output) == (0, SHIPPED.read_text())


def test_a_changed_file_is_no_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout, users edit it, and may have put a password in."""
    changed = tmp_path / "proxy.yaml"
    changed.write_text("status: {token: 0123456789abcdef}\n")
    monkeypatch.setattr(example_module, "_IN_CHECKOUT", changed)
    result = CliRunner().invoke(main, ["config", "example"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"clamproxy: {changed}: has been changed; `git show HEAD:proxy.yaml` prints the original\n"
    )


# Completion


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        ([], "ver", ["verify"]),
        (["config"], "ex", ["example"]),
        (["ls"], "--data", ["--database"]),
        (["ls", "--database"], "d", ["daily"]),
        (["ls", "--config", "missing.yaml", "--database"], "d", ["daily"]),
        (["purge", "--kind"], "cv", ["cvd"]),
        (["completion"], "z", ["zsh"]),
    ],
)
def test_completion(words: list[str], begun: str, expected: list[str]) -> None:
    completer = ShellComplete(main, {}, "clamproxy", "_CLAMPROXY_COMPLETE")
    assert [item.value for item in completer.get_completions(words, begun)] == expected


@pytest.mark.parametrize("words", [["ls", "--config"], ["import"], ["doctor", "--ca"]])
def test_files_are_completed_by_the_shell(words: list[str]) -> None:
    completer = ShellComplete(main, {}, "clamproxy", "_CLAMPROXY_COMPLETE")
    assert [item.type for item in completer.get_completions(words, "x")] == ["file"]


def test_databases_come_from_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "proxy.yaml"
    config.write_text("serving: {databases: [main, detect]}\n")
    completer = ShellComplete(main, {}, "clamproxy", "_CLAMPROXY_COMPLETE")
    items = completer.get_completions(["ls", "--config", str(config), "--database"], "")
    assert [item.value for item in items] == ["detect", "main"]


def test_bash_completes(tmp_path: Path) -> None:
    """With the script that the command prints."""
    script = CliRunner().invoke(main, ["completion", "bash"])
    code = f"""{script.output}
        COMP_WORDS=(clamproxy conf) COMP_CWORD=1
        _clamproxy_completion clamproxy
        echo "${{COMPREPLY[*]}}"
    """
    program = require_program("clamproxy")
    environ = os.environ | {"PATH": f"{Path(program).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        [require_program("bash"), "-c", code], capture_output=True, text=True, timeout=60, env=environ
    )
    assert (result.stdout, result.stderr) == ("config\n", "")
