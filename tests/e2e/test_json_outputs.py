"""What programs read is what docs/schemas says: every key is described, and every described key occurs.

A gateway is brought into many states, and each output is looked at in each of them.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.fleet.agent import Agent
from clamproxy.fleet.observer import Holding, Knowledge
from clamproxy.fleet.story import Addition, VersionChange
from clamproxy.fleet.table import MachineRow, Table
from clamproxy.proxy.log_format import JsonFormatter
from tests.support import faults
from tests.support.big import Forgery, begun_download, open_forged_site
from tests.support.disk import open_disk
from tests.support.freshclam import OK
from tests.support.gateway import Way, connectable, free_ports
from tests.support.local_databases import BROKEN_NDB, NDB, SIGNATURE, LocalDatabases
from tests.support.origin import OriginServer
from tests.support.schemas import NAMES, Schemas, load, parts
from tests.support.site import LOCALHOST, Site, eventually, flipped, open_site, signed
from tests.support.stored import DAY
from tests.support.webhook_server import Hook, webhook_server

from .test_status_site import direct

pytestmark = pytest.mark.timeout(400)  # the first test waits for all states

COMMANDS = {
    "stats": ("stats",),
    "ls": ("ls",),
    "fleet": ("fleet",),
    "verify": ("verify",),
    "config-show": ("config", "show"),
    "hold": ("hold",),
    "files": ("files",),
    "ignore-list": ("ignore", "list"),
    "ignore-history": ("ignore", "list", "--history"),
    "notify": ("notify",),
}
PAGES = {"status": "/status.json", "fleet-page": "/fleet.json", "files-index": "/files/index.json"}
OLD_UUID = "8dee0a1c-ce2c-4b3a-b0f4-5a1f6e8a7a11"
OLD_AGENT = f"ClamAV/0.103.0 (OS: linux-gnu, ARCH: x86_64, CPU: x86_64, UUID: {OLD_UUID})"
CLONED_UUID = "8dee0a1c-ce2c-4b3a-b0f4-5a1f6e8a7a12"

type Outputs = list[tuple[str, str, Any]]
"""The state, the name of the schema, and what was printed."""


def printed(site: Site, *command: str) -> Any:
    result = site.gateway.tool(*command, "--json")
    # fleet and stats of a cache that isn't there yet end with a line and no JSON.
    return json.loads(result.stdout) if result.stdout else None


def page(site: Site, path: str) -> Any:
    answer = direct(site.gateway.port, path)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def story(site: Site, uuid: str) -> Outputs:
    return [
        ("a story", "fleet-show", printed(site, "fleet", "show", uuid)),
        ("a story", "fleet-show", page(site, f"/fleet.json?machine={uuid}")),
    ]


def look(site: Site, state: str) -> Outputs:
    """All outputs of a running gateway."""
    found = [(state, name, printed(site, *command)) for name, command in COMMANDS.items()]
    found.append((state, "doctor", printed(site, "doctor", "--gateway", f"{LOCALHOST}:{site.gateway.port}")))
    found += [(state, name, page(site, path)) for name, path in PAGES.items()]
    return [output for output in found if output[2] is not None]


def log_of(site: Site) -> Outputs:
    lines = [line for line in site.gateway.log.splitlines() if line.startswith("{")]
    return [("log", "log", json.loads(line)) for line in lines]


def empty(directory: Path) -> Outputs:
    with closing(open_site(directory, upstream={"offline": True}, fleet={"enabled": False})) as site:
        return look(site, "empty and offline")


def busy(directory: Path, feed: OriginServer) -> Outputs:
    """Hits and misses, machines that are behind or in trouble, cool-downs, a rejected file, feeds."""
    options: dict[str, Any] = {"feeds": {"hosts": [LOCALHOST]}, "log": {"format": "json"}}
    with closing(open_site(directory, **options)) as site:
        site.publish(6)
        assert site.client("fresh").run().code == OK
        assert site.client("behind", local=5).run().code == OK
        feed.put("my.ndb", b"My.First:0:*:6d79")
        site.gateway.ask("/my.ndb", Way.ABSOLUTE, host=f"{LOCALHOST}:{feed.port}")
        site.origin.put("test-7.cdiff", flipped(signed("test-6.cdiff")))
        site.origin.rule("/daily.cvd", faults.status(429, retry_after="3600"))
        for path in ("/test-7.cdiff", "/daily.cvd", "/daily-1.cdiff"):
            site.gateway.ask(path, extra={"User-Agent": OLD_AGENT})
        site.gateway.ask("/", Way.ABSOLUTE, host="other.example.com")
        with suppress(OSError), site.gateway.connection(Way.CONNECT_HTTP) as connection:
            assert connection.sock is not None
            connection.sock.sendall(b"\x16\x03\x01 no handshake")  # the log names the client
            connection.sock.recv(100)
        _note_stuck_patch(site)
        assert eventually(lambda: len(page(site, "/fleet.json")["machines"]) > 2)
        assert eventually(lambda: page(site, "/status.json")["quarantine"])
        return [*look(site, "busy"), *story(site, OLD_UUID), *log_of(site)]


def _note_stuck_patch(site: Site) -> None:
    """As after some failures within a minute."""
    with closing(Store(site.gateway.cache, tidy=False)) as store:
        now = time.time()
        store.set_note("stuck/test-8.cdiff", {"failures": 5, "since": now - 600, "last": now})


def managed(directory: Path, hook: Hook) -> Outputs:
    """What an administrator arranges: labels, limits, files, notices, a delay, a hold, and other gateways."""
    directory.mkdir()
    labels = directory / "labels.txt"
    labels.write_text(f"{LOCALHOST} = web01, servers\n")
    (gone,) = free_ports(1)
    with closing(open_site(directory / "peer")) as peer:
        peer.publish(6)
        assert peer.client("theirs").run().code == OK
        others = [{"url": f"http://{LOCALHOST}:{port}"} for port in (peer.gateway.port, gone)]
        options: dict[str, Any] = {
            "fleet": {"labels": str(labels), "peers": others},
            "upstream": {"rate_limit": "100MB/s"},
            "serving": {"rate_limit_per_client": "100MB/s"},
            "notify": {"webhooks": [{"url": hook.url, "form": "json"}], "after": "1s"},
            "releases": {"delay": {"test": "1h"}},
            "log": {"format": "json"},
        }
        with closing(open_site(directory / "own", **options)) as site:
            assert site.gateway.tool("ca", "init").returncode == 0
            assert site.gateway.tool("notify", "test").returncode == 0
            _delay(site)
            _note_clones(site)
            _publish_files(site)
            assert eventually(
                lambda: [one["up"] for one in page(site, "/status.json")["peers"]] == [True, False]
            )
            assert eventually(lambda: any(post["alerts"] for post in hook.posts))
            found = look(site, "delayed")
            found += [
                ("all gateways", "fleet", printed(site, "fleet", "--all-gateways")),
                ("all gateways", "fleet-page", page(site, "/fleet.json?gateway=all")),
            ]
            assert site.gateway.tool("hold", "test", "--why", "false positives").returncode == 0
            found += look(site, "held")
            # A copy, as notices go on.
            return [*found, *log_of(site), *(("posted", "notice", post) for post in list(hook.posts))]


def _delay(site: Site) -> None:
    """A machine gets version 4, and version 6 is held back."""
    site.publish(4)
    assert site.client("own").run().code == OK
    site.publish(6)

    def is_delayed() -> bool:
        site.gateway.ask("/test.cvd", method="HEAD", user_agent="curl/8.5.0")
        return bool(printed(site, "hold"))

    assert eventually(is_delayed), site.gateway.log


def _note_clones(site: Site) -> None:
    """As after some days on which two machines with the same UUID fetched each release."""
    now = time.time()
    with Table(site.gateway.directory / "cache-state").writing() as rows:
        for address, delay in (("192.0.2.1", 0), ("192.0.2.2", 3600)):
            agent = Agent(CLONED_UUID, "1.4.6", "Linux", "x86_64")
            known = Knowledge({"test": Holding(6, now)}, None)
            rows.put([MachineRow(agent, address, now - 5 * DAY, now, known)])
            fetched = [
                VersionChange("test", version, int(now) - (7 - version) * DAY + delay, is_fetched=True)
                for version in (3, 4, 5, 6)
            ]
            rows.stories.add({(CLONED_UUID, address): Addition(changes=fetched)}, now)


def _publish_files(site: Site) -> None:
    """A file that is published, one that is refused, one that is skipped, and ignored signatures."""
    local = LocalDatabases(site)
    local.put("notes.txt", b"nothing")
    local.put("broken.ndb", BROKEN_NDB)
    local.publish("site.ndb", NDB)
    for command in (("add", "--why", "a mistake"), ("remove",), ("add", "--why", "a false positive")):
        assert site.gateway.tool("ignore", *command, SIGNATURE).returncode == 0
    with (local.directory / "site.ign2").open("a") as file:
        file.write("By.Hand-1\n")
    local.wait_for("broken.ndb", "refused")
    local.wait_for("site.ign2", "published")


def under_way(directory: Path, forgery: Forgery) -> Outputs:
    with closing(open_forged_site(directory, forgery)) as site:
        site.origin.rate = len(forgery.body) / 20
        with begun_download(site.gateway):
            return look(site, "a transfer is under way")


def damaged(directory: Path) -> Outputs:
    """Files that are not what they were: found, and moved away."""
    with closing(open_site(directory)) as site:
        site.publish(6)
        assert site.client("fresh").run().code == OK
        assert eventually(lambda: printed(site, "ls")["count"])
        site.gateway.kill()
        name = printed(site, "ls")["objects"][0]["name"]
        path = site.gateway.cache / "objects" / "test" / name
        path.write_bytes(flipped(path.read_bytes()))
        commands = (("verify",), ("verify", "--repair", "--no-fetch"), ("ls",))
        found = [("damaged", command[0], printed(site, *command)) for command in commands]
        database = site.gateway.cache / "index" / "cache.db"
        database.write_bytes(bytes(database.stat().st_size))
        return [*found, ("damaged", "stats", printed(site, "stats"))]


def read_only(directory: Path) -> Outputs:
    directory.mkdir()
    with open_disk(directory / "disk") as disk:
        places: dict[str, Any] = {
            "cache": {"directory": str(disk.path / "cache")},
            "state": {"directory": str(disk.path / "state")},
        }
        with closing(open_site(directory / "site", **places)) as site:
            site.publish(6)
            assert site.client("fresh").run().code == OK
            site.gateway.stop()
            disk.make_read_only()
            site.gateway.start()
            assert eventually(lambda: connectable(site.gateway.port))
            return look(site, "read-only")


def rare_lines() -> Outputs:
    """Lines of the log that a sound gateway doesn't write."""
    record = logging.LogRecord("clamproxy", logging.ERROR, "", 0, "It failed.", (), None)
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        record.exc_info = sys.exc_info()
    record.client = ("192.0.2.1", 4711)
    return [("rare", "log", json.loads(JsonFormatter().format(record)))]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, forgery: Forgery) -> Outputs:
    root = tmp_path_factory.mktemp("outputs")
    with closing(OriginServer()) as feed, webhook_server() as hook:
        found = [*managed(root / "managed", hook)]
        found += [*empty(root / "empty"), *busy(root / "busy", feed), *under_way(root / "under-way", forgery)]
    return [*found, *damaged(root / "damaged"), *read_only(root / "read-only"), *rare_lines()]


