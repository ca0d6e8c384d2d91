"""The check of local databases, with the real clamscan: which files it loads alone, and what it refuses."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from clamproxy.site_files import checking
from clamproxy.site_files.checking import CheckError, FileVerdict, check, verdict_of
from clamproxy.site_files.file_names import EXTENSIONS, why_skipped
from clamproxy.site_files.ignoring import IgnoreList
from tests.support.programs import require_program
from tests.support.stored import until

MD5, SHA256, HEX = "0" * 32, "0" * 64, b"harmless-marker".hex()
GOOD = {
    "ign2": "Site.Test-1\n",
    "ign": "main.db:7:Site.Test-1\n",
    "fp": f"{MD5}:10:x\n",
    "sfp": f"{SHA256}:10:x\n",
    "hdb": f"{MD5}:10:Site.Test-1\n",
    "hsb": f"{SHA256}:10:Site.Test-1\n",
    "mdb": f"10:{MD5}:Site.Test-1\n",
    "msb": f"10:{SHA256}:Site.Test-1\n",
    "ndb": f"Site.Test-1:0:*:{HEX}\n",
    "ldb": f"Site.Test-1;Engine:51-255,Target:0;0;{HEX}\n",
    "cdb": "Site.Test-1:*:*:x.exe:*:*:*:*:*:*\n",
    "ftm": f"0:0:{HEX}:X:CL_TYPE_ANY:CL_TYPE_GIF\n",
    "wdb": "M:x.example:y.example\n",
    "pdb": "H:x.example\n",
    "cfg": "DOCUMENT:0x5:1:2\n",
    "pwdb": "Site.Test-1;Engine:81-255;0;infected\n",
    "yar": 'rule Site_Test { strings: $a = "marker" condition: $a }\n',
}
"""By extension: a file that clamscan loads, although there is no other."""
BAD = {
    "ign2": "Site.Test-1:no hash\n",
    "fp": "no hash\n",
    "hdb": "0123:10:Site.Test-1\n",
    "hsb": "no hash\n",
    "ndb": "Site.Test-1:0:*:no hex\n",
    "ndu": "Site.Test-1:0:*:no hex\n",  # clamd loads it with DetectPUA
    "ldb": "no signature\n",
    "cdb": "\n",
    "ftm": "x\n",
    "yar": "rule Site_Test { nothing\n",
    "yara": "no rule\n",
    "pwdb": "x\n",
}
COMMENT = ("ign2", "hdb", "hsb", "ndb", "ldb", "fp", "sfp", "yar", "cdb", "wdb", "pdb")
"""Files that may consist of a comment, by which everything in them is taken back from machines."""


@pytest.fixture
def clamscan() -> str:
    return require_program("clamscan")


async def checked(directory: Path, name: str, content: str, program: str | None) -> FileVerdict:
    path = directory / name
    path.write_text(content)
    return await check(path, program)


@pytest.mark.parametrize("extension", sorted(GOOD))
async def test_a_good_file(tmp_path: Path, clamscan: str, extension: str) -> None:
    verdict = await checked(tmp_path, f"site.{extension}", GOOD[extension], clamscan)
    assert verdict == FileVerdict(checked_by="clamscan")
    assert os.listdir(tmp_path) == [f"site.{extension}"]  # noqa: PTH208 -- nothing is left behind


@pytest.mark.parametrize("extension", sorted(BAD))
async def test_a_broken_file(tmp_path: Path, clamscan: str, extension: str) -> None:
    verdict = await checked(tmp_path, f"site.{extension}", BAD[extension], clamscan)
    assert verdict.problem
    assert len(verdict.problem) <= checking.LONGEST_REASON
    assert str(tmp_path) not in verdict.problem


@pytest.mark.parametrize("extension", COMMENT)
async def test_a_file_without_effect(tmp_path: Path, clamscan: str, extension: str) -> None:
    comment = "// nothing\n" if extension == "yar" else "# nothing\n"
    verdict = await checked(tmp_path, f"site.{extension}", comment, clamscan)
    assert not verdict.problem


async def test_a_name_is_added_to_a_list_with_hashes(tmp_path: Path, clamscan: str) -> None:
    """clamscan takes a name alone for malformed below a line with a hash."""
    ignored = IgnoreList(tmp_path, tmp_path / "state")
    ignored.path.write_text(f"Site.Name-1\n# a comment\nSite.Hash-1:{MD5}\nSite.Hash-2:{MD5}\n")
    for name in ("Site.New-1", "Site.Hash-2"):
        ignored.add(name, "why")
    assert await check(ignored.path, clamscan) == FileVerdict(checked_by="clamscan")
    assert ignored.path.read_text().count(f":{MD5}") == 1


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
async def test_clamscan_knows_every_extension(tmp_path: Path, clamscan: str, extension: str) -> None:
    verdict = await checked(tmp_path, f"site.{extension}", "x\n", clamscan)
    assert "unknown extension" not in verdict.problem
    assert why_skipped(f"site.{extension}") is None


async def test_clamscan_knows_no_other(tmp_path: Path, clamscan: str) -> None:
    assert "unknown extension" in (await checked(tmp_path, "site.txt", "x\n", clamscan)).problem


async def test_the_rules_that_can_be_loaded_are_published(tmp_path: Path, clamscan: str) -> None:
    """As clamd does: collections of rules often have some that ClamAV doesn't know."""
    rules = GOOD["yar"] + 'import "cuckoo"\nrule b { condition: cuckoo.x }\n'
    verdict = await checked(tmp_path, "site.yar", rules, clamscan)
    assert (verdict.problem, verdict.checked_by) == ("", "clamscan")
    assert "can't be loaded" in verdict.remark


