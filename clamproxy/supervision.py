"""What the service manager is told, by systemd's sd_notify(3), and its watchdog.

The protocol is a datagram of ``NAME=value`` lines to the socket that ``NOTIFY_SOCKET`` names. Without
that variable, nothing here does anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Supervisor:
    """Tells the service manager what the process does, and that its event loop is still alive.

    Args:
        environ: the environment, as the service manager has set it.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval = _interval(environ) if self._address is not None else None
        """Seconds between two signs of life; None if none are expected."""
        self._task: asyncio.Task[None] | None = None
        self._failed = False

    def ready(self, status: str = "") -> None:
        """The process has started, or works with a new configuration.

        Args:
            status: one line for ``systemctl status``.
        """
        self._tell("READY=1", status)

    def reloading(self, status: str = "Reloading the configuration") -> None:
        """The configuration is being read; `ready` must follow, however that ends."""
        # CLOCK_MONOTONIC, which systemd 253 and later compare with the time of their request (sd_notify(3)).
        self._tell(
            f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", status
        )

    def stopping(self, status: str = "Stopping") -> None:
        self._tell("STOPPING=1", status)

    def start(self) -> None:
        """Give signs of life from the running event loop until `stop`. A loop that hangs gives none."""
        if self.watchdog_interval is not None and self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._give_signs(self.watchdog_interval), name="watchdog of the service manager"
            )

    def stop(self) -> None:
        """Give no more signs of life; systemd expects none once it knows that the process is stopping."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _give_signs(self, interval: float) -> None:
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(interval)

    def _tell(self, state: str, status: str = "") -> None:
        """Send one datagram; a service manager that doesn't listen is no reason to fail."""
        if self._address is None:
            return
        lines = [state]
        if status:
            lines.append(f"STATUS={' '.join(status.split())}")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                logger.warning("Can't notify the service manager: %s.", error.strerror or error)
            self._failed = True
        else:
            self._failed = False


def _address(name: str) -> str | None:
    """The socket's address: a path, or ``@name`` for Linux's abstract ones; other forms are ignored."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _interval(environ: Mapping[str, str]) -> float | None:
    """Half of WatchdogSec, as sd_watchdog_enabled(3) advises; None if it is not set for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
        return microseconds / 2_000_000 if microseconds > 0 else None
    return None
