"""Holding a database: what each kind of client does with it, with the real freshclam (docs/releases.md)."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import pytest
import yaml

from clamproxy.objects import STANDARD_DATABASES
from clamproxy.releases.holds import FILE_NAME
from tests.support.disk import open_disk
from tests.support.dns_server import free_address, open_dns
from tests.support.freshclam import OK, Freshclam, Outcome
from tests.support.gateway import Gateway, Way
from tests.support.origin import OriginServer
from tests.support.scenes import EXTRA, NEWEST, PROBE, ROOMY, explain, hold, shown, version_of, whole
from tests.support.site import (
    Site,
    build_time,
    eventually,
    http_date,
    open_site,
    resolver_of,
    settings_for,
    signed,
)

from .conftest import MakeSite

HELD = 4
MINE = "mine.hdb"
LOCALS = (None, 1, 3, 4, 5, 6)
"""The versions that a client has before: none, some below the held one, that one, some above."""


class Mode(StrEnum):
    """How a client learns versions, and what it takes."""

    HTTP = "http"
    GATEWAY_DNS = "gateway's DNS"
    AHEAD_BY_ONE = "ClamAV's DNS, one ahead"
    AHEAD_BY_TWO = "ClamAV's DNS, two ahead"
    AHEAD_BY_FIVE = "ClamAV's DNS, five ahead"
    PRIVATE = "PrivateMirror"
    WHOLE_HTTP = "ScriptedUpdates no, HTTP"
    WHOLE_DNS = "ScriptedUpdates no, ClamAV's DNS"


AHEAD = {Mode.AHEAD_BY_ONE: 1, Mode.AHEAD_BY_TWO: 2, Mode.AHEAD_BY_FIVE: 5}
"""By how many versions ClamAV's DNS is ahead of the held one."""


class HoldingSite(Site):
    """A site whose gateway is a name server as well, and holds database test at a version."""

    resolver: str

    def hold(self, version: int, *arguments: str) -> None:
        result = self.gateway.tool("hold", "test", str(version), "--why", "false positives", *arguments)
        assert result.returncode == 0, result.stderr
        assert eventually(lambda: shown(self.gateway) == version), self.gateway.log

    def release(self) -> None:
        result = self.gateway.tool("release", "test")
        assert result.returncode == 0, result.stderr

    def announced(self) -> str:
        """What the gateway's DNS says about database test."""
        query = dns.message.make_query(EXTRA, "TXT")
        answer = dns.query.udp(query, self.resolver, 20, 53)
        return answer.answer[0][0].strings[0].decode().partition(":")[0] if answer.answer else ""

    def client_in(self, mode: Mode, name: str, local: int | None) -> Freshclam:
        """A client, with a database of its own after the held one: it shows whether the run goes on."""
        client = self.client(
            name,
            Way.REVERSE if mode is Mode.PRIVATE else Way.CONNECT_HTTP,
            local=local,
            use_dns=mode is Mode.WHOLE_DNS or mode in AHEAD,
            private=mode is Mode.PRIVATE,
            scripted=mode not in (Mode.WHOLE_HTTP, Mode.WHOLE_DNS),
            database=None,
            extra=[*(f"ExcludeDatabase {name}" for name in STANDARD_DATABASES), "ExtraDatabase test"],
        )
        if mode is Mode.GATEWAY_DNS:
            client.resolver = self.resolver
        mine = self.directory / MINE
        mine.write_bytes(b"44d88612fea8a8f36de82e1278abb02f:68:Eicar-Test\n")
        client.custom_urls = [f"file://{mine}"]
        return client


