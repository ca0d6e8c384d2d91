"""The notifier with real records and a real web server: what is sent, what survives, and who sends it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.settings import Settings
from clamproxy.leases.directory_leases import DIRECTORY, DirectoryLeases
from clamproxy.notices.notifier import RETRIES, Notifier
from clamproxy.notices.report import read_report
from clamproxy.storage.records import Records
from clamproxy.threads import Writer
from tests.support.clock import Clock
from tests.support.figures import figures
from tests.support.webhook_server import Hook, webhook_server

NOT_READY = figures(ready=False, problems=["the clock is wrong"])
CALM = figures()


class NotifierHarness:
    """A state directory with one notifier, and another one if a test wants that."""

    def __init__(self, directory: Path, hooks: list[Hook], end: ExitStack) -> None:
        self.directory, self._end = directory, end
        self.clock = Clock()
        self.now: Mapping[str, Any] = CALM
        """The present figures."""
        self.settings = settings_for(*hooks)
        self.notifier = self.make()

    def make(self, **notify: Any) -> Notifier:
        """Another process's notifier, as far as the directory can tell."""
        writer = Writer()
        self._end.callback(writer.close)
        settings = self.settings.model_copy(
            update={"notify": self.settings.notify.model_copy(update=notify)} if notify else {}
        )

        async def read() -> Mapping[str, Any]:
            return self.now

        leases = DirectoryLeases(self.directory)
        made = Notifier(settings, read, Records(self.directory), writer, self.clock, leases)
        self._end.callback(made.stop)
        return made

    def restart(self, **notify: Any) -> None:
        self.notifier.stop()
        self.notifier = self.make(**notify)

    async def pass_time(self, minutes: int, now: Mapping[str, Any] | None = None, every: int = 1) -> None:
        """Look every minute, or more rarely."""
        self.now = now or self.now
        for _ in range(0, minutes, every):
            self.clock.now += 60 * every
            await self.notifier.look()

    @property
    def report(self) -> dict[str, Any]:
        return read_report(Records(self.directory), self.settings)


def settings_for(*hooks: Hook) -> Settings:
    webhooks = [{"url": f"{hook.url}/x", "form": "json"} for hook in hooks]
    return Settings.model_validate({"notify": {"webhooks": webhooks}})


def stages(hook: Hook) -> list[list[str]]:
    return [[one["stage"] for one in post["alerts"]] for post in hook.posts]


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook_server() as hook:
        yield hook


@pytest.fixture
def harness(tmp_path: Path, hook: Hook) -> Iterator[NotifierHarness]:
    with ExitStack() as end:
        yield NotifierHarness(tmp_path, [hook], end)


async def test_from_beginning_to_end(harness: NotifierHarness, hook: Hook) -> None:
    await harness.pass_time(30, NOT_READY)
    assert stages(hook) == [["begun"]]
    (alert,) = harness.report["alerts"]
    assert (alert["name"], alert["notified"]) == ("ClamproxyNotReady", 1)
    await harness.pass_time(30, CALM)
    assert stages(hook) == [["begun"], ["over"]]
    assert harness.report["alerts"] == []
    (target,) = harness.report["targets"]
    assert (target["failures"], target["reason"]) == (0, None)


async def test_a_restart_in_between(harness: NotifierHarness, hook: Hook) -> None:
    await harness.pass_time(15, NOT_READY)
    harness.restart()
    await harness.pass_time(15)
    harness.restart()
    await harness.pass_time(30, CALM)
    assert stages(hook) == [["begun"], ["over"]]


async def test_after_a_restart_nothing_is_over_before_it_is_known(
    harness: NotifierHarness, hook: Hook
) -> None:
    peer = {"name": "gw2:8080", "up": False, "reason": "Connection refused"}
    harness.restart(after=0.0)
    await harness.pass_time(2, figures(peers=[peer]))
    harness.restart(after=0.0)
    await harness.pass_time(2, figures(peers=[{**peer, "up": None}]))
    await harness.pass_time(2, figures(peers=[peer]))
    assert stages(hook) == [["begun"]]
    await harness.pass_time(2, figures(peers=[{**peer, "up": True}]))
    assert stages(hook) == [["begun"], ["over"]]


