"""The clock jumps by hours and years while a gateway runs: once it is right again, so is all else."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.support.faketime import LIBRARY, faketime, sweep_faketime
from tests.support.gateway import ROOT, Way
from tests.support.programs import give_up
from tests.support.releases import Releases
from tests.support.scenes import ROOMY
from tests.support.site import Site, eventually, open_site
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

pytestmark = pytest.mark.timeout(rounds(600, 5400))
"""For a machine that does a lot besides."""

HOUR = 3600
PAUSE = 1.0
"""Seconds between looks at all that is served: with TLS to a gateway under libfaketime, each costs a lot."""
FORWARD = ("+3h", "+30h", "+40d", "+400d", "+3y", "+12y")
BACK = ("-3h", "-30h", "-40d", "-400d", "-5y", "-50y")


@dataclass
class Clock:
    """The gateway's clock: how far it is off."""

    file: Path

    def set(self, off: str = "+0") -> None:
        new = self.file.with_suffix(".new")
        new.write_text(off)
        new.replace(self.file)

    @property
    def environment(self) -> dict[str, str]:
        return faketime(
            FAKETIME_TIMESTAMP_FILE=str(self.file),
            FAKETIME_CACHE_DURATION="1",  # seconds; without it, each look at the clock reads the file
            NO_FAKE_STAT="1",  # files keep the dates that they were given by another clock
            PYTHONPATH=str(ROOT),
        )


@dataclass
class Scene:
    site: Site
    clock: Clock
    releases: Releases
    version: int = 1
    had: int = 1
    """The newest version that a client has got whole: none may get an older one, whatever the clock says."""

    def release(self) -> None:
        self.version += 1
        name = f"daily-{self.version}.cdiff"
        for file, body in {
            "daily.cvd": self.releases.cvd(self.version),
            f"daily-{self.version}.cvd.sign": self.releases.cvd_sign(self.version),
            name: self.releases.cdiff(self.version),
            f"{name}.sign": self.releases.cdiff_sign(self.version),
        }.items():
            self.site.origin.put(file, body)
        self.site.dns.versions["daily"] = self.version

    def ask_all(self) -> list[str]:
        """Ask for the newest release in each way; returns what clients didn't get."""
        refused = []
        for name in ("daily.cvd", f"daily-{self.version}.cdiff"):
            for way in (Way.CONNECT_HTTP, Way.CONNECT_HTTPS):  # the latter with a certificate valid now
                try:
                    answer = self.site.gateway.ask(f"/{name}", way)
                except ssl.SSLError as error:  # a certificate that isn't valid yet, or no longer
                    refused.append(f"{name}: {error}")
                    continue
                if answer.status != 200 or not answer.complete:
                    refused.append(f"{name}: {answer.status}, {answer.body[:80]!r}")
                else:
                    self.check(name, answer.body)
        return refused

    def check(self, name: str, body: bytes) -> None:
        """What a client has got is right, and the CVD is no older than before."""
        if name != "daily.cvd":  # an empty patch tells clients to fetch the whole file
            assert body in (b"", self.releases.cdiff(self.version)), name
            return
        versions = {self.releases.cvd(version): version for version in range(self.had, self.version + 1)}
        assert body in versions, (self.had, body[:80])
        self.had = versions[body]

    def soon_serves_all(self) -> bool:
        return eventually(lambda: not self.ask_all(), every=PAUSE)

    def set_clock(self, off: str = "+0") -> None:
        """Put the gateway's clock right, or off by some time; waits until it has noticed."""
        self.clock.set(off)
        assert eventually(lambda: (self.clock_error() > HOUR) == (off != "+0"))

    def clock_error(self) -> float:
        date = self.site.gateway.ask("/readyz", Way.ABSOLUTE, host="clamproxy").headers["date"]
        return abs(parsedate_to_datetime(date).timestamp() - time.time())

    def status(self) -> str:
        return self.site.gateway.ask("/readyz", Way.ABSOLUTE, host="clamproxy").body.decode()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    if LIBRARY is None:
        give_up("libfaketime is not installed")
    clock, releases = Clock(tmp_path / "clock"), Releases()
    clock.set()
    trusted = releases.trusted(tmp_path / "keys")
    environment = trusted["environment"] | clock.environment
    site = open_site(tmp_path, script=trusted["script"], environment=environment, delta=ROOMY)
    try:
        yield Scene(site, clock, releases)
    finally:
        site.close()
        sweep_faketime()


def test_the_clock_jumps(scene: Scene, figures: Figures) -> None:
    """While it is wrong: releases, a missing file, an origin that fails. Then it is right again."""
    choose = random.Random(SEED)
    scene.release()
    assert scene.soon_serves_all(), scene.site.gateway.log
    jumps = [*choose.sample(FORWARD, rounds(1, 6)), *choose.sample(BACK, rounds(1, 6))]
    choose.shuffle(jumps)
    refused_while_wrong = 0
    for jump in jumps:
        scene.set_clock(jump)
        refused_while_wrong += len(live_with_a_wrong_clock(scene))
        scene.set_clock()
        assert scene.soon_serves_all(), (jump, scene.ask_all(), scene.site.gateway.log[-4000:])
        scene.release()
        assert scene.soon_serves_all(), (jump, scene.ask_all(), scene.site.gateway.log[-4000:])
        assert scene.status() == "ok\n", (jump, scene.status())
        machines = scene.site.gateway.tool("fleet", "--json")
        assert machines.returncode in (0, 1), machines
    assert "Traceback" not in scene.site.gateway.log, scene.site.gateway.log
    figures("clock", jumps=len(jumps), refused_while_wrong=refused_while_wrong, refused_afterwards=0)


def live_with_a_wrong_clock(scene: Scene) -> list[str]:
    """A release, a file that doesn't exist, and an origin that can't be reached; what clients didn't get."""
    scene.release()
    refused = scene.ask_all()
    scene.site.gateway.ask(f"/daily-{scene.version + 1}.cdiff")
    scene.site.origin.refuse()
    # The failure is noted by the wrong clock; 404: from an earlier time.
    assert scene.site.gateway.ask("/main.cvd").status in (503, 404)
    scene.release()
    refused += scene.ask_all()
    scene.site.origin.accept()
    return refused


@pytest.mark.parametrize("off", ["+12y", "-12y"])
def test_a_start_with_a_wrong_clock(scene: Scene, off: str) -> None:
    """As a machine without a battery does, before it has asked a time server."""
    scene.site.gateway.kill()
    scene.clock.set(off)
    scene.site.gateway.start()
    live_with_a_wrong_clock(scene)
    scene.set_clock()
    assert scene.soon_serves_all(), (scene.ask_all(), scene.site.gateway.log[-4000:])
    assert "Traceback" not in scene.site.gateway.log, scene.site.gateway.log
