"""The power fails at any moment: whatever the disk has lost, nothing wrong is served, and promises are kept.

What a gateway and the commands change on the disk is recorded once. From the record, disks are made as they
may be after a power failure at many moments (`tests/support/power.py`), and each is opened.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clamproxy.authority.keyfile import read_state
from clamproxy.cache.soundness import check
from clamproxy.cache.store import Store
from clamproxy.fleet.reading import read_trend
from clamproxy.formats.cld import verify_cld
from clamproxy.formats.signatures import CLAMAV_KEYS
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases.holds import read_holds
from clamproxy.storage.records import Records
from tests.support.disk_shim import Change, DiskShim
from tests.support.gateway import ROOT, Gateway
from tests.support.power import Loss, Replay, Tree, write_tree
from tests.support.scenes import NEWEST, ROOMY, hold, settle
from tests.support.site import Site, eventually, open_site, signed
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

pytestmark = pytest.mark.timeout(rounds(300, 5400))
"""For a machine that does a lot besides."""

HELD = 3
HELD_NAMES = ("test.cvd", f"test-{HELD}.cdiff", f"test-{HELD}.cdiff.sign")
NAMES = (*HELD_NAMES, f"test-{NEWEST}.cdiff", "test.cld")
AT_GATEWAYS = rounds(2, 24)
"""States that a whole gateway opens."""


@dataclass(frozen=True, slots=True)
class Recorded:
    root: Path
    changes: list[Change]
    authority: bytes
    """The file of the authority at the end."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    directory = tmp_path_factory.mktemp("recorded")
    (root := directory / "gateway").mkdir()
    shim = DiskShim(root, directory / "shim")
    site = open_site(directory, environment=shim.environment | {"PYTHONPATH": str(ROOT)}, delta=ROOMY)
    try:
        live(site, shim, directory / "bundle.tar")
    finally:
        site.close()
    changes = [change for change in shim.changes() if not change.path.endswith(".log")]
    return Recorded(root, changes, (root / "ca" / "authority.json").read_bytes())


def live(site: Site, shim: DiskShim, bundle: Path) -> None:
    """What a gateway goes through; the marks say what has been promised by then."""
    run(site.gateway, "ca", "init")
    shim.mark("authority")
    hold(site, 2, HELD)
    shim.mark("cached")
    assert eventually(lambda: site.gateway.ask("/test.cld").status == 200)  # built from CVD and patch
    run(site.gateway, "hold", "test", str(HELD), "--why", "a false positive")
    shim.mark("held")
    advance_unseen(site)
    shim.mark("to be released")
    run(site.gateway, "release", "test")
    run(site.gateway, "export", str(bundle))
    shim.mark("to be dropped")
    run(site.gateway, "purge", "--yes")
    run(site.gateway, "import", str(bundle))
    shim.mark("imported")
    # A whole CVD instead of the patches: what it supersedes is dropped.
    for patch in range(2, NEWEST + 1):
        site.origin.remove(f"test-{patch}.cdiff")
    site.gateway.ask("/test.cvd", extra={"User-Agent": "curl/8.5.0"})
    settle(site.origin)
    assert site.gateway.stop() == 0


def advance_unseen(site: Site) -> None:
    """A release that is fetched, but held back from clients."""
    site.publish(NEWEST)
    assert eventually(lambda: site.origin.count(f"D{NEWEST}") == 1), site.origin.trace
    settle(site.origin)


def run(gateway: Gateway, *arguments: str) -> None:
    command = gateway.start_tool(*arguments)
    output, errors = command.communicate(timeout=60)
    assert command.returncode == 0, (arguments, output, errors)


def states(recorded: Recorded, count: int, choose: random.Random) -> Iterator[tuple[str, Tree, list[str]]]:
    """Disks after power failures at this many moments, with what had been promised."""
    moments = sorted(choose.choices(range(1, len(recorded.changes) + 1), k=count))
    replay = Replay(recorded.root, recorded.changes)
    done = 0
    for moment in moments:
        while done < moment:
            replay.advance()
            done += 1
        loss = choose.choice(list(Loss))
        tree = replay.after_power_failure(loss, choose)
        yield f"after change {moment}: {loss}", tree, list(replay.marks)


