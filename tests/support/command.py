"""``clamproxy`` whose `run` loads another script: ``python -m tests.support.command SCRIPT run …``."""

from __future__ import annotations

import sys
from pathlib import Path

from clamproxy.cli import main, run

if __name__ == "__main__":
    run._SCRIPT = Path(sys.argv.pop(1)).absolute()
    main(prog_name="clamproxy")
