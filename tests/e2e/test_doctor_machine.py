"""`clamproxy doctor` on machines whose freshclam gets nothing: it says why, and its commands end that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from werkzeug.security import generate_password_hash

from tests.support import faults
from tests.support.data import TESTDATA
from tests.support.freshclam import OK, Freshclam, require_freshclam
from tests.support.gateway import CDN, Way, tool
from tests.support.site import LOCALHOST, Site, eventually

from .conftest import MakeSite

ONLY_TEST = ["Bytecode no", "ExcludeDatabase daily", "ExcludeDatabase main", "ExtraDatabase test"]

NOWHERE = subprocess.DEVNULL

type Row = dict[str, Any]
type Rows = dict[tuple[str, str], Row]


class Machine:
    """A freshclam with database test alone, as its configuration has it, and a log."""

    def __init__(
        self, site: Site, way: Way = Way.CONNECT_HTTP, *, local: int | None = 3, **options: Any
    ) -> None:
        self.site = site
        self.log = site.directory / "machine" / "freshclam.log"
        extra = [*ONLY_TEST, f"UpdateLogFile {self.log}", *options.pop("extra", [])]
        self.client = site.client("machine", way, local=local, database=None, extra=extra, **options)
        self.conf = self.client.write()
        self.dat = self.client.databases / "freshclam.dat"

    def doctor(self, code: int, **environment: str) -> Rows:
        """The findings by side and subject."""
        common = ("--no-local", "--json", "--nameserver", self.site.dns.nameserver)
        result = tool("doctor", *common, "--freshclam-conf", str(self.conf), environment=environment)
        assert (result.returncode, result.stderr) == (code, ""), result.stdout + self.site.gateway.log
        return {(row["side"], row["subject"]): row for row in json.loads(result.stdout)["findings"]}

    def obey(self, row: Row) -> None:
        """Do what a finding says."""
        command = row["remedy"].removeprefix("as root: ").partition(" (")[0].partition("; then ")[0]
        # freshclam here has no DNS but that of --no-dns; a daemon must not hold the test's pipes.
        command = command.replace("freshclam --config", f"{require_freshclam()} --no-dns --config")
        if command.endswith("--daemon"):
            # On a busy machine, the process that starts a daemon may delete its directory (trap 43).
            command += " --foreground=true &"
        subprocess.run(["sh", "-c", command], check=True, stdout=NOWHERE, stderr=NOWHERE)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[None]:
    """Ends those that a command of the doctor's has left."""
    yield
    for directory in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            program, arguments = (directory / "comm").read_text(), (directory / "cmdline").read_text()
            if program == "freshclam\n" and str(tmp_path) in arguments:
                os.kill(int(directory.name), signal.SIGTERM)


def check(row: Row, status: str, text: str, remedy: str = "") -> None:
    assert row["status"] == status, row
    assert text in row["text"], row
    assert remedy in (row["remedy"] or ""), row


def refuse_it(machine: Machine, site: Site) -> None:
    """The machine is refused by the CDN, which it asked itself: so it comes to the gateway on cool-down."""
    site.origin.rule("*", faults.status(403))
    own = Freshclam(
        directory=site.directory / "machine",
        mirrors=[site.origin.url],
        attempts=1,
        extra=ONLY_TEST,
        database=None,
    )
    assert own.run().cooling
    site.origin.heal()
    site.origin.forget()
    machine.client.write()


def test_on_cooldown(make_site: MakeSite, daemons: None) -> None:
    """freshclam says that all is well, and asks nobody. The command that the doctor gives helps."""
    site = make_site()
    site.publish(6)
    machine = Machine(site)
    refuse_it(machine, site)
    assert machine.client.run().code == OK
    assert site.origin.requests() == []
    assert machine.client.run().version == 3
    rows = machine.doctor(2)
    check(rows["machine", "cool-down"], "problem", "freshclam contacts no server until", f"rm {machine.dat}")
    check(rows["machine", "databases"], "problem", "test 3 is 3 versions behind the gateway's 6", "cool-down")
    check(rows["machine", "freshclam.conf"], "ok", f"names {LOCALHOST}:{site.gateway.port} for {CDN}:80")
    assert {row["status"] for (side, _), row in rows.items() if side == "client"} <= {"ok", "skipped"}
    machine.obey(rows["machine", "cool-down"])
    rows = machine.doctor(1)
    check(rows["machine", "cool-down"], "ok", "none (this machine's UUID is ")
    check(rows["machine", "databases"], "ok", "test 6, the same as on the gateway")
    check(rows["machine", "daemon"], "warning", "freshclam is not running", "--daemon")


