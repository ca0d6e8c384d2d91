"""Programs of others that listen: balancers, web servers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.gateway import connectable
from tests.support.site import eventually


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    """A server, once it listens."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            assert eventually(lambda: connectable(port) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(20)
