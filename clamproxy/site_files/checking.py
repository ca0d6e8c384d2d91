"""Checks a local database as clamd would: by loading it, with clamscan if that is installed.

clamscan loads a lone file of any kind, even an .ign2 or .cfg, and scans an empty file with it (measured with
1.4.6; tests/integration/test_site_file_checks.py). What stops clamd stops clamscan, with the same words.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clamproxy.readable import shortened

TIMEOUT = 300.0
"""Seconds for a check. With 100 MB of signatures, clamscan takes some 30."""
LONGEST_REASON = 300
"""Characters."""
_LEAST_PRIORITY = "19"
_MOST_OUTPUT = 64 * 1024
"""Bytes that are kept of the beginning of a program's output, and of its end."""
_ERROR = re.compile(r"LibClamAV Error: (.*)")
_REPEATS = ("Can't load ", "cli_loaddbdir: ")
"""How messages begin that only repeat that there was an error."""
_RULES = re.compile(r"failed to parse or load (\d+) yara rules .*successfully loaded (\d+) rules")
_EXHAUSTED = re.compile(
    r"^(?:LibClamAV (?:Error|Warning)|ERROR): (.*(?:allocate memory|No space left|Disk quota"
    r"|Too many open files|Input/output error|Can't create temporary|Can't write to file).*)",
    re.MULTILINE,
)
"""What clamscan says if this machine lacks something, often along with ``Malformed database``."""
_UNUSABLE = re.compile(r"unknown extension|No hash signatures extracted")


class CheckError(Exception):
    """The file could not be checked; that says nothing about it. The text is the reason."""


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What a check has found."""

    problem: str = ""
    """Why the file must not be published; empty if it may be."""
    remark: str = ""
    """What there is to know about a file that may be published."""
    checked_by: str | None = None


def find_clamscan() -> str | None:
    """The path of clamscan; None if it isn't installed."""
    return shutil.which("clamscan")


async def check(path: Path, clamscan: str | None) -> FileVerdict:
    """Check a file, which must not change in the meantime.

    Cancelling this ends the program.

    Args:
        path: its name must have the extension by which ClamAV loads it.
        clamscan: from `find_clamscan`.

    Raises:
        CheckError: it can't be checked now.
    """
    if problem := obvious_problem(path):
        return FileVerdict(problem)
    if clamscan is None:
        return FileVerdict(remark="not checked, as clamscan isn't installed")
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as scratch:
        options = ("--stdout", "--no-summary", "--detect-pua=yes", f"--tempdir={scratch}")
        code, output = await _run([clamscan, *options, "-d", str(path), _nothing_in(scratch)])
    return verdict_of(code, output.replace(f"{path.parent}/", ""))


def verdict_of(code: int, output: str) -> FileVerdict:
    """What clamscan has said about a database.

    Args:
        code: its exit code: 0 and 1 if it has loaded the database.

    Raises:
        CheckError: it has failed for another reason.
    """
    if exhausted := _EXHAUSTED.search(output):
        raise CheckError(f"clamscan failed: {_line(exhausted[1])}")
    errors = _ERROR.findall(output)
    rules = _RULES.search(output)
    unusable = next((line for line in output.splitlines() if _UNUSABLE.search(line)), None)
    if code not in (0, 1) and not errors:
        last = next(reversed(output.strip().splitlines()), "")
        ended = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise CheckError(f"clamscan {ended}: {_line(last)}" if last else f"clamscan {ended}")
    if rules is not None and int(rules[2]):  # clamd loads the others
        remark = f"{rules[1]} of its {int(rules[1]) + int(rules[2])} rules can't be loaded: {errors[0]}"
        return FileVerdict(remark=_line(remark), checked_by="clamscan")
    if errors:
        said = [error for error in errors if not error.startswith(_REPEATS)] or errors
        return FileVerdict(_line("; ".join(dict.fromkeys(said))))
    if unusable is not None:
        return FileVerdict(_line(unusable.partition("Warning: ")[2] or unusable))
    return FileVerdict(checked_by="clamscan")


def obvious_problem(path: Path) -> str:
    """What can be seen without ClamAV: an empty file, or an error page from a web server. Quick.

    An empty file is an error for freshclam (docs/protocol.md 2.1).
    """
    with path.open("rb") as file:
        head = file.read(512).strip().lower()
    if not head and path.stat().st_size <= 512:
        return "it is empty"
    is_page = head.startswith((b"<!doctype html", b"<html", b"<head"))
    return "it is an HTML page" if is_page else ""


def _nothing_in(directory: str) -> str:
    """The path of a new, empty file."""
    empty = Path(directory, "empty")
    empty.touch()
    return str(empty)


async def _run(command: list[str]) -> tuple[int, str]:
    """Run a program at the least priority; returns its exit code and output."""
    nice = shutil.which("nice")
    if nice is not None:
        command = [nice, "-n", _LEAST_PRIORITY, *command]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # so that everything that it starts ends with it
            env={"PATH": os.defpath, "LC_ALL": "C"},
        )
    except OSError as error:
        raise CheckError(f"clamscan can't be started: {error.strerror or error}") from error
    assert process.stdout is not None  # noqa: S101
    try:
        async with asyncio.timeout(TIMEOUT):
            output = await _ends_of(process.stdout)
            code = await process.wait()
    except TimeoutError:
        raise CheckError(f"clamscan didn't end within {TIMEOUT:.0f} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return code, output.decode("utf-8", "replace")


async def _ends_of(stream: asyncio.StreamReader) -> bytes:
    """Read everything, and keep the beginning and the end, where clamscan sums up."""
    head, tail, is_cut = b"", b"", False
    while piece := await stream.read(_MOST_OUTPUT):
        room = _MOST_OUTPUT - len(head)
        head, tail = head + piece[:room], tail + piece[room:]
        is_cut |= len(tail) > _MOST_OUTPUT
        tail = tail[-_MOST_OUTPUT:]
    return head + (b"\n" if is_cut else b"") + tail


def _line(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text).strip()
    return shortened(printable, LONGEST_REASON)
