"""Fuzzes parsers guided by coverage. `test_fuzz.py` runs this; by hand, all arguments are optional:

    python -m tests.torture.fuzzing --seconds 600 'holds.json' 'User-Agent'

Atheris instruments all modules once. Then a child process for each parser goes on until it has made its runs
or its time is over. The last line tells as JSON what came of each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import atheris

from tests.torture.inputs import HOSTILE, TOKENS

with atheris.instrument_imports(include=["clamproxy"]):
    from tests.torture.parsers import BY_NAME
    from tests.torture.parsers.parser import Parser

_LARGEST = 16 * 2**10
"""Bytes of an input."""
_MEMORY = 1024
"""MiB that a child may take; what is imported takes some 200."""
_SLOWEST = 20
"""Seconds for one input: machines are busy."""
_DONE = re.compile(rb"^Done (\d+) runs", re.MULTILINE)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=-1)
    arguments.add_argument("--seconds", type=int, default=0, help="for each parser")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument(
        "--crashes", type=Path, default=Path("/tmp"), help="where the bytes go that fell one"
    )
    arguments.add_argument("names", nargs="*")
    chosen = arguments.parse_args()
    found = {name: _fuzzed(BY_NAME[name], chosen) for name in chosen.names or BY_NAME}
    sys.stdout.write(json.dumps(found) + "\n")


def _fuzzed(parser: Parser, chosen: argparse.Namespace) -> dict[str, object]:
    """Fuzz a parser in a child process; returns the number of runs, and its last words if it fell."""
    with tempfile.TemporaryDirectory() as directory:
        corpus, output = Path(directory, "corpus"), Path(directory, "output")
        corpus.mkdir()
        for number, data in enumerate((*parser.seeds, *HOSTILE)):
            (corpus / str(number)).write_bytes(data[:_LARGEST])
        words = Path(directory, "words")
        words.write_text("".join(f'"{_quoted(token)}"\n' for token in TOKENS if len(token) <= 60))
        options = [
            *(f"-runs={chosen.runs}", f"-max_total_time={chosen.seconds}", f"-seed={chosen.seed or 1}"),
            *(f"-max_len={_LARGEST}", f"-rss_limit_mb={_MEMORY}", f"-timeout={_SLOWEST}", f"-dict={words}"),
            f"-artifact_prefix={chosen.crashes}/{parser.name.replace(' ', '-').replace('/', '')}-",
        ]
        pid = os.fork()
        if pid == 0:
            tempfile.tempdir = directory  # what a parser makes goes with it
            _fuzz(parser, [*options, str(corpus)], output)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = output.read_bytes()
        runs = _DONE.search(said)
        trouble = "" if code == 0 and runs else said[-3000:].decode("utf-8", "replace")
        return {"runs": int(runs[1]) if runs else 0, "trouble": trouble}


def _fuzz(parser: Parser, options: list[str], output: Path) -> NoReturn:
    """Let atheris run, and end the process without a trace of it in the parent's directories."""
    code: object = 1
    try:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        atheris.Setup([sys.argv[0], *options], parser.accepts)
        atheris.Fuzz()
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _quoted(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main()
