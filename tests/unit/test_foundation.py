"""What a start finds, before any part of a service is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from clamproxy.config.settings import Settings
from clamproxy.foundation import Foundation
from tests.support.forge import forge_keys

PLACES = (
    "cache/gateways/.0123456789abcdef.report.gz.0a1b2c3d",
    "cache/newest-proven/.daily.0a1b2c3d",
    "cache/objects/daily/.daily-5.cvd.0a1b2c3d",
    "state/.holds.json.0a1b2c3d",
)


@pytest.mark.parametrize("place", PLACES)
async def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path, place: str) -> None:
    settings = Settings.model_validate(
        {"cache": {"directory": tmp_path / "cache"}, "state": {"directory": tmp_path / "state"}}
    )
    Foundation(settings, forge_keys().trusted).stop()
    begun = tmp_path / f"{place}.part"
    begun.parent.mkdir(parents=True, exist_ok=True)
    begun.write_bytes(b"begun")
    (kept := begun.with_name(begun.name.partition(".0a1b2c3d")[0].removeprefix("."))).write_bytes(b"complete")
    Foundation(settings, forge_keys().trusted).stop()
    assert not begun.exists()
    assert kept.exists() or "objects" in place
