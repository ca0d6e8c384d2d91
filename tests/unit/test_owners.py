"""Who may use a directory as a cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from clamproxy import cli
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.setup.confdir import find_confdir
from clamproxy.state import make_state_directory

COMMANDS = [
    ("config", "check"),
    ("client-config", "--gateway", "gateway"),
    ("stats",),
    ("ls",),
    ("verify",),
    ("purge", "--yes"),
    ("hold",),
    ("export", "x.tar"),
    ("import", "x.tar"),
    ("prefetch",),
    ("mirror", "mirror", "--cached-only"),
]


def make(directory: Path, mode: int, *names: str) -> Path:
    directory.mkdir()
    for name in names:
        (directory / name).mkdir() if name.endswith("/") else (directory / name).touch()
    directory.chmod(mode)
    return directory


def state_of(directory: Path) -> tuple[int, list[str]]:
    return directory.stat().st_mode & 0o7777, sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("mode", [0o1777, 0o755, 0o710])
@pytest.mark.parametrize("names", [["a file of somebody else"], ["partial/", "x.deb"]], ids=" ".join)
def test_what_others_use_is_not_taken_over(tmp_path: Path, mode: int, names: list[str]) -> None:
    """As root, a cache in /tmp or / would lock everybody else out."""
    shared = make(tmp_path / "shared", mode, *names)
    before = state_of(shared)
    with pytest.raises(OSError, match="Not a cache, but other files are in it"):
        Store(shared)
    assert state_of(shared) == before


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (0o1777, []),
        (0o755, ["lost+found", ".gitkeep"]),
        (0o755, ["partial/", "owners.lock"]),  # after a first start that the power cut short
        (0o755, ["objects/", "a file of somebody else"]),
        (0o700, ["proxy.yaml"]),
    ],
)
def test_what_nobody_else_uses_becomes_a_cache(tmp_path: Path, mode: int, names: list[str]) -> None:
    directory = make(tmp_path / "own", mode, *names)
    Store(directory).close()
    assert state_of(directory)[0] == 0o700
    (directory / "a file that was put there later").touch()
    directory.chmod(0o755)
    with closing(Store(directory)):
        assert state_of(directory)[0] == 0o700


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("maker", ["mitmproxy's authority", "records", "records that have no other place"])
def test_what_is_made_there_first_is_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str, is_there: bool
) -> None:
    cache = tmp_path / "site" / "cache"
    (tmp_path / "file").touch()
    if is_there:
        cache.mkdir(parents=True)
        cache.chmod(0o755)
    settings = Settings.model_validate(
        {
            "cache": {"directory": cache},
            "tls": {"directory": tmp_path / "file" / "ca"},
            "state": {"directory": cache / "records" if maker == "records" else None},
        }
    )
    if maker == "mitmproxy's authority":
        monkeypatch.setenv("HOME", "/nonexistent")
        assert find_confdir(settings) == cache / "mitmproxy"
    else:
        if maker != "records":
            (cache.parent).mkdir(exist_ok=True)
            (tmp_path / "site" / "cache-state").touch()
        (make_state_directory(settings) / "holds.json").touch()
    assert state_of(cache)[0] == 0o700
    Store(cache).close()


def test_the_authority_may_be_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make(tmp_path / "cache", 0o755)
    monkeypatch.chdir(tmp_path)
    Path("proxy.yaml").write_text("tls: {directory: cache/ca}")
    assert CliRunner().invoke(cli.main, ["ca", "init"]).exit_code == 0
    Store(cache).close()


def test_another_process_makes_a_cache_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both begin while the directory is open; the other one is done before this one has looked."""
    directory = make(tmp_path / "cache", 0o755)
    (directory / "owners.lock").touch()

    def others_are_faster(path: Path) -> Iterator[Path]:
        monkeypatch.undo()
        make_leases(path)
        return path.iterdir()

    monkeypatch.setattr(Path, "iterdir", others_are_faster)
    Store(directory).close()


def make_leases(directory: Path) -> None:
    with closing(Store(directory)):
        (directory / "leases").mkdir()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_takes_a_directory_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    shared = make(tmp_path / "shared", 0o1777, "a file of somebody else")
    before = state_of(shared)
    monkeypatch.chdir(make(tmp_path / "here", 0o755, "x.tar"))
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", json.dumps(str(shared)))
    result = CliRunner().invoke(cli.main, command)
    assert state_of(shared) == before, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
