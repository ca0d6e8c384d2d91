"""`clamproxy ignore`: a false positive is ignored by every machine after its next check."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.freshclam import OK
from tests.support.local_databases import MARKER, NDB, SIGNATURE, LocalDatabases, finds, has
from tests.support.programs import require_program
from tests.support.site import eventually

from .conftest import MakeSite

LIST = "site.ign2"


@pytest.fixture
def local(make_site: MakeSite) -> LocalDatabases:
    require_program("clamscan")
    site = make_site()
    site.publish(6)
    return LocalDatabases(site)


def ignore(local: LocalDatabases, *arguments: str) -> subprocess.CompletedProcess[str]:
    return local.site.gateway.tool("ignore", *arguments)


def wait_for_list(local: LocalDatabases) -> None:
    written = (local.directory / LIST).read_bytes()
    eventually(lambda: local.served(LIST) == written)


def test_a_false_positive_is_gone_after_one_check(local: LocalDatabases, tmp_path: Path) -> None:
    added = ignore(local, "add", f"{SIGNATURE}.UNOFFICIAL", "--why", "our own\ttool")
    assert added.returncode == 0, added.stderr
    assert ".UNOFFICIAL" in added.stderr
    wait_for_list(local)
    client = local.machine(local.url(LIST))
    (client.databases / "bad.ndb").write_bytes(NDB)
    files = [client.databases / "bad.ndb", client.databases / LIST]
    assert finds(files[:1], tmp_path)
    outcome = client.run()
    assert outcome.code == OK, local.explain(outcome)
    assert not finds(files, tmp_path)

    assert ignore(local, "remove", SIGNATURE, "--why", "fixed").returncode == 0
    wait_for_list(local)
    outcome = client.run()
    assert outcome.code == OK, local.explain(outcome)  # with an empty file it would be 6
    assert SIGNATURE.encode() not in (has(client, LIST) or b"")
    assert finds(files, tmp_path)
    assert (local.downloads(LIST), local.requests(LIST)) == (2, 2), local.explain()

    history = json.loads(ignore(local, "list", "--history", "--json").stdout)
    assert [(change["action"], change["signature"], change["why"]) for change in history] == [
        ("add", SIGNATURE, "our own tool"),
        ("remove", SIGNATURE, "fixed"),
    ]
    assert json.loads(ignore(local, "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("name", "content", "reported"),
    [
        ("bad.ndb", NDB, SIGNATURE),
        ("bad.ldb", f"Site.Logical-1;Engine:51-255,Target:0;0;{MARKER.hex()}\n".encode(), "Site.Logical-1"),
        (
            "bad.yar",
            b'rule Site_Rule { strings: $a = "%b" condition: $a }\n' % MARKER,
            "YARA.Site_Rule.UNOFFICIAL",
        ),
    ],
)
def test_clamscan_ignores_the_name_that_it_reports(
    local: LocalDatabases, tmp_path: Path, name: str, content: bytes, reported: str
) -> None:
    bad = tmp_path / name
    bad.write_bytes(content)
    assert finds([bad], tmp_path)
    for other in ("Site.Test", "Test.Marker-1", reported.lower(), f"{reported}0"):
        assert ignore(local, "add", other, "--why", "another name").returncode == 0
    assert finds([bad, local.directory / LIST], tmp_path)
    assert ignore(local, "add", reported, "--why", "test").returncode == 0
    assert not finds([bad, local.directory / LIST], tmp_path)


def test_client_config_names_the_list_first(local: LocalDatabases) -> None:
    local.publish("a.ndb", NDB)
    assert ignore(local, "add", SIGNATURE, "--why", "test").returncode == 0
    wait_for_list(local)
    lines = local.site.gateway.tool("client-config", "--gateway", "gw").stdout.splitlines()
    base = f"DatabaseCustomURL http://gw:{local.site.gateway.port}/files"
    assert lines[-2:] == [f"{base}/{LIST}", f"{base}/a.ndb"]
