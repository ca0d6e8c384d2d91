"""A site with local databases, and machines that get them by DatabaseCustomURL."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.freshclam import Freshclam, Outcome
from tests.support.gateway import Answer, Way
from tests.support.programs import require_program
from tests.support.site import LOCALHOST, Site, eventually

MARKER = b"harmless-marker-alpha-0001"
"""What the signatures below find."""
SIGNATURE = "Site.Test.Marker-1"
NDB = f"{SIGNATURE}:0:*:{MARKER.hex()}\n".encode()
OTHER_NDB = f"Site.Test.Other-1:0:*:{b'harmless-marker-beta-0002'.hex()}\n".encode()
BROKEN_NDB = b"Site.Test.Broken-1:0:*:no hex at all\n"


@dataclass(frozen=True, slots=True)
class LocalDatabases:
    """The files of a site, and what its machines have of them."""

    site: Site

    @property
    def directory(self) -> Path:
        return self.site.gateway.directory / "files"

    def put(self, name: str, content: bytes) -> None:
        """Put a file into the directory, as an administrator would: in place."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / name).write_bytes(content)

    def publish(self, name: str, content: bytes) -> None:
        """Put a file there, and wait until machines get it."""
        self.put(name, content)
        eventually(lambda: self.served(name) == content)

    def listed(self) -> dict[str, dict[str, Any]]:
        """What `clamproxy files` knows, by name."""
        result = self.site.gateway.tool("files", "--json")
        assert result.returncode == 0, result.stderr
        return {file["name"]: file for file in json.loads(result.stdout)["files"]}

    def wait_for(self, name: str, state: str) -> dict[str, Any]:
        """Wait until a file is in a state."""
        eventually(lambda: self.listed().get(name, {}).get("state") == state)
        return self.listed()[name]

    def ask(self, name: str, **fields: Any) -> Answer:
        return self.site.gateway.ask(f"/files/{name}", Way.ABSOLUTE, host=self.host, **fields)

    def served(self, name: str) -> bytes | None:
        answer = self.ask(name, user_agent="the test")
        return answer.body if answer.status == 200 else None

    @property
    def host(self) -> str:
        return f"{LOCALHOST}:{self.site.gateway.port}"

    def url(self, name: str, host: str | None = None) -> str:
        return f"http://{host or LOCALHOST}:{self.site.gateway.port}/files/{name}"

    def machine(self, *urls: str, name: str = "machine", **options: Any) -> Freshclam:
        """A freshclam with database test and these files."""
        client = self.site.client(name, database=None, attempts=1, custom_urls=list(urls), **options)
        excluded = [f"ExcludeDatabase {database}" for database in ("main", "daily", "bytecode")]
        client.extra = [*client.extra, *excluded, "ExtraDatabase test"]
        return client

    def downloads(self, name: str) -> int:
        """How often freshclam was sent the content of a file."""
        return self._count(name, 200)

    def requests(self, name: str) -> int:
        return sum(f"GET /files/{name} " in line and "ClamAV/" in line for line in self._log())

    def _count(self, name: str, status: int) -> int:
        wanted = f"GET /files/{name} - file {status} "
        return sum(wanted in line and "ClamAV/" in line for line in self._log())

    def _log(self) -> list[str]:
        return self.site.gateway.log.splitlines()

    def explain(self, outcome: Outcome | None = None) -> str:
        """What to read when something went wrong."""
        return f"{outcome.output if outcome else ''}\n{self.site.gateway.log}"


def has(client: Freshclam, name: str) -> bytes | None:
    """What a machine has of a file."""
    path = client.databases / name
    return path.read_bytes() if path.exists() else None


def finds(databases: Sequence[Path], scratch: Path, content: bytes = MARKER) -> bool:
    """Whether clamscan, with these databases, reports a file with the marker."""
    loaded = scratch / "loaded"
    loaded.mkdir(exist_ok=True)
    for old in loaded.iterdir():
        old.unlink()
    for path in databases:
        (loaded / path.name).write_bytes(path.read_bytes())
    sample = scratch / "sample"
    sample.write_bytes(content)
    result = subprocess.run(
        [require_program("clamscan"), "--no-summary", "--stdout", "-d", str(loaded), str(sample)],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 1), result.stdout
    return result.returncode == 1
