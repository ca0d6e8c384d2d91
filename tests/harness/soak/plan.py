"""What a soak is to try: how long, how many machines, and every file that ClamAV will release meanwhile."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.forge import ForgeKeys
from tests.support.releases import Releases

HOUR, DAY = 3600, 86400
QUIET = 0.6
"""Days without releases and faults at the end, in which every machine has to catch up."""
DATABASES = ("daily", "main", "bytecode")
SIGN = ".sign"


@dataclass(frozen=True, slots=True)
class Release:
    """When what a release consists of appears, in seconds since the start."""

    database: str
    version: int
    at: float
    told_at: float
    """When DNS advertises it; that can be before the CDN has it."""
    signed_at: float

    @property
    def name(self) -> str:
        return f"{self.database}-{self.version}"


@dataclass(slots=True)
class Plan:
    """Everything that is decided in advance. It is pickled for the processes that carry it out."""

    directory: Path
    seed: int
    days: float
    machines: int
    visitors: int
    """How many machines come in all that are seen only once, such as containers in CI."""
    most_machines: int
    """`fleet.max_clients`."""
    daily_every: float
    """Seconds between two releases of daily."""
    look_every: float
    """Seconds between two looks at what is in use, and what was counted."""
    ends: list[float]
    """When the gateway is killed, in seconds since the start; at the last one it is stopped."""
    started_at: float
    ports: tuple[int, int, int, int]
    """Of the proxy, its reverse mode, the origin and DNS."""
    releases: list[Release] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    """What each file contains, by its name with a version."""
    stimes: dict[str, int] = field(default_factory=dict)
    """Build times, by the name of the CVD."""

    @property
    def files(self) -> Path:
        return self.directory / "released"

    @property
    def gateway(self) -> Path:
        return self.directory / "gateway"

    @property
    def state(self) -> Path:
        """Where a process leaves the world to the next."""
        return self.directory / "world.pickle"

    @property
    def marks(self) -> Path:
        """The simulated time, for the next process."""
        return self.directory / "marks.json"

    @property
    def progress(self) -> Path:
        """For somebody who waits: a line for each look."""
        return self.directory / "progress"

    @property
    def samples(self) -> Path:
        """What the process had in use at each look."""
        return self.directory / "samples.pickle"

    @property
    def report(self) -> Path:
        return self.directory / "report.pickle"


def prepare(plan: Plan, keys: ForgeKeys) -> None:
    """Decide when what is released, and make all files."""
    chance = random.Random(plan.seed)
    plan.files.mkdir(parents=True)
    for database, spacing, filler in (
        ("daily", plan.daily_every, 300_000),
        ("main", plan.days * DAY / 3, 200_000),
        ("bytecode", plan.days * DAY / 4, 20_000),
    ):
        count = 1 + int((plan.days - QUIET) * DAY / spacing)
        releases = Releases(
            database=database,
            filler=filler,
            patch_filler=300,
            keys=keys,
            epoch=int(plan.started_at - spacing / 2),
            spacing=int(spacing),
        )
        for version in range(1, count + 1):
            _write(plan, releases, version)
            plan.releases.append(_release(releases, version, plan, chance))
    plan.releases.sort(key=lambda release: release.at)


def _release(releases: Releases, version: int, plan: Plan, chance: random.Random) -> Release:
    if version == 1:
        return Release(releases.database, 1, 0, 0, 0)
    at = releases.stime(version) - plan.started_at + chance.uniform(HOUR / 4, HOUR)
    told_at = at + chance.choice((-300, 0, 0, 60, 600))
    return Release(releases.database, version, at, told_at, at + chance.choice((0, 0, 0, 900)))


def _write(plan: Plan, releases: Releases, version: int) -> None:
    name = f"{releases.database}-{version}"
    files = {f"{name}.cvd": releases.cvd(version), f"{name}.cvd{SIGN}": releases.cvd_sign(version)}
    if version > 1:
        files[f"{name}.cdiff"] = releases.cdiff(version)
        files[f"{name}.cdiff{SIGN}"] = releases.cdiff_sign(version)
    for file, content in files.items():
        (plan.files / file).write_bytes(content)
        plan.digests[file] = digest(content)
    plan.digests[f"{name}.cld"] = members_digest(releases.members(version))
    plan.stimes[f"{name}.cvd"] = releases.stime(version)
    releases._made.cvds.clear()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def members_digest(members: dict[str, bytes]) -> str:
    """What a database contains, in whatever order."""
    return digest(repr(sorted((name, digest(content)) for name, content in members.items())).encode())


def cld_digest(content: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(content[512:])) as archive:
        members = {}
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            members[member.name] = file.read()
    return members_digest(members)
