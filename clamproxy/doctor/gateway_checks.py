"""The gateway's side: its configuration, its directory, and the troubles it has had so far."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from clamproxy.access.limits import descriptors_for
from clamproxy.authority import Authority, AuthorityError, configured_names
from clamproxy.cache.store import Store
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import Settings
from clamproxy.config.units import MIB
from clamproxy.doctor.findings import (
    Check,
    Deadline,
    Verdict,
    ok,
    problem,
    skipped,
    warning,
)
from clamproxy.doctor.fleet_store import try_fleet_store
from clamproxy.doctor.freshclam import STANDARD_DATABASES
from clamproxy.doctor.origin_checks import OriginChecks, cooldown_in_words
from clamproxy.doctor.processes import PROC, lock_holders
from clamproxy.inspection import quarantined
from clamproxy.notes import Notes
from clamproxy.notices.report import read_report
from clamproxy.notices.rules import RENEW_AUTHORITY
from clamproxy.origin.cooldown import Cooldowns
from clamproxy.pem import read_certificates
from clamproxy.readable import shown_count, shown_size, shown_span
from clamproxy.releases.limits_in_force import hold_problem, read_limits
from clamproxy.releases.stuck import stuck_patches
from clamproxy.site_files.publisher import read_catalog
from clamproxy.state import open_store
from clamproxy.statistics import snapshot

LEAST_FREE = 512 * MIB
"""Bytes that should be free: the standard databases and their successors need about this much."""


class GatewayChecks:
    """The checks, and what each of them leaves for the next. Close it at the end.

    Args:
        config: the configuration file that the user named, if any.
        databases: the header and the record of the first one are requested; if empty, those in use are
            chosen.
        deadline: the end of all checks.
    """

    def __init__(self, config: str | None, databases: Sequence[str], deadline: Deadline) -> None:
        self._config = config
        self._settings = Settings()
        self._store: Store | None = None
        self._is_foreign = False
        """Whether the cache is another user's: SQLite would leave files of this user in it."""
        self._origin = OriginChecks(deadline)
        self.databases = list(databases)
        """What to look at; unless the user named some, the databases that machines get here."""
        self._are_named = bool(databases)

    def checks(self) -> list[Check]:
        """The checks, in the order in which the gateway itself would meet the obstacles."""
        configured, cached = ["configuration"], ["configuration", "cache directory"]
        return [
            Check("configuration", self._load, []),
            Check("cache directory", self._look_at_directory, configured),
            Check("disk space", self._measure_disk, configured),
            Check("index", self._open_index, cached),
            Check("quarantine", self._look_into_quarantine, ["index"]),
            Check("patches", self._look_at_patches, ["index"]),
            Check("holds", self._look_at_holds, ["index"]),
            Check("cool-downs", self._look_at_cooldowns, ["index"]),
            Check("own files", self._look_at_site_files, ["index"]),
            Check("object store", self._try_fleet_store, configured),
            Check("file limit", self._compare_limits, configured),
            Check("authority", self._look_at_authority, configured),
            Check("notices", self._look_at_notices, ["index"]),
            Check("version record", self._origin.look_up_record, configured),
            Check("upstream proxy", self._origin.reach_proxy, configured),
            Check("upstream", self._origin.probe, configured),
            Check("clock", self._origin.judge_clock, configured),
        ]

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    # The machine

    def _load(self) -> Verdict:
        try:
            path = find_config(self._config)
            self._settings = load_settings(path, os.environ)
        except ConfigurationError as error:
            return problem(str(error), "correct it; proxy.yaml explains each key.")
        self._origin.settings = self._settings
        serves = self._settings.serving.databases
        self.databases = (
            self.databases or [name for name in STANDARD_DATABASES if name in serves] or [*serves]
        )
        self._origin.database = self.databases[0]
        return ok(f"{path} is valid" if path else "there is no file: every key has its default")

    def _look_at_directory(self) -> Verdict:
        directory = self._settings.cache.directory
        try:
            status = directory.stat()
        except FileNotFoundError:
            return skipped(f"{directory} doesn't exist yet: the first start creates it")
        except OSError as error:
            return problem(f"{directory}: {error.strerror or error}", "run this as the proxy's user.")
        if not directory.is_dir():
            return problem(f"{directory} is not a directory", "move it away, or correct cache.directory.")
        if status.st_uid != os.geteuid():
            owner, self._is_foreign = _owner(directory), True
            return warning(
                f"{directory} belongs to user {owner}, so its contents are not checked",
                f"run this as the proxy's user, {owner}; or if that is another one, change the owner.",
            )
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            return problem(
                f"{directory} can't be written to",
                "mount its file system writable; under systemd, name it in ReadWritePaths=.",
            )
        mode = status.st_mode & 0o777
        if mode != 0o700:
            text = f"{directory} has mode {mode:04o}: anybody who can write there decides what scanners load"
            return warning(text, f"chmod 700 {directory}")
        return ok(f"{directory} is writable, and closed to others")

    def _measure_disk(self) -> Verdict:
        directory, limit = self._settings.cache.directory, self._settings.cache.size_limit
        place = next(path for path in (directory, *directory.parents) if os.path.isdir(path))  # noqa: PTH112
        free, used = shutil.disk_usage(place).free, _bytes_below(directory)
        has = "an unknown amount" if self._is_foreign else shown_size(used)
        text = f"{shown_size(free)} are free; the cache takes up {has}, and may grow to {shown_size(limit)}"
        if free < LEAST_FREE and used + free < limit:
            return problem(f"{text}: new releases may not fit", f"make room on the disk of {place}.")
        if used + free < limit:
            return warning(text, f"lower cache.size_limit, or make room on the disk of {place}.")
        return ok(text)

    def _open_index(self) -> Verdict:
        if self._is_foreign:
            return skipped("it belongs to another user")
        try:
            self._store = open_store(self._settings)
            figures = snapshot(self._store)
        except (OSError, sqlite3.Error) as error:
            return problem(
                f"the index can't be read: {error}",
                "run this as the proxy's user, and check that the disk can be read.",
            )
        self._origin.store = self._store
        if (damage := self._store.index_damage) is not None:
            return warning(
                f"the index is damaged, so the cached files were read instead: {damage}",
                "start the proxy: it rebuilds the index.",
            )
        reached = {name: versions["reached"] for name, versions in figures["databases"].items()}
        cached = [name for name, version in reached.items() if version]
        if not self._are_named:
            # Not all enabled ones: ClamAV has given up some, and the origin has nothing for those.
            also = [name for name in cached if name in self._settings.serving.databases]
            self.databases = list(dict.fromkeys([*self.databases, *also]))
        databases = ", ".join(f"{name} {reached[name]}" for name in cached)
        return ok(f"{shown_count(figures['objects'], 'object')}; {databases or 'no database yet'}")

    def _look_into_quarantine(self) -> Verdict:
        files = quarantined(self._opened)
        if not files:
            return ok("no file has been rejected")
        newest = files[-1]
        return warning(
            f"{shown_count(len(files), 'rejected file')}, the last one {newest.name}: {newest.reason}",
            f"see {newest.path.parent}: if it was an error page, something between here and the origin "
            "made it. When done, run `clamproxy purge --quarantine`.",
        )

    def _look_at_patches(self) -> Verdict:
        stuck = stuck_patches(self._opened, time.time())
        if not stuck:
            return ok("no patch keeps failing verification")
        name, trouble = max(stuck.items(), key=lambda item: item[1].last)
        since = shown_span(time.time() - trouble.since)
        return warning(
            f"{name} failed verification {trouble.failures} times within {since}: if the whole CVD is "
            "cached, machines are told to take that",
            "usually nothing, as the patch is fetched again; the quarantine holds what arrived. If something "
            "on the way from the origin changes files, repair that.",
        )

    def _look_at_holds(self) -> Verdict:
        now = time.time()
        if (unreadable := hold_problem(self._opened)) is not None:
            text, _, remedy = unreadable.partition("; ")
            return problem(text, f"{remedy or 'let the user that the gateway runs as read the file'}.")
        limits = read_limits(self._opened, self._settings.releases, now)
        if not limits:
            return ok("no database is held or delayed")
        text = "; ".join(limit.describe(now) for limit in limits)
        forgotten = [limit.database for limit in limits if limit.is_forgotten]
        if not forgotten:
            return ok(text)
        return warning(
            f"{text} (longer than releases.longest_hold)",
            f"if machines may have the newest version again: `clamproxy release {forgotten[0]}`.",
        )

    def _look_at_cooldowns(self) -> Verdict:
        in_force = Cooldowns(Notes(self._opened, None, "cooldown", read_only=True)).in_force()
        if self._settings.upstream.offline or not in_force:
            return ok("none: the origin may be asked for everything")
        what, longest = max(in_force.items(), key=lambda item: item[1].until)
        more = f" (and {len(in_force) - 1} more: `clamproxy stats`)" if len(in_force) > 1 else ""
        meaning, remedy = cooldown_in_words(longest)
        rest = shown_span(longest.until - time.time())
        text = f"the origin is not asked for {rest} ({what}): {longest.reason}"
        return warning(f"{text}{more}. {meaning}", remedy)

    def _try_fleet_store(self) -> Verdict:
        url = self._settings.fleet_store
        return skipped("fleet_store is not set") if url is None else try_fleet_store(url)

    def _look_at_site_files(self) -> Verdict:
        if self._settings.files.directory is None:
            return skipped("files.directory is null")
        catalog = read_catalog(self._opened.records.directory)
        problems = [text.removeprefix("degraded: ") for text in catalog.problems()]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            return warning(f"{problems[0]}{more}", "correct the file: `clamproxy files` lists them all.")
        served = [file.served for file in catalog.files.values() if file.served is not None]
        if any(edition.checked_by is None for edition in served):
            return warning(
                "files are published that ClamAV may be unable to load, as clamscan isn't installed",
                "install it (Debian: `apt install clamav`): then they are checked.",
            )
        return ok(f"{shown_count(len(served), 'file')} published" if served else "there are none")

    def _compare_limits(self) -> Verdict:
        connections = self._settings.access.max_connections
        wanted = descriptors_for(connections)
        pid = proxy_pid(self._settings.cache.directory)
        whose = f"the proxy (process {pid})" if pid else "a process started here"
        soft, hard = resource.prlimit(pid or 0, resource.RLIMIT_NOFILE)
        allowed = soft if pid else hard  # the proxy raises its own limit when it starts
        if allowed == resource.RLIM_INFINITY:
            return ok(f"{whose} may open any number of files")
        text = f"{whose} may have {allowed:,} files open"
        if allowed < wanted:
            return warning(
                f"{text}; access.max_connections: {connections} may need {wanted:,}",
                f"set LimitNOFILE={wanted} in the systemd unit (ulimit -Hn {wanted} in a shell), "
                "or a lower access.max_connections.",
            )
        return ok(text)

    def _look_at_authority(self) -> Verdict:
        directory = self._settings.tls.directory
        try:
            authority = Authority.load(directory)
        except PermissionError:
            return warning(f"{directory} can't be read by this user", "run this as the proxy's user.")
        except (OSError, AuthorityError) as error:
            return problem(
                f"{directory}: {error}", "run this as the proxy's user; `clamproxy ca show` tells more."
            )
        if authority is None:
            return skipped(
                f"none in {directory}: https clients get mitmproxy's, which may sign for any name; "
                "`clamproxy ca init` makes a safer one"
            )
        missing = authority.permitted().missing(configured_names(self._settings)[0])
        if missing:
            return warning(
                f"the authority may not sign for {', '.join(missing)}, which the configuration names",
                "run `clamproxy ca rotate`, then install the new certificate on the machines "
                "(`clamproxy ca install`).",
            )
        return judge_authority(authority.bundle(), time.time())

    def _look_at_notices(self) -> Verdict:
        targets = read_report(self._opened.records, self._settings)["targets"]
        if not targets:
            return skipped("nobody is told: notify.webhooks is empty, and mail.server is null")
        for target in targets:
            if target["failures"]:
                return warning(
                    f"{target['name']} failed {shown_count(target['failures'], 'time')}: {target['reason']}",
                    "correct what the reason says, then run `clamproxy notify test`.",
                )
        return ok(f"nothing has failed with {shown_count(len(targets), 'target')}")

    @property
    def _opened(self) -> Store:
        if self._store is None:
            raise RuntimeError("the index is not open")
        return self._store


