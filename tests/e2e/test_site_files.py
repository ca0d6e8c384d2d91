"""The site's own files: the real freshclam gets them by DatabaseCustomURL, however it reaches the gateway."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clamproxy.access.users import user_line
from tests.support.freshclam import FAILED, OK, Freshclam
from tests.support.gateway import Way
from tests.support.local_databases import BROKEN_NDB, NDB, OTHER_NDB, LocalDatabases, has
from tests.support.programs import require_program
from tests.support.site import LOCALHOST, eventually, http_date

from .conftest import MakeSite

NEWEST = 6
NAME = "site.ndb"
USER, PASSWORD = "clamav", "s3cret"

type Machine = Callable[[LocalDatabases], Freshclam]


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_program("clamscan")


@pytest.fixture
def local(make_site: MakeSite, tmp_path: Path) -> LocalDatabases:
    return _opened(make_site)


def _opened(make_site: MakeSite, **sections: Any) -> LocalDatabases:
    site = make_site(**sections)
    site.publish(NEWEST)
    return LocalDatabases(site)


def _proxied(host: str) -> Machine:
    return lambda local: local.machine(local.url(NAME, host))


def _direct(local: LocalDatabases) -> Freshclam:
    return local.machine(local.url(NAME), way=Way.REVERSE)


def _by_environment(local: LocalDatabases) -> Freshclam:
    return local.machine(local.url(NAME), way=Way.ABSOLUTE)


def _private(local: LocalDatabases) -> Freshclam:
    mirror = f"http://{local.host}"
    return local.machine(local.url(NAME), way=Way.REVERSE, mirrors=[mirror], private=True)


def _on_the_reverse_port(local: LocalDatabases) -> Freshclam:
    port = local.site.gateway.reverse_port
    return local.machine(f"http://{LOCALHOST}:{port}/files/{NAME}", way=Way.REVERSE)


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(_direct, id="direct"),
        pytest.param(_proxied(LOCALHOST), id="proxy_by_address"),
        pytest.param(_proxied("localhost"), id="proxy_by_localhost"),
        pytest.param(_proxied("gateway.example.net"), id="proxy_by_a_name_that_is_configured_nowhere"),
        pytest.param(_by_environment, id="http_proxy"),
        pytest.param(_private, id="private_mirror"),
        pytest.param(_on_the_reverse_port, id="reverse_port"),
    ],
)
def test_a_machine_downloads_each_content_once(local: LocalDatabases, machine: Machine) -> None:
    local.publish(NAME, NDB)
    client = machine(local)
    for _ in range(2):
        outcome = client.run()
        assert (outcome.code, outcome.version, has(client, NAME)) == (OK, NEWEST, NDB), local.explain(outcome)
    assert (local.downloads(NAME), local.requests(NAME)) == (1, 2), local.explain()
    local.publish(NAME, OTHER_NDB)
    for _ in range(2):
        outcome = client.run()
        assert (outcome.code, has(client, NAME)) == (OK, OTHER_NDB), local.explain(outcome)
    assert (local.downloads(NAME), local.requests(NAME)) == (2, 4), local.explain()
    client = _restarted(local, client)
    assert client.run().code == OK
    assert (local.downloads(NAME), has(client, NAME)) == (2, OTHER_NDB), local.explain()


def _restarted(
    local: LocalDatabases, client: Freshclam, meanwhile: Callable[[], object] = lambda: None
) -> Freshclam:
    """Restart the gateway, which comes back on other ports; returns the same machine, configured for them."""
    gateway = local.site.gateway
    before = (gateway.port, gateway.reverse_port)
    gateway.stop()
    meanwhile()
    gateway.start()
    moved = dict(zip(map(str, before), map(str, (gateway.port, gateway.reverse_port)), strict=True))

    def now(text: str) -> str:
        return re.sub(r"(?<=:)\d+", lambda match: moved.get(match[0], match[0]), text)

    return dataclasses.replace(
        client,
        custom_urls=[now(url) for url in client.custom_urls],
        mirrors=[now(mirror) for mirror in client.mirrors],
        environment={key: now(value) for key, value in client.environment.items()},
        proxy=client.proxy and (client.proxy[0], gateway.port),
    )


def test_https_under_the_gateways_own_name(make_site: MakeSite) -> None:
    local = _opened(make_site, environment={"CLAMPROXY_TLS__NAMES": "[gateway.example.net]"})
    local.publish(NAME, NDB)
    port = local.site.gateway.port
    lines = local.site.gateway.tool("client-config", "--mode", "https", "--gateway", "gateway.example.net")
    url = f"https://gateway.example.net:{port}/files/{NAME}"
    assert lines.stdout.splitlines()[-1] == f"DatabaseCustomURL {url}"
    client = local.machine(url, way=Way.CONNECT_HTTPS)
    for _ in range(2):
        outcome = client.run()
        assert (outcome.code, has(client, NAME)) == (OK, NDB), local.explain(outcome)
    assert (local.downloads(NAME), local.requests(NAME)) == (1, 2), local.explain()


def test_users_have_to_log_in(make_site: MakeSite) -> None:
    local = _opened(make_site, access={"users": [user_line(USER, PASSWORD)]})
    local.put(NAME, NDB)
    local.wait_for(NAME, "published")
    login = [f"HTTPProxyUsername {USER}", f"HTTPProxyPassword {PASSWORD}"]
    proxied = local.machine(local.url(NAME), name="proxied", extra=login)
    outcome = proxied.run()
    assert (outcome.code, has(proxied, NAME)) == (OK, NDB), local.explain(outcome)
    mirror = f"http://{USER}:{PASSWORD}@{local.host}"
    direct = local.machine(f"{mirror}/files/{NAME}", name="direct", way=Way.REVERSE, mirrors=[mirror])
    outcome = direct.run()
    assert (outcome.code, has(direct, NAME)) == (OK, NDB), local.explain(outcome)
    stranger = local.machine(local.url(NAME), name="stranger", way=Way.REVERSE, mirrors=[mirror])
    assert (stranger.run().code == OK, has(stranger, NAME)) == (False, None)
    assert (local.ask(NAME).status, local.ask("").status) == (401, 401)


def test_the_token_of_the_status_pages_is_not_needed(make_site: MakeSite) -> None:
    local = _opened(make_site, status={"token": "0123456789abcdef"})
    local.publish(NAME, NDB)


def test_a_broken_file_is_refused_and_machines_keep_the_last_good_one(local: LocalDatabases) -> None:
    local.publish(NAME, NDB)
    client = local.machine(local.url(NAME))
    assert client.run().code == OK
    local.put(NAME, BROKEN_NDB)
    entry = local.wait_for(NAME, "refused")
    assert "line 1" in entry["reason"]
    assert entry["sha256"] == hashlib.sha256(NDB).hexdigest()
    fresh = local.machine(local.url(NAME), name="fresh")
    for machine in (client, fresh):
        assert (machine.run().code, has(machine, NAME)) == (OK, NDB), local.explain()
    assert local.site.gateway.log.count("is not published") == 1
    ready = local.site.gateway.ask("/readyz", Way.ABSOLUTE, host=local.host)
    assert ready.status == 200
    assert b"degraded: site.ndb is refused, and its last good version is served" in ready.body
    status = json.loads(local.site.gateway.ask("/status.json", Way.ABSOLUTE, host=local.host).body)
    assert [file["state"] for file in status["files"]["files"]] == ["refused"]
    metrics = local.site.gateway.ask("/metrics", Way.ABSOLUTE, host=local.host).body
    assert b'clamproxy_site_files{state="refused"} 1.0' in metrics
    local.publish(NAME, OTHER_NDB)
    assert (client.run().code, has(client, NAME)) == (OK, OTHER_NDB), local.explain()
    assert b"degraded" not in local.site.gateway.ask("/readyz", Way.ABSOLUTE, host=local.host).body


def test_a_file_that_is_gone_stops_only_the_files_after_it(local: LocalDatabases) -> None:
    local.publish("a.ndb", NDB)
    local.publish("b.ndb", OTHER_NDB)
    client = local.machine(local.url("a.ndb"), local.url("b.ndb"))
    assert client.run().code == OK
    (local.directory / "a.ndb").unlink()
    (local.directory / "b.ndb").write_bytes(NDB)
    while local.served("a.ndb") is not None or local.served("b.ndb") != NDB:
        time.sleep(0.2)
    outcome = client.run()
    assert (outcome.code, outcome.version, outcome.cooling) == (FAILED, NEWEST, False), outcome.output
    # freshclam keeps the file, and doesn't ask for those after it: docs/files.md says what to do instead.
    assert (has(client, "a.ndb"), has(client, "b.ndb")) == (NDB, OTHER_NDB)


def test_a_comment_takes_everything_back(local: LocalDatabases) -> None:
    """What to do instead of deleting a file that machines still ask for."""
    local.publish(NAME, NDB)
    client = local.machine(local.url(NAME))
    assert client.run().code == OK
    local.publish(NAME, b"# nothing any more\n")
    outcome = client.run()
    assert (outcome.code, has(client, NAME)) == (OK, b"# nothing any more\n"), local.explain(outcome)


@pytest.mark.parametrize("lead", [300, 86400])
def test_a_machine_whose_clock_is_fast_misses_nothing(local: LocalDatabases, lead: int) -> None:
    """Its file is dated by its own clock: later than what is published in the meantime."""
    local.publish(NAME, NDB)
    client = local.machine(local.url(NAME))
    assert client.run().code == OK
    ahead = time.time() + lead
    os.utime(client.databases / NAME, (ahead, ahead))
    assert client.run().code == OK
    assert local.downloads(NAME) == 1, local.explain()
    client = _restarted(local, client)  # what it sent to whom outlives the process
    local.publish(NAME, OTHER_NDB)
    outcome = client.run()
    assert (outcome.code, has(client, NAME)) == (OK, OTHER_NDB), local.explain(outcome)
    os.utime(client.databases / NAME, (ahead + 60, ahead + 60))
    assert client.run().code == OK
    assert local.downloads(NAME) == 2, local.explain()


def test_a_reload_applies_the_setting(local: LocalDatabases) -> None:
    local.publish(NAME, NDB)
    date = local.ask(NAME).headers["last-modified"]
    gateway = local.site.gateway
    before = gateway.config.read_text()
    gateway.config.write_text(yaml.safe_dump({**gateway.settings, "files": {"directory": None}}))
    os.kill(gateway.pid, signal.SIGHUP)
    eventually(lambda: local.served(NAME) is None)
    gateway.config.write_text(before)
    os.kill(gateway.pid, signal.SIGHUP)
    eventually(lambda: local.served(NAME) == NDB)
    assert local.ask(NAME).headers["last-modified"] == date


def test_without_its_records_the_gateway_publishes_anew(local: LocalDatabases) -> None:
    local.publish(NAME, NDB)
    client = local.machine(local.url(NAME), way=Way.REVERSE)
    assert client.run().code == OK
    records = local.site.gateway.directory / "cache-state"
    client = _restarted(local, client, lambda: shutil.rmtree(records))
    local.publish(NAME, OTHER_NDB)
    assert (client.run().code, has(client, NAME)) == (OK, OTHER_NDB), local.explain()


def test_what_other_programs_get(local: LocalDatabases) -> None:
    local.publish(NAME, NDB)
    digest = hashlib.sha256(NDB).hexdigest()
    assert local.ask(f"{NAME}.sha256").body == f"{digest}  {NAME}\n".encode()
    assert digest.encode() in local.ask("").body
    assert [file["sha256"] for file in json.loads(local.ask("index.json").body)["files"]] == [digest]
    whole = local.ask(NAME)
    etag, date = whole.headers["etag"], whole.headers["last-modified"]
    assert (whole.body, etag) == (NDB, f'"{digest}"')
    assert "hit" not in whole.cache_status
    assert local.ask(NAME, if_none_match=etag).status == 304
    assert local.ask(NAME, if_modified_since=date).status == 304
    part = local.ask(NAME, range="bytes=0-3", if_range=etag)
    assert (part.status, part.body) == (206, NDB[:4])
    head = local.ask(NAME, method="HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(NDB)), b"")
    assert [local.ask(name).status for name in ("none.ndb", "../proxy.yaml", "README")] == [404] * 3
    long_ago = local.ask(NAME, if_modified_since=http_date(0))
    assert (long_ago.status, long_ago.headers["last-modified"]) == (200, date)
    stats = local.site.gateway.stats()
    assert (stats["requests"], stats["hits"], stats["hit_ratio"]) == (0, 0, None)
    assert stats["file_requests"] > stats["file_downloads"] > 0
