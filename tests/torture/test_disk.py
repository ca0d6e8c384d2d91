"""The disk fails under a running gateway: clients get what is right, and it recovers by itself."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.disk import Disk, open_disk
from tests.support.disk_shim import DiskShim
from tests.support.gateway import ROOT, Way
from tests.support.releases import Releases
from tests.support.scenes import ROOMY, settle
from tests.support.site import Site, eventually, open_site
from tests.torture.conftest import Figures
from tests.torture.effort import FULL, SEED, rounds

pytestmark = pytest.mark.timeout(rounds(300, 5400))
"""For a machine that does a lot besides."""

FILLER = 200_000
"""Makes CVDs too large to be answered from memory."""
DISK_SIZE = 48 * 2**20
"""Bytes: room for some dozen releases, and for what SQLite has not yet merged."""
HEALS = ""
"""For faults that the gateway sees and mends at once, so that /readyz shows nothing."""


@dataclass
class Scene:
    """A gateway on a disk of its own, with one more release for each fault."""

    site: Site
    disk: Disk
    shim: DiskShim
    releases: Releases
    version: int = 1
    right: dict[str, list[bytes]] = field(default_factory=dict)
    """By name, what may be served."""

    @property
    def cache(self) -> Path:
        return self.site.gateway.cache

    @property
    def state(self) -> Path:
        return self.cache.with_name("cache-state")

    def objects(self) -> list[Path]:
        return [path for path in sorted((self.cache / "objects" / "daily").iterdir()) if path.is_file()]

    def release(self) -> None:
        """One more version; clients that have the one before get it by a patch."""
        self.version += 1
        self._put("daily.cvd", self.releases.cvd(self.version))
        self._put(f"daily-{self.version}.cvd.sign", self.releases.cvd_sign(self.version))
        self._put(f"daily-{self.version}.cdiff", self.releases.cdiff(self.version))
        self._put(f"daily-{self.version}.cdiff.sign", self.releases.cdiff_sign(self.version))
        self.site.dns.versions["daily"] = self.version

    def _put(self, name: str, body: bytes) -> None:
        self.site.origin.put(name, body)
        self.right.setdefault(name, []).append(body)

    def ask_all(self) -> tuple[int, int]:
        """Ask for everything, whole and in part; returns how often that was served, and how often refused."""
        names = ["daily.cvd"]
        for version in range(max(2, self.version - 1), self.version + 1):
            names += [f"daily-{version}.cdiff", f"daily-{version}.cdiff.sign"]
        answers = [self._is_served(name, part) for name in names for part in ("", "bytes=100-")]
        return answers.count(True), answers.count(False)

    def _is_served(self, name: str, part: str) -> bool:
        answer = self.site.gateway.ask(f"/{name}", extra={"Range": part} if part else {})
        offset = 100 if answer.status == 206 else 0
        bodies = [body[offset:] for body in self.right[name]]
        is_served = answer.status in (200, 206)
        # An empty cdiff tells clients to take the whole file (docs/protocol.md, trap 15).
        right = [body if answer.complete else body[: len(answer.body)] for body in bodies]
        assert not is_served or answer.body in right or not answer.body, (name, part)
        assert is_served or answer.status in (404, 503), (name, answer.status)
        return is_served and answer.complete

    def readiness(self) -> str:
        """What /readyz says, but not that this small disk has little room."""
        text = self.site.gateway.ask("/readyz", Way.ABSOLUTE, host="clamproxy").body.decode()
        return "\n".join(line for line in text.splitlines() if "nearly full" not in line)


def everywhere(change: Callable[[Path], object]) -> Callable[[Scene], object]:
    """Do something to each cached object's file."""
    return lambda scene: [change(path) for path in scene.objects()]


