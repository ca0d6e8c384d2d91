"""This machine's freshclam: what its configuration says, and how it identifies itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clamproxy.setup.freshclam_lines import CDN

PLACES = (
    Path("/etc/clamav/freshclam.conf"),
    Path("/etc/freshclam.conf"),
    Path("/usr/local/etc/freshclam.conf"),
)
DATABASE_DIRECTORIES = (Path("/var/lib/clamav"), Path("/usr/local/share/clamav"))
"""Where databases are without DatabaseDirectory: in distributions' builds, and in ClamAV's own."""
STANDARD_DATABASES = ("daily", "main", "bytecode")
"""In the order in which freshclam updates them (docs/protocol.md 1.1)."""
ANY_VERSION = "1.4.3"
"""The version to claim on a machine without freshclam: one that ClamAV supports."""

_NO = ("no", "false", "0")
_RUN_LIMIT = 3.0
"""Seconds for freshclam to print its version."""


@dataclass(frozen=True, slots=True)
class FreshclamConf:
    """The options in a freshclam.conf; the password is not shown in its repr."""

    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """The values of each option, in their order."""

    def first(self, option: str) -> str | None:
        """The value that counts: if an option is given twice, freshclam 1.4.6 takes the first."""
        return next(iter(self.options.get(option, ())), None)

    def all(self, option: str) -> tuple[str, ...]:
        """The values of an option that may be given more than once."""
        return self.options.get(option, ())

    @property
    def mirrors(self) -> list[str]:
        """The URLs of the servers, in the order in which freshclam tries them (docs/protocol.md 1.1)."""
        if private := self.all("PrivateMirror"):
            return [mirror if "://" in mirror else f"http://{mirror}" for mirror in private]
        return [_official(mirror) for mirror in self.all("DatabaseMirror")]

    @property
    def database_directory(self) -> Path:
        """The directory of the databases and of freshclam.dat."""
        if (named := self.first("DatabaseDirectory")) is not None:
            return Path(named)
        return next((path for path in DATABASE_DIRECTORIES if path.is_dir()), DATABASE_DIRECTORIES[0])

    @property
    def databases(self) -> list[str]:
        """The ClamAV databases that it keeps up to date."""
        excluded = set(self.all("ExcludeDatabase"))
        if (self.first("Bytecode") or "yes").lower() in _NO:
            excluded.add("bytecode")
        wanted = [name for name in STANDARD_DATABASES if name not in excluded]
        extra = [name for name in self.all("ExtraDatabase") if name.isascii() and name.isalpha()]
        return list(dict.fromkeys([*wanted, *extra]))


def find_conf(places: Iterable[Path] = PLACES) -> Path | None:
    """The configuration of this machine's freshclam, if it can be read."""
    for path in places:
        try:
            with path.open("rb"):
                return path
        except OSError:
            continue
    return None


def hidden_conf(places: Iterable[Path] = PLACES) -> Path | None:
    """A configuration that exists but may not be read by this user."""
    return next((path for path in places if path.exists() and not os.access(path, os.R_OK)), None)


def read_conf(path: Path) -> FreshclamConf:
    """Read a freshclam.conf.

    Raises:
        OSError: it can't be read.
    """
    return parse_conf(path.read_bytes().decode("utf-8", "replace"))


def parse_conf(text: str) -> FreshclamConf:
    """Parse the text of a freshclam.conf; lines that freshclam itself would refuse are kept as they are."""
    options: dict[str, list[str]] = {}
    for line in text.split("\n"):
        option, *value = line.split(maxsplit=1) or [""]
        if option and not option.startswith("#"):
            options.setdefault(option, []).append("".join(value).strip(" \t").strip('"'))
    return FreshclamConf({option: tuple(values) for option, values in options.items()})


def user_agent() -> str:
    """The User-Agent of this machine's freshclam, without the machine's UUID."""
    system = os.uname()
    match = re.match(r"ClamAV (\d+(?:\.\d+){1,2})", (_run("--version") or ("", ""))[0])
    version = match[1] if match else ANY_VERSION
    return f"ClamAV/{version} (OS: {system.sysname}, ARCH: {system.machine}, CPU: {system.machine})"


def objection(path: Path) -> str | None:
    """Why freshclam itself refuses its configuration, in its own words; None if it doesn't.

    For ``--version`` freshclam reads its configuration first, and does nothing else.
    """
    output, errors = _run("--version", f"--config-file={path}") or ("", "")
    if output.startswith("ClamAV "):
        return None
    lines = [line.removeprefix("ERROR: ") for line in errors.splitlines() if line.startswith("ERROR: ")]
    return next(iter(lines), None)


def _run(*arguments: str) -> tuple[str, str] | None:
    """What freshclam prints to stdout and stderr; None if there is no freshclam."""
    program = shutil.which("freshclam")
    if program is None:
        return None
    try:
        result = subprocess.run(  # noqa: S603
            [program, *arguments], capture_output=True, text=True, timeout=_RUN_LIMIT, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout, result.stderr


def _official(mirror: str) -> str:
    """As freshclam reads DatabaseMirror: https without a scheme, and for everything like db.*.clamav.net."""
    if mirror.startswith("db.") and ".clamav.net" in mirror:
        return f"https://{CDN}"
    return mirror if "://" in mirror else f"https://{mirror}"
