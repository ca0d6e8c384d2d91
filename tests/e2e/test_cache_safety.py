"""The cache directory: who may read it, what is planted in it, two owners, sudden death."""

from __future__ import annotations

import pickle
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.support.freshclam import OK
from tests.support.gateway import Gateway
from tests.support.site import Site, corrupts, eventually, settings_for, signed

MODE_PICKLE = 4
"""diskcache's mark of a value that it unpickles (diskcache/core.py)."""
COLUMNS = "(key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)"


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self._marker,)


def databases(cache: Path) -> list[Path]:
    found = list(cache.rglob("cache.db"))
    assert found, f"no index below {cache}"
    return found


def plant(database: Path, marker: Path) -> None:
    """A pickled value under each existing key and under a new one, and a pickled key."""
    bomb = pickle.dumps(Bomb(marker))
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        connection.execute("UPDATE Cache SET mode = ?, value = ?, filename = NULL", (MODE_PICKLE, bomb))
        row = (0.0, None, 0.0, 0, None, 0, MODE_PICKLE, None, bomb)
        insert = f"INSERT INTO Cache {COLUMNS} VALUES (?, ?, {', '.join('?' * 9)})"
        connection.execute(insert, ("planted", 1, *row))
        connection.execute(insert, (bomb, 0, *row))


def test_directory_is_private(site: Site) -> None:
    site.publish(6)
    assert site.gateway.ask("/test.cvd").status == 200
    assert stat.S_IMODE(site.gateway.cache.stat().st_mode) == 0o700


def test_planted_pickles_do_nothing(site: Site, tmp_path: Path) -> None:
    """CVE-2025-69872: neither a running nor a starting proxy nor ``clamproxy stats`` unpickles anything."""
    marker = tmp_path / "executed"
    site.publish(6)
    assert site.gateway.ask("/test.cvd").body == signed("test-6.cvd")
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb itself works"
    marker.unlink()
    for database in databases(site.gateway.cache):
        plant(database, marker)
    answers = [site.gateway.ask(path) for path in ("/test.cvd", "/test-6.cdiff", "/test.cvd")]
    site.gateway.stats()
    site.gateway.stop()
    site.gateway.stats()
    site.gateway.start()
    answers += [site.gateway.ask(path) for path in ("/test.cvd", "/test-5.cdiff")]
    site.gateway.stats()
    assert not marker.exists()
    assert [answer.status for answer in answers] == [200] * 5, site.gateway.log
    assert {answers[0].body, answers[2].body, answers[3].body} == {signed("test-6.cvd")}


def test_kill_and_restart_serves_from_the_cache(site: Site) -> None:
    site.warm(6)
    site.gateway.kill()
    site.origin.refuse()
    site.gateway.start()
    fresh = site.client("fresh").run()
    behind = site.client("behind", local=5).run()
    assert [(one.code, one.version) for one in (fresh, behind)] == [(OK, 6)] * 2, (
        fresh.output + site.gateway.log
    )


def test_two_proxies_share_a_directory(site: Site) -> None:
    """One falls, the other goes on; neither hurts what the other stored."""
    site.publish(6)
    settings = settings_for(site.origin, site.dns, cache={"directory": str(site.gateway.cache)})
    with Gateway(site.directory / "second", settings) as second:
        assert site.gateway.ask("/test.cvd").body == signed("test-6.cvd")
        assert second.ask("/test-6.cdiff").body == signed("test-6.cdiff")
        assert second.ask("/test.cvd").body == signed("test-6.cvd")
        assert site.gateway.ask("/test-6.cdiff").body == signed("test-6.cdiff")
        site.gateway.kill()
        site.origin.refuse()
        assert second.ask("/test.cvd").body == signed("test-6.cvd")
        assert second.ask("/test-6.cdiff").body == signed("test-6.cdiff")


def test_bad_objects_are_quarantined_with_a_reason(site: Site) -> None:
    site.publish(6)
    corrupts("D6", "test-6.cdiff", times=1)(site.origin)
    answer = site.gateway.ask("/test-6.cdiff")
    assert answer.status == 503 or not answer.complete
    assert "6d8e7326cd40501e-TST" in site.gateway.log, "the cf-ray of a bad answer is logged"
    assert any("quarantine" in path.as_posix() for path in site.gateway.cache.rglob("*"))
    healed = eventually(lambda: found if (found := site.gateway.ask("/test-6.cdiff")).status == 200 else None)
    assert healed is not None
    assert healed.body == signed("test-6.cdiff")


def test_damaged_files_are_not_served(site: Site) -> None:
    """A disk that lost some bytes: the proxy notices a wrong length at least, and fetches again."""
    site.publish(6)
    assert site.gateway.ask("/test.cvd").body == signed("test-6.cvd")
    site.gateway.stop()
    for path in site.gateway.cache.rglob("*"):
        if path.is_file() and path.read_bytes() == signed("test-6.cvd"):
            path.write_bytes(signed("test-6.cvd")[:5000])
    site.gateway.start()
    answer = eventually(lambda: found if (found := site.gateway.ask("/test.cvd")).status == 200 else None)
    assert answer is not None
    assert answer.body == signed("test-6.cvd") or not answer.complete


def test_older_cvds_are_dropped(site: Site) -> None:
    """The newest two CVDs of a database are kept."""
    for version in range(3, 7):
        site.publish(version)
        body = signed(f"test-{version}.cvd")
        query = f"/test.cvd?version={version}"
        assert eventually(lambda query=query, body=body: site.gateway.ask(query).body == body)  # type: ignore[misc]

    def kept() -> list[int]:
        objects = site.gateway.cache / "objects" / "test"
        return [version for version in range(1, 7) if (objects / f"test-{version}.cvd").exists()]

    assert eventually(lambda: kept() == [5, 6]), kept()