def open_holding(directory: Path, base: int, **sections: dict[str, Any]) -> HoldingSite:
    """A site whose cache has CVD `base` and all patches up to 6, and holds version 4."""
    origin, fake_dns = OriginServer(), open_dns()
    settings = settings_for(origin, fake_dns, delta=ROOMY, **sections)
    resolver_of(fake_dns)
    address = free_address()
    gateway = Gateway(directory / "gateway", settings, modes=[f"dns@{address}:53"])
    site = HoldingSite(directory, origin, fake_dns, gateway)
    site.resolver = address
    gateway.start()
    hold(site, base)
    site.hold(HELD)
    return site


class Table:
    """What is expected, for a cache whose newest CVD up to the held version is `base`."""

    def __init__(self, base: int) -> None:
        self.base = base

    def version(self, mode: Mode, local: int | None) -> int:
        """The version that a client ends with. Without patches, no more than a cached CVD is there for it."""
        is_whole = mode in (Mode.WHOLE_HTTP, Mode.WHOLE_DNS)
        return max(local or 0, self.base if is_whole else HELD)

    def goes_on(self, mode: Mode, local: int | None) -> bool:
        """Whether the run goes on to other databases.

        It ends at a client that is two or more versions behind DNS, and has the held version or a newer one.
        """
        return local is None or local < HELD or HELD + AHEAD.get(mode, 0) - local < 2


@pytest.fixture(scope="module", params=[2, HELD], ids=["patches lead to it", "its CVD is cached"])
def holding(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HoldingSite, Table]]:
    site = open_holding(tmp_path_factory.mktemp("holding"), request.param)
    yield site, Table(request.param)
    site.close()


def run(client: Freshclam) -> tuple[Outcome, bool]:
    """The outcome, and whether the run went on to the last database."""
    mine = client.databases / MINE
    mine.unlink(missing_ok=True)
    return client.run(), mine.exists()


def wholes(site: Site, after: int) -> list[str]:
    """The whole files that were sent since the log had that length."""
    return re.findall(r"GET /test\.c[vl]d \S+ \S+ 200 .*", site.gateway.log[after:])


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("local", LOCALS)
def test_table(holding: tuple[HoldingSite, Table], tmp_path: Path, mode: Mode, local: int | None) -> None:
    """No cool-down, no download again and again, no way back: whatever a client has and how it asks."""
    site, table = holding
    site.dns.versions["test"] = HELD + AHEAD.get(mode, NEWEST - HELD)
    client = site.client_in(mode, str(tmp_path / "client"), local)
    version = table.version(mode, local)
    outcome, goes_on = run(client)
    assert (outcome.code, outcome.version, outcome.cooling) == (OK, version, False), explain(site, outcome)
    assert goes_on == table.goes_on(mode, local), explain(site, outcome)
    logged = len(site.gateway.log)
    outcome, goes_on = run(client)
    assert (outcome.code, outcome.version, outcome.cooling) == (OK, version, False), explain(site, outcome)
    assert goes_on == table.goes_on(mode, outcome.version), explain(site, outcome)
    assert not wholes(site, logged)
    assert site.announced() == str(HELD)


