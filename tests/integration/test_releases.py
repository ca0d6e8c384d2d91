"""The line of releases that other tests rely on: a base and its cdiffs are the next CVD."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from urllib.request import urlopen

import pytest

from clamproxy.formats.verification import verify
from clamproxy.objects import Kind, ObjectId
from tests.support.origin import OriginServer
from tests.support.releases import Members, Releases, joined

FIRST, LAST = 27_000, 27_012


@pytest.fixture(scope="module")
def releases() -> Releases:
    return Releases(first=FIRST, filler=20_000, patch_filler=500)


def unpacked(payload: bytes) -> Members:
    """The members of a tar archive as ClamAV writes it (docs/protocol.md 4.4)."""
    members, offset = {}, 0
    while offset < len(payload) and payload[offset]:
        name = payload[offset : offset + 100].rstrip(b"\0").decode()
        size = int(payload[offset + 124 : offset + 136].rstrip(b"\0 "), 8)
        members[name] = payload[offset + 512 : offset + 512 + size]
        offset += 512 + size + -size % 512
    return members


def script_of(cdiff: bytes) -> bytes:
    header, stream = re.match(rb"ClamAV-Diff:\d+:\d+:", cdiff), cdiff.rpartition(b":")[0]
    assert header is not None
    return gzip.decompress(stream[header.end() :])


def patched(members: Members, script: bytes) -> Members:
    """A patcher that is as simple as it can be (docs/protocol.md 5.2)."""
    files = {name: content.splitlines() for name, content in members.items()}
    edits: dict[int, bytes | None] = {}
    opened, added = "", list[bytes]()
    for line in script.splitlines():
        command, _, rest = line.partition(b" ")
        if command == b"OPEN":
            opened, edits, added = rest.decode(), {}, []
        elif command == b"ADD":
            added.append(rest)
        elif command in (b"DEL", b"XCHG"):
            number, prefix, *new = rest.split(b" ", 2)
            assert files[opened][int(number) - 1].startswith(prefix)
            edits[int(number)] = new[0] if new else None
        elif command == b"CLOSE":
            after = [edits.get(number, old) for number, old in enumerate(files.get(opened, []), 1)]
            files[opened] = [new for new in after if new is not None] + added
        elif command == b"MOVE":
            move(files, *rest.split(b" "))
        else:
            assert command == b"UNLINK"
            del files[rest.decode()]
    return {name: joined(lines) for name, lines in files.items()}


def move(files: dict[str, list[bytes]], *words: bytes) -> None:
    source, target, start, first, end, last = words
    lines, moved = files[source.decode()], slice(int(start) - 1, int(end))
    assert lines[moved][0].startswith(first)
    assert lines[moved][-1].startswith(last)
    files[target.decode()] += lines[moved]
    del lines[moved]


def test_each_cdiff_leads_to_the_next_cvd(releases: Releases) -> None:
    state = unpacked(gzip.decompress(releases.cvd(FIRST)[512:]))
    for version in range(FIRST + 1, LAST + 1):
        state = patched(state, script_of(releases.cdiff(version)))
        assert state == unpacked(gzip.decompress(releases.cvd(version)[512:])), version
        assert state == releases.members(version)


def test_every_command_occurs(releases: Releases) -> None:
    scripts = b"".join(releases.script(version) for version in range(FIRST + 1, LAST + 1))
    found = {line.partition(b" ")[0] for line in scripts.splitlines()}
    assert found == {b"OPEN", b"CLOSE", b"ADD", b"DEL", b"XCHG", b"MOVE", b"UNLINK"}


@pytest.mark.parametrize("version", [FIRST + 1, FIRST + 4, LAST])
def test_all_files_are_well_signed(releases: Releases, tmp_path: Path, version: int) -> None:
    path = tmp_path / "object"
    for kind, body in ((Kind.CVD, releases.cvd(version)), (Kind.CDIFF, releases.cdiff(version))):
        path.write_bytes(body)
        verify(path, ObjectId("daily", version, kind), releases.keys.trusted)


def test_sizes(releases: Releases) -> None:
    assert len(releases.members(FIRST)["daily.hsb"]) == pytest.approx(20_000, rel=0.02)
    assert len(releases.script(FIRST + 1)) > 500
    small, large = Releases(database="main"), Releases(database="main", filler=100_000)
    assert len(large.cvd(1)) - len(small.cvd(1)) == pytest.approx(75_000, rel=0.05)


def test_headers(releases: Releases) -> None:
    header = releases.cld_header(LAST)
    assert (len(header), header.rstrip()) == (512, releases.members(LAST)["daily.info"].splitlines()[0])
    assert releases.cvd(LAST)[:512].rstrip().endswith(str(releases.stime(LAST)).encode())
    assert releases.stime(FIRST) < releases.stime(FIRST + 1)


def test_published(origin: OriginServer) -> None:
    releases = Releases(database="test", first=1)
    releases.publish(origin, 3, base=1)
    with urlopen(f"{origin.url}/test.cvd") as answer:
        assert answer.read() == releases.cvd(1)
    for name in ("test-1.cvd.sign", "test-2.cdiff", "test-3.cdiff", "test-3.cdiff.sign"):
        with urlopen(f"{origin.url}/{name}") as answer:
            assert answer.status == 200


def test_nothing_before_the_first(releases: Releases) -> None:
    with pytest.raises(ValueError, match=str(FIRST)):
        releases.cvd(FIRST - 1)
