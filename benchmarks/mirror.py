"""ClamAV's side: signed files, the origin that serves them, and the DNS server that advertises them."""

from __future__ import annotations

import hashlib
import os
import random
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import trustme

from benchmarks.load.asking import HOST, Fetch
from benchmarks.origin import Origin, serve
from tests.support.dns_server import FakeDns
from tests.support.forge import ForgeKeys, forge_cdiff, forge_cvd, forge_sign

MB = 1_000_000
ORIGIN_RATE = 50 * MB
"""Bytes per second."""
VERSION = 27800
"""The initial version of daily."""

_CDIFF_SCRIPT = 37_500
"""Random bytes in the script of a cdiff, which makes the cdiff about 50 kB."""


class Mirror:
    """The CDN's files at this moment; there are none before `publish`.

    Args:
        work: an empty directory.
        dns: advertises the versions.

    Attributes:
        keys: directory of the keys that the files are signed with.
        origin: serves the files, and counts the requests.
        port: where the origin listens.
        tls_address: where it listens on port 443 with TLS; empty if that isn't permitted.
        version: of daily.
    """

    def __init__(self, work: Path, dns: FakeDns) -> None:
        self.keys = work / "keys"
        self.port = 0
        self.tls_address = ""
        self.version = VERSION
        self._signer = ForgeKeys.generate()
        self._signer.save(self.keys)
        self._files = work / "files"
        self._files.mkdir()
        self._dns = dns
        self.origin = Origin(self._files, ORIGIN_RATE)

    @property
    def url(self) -> str:
        """The origin's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def nameserver(self) -> str:
        """The DNS server as ``address:port``."""
        return self._dns.nameserver

    @property
    def cdiff(self) -> str:
        """The name of daily's newest cdiff; with ``.sign`` appended, that of its signature."""
        return f"daily-{self.version}.cdiff"

    def fetch(self, name: str) -> Fetch:
        """The request for a file, which checks the whole response."""
        path = self._files / name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Fetch(f"/{name}", path.stat().st_size, digest)

    def publish(self, database: str, version: int, size: int, *, hours_ago: int = 24) -> None:
        """Make a database with its newest cdiff and that one's signature, and advertise it.

        Args:
            size: approximate size of the CVD in bytes.
            hours_ago: when it was built and last modified.
        """
        built = int(time.time()) - 3600 * hours_ago
        new = self._files / "new"
        forge_cvd(new, database, version, size, stime=built, keys=self._signer)
        os.utime(new, (built, built))
        noise = random.Random(version).randbytes(_CDIFF_SCRIPT).hex()
        lines = [f"ADD Forged.{i}:0:*:{noise[i : i + 64]}" for i in range(0, len(noise), 64)]
        script = "\n".join([f"OPEN {database}.ndb", *lines, "CLOSE", ""]).encode()
        cdiff = forge_cdiff(database, version, script, self._signer)
        (self._files / f"{database}-{version}.cdiff").write_bytes(cdiff)
        (self._files / f"{database}-{version}.cdiff.sign").write_bytes(forge_sign(cdiff, self._signer))
        new.rename(self._files / f"{database}.cvd")
        self._dns.versions[database] = version
        if database == "daily":
            self.version = version


@contextmanager
def open_mirror(work: Path, *, daily: int, main: int = 0) -> Iterator[Mirror]:
    """Serve the files of a mirror.

    Args:
        work: an empty directory.
        daily: approximate size of daily.cvd in bytes.
        main: approximate size of main.cvd in bytes; 0 for none.
    """
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(tls)
    with closing(FakeDns()) as dns:
        mirror = Mirror(work, dns)
        mirror.publish("daily", VERSION, daily)
        if main:
            mirror.publish("main", dns.versions["main"], main)
        with serve(mirror.origin) as mirror.port, ExitStack() as stack:
            address = f"127.{random.randint(2, 60)}.{random.randint(1, 250)}.{random.randint(1, 250)}"
            with suppress(PermissionError):
                stack.enter_context(serve(mirror.origin, (address, 443), tls))
                mirror.tls_address = address
            yield mirror
