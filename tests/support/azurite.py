"""Azurite, Microsoft's own server for Azure Blob Storage on a developer's machine (npm: azurite)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

from tests.support.gateway import connectable, free_ports
from tests.support.programs import require_program

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The same in every Azurite, from its documentation."""
CONTAINER = "site"


@contextmanager
def azurite(directory: Path) -> Iterator[dict[str, str]]:
    """A server with an empty container; gives the environment in which a process finds it."""
    program, (port,) = require_program("azurite-blob"), free_ports(1)
    options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(directory)]
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not connectable(port):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            _make_container(port)
            yield {
                "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": KEY,
                "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
                "AZURE_ALLOW_HTTP": "true",
            }
        finally:
            process.kill()


def _make_container(port: int) -> None:
    """By a request with a shared key.

    https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
    """
    date, version, kind = formatdate(usegmt=True), "2023-11-03", "application/octet-stream"
    text = (
        f"PUT\n\n\n\n\n{kind}\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{version}\n"
        f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    )
    signature = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Content-Type": kind,
        "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}",
    }
    url = f"http://127.0.0.1:{port}/{ACCOUNT}/{CONTAINER}?restype=container"
    request = urllib.request.Request(url, b"", headers, method="PUT")
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 201
