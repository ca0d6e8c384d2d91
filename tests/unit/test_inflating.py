"""What a few bytes can make of themselves: each kind of growth ends at its limit."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import pytest

from clamproxy.formats import cdiff, cld, members, patching
from clamproxy.formats.cdiff import CdiffContainer, iter_commands, verify_cdiff
from clamproxy.formats.cvd import read_info
from clamproxy.formats.inflating import inflated
from clamproxy.formats.patching import apply_commands, patch_info
from clamproxy.formats.signatures import FilePart, InvalidObject
from clamproxy.objects import Kind, ObjectId
from tests.support.forge import forge_database, forge_info, forge_keys, forge_patch, seal_cdiff

KEYS = forge_keys().trusted
PATCH = ObjectId("daily", 2, Kind.CDIFF)
CLD = ObjectId("daily", 2, Kind.CLD)
INFO = forge_info("daily", 1, {"daily.ndb": b"x\n"})


def inflate(data: bytes, limit: int) -> bytes:
    return inflated(FilePart(io.BytesIO(data), 0, len(data)), limit, "thing").read()


def check(stream: bytes) -> None:
    verify_cdiff(io.BytesIO(seal_cdiff(2, stream)), PATCH, KEYS)


def apply(directory: Path, script: bytes) -> None:
    file = io.BytesIO(seal_cdiff(2, gzip.compress(script)))
    apply_commands(iter_commands(file, CdiffContainer.parse(file), "daily"), directory)


def patched_info(script: bytes) -> bytes:
    file = io.BytesIO(seal_cdiff(2, gzip.compress(script)))
    return patch_info(INFO, iter_commands(file, CdiffContainer.parse(file), "daily"), "daily")


@pytest.mark.parametrize("size", [0, 1, 65_536, 1_000_000])
def test_the_last_byte_that_is_allowed(size: int) -> None:
    data = gzip.compress(bytes(size))
    assert inflate(data, size) == bytes(size)
    if size:
        with pytest.raises(InvalidObject, match=f"thing of more than {size - 1} bytes"):
            inflate(data, size - 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        gzip.compress(b"x")[:-1],
        b"\x1f\x8b\x08\x08" + bytes(6) + b"a name that never ends" * 1000,
        zlib.compress(b"x"),
    ],
)
def test_no_complete_stream(data: bytes) -> None:
    with pytest.raises(InvalidObject, match="thing is not a complete gzip stream"):
        inflate(data, 100)


@pytest.mark.parametrize("surplus", [b"\0", gzip.compress(b""), gzip.compress(b"") * 1000])
def test_one_stream_alone(surplus: bytes) -> None:
    with pytest.raises(InvalidObject, match="extra bytes after the gzip stream of the thing"):
        inflate(gzip.compress(b"x") + surplus, 100)


# Patches


def test_a_long_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdiff, "SCRIPT_LIMIT", 1000)
    check(gzip.compress(b"#" * 999 + b"\n"))
    with pytest.raises(InvalidObject, match="script of more than 1000 bytes"):
        check(gzip.compress(b"#" * 1000 + b"\n"))


def test_a_script_of_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdiff, "COMMAND_LIMIT", 10)
    check(gzip.compress(b"#\n" * 10))
    with pytest.raises(InvalidObject, match="script of more than 10 lines"):
        check(gzip.compress(b"#\n" * 11))


def test_a_script_of_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "STEP_LIMIT", 3)
    step = b"OPEN daily.%d\nCLOSE\n"
    apply(tmp_path, b"".join(step % number for number in range(3)))
    with pytest.raises(InvalidObject, match="script of more than 3 steps"):
        apply(tmp_path, b"".join(step % number for number in range(4)))


@pytest.mark.parametrize(
    "step",
    [b"OPEN daily.ndb\nXCHG 1 x x\nCLOSE\n", b"MOVE daily.ndb daily.hdb 1 x 2 x\n"],
    ids=["edits", "moves"],
)
def test_a_script_that_rewrites_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: bytes
) -> None:
    monkeypatch.setattr(patching, "REWRITE_LIMIT", 1000)
    (tmp_path / "daily.ndb").write_bytes(b"x\n" * 200)
    (tmp_path / "daily.hdb").write_bytes(b"")
    apply(tmp_path, step * 2)
    with pytest.raises(InvalidObject, match="script rewrites more than 1000 bytes"):
        apply(tmp_path, step * 3)


def test_an_info_that_is_rewritten_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    step = b"OPEN daily.info\nADD x\nCLOSE\n"
    monkeypatch.setattr(patching, "REWRITE_LIMIT", 4 * len(INFO))
    assert patched_info(step * 3) == INFO + b"x\n" * 3
    with pytest.raises(InvalidObject, match="script rewrites more"):
        patched_info(step * 5)


def test_an_info_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "INFO_LIMIT", len(INFO) + 10)
    for script in (
        b"OPEN daily.info\nADD 0123456789\nCLOSE\n",
        b"OPEN daily.info\nADD %b\nCLOSE\n" % (b"x" * 999),
    ):
        with pytest.raises(InvalidObject, match=r"longer than|adds more than"):
            patched_info(script)


# Databases


def test_a_database_of_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MEMBER_LIMIT", 10)
    few, many = ({f"daily.{number}": b"" for number in range(count)} for count in (8, 9))
    for files in (few, many):
        payload = members.open_payload(io.BytesIO(forge_database("daily", 2, files)))
        if files is few:
            assert len(list(members.iter_members(payload))) == 10
        else:
            with pytest.raises(InvalidObject, match="payload of more than 10 files"):
                list(members.iter_members(payload))


def test_a_database_without_end_is_read_no_further_than_its_info(monkeypatch: pytest.MonkeyPatch) -> None:
    data = forge_database("daily", 2, {"daily.ndb": bytes(10_000_000)})
    monkeypatch.setattr(members, "UNPACKED_LIMIT", 200_000)
    assert read_info(io.BytesIO(data), "daily").startswith(b"ClamAV-VDB:")


def test_patches_that_make_a_database_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = {"daily.ndb": b"x\n"}, {"daily.ndb": b"x\n" + b"y" * 100_000 + b"\n"}
    script = b"OPEN daily.ndb\nADD " + b"y" * 100_000 + b"\nCLOSE\n"
    base, patch = forge_database("daily", 1, before), forge_patch("daily", 2, before, after, script)

    def build(name: str) -> None:
        (workspace := tmp_path / name).mkdir()
        target = tmp_path / f"{name}.cld"
        cld.build_cld(io.BytesIO(base), [io.BytesIO(patch)], CLD, workspace, target, KEYS, level=0)

    build("within")
    monkeypatch.setattr(cld, "UNPACKED_LIMIT", 100_000)
    with pytest.raises(InvalidObject, match="patch to version 2: it leads to 3 files"):
        build("beyond")
    assert not (tmp_path / "beyond.cld").exists()
