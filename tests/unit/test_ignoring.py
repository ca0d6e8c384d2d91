"""The list of ignored signatures, its history, and which names it takes."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from clamproxy.cli import main
from clamproxy.site_files.ignoring import IgnoreList, signature_name
from tests.support.disk import limited_files

NAME = "Win.Trojan.Agent-1234567-0"


@pytest.fixture
def ignored(tmp_path: Path) -> IgnoreList:
    return IgnoreList(tmp_path / "files", tmp_path / "state")


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        (NAME, NAME),
        (f" {NAME}.UNOFFICIAL\n", NAME),
        ("YARA.Site_Rule.UNOFFICIAL", "Site_Rule"),
        ("{HEX}php.cmdshell.unclassed.344.UNOFFICIAL", "{HEX}php.cmdshell.unclassed.344"),
        ("PUA.Win.Packer-1", "PUA.Win.Packer-1"),
    ],
)
def test_names(reported: str, name: str) -> None:
    assert signature_name(reported)[0] == name
    assert bool(signature_name(reported)[1]) == (reported.strip() != name)


@pytest.mark.parametrize(
    ("reported", "reason"),
    [
        ("", "expected"),
        (".UNOFFICIAL", "expected"),
        (".", "expected"),
        ("-._.UNOFFICIAL", "expected"),
        ("a b", "expected"),
        ("a:b", "expected"),
        ("# a", "expected"),
        ("naïve", "expected"),
        ("x" * 251, "expected"),
        ("Win.*", "wildcards"),
        ("Heuristics.Encrypted.Zip", "clamd.conf"),
    ],
)
def test_what_is_no_name(reported: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        signature_name(reported)


def test_changes(ignored: IgnoreList) -> None:
    assert ignored.signatures() == []
    assert ignored.add(NAME, "why") is True
    assert ignored.add(NAME, "again") is False
    assert ignored.add("Other-1", "") is True
    assert ignored.signatures() == [NAME, "Other-1"]
    assert ignored.remove(NAME, "fixed") is True
    assert ignored.remove(NAME, "fixed") is False
    assert [(one.action, one.signature, one.why) for one in ignored.history()] == [
        ("add", NAME, "why"),
        ("add", "Other-1", ""),
        ("remove", NAME, "fixed"),
    ]
    assert ignored.path.stat().st_mode & 0o777 == 0o644


def test_the_list_is_never_empty(ignored: IgnoreList) -> None:
    """freshclam takes an empty file for an error."""
    ignored.add(NAME, "why")
    ignored.remove(NAME, "why")
    assert ignored.signatures() == []
    lines = ignored.path.read_text().splitlines()
    assert lines
    assert all(line.startswith("#") and ":" not in line for line in lines)


def test_lines_of_others_are_kept(ignored: IgnoreList) -> None:
    ignored.path.parent.mkdir()
    with_hash = f"Theirs-1:{'0' * 32}"
    ignored.path.write_bytes(b"# a comment\r\n" + with_hash.encode() + b"\r\n\n\xff\xfe\nmain.db:7:Old-1\n")
    ignored.add(NAME, "why")
    assert with_hash.encode() in ignored.path.read_bytes()
    assert b"\xff\xfe" in ignored.path.read_bytes()
    assert ignored.remove("Theirs-1", "") is True
    assert ignored.remove("Old-1", "") is True
    assert b"Theirs" not in ignored.path.read_bytes()


def test_a_damaged_history_is_no_reason_to_fail(ignored: IgnoreList, tmp_path: Path) -> None:
    ignored.add(NAME, "why")
    with (tmp_path / "state" / "ignored.jsonl").open("ab") as file:
        file.write(b'{"at": 1, "action"\n\xff\n[]\n')
    ignored.add("Other-1", "why")
    assert [one.signature for one in ignored.history()] == [NAME, "Other-1"]


HASH = "0" * 32


def test_comments_are_kept_where_they_are(ignored: IgnoreList) -> None:
    ignored.path.parent.mkdir()
    ignored.path.write_text("# ours\nA-1\n\n# payroll, ticket 7\r\nB-1\r\n  # C:C:C:C:C\nC-1\n")
    ignored.add(NAME, "why")
    ignored.remove("B-1", "")
    ignored.remove("A-1", "")
    ignored.remove("C-1", "")
    ignored.remove(NAME, "")
    text = ignored.path.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")][1:-1] == [
        "# ours",
        "# payroll, ticket 7",
        "# C:C:C:C:C",
    ]
    assert "None at the moment" in text
    ignored.add(NAME, "why")
    assert "None at the moment" not in ignored.path.read_text()
    assert ignored.path.read_text().count("Kept by clamproxy ignore") == 1


def test_a_name_with_a_hash_is_not_ignored_for_good(ignored: IgnoreList) -> None:
    """That ends when the signature changes. Both lines together would have no effect."""
    ignored.path.parent.mkdir()
    ignored.path.write_text(f"main.db:7:Old-1\nFirst-1\n{NAME}:{HASH}\n# until 27900\nTheirs-1:{HASH}\n")
    assert ignored.add(NAME, "why") is True
    assert ignored.add(NAME, "why") is False
    assert ignored.add("Old-1", "why") is False
    assert ignored.path.read_text().splitlines()[1:] == [
        "main.db:7:Old-1",
        "First-1",
        NAME,  # below a line with a hash, clamscan would refuse it
        "# until 27900",
        f"Theirs-1:{HASH}",
    ]


@pytest.mark.parametrize("room", [0, 1, 40, 90])
def test_a_full_disk_leaves_no_trace(ignored: IgnoreList, tmp_path: Path, room: int) -> None:
    ignored.add(NAME, "why")
    history = tmp_path / "state" / "ignored.jsonl"
    with limited_files(history.stat().st_size + room), pytest.raises(OSError, match="too large"):
        ignored.add("Full-1", "x" * 200)
    assert ignored.add("After-1", "why") is True
    assert [one.signature for one in ignored.history()] == [NAME, "After-1"]
    assert ignored.signatures() == [NAME, "After-1"]


def test_a_list_that_cannot_be_written_is_not_recorded(
    ignored: IgnoreList, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored.add(NAME, "why")
    with monkeypatch.context() as patch:
        patch.setattr(IgnoreList, "_write", Mock(side_effect=OSError("no space")))
        with pytest.raises(OSError, match="no space"):
            ignored.add("Full-1", "")
        with pytest.raises(OSError, match="no space"):
            ignored.remove(NAME, "")
    assert [one.signature for one in ignored.history()] == [NAME]


def test_a_line_that_was_cut_off_swallows_no_other(ignored: IgnoreList, tmp_path: Path) -> None:
    ignored.add(NAME, "why")
    with (tmp_path / "state" / "ignored.jsonl").open("ab") as file:
        file.write(b'{"at": 1, "act')
    ignored.add("Other-1", "why")
    assert [one.signature for one in ignored.history()] == [NAME, "Other-1"]


# The command


def run(tmp_path: Path, *arguments: str, directory: str = "files") -> tuple[int, str]:
    config = tmp_path / "proxy.yaml"
    config.write_text(f"files: {{directory: {directory}}}\n")
    result = CliRunner().invoke(main, ["ignore", *arguments, "--config", str(config)])
    return result.exit_code, result.output


def test_the_command_works_out_of_the_box(tmp_path: Path) -> None:
    code, output = run(tmp_path, "add", NAME, "--why", "two")
    assert (code, "client-config" in output) == (0, True)
    code, output = run(tmp_path, "add", "Other-1", "--why", "two")
    assert (code, "client-config" in output) == (0, False)
    assert (tmp_path / "files" / "site.ign2").read_text().splitlines()[1:] == [NAME, "Other-1"]
    code, output = run(tmp_path, "list")
    assert code == 0
    assert "two" in output
    assert "2 signatures ignored" in output
    assert "add" in run(tmp_path, "list", "--history")[1]


@pytest.mark.parametrize("history", [(), ("--history",)])
def test_a_reason_does_not_move_the_cursor(tmp_path: Path, history: tuple[str, ...]) -> None:
    assert run(tmp_path, "add", NAME, "--why", "false \x1b[2Jalarm")[0] == 0
    code, output = run(tmp_path, "list", *history)
    assert (code, r"false \x1b[2Jalarm" in output, "\x1b" in output) == (0, True, False)


@pytest.mark.parametrize(
    ("arguments", "directory", "code", "said"),
    [
        (("add", NAME), "files", 2, "--why"),
        (("add", "Win.*", "--why", "x"), "files", 2, "wildcards"),
        (("add", NAME, "--why", "x"), "null", 1, "files.directory is null"),
        (("list",), "null", 1, "files.directory is null"),
        (("remove", NAME), "files", 0, "isn't in the list"),
    ],
)
def test_what_the_command_says(
    tmp_path: Path, arguments: tuple[str, ...], directory: str, code: int, said: str
) -> None:
    got, output = run(tmp_path, *arguments, directory=directory)
    assert (got, said in output) == (code, True), output
    assert len(output.splitlines()) == 1 or code == 2


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("a file")
    code, output = run(tmp_path, "add", NAME, "--why", "x")
    assert (code, len(output.splitlines())) == (1, 1), output
