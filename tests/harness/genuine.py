"""All files that the CDN has on each of a few days: what an adversary sends may be compared with them."""

from __future__ import annotations

from functools import cache

from clamproxy.objects import Kind, ObjectId
from tests.harness.service import RELEASES
from tests.support.releases import Releases

MAIN = Releases(database="main")
LAST = 6
"""The newest version of daily."""


@cache
def files_of(version: int) -> dict[str, bytes]:
    """What the CDN has when a version of daily is the newest."""
    files = {"main.cvd": MAIN.cvd(1), "main-1.cvd.sign": MAIN.cvd_sign(1), "daily.cvd": RELEASES.cvd(version)}
    files[f"daily-{version}.cvd.sign"] = RELEASES.cvd_sign(version)
    for patch in range(2, version + 1):
        files[f"daily-{patch}.cdiff"] = RELEASES.cdiff(patch)
        files[f"daily-{patch}.cdiff.sign"] = (
            files_of(patch)[f"daily-{patch}.cdiff.sign"] if patch < version else (RELEASES.cdiff_sign(patch))
        )
    return files


def genuine(object_id: ObjectId) -> set[bytes]:
    """What may be published under a name. An empty patch is ClamAV's own signal, which nothing proves."""
    releases = MAIN if object_id.database == "main" else RELEASES
    match object_id.kind:
        case Kind.CVD:
            return {releases.cvd(object_id.version)}
        case Kind.CDIFF:
            return {releases.cdiff(object_id.version) if object_id.version > 1 else b"", b""}
    return set()
