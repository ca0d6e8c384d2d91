"""Runs the real freshclam in a separate directory, and returns the outcome."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.programs import require_program

COOL_DOWN_OFFSET = 61
"""Where retry_after (8 bytes, little endian) is in freshclam.dat (docs/protocol.md 2.4)."""
HARD_LIMIT = 50
"""Seconds for one run."""

OK, NOT_CONNECTED, EMPTY, BAD_CVD, FAILED, FORBIDDEN = 0, 5, 6, 7, 11, 17
"""Exit codes (docs/protocol.md 2.1)."""


def require_freshclam() -> str:
    """See `require_program`."""
    return require_program("freshclam")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run left."""

    code: int
    output: str
    databases: dict[str, int]
    """File name (``test.cvd``) to the version in its header."""
    retry_after: float
    """End of the cool-down in Unix seconds, 0 for none."""

    @property
    def version(self) -> int | None:
        """The version of database test, whether a CVD or a CLD."""
        versions = [version for name, version in self.databases.items() if name.startswith("test.")]
        assert len(versions) < 2, self.databases
        return versions[0] if versions else None

    @property
    def cooling(self) -> bool:
        """Whether freshclam.dat forbids the next run (403 or 429 reached the client)."""
        return self.retry_after > time.time()


@dataclass(slots=True, kw_only=True)
class Freshclam:
    """One installation of freshclam: a database directory and a configuration, run as often as wanted."""

    directory: Path
    mirrors: list[str]
    private: bool = False
    """The mirrors are PrivateMirror lines."""
    proxy: tuple[str, int] | None = None
    """HTTPProxyServer and HTTPProxyPort."""
    resolver: str | None = None
    """The nameserver (an address; its port is 53) that freshclam asks; None switches DNS off."""
    resolver_timeout: int = 10
    """Seconds that freshclam waits for the nameserver."""
    database: str | None = "test"
    """The only database to update; None for the standard three."""
    attempts: int = 2
    scripted: bool = True
    connect_timeout: int = 10
    receive_timeout: int = 20
    test_databases: bool = True
    custom_urls: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    """More lines of freshclam.conf."""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_freshclam()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.databases.mkdir(exist_ok=True)

    @property
    def databases(self) -> Path:
        """DatabaseDirectory."""
        return self.directory / "db"

    def install(self, source: Path, name: str = "test.cvd") -> None:
        """Put a database there, as if by an earlier run."""
        shutil.copyfile(source, self.databases / name)

    def run(self) -> Outcome:
        """Run freshclam once."""
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", **self.environment}
        result = subprocess.run(
            self._command(),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=HARD_LIMIT,
        )
        output = result.stdout.decode("utf-8", "replace")
        return Outcome(result.returncode, output, self._versions(), self._retry_after())

    def write(self) -> Path:
        """Write freshclam.conf, as each run does."""
        config = self.directory / "freshclam.conf"
        config.touch(mode=0o600)  # with a password in it, freshclam insists on that
        config.write_text("\n".join(self._config()) + "\n")
        return config

    def _command(self) -> list[str]:
        config = self.write()
        command = [require_freshclam(), "--stdout", f"--config-file={config}"]
        if self.database is not None:
            command.append(f"--update-db={self.database}")
        if self.resolver is None:
            return [*command, "--no-dns"]
        resolv = self.directory / "resolv.conf"
        resolv.write_text(f"nameserver {self.resolver}\noptions timeout:{self.resolver_timeout} attempts:1\n")
        bind = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ["unshare", "-m", "sh", "-c", bind, str(resolv), *command]

    def _config(self) -> list[str]:
        kind = "PrivateMirror" if self.private else "DatabaseMirror"
        lines = [
            f"DatabaseDirectory {self.databases}",
            f"DatabaseOwner {pwd.getpwuid(os.getuid()).pw_name}",
            *(f"{kind} {mirror}" for mirror in self.mirrors),
            *(f"DatabaseCustomURL {url}" for url in self.custom_urls),
            f"MaxAttempts {self.attempts}",
            f"ConnectTimeout {self.connect_timeout}",
            f"ReceiveTimeout {self.receive_timeout}",
            f"ScriptedUpdates {_yes(self.scripted)}",
            f"TestDatabases {_yes(self.test_databases)}",
            "LogVerbose yes",
            *self.extra,
        ]
        if self.proxy is not None:
            lines += [f"HTTPProxyServer {self.proxy[0]}", f"HTTPProxyPort {self.proxy[1]}"]
        return lines

    def _versions(self) -> dict[str, int]:
        versions = {}
        for path in sorted(self.databases.iterdir()):
            if path.suffix in (".cvd", ".cld"):
                header = path.open("rb").read(512)
                match = re.match(rb"ClamAV-VDB:[^:]+:(\d+):", header)
                versions[path.name] = int(match[1]) if match else -1
        return versions

    def _retry_after(self) -> float:
        state = self.databases / "freshclam.dat"
        if not state.exists():
            return 0.0
        seconds: int = struct.unpack_from("<q", state.read_bytes(), COOL_DOWN_OFFSET)[0]
        return float(seconds)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
