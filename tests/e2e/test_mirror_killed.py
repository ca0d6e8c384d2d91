"""``clamproxy mirror``, killed at some moments."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.dns_server import FakeDns
from tests.support.freshclam import OK
from tests.support.gateway import TOOL_LIMIT
from tests.support.mirror import NAMED, NOT_DELIVERED, TEST, Mirror, idle_site, open_mirror, told
from tests.support.origin import OriginServer
from tests.support.site import eventually


def _is_over(end: float) -> bool:
    return time.monotonic() > end


class TestKilled:
    """SIGKILL: the directory is complete at any moment."""

    @pytest.mark.parametrize("path", ["W", "D6", "/test-6.cvd.sign", "/test-6.cdiff.sign"])
    def test_while_the_mirror_waits_for_the_origin(self, mirror: Mirror, path: str) -> None:
        origin = mirror.site.origin
        mirror.release(5)
        mirror.site.publish(6)
        origin.rule(path, faults.stall(500))
        self._kill_at(mirror, path)
        self._assert_usable(mirror)
        origin.heal()
        mirror.release(6)
        mirror.assert_sound()

    @pytest.mark.parametrize("path", ["W", "/test-6.cvd.sign", "/test-6.cdiff.sign"])
    def test_the_first_time(self, tmp_path: Path, origin: OriginServer, dns: FakeDns, path: str) -> None:
        """The next run need not ask for the versions, and goes on nevertheless, or says that it does not."""
        site = idle_site(tmp_path, origin, dns, upstream=NAMED, versions={"refresh": "5min"})
        site.publish(6)
        origin.rule(path, faults.stall(500))
        with open_mirror(site) as mirror:
            self._kill_at(mirror, path)
            assert mirror.version() is None
            origin.heal()
            result = mirror.run(*TEST)
            assert mirror.version() == 6, told(mirror, result)
            complete = {"test-6.cvd.sign", "test-6.cdiff", "test-6.cdiff.sign"} <= mirror.names()
            assert result.returncode == (OK if complete else NOT_DELIVERED), told(mirror, result)

    def test_again_and_again(self, mirror: Mirror) -> None:
        """At any moments, while the origin is slow."""
        site = mirror.site
        mirror.release(4)
        site.origin.rule("*", faults.slow(100_000))
        for version, seconds in ((5, 0.7), (5, 0.9), (6, 0.8), (6, 1.0), (6, 1.2)):
            site.publish(version)
            end = time.monotonic() + seconds
            self._kill(mirror, partial(_is_over, end))
            mirror.assert_sound()
        self._assert_usable(mirror)
        site.origin.heal()
        assert eventually(lambda: mirror.run(*TEST).returncode == OK, every=0.5)
        assert mirror.version() == 6
        self._assert_usable(mirror)

    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_while_the_mirror_changes_the_directory(self, mirror: Mirror, count: int) -> None:
        """When so many files have been added."""
        mirror.release(5)
        mirror.site.publish(6)
        before = mirror.names()
        self._kill(mirror, lambda: len(mirror.names() - before) >= count)
        self._assert_usable(mirror)
        mirror.release(6)
        mirror.update()
        assert not [
            path for path in mirror.directory.iterdir() if ".tmp" in path.name or ".part" in path.name
        ]

    @classmethod
    def _kill_at(cls, mirror: Mirror, path: str) -> None:
        """Kill a run a moment after it has asked for something that does not come."""
        asked: list[float] = []

        def moment() -> bool:
            if not asked and mirror.site.origin.count(path):
                asked.append(time.monotonic())
            return bool(asked) and time.monotonic() > asked[0] + 0.2

        cls._kill(mirror, moment)

    @staticmethod
    def _kill(mirror: Mirror, moment: Callable[[], bool]) -> None:
        """Start a run and kill it at a moment, if it lasts so long."""
        process = mirror.start(*TEST)
        deadline = time.monotonic() + TOOL_LIMIT
        while process.poll() is None and not moment() and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.kill()
        process.communicate(timeout=10)

    @staticmethod
    def _assert_usable(mirror: Mirror) -> None:
        mirror.assert_sound()
        name = f"client-{time.monotonic_ns()}"
        outcome = mirror.client(name, local=4).run()
        assert (outcome.code, outcome.version) == (OK, mirror.version()), told(mirror, outcome)
        assert "ERROR" not in outcome.output, told(mirror, outcome)
