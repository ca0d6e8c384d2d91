"""A process that takes leases, to be told by a test what to do. One program for all engines."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from clamproxy.bucket.bucket import open_bucket
from clamproxy.leases.bucket_leases import BucketLeases
from clamproxy.leases.directory_leases import DirectoryLeases
from clamproxy.leases.leases import Lease, Leases
from tests.support.patience import be_patient

ENGINES: dict[str, Callable[[str], Leases]] = {
    "directory": lambda place: DirectoryLeases(Path(place)),
    "bucket": lambda place: BucketLeases(open_bucket(place), "gateway"),
}
"""By name: makes the leases of a process; the text says where they are."""

ROOT = Path(__file__).parents[2]


class LeaseProcess:
    """The test's side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout

    async def ask(self, *command: Any) -> Any:
        """Have something done, and return the answer."""
        self.tell(*command)
        return await self.answer()

    def tell(self, *command: Any) -> None:
        self._input.write(json.dumps(command).encode() + b"\n")

    async def answer(self) -> Any:
        line = await self._output.readline()
        assert line, "the process has ended"
        return json.loads(line)

    async def is_silent(self, seconds: float) -> bool:
        """Whether no answer comes for a while."""
        try:
            async with asyncio.timeout(seconds):
                await self._output.readuntil(b"\n")
        except TimeoutError:
            return True
        return False

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def lease_processes(engine: str, place: str, count: int) -> AsyncIterator[list[LeaseProcess]]:
    """Processes that share what is at a place."""
    command = [sys.executable, "-m", "tests.support.lease_process", engine, place]
    pipe = asyncio.subprocess.PIPE
    running = [
        await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
        for _ in range(count)
    ]
    try:
        processes = [LeaseProcess(one) for one in running]
        for one in processes:
            assert await one.answer() == "ready"
        yield processes
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in running))


async def _obey(leases: Leases) -> None:
    """The other side: one line for each command, one for each answer."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    held: dict[str, list[Lease]] = {}
    _say("ready")
    while line := await reader.readline():
        match json.loads(line):
            case ["take", name, tasks]:
                taken = [
                    one for one in await asyncio.gather(*(leases.take(name) for _ in range(tasks))) if one
                ]
                held.setdefault(name, []).extend(taken)
                answer: Any = len(taken)
            case ["release", name, learnt]:
                held[name].pop().release(learnt)
                answer = True
            case ["wait", name, limit]:
                outcome = await leases.wait(name, limit)
                answer = [outcome.ending.value, outcome.learnt]
            case ["lost", name]:
                answer = held[name][0].is_lost
            case ["stop"]:
                leases.stop()
                answer = True
        _say(answer)


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _main() -> None:
    engine, place = sys.argv[1:]
    be_patient()
    await _obey(ENGINES[engine](place))


if __name__ == "__main__":
    asyncio.run(_main())