def test_what_is_opened_again_is_right(recorded: Recorded, tmp_path: Path, figures: Figures) -> None:
    choose = random.Random(SEED)
    count, objects, promises = rounds(250, 6000), 0, 0
    for what, tree, marks in states(recorded, count, choose):
        root = tmp_path / "disk"
        root.mkdir()
        write_tree(tree, root)
        try:
            objects += assert_sound(root)
            promises += assert_kept(root, marks, recorded)
        except Exception as error:
            error.add_note(f"{what}; promised: {marks}; left in {shutil.move(root, tmp_path / 'wrong')}")
            raise
        shutil.rmtree(root)
    figures(
        "power loss", states=count, changes=len(recorded.changes), objects=objects, promises=promises, wrong=0
    )


def assert_sound(root: Path) -> int:
    """The store opens, serves only what is right, and agrees with its files; returns how much it serves."""
    records = Records(root / "cache-state")
    store = Store(root / "cache", records=records)
    try:
        for object_id in list(store.object_ids()):
            check(store, object_id, CLAMAV_KEYS)  # as at every start
        names = set(store.object_ids())
        for object_id in names:
            assert_right(store, object_id)
        files = {name for _, _, found in os.walk(root / "cache" / "objects") for name in found}
        assert files == {one.file_name for one in names}
        store.counters()
        read_trend(root / "cache-state", 0.0)
        store.noted.notes("")
        assert store.index_damage is None
    finally:
        store.close()
    return len(names)


def assert_right(store: Store, object_id: ObjectId) -> None:
    published = store.open(object_id)
    assert published is not None
    with published:
        body = os.pread(published.fileno(), published.size + 1, 0)
    if object_id.kind is Kind.CLD:
        verify_cld(io.BytesIO(body), object_id, CLAMAV_KEYS)
    else:
        assert body == signed(object_id.file_name), object_id


def assert_kept(root: Path, marks: list[str], recorded: Recorded) -> int:
    """What commands have reported as done is done; returns how many promises there were."""
    holds = read_holds(root / "cache-state").in_force
    generations = read_state(root / "ca")
    present = {path.name for path in (root / "cache").glob("objects/*/*")}
    if "authority" in marks:
        assert generations
        assert (root / "ca" / "authority.json").read_bytes() == recorded.authority
    if "held" in marks and "to be released" not in marks:
        assert holds["test"].version == HELD
    if "cached" in marks and "to be dropped" not in marks:
        assert {"test-2.cvd", f"test-{HELD}.cdiff"} <= present
    if marks and marks[-1] == "imported":
        assert f"test-{NEWEST}.cdiff" in present or f"test-{NEWEST}.cvd" in present
    return len(marks)


def test_a_gateway_goes_on(recorded: Recorded, tmp_path: Path, figures: Figures) -> None:
    """A whole gateway starts from what the disk has, and everybody gets everything."""
    choose, asked = random.Random(SEED), 0
    for number, (what, tree, marks) in enumerate(states(recorded, AT_GATEWAYS, choose)):
        root = tmp_path / str(number) / "gateway"
        root.mkdir(parents=True)
        write_tree(tree, root)
        # mitmproxy's own authority isn't synced before it is used; tests/unit/test_confdir.py
        shutil.rmtree(root / "conf", ignore_errors=True)
        is_held = "test" in read_holds(root / "cache-state").in_force
        site = open_site(root.parent, delta=ROOMY)
        try:
            site.publish(NEWEST)
            log = f"{what}; promised: {marks}\n{site.gateway.log}"
            for name in HELD_NAMES if is_held else NAMES:
                answer = site.gateway.ask(f"/{name}")
                assert answer.status == 200 or name == "test.cld", (name, answer.status, log)
                if name != "test.cld":
                    assert answer.body in {signed(one) for one in versions_of(name)}, (name, log)
                asked += 1
            assert "Traceback" not in site.gateway.log, log
            assert site.gateway.tool("verify").returncode == 0, log
        finally:
            site.close()
        shutil.rmtree(root)
    figures("power loss, whole gateways", states=AT_GATEWAYS, requests=asked, wrong=0)


def versions_of(name: str) -> list[str]:
    """What may be served under a name."""
    return [f"test-{version}.cvd" for version in range(2, NEWEST + 1)] if name == "test.cvd" else [name]