def judge_authority(bundle: bytes, now: float) -> Verdict:
    """How long the authority's certificates are still valid.

    Args:
        bundle: PEM, the signing authority's root first; during a rotation there are two.
        now: Unix seconds.
    """
    signer, *others = read_certificates(bundle)
    begin, end = signer.not_valid_before_utc, signer.not_valid_after_utc
    left = end.timestamp() - now
    if begin.timestamp() > now:
        return problem(f"the authority is not valid before {begin:%Y-%m-%d}", "correct this machine's clock.")
    if left <= 0:
        return problem(
            f"the authority expired on {end:%Y-%m-%d}",
            "run `clamproxy ca rotate`, then install the new certificate on the machines "
            "(`clamproxy ca install`).",
        )
    if left < RENEW_AUTHORITY and not others:
        return warning(
            f"the authority expires on {end:%Y-%m-%d}, in {shown_span(left)}",
            "run `clamproxy ca rotate`, then install the new certificate on the machines before that.",
        )
    return ok(f"the authority is valid until {end:%Y-%m-%d}")


def proxy_pid(directory: Path, locks: Path = PROC / "locks") -> int | None:
    """The process that has the cache open, if there is one and the system tells."""
    holders = lock_holders(directory / "owners.lock", "FLOCK", locks)
    return next((pid for pid in holders if pid != os.getpid() and _may_look_at(pid)), None)


def _may_look_at(pid: int) -> bool:
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except (OSError, ValueError):
        return False
    return True


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)


def _bytes_below(directory: Path) -> int:
    """How many bytes the cache's files have, as far as they can be seen."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total
