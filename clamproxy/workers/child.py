"""The parent's view of one worker: its process, what it says, and how to ask it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from clamproxy.control import Marks, ReloadOutcome
from clamproxy.workers import channel as wire
from clamproxy.workers.channel import VARIABLE
from clamproxy.workers.ports import Port, Ports, from_json, send_outcome


class Child:
    """A running worker. Event loop only.

    Args:
        became_ready: called once, when it serves.
        changed_ports: called when it says which ports it uses.
    """

    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        channel: socket.socket,
        ports: Ports,
        became_ready: Callable[[Child], None],
        changed_ports: Callable[[], None],
    ) -> None:
        self.number = number
        self.started_at = self.heard_at = time.monotonic()
        self.is_ready = False
        self.uses: list[Port] | None = None
        """None until it has said so."""
        self.marks: Marks = {}
        self.configuration = ""
        """The digest of the configuration that it has."""
        self._process = process
        self._channel = channel
        self._ports = ports
        self._became_ready = became_ready
        self._changed_ports = changed_ports
        self._asked = 0
        self._outcomes: dict[int, asyncio.Future[ReloadOutcome | None]] = {}
        channel.setblocking(False)
        asyncio.get_running_loop().add_reader(channel, self._listen)

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environ: Mapping[str, str],
        place: Mapping[str, Any],
        ports: Ports,
        became_ready: Callable[[Child], None],
        changed_ports: Callable[[], None],
    ) -> Self:
        """Start a process.

        Args:
            place: what `Worker` must know; its end of the channel is added.

        Raises:
            OSError: the system doesn't allow it.
        """
        ours, theirs = wire.pair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**environ, VARIABLE: json.dumps({**place, "channel": theirs.fileno()})},
                    pass_fds=(theirs.fileno(), place["memory"]),
                    # What a terminal sends goes to the parent alone.
                    process_group=0,
                )
        except BaseException:
            ours.close()
            raise
        return cls(place["number"], process, ours, ports, became_ready, changed_ports)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ended(self) -> int:
        """Wait for its end; returns its exit code, negative for a signal."""
        code = await self._process.wait()
        self.is_ready = False
        if self._channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
        self._give_up_on_outcomes()
        return code

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def log(self, level: int, text: str) -> bool:
        """Have it write a line to the log; False if it can't."""
        return self.is_ready and wire.send(self._channel, {"log": [level, text]})

    async def reload(self, *, speaks: bool) -> ReloadOutcome | None:
        """Have it read the configuration again; None if it has ended before that was done.

        Args:
            speaks: whether it writes the outcome to the log.
        """
        self._asked += 1
        number = self._asked
        outcome: asyncio.Future[ReloadOutcome | None] = asyncio.get_running_loop().create_future()
        self._outcomes[number] = outcome
        if not wire.send(self._channel, {"reload": number, "speaks": speaks}):
            return None
        try:
            return await outcome
        finally:
            self._outcomes.pop(number, None)

    def _listen(self) -> None:
        while True:
            try:
                found = wire.receive(self._channel)
            except BlockingIOError:
                return
            if found is None:
                asyncio.get_running_loop().remove_reader(self._channel)
                return
            message, attached = found
            self.heard_at = time.monotonic()
            try:
                self._take(message, attached)
            finally:
                if attached is not None:
                    attached.close()

    def _take(self, message: wire.Message, attached: socket.socket | None) -> None:
        if "open" in message and attached is not None:
            send_outcome(attached, from_json(message["open"]), self._ports)
        if "marks" in message:
            self.marks, self.configuration = message["marks"], message["configuration"]
        if "uses" in message:
            self.uses = [from_json(one) for one in message["uses"]]
            self._changed_ports()
        if "reloaded" in message:
            waiting = self._outcomes.get(message["reloaded"])
            if waiting is not None and not waiting.done():
                waiting.set_result(ReloadOutcome.from_json(message["outcome"]))
        match message.get("state"):
            case "READY=1" if not self.is_ready:
                self.is_ready = True
                self._became_ready(self)
            case "STOPPING=1":
                self.is_ready = False

    def _give_up_on_outcomes(self) -> None:
        for waiting in self._outcomes.values():
            if not waiting.done():
                waiting.set_result(None)
