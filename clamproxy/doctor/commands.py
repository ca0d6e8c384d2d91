"""Commands that repair a machine, ready for its administrator to paste into a root shell."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from clamproxy.doctor.freshclam import PLACES
from clamproxy.doctor.processes import Process

UNIT = "clamav-freshclam"
"""The service in the packages of Debian, Ubuntu and Fedora."""

_UNIT_FILES = tuple(
    Path(directory) / f"{UNIT}.service"
    for directory in ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
)
_BOOTED = Path("/run/systemd/system")
"""Exists where systemd is running (sd_booted(3))."""


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands for one freshclam."""

    run: str
    """Command that runs freshclam once."""
    unit: str | None
    """Its service, if it has one."""
    pid: int | None
    """Process ID of its daemon, if that is running."""

    @classmethod
    def of(cls, conf: Path, daemon: Process | None) -> Commands:
        """The commands for a configuration, and for the daemon that uses it."""
        run = "freshclam" if conf in PLACES else f"freshclam --config-file={shlex.quote(str(conf))}"
        if daemon is not None:
            return cls(run, daemon.unit and daemon.unit.removesuffix(".service"), daemon.pid)
        has_unit = conf in PLACES and _BOOTED.exists() and any(path.exists() for path in _UNIT_FILES)
        return cls(run, UNIT if has_unit else None, None)

    def start(self) -> str:
        """Start a daemon, now and at every boot if there is a service."""
        return f"systemctl enable --now {self.unit}" if self.unit else f"{self.run} --daemon"

    def restart(self) -> str:
        """Make the daemon read its configuration, and forget a cool-down that it has in memory."""
        return f"systemctl restart {self.unit}" if self.unit else f"{self._stop()} && {self.run} --daemon"

    def run_once(self) -> str:
        """Run freshclam by hand; the daemon, which keeps the log locked, is stopped for that time."""
        if self.pid is None:
            return self.run
        return f"{self._stop()} && {self.run}; {self._start_again()}"

    def without(self, file: Path) -> str:
        """Delete a file that a running daemon would write again, then update."""
        delete = f"rm {shlex.quote(str(file))}"
        if self.pid is None:
            return f"{delete} && {f'systemctl restart {self.unit}' if self.unit else self.run}"
        return f"{self._stop()} && {delete} && {self._start_again()}"

    def _stop(self) -> str:
        if self.unit:
            return f"systemctl stop {self.unit}"
        # As long as it runs it holds the log, and it may write its files again. A zombie has no "exe".
        return f"kill {self.pid} && while [ -e /proc/{self.pid}/exe ]; do sleep 1; done"

    def _start_again(self) -> str:
        return f"systemctl start {self.unit}" if self.unit else f"{self.run} --daemon"
