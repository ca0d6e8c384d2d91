"""Inspection: what is wrong in the cache is found, and nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clamproxy import inspection
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.formats.signatures import InvalidObject
from clamproxy.formats.verification import verify
from clamproxy.inspection import Inspected, inspect, inspect_all, listed, quarantined, reject
from clamproxy.objects import Kind, ObjectId
from tests.support.fixtures import MakeCvd
from tests.support.forge import forge_cdiff, forge_keys, forge_sign
from tests.support.stored import cdiff, cvd, put, put_cvd, read

KEYS = forge_keys().trusted
SIGN = ObjectId("daily", 5, Kind.CVD_SIGN)
CLD = ObjectId("daily", 6, Kind.CLD)
EMPTY = cdiff(7)


@pytest.fixture
def filled(store: Store, make_cvd: MakeCvd) -> Store:
    """One object of each kind, all good, and one of another database."""
    body = make_cvd(5)
    put_cvd(store, 5, body)
    put(store, cdiff(6), forge_cdiff("daily", 6))
    put(store, EMPTY, b"")
    put(store, SIGN, forge_sign(body))
    put(store, cvd(1, "main"), make_cvd(1, database="main"))
    return store


def file_of(store: Store, object_id: ObjectId) -> Path:
    published = store.open(object_id)
    assert published is not None
    with published:
        return Path(published.path)


def spoil(store: Store, object_id: ObjectId, change: Callable[[bytes], bytes]) -> None:
    path = file_of(store, object_id)
    path.chmod(0o600)
    path.write_bytes(change(path.read_bytes()))


def look(store: Store, object_id: ObjectId) -> Inspected:
    finding = inspect(store, object_id, KEYS)
    assert finding is not None
    return finding


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda body: body[:position] + bytes([body[position] ^ 1]) + body[position:][1:]


class TestInspect:
    """One object at a time."""

    def test_all_good(self, filled: Store) -> None:
        names = listed(filled)
        assert names == sorted([cvd(5), cdiff(6), EMPTY, SIGN, cvd(1, "main")])
        seen: list[ObjectId] = []
        findings = list(inspect_all(filled, names, KEYS, seen.append))
        assert [finding.problem for finding in findings] == [None] * 5
        assert seen == names
        assert sum(finding.size for finding in findings) == sum(filled.sizes().values())

    def test_of_one_database(self, filled: Store) -> None:
        assert listed(filled, {"main"}) == [cvd(1, "main")]
        assert listed(filled, {"none"}) == []

    @pytest.mark.parametrize(
        ("object_id", "change"),
        [
            pytest.param(cvd(5), flip(-3), id="a CVD's payload"),
            pytest.param(cvd(5), flip(30), id="a CVD's header"),
            pytest.param(cvd(5), flip(505), id="what follows a CVD's header"),
            pytest.param(cvd(5), lambda body: bytes(len(body)), id="zeros"),
            pytest.param(cdiff(6), flip(-3), id="a patch's signature"),
            pytest.param(cdiff(6), flip(25), id="a patch"),
            pytest.param(SIGN, flip(2), id="a signature"),
        ],
    )
    def test_changed(self, filled: Store, object_id: ObjectId, change: Callable[[bytes], bytes]) -> None:
        spoil(filled, object_id, change)
        finding = look(filled, object_id)
        assert finding.problem
        assert finding.is_damaged
        assert "\n" not in finding.problem
        others = [one for one in listed(filled) if one != object_id]
        assert not any(finding.problem for finding in inspect_all(filled, others, KEYS))

    def test_a_signature_of_another_file(self, filled: Store) -> None:
        filled.drop(SIGN)
        put(filled, SIGN, forge_sign(b"another"))
        finding = look(filled, SIGN)
        assert (finding.problem, finding.is_damaged) == ("it signs another file", True)

    def test_a_signature_whose_file_is_not_here(self, filled: Store) -> None:
        filled.drop(cvd(5))
        assert look(filled, SIGN).problem is None

    @pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body + b"x", lambda body: b""])
    def test_of_another_length(self, filled: Store, change: Callable[[bytes], bytes]) -> None:
        spoil(filled, cvd(5), change)
        assert cvd(5) in listed(filled)
        finding = look(filled, cvd(5))
        assert (finding.size, finding.is_damaged) == (0, True)
        assert "length" in (finding.problem or "")

    def test_lost(self, filled: Store) -> None:
        file_of(filled, cvd(5)).unlink()
        assert look(filled, cvd(5)).is_damaged

    def test_another_object(self, filled: Store, make_cvd: MakeCvd) -> None:
        put(filled, cvd(8), make_cvd(9))
        assert "version 9, not 8" in (look(filled, cvd(8)).problem or "")

    def test_a_cld(self, filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        put(filled, CLD, b"no CLD")
        assert look(filled, CLD).is_damaged

    def test_dropped_meanwhile(self, filled: Store) -> None:
        names = listed(filled)
        filled.drop(cvd(5))
        assert inspect(filled, cvd(5), KEYS) is None
        assert len(list(inspect_all(filled, names, KEYS))) == len(names) - 1

    def test_dropped_while_it_is_read(self, filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def drop_first(path: Path, object_id: ObjectId, *_: object) -> None:
            filled.drop(object_id)
            verify(path, object_id, KEYS)

        monkeypatch.setattr(inspection, "verify", drop_first)
        assert look(filled, cvd(5)).problem is None

    @pytest.mark.parametrize(
        ("number", "is_damaged"), [(errno.EIO, True), (errno.EMFILE, False), (errno.EACCES, False)]
    )
    def test_unreadable(
        self, filled: Store, monkeypatch: pytest.MonkeyPatch, number: int, is_damaged: bool
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(inspection, "verify", refuse)
        finding = look(filled, cvd(5))
        assert (finding.problem, finding.is_damaged) == (f"can't be read: {os.strerror(number)}", is_damaged)
        monkeypatch.undo()
        monkeypatch.setattr(filled, "open_or_fail", refuse)
        assert look(filled, cvd(5)).is_damaged == is_damaged


class TestReject:
    """Bad objects go to the quarantine."""

    def test_rejected(self, filled: Store) -> None:
        spoil(filled, cvd(5), flip(-3))
        bad = file_of(filled, cvd(5)).read_bytes()
        finding = look(filled, cvd(5))
        assert reject(filled, finding)
        assert (filled.has(cvd(5)), filled.newest_version("daily")) == (False, None)
        (one,) = quarantined(filled)
        assert (one.name, one.size, one.reason) == ("daily-5.cvd", len(bad), finding.problem)
        assert one.path.read_bytes() == bad
        assert list((filled.directory / "build").iterdir()) == []

    def test_an_older_base_takes_its_place(self, filled: Store, make_cvd: MakeCvd) -> None:
        put_cvd(filled, 4, make_cvd(4))
        spoil(filled, cvd(5), flip(-3))
        assert reject(filled, look(filled, cvd(5)))
        assert filled.newest_version("daily") == 4

    def test_without_a_file(self, filled: Store) -> None:
        spoil(filled, cvd(5), lambda body: body[:-1])
        assert reject(filled, look(filled, cvd(5)))
        assert not filled.has(cvd(5))
        assert quarantined(filled) == []

    def test_gone_meanwhile(self, filled: Store) -> None:
        spoil(filled, cvd(5), flip(-3))
        finding = look(filled, cvd(5))
        filled.drop(cvd(5))
        assert not reject(filled, finding)
        assert quarantined(filled) == []

    def test_replaced_meanwhile(self, filled: Store, make_cvd: MakeCvd) -> None:
        spoil(filled, cvd(5), flip(-3))
        finding = look(filled, cvd(5))
        with filled.open(cvd(5)) as held:  # type: ignore[union-attr]  # whose inode number is not used again
            assert held
            filled.drop(cvd(5))
            put_cvd(filled, 5, make_cvd(5))
            assert not reject(filled, finding)
        assert look(filled, cvd(5)).problem is None

    def test_who_reads_goes_on(self, filled: Store) -> None:
        spoil(filled, cdiff(6), flip(-3))
        published = filled.open(cdiff(6))
        assert published is not None
        assert reject(filled, look(filled, cdiff(6)))
        with published:
            assert len(os.pread(published.fileno(), 2**20, 0)) == published.size

    def test_a_full_disk(self, filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        spoil(filled, cvd(5), flip(-3))
        finding = look(filled, cvd(5))
        monkeypatch.setattr(filled, "quarantine", refuse)
        assert reject(filled, finding)
        assert not filled.has(cvd(5))


class TestQuarantine:
    """What is in it."""

    def test_of_transfers(self, store: Store) -> None:
        for number in range(2):
            path = store.partials / "x"
            path.write_bytes(b"x" * (number + 1))
            store.quarantine(f"daily-{number}.cvd", path, f"reason {number}")
        assert [(one.name, one.size, one.reason) for one in quarantined(store)] == [
            ("daily-0.cvd", 1, "reason 0"),
            ("daily-1.cvd", 2, "reason 1"),
        ]

    def test_strange_files(self, store: Store) -> None:
        for name in ("a", "daily-5.cvd.x", "daily-5.cvd.5"):
            (store.directory / "quarantine" / name).write_bytes(b"x")
        (one,) = quarantined(store)
        assert (one.name, one.reason) == ("daily-5.cvd", "unknown")


def test_metadata_without_a_header(store: Store, make_cvd: MakeCvd) -> None:
    path = store.partials / "x"
    path.write_bytes(make_cvd(5))
    store.publish(cvd(5), path, Metadata(path.stat().st_size, 1.0))
    assert look(store, cvd(5)).problem is None
    assert read(store, cvd(5))


def test_problems_are_those_of_verification(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise InvalidObject("because")

    monkeypatch.setattr(inspection, "verify", refuse)
    assert look(filled, SIGN).problem == "because"