async def test_several_processes_send_one(harness: NotifierHarness, hook: Hook) -> None:
    other = harness.make()
    harness.now = NOT_READY
    for _ in range(20):
        harness.clock.now += 60
        await harness.notifier.look()
        await other.look()
    assert stages(hook) == [["begun"]]
    # The one that sends ends, and the other one goes on from where it was.
    harness.notifier.stop()
    for _ in range(20):
        harness.clock.now += 60
        await other.look()
    assert stages(hook) == [["begun"]]
    harness.now = CALM
    for _ in range(20):
        harness.clock.now += 60
        await other.look()
    assert stages(hook) == [["begun"], ["over"]]


async def test_a_target_that_fails(
    harness: NotifierHarness, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hook.answers = [500] * 4
    await harness.pass_time(12, NOT_READY)
    assert len(hook.posts) == 2  # the first, and one after a minute
    (target,) = harness.report["targets"]
    assert (target["failures"], target["reason"]) == (2, "the server answered 500 Internal Server Error")
    await harness.pass_time(60)
    assert len(hook.posts) == 5  # after 2, 4 and 8 minutes more
    (target,) = harness.report["targets"]
    assert (target["failures"], target["reason"]) == (0, None)
    told = [one.getMessage() for one in caplog.records if one.name.startswith("clamproxy.notices")]
    name = target["name"]
    assert told == [
        f"A notice can't be sent, {name}: the server answered 500 Internal Server Error",
        f"Notice sent, {name}.",
    ]


async def test_a_target_that_fails_for_long_is_tried_hourly(harness: NotifierHarness, hook: Hook) -> None:
    hook.answers = [500] * 1000
    await harness.pass_time(12 * 60, NOT_READY, every=10)
    before = len(hook.posts)
    await harness.pass_time(24 * 60, every=10)
    assert 20 <= len(hook.posts) - before <= 24 * 3600 / RETRIES.longest


async def test_one_target_does_not_hold_up_the_other(tmp_path: Path, hook: Hook) -> None:
    with webhook_server() as bad, ExitStack() as end:
        bad.answers = [500] * 100
        harness = NotifierHarness(tmp_path, [bad, hook], end)
        await harness.pass_time(30, NOT_READY)
        assert stages(hook) == [["begun"]]
        bad.answers = []
        await harness.pass_time(30)
        assert stages(bad)[-1] == ["begun"]
        assert stages(hook) == [["begun"]]


async def test_a_new_target_is_told_what_lasts(tmp_path: Path, hook: Hook) -> None:
    with webhook_server() as new, ExitStack() as end:
        harness = NotifierHarness(tmp_path, [hook], end)
        await harness.pass_time(30, NOT_READY)
        harness.settings = settings_for(hook, new)
        harness.restart()
        await harness.pass_time(2)
        assert (stages(hook), stages(new)) == ([["begun"]], [["begun"]])


async def test_what_is_ignored_from_now_on_is_over(harness: NotifierHarness, hook: Hook) -> None:
    await harness.pass_time(30, NOT_READY)
    harness.restart(ignore=("ClamproxyNotReady",))
    await harness.pass_time(30)
    assert stages(hook) == [["begun"], ["over"]]


async def test_a_wrong_name_to_ignore(harness: NotifierHarness, caplog: pytest.LogCaptureFixture) -> None:
    harness.restart(ignore=("ClamproxyDiskFull", "ClamproxyDisk"))
    harness.notifier.start()
    assert "notify.ignore: there are no notices ClamproxyDisk;" in caplog.text


async def test_without_targets_the_alerts_are_known(tmp_path: Path) -> None:
    with ExitStack() as end:
        harness = NotifierHarness(tmp_path, [], end)
        await harness.pass_time(5, NOT_READY)
        (alert,) = harness.report["alerts"]
        assert (alert["since"], alert["notified"]) == (harness.clock.now - 4 * 60, 0)


async def test_a_damaged_state_is_a_new_one(harness: NotifierHarness, hook: Hook) -> None:
    Records(harness.directory).set_note("notices/chronicle", {"episodes": 7})
    await harness.pass_time(15, NOT_READY)
    assert stages(hook) == [["begun"]]


async def test_a_directory_that_cannot_be_written_to(harness: NotifierHarness, hook: Hook) -> None:
    """The state can't be kept, but the notice about it goes out."""
    (harness.directory / DIRECTORY / "notices.lock").mkdir(parents=True)
    (harness.directory / "counters.sqlite").mkdir()
    await harness.pass_time(30, NOT_READY)
    assert stages(hook) == [["begun"]]
