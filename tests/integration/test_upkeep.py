"""Upkeep of the cache, in the background."""

from __future__ import annotations

from pathlib import Path

import pytest

from clamproxy import upkeep
from clamproxy.storage.condition import require_space
from tests.harness.service import open_harness
from tests.support.origin import OriginServer
from tests.support.stored import until


async def test_no_error_ends_the_mending(
    tmp_path: Path, origin: OriginServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise nothing would be stored any more after the next trouble with the disk."""
    errors = [MemoryError(), RuntimeError("can't start new thread")]

    def fails_first(directory: Path) -> None:
        if errors:
            raise errors.pop()
        require_space(directory)

    monkeypatch.setattr(upkeep, "MEND_EVERY", 0.02)
    monkeypatch.setattr("clamproxy.cache.store.require_space", fails_first)
    async with open_harness(tmp_path / "cache", origin) as harness:
        harness.service.clamav.upkeep.start()
        index = tmp_path / "cache" / "index" / "cache.db"
        await until(lambda: not errors and index.exists())
        index.unlink()
        await until(index.exists)
    assert caplog.text.count("The cache can't be mended.") == 2
