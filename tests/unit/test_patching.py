"""Scripts carried out on files, and on ``.info`` alone."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clamproxy.formats import patching
from clamproxy.formats.cdiff import (
    Add,
    CdiffContainer,
    Close,
    Command,
    Delete,
    Move,
    Open,
    Replace,
    Unlink,
    iter_commands,
)
from clamproxy.formats.cvd import read_info
from clamproxy.formats.patching import apply_commands, patch_info
from clamproxy.formats.signatures import InvalidObject
from tests.support.data import read_testdata

DATABASE = "daily"
FILES = {"daily.ndb": b"Aa one\nBb two\nCc three\nDd four\n", "daily.hdb": b"Xx\nYy\n", "daily.old": b""}


def commands(script: bytes) -> Iterator[Command]:
    data = b"ClamAV-Diff:2:0:" + gzip.compress(script) + b":" + b"a" * 340
    file = io.BytesIO(data)
    return iter_commands(file, CdiffContainer.parse(file), DATABASE)


def apply(directory: Path, script: bytes, files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    """The files of the directory after the script."""
    for name, data in files.items():
        (directory / name).write_bytes(data)
    apply_commands(commands(script), directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("script", "changed"),
    [
        (b"", {}),
        (b"# nothing\n", {}),
        (b"OPEN daily.ndb\nCLOSE\n", {}),
        (b"OPEN daily.new\nCLOSE\n", {}),
        (b"OPEN daily.ndb\nADD Ee\nADD \nCLOSE\n", {"daily.ndb": FILES["daily.ndb"] + b"Ee\n\n"}),
        (b"OPEN daily.new\nADD Ee\nCLOSE\n", {"daily.new": b"Ee\n"}),
        (b"OPEN daily.old\nADD Ee\nCLOSE\n", {"daily.old": b"Ee\n"}),
        (b"OPEN daily.ndb\nDEL 1 Aa\nCLOSE\n", {"daily.ndb": b"Bb two\nCc three\nDd four\n"}),
        (b"OPEN daily.ndb\nDEL 4 Dd\nDEL 2 B\nCLOSE\n", {"daily.ndb": b"Aa one\nCc three\n"}),
        (b"OPEN daily.hdb\nDEL 1 Xx\nDEL 2 Yy\nCLOSE\n", {"daily.hdb": b""}),
        (b"OPEN daily.hdb\nDEL 1 \nCLOSE\n", {"daily.hdb": b"Yy\n"}),
        (b"OPEN daily.hdb\nXCHG 2 Y New line\nCLOSE\n", {"daily.hdb": b"Xx\nNew line\n"}),
        (b"OPEN daily.hdb\nXCHG 1 Xx \nCLOSE\n", {"daily.hdb": b"\nYy\n"}),
        (
            b"OPEN daily.hdb\nADD Zz\nDEL 2 Yy\nADD Ww\nXCHG 1 Xx Vv\nCLOSE\n",
            {"daily.hdb": b"Vv\nZz\nWw\n"},
        ),
        (b"OPEN daily.hdb\nDEL 1 no\nXCHG 1 Xx Vv\nCLOSE\n", {"daily.hdb": b"Vv\nYy\n"}),
        (b"OPEN daily.hdb\nXCHG 1 Xx Vv\nDEL 1 Xx\nCLOSE\n", {"daily.hdb": b"Yy\n"}),
        (
            b"MOVE daily.ndb daily.hdb 2 Bb 3 Cc\n",
            {"daily.ndb": b"Aa one\nDd four\n", "daily.hdb": b"Xx\nYy\nBb two\nCc three\n"},
        ),
        (
            b"MOVE daily.ndb daily.old 1 A 4 Dd\n",
            {"daily.ndb": b"", "daily.old": FILES["daily.ndb"]},
        ),
        (b"UNLINK daily.old\n", {"daily.old": None}),
        (b"UNLINK daily.old\nOPEN daily.old\nADD Ee\nCLOSE\n", {"daily.old": b"Ee\n"}),
        (
            b"OPEN daily.hdb\nDEL 1 Xx\nCLOSE\nOPEN daily.hdb\nDEL 1 Yy\nADD Zz\nCLOSE\n",
            {"daily.hdb": b"Zz\n"},
        ),
    ],
)
def test_scripts(tmp_path: Path, script: bytes, changed: dict[str, bytes | None]) -> None:
    wanted = {name: data for name, data in {**FILES, **changed}.items() if data is not None}
    assert apply(tmp_path, script) == wanted


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (b"CLOSE\n", "Close in the wrong place"),
        (b"ADD x\n", "Add in the wrong place"),
        (b"DEL 1 x\n", "Delete in the wrong place"),
        (b"XCHG 1 x y\n", "Replace in the wrong place"),
        (b"OPEN daily.ndb\nCLOSE\nADD x\n", "Add in the wrong place"),
        (b"OPEN daily.ndb\nOPEN daily.hdb\n", "Open in the wrong place"),
        (b"OPEN daily.ndb\nUNLINK daily.hdb\nCLOSE\n", "Unlink in the wrong place"),
        (b"OPEN daily.ndb\nMOVE daily.ndb daily.hdb 1 Aa 2 Bb\nCLOSE\n", "Move in the wrong place"),
        (b"OPEN daily.ndb\nADD x\n", "ends while daily.ndb is open"),
        (b"OPEN daily.ndb\nDEL 1 Bb\nCLOSE\n", "does not begin as it should"),
        (b"OPEN daily.ndb\nDEL 1 one\nCLOSE\n", "does not begin as it should"),
        (b"OPEN daily.hdb\nDEL 1 Xx2\nCLOSE\n", "does not begin as it should"),
        (b"OPEN daily.hdb\nXCHG 2 Yy2 Zz\nCLOSE\n", "does not begin as it should"),
        (b"OPEN daily.ndb\nXCHG 2 aa x\nCLOSE\n", "does not begin as it should"),
        (b"OPEN daily.ndb\nDEL 5 x\nCLOSE\n", "past the end"),
        (b"OPEN daily.ndb\nDEL 5 \nCLOSE\n", "past the end"),
        (b"OPEN daily.ndb\nDEL 4 Dd\nDEL 9999999999 x\nCLOSE\n", "past the end"),
        (b"OPEN daily.old\nDEL 1 x\nCLOSE\n", "past the end"),
        (b"OPEN daily.new\nDEL 1 x\nADD x\nCLOSE\n", r"daily\.new, which does not exist"),
        (b"UNLINK daily.new\n", r"daily\.new, which does not exist"),
        (b"UNLINK daily.old\nUNLINK daily.old\n", r"daily\.old, which does not exist"),
        (b"MOVE daily.new daily.hdb 1 Aa 2 Bb\n", r"daily\.new, which does not exist"),
        (b"MOVE daily.ndb daily.new 1 Aa 2 Bb\n", r"daily\.new, which does not exist"),
        (b"MOVE daily.ndb daily.hdb 2 Bb 2 Bb\n", "cannot be carried out"),
        (b"MOVE daily.ndb daily.hdb 3 Cc 2 Bb\n", "cannot be carried out"),
        (b"MOVE daily.ndb daily.ndb 1 Aa 2 Bb\n", "cannot be carried out"),
        (b"MOVE daily.ndb daily.hdb 1 Bb 2 Bb\n", "does not begin as it should"),
        (b"MOVE daily.ndb daily.hdb 1 Aa 2 Cc\n", "does not begin as it should"),
        (b"MOVE daily.ndb daily.hdb 1 Aa 5 Ee\n", "past the end"),
        (b"MOVE daily.ndb daily.hdb 5 Aa 6 Ee\n", "past the end"),
    ],
)
def test_bad_scripts(tmp_path: Path, script: bytes, reason: str) -> None:
    with pytest.raises(InvalidObject, match=reason):
        apply(tmp_path, script)


def test_last_line_must_end_in_a_file_that_is_edited(tmp_path: Path) -> None:
    """But cdiff.rs lets a file grow without a look at it."""
    files = {"daily.ndb": b"Aa\nBb", "daily.hdb": b"Xx\n"}
    for script in (b"OPEN daily.ndb\nDEL 1 Aa\nCLOSE\n", b"MOVE daily.ndb daily.hdb 1 Aa 2 Bb\n"):
        with pytest.raises(InvalidObject, match="last line does not end"):
            apply(tmp_path, script, files)
    assert apply(tmp_path, b"OPEN daily.ndb\nADD Cc\nCLOSE\n", files)["daily.ndb"] == b"Aa\nBbCc\n"


def test_a_file_that_only_grows_is_not_rewritten(tmp_path: Path) -> None:
    (tmp_path / "daily.ndb").write_bytes(b"Aa\n")
    before = (tmp_path / "daily.ndb").stat().st_ino
    apply_commands(iter([Open("daily.ndb"), Add(b"Bb"), Close()]), tmp_path)
    assert (tmp_path / "daily.ndb").stat().st_ino == before


# Against a model that is too simple to be wrong

LINES = st.lists(st.text("ab ", max_size=9).map(str.encode), max_size=30)
NEW_LINES = st.none() | st.just(b"new line")
EDITS = st.lists(st.tuples(st.integers(1, 31), NEW_LINES, st.sampled_from([0, 1, 2, 99])), max_size=12)


def model(lines: list[bytes], edits: list[Delete | Replace], additions: list[bytes]) -> list[bytes] | None:
    """The lines afterwards; None if the edits cannot be made."""
    result: list[bytes | None] = [*lines]
    for number, edit in {edit.number: edit for edit in edits}.items():
        if number > len(lines) or not lines[number - 1].startswith(edit.prefix):
            return None
        result[number - 1] = edit.line if isinstance(edit, Replace) else None
    return [line for line in result if line is not None] + additions


def drawn_edits(lines: list[bytes], edits: list[tuple[int, bytes | None, int]]) -> list[Delete | Replace]:
    """Edits of lines by number; some are past the end, few have a wrong prefix."""
    made: list[Delete | Replace] = []
    for number, new, length in edits:
        prefix = lines[number - 1][:length] if number <= len(lines) else b""
        made.append(Delete(number, prefix) if new is None else Replace(number, prefix, new))
    return made


def text(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@given(LINES, EDITS, LINES, st.integers(1, 40), st.integers(1, 20), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_edits_against_the_model(
    tmp_path: Path,
    lines: list[bytes],
    drawn: list[tuple[int, bytes | None, int]],
    additions: list[bytes],
    block: int,
    guess: int,
    spoilt: bool,
) -> None:
    edits = drawn_edits(lines, drawn)
    if spoilt and edits:
        edits[0] = Delete(edits[0].number, edits[0].prefix + b"c")
    path = tmp_path / "daily.ndb"
    path.write_bytes(text(lines))
    script = iter([Open("daily.ndb"), *edits, *map(Add, additions), Close()])
    wanted = model(lines, edits, additions)
    with patch.multiple(patching, _BLOCK=block, _LINE_GUESS=guess, _FEW_LINES=2):
        if wanted is None:
            with pytest.raises(InvalidObject):
                apply_commands(script, tmp_path)
        else:
            apply_commands(script, tmp_path)
            assert path.read_bytes() == text(wanted)


@given(LINES, LINES, st.integers(1, 31), st.integers(1, 31), st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_moves_against_the_model(
    tmp_path: Path, source: list[bytes], target: list[bytes], first: int, last: int, block: int
) -> None:
    (tmp_path / "daily.a").write_bytes(text(source))
    (tmp_path / "daily.b").write_bytes(text(target))
    prefixes = [source[number - 1][:3] if number <= len(source) else b"" for number in (first, last)]
    script = iter([Move("daily.a", "daily.b", first, prefixes[0], last, prefixes[1])])
    with patch.object(patching, "_BLOCK", block):
        if not first < last <= len(source):
            with pytest.raises(InvalidObject):
                apply_commands(script, tmp_path)
            return
        apply_commands(script, tmp_path)
    assert (tmp_path / "daily.a").read_bytes() == text(source[: first - 1] + source[last:])
    assert (tmp_path / "daily.b").read_bytes() == text(target + source[first - 1 : last])


# Only .info


def test_info_of_each_version_is_known_from_the_cdiffs() -> None:
    info = read_info(io.BytesIO(read_testdata("test-1.cvd")), "test")
    for version in range(2, 7):
        file = io.BytesIO(read_testdata(f"test-{version}.cdiff"))
        info = patch_info(info, iter_commands(file, CdiffContainer.parse(file), "test"), "test")
        assert info == read_info(io.BytesIO(read_testdata(f"test-{version}.cvd")), "test")


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ([], b"Aa\nBb\n"),
        ([Open("daily.ndb"), Delete(77, b"x"), Add(b"x"), Close()], b"Aa\nBb\n"),
        ([Unlink("daily.ndb"), Move("daily.a", "daily.b", 1, b"", 2, b"")], b"Aa\nBb\n"),
        ([Open("daily.info"), Add(b"Cc"), Replace(1, b"A", b"Dd"), Close()], b"Dd\nBb\nCc\n"),
        ([Open("daily.info"), Delete(1, b"A"), Close(), Open("daily.ndb"), Add(b"x"), Close()], b"Bb\n"),
        ([Open("daily.info"), Add(b"Cc"), Close()] * 2, b"Aa\nBb\nCc\nCc\n"),
    ],
)
def test_other_files_do_not_matter(script: list[Command], wanted: bytes) -> None:
    assert patch_info(b"Aa\nBb\n", iter(script), "daily") == wanted


@pytest.mark.parametrize(
    "script",
    [
        [Unlink("daily.info")],
        [Move("daily.info", "daily.ndb", 1, b"", 2, b"")],
        [Move("daily.ndb", "daily.info", 1, b"", 2, b"")],
        [Open("daily.info"), Delete(3, b""), Close()],
        [Open("daily.info"), Replace(1, b"B", b""), Close()],
        [Open("daily.info"), Add(b"Cc")],
        [Open("daily.info"), Add(b"Cc"), Open("daily.info")],
        [Open("daily.info"), Close(), Add(b"Cc")],
    ],
)
def test_scripts_that_do_not_fit_to_info(script: list[Command]) -> None:
    with pytest.raises(InvalidObject):
        patch_info(b"Aa\nBb\n", iter(script), "daily")
