"""Readiness: only real reasons, each in one line."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.origin.cooldown import Cooldown, FailureKind
from clamproxy.releases.holds import FILE_NAME, Hold, hold
from clamproxy.releases.limits_in_force import read_limits
from clamproxy.web import health as health_module
from clamproxy.web.health import Health, find_problems
from tests.harness.status import StatusHarness, text_of
from tests.support.fixtures import MakeCvd
from tests.support.stored import put_cvd, stime_of

NOW = time.time()


def problems(store: Store, *, offline: bool = False, now: float = NOW) -> Health:
    return find_problems(store, offline=offline, now=now)


def note_unreachable(store: Store, at: float = NOW, failure: FailureKind = FailureKind.UNREACHABLE) -> None:
    cooldown = Cooldown(at + 5, 1, failure, "connection refused", at)
    store.set_note("cooldown/origin", asdict(cooldown))


def test_nothing_is_wrong_with_an_empty_cache(store: Store) -> None:
    """The first client that comes has it filled."""
    assert problems(store) == Health()


def test_nothing_is_left_behind(store: Store) -> None:
    problems(store)
    assert list(store.partials.iterdir()) == []


def test_the_cache_directory_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "partials", store.directory / "gone")
    (reason,) = problems(store).reasons
    assert "can't be written to" in reason


def test_the_cache_directory_is_read_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (reason,) = problems(store).reasons
    assert reason.endswith("Read-only file system")


@pytest.mark.parametrize(
    ("position", "left", "text"),
    [(4, 0, "No space left"), (7, 0, "No space left"), (4, 8000, "nearly full: 31 MiB")],
)
def test_the_disk_is_full(
    store: Store,
    make_cvd: MakeCvd,
    monkeypatch: pytest.MonkeyPatch,
    position: int,
    left: int,
    text: str,
) -> None:
    # f_bsize f_frsize f_blocks f_bfree f_bavail f_files f_ffree f_favail f_flag f_namemax
    fields = [4096, 4096, 10**7, 10**7, 10**7, 1000, 1000, 1000, 0, 255]
    fields[position] = left
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
        (reason,) = problems(store).reasons
        assert reason.startswith("degraded: ")
        assert text in reason
    put_cvd(store, 1, make_cvd(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
        assert problems(store) == Health(warnings=(reason,))  # what is cached is served


async def test_a_degraded_gateway_is_ready_and_says_so(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 1, make_cvd(1))
    assert store.condition.failed(OSError(28, "No space left on device"))
    response = await StatusHarness(store).ask("/readyz")
    assert (response.status, text_of(response).splitlines()[0]) == (200, "ok")
    assert "No space left on device" in text_of(response)


def test_a_file_system_without_inodes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [4096, 4096, 10**7, 10**7, 10**7, 0, 0, 0, 0, 255]
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert problems(store) == Health()


def test_the_origin_is_unreachable_and_nothing_is_cached(store: Store) -> None:
    note_unreachable(store)
    (reason,) = problems(store).reasons
    assert "connection refused" in reason


def test_an_unreachable_origin_stays_unreachable_after_the_short_cool_down(store: Store) -> None:
    """Else it would be ready and not ready in turns."""
    note_unreachable(store, NOW - 60)
    assert problems(store).reasons


@pytest.mark.parametrize("days", [-7, 7])
def test_old_news_of_the_origin(store: Store, days: int) -> None:
    note_unreachable(store, NOW + days * 86400)
    assert problems(store) == Health()


def test_the_origin_is_unreachable_but_there_is_something_to_serve(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 1, make_cvd(1))
    note_unreachable(store)
    health = problems(store)
    assert health.reasons == ()
    assert "connection refused" in health.warnings[0]


def test_offline_without_anything(store: Store, make_cvd: MakeCvd) -> None:
    (reason,) = problems(store, offline=True).reasons
    assert "imported" in reason
    put_cvd(store, 1, make_cvd(1))
    note_unreachable(store)
    assert problems(store, offline=True) == Health()


@pytest.mark.parametrize("note", [5, "x", [], {}, {"failure": "unreachable"}])
def test_a_note_that_is_none(store: Store, note: object) -> None:
    store.set_note("cooldown/origin", note)
    assert problems(store) == Health()


def test_a_clock_that_was_never_set(store: Store) -> None:
    (reason,) = problems(store, now=5.0).reasons
    assert "1970-01-01" in reason


def test_a_clock_before_what_was_signed(
    store: Store, make_cvd: MakeCvd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "EARLIEST", 0)
    put_cvd(store, 9, make_cvd(9))
    assert problems(store, now=stime_of(9) - 3600.0) == Health()
    (reason,) = problems(store, now=stime_of(9) - 2 * 86400.0).reasons
    assert "daily was built after that" in reason


def test_the_index_is_damaged(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 1, make_cvd(1))
    (store.directory / "index" / "cache.db").unlink()
    (store.directory / "index" / "cache.db").write_bytes(b"no database at all" * 1000)
    (warning,) = problems(store).warnings
    assert "the index of the cache is damaged" in warning
    store.mend()
    assert problems(store) == Health()


async def test_pages(store: Store) -> None:
    harness = StatusHarness(store)
    response = await harness.ask("/readyz")
    assert (response.status, text_of(response)) == (200, "ok\n")
    note_unreachable(store)
    harness.settings = Settings.model_validate({"upstream": {"offline": True}})
    harness.renew()
    response = await harness.ask("/readyz")
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    assert "imported" in text_of(response)
    values = await harness.status()
    assert values["ready"] is False
    assert [f"{line}" for line in values["problems"]] == text_of(response).splitlines()


async def test_a_cool_down_is_no_reason(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 1, make_cvd(1))
    harness = StatusHarness(store)
    harness.cooldowns = {"/daily.cvd": Cooldown(NOW + 9999, 3, FailureKind.RATE_LIMITED, "429")}
    note_unreachable(store, time.time())  # it counts for seconds only
    assert (await harness.ask("/readyz")).status == 200
    values = await harness.status()
    assert values["ready"] is True
    assert len(values["problems"]) == 1


def test_holds(store: Store, make_cvd: MakeCvd) -> None:
    """A hold is no problem until it has been forgotten, or has nothing to serve."""
    put_cvd(store, 3, make_cvd(3))
    settings, directory = Settings().releases, store.records.directory

    def warnings(now: float) -> tuple[str, ...]:
        return find_problems(store, offline=False, now=now, limits=read_limits(store, settings, now)).warnings

    hold(directory, "daily", Hold(3, NOW, "alice", "false positives"))
    assert warnings(NOW + 60) == ()
    assert warnings(NOW + 4 * 86400) == (
        "degraded: daily has been held at version 3 for 4 d, by alice: false positives; "
        "`clamproxy release daily` lifts the hold",
    )
    hold(directory, "daily", Hold(2, NOW, "alice"))
    (missing,) = warnings(NOW + 60)
    assert missing.startswith("degraded: daily is held at version 2, of which nothing is cached any more")
    (directory / FILE_NAME).write_text("{")
    (damaged,) = warnings(NOW + 60)
    assert damaged.startswith("degraded: what is held can't be read: ")
