"""A cache of which something can't be read, or is no directory: one clear line, and nothing is dropped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from clamproxy.cache.store import Store
from tests.support.forge import forge_keys
from tests.support.programs import require_program
from tests.support.stored import RELEASES, cdiff, cvd, hold, read

WITHOUT_ROOTS_RIGHTS = "-dac_override,-dac_read_search"
PARTS = ("index", "objects", "partial", "quarantine")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    with closing(Store(tmp_path / "cache")) as store:
        hold(store, 1, range(2, 5))
    return tmp_path / "cache"


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As its owner, from whom the rights of a file can keep something, unlike from root."""
    command = [sys.executable, "-m", "clamproxy.cli", *arguments]
    if os.geteuid() == 0:
        command = [require_program("setpriv"), "--bounding-set", WITHOUT_ROOTS_RIGHTS, *command]
    return subprocess.run(
        command,
        env=os.environ | {"CLAMPROXY_CACHE__DIRECTORY": str(cache), "NO_COLOR": "1"},
        cwd=cache.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("part", ["index", "index/cache.db", "objects"])
@pytest.mark.parametrize("command", [("verify", "--repair", "--no-fetch"), ("ls",)])
def test_what_can_not_be_read_is_not_empty(cache: Path, part: str, command: tuple[str, ...]) -> None:
    (cache / part).chmod(0)
    result = run(cache, *command)
    (cache / part).chmod(0o700)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"clamproxy: {cache / part}: Permission denied\n"


@pytest.mark.parametrize("part", ["objects/daily", "objects/daily/daily-3.cdiff"])
def test_repairing_drops_nothing_that_can_not_be_read(cache: Path, part: str) -> None:
    (cache / part).chmod(0)
    for command in ("verify", "verify --repair --no-fetch", "verify --repair --no-fetch"):
        result = run(cache, *command.split())
        assert result.returncode == 1
        assert "daily-3.cdiff: can't be read: Permission denied\n" in result.stderr
    (cache / part).chmod(0o700)
    with closing(Store(cache)) as store:
        assert read(store, cdiff(3)) == RELEASES.cdiff(3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can open the cache of another user")
def test_root_makes_nothing_in_the_cache_of_another_user(tmp_path: Path) -> None:
    """The gateway, as that user, could not write to it after an upgrade."""
    cache = tmp_path / "cache"
    cache.mkdir()
    os.chown(cache, 65534, 65534)
    with closing(Store(cache, tidy=False)):
        pass
    assert not (cache / "objects").exists()
    assert not (cache / "owners.lock").exists()


START = """
import os, sys
from pathlib import Path
from clamproxy.cache.store import Store
from clamproxy.objects import ObjectId

store = Store(Path(sys.argv[1]))
assert store.newest_version("daily") == 1
assert store.open_newest("daily") is None  # which is found out by opening it only
assert store.newest_version("daily") is None
assert store.open(ObjectId.parse("daily-3.cdiff")) is not None
store.close()
"""


def test_a_start_deletes_nothing_that_can_not_be_read(cache: Path) -> None:
    (cache / "objects/daily/daily-1.cvd").chmod(0)
    command = [sys.executable, "-c", START, str(cache)]
    if os.geteuid() == 0:
        command = [require_program("setpriv"), "--bounding-set", WITHOUT_ROOTS_RIGHTS, *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    (cache / "objects/daily/daily-1.cvd").chmod(0o600)
    with closing(Store(cache, keys=forge_keys().trusted)) as store:
        assert read(store, cvd(1)) == RELEASES.cvd(1)


def _make_it_the_cache(cache: Path) -> Path:
    directory = cache.with_name("file")
    directory.touch()
    return directory


def _put_it_at(part: str) -> Callable[[Path], Path]:
    def put(cache: Path) -> Path:
        (cache / part).rename(cache / "elsewhere")
        (cache / part).touch()
        return cache / part

    return put


@pytest.mark.parametrize("put", [_make_it_the_cache, *map(_put_it_at, PARTS)], ids=["cache", *PARTS])
def test_a_file_in_the_place_of_a_directory(cache: Path, put: Callable[[Path], Path]) -> None:
    path = put(cache)
    directory = path if path.name == "file" else cache
    for command in (("verify",), ("prefetch",)):
        result = run(directory, *command)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"clamproxy: {path}: Not a directory, but a file; move it away\n"
    with pytest.raises(NotADirectoryError, match="Not a directory, but a file"):
        Store(directory)


def test_run_where_nothing_may_be_made(tmp_path: Path) -> None:
    """For example in another user's directory, without a configuration."""
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o500)
    result = run(directory / "cache", "run", "--port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"clamproxy: {directory}/cache: Permission denied; run this in a directory of your own, or set "
        "cache.directory\n"
    )