@pytest.mark.parametrize("express", [True, False], ids=["lane", "no lane"])
def test_answers(tmp_path: Path, express: bool) -> None:
    """What a gateway that holds says to each kind of request, and how fast it notices the end."""
    site = open_holding(tmp_path, 2, serving={"express": express})
    try:
        gateway = site.gateway
        for path in ("/test-3.cdiff", "/test-4.cdiff", "/test-4.cdiff.sign", "/test-2.cvd.sign"):
            assert gateway.ask(path).status == 200
        for path in ("/test-5.cdiff", "/test-6.cdiff", "/test-6.cdiff.sign", "/test-6.cvd.sign"):
            assert [gateway.ask(path).status for _ in range(2)] == [404, 404], path
        assert "(held back)" in gateway.log
        assert shown(gateway, "/test.cld") == HELD
        assert version_of(whole(gateway, "/test.cld").body) == HELD
        # cvdupdate gets no version below the held one, which could replace a newer one that it has.
        assert gateway.ask("/test.cvd?version=6").status == 404
        # Nor do programs that don't know of patches.
        answer = gateway.ask("/test.cvd", extra={"user_agent": "curl/8.5.0"})
        assert (answer.status, b"no whole file of version 4" in answer.body) == (503, True)
        assert gateway.ask("/test.cvd", if_modified_since=http_date(build_time(5))).status == 304
        assert gateway.ask("/test.cvd", if_modified_since=http_date(build_time(6) + 10)).status == 304
        assert site.announced() == str(HELD)
        assert eventually(lambda: "test is held at version 4, by " in gateway.log)
        # The gateway itself has what is new, and gives it out at once.
        site.origin.refuse()
        site.release()
        assert eventually(lambda: shown(gateway) == NEWEST, every=0.05), gateway.log
        assert gateway.ask("/test-6.cdiff").body == signed("test-6.cdiff")
        assert eventually(lambda: site.announced() == str(NEWEST)), gateway.log
        assert eventually(lambda: "test is no longer held, by " in gateway.log)
        outcome = site.client("after", local=HELD).run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(site, outcome)
        # A patch that the lane has ready is hidden by a hold all the same.
        site.hold(HELD)
        assert gateway.ask("/test-6.cdiff").status == 404
    finally:
        site.close()


def test_a_newer_machine_behind_the_same_address_stays(tmp_path: Path) -> None:
    """Only the machine that was just given the held CVD is given it again; libcurl takes any older one."""
    site = open_holding(tmp_path, HELD)
    try:
        assert site.gateway.ask("/test.cvd").status == 200
        for since, status in {build_time(HELD + 1): 304, build_time(HELD) - 1: 200}.items():
            answer = site.gateway.ask("/test.cvd", if_modified_since=http_date(since))
            assert (answer.status, answer.headers.get("last-modified") is None) == (status, False), since
        again = [site.gateway.ask("/test.cvd", if_modified_since=http_date(build_time(HELD))) for _ in "ab"]
        assert [(one.status, one.headers.get("last-modified") is None) for one in again] == [
            (200, True),
            (304, False),
        ]
    finally:
        site.close()


def kept(gateway: Gateway) -> set[int]:
    """The versions of the cached CVDs."""
    return {int(version) for version in re.findall(r"^test +cvd +(\d+) ", gateway.tool("ls").stdout, re.M)}


def test_restart_and_purge(tmp_path: Path) -> None:
    """A hold is state. What it needs can be purged, and is then missing; but nothing newer is given out."""
    site = open_holding(tmp_path, 2)
    try:
        gateway = site.gateway
        gateway.stop()
        gateway.start()
        assert shown(gateway) == HELD
        assert gateway.ask("/test-5.cdiff").status == 404
        # A newer base doesn't take the held version away.
        assert gateway.tool("prefetch", "--database", "test").returncode == 0, gateway.log
        gateway.stop()
        gateway.start()
        assert eventually(lambda: kept(gateway) == {2, NEWEST}), gateway.tool("ls")
        assert shown(gateway) == HELD
        outcome = site.client("new").run()
        assert (outcome.code, outcome.version) == (OK, HELD), explain(site, outcome)
        assert kept(gateway) == {2, NEWEST}
        assert gateway.tool("purge", "--yes").returncode == 0
        answer = gateway.ask("/test.cvd")
        assert (answer.status, b"held back" in answer.body) == (503, True), gateway.log
        assert b"of which nothing is cached any more" in gateway.ask("/readyz", Way.REVERSE).body
        site.release()
        assert eventually(lambda: shown(gateway) == NEWEST), gateway.log
    finally:
        site.close()