def overwrite(path: Path, content: Callable[[int], bytes] = os.urandom) -> None:
    """Other bytes in the same file, as many as before; the gateway may have removed it just now."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        file.write(content(path.stat().st_size))


def at(place: str, change: Callable[[Path], object]) -> Callable[[Scene], object]:
    """Do something to a file or directory of the cache."""
    return lambda scene: change(scene.cache / place)


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("in the way")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap(scene: Scene) -> None:
    """Each of two patches under the name of the other."""
    one, other = (scene.cache / "objects" / "daily" / f"daily-{scene.version - n}.cdiff" for n in (0, 1))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_state(scene: Scene) -> None:
    for path in scene.state.glob("*.sqlite"):
        overwrite(path)


@dataclass(frozen=True)
class Fault:
    name: str
    begin: Callable[[Scene], object]
    end: Callable[[Scene], object] = lambda scene: None
    shown: str = HEALS
    """A part of what /readyz says meanwhile."""


def allow(place: str, mode: int) -> Callable[[Scene], object]:
    return at(place, lambda path: path.chmod(mode))


def bad_blocks(scene: Scene) -> None:
    """Let no cached object be read, though each can be opened."""
    scene.shim.fail_reads(scene.objects())


def heal(scene: Scene) -> None:
    scene.shim.heal()


INDEX = "index/cache.db"
FAULTS = (
    Fault("full", lambda scene: scene.disk.fill(), lambda scene: scene.disk.clear(), "is full"),
    Fault("read-only", lambda scene: scene.shim.fail(errno.EROFS), heal, "written to"),
    Fault("no quota", lambda scene: scene.shim.fail(errno.EDQUOT), heal, "is full"),
    Fault("broken", lambda scene: scene.shim.fail(errno.EIO), heal, "can't be used"),
    Fault("bad blocks", bad_blocks, heal),
    Fault("slow", lambda scene: scene.shim.fail(delay=0.1), heal),
    Fault(
        "no access to objects", allow("objects/daily", 0), allow("objects/daily", 0o700), "Permission denied"
    ),
    Fault("no access to partial", allow("partial", 0o500), allow("partial", 0o700), "Permission denied"),
    Fault("no access to the index", allow("index", 0), allow("index", 0o700), "Permission denied"),
    Fault("objects overwritten", everywhere(overwrite)),
    Fault("objects zeroed", everywhere(lambda path: overwrite(path, bytes))),
    Fault("objects truncated", everywhere(halve)),
    Fault("objects emptied", everywhere(lambda path: os.truncate(path, 0))),
    Fault("objects deleted", everywhere(Path.unlink)),
    Fault(
        "objects unreadable",
        everywhere(lambda path: path.chmod(0)),
        everywhere(lambda path: path.chmod(0o600)),
    ),
    Fault("objects are directories", everywhere(replace_by_directory)),
    Fault("objects swapped", swap),
    Fault("no directory of objects", at("objects", shutil.rmtree)),
    Fault("a file for objects", at("objects", replace_by_file), at("objects", Path.unlink), "can't be used"),
    Fault("index overwritten", at(INDEX, overwrite)),
    Fault("index emptied", at(INDEX, lambda path: os.truncate(path, 0))),
    Fault("index halved", at(INDEX, halve)),
    Fault("index deleted", at(INDEX, Path.unlink)),
    Fault("index is a directory", at(INDEX, replace_by_directory)),
    Fault("log of the index deleted", at(f"{INDEX}-wal", lambda path: path.unlink(missing_ok=True))),
    Fault("log of the index overwritten", at(f"{INDEX}-wal", overwrite)),
    Fault("no directory of the index", at("index", shutil.rmtree)),
    Fault("a file for the index", at("index", replace_by_file), at("index", Path.unlink), "can't be used"),
    Fault("no partial files", at("partial", shutil.rmtree)),
    Fault("a file for partial", at("partial", replace_by_file), at("partial", Path.unlink), "can't be used"),
    Fault("no cache", at("", shutil.rmtree)),
    Fault("records overwritten", spoil_state),
    Fault("no records", lambda scene: shutil.rmtree(scene.state)),
)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with open_disk(tmp_path / "disk", DISK_SIZE) as disk:
        shim, releases = DiskShim(disk.path, tmp_path / "shim"), Releases(filler=FILLER)
        trusted = releases.trusted(tmp_path / "keys")
        environment = trusted["environment"] | shim.environment | {"PYTHONPATH": str(ROOT)}
        site = open_site(
            tmp_path,
            script=trusted["script"],
            environment=environment,
            cache={"directory": str(disk.path / "cache")},
            delta=ROOMY,
        )
        site.gateway.cache = disk.path / "cache"
        try:
            scene = Scene(site, disk, shim, releases)
            scene.release()
            scene.release()  # so that there are two patches
            scene.ask_all()  # from then on, there is a whole file from which patches lead on
            yield scene
        finally:
            site.close()


def test_each_fault_passes(scene: Scene, figures: Figures) -> None:
    choose, served, refused = random.Random(SEED), 0, 0
    faults = choose.sample(FAULTS, rounds(6, len(FAULTS)))
    for fault in faults:
        before = scene.ask_all()
        more = strike(scene, fault)
        assert more[0] > more[1], f"{fault.name}: hardly anybody was served"
        served, refused = served + before[0] + more[0], refused + more[1]
        if FULL:
            figures(f"disk, {fault.name}", served=more[0], refused=more[1], shown=fault.shown or "nothing")
    log = scene.site.gateway.log
    assert "Traceback" not in log, log
    figures("disk", faults=len(faults), served=served, refused=refused, wrong=0)


def strike(scene: Scene, fault: Fault) -> tuple[int, int]:
    """Let a fault begin and end, with a release in between.

    Returns:
        How often clients were served, and how often refused.
    """
    fault.begin(scene)
    try:
        answers = [scene.ask_all()]
        # Later, what is superseded may have made room again.
        assert eventually(lambda: fault.shown in scene.readiness()), (fault.name, scene.readiness())
        scene.release()
        settle(scene.site.origin)
        answers += [scene.ask_all(), scene.ask_all()]
    except AssertionError as error:
        error.add_note(f"{fault.name}\n{scene.site.gateway.log[-3000:]}")
        raise
    finally:
        fault.end(scene)
    explained = f"{fault.name}: not over\n{scene.site.gateway.log[-3000:]}"
    # The gateway tries again after a minute at the latest.
    assert eventually(lambda: scene.ask_all()[1] == 0, limit=90.0, every=1.0), explained
    assert eventually(lambda: scene.readiness() == "ok"), (scene.readiness(), explained)
    return sum(one[0] for one in answers), sum(one[1] for one in answers)
