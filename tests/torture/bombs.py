"""Small files that would become huge, and a process that opens them: see `main`."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from clamproxy.formats.cdiff import SCRIPT_LIMIT, CdiffContainer, iter_commands
from clamproxy.formats.cld import build_cld
from clamproxy.formats.members import member_header
from clamproxy.formats.patching import patch_info
from clamproxy.formats.signatures import InvalidObject
from clamproxy.formats.verification import verify
from clamproxy.objects import ObjectId
from clamproxy.threads import in_thread
from tests.support.forge import ForgeKeys, forge_database, forge_info, seal, seal_cdiff
from tests.support.processes import peak_of

MEMORY = 640 * 2**20
"""Bytes of address space that the process gets; some 250 MiB are used before anything happens."""
PROCESSOR = 300
"""Seconds of the processor's time for all files together."""
FILES = {"daily.ndb": b"x\n" * 500_000, "daily.hdb": b"y\n"}

_OPEN, _CLOSE = b"OPEN daily.ndb\n", b"CLOSE\n"
_MANY = 20_000


@cache
def patches(keys: ForgeKeys) -> dict[str, bytes]:
    """Signed cdiffs; each would take gigabytes or minutes."""
    adding = b"ADD " + b"x" * 10_000 + b"\n"
    long_list = b"".join(b"DEL %d x\n" % number for number in range(1, 1_100_000))
    scripts = {
        "long lines": packed(_OPEN, adding * 100, 2000),
        "one endless line": packed(b"#", b"x" * 2**20, 2000),
        "empty lines": packed(_OPEN, b"ADD \n" * 200_000, 500),
        "comments": packed(b"", b"#\n" * 500_000, 1000),
        "deletions": gzip.compress(_OPEN + long_list + _CLOSE, 1),
        "files": gzip.compress(b"".join(b"OPEN daily.%d\nADD x\nCLOSE\n" % n for n in range(_MANY)), 1),
        "rewriting": gzip.compress((_OPEN + b"XCHG 1 x x\n" + _CLOSE) * _MANY, 1),
        "moving": gzip.compress(b"MOVE daily.ndb daily.hdb 1 x 2 x\n" * _MANY, 1),
        "a long .info": packed(b"OPEN daily.info\n", adding * 100, 2000),
        "many edits of .info": gzip.compress((b"OPEN daily.info\n" + adding + _CLOSE) * _MANY, 1),
        "empty streams": gzip.compress(b"#\n") + gzip.compress(b"") * 3_000_000,
        "a name without end": b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 64 * 2**20,
    }
    return {name: seal_cdiff(2, script, keys=keys) for name, script in scripts.items()}


@cache
def databases(keys: ForgeKeys) -> dict[str, bytes]:
    """Signed CVDs."""
    first = _member("COPYING", b"x")
    both = first + _member("daily.info", forge_info("daily", 1, {"daily.ndb": b""}, keys))
    large = member_header("daily.ndb", 2**33 - 512)
    payloads = {
        "bytes before .info": packed(first + large, bytes(2**20), 8192),
        "bytes after .info": packed(both + large, bytes(2**20), 8192),
        "a long .info": packed(first + member_header("daily.info", 2**33 - 512), b"x\n" * 2**19, 8192),
        "many files": gzip.compress(both + b"".join(_member(f"daily.{n}", b"") for n in range(_MANY)), 1),
    }
    return {name: seal(1, payload, keys) for name, payload in payloads.items()}


def packed(beginning: bytes, piece: bytes, times: int) -> bytes:
    """A gzip stream of the beginning and that many pieces, which is made in no time; its end is missing."""
    compressor = zlib.compressobj(9, wbits=31)
    start = compressor.compress(beginning) + compressor.flush(zlib.Z_FULL_FLUSH)
    # After a full flush, the same bytes always give the same.
    return start + (compressor.compress(piece) + compressor.flush(zlib.Z_FULL_FLUSH)) * times


def _member(name: str, content: bytes) -> bytes:
    return member_header(name, len(content)) + content + bytes(-len(content) % 512)


# The process


def _verify_patch(path: Path, keys: ForgeKeys) -> None:
    verify(path, ObjectId.parse("daily-2.cdiff"), keys.trusted)


def _follow(path: Path, keys: ForgeKeys) -> None:
    with path.open("rb") as file:
        commands = iter_commands(file, CdiffContainer.parse(file), "daily")
        patch_info(forge_info("daily", 1, FILES, keys), commands, "daily")


def _build(path: Path, keys: ForgeKeys) -> None:
    with path.open("rb") as file, tempfile.TemporaryDirectory(dir=path.parent) as directory:
        workspace = Path(directory, "workspace")
        workspace.mkdir()
        base = io.BytesIO(forge_database("daily", 1, FILES, keys))
        target = Path(directory, "cld")
        build_cld(base, [file], ObjectId.parse("daily-2.cld"), workspace, target, keys.trusted, level=1)


def _verify_database(path: Path, keys: ForgeKeys) -> None:
    verify(path, ObjectId.parse("daily-1.cvd"), keys.trusted)


def _unpack(path: Path, keys: ForgeKeys) -> None:
    with path.open("rb") as file, tempfile.TemporaryDirectory(dir=path.parent) as directory:
        workspace = Path(directory, "workspace")
        workspace.mkdir()
        target = Path(directory, "cld")
        build_cld(file, [], ObjectId.parse("daily-1.cld"), workspace, target, keys.trusted, level=1)


WAYS: dict[str, Callable[[Path, ForgeKeys], None]] = {
    "verify a patch": _verify_patch,
    "follow a patch": _follow,
    "apply a patch": _build,
    "verify a database": _verify_database,
    "unpack a database": _unpack,
}


async def _open(way: str, path: Path, keys: ForgeKeys) -> dict[str, object]:
    """Open a file in a thread, as the gateway does, and look how long the loop has to wait meanwhile.

    Both are told in seconds of this process's processor time: those in which others have the processor don't
    count. A wait is then as long as the thread keeps the interpreter to itself.
    """

    def work() -> str:
        try:
            WAYS[way](path, keys)
        except InvalidObject as error:
            return str(error)
        return ""

    began, longest = time.process_time(), 0.0
    future = in_thread("bomb", work)
    while not future.done():
        before = time.process_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.process_time() - before)
    return {"refusal": future.result(), "cpu": time.process_time() - began, "wait": longest}


def plain_inflation() -> float:
    """Seconds of processor time that it takes to inflate as many bytes as a script may have."""
    lines = b"ADD x\n" * 2**18
    data = packed(b"", lines, SCRIPT_LIMIT // len(lines))
    inflater = zlib.decompressobj(wbits=31)
    began = time.process_time()
    while inflater.decompress(data, 2**16):
        data = inflater.unconsumed_tail
    return time.process_time() - began


def main(way: str, directory: str, *names: str) -> None:
    """Open the files in a directory, which also has the keys, with a limit on memory and processor time."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR))
    keys = ForgeKeys.load(Path(directory, "keys"))
    plain = plain_inflation()
    found = {name: asyncio.run(_open(way, Path(directory, name), keys)) for name in names}
    # Not by getrusage, which counts what the parent had before this program was executed.
    peak = peak_of(os.getpid()) // 1024
    sys.stdout.write(json.dumps({"opened": found, "peak": peak, "plain": plain}))


if __name__ == "__main__":
    main(*sys.argv[1:])
