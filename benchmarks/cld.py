"""What a CLD costs at each of zlib's levels, to build, send and read: `python -m benchmarks.cld`."""

from __future__ import annotations

import os
import random
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from clamproxy.formats.cld import build_cld, verify_cld
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases.builder import LEVEL
from tests.support.forge import ForgeKeys, forge_database, forge_patch

MB, MIB = 1_000_000, 2**20
DATABASE, FILE, BASE_VERSION = "daily", "daily.hdb", 27800
LEVELS = (0, 1, 6)  # a plain tar, zlib's fastest and its default
FLEET = 100  # clients behind one link
SLOW, FAST = 100e6, 1e9  # bits per second between gateway and client

_LINE = b"%b:%d:Win.Malware.Agent-%d-0:73\n"
_LINE_SIZE = 71  # bytes; the same for all, so a line is found by its number
_COMPRESSED_LINE = 27.6  # bytes that a line takes in the CVD
_ADDED, _DELETED = 1750, 60  # lines per cdiff, which takes some 50 kB then


@dataclass(frozen=True, slots=True)
class Build:
    """One CLD, built and read in its own process.

    Attributes:
        patches: how many cdiffs lead from the base to it.
        level: zlib's compression level.
        seconds: to build it.
        memory: peak memory of the process while it built, in bytes above what it used before.
        size: of the CLD in bytes.
        verify_seconds: to read it as a client does, which inflates it and hashes its files.
    """

    patches: int
    level: int
    seconds: float
    memory: int
    size: int
    verify_seconds: float

    def wait(self, rate: float) -> float:
        """Seconds for a client to download and then verify it, at `rate` bits per second."""
        return self.size * 8 / rate + self.verify_seconds

    def as_row(self) -> tuple[str, ...]:
        return (
            f"{self.patches}",
            f"{self.level}",
            f"{self.seconds:.1f}",
            f"{self.memory / MIB:.0f}",
            f"{self.size / MB:.1f}",
            f"{self.verify_seconds:.2f}",
            f"{self.wait(SLOW):.1f}",
            f"{self.wait(FAST):.2f}",
            f"{FLEET * self.size / 1e9:.1f}",
        )


class Forger:
    """Generates virus signatures: the same ones in each run."""

    def __init__(self) -> None:
        self._chance = random.Random(5)
        self._drawn = 1_000_000  # the number in a name always has seven digits

    def lines(self, count: int) -> bytes:
        """New signatures, which compress about as well as those of a daily.cvd."""
        hashes = self._chance.randbytes(16 * count).hex().encode()
        first, self._drawn = self._drawn, self._drawn + count
        return b"".join(
            _LINE % (hashes[32 * i : 32 * i + 32], self._chance.randrange(100_000, 1_000_000), first + i)
            for i in range(count)
        )

    def release(self, contents: bytes) -> tuple[bytes, bytes]:
        """The next version of a file: lines are deleted all over it, and new ones added at its end.

        Returns:
            The contents, and the script that leads to them.
        """
        script, kept, behind = [b"OPEN %b" % FILE.encode()], list[bytes](), 0
        for index in sorted(self._chance.sample(range(len(contents) // _LINE_SIZE), _DELETED)):
            offset = index * _LINE_SIZE
            script.append(b"DEL %d %b" % (index + 1, contents[offset : offset + 16]))
            kept.append(contents[behind:offset])
            behind = offset + _LINE_SIZE
        added = self.lines(_ADDED)
        script += [b"ADD " + line for line in added.splitlines()]
        return b"".join([*kept, contents[behind:], added]), b"\n".join([*script, b"CLOSE", b""])


def forge(work: Path, patches: int, size: int, keys: ForgeKeys) -> None:
    """Write a CVD of about `size` bytes, and the cdiffs that follow it."""
    forger = Forger()
    before = forger.lines(max(_DELETED, round(size / _COMPRESSED_LINE)))
    _path(work, BASE_VERSION).write_bytes(forge_database(DATABASE, BASE_VERSION, {FILE: before}, keys))
    for version in range(BASE_VERSION + 1, BASE_VERSION + patches + 1):
        after, script = forger.release(before)
        cdiff = forge_patch(DATABASE, version, {FILE: before}, {FILE: after}, script, keys)
        _path(work, version).write_bytes(cdiff)
        before = after


def _path(work: Path, version: int) -> Path:
    """The base, or the cdiff that leads to a later version."""
    kind = Kind.CVD if version == BASE_VERSION else Kind.CDIFF
    return work / ObjectId(DATABASE, version, kind).file_name


def measure(work: Path, patches: int, level: int, keys: TrustedKeys) -> Build:
    """Build one CLD from what `forge` wrote, and verify it. Needs a process that has done nothing else."""
    reached = BASE_VERSION + patches
    expected = ObjectId(DATABASE, reached, Kind.CLD)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    memory = _peak_memory()
    with tempfile.TemporaryDirectory(dir=work) as directory, ExitStack() as stack:
        workspace, target = Path(directory) / "unpacked", Path(directory) / expected.file_name
        workspace.mkdir()
        base, *cdiffs = (
            stack.enter_context(_path(work, version).open("rb"))
            for version in range(BASE_VERSION, reached + 1)
        )
        start = time.perf_counter()
        build_cld(base, cdiffs, expected, workspace, target, keys, level=level)
        built = time.perf_counter()
        memory = _peak_memory() - memory
        with target.open("rb") as file:
            verify_cld(file, expected, keys)
        verified = time.perf_counter()
        return Build(patches, level, built - start, memory, target.stat().st_size, verified - built)


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(peak[1]) * 1024 if peak else 0


def table(builds: Sequence[Build]) -> Table:
    """The figures, one line for each CLD."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = ["patches", "level", "build\ns", "memory\nMiB", "size\nMB", "verify\ns"]
    headings += ["wait, s\n100 Mbit/s", "wait, s\n1 Gbit/s", f"GB for\n{FLEET}"]
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for build in builds:
        shown.add_row(*build.as_row(), end_section=build.level == LEVELS[-1])
    return shown


def _numbers(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in value.split(","))
    if min(numbers) < 1:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,30")
    return numbers


@click.command()
@click.option("--patches", default="1,30", show_default=True, callback=_numbers, help="Cdiffs to apply.")
@click.option("--megabytes", default=60, show_default=True, type=click.IntRange(1), help="Size of the CVD.")
def main(patches: tuple[int, ...], megabytes: int) -> None:
    """Build CLDs at several levels of compression, and read them."""
    keys, console = ForgeKeys.generate(), Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="clamproxy-bench-") as directory:
        work = Path(directory)
        forge(work, max(patches), megabytes * MB, keys)
        base, cdiff = (_path(work, version).stat().st_size for version in (BASE_VERSION, BASE_VERSION + 1))
        # A new process for each: memory that one build has already got from the system would not show up in
        # the next.
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            cases = [(count, level) for count in patches for level in LEVELS]
            jobs = [pool.submit(measure, work, *case, keys.trusted) for case in cases]
            builds = [job.result() for job in jobs]
    console.print(f"base {base / MB:.1f} MB, first cdiff {cdiff / 1000:.0f} kB, {os.cpu_count()} processors")
    console.print(table(builds))
    console.print(f"wait: transfer and verify, computed; the gateway builds at level {LEVEL}")


if __name__ == "__main__":
    main()