def test_the_command(tmp_path: Path) -> None:
    site = open_holding(tmp_path, 3)
    try:
        tool = site.gateway.tool
        listed = tool("hold").stdout
        assert re.fullmatch(r"test: held at version 4 since .+, by \w+: false positives\n", listed), listed
        for arguments, reason in (
            (("test", "2"), "test 2 can't be held: the cache has neither its CVD nor all patches"),
            (("test", "7"), "test 7 can't be held: that version isn't known (the newest is 6)"),
            (("main", "62"), "main 62 can't be held"),
            (("tset",), "there is no database tset here"),
        ):
            refused = tool("hold", *arguments)
            assert (refused.returncode, reason in refused.stderr) == (1, True), refused
            assert refused.stderr.count("\n") == 1
        # Without a version: the one that machines get now.
        assert "test is held at version 4 from now on (it was held at 4)" in tool("hold", "test").stderr
        (held,) = json.loads(tool("hold", "--json").stdout)
        assert (held["database"], held["version"], held["why"]) == ("test", 4, "")
        assert json.loads(tool("stats", "--json").stdout)["holds"]["test"]["version"] == 4
        site.release()
        assert eventually(lambda: shown(site.gateway) == NEWEST), site.gateway.log
        # Below what a machine has: allowed, and said.
        assert site.client("ahead", local=5).run().version == NEWEST
        assert eventually(lambda: "test 6" in tool("fleet").stdout), tool("fleet")
        told = tool("hold", "test", "5").stderr
        assert "1 machine already has a newer version, and will keep it" in told
        assert eventually(lambda: shown(site.gateway) == 5), site.gateway.log
        site.client("behind", local=4).run()
        expected = "test is held at version 5: 1 machine with it, 1 with a newer one, 0 with an older"
        assert eventually(lambda: expected in tool("fleet").stdout), tool("fleet")
        assert "2 up to date" in tool("fleet").stdout
        site.release()
        again = tool("release", "test")
        assert (again.returncode, again.stderr) == (1, "clamproxy: test is not held.\n")
        assert "nothing is held" in tool("hold").stderr
    finally:
        site.close()


def test_a_file_of_holds_that_is_lost(tmp_path: Path) -> None:
    """A running gateway writes it anew. Without one, nobody guesses what is held; one command repairs it."""
    site = open_holding(tmp_path, 3)
    try:
        gateway = site.gateway
        tool, file = gateway.tool, gateway.directory / "cache-state" / FILE_NAME
        losses: list[Callable[[Path], object]] = [Path.unlink, damage]
        for number, lose in enumerate(losses, 2):
            lose(file)
            # An unrelated change at the same time hands on what is held.
            gateway.settings["versions"]["refresh"] = f"{number}s"
            gateway.config.write_text(yaml.safe_dump(gateway.settings))
            assert "was reloaded" in tool("reload").stdout
            assert eventually(lambda: "held at version 4" in tool("hold").stdout), gateway.log
            assert shown(gateway) == HELD
        gateway.stop()
        damage(file)
        with pytest.raises(
            RuntimeError, match="is damaged; `clamproxy hold DATABASE VERSION` writes a new one"
        ):
            gateway.start()
        bundle, mirror = str(tmp_path / "bundle"), str(tmp_path / "mirror")
        for command in (
            ("hold",),
            ("hold", "test"),
            ("release", "test"),
            ("mirror", mirror, "--database", "test"),
            ("mirror", mirror, "--database", "test", "--cached-only"),
            ("export", bundle),
            ("import", "-"),
        ):
            refused = tool(*command)
            assert (refused.returncode, refused.stdout) == (1, ""), refused
            assert (refused.stderr.count("\n"), "is damaged" in refused.stderr) == (1, True), refused
        assert "whatever else was held no longer is" in tool("hold", "test", "4").stderr
        gateway.start()
        assert shown(gateway) == HELD
        exported = tool("export", bundle).stderr
        assert "test is exported up to version 4: newer ones are held back." in exported
    finally:
        site.close()


