"""The doctor on a machine: why its freshclam asks nobody, and the commands that end that."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clamproxy.doctor import machine_checks as module
from clamproxy.doctor.commands import Commands
from clamproxy.doctor.findings import Deadline, Finding, Status, examine
from clamproxy.doctor.freshclam import read_conf
from clamproxy.doctor.local import Local, compare, look_at
from clamproxy.doctor.machine_checks import MachineChecks
from clamproxy.doctor.processes import Process, freshclams, lock_holders
from clamproxy.formats.header import CvdHeader
from tests.integration.test_freshclam_dat import UUID, dat
from tests.support.fake_gateway import header
from tests.support.freshclam import require_freshclam
from tests.support.processes import children
from tests.support.site import eventually

OK, WARNING, PROBLEM, SKIPPED = Status
DAY = 86400.0

type Found = dict[str, Finding]
type Served = dict[str, CvdHeader | None]


class Machine:
    """A freshclam.conf with what belongs to it, below one directory."""

    def __init__(self, directory: Path) -> None:
        self.databases = directory / "db"
        self.databases.mkdir()
        self.dat = self.databases / "freshclam.dat"
        self.log = directory / "freshclam.log"
        self.conf = directory / "freshclam.conf"
        self.write()

    def write(self, *lines: str, mirror: str = "http://database.clamav.net") -> None:
        """The configuration, as `clamproxy client-config` wants it, with more lines in front."""
        own = ["HTTPProxyServer 127.0.0.1", "HTTPProxyPort 9", f"DatabaseMirror {mirror}"]
        common = [f"DatabaseDirectory {self.databases}", "DatabaseOwner root", f"UpdateLogFile {self.log}"]
        common.append("MaxAttempts 1")
        self.conf.write_text("".join(f"{line}\n" for line in [*lines, *own, *common]))

    def holds(self, **versions: int) -> None:
        """Databases lie there."""
        for name, version in versions.items():
            (self.databases / f"{name}.cvd").write_bytes(header(version) + b"the rest")

    def examine(self, served: Served | None = None) -> Found:
        """What the doctor finds."""
        side, deadline = MachineChecks(self.conf, read_conf(self.conf), served or {}), Deadline(60)
        return {finding.subject: finding for finding in examine(side.checks(), deadline)}

    @contextmanager
    def daemon(self, **environment: str) -> Iterator[int]:
        """A freshclam runs as a daemon, and finds nobody to ask; gives its process."""
        command = [require_freshclam(), f"--config-file={self.conf}", "--no-dns", "-d", "--foreground=true"]
        environment = {"PATH": os.environ["PATH"], **environment}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as it:
            try:
                assert eventually(lambda: self.log.exists() and "Update failed" in self.log.read_text())
                yield it.pid
            finally:
                it.terminate()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(module, "SCHEDULES", ())
    return Machine(tmp_path)


def check(found: Found, subject: str, status: Status, text: str, remedy: str = "") -> None:
    finding = found[subject]
    assert finding.status is status, finding
    assert text in finding.text, finding
    assert remedy in finding.remedy, finding
    if status in (PROBLEM, WARNING):
        assert finding.remedy, finding


def served(age: float = 2 * DAY, **versions: int) -> Served:
    return {name: CvdHeader.parse(header(version, age)) for name, version in versions.items()}


def test_a_machine_that_is_well(machine: Machine) -> None:
    machine.holds(daily=7, main=62, bytecode=339)
    machine.dat.write_bytes(dat())
    with machine.daemon():
        found = machine.examine(served(daily=7, main=62, bytecode=339))
    assert {finding.status for finding in found.values()} == {OK}, found
    check(found, "freshclam.conf", OK, f"{machine.conf} names 127.0.0.1:9 for database.clamav.net:80")
    check(found, "databases", OK, "daily 7, the same as on the gateway; main 62")


def test_before_the_first_run(machine: Machine) -> None:
    found = machine.examine(served(daily=7))
    check(found, "daemon", SKIPPED, "has not run yet")
    check(found, "databases", SKIPPED, f"As root: freshclam --config-file={machine.conf}")
    assert {finding.status for finding in found.values()} == {OK, SKIPPED}, found


class TestCooldown:
    def test_a_machine_on_cooldown_asks_nobody(self, machine: Machine) -> None:
        machine.holds(daily=3, main=62, bytecode=339)
        machine.dat.write_bytes(dat(int(time.time() + 20 * 3600)))
        found = machine.examine(served(daily=7, main=62, bytecode=339))
        check(
            found,
            "cool-down",
            PROBLEM,
            "contacts no server until 20",
            f"as root: rm {machine.dat} && freshclam",
        )
        assert "(another 20 h) and exits with 0" in found["cool-down"].text
        check(
            found, "databases", PROBLEM, "daily 3 is 4 versions behind the gateway's 7", "end the cool-down"
        )

    def test_a_daemon_has_the_cooldown_in_memory(self, machine: Machine) -> None:
        """Deleting the file alone would not help, and the daemon would write it anew."""
        with machine.daemon() as pid:
            machine.dat.write_bytes(dat(int(time.time() + 3600)))
            remedy = machine.examine()["cool-down"].remedy
        stop = f"kill {pid} && while [ -e /proc/{pid}/exe ]; do sleep 1; done"
        assert remedy.startswith(f"as root: {stop} && rm {machine.dat} && freshclam ")

    def test_the_file_alone_was_deleted(self, machine: Machine) -> None:
        with machine.daemon() as pid:
            machine.dat.unlink()
            check(
                machine.examine(),
                "cool-down",
                WARNING,
                "deleted while the daemon was running",
                f"kill {pid} ",
            )
        check(machine.examine(), "cool-down", OK, "none: there is no ")

    @pytest.mark.parametrize("retry_after", [0, 1, -1, -(2**63)])
    def test_none(self, machine: Machine, retry_after: int) -> None:
        machine.dat.write_bytes(dat(retry_after))
        check(machine.examine(), "cool-down", OK, f"none (this machine's UUID is {UUID})")

    def test_for_ever(self, machine: Machine) -> None:
        """A clock was wrong, say: no date can show that."""
        machine.dat.write_bytes(dat(2**63 - 1))
        check(machine.examine(), "cool-down", PROBLEM, "contacts no server until ?", "rm ")

    @pytest.mark.parametrize(
        "data", [b"", b"FreshClamData\1\0\0\0", dat(version=2), dat()[:61], os.urandom(90)]
    )
    def test_unknown(self, machine: Machine, data: bytes) -> None:
        machine.dat.write_bytes(data)
        check(machine.examine(), "cool-down", SKIPPED, f"not known: {machine.dat} ")

    def test_the_file_may_be_anything(self, machine: Machine) -> None:
        machine.dat.mkdir()
        check(machine.examine(), "cool-down", SKIPPED, "not known")


class TestDaemon:
    def test_a_daemon_holds_the_log(self, machine: Machine) -> None:
        """As on a stock Debian: what the README said, "run freshclam", failed."""
        with machine.daemon() as pid:
            found = machine.examine()
            check(found, "daemon", OK, f"freshclam is running (process {pid}), since 20")
            assert (
                f'"failed to lock the log file". To run it by hand, as root: kill {pid}'
                in found["daemon"].text
            )
            by_hand = [require_freshclam(), f"--config-file={machine.conf}"]
            failed = subprocess.run(by_hand, capture_output=True, text=True, check=False)
            assert f"Failed to lock the log file {machine.log}" in failed.stdout + failed.stderr
            assert lock_holders(machine.log, "POSIX") == [pid]

    def test_a_daemon_has_not_read_the_configuration(self, machine: Machine) -> None:
        with machine.daemon() as pid:
            os.utime(machine.conf, (time.time() + 60, time.time() + 60))
            found = machine.examine()
        check(found, "daemon", PROBLEM, "was changed after that", f"as root: kill {pid}")

    def test_the_environment_of_a_daemon_counts(self, machine: Machine) -> None:
        with machine.daemon(no_proxy="localhost,.clamav.net"):
            found = machine.examine()
        check(
            found, "environment", PROBLEM, "no_proxy=localhost,.clamav.net in the environment of the daemon"
        )
        check(machine.examine(), "environment", OK, "no variable here")

    def test_of_another_configuration(self, machine: Machine, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        with Machine(tmp_path / "other").daemon() as pid:
            assert pid in [process.pid for process in freshclams()]
            check(machine.examine(), "daemon", SKIPPED, "not running")

    def test_none(self, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        machine.holds(daily=7)
        check(machine.examine(), "daemon", WARNING, "nothing is updated", "--daemon")
        schedule = tmp_path / "clamav-freshclam"
        schedule.touch()
        monkeypatch.setattr(module, "SCHEDULES", (schedule,))
        check(machine.examine(), "daemon", OK, f"{schedule} runs freshclam")

    @pytest.mark.parametrize(
        ("arguments", "is_daemon", "config"),
        [
            (["freshclam", "-d", "--foreground=true"], True, None),
            (["freshclam", "-vd", "--config-file", "/a"], True, Path("/a")),
            (["freshclam", "--daemon", "--config-file=/a"], True, Path("/a")),
            (["freshclam", "--daemon-notify"], False, None),
            (["freshclam", "-d", "--config-file"], True, None),
            (["freshclam", "--config-file=/etc/d"], False, Path("/etc/d")),
        ],
    )
    def test_arguments(self, arguments: list[str], is_daemon: bool, config: Path | None) -> None:
        process = Process(1, tuple(arguments), 0.0, None)
        assert (process.is_daemon, process.config) == (is_daemon, config)


class TestCommands:
    """On a machine with systemd."""

    CONF = Path("/etc/clamav/freshclam.conf")
    DAT = Path("/var/lib/clamav/freshclam.dat")

    def test_of_a_service(self) -> None:
        daemon = Process(7, ("freshclam", "-d"), 0.0, "clamav-freshclam.service")
        commands = Commands.of(self.CONF, daemon)
        assert commands.restart() == "systemctl restart clamav-freshclam"
        assert commands.run_once() == (
            "systemctl stop clamav-freshclam && freshclam; systemctl start clamav-freshclam"
        )
        assert commands.without(self.DAT) == (
            "systemctl stop clamav-freshclam && rm /var/lib/clamav/freshclam.dat "
            "&& systemctl start clamav-freshclam"
        )

    def test_of_one_that_has_ended(self) -> None:
        commands = Commands("freshclam", "clamav-freshclam", None)
        assert commands.start() == "systemctl enable --now clamav-freshclam"
        assert commands.run_once() == "freshclam"
        assert commands.without(self.DAT) == (
            "rm /var/lib/clamav/freshclam.dat && systemctl restart clamav-freshclam"
        )


class TestDirectory:
    def test_the_directory_is_missing(self, machine: Machine) -> None:
        machine.databases.rmdir()
        found = machine.examine()
        check(found, "directory", PROBLEM, "No such file", f"install -d -o root {machine.databases}")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
    def test_the_directory_belongs_to_somebody_else(self, machine: Machine) -> None:
        machine.conf.write_text(machine.conf.read_text().replace("Owner root", "Owner nobody"))
        check(machine.examine(), "directory", PROBLEM, "user nobody can't write", "chown nobody ")
        machine.databases.chmod(0o777)
        check(machine.examine(), "directory", OK, "user nobody can write")

    def test_nobody_owns_the_directory(self, machine: Machine) -> None:
        machine.conf.write_text(machine.conf.read_text().replace("Owner root", "Owner no-such-user"))
        check(machine.examine(), "directory", PROBLEM, "no user no-such-user", "DatabaseOwner")


class TestConfiguration:
    def test_freshclam_refuses_the_configuration(self, machine: Machine) -> None:
        require_freshclam()
        machine.write("Example")
        check(machine.examine(), "freshclam.conf", PROBLEM, "Please edit the example config file", "correct")

    def test_rules(self, machine: Machine) -> None:
        machine.write("HTTPProxyPassword s3cret")
        found = machine.examine()
        check(found, "freshclam.conf", PROBLEM, "only its owner can read it", f"chmod 600 {machine.conf}")
        assert "s3cret" not in str(found)

    def test_no_proxy_here(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "*")
        check(machine.examine(), "environment", PROBLEM, "no_proxy=* in the environment here", "remove")


class TestDatabases:
    @pytest.mark.parametrize(
        ("local", "age", "status", "text"),
        [
            (7, 2 * DAY, OK, "daily 7, the same as on the gateway"),
            (6, 0.5 * DAY, OK, "1 version behind the gateway's 7, which is new"),
            (6, 2 * DAY, PROBLEM, "1 version behind"),
            (5, 0.5 * DAY, PROBLEM, "2 versions behind"),
            (8, 2 * DAY, WARNING, "8 is newer than the gateway's 7"),
            (None, 2 * DAY, PROBLEM, "daily is missing"),
        ],
    )
    def test_how_far_behind(self, local: int | None, age: float, status: Status, text: str) -> None:
        verdict = compare({"daily": Local(local)}, served(age, daily=7), time.time())
        assert verdict.status is status, verdict
        assert text in verdict.text

    def test_the_worst_is_shown(self) -> None:
        local = {"daily": Local(5), "main": Local(62), "bytecode": Local(300)}
        verdict = compare(local, served(daily=7, main=62, bytecode=339), time.time())
        assert "daily 5 is 2 versions behind" in verdict.text
        assert "bytecode 300 is 39 versions behind" in verdict.text
        assert "main" not in verdict.text

    def test_a_database_that_clamav_has_given_up(self) -> None:
        """freshclam fails at what the origin hasn't got, and doesn't go on (docs/protocol.md 2.1)."""
        local = {"daily": Local(7), "safebrowsing": Local()}
        verdict = compare(local, {**served(daily=7), "safebrowsing": None}, time.time())
        assert (verdict.status, verdict.remedy) == (
            WARNING,
            "remove ExtraDatabase safebrowsing from freshclam.conf.",
        )

    def test_without_the_gateway(self) -> None:
        assert compare({"daily": Local(7)}, {}, time.time()) == compare({"daily": Local(7)}, {}, 0.0)
        assert compare({"daily": Local(7)}, {}, time.time()).text == "daily 7"

    def test_what_to_do(self, machine: Machine) -> None:
        machine.holds(daily=3, main=62, bytecode=339)
        found = machine.examine(served(daily=7, main=62, bytecode=339))
        remedy = f"as root: freshclam --config-file={machine.conf}; then see {machine.log}"
        check(found, "databases", PROBLEM, "4 versions behind", remedy)

    def test_the_newer_of_two_files_counts(self, tmp_path: Path) -> None:
        (tmp_path / "daily.cvd").write_bytes(header(5))
        (tmp_path / "daily.cld").write_bytes(header(7))
        assert look_at(tmp_path, "daily") == Local(7)

    @pytest.mark.parametrize("data", [b"", b"<html>", header(5)[:100], bytes(600)])
    def test_a_file_that_is_none(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "daily.cvd").write_bytes(data)
        found = look_at(tmp_path, "daily")
        assert found.version is None
        assert f"{tmp_path}/daily.cvd " in found.trouble


def test_containers_are_machines_of_their_own() -> None:
    """A process in a namespace of its own is not this machine's freshclam."""
    try:
        subprocess.run(["unshare", "--pid", "--fork", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no namespaces here")
    renamed = "import ctypes; ctypes.CDLL(None).prctl(15, b'freshclam', 0, 0, 0); import time; time.sleep(60)"
    command = [sys.executable, "-c", renamed]
    inside = ["unshare", "--pid", "--fork", "--kill-child", *command]
    with subprocess.Popen(command) as here, subprocess.Popen(inside) as outer:
        try:
            pids = eventually(lambda: [process.pid for process in freshclams() if process.pid == here.pid])
            assert pids == [here.pid]
            child = eventually(lambda: children(outer.pid))
            assert eventually(lambda: Path(f"/proc/{child[0]}/comm").read_text() == "freshclam\n")
            assert child[0] not in [process.pid for process in freshclams()]
        finally:
            here.kill()
            outer.kill()
