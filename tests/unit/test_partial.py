"""Partial files: claimed by one process, resumed by a later one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from clamproxy.cache.partial import (
    LONGEST_KEPT,
    Arriving,
    BusyError,
    PartialFile,
    Validators,
    peek,
    sweep,
)
from clamproxy.objects import ObjectId
from tests.support.fixtures import Child
from tests.support.stored import cdiff

VALIDATORS = Validators(10, '"etag"', "Sun, 06 Nov 1994 08:49:37 GMT")
PATCH = cdiff(5)


def interrupted(directory: Path, data: bytes = b"0123", validators: Validators = VALIDATORS) -> Path:
    """Leave what a transfer leaves that was cut off."""
    partial = PartialFile.claim(directory, PATCH)
    partial.begin(validators)
    partial.append(data)
    partial.release()
    return partial.path


def reclaim(directory: Path) -> PartialFile:
    partial = PartialFile.claim(directory, PATCH)
    partial.release()
    return partial


def test_a_new_partial_file_is_empty(tmp_path: Path) -> None:
    partial = PartialFile.claim(tmp_path, PATCH)
    assert (partial.have, partial.validators, partial.resumable, partial.complete) == (0, None, False, False)
    assert partial.path.stat().st_mode & 0o777 == 0o600
    partial.release()


def test_a_partial_file_grows(tmp_path: Path) -> None:
    partial = PartialFile.claim(tmp_path, PATCH)
    partial.begin(VALIDATORS)
    assert not partial.resumable
    partial.append(b"01234")
    partial.append(b"")
    assert (partial.have, partial.resumable, partial.complete) == (5, True, False)
    partial.append(b"56789")
    assert partial.complete
    assert partial.read_beginning(3) == b"012"
    assert partial.read_beginning(99) == b"0123456789"
    partial.release()


def test_beginning_anew_forgets_what_was_there(tmp_path: Path) -> None:
    partial = PartialFile.claim(tmp_path, PATCH)
    partial.begin(VALIDATORS)
    partial.append(b"0123456789")
    partial.begin(Validators(3, '"other"', None))
    assert (partial.have, partial.complete, partial.path.stat().st_size) == (0, False, 0)
    partial.append(b"abc")
    assert partial.complete
    partial.release()


def test_without_a_length_the_end_gives_one(tmp_path: Path) -> None:
    partial = PartialFile.claim(tmp_path, PATCH)
    partial.begin(Validators(None, '"etag"', None))
    partial.append(b"0123")
    assert not partial.complete
    assert not partial.resumable
    partial.end()
    assert partial.complete
    partial.release()


def test_an_empty_object_is_complete_at_once(tmp_path: Path) -> None:
    partial = PartialFile.claim(tmp_path, PATCH)
    partial.begin(Validators(0, None, None))
    assert partial.complete
    partial.release()


def test_a_partial_file_is_resumed(tmp_path: Path) -> None:
    interrupted(tmp_path)
    partial = PartialFile.claim(tmp_path, PATCH)
    assert (partial.have, partial.validators, partial.resumable) == (4, VALIDATORS, True)
    partial.append(b"456789")
    assert partial.path.read_bytes() == b"0123456789"
    partial.release()


@pytest.mark.parametrize(
    ("validators", "field"),
    [
        (VALIDATORS, '"etag"'),
        (Validators(10, None, "Sun, 06 Nov 1994 08:49:37 GMT"), "Sun, 06 Nov 1994 08:49:37 GMT"),
        pytest.param(Validators(10, 'W/"etag"', "date"), "date", id="13.1.5: no weak tag"),
        (Validators(10, 'W/"etag"', None), None),
        (Validators(10, None, None), None),
        pytest.param(Validators(None, '"etag"', "date"), None, id="without a size nothing tells the end"),
    ],
)
def test_what_if_range_asks_for(validators: Validators, field: str | None) -> None:
    assert validators.if_range == field


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "null",
        "5",
        '["size"]',
        '{"size": 10}',
        '{"size": "x", "etag": null, "last_modified": null}',
        '{"size": null, "etag": "e", "last_modified": null}',
        '{"size": -1, "etag": "e", "last_modified": null}',
        pytest.param('{"size": 3, "etag": "e", "last_modified": null}', id="more is there than there can be"),
        "\ud800",
    ],
)
def test_without_a_sound_sidecar_a_partial_file_begins_anew(tmp_path: Path, text: str | None) -> None:
    sidecar = interrupted(tmp_path).with_suffix(".json")
    if text is None:
        sidecar.unlink()
    else:
        sidecar.write_bytes(text.encode("utf-8", "surrogatepass"))
    partial = reclaim(tmp_path)
    assert (partial.have, partial.resumable, partial.complete) == (0, False, False)


def test_a_sidecar_with_a_number_for_a_tag_begins_anew(tmp_path: Path) -> None:
    sidecar = interrupted(tmp_path).with_suffix(".json")
    sidecar.write_text(json.dumps({"size": 10, "etag": 5, "last_modified": None}))
    assert not reclaim(tmp_path).resumable


def test_a_second_claim_is_busy_until_the_first_is_released(tmp_path: Path) -> None:
    first = PartialFile.claim(tmp_path, PATCH)
    with pytest.raises(BusyError, match=r"daily-5\.cdiff"):
        PartialFile.claim(tmp_path, PATCH)
    other = PartialFile.claim(tmp_path, ObjectId.parse("daily-6.cdiff"))
    other.release()
    first.release()
    PartialFile.claim(tmp_path, PATCH).release()


CLAIM = """
import sys
from pathlib import Path
from clamproxy.objects import ObjectId
from clamproxy.cache.partial import BusyError, PartialFile
try:
    partial = PartialFile.claim(Path(sys.argv[1]), ObjectId.parse("daily-5.cdiff"))
