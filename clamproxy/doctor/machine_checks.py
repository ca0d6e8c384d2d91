"""The machine's side: why its freshclam asks nobody, or another server, although the gateway is well."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from clamproxy.doctor.commands import Commands
from clamproxy.doctor.conf_mistakes import CLIENT_CONFIG, judge
from clamproxy.doctor.findings import Check, Verdict, ok, problem, skipped, warning
from clamproxy.doctor.freshclam import PLACES, FreshclamConf, objection
from clamproxy.doctor.local import Local, compare, look_at
from clamproxy.doctor.processes import Process, are_visible, freshclams, lock_holders
from clamproxy.doctor.route import bypass, route_of
from clamproxy.formats.freshclam_dat import LARGEST, FreshclamDat
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.readable import shown_span, shown_time

SCHEDULES = (
    Path("/etc/cron.d/clamav-freshclam"),
    Path("/etc/cron.d/clamav-update"),
    Path("/etc/cron.daily/freshclam"),
    Path("/etc/systemd/system/timers.target.wants/clamav-freshclam-once.timer"),
)
"""Files by which Debian and Fedora run freshclam periodically instead of as a daemon."""
_SECOND = 2.0
"""Tolerance for the start time of a process, in seconds."""


class MachineChecks:
    """The checks, in the order in which freshclam meets the obstacles.

    Args:
        path: the freshclam.conf.
        conf: its contents.
        served: the headers of the databases as sent by the gateway; filled by checks that run earlier.
            None means that the gateway has no such database.
    """

    def __init__(self, path: Path, conf: FreshclamConf, served: Mapping[str, CvdHeader | None]) -> None:
        self._path = path.absolute()
        self._conf = conf
        self._served = served
        self._directory = conf.database_directory
        self._dat = self._directory / "freshclam.dat"
        self._is_cooling = False

    def checks(self) -> list[Check]:
        """All checks; none of them needs another."""
        return [
            Check("freshclam.conf", self._judge_conf),
            Check("environment", self._look_at_environment),
            Check("directory", self._look_at_directory),
            Check("cool-down", self._look_at_cooldown),
            Check("daemon", self._look_for_daemon),
            Check("databases", self._compare_databases),
        ]

    def _judge_conf(self) -> Verdict:
        if (words := objection(self._path)) is not None:
            return problem(
                f"freshclam can't read {self._path}: {words}", f"correct the line. {CLIENT_CONFIG}"
            )
        route = route_of(self._conf, self._environment)
        verdict = judge(self._path, self._conf, route, self._path.stat().st_mode)
        if verdict is not None or route is None:
            return verdict or skipped(f"{self._path} doesn't point to the gateway")
        how = "as its mirror" if route.is_mirror else f"for {route.target}"
        return ok(f"{self._path} names {route.host}:{route.port} {how}")

    def _look_at_environment(self) -> Verdict:
        route = route_of(self._conf, self._environment)
        if route is None or route.is_mirror:
            return skipped("no proxy is used")
        whose = "of the daemon" if self._daemon and self._daemon.environment is not None else "here"
        if (variable := bypass(self._conf, self._environment)) is None:
            return ok(f"no variable {whose} bypasses the proxy")
        return problem(
            f"{variable} in the environment {whose}: freshclam connects directly, not through the proxy",
            "remove the server's name from it, or set it only for other programs.",
        )

    def _look_at_directory(self) -> Verdict:
        directory, owner = self._directory, self._conf.first("DatabaseOwner") or "clamav"
        try:
            status = directory.stat()
        except OSError as error:
            remedy = f"as root: install -d -o {owner} {directory}"
            return problem(f"{directory}: {error.strerror or error}", remedy)
        try:
            uid, gid = pwd.getpwnam(owner)[2:4]
        except KeyError:
            return problem(
                f"there is no user {owner}, which freshclam should run as", "correct DatabaseOwner."
            )
        is_group = status.st_gid == gid and status.st_mode & 0o020
        if uid in (0, status.st_uid) or is_group or status.st_mode & 0o002:
            return ok(f"user {owner} can write to {directory}")
        if os.geteuid() and os.access(directory, os.W_OK):  # only root's freshclam changes to DatabaseOwner
            return ok(f"this user can write to {directory}")
        text = f"user {owner} can't write to {directory}, so freshclam fails (or can't keep its cool-down)"
        return problem(text, f"as root: chown {owner} {directory}")

    def _look_at_cooldown(self) -> Verdict:
        try:
            with self._dat.open("rb") as file:
                dat = FreshclamDat.parse(file.read(LARGEST))
        except FileNotFoundError:
            if self._daemon is None:
                return ok(f"none: there is no {self._dat}")
            return warning(
                f"{self._dat} was deleted while the daemon was running, which keeps a cool-down in memory",
                f"as root: {self._commands.restart()}",
            )
        except PermissionError:
            return warning(f"{self._dat} can't be read by this user", "run this with sudo.")
        except (OSError, InvalidObject) as error:
            return skipped(f"not known: {self._dat} {error}; freshclam's log says whether there is one")
        left = dat.retry_after - time.time()
        if left <= 0:
            return ok(f"none (this machine's UUID is {dat.uuid})")
        self._is_cooling = True
        return problem(
            f"freshclam contacts no server until {shown_time(dat.retry_after)} (another {shown_span(left)}) "
            "and exits with 0: a server has answered it with 403 or 429, which the gateway never does",
            f"as root: {self._commands.without(self._dat)} "
            "(this gives it a new UUID, so the fleet lists a new machine)",
        )

    def _look_for_daemon(self) -> Verdict:
        daemon = self._daemon
        if daemon is None:
            return self._no_daemon()
        since = f"freshclam is running (process {daemon.pid}), since {shown_time(daemon.started_at)}"
        if self._path.stat().st_mtime > daemon.started_at + _SECOND:
            return problem(
                f"{since}; {self._path} was changed after that, but a daemon reads it only when it starts",
                f"as root: {self._commands.restart()}",
            )
        log = self._conf.first("UpdateLogFile")
        if log is not None and daemon.pid in lock_holders(Path(log), "POSIX"):
            by_hand = self._commands.run_once()
            return ok(
                f'{since}; another one says "failed to lock the log file". '
                f"To run it by hand, as root: {by_hand}"
            )
        return ok(since)

    def _no_daemon(self) -> Verdict:
        if self._others:
            return ok(f"freshclam is running right now (process {self._others[0].pid})")
        if not are_visible():
            return skipped("this user can't see other users' processes; run this with sudo")
        if (schedule := next((path for path in SCHEDULES if os.path.lexists(path)), None)) is not None:
            return ok(f"no daemon: {schedule} runs freshclam")
        if self._is_new:
            return skipped("freshclam is not running, and has not run yet")
        return warning(
            "freshclam is not running, so nothing is updated unless something else starts it; after a 403, "
            "a daemon exits for good",
            f"as root: {self._commands.start()}",
        )

    def _compare_databases(self) -> Verdict:
        if not os.access(self._directory, os.R_OK | os.X_OK):
            return warning(f"{self._directory} can't be read by this user", "run this with sudo.")
        if self._is_new:
            return skipped(f"none in {self._directory} yet. As root: {self._commands.run_once()}")
        verdict = compare(self._local, self._served, time.time())
        if not verdict.remedy:
            return verdict
        log = self._conf.first("UpdateLogFile") or "the system's log"
        then = f"then see {log}; docs/troubleshooting.md explains what it says."
        if self._is_cooling:
            return Verdict(verdict.status, verdict.text, "end the cool-down as above.")
        command = self._commands.restart() if self._daemon else self._commands.run_once()
        return Verdict(
            verdict.status, verdict.text, verdict.remedy.format(command=f"as root: {command}; {then}")
        )

    # What several checks need

    @cached_property
    def _local(self) -> dict[str, Local]:
        return {name: look_at(self._directory, name) for name in self._conf.databases}

    @property
    def _is_new(self) -> bool:
        try:
            return not self._dat.exists() and not any(local.is_there for local in self._local.values())
        except PermissionError:
            return False

    @cached_property
    def _running(self) -> list[Process]:
        """The freshclam processes with this configuration."""
        return [process for process in freshclams() if self._is_its(process.config)]

    def _is_its(self, config: Path | None) -> bool:
        # The path may be relative to a directory that freshclam has left since.
        return self._path in PLACES if config is None else self._path.match(str(config))

    @property
    def _daemon(self) -> Process | None:
        return next((process for process in self._running if process.is_daemon), None)

    @property
    def _others(self) -> list[Process]:
        return [process for process in self._running if not process.is_daemon]

    @property
    def _environment(self) -> Mapping[str, str]:
        """The daemon's environment if it can be read, else this process's, as for a freshclam run by hand."""
        environment = self._daemon.environment if self._daemon else None
        return os.environ if environment is None else environment

    @property
    def _commands(self) -> Commands:
        return Commands.of(self._path, self._daemon)