def test_a_daemon_on_cooldown(make_site: MakeSite, daemons: None) -> None:
    """The daemon has the date in its memory, and the log in its hands."""
    site = make_site()
    site.publish(6)
    machine = Machine(site)
    refuse_it(machine, site)
    by_hand = [require_freshclam(), f"--config-file={machine.conf}", "--no-dns"]
    daemon = subprocess.Popen([*by_hand, "-d", "--foreground=true"], stdout=NOWHERE, stderr=NOWHERE)
    assert eventually(lambda: machine.log.exists() and "still on cool-down" in machine.log.read_text())
    failed = subprocess.run(by_hand, capture_output=True, text=True, check=False)
    assert "Failed to lock the log file" in failed.stdout + failed.stderr
    rows = machine.doctor(2)
    check(rows["machine", "cool-down"], "problem", "contacts no server", f"kill {daemon.pid} ")
    check(rows["machine", "daemon"], "ok", f"(process {daemon.pid}), since ")
    assert "failed to lock the log file" in rows["machine", "daemon"]["text"]
    machine.obey(rows["machine", "cool-down"])
    assert daemon.wait(20) == 0
    updated = eventually((machine.client.databases / "test.cld").exists, limit=60)
    assert updated, machine.log.read_text() + site.gateway.log
    rows = machine.doctor(0)
    check(rows["machine", "daemon"], "ok", "freshclam is running (process ")
    check(rows["machine", "databases"], "ok", "test 6, the same as on the gateway")


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.REVERSE])
def test_a_machine_without_a_daemon(make_site: MakeSite, way: Way) -> None:
    """After a run by hand there is nothing to complain of but that nobody repeats it."""
    site = make_site()
    site.publish(6)
    machine = Machine(site, way)
    assert machine.client.run().version == 6
    rows = machine.doctor(1)
    assert [row["subject"] for row in rows.values() if row["status"] not in ("ok", "skipped")] == ["daemon"]


def test_a_private_mirror(make_site: MakeSite) -> None:
    site = make_site()
    site.publish(6)
    machine = Machine(site, Way.REVERSE, private=True)
    assert machine.client.run().version == 6
    rows = machine.doctor(1)
    check(rows["client", "proxy"], "ok", "the gateway is the mirror")
    check(rows["machine", "freshclam.conf"], "ok", "as its mirror")


@pytest.mark.parametrize(("password", "code"), [("s3cret", 1), ("wrong", 2)])
def test_a_user_of_the_mirror(make_site: MakeSite, password: str, code: int) -> None:
    site = make_site(access={"users": [f"alice:{generate_password_hash('s3cret')}"]})
    site.publish(6)
    url = f"http://alice:{password}@{LOCALHOST}:{site.gateway.port}"
    machine = Machine(site, mirrors=[url], proxy=None)
    machine.client.run()
    rows = machine.doctor(code)
    if code == 2:
        check(rows["client", "header"], "problem", "doesn't accept user alice with this password: 401")


def test_past_the_proxy(make_site: MakeSite) -> None:
    """no_proxy counts more than HTTPProxyServer: the machine asks a server that it can't reach."""
    site = make_site()
    site.publish(6)
    machine = Machine(site, environment={"no_proxy": "localhost,.clamav.net"}, attempts=1, connect_timeout=1)
    machine.client.write()
    rows = machine.doctor(2, no_proxy="localhost,.clamav.net")
    check(
        rows["machine", "environment"],
        "problem",
        "no_proxy=localhost,.clamav.net",
        "remove the server's name",
    )


def test_a_database_that_the_origin_lacks(make_site: MakeSite) -> None:
    """It is no trouble of the gateway's; but freshclam stops at it."""
    site = make_site()
    site.publish(6)
    machine = Machine(site, extra=["ExtraDatabase safebrowsing"])
    machine.client.write()
    rows = machine.doctor(2)
    check(rows["client", "header safebrowsing"], "skipped", "origin has no safebrowsing")
    check(rows["machine", "databases"], "problem", "3 versions behind")
    machine.client.install(TESTDATA / "test-6.cvd")
    check(
        machine.doctor(1)["machine", "databases"],
        "warning",
        "has no safebrowsing: freshclam stops",
        "remove Extra",
    )


def test_a_port_where_nothing_listens(make_site: MakeSite) -> None:
    site = make_site()
    machine = Machine(site, proxy=(LOCALHOST, 9), local=None)
    machine.client.write()
    rows = machine.doctor(2)
    check(rows["client", "connection"], "problem", "nothing listens on this port", "clamproxy run")
    check(rows["machine", "databases"], "skipped", "none in ", "")
