"""Notices of a real gateway: from its start to its reload, over a restart, and by command."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clamproxy.cache.store import Store
from clamproxy.site_files import Catalog, SiteFile, State
from clamproxy.site_files.publisher import place_of
from tests.support.gateway import Gateway, Way
from tests.support.site import eventually
from tests.support.webhook_server import Hook, webhook_server

SECRET = "T0000/B0000/VERYSECRET"


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook_server() as hook:
        yield hook


def settings_for(hook: Hook, **upstream: Any) -> dict[str, dict[str, Any]]:
    webhook = {"url": f"{hook.url}/{SECRET}", "form": "json"}
    return {
        "upstream": {"url": "http://127.0.0.1:9", **upstream},
        "versions": {"dns": False},
        "notify": {"webhooks": [webhook], "after": "1s", "ignore": ["ClamproxyDiskFull"]},
    }


def stages(hook: Hook) -> list[str]:
    return [f"{one['name']} {one['stage']}" for post in hook.posts for one in post["alerts"]]


def test_from_start_to_reload(tmp_path: Path, hook: Hook) -> None:
    """A gateway with nothing to serve says so, once; it says so no more when that is over."""
    with Gateway(tmp_path, settings_for(hook, offline=True)) as gateway:
        assert eventually(lambda: stages(hook) == ["ClamproxyNotReady begun"]), gateway.log
        assert eventually(lambda: "Notice sent" in gateway.log), gateway.log  # and it knows that
        assert gateway.stop() == 0
        gateway.start()
        # It has looked again, and has nothing new to say.
        shown = json.loads(gateway.ask("/status.json", Way.REVERSE).body)["notices"]
        assert [one["name"] for one in shown["alerts"]] == ["ClamproxyNotReady"]
        assert [(one["failures"], one["reason"]) for one in shown["targets"]] == [(0, None)]
        gateway.settings["upstream"]["offline"] = False
        gateway.config.write_text(yaml.safe_dump(gateway.settings))
        os.kill(gateway.pid, signal.SIGHUP)
        assert eventually(lambda: len(stages(hook)) > 1), gateway.log
        assert stages(hook) == ["ClamproxyNotReady begun", "ClamproxyNotReady over"]
        assert SECRET not in gateway.log


def test_a_stop_does_not_wait_for_a_server_that_hangs(tmp_path: Path, hook: Hook) -> None:
    hook.answers = [0]
    with Gateway(tmp_path, settings_for(hook, offline=True)) as gateway:
        assert eventually(lambda: hook.posts), gateway.log
        assert gateway.stop() == 0
        # If it had waited, the notice would have failed.
        assert "can't be sent" not in gateway.log


def test_the_command(tmp_path: Path, hook: Hook) -> None:
    gateway = Gateway(tmp_path, settings_for(hook, offline=True))
    Store(gateway.cache).close()
    sent = gateway.tool("notify", "test")
    assert (sent.returncode, sent.stdout) == (0, f"json webhook at {hook.url}: sent\n")
    assert hook.posts[0]["test"] is True
    hook.answers, hook.body = [500, 500], f"/{SECRET}".encode()
    failed = gateway.tool("notify", "test")
    assert (failed.returncode, failed.stdout) == (
        1,
        f"json webhook at {hook.url}: failed: the server answered 500 Internal Server Error\n",
    )
    listed = gateway.tool("notify")
    assert listed.returncode == 0
    assert "yes     ClamproxyNotReady" in listed.stdout
    assert "no      ClamproxyPeerDown" in listed.stdout
    assert "ignored ClamproxyDiskFull" in listed.stdout
    assert f"Notices go to: json webhook at {hook.url}\n" in listed.stdout
    assert SECRET not in listed.stdout + failed.stdout + failed.stderr
    values = json.loads(gateway.tool("notify", "--json").stdout)
    (not_ready,) = [one for one in values["rules"] if one["name"] == "ClamproxyNotReady"]
    assert (not_ready["after"], len(not_ready["alerts"])) == (1.0, 1)


def test_the_command_knows_of_refused_files(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, {})
    Store(gateway.cache).close()
    place = place_of(gateway.directory / "cache-state")
    place.mkdir(parents=True)
    Catalog({"a.ndb": SiteFile("a.ndb", State.REFUSED, 1.0, "line 3")}).save(place)
    rules = json.loads(gateway.tool("notify", "--json").stdout)["rules"]
    (refused,) = [one for one in rules if one["name"] == "ClamproxySiteFileRefused"]
    assert [(one["subject"], one["text"]) for one in refused["alerts"]] == [("a.ndb", "a.ndb: line 3")]


def test_without_targets(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, {})
    Store(gateway.cache).close()
    assert "Nobody is told" in gateway.tool("notify").stdout
    failed = gateway.tool("notify", "test")
    assert (failed.returncode, failed.stderr) == (
        1,
        "clamproxy: there is no target: set notify.webhooks, or mail.server and mail.recipients.\n",
    )