async def test_with_many_rules_that_cannot_be_loaded(tmp_path: Path, clamscan: str) -> None:
    """clamscan says at the end how many it has loaded; before that, it complains about each of the others."""
    rules = "".join(f"rule b{number} {{ condition: no_such_identifier }}\n" for number in range(2000))
    verdict = await checked(tmp_path, "site.yar", rules + GOOD["yar"], clamscan)
    assert (verdict.problem, verdict.checked_by) == ("", "clamscan")
    assert "of its 2" in verdict.remark


async def test_a_clamscan_without_memory_says_nothing_about_the_file(tmp_path: Path, clamscan: str) -> None:
    """It calls a good file malformed then."""
    program = tmp_path / "clamscan"
    program.write_text(f'#!/bin/sh\nulimit -v 81920\nexec {clamscan} "$@"\n')
    program.chmod(0o755)
    signatures = "".join(
        f"Site.T{number}-1:0:*:{number:08x}deadbeefcafe{number * 7919:012x}\n" for number in range(200_000)
    )
    with pytest.raises(CheckError):
        await checked(tmp_path, "site.ndb", signatures, str(program))


@pytest.mark.parametrize("content", ["", " \n\n", "<!DOCTYPE html><html>", "\n<HTML>x"])
@pytest.mark.parametrize("has_clamscan", [True, False])
async def test_what_needs_no_clamscan(tmp_path: Path, content: str, has_clamscan: bool) -> None:
    program = require_program("clamscan") if has_clamscan else None
    assert (await checked(tmp_path, "site.ign2", content, program)).problem


async def test_without_clamscan(tmp_path: Path) -> None:
    verdict = await checked(tmp_path, "site.ndb", BAD["ndb"], None)
    assert verdict == FileVerdict(remark="not checked, as clamscan isn't installed")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 2", "exit code 2"),
        ("echo ERROR: no memory; exit 40", "no memory"),
        ("kill -9 $$", "signal 9"),
        ("exec sleep 600", "didn't end"),
        ("yes | head -c 10000000; exit 0", ""),
        ('echo "ERROR: Can\'t allocate memory"; exit 2', "allocate memory"),
        ('echo "LibClamAV Error: mpool_malloc(): Can\'t allocate memory (9 bytes)."; exit 2', "memory"),
        ("echo 'LibClamAV Error: cli_pwrite: No space left on device'; exit 2", "space left"),
        ('echo "LibClamAV Error: Can\'t create temporary file"; exit 0', "temporary"),
    ],
)
async def test_a_clamscan_that_fails_says_nothing_about_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(checking, "TIMEOUT", 1.0 if "sleep" in script else 60.0)
    program = tmp_path / "clamscan"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    if not said:
        assert not (await checked(tmp_path, "site.ndb", GOOD["ndb"], str(program))).problem
        return
    with pytest.raises(CheckError, match=said):
        await checked(tmp_path, "site.ndb", GOOD["ndb"], str(program))


async def test_no_clamscan_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(CheckError):
        await checked(tmp_path, "site.ndb", GOOD["ndb"], str(tmp_path / "clamscan"))


async def test_cancelling_ends_the_program(tmp_path: Path) -> None:
    program, noted = tmp_path / "clamscan", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {noted}.part; mv {noted}.part {noted}; wait\n")
    program.chmod(0o755)
    task = asyncio.create_task(checked(tmp_path, "site.ndb", GOOD["ndb"], str(program)))
    await until(noted.exists)
    pid = int(noted.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: has_ended(pid))


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_reasons_are_one_line() -> None:
    output = "LibClamAV Error: a\tb\x1b[31m\nLibClamAV Error: a\tb\x1b[31m\nLibClamAV Error: Can't load x\n"
    assert verdict_of(2, output).problem == "a b [31m"
