"""The disk fails under a running gateway: clients get what is right, and it recovers by itself."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

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
STATES = {
    "is full": "full",
    "written to": "read-only",
    "Permission denied": "read-only",
    "can't be used": "broken",
}
"""What `clamproxy stats` calls what /readyz shows."""
MOST_REPEATED = 10
"""How often a warning may be logged during one fault: trouble may end and begin anew, and some requests read
an unreadable base until it is dropped. But it isn't logged for each request, of which there are thirty."""
MOST_WARNINGS = 24
"""How many are logged in all: one or two for each cached object, and for each directory."""


@dataclass
class Scene:
    """A gateway on a disk of its own, with one more release for each fault."""

    site: Site
    disk: Disk
    shim: DiskShim
    releases: Releases
    version: int = 1
    had: int = 1
    """The newest version that a client has got: none may go back from it, whatever the disk does."""
    right: dict[str, dict[bytes, int]] = field(default_factory=dict)
    """By name, what may be served, with its version."""

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
        self.right.setdefault(name, {})[body] = self.version

    def ask_all(self) -> tuple[int, int]:
        """Ask for everything, whole and in part; returns how often that was served, and how often refused."""
        names = ["daily.cvd"]
        for version in range(max(2, self.version - 1), self.version + 1):
            names += [f"daily-{version}.cdiff", f"daily-{version}.cdiff.sign"]
        answers = [self._is_served(name, part) for name in names for part in ("", "bytes=100-")]
        self._require_no_step_back()
        return answers.count(True), answers.count(False)

    def _is_served(self, name: str, part: str) -> bool:
        answer = self.site.gateway.ask(f"/{name}", extra={"Range": part} if part else {})
        if answer.status not in (200, 206):
            assert answer.status in (404, 503), (name, answer.status)
            return False
        offset = 100 if answer.status == 206 else 0
        right = {body[offset:]: version for body, version in self.right[name].items()}
        if not answer.complete:
            assert any(body.startswith(answer.body) for body in right), (name, part)
            return False
        # No empty cdiff either, by which the gateway tells clients to take the whole file (docs/protocol.md,
        # trap 15): it does that only if the origin's is wrong again and again.
        assert answer.body in right, (name, part, answer.body[:80])
        if name.endswith((".cvd", ".cdiff")):
            self.had = max(self.had, right[answer.body])
        return True

    def _require_no_step_back(self) -> None:
        """A machine that has a version isn't given an older one, as new machines are if patches follow it."""
        since = formatdate(self.releases.stime(self.had), usegmt=True)
        answer = self.site.gateway.ask("/daily.cvd", extra={"If-Modified-Since": since})
        right = [body for body, version in self.right["daily.cvd"].items() if version >= self.had]
        if not answer.complete:
            right = [body[: len(answer.body)] for body in right]
        is_right = answer.status in (304, 404, 503) or answer.body in right
        assert is_right, (self.had, answer.status, answer.body[:80])

    def readiness(self) -> str:
        """What /readyz says, but not that this small disk has little room."""
        text = self._page("/readyz").decode()
        return "\n".join(line for line in text.splitlines() if "nearly full" not in line)

    def troubles(self) -> set[str]:
        """What the statistics call the state of the disks."""
        storage = self._status()["stats"]["storage"]
        return {one["state"] for one in (storage["cache"], storage["records"]) if one is not None}

    def counts(self, fault: Fault) -> bool:
        """Whether statistics show a fault, if it is to be shown."""
        return not (fault.shown and fault.is_met) or STATES[fault.shown] in self.troubles()

    def is_over(self) -> bool:
        """Whether all are served, and no download is put off any more because the disk took none."""
        return self.ask_all()[1] == 0 and not self._status()["cooldowns"] and self.readiness() == "ok"

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self._page("/status.json"))
        return status

    def _page(self, path: str) -> bytes:
        return self.site.gateway.ask(path, Way.ABSOLUTE, host="clamproxy").body

    def warnings(self, since: int) -> list[str]:
        """What the log warns of, without the times.

        Args:
            since: how long the log was before.
        """
        lines = [line.partition(" ")[2] for line in self.site.gateway.log[since:].splitlines()]
        return [line for line in lines if not line.startswith("info ")]


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
    shown: str = ""
    """A part of what /readyz says meanwhile, and the log. Empty for what is mended by the next requests: then
    /readyz still says that all is well."""
    logged: str = ""
    """A part of what is logged besides."""
    is_met: bool = True
    """Whether the gateway is sure to run into it. Only then do statistics and the log tell."""
    is_brief: bool = False
    """Whether /readyz may show what is wrong for the few seconds until it is mended."""


def allow(place: str, mode: int) -> Callable[[Scene], object]:
    return at(place, lambda path: path.chmod(mode))


def bad_blocks(scene: Scene) -> None:
    """Let no cached object be read, though each can be opened."""
    scene.shim.fail_reads(scene.objects())


def heal(scene: Scene) -> None:
    scene.shim.heal()


