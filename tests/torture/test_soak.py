"""Months, hundreds of machines and thousands of visitors in minutes: what grows, is lost, or miscounted."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
import yaml

from tests.harness.soak.plan import DAY, Plan, prepare
from tests.harness.soak.world import Sample, World
from tests.support.disk import open_disk
from tests.support.forge import forge_keys
from tests.support.gateway import ROOT, free_ports
from tests.support.simulated_time import STEP, Timeline
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

MIB = 2**20
DISK = 48 * MIB
CACHE = 5 * MIB
"""`cache.size_limit`: a few CVDs, and some weeks of patches."""
PATCHES = 30
BESIDE = 6 * MIB
"""What may be on the disk besides: the index and the records with their logs, and an object that is new."""
EARLY = 5
"""Days after which everything has happened once: what is in use then is told beside what is at the end."""
WARM = 0.5
"""Days after which a process has seen everything once."""
MOST = {
    "rss": (1, 8 * MIB),
    "objects": (1, 2000),
    "descriptors": (1, 6),
    "tasks": (1, 4),
    "threads": (1, 4),
    "rows": (1.1, 40),
    "files": (1.1, 40),
}
"""How much each figure may be at the end: a share of what it was, and a constant."""
SLACK = 2 * PATCHES + 30
"""How many entries a collection may have more: for the patch and the signature of each release that is kept.
More releases, machines and hosts than that come by."""


def settings(plan: Plan) -> dict[str, object]:
    proxy, reverse, origin, dns = plan.ports
    return {
        "listen": {"proxy": f"127.0.0.1:{proxy}", "reverse": [f"127.0.0.1:{reverse}"]},
        "cache": {
            "directory": str(plan.gateway / "cache"),
            "size_limit": CACHE,
            "keep_cdiffs": PATCHES,
        },
        "state": {"directory": str(plan.gateway / "state")},
        "tls": {"directory": str(plan.directory / "ca")},
        "status": {"listen": None},
        "upstream": {"url": f"http://127.0.0.1:{origin}", "read_timeout": "10s"},
        "versions": {"nameservers": [f"127.0.0.1:{dns}"]},
        "fleet": {"max_clients": plan.most_machines},
    }


def live(plan: Plan, number: int) -> tuple[int, str]:
    """One life of the gateway; its exit status, and its log."""
    config, file = plan.directory / "proxy.yaml", plan.directory / "plan.pickle"
    config.write_text(yaml.safe_dump(settings(plan)))
    file.write_bytes(pickle.dumps(plan))
    command = [sys.executable, "-m", "tests.harness.soak", str(plan.marks)]
    command += ["-s", "tests/harness/soak/script.py", "--set", f"clamproxy_config={config}"]
    command += ["--set", f"confdir={plan.directory / 'conf'}", "--set", "termlog_verbosity=warn"]
    ours = {name: text for name, text in os.environ.items() if not name.startswith("CLAMPROXY_")}
    environment = {**ours, "SOAK_PLAN": str(file), "CLAMPROXY_TEST_KEYS": str(plan.directory / "keys")}
    log = plan.directory / f"life-{number}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    return done.returncode, log.read_text(errors="replace")


def make_plan(directory: Path) -> Plan:
    days, chance = rounds(2, 90), random.Random(SEED)
    kills = sorted(chance.uniform(0.3, days * 0.4) for _ in range(rounds(1, 12)))
    proxy, reverse, origin, dns = free_ports(4)
    now = time.time()
    return Plan(
        directory=directory,
        seed=SEED,
        days=days,
        machines=rounds(20, 500),
        visitors=rounds(100, 2000),
        most_machines=rounds(100, 700),
        daily_every=DAY / rounds(4, 1),
        look_every=DAY / rounds(4, 1),
        ends=[day * DAY for day in (*kills, days)],
        started_at=now - now % STEP,
        ports=(proxy, reverse, origin, dns),
    )


@dataclass(slots=True)
class Soaked:
    """A soak that is over."""

    plan: Plan
    world: World
    looks: list[Sample]
    """Over all processes."""
    log: str

    @property
    def samples(self) -> list[Sample]:
        """Those of the last process, without its first half day."""
        last = [sample for sample in self.looks if sample.life == self.world.life]
        return [sample for sample in last if sample.day >= last[0].day + WARM]

    def growth(self, name: str) -> tuple[float, float]:
        """The median of a figure in the first third, and in the last."""
        figures = [getattr(sample, name) for sample in self.samples]
        third = max(1, len(figures) // 3)
        return median(figures[:third]), median(figures[-third:])


def soak_in(directory: Path) -> Soaked:
    plan = make_plan(directory)
    keys = forge_keys()
    keys.save(directory / "keys")
    prepare(plan, keys)
    Timeline.begin(plan.marks, plan.started_at)
    logs = []
    with open_disk(plan.gateway, DISK):
        for number in range(len(plan.ends)):
            status, log = live(plan, number)
            logs.append(log)
            assert status == (0 if number == len(plan.ends) - 1 else -9), log[-4000:]
    world = pickle.loads(plan.report.read_bytes())
    return Soaked(plan, world, Sample.load_all(plan.samples), "".join(logs))


@pytest.mark.timeout(rounds(usual=600, full=5400))
def test_soak(tmp_path: Path, figures: Figures) -> None:
    """One test, so that it runs once whoever runs it."""
    soak = soak_in(tmp_path)
    report_answers(soak, figures)
    report_use(soak, figures)
    require_truth(soak)
    require_one_fetch(soak)
    require_no_growth(soak)


def report_answers(soak: Soaked, figures: Figures) -> None:
    plan, world = soak.plan, soak.world
    figures(
        "soak",
        days=plan.days,
        machines=plan.machines,
        visitors=world.visitors,
        releases=len(plan.releases),
        answers=world.answered["requests"],
        faults=world.faults.total(),
        kills=len(plan.ends) - 1,
        wrong_files=len(world.wrongs.content),
        going_back=len(world.wrongs.older),
        differences=len(world.complaints),
    )


def require_truth(soak: Soaked) -> None:
    """What clients got, and when; and what was counted: see `Soak` for each complaint."""
    world = soak.world
    assert not world.wrongs.content
    assert not world.wrongs.older
    assert not world.wrongs.statuses
    assert not world.complaints, "\n".join(world.complaints[:20])
    assert "Traceback" not in soak.log
    behind = [one for one in world.machines if one.versions != world.advertised]
    assert behind == []


def require_one_fetch(soak: Soaked) -> None:
    """Except what had to be dropped for room, and what a kill or a full disk interrupted at its end."""
    world = soak.world
    again = {name: count for name, count in world.fetched.items() if count > 1}
    kills = len(soak.plan.ends) - 1
    assert sum(again.values()) - len(again) <= kills + world.faults["disk full"], again


def report_use(soak: Soaked, figures: Figures) -> None:
    """What was in use early on, and at the end."""
    early = next(one for one in soak.looks if one.day >= min(EARLY, soak.plan.days / 4))
    for when in (early, soak.samples[-1]):
        figures(
            f"soak, in use at day {when.day:.1f}",
            rss=f"{when.rss / MIB:.1f} MiB",
            objects=when.objects,
            descriptors=when.descriptors,
            tasks=when.tasks,
            threads=when.threads,
            files=when.files,
            rows=when.rows,
            disk=f"{when.bytes / MIB:.1f} MiB",
        )


def require_no_growth(soak: Soaked) -> None:
    first, last = soak.samples[0], soak.samples[-1]
    for name, (share, more) in MOST.items():
        before, after = soak.growth(name)
        assert after <= before * share + more, (name, before, after)
    assert all(sample.bytes <= CACHE + BESIDE for sample in soak.samples)
    grown = {
        name: (first.containers.get(name, 0), length)
        for name, length in last.containers.items()
        if length > 1.5 * first.containers.get(name, 0) + SLACK
    }
    assert grown == {}