except BusyError:
    print("busy")
else:
    print(partial.have)
"""


def test_another_process_is_kept_out_and_then_resumes(tmp_path: Path, child: Child) -> None:
    interrupted(tmp_path)
    partial = PartialFile.claim(tmp_path, PATCH)
    result = child(CLAIM, tmp_path)
    assert (result.stdout, result.stderr) == ("busy\n", "")
    partial.append(b"45")
    partial.release()
    result = child(CLAIM, tmp_path)
    assert (result.stdout, result.stderr) == ("6\n", "")


def test_a_failed_claim_leaves_no_descriptor(tmp_path: Path) -> None:
    first = PartialFile.claim(tmp_path, PATCH)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with pytest.raises(BusyError):
            PartialFile.claim(tmp_path, PATCH)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    first.release()


def test_a_name_that_was_published_meanwhile_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file lost its name between open and lock: what is locked is nobody's any more."""
    import fcntl

    flock = fcntl.flock

    def slow_flock(descriptor: int, operation: int) -> None:
        (tmp_path / "daily-5.cdiff.part").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow_flock)
    with pytest.raises(BusyError):
        PartialFile.claim(tmp_path, PATCH)


def test_a_reader_goes_on_after_release(tmp_path: Path) -> None:
    partial = PartialFile.claim(tmp_path, PATCH)
    partial.begin(VALIDATORS)
    partial.append(b"0123")
    reader = os.dup(partial.descriptor)
    partial.discard()
    partial.release()
    assert os.pread(reader, 10, 0) == b"0123"
    os.close(reader)
    assert not list(tmp_path.iterdir())


# Others look at it


def followed(directory: Path) -> tuple[PartialFile, PartialFile]:
    """One process's file, and the same as another process sees it."""
    owned = PartialFile.claim(directory, PATCH)
    seen = PartialFile.open(directory, PATCH)
    assert not seen.lock()
    return owned, seen


def test_another_process_sees_what_arrives(tmp_path: Path) -> None:
    owned, seen = followed(tmp_path)
    seen.look()
    assert (seen.have, seen.validators) == (0, None)
    owned.begin(VALIDATORS)
    owned.append(b"0123")
    seen.look()
    assert (seen.have, seen.validators, seen.read_beginning(9)) == (4, VALIDATORS, b"0123")
    assert peek(owned.path) == Arriving(4, 10, is_running=True)
    owned.append(b"45")
    seen.look()
    assert seen.have == 6
    owned.release()
    assert peek(owned.path) == Arriving(6, 10, is_running=False)
    assert (seen.lock(), seen.take(), seen.have) == (True, True, 6)
    seen.release()


def test_what_is_left_from_before_is_not_shown_yet(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    os.utime(path, (1, 1))
    owned, seen = followed(tmp_path)
    seen.look()
    assert (owned.have, seen.have) == (4, 0)
    owned.append(b"45")
    seen.look()
    assert seen.have == 6
    seen.release()
    owned.release()


def test_beginning_anew_leaves_what_others_read(tmp_path: Path) -> None:
    owned, seen = followed(tmp_path)
    owned.begin(VALIDATORS)
    owned.append(b"0123")
    seen.look()
    owned.begin(Validators(10, '"other"', None))
    owned.append(b"abcd")
    assert (owned.path.read_bytes(), seen.read_beginning(9)) == (b"abcd", b"0123")
    assert seen.lock()  # so it is noticed
    assert not seen.take()
    seen.release()
    with pytest.raises(BusyError):
        PartialFile.claim(tmp_path, PATCH)
    owned.release()
    assert reclaim(tmp_path).have == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["daily-5.cdiff.json", "daily-5.cdiff.part"]


@pytest.mark.parametrize("begun", [False, True])
def test_how_it_ended_is_seen_by_those_that_waited(tmp_path: Path, *, begun: bool) -> None:
    owned, seen = followed(tmp_path)
    if begun:
        owned.begin(VALIDATORS)
        owned.append(b"0123")
    owned.leave({"reason": "why"})
    owned.release()
    assert (seen.lock(), seen.ending) == (True, {"reason": "why"})
    seen.release()
    assert len(list(tmp_path.iterdir())) == (2 if begun else 0)
    assert reclaim(tmp_path).have == (4 if begun else 0)


def test_the_sidecar_goes_with_a_file_that_was_moved_away(tmp_path: Path) -> None:
    partial = PartialFile.claim(tmp_path, PATCH)
    partial.begin(VALIDATORS)
    partial.path.rename(tmp_path / "published")
    partial.release()
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_the_sweep_takes_what_nobody_will_resume(tmp_path: Path) -> None:
    old, young = tmp_path / "daily-5.cvd.part", tmp_path / "daily-6.cvd.part"
    for path, age in ((old, LONGEST_KEPT + 60), (young, LONGEST_KEPT - 60)):
        alone = path.with_name(path.name.replace("daily", "main")).with_suffix(".json")
        for file in (path, path.with_suffix(".json"), alone):
            file.write_text("x")
            moment = time.time() - age
            os.utime(file, (moment, moment))
    (tmp_path / "directory").mkdir()
    os.utime(tmp_path / "directory", (1, 1))
    sweep(tmp_path, lambda _: False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "daily-6.cvd.part",
        "daily-6.cvd.json",
        "main-6.cvd.json",
        "directory",
    }