def test_a_full_disk(tmp_path: Path) -> None:
    """The way out that docs/releases.md tells: the brake can be pulled all the same."""
    with open_disk(tmp_path / "disk") as disk:
        site = open_site(tmp_path, delta=ROOMY, cache={"directory": str(disk.path / "cache")})
        try:
            hold(site, 3)
            disk.fill()
            refused = site.gateway.tool("hold", "test", "4")
            assert (refused.returncode, "No space left on device" in refused.stderr) == (1, True), refused
            assert shown(site.gateway) == NEWEST
            assert site.gateway.tool("purge", "--yes", "--kind", "sign").returncode == 0
            assert site.gateway.tool("hold", "test", "4").returncode == 0
            assert eventually(lambda: shown(site.gateway) == HELD), site.gateway.log
        finally:
            site.close()


def damage(file: Path) -> None:
    file.write_text("{")


def test_a_delay_and_its_canaries(make_site: MakeSite) -> None:
    """Machines get the release before until the delay is over; canaries get the new one at once."""
    delayed = {"delay": {"test": "1h"}, "canaries": ["127.0.0.7/32"]}
    site = make_site(delta=ROOMY, releases=delayed)
    hold(site, 4, 4)  # the first version that a gateway hears of isn't held back
    assert site.client("first").run().version == 4
    site.publish(5)
    for name in ("test-5.cdiff", "test-5.cdiff.sign"):
        assert eventually(lambda name=name: site.origin.count(f"/{name}")), site.gateway.log  # type: ignore[misc]
    assert shown(site.gateway) == 4
    assert site.gateway.ask("/test-5.cdiff").status == 404
    assert eventually(lambda: "test version 5 is held back for " in site.gateway.log)
    canary = site.gateway.ask("/test.cvd", range=PROBE, source="127.0.0.7")
    assert version_of(canary.body) == 5
    assert site.gateway.ask("/test-5.cdiff", source="127.0.0.7").body == signed("test-5.cdiff")
    assert site.gateway.ask("/test-5.cdiff").status == 404  # also with the canary's answer ready
    # A hold applies to canaries as well, and to nobody once it is lifted.
    assert site.gateway.tool("hold", "test").returncode == 0

    def seen_by_canary() -> int | None:
        return version_of(site.gateway.ask("/test.cvd", range=PROBE, source="127.0.0.7").body)

    assert eventually(lambda: seen_by_canary() == 4), site.gateway.log
    assert site.gateway.tool("release", "test").returncode == 0
    assert eventually(lambda: seen_by_canary() == 5), site.gateway.log
    # What was seen when is known after a restart, too; and a reload may end the delay.
    site.gateway.stop()
    site.gateway.start()
    assert shown(site.gateway) == 4
    site.gateway.settings["releases"]["delay"] = {}
    site.gateway.config.write_text(yaml.safe_dump(site.gateway.settings))
    os.kill(site.gateway.pid, signal.SIGHUP)
    assert eventually(lambda: shown(site.gateway) == 5), site.gateway.log
    assert site.client("last", local=4).run().version == 5


@pytest.mark.parametrize("base", [2, HELD])
def test_children_of_a_gateway_that_holds(tmp_path: Path, make_site: MakeSite, base: int) -> None:
    """They ask ClamAV's DNS, which is ahead, and serve what their parent shows them."""
    parent = open_holding(tmp_path, base)
    try:
        upstream = {"url": f"http://127.0.0.1:{parent.gateway.port}"}
        child = make_site(upstream=upstream, versions={"nameservers": [parent.dns.nameserver]}, delta=ROOMY)
        for local in (None, 3, HELD, 6):
            outcome = child.client(f"client-{local}", local=local).run()
            expected = (OK, max(local or 0, HELD), False)
            assert (outcome.code, outcome.version, outcome.cooling) == expected, explain(child, outcome)
        parent.release()
        assert eventually(lambda: shown(parent.gateway) == NEWEST), parent.gateway.log
        assert eventually(lambda: shown(child.gateway) == NEWEST, limit=90), child.gateway.log
    finally:
        parent.close()
