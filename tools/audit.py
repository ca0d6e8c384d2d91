"""Ask pip-audit whether a pinned dependency has a known vulnerability.

    .venv/bin/python tools/audit.py [options of pip-audit]

Exit codes: 0 none has; 1 some have, and each is named; 2 pip-audit failed; 75 not all of them could be asked
about, because no server answers or because it doesn't know them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = "requirements-dev.txt"
"""Holds what requirements.txt holds, too."""
FAILED = 2
UNKNOWN = 75  # EX_TEMPFAIL of sysexits.h
_SILENCE = re.compile(
    r"^requests\.exceptions\.(ConnectionError|ConnectTimeout|ProxyError|ReadTimeout): "
    r"|^ERROR:pip_audit\._cli:Could not connect to ",
    re.MULTILINE,
)
"""How pip-audit says that no server answers: mostly by the traceback of the library that it uses."""


def reported(options: list[str]) -> list[dict[str, Any]]:
    """What is said of each pin: `vulns` is missing where nothing is known. Empty if nobody answered."""
    program = str(Path(sys.executable).with_name("pip-audit"))
    command = [
        program,
        "--disable-pip",
        "--require-hashes",
        "--progress-spinner=off",
        "--format=json",
        "-r",
        PINS,
    ]
    done = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print((done.stderr.strip() or "pip-audit said nothing").splitlines()[-1], file=sys.stderr)
        if not _SILENCE.search(done.stderr):
            sys.exit(FAILED)
        return []
    return found


def main(options: list[str]) -> int:
    pins = reported(options)
    unknown = sum("vulns" not in pin for pin in pins)
    lines = [
        f"{pin['name']} {pin['version']}: {vulnerability['id']}, "
        f"mended in {', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for pin in pins
        for vulnerability in pin.get("vulns", ())
    ]
    print(*lines, f"{PINS}: {len(pins)} pins, {unknown} unknown, {len(lines)} vulnerabilities", sep="\n")
    if lines:
        return 1
    return UNKNOWN if unknown or not pins else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