def test_readers_find_what_they_are_promised(outputs: Outputs) -> None:
    schemas = Schemas(strict=False)
    assert [error for _, name, value in outputs for error in schemas.errors(name, value)] == []


def test_every_key_and_value_is_described(outputs: Outputs) -> None:
    """If not: add it in docs/schemas, to "properties" and "required" (CONTRIBUTING.md)."""
    schemas = Schemas(strict=True)
    found = {f"{state}: {error}" for state, name, value in outputs for error in schemas.errors(name, value)}
    assert sorted(found) == []


def test_every_described_key_occurs(outputs: Outputs) -> None:
    """If not: it was removed, which must not be, or this module needs another state."""
    schemas = Schemas(strict=False)
    for _, name, value in outputs:
        schemas.errors(name, value)
    assert sorted(schemas.described() - schemas.seen) == []


def test_a_key_that_is_not_described_is_found() -> None:
    value = {"objects": [], "count": 0, "bytes": 0, "feeds": {"count": 0, "bytes": 0, "files": 1}}
    assert Schemas(strict=False).errors("ls", value) == []
    (error,) = Schemas(strict=True).errors("ls", value)
    assert "'files'" in error
    del value["count"]
    assert len(Schemas(strict=False).errors("ls", value)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_everything_has_a_description(name: str) -> None:
    for path, part in parts(load(name)):
        for key, one in part.get("properties", {}).items():
            assert one.get("description") or "$ref" in one or one["type"] == "object", f"{path}: {key}"
        assert set(part.get("required", ())) <= part.get("properties", {}).keys(), path
