"""A mirror that the command line tool fills and Python's own web server serves."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.data import TESTDATA
from tests.support.dns_server import FakeDns
from tests.support.freshclam import OK, Freshclam, Outcome
from tests.support.gateway import USER_AGENT, Gateway
from tests.support.origin import OriginServer
from tests.support.site import LOCALHOST, Site, eventually, settings_for, signed

type Result = subprocess.CompletedProcess[str]

NOT_DELIVERED = 2
"""Exit code when the origin does not deliver everything (README.md, A mirror for a web server)."""
NAMED = {"user_agent": USER_AGENT}
"""Section `upstream` for a gateway that no freshclam has used yet."""
TEST = ("--database", "test")
ANEW = {"refresh": "10ms"}
"""Section `versions` for a gateway that asks for the versions again in every run."""


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def web_server(directory: Path) -> Iterator[str]:
    """Python's own web server, which knows nothing of ClamAV, nor of Range; its URL."""
    server = ThreadingHTTPServer((LOCALHOST, 0), partial(_Handler, directory=str(directory)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{LOCALHOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@dataclass(frozen=True, slots=True)
class Mirror:
    """The directory, the web server before it, and the gateway whose cache fills it."""

    site: Site
    directory: Path
    url: str

    def run(self, *options: str) -> Result:
        """Run the command once; nothing may be written to the standard output."""
        result = self.site.gateway.tool("mirror", str(self.directory), *options)
        assert result.stdout == ""
        return result

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start it, to be killed."""
        return self.site.gateway.start_tool("mirror", str(self.directory), *options)

    def update(self, *options: str) -> None:
        """Run it once for database test; it must succeed."""
        result = self.run(*TEST, *options)
        assert result.returncode == OK, result.stderr

    def release(self, version: int, *options: str) -> None:
        """Publish a version and run until it is there, because DNS may answer late once."""

        def arrived() -> bool:
            self.update(*options)
            return self.version() == version

        self.site.publish(version)
        assert eventually(arrived), self.site.origin.trace

    def client(self, name: str, local: int | None = None, **options: Any) -> Freshclam:
        """A freshclam whose mirror is the web server."""
        client = Freshclam(directory=self.site.directory / name, **({"mirrors": [self.url]} | options))
        if local is not None:
            client.install(TESTDATA / f"test-{local}.cvd")
        return client

    def names(self) -> set[str]:
        """The files that the web server shows, hidden ones left out."""
        return {path.name for path in self.directory.glob("[!.]*")}

    def version(self) -> int | None:
        """The version of test.cvd."""
        path = self.directory / "test.cvd"
        return int(path.read_bytes()[:512].split(b":")[2]) if path.exists() else None

    def patches(self) -> set[int]:
        """The versions of the cdiffs."""
        return {int(path.stem.partition("-")[2]) for path in self.directory.glob("test-*.cdiff")}

    def assert_sound(self) -> None:
        """Each file of the layout is as ClamAV signed it, with everything that leads to the CVD."""
        version = self.version()
        for path in self.directory.glob("test*"):
            name = f"test-{version}.cvd" if path.name == "test.cvd" else path.name
            assert path.read_bytes() == signed(name), path.name
        if version is not None:
            wanted = {f"test-{version}.cvd.sign", f"test-{version}.cdiff", f"test-{version}.cdiff.sign"}
            assert wanted <= self.names()


def idle_site(directory: Path, origin: OriginServer, dns: FakeDns, **sections: dict[str, Any]) -> Site:
    """A site whose proxy isn't running."""
    return Site(directory, origin, dns, Gateway(directory / "gateway", settings_for(origin, dns, **sections)))


@contextmanager
def open_mirror(site: Site, name: str = "mirror") -> Iterator[Mirror]:
    """A web server for a directory that doesn't exist yet."""
    directory = site.directory / name
    with web_server(directory) as url:
        yield Mirror(site, directory, url)


def told(mirror: Mirror, result: Result | Outcome) -> str:
    """Output to read if something went wrong."""
    text = result.output if isinstance(result, Outcome) else f"{result.returncode} {result.stderr}"
    return f"{text}\nat the CDN: {mirror.site.origin.trace}\nin the mirror: {sorted(mirror.names())}"