INDEX = "index/cache.db"
DAMAGED, LOST = "was damaged", "its file is missing, or its length has changed"
FAULTS = (
    Fault("full", lambda scene: scene.disk.fill(), lambda scene: scene.disk.clear(), "is full"),
    Fault("read-only", lambda scene: scene.shim.fail(errno.EROFS), heal, "written to"),
    Fault("no quota", lambda scene: scene.shim.fail(errno.EDQUOT), heal, "is full"),
    Fault("broken", lambda scene: scene.shim.fail(errno.EIO), heal, "can't be used"),
    Fault("bad blocks", bad_blocks, heal, logged="could not be read"),
    Fault("slow", lambda scene: scene.shim.fail(delay=0.1), heal),
    Fault(
        "no access to objects", allow("objects/daily", 0), allow("objects/daily", 0o700), "Permission denied"
    ),
    Fault(
        "no access to partial",
        allow("partial", 0o500),
        allow("partial", 0o700),
        "Permission denied",
        is_met=False,  # a disk with little room spares it small files
    ),
    Fault("no access to the index", allow("index", 0), allow("index", 0o700), "Permission denied"),
    Fault("objects overwritten", everywhere(overwrite), logged=DAMAGED),
    Fault("objects zeroed", everywhere(lambda path: overwrite(path, bytes)), logged=DAMAGED),
    Fault("objects truncated", everywhere(halve), logged=LOST),
    Fault("objects emptied", everywhere(lambda path: os.truncate(path, 0)), logged=LOST),
    Fault("objects deleted", everywhere(Path.unlink), logged=LOST),
    Fault(
        "objects unreadable",
        everywhere(lambda path: path.chmod(0)),
        everywhere(lambda path: path.chmod(0o600)),
        "Permission denied",
    ),
    Fault("objects are directories", everywhere(replace_by_directory), logged=LOST),
    Fault("objects swapped", swap),
    Fault("no directory of objects", at("objects", shutil.rmtree), logged=LOST, is_brief=True),
    Fault("a file for objects", at("objects", replace_by_file), at("objects", Path.unlink), "can't be used"),
    Fault("index overwritten", at(INDEX, overwrite), is_brief=True),
    Fault("index emptied", at(INDEX, lambda path: os.truncate(path, 0)), is_brief=True),
    Fault("index halved", at(INDEX, halve), is_brief=True),
    Fault("index deleted", at(INDEX, Path.unlink), is_brief=True),
    Fault("index is a directory", at(INDEX, replace_by_directory), logged="has been rebuilt", is_brief=True),
    Fault("log of the index deleted", at(f"{INDEX}-wal", lambda path: path.unlink(missing_ok=True))),
    Fault("log of the index overwritten", at(f"{INDEX}-wal", overwrite), is_brief=True),
    Fault("no directory of the index", at("index", shutil.rmtree), is_brief=True),
    Fault("a file for the index", at("index", replace_by_file), at("index", Path.unlink), "can't be used"),
    Fault("no partial files", at("partial", shutil.rmtree), is_brief=True),
    Fault("a file for partial", at("partial", replace_by_file), at("partial", Path.unlink), "can't be used"),
    Fault("no cache", at("", shutil.rmtree), logged=LOST, is_brief=True),
    Fault("records overwritten", spoil_state, logged="and a new one started"),
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
    logged = len(scene.site.gateway.log)
    fault.begin(scene)
    try:
        answers = [scene.ask_all()]
        require_shown(scene, fault)
        # Statistics know what has been tried: that may be the next download, which in turn may make room.
        is_counted = eventually(lambda: scene.counts(fault), limit=5.0)
        scene.release()
        settle(scene.site.origin)
        answers += [scene.ask_all(), scene.ask_all()]
        assert is_counted or eventually(lambda: scene.counts(fault)), scene.troubles()
        # Before the fault is undone: the gateway mends by itself what it doesn't show.
        assert fault.shown or eventually(scene.is_over, every=1.0), scene.readiness()
    except AssertionError as error:
        error.add_note(f"{fault.name}\n{scene.site.gateway.log[-3000:]}")
        raise
    finally:
        fault.end(scene)
    explained = f"{fault.name}: not over\n{scene.site.gateway.log[-3000:]}"
    # The gateway tries again after a minute at the latest.
    assert eventually(scene.is_over, limit=120.0, every=1.0), (scene.readiness(), explained)
    assert eventually(lambda: not scene.troubles()), (scene.troubles(), explained)
    require_logged(scene.warnings(logged), fault)
    return sum(one[0] for one in answers), sum(one[1] for one in answers)


def require_shown(scene: Scene, fault: Fault) -> None:
    """What /readyz says while a fault lasts."""
    if fault.shown:
        assert eventually(lambda: fault.shown in scene.readiness()), scene.readiness()
    elif not fault.is_brief:
        assert scene.readiness() == "ok"
        assert not scene.troubles()


def require_logged(warnings: list[str], fault: Fault) -> None:
    """What the log warns of from the beginning of a fault to its end: enough, but not all the time."""
    told = "\n".join([f"{fault.name}:", *warnings])
    assert any(fault.logged in line for line in warnings) or not fault.logged, told
    if fault.shown and fault.is_met:
        assert any("nothing can be stored" in line and fault.shown in line for line in warnings), told
        assert any("can be written to again" in line for line in warnings), told
    assert max(Counter(warnings).values(), default=0) <= MOST_REPEATED, told
    assert len(warnings) <= MOST_WARNINGS, told
