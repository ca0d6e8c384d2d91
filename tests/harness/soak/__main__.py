"""One life of the gateway, by simulated time: ``python -m tests.harness.soak MARKS``, and options."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.simulated_time import Timeline, simulate

if __name__ == "__main__":
    simulate(Timeline.load(Path(sys.argv.pop(1))))
    from mitmproxy.tools.main import mitmdump

    from clamproxy.proxy.log_format import before_start

    before_start()
    mitmdump(sys.argv[1:])
