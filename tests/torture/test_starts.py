"""A start costs nearly the same, however much is in the cache: after a kill, nobody waits for it."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import closing
from pathlib import Path

from clamproxy.cache import layout
from clamproxy.cache.index import Index
from clamproxy.cache.published import Metadata
from clamproxy.cache.rows import IndexRow, object_key
from clamproxy.cache.store import Store
from clamproxy.storage.condition import Condition
from tests.support.dns_server import open_dns
from tests.support.gateway import Gateway
from tests.support.origin import OriginServer
from tests.support.site import eventually, settings_for
from tests.support.stored import cdiff
from tests.torture.conftest import Figures
from tests.torture.effort import rounds

FEW, MANY = 10, 3000
MOST = 4.0
"""How many times the processor time of a start with few objects one with many may take; measured: 2.3."""
ROOM = {"cache": {"keep_cdiffs": 10 * MANY}}


def fill(cache: Path, count: int) -> None:
    """Patches, of which a start knows that they were verified before it."""
    Store(cache).close()
    rows = {}
    for version in range(1, count + 1):
        body = b"%d " % version * 2000
        path = cache / layout.file_name(cdiff(version))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body)
        metadata = Metadata(len(body), time.time(), sha256=hashlib.sha256(body).hexdigest())
        rows[object_key(cdiff(version))] = IndexRow(metadata.to_json(), layout.file_name(cdiff(version)))
    with closing(Index(cache / layout.INDEX, Condition(cache, "The cache"))) as index:
        index.change(rows)


def processor_time(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_start_after_a_kill(tmp_path: Path, figures: Figures) -> None:
    used: dict[int, list[float]] = {FEW: [], MANY: []}
    with OriginServer() as origin, open_dns() as dns:
        for count, times in used.items():
            gateway = Gateway(tmp_path / str(count), settings_for(origin, dns, **ROOM))
            fill(gateway.cache, count)
            for _ in range(rounds(2, 10)):
                with gateway:
                    times.append(processor_time(gateway.pid))
                    # It is whole, and the kill that follows meets a gateway at work.
                    assert eventually(lambda: gateway.ask(f"/daily-{count}.cdiff").status == 200)  # noqa: B023
    few, many = min(used[FEW]), min(used[MANY])
    assert many < MOST * few
    figures("starts", **{f"seconds_with_{FEW}_objects": few, f"with_{MANY}": many})
