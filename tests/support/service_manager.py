"""The service manager's end of sd_notify(3)."""

from __future__ import annotations

import socket
import uuid


class Manager:
    """systemd's end of the notify socket."""

    def __init__(self) -> None:
        name = f"clamproxy-{uuid.uuid4()}"
        self.environment = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "500000"}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name}")
        self._socket.setblocking(False)
        self.states: list[str] = []
        """First lines of what was heard, signs of life left out."""
        self.signs = 0
        """Of life."""

    def listen(self) -> list[str]:
        """Take in what has come."""
        while True:
            try:
                first = self._socket.recv(4096).decode().partition("\n")[0]
            except BlockingIOError:
                return self.states
            if first == "WATCHDOG=1":
                self.signs += 1
            else:
                self.states.append(first)

    def close(self) -> None:
        self._socket.close()
