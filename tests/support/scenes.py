"""Starting points for the tests of delta serving, of CLDs and of chains."""

from __future__ import annotations

import gzip
from typing import Any

from tests.support.data import read_testdata
from tests.support.freshclam import Outcome
from tests.support.gateway import Answer, Gateway, Way
from tests.support.origin import OriginServer
from tests.support.site import Site, eventually

ROOMY: dict[str, Any] = {"max_share": "100%"}
"""Section `delta` for the test data, whose cdiffs together are half as large as a CVD."""
PROBE = "bytes=0-511"
EXTRA = "test.cvd.clamav.net"
"""The TXT record of database test."""
NEWER_AGENT = (
    "ClamAV/1.5.3 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 1738ec71-8d58-4bdf-8241-6ad688adc4fd)"
)
BASE = 2
"""The version that is cached where newer clients are to go on by patches."""
NEWEST = 6
"""The last version of database test in the test data."""
type Members = dict[str, bytes]


def hold(site: Site, base: int, advertised: int = NEWEST) -> None:
    """Bring a CVD and the cdiffs that follow it into the cache, as releases and clients do.

    Afterwards, the origin's record is empty.
    """
    site.publish(base)
    assert site.gateway.ask("/test.cvd").body == read_testdata(f"test-{base}.cvd"), site.gateway.log
    assert site.gateway.ask(f"/test-{base}.cvd.sign").status == 200, site.gateway.log
    advance(site, base, advertised)


def advance(site: Site, held: int, advertised: int) -> None:
    """Release more versions; waits until their cdiffs are in the cache and the probe shows the last."""
    site.publish(advertised)
    for patch in range(held + 1, advertised + 1):
        for name in (f"test-{patch}.cdiff", f"test-{patch}.cdiff.sign"):
            assert site.gateway.ask(f"/{name}").body == read_testdata(name), site.gateway.log
    assert eventually(lambda: shown(site.gateway) == advertised), site.gateway.log
    settle(site.origin)
    site.origin.forget()


def settle(origin: OriginServer) -> None:
    """Wait until the origin is not asked any more, because background work has ended."""
    lengths: list[int] = []

    def quiet() -> bool:
        lengths.append(len(origin.requests()))
        return len(lengths) > 4 and len(set(lengths[-5:])) == 1

    assert eventually(quiet, every=0.3), origin.trace


def refreshed(site: Site, times: int = 3) -> bool:
    """Wait until the proxy has asked DNS for the version of database test this many more times."""
    before = site.dns.count(EXTRA)
    return eventually(lambda: site.dns.count(EXTRA) >= before + times)


def shown(gateway: Gateway, path: str = "/test.cvd", way: Way = Way.CONNECT_HTTP) -> int | None:
    """The version in the header probe, None if there is no header."""
    answer = gateway.ask(path, way, range=PROBE)
    return version_of(answer.body) if answer.status == 206 else None


def version_of(body: bytes) -> int | None:
    """The version in the header of a CVD or CLD."""
    fields = body[:512].split(b":")
    return int(fields[2]) if fields[0] == b"ClamAV-VDB" and len(fields) > 8 else None


def members_of(database: bytes) -> Members:
    """The members of a CVD or CLD: a tar archive behind the header, compressed or not.

    Source: docs/protocol.md 4.4.
    """
    archive = database[512:]
    if not archive.startswith(b"COPYING"):
        archive = gzip.decompress(archive)
    members, offset = {}, 0
    while offset < len(archive) and archive[offset]:
        name = archive[offset : offset + 100].rstrip(b"\0").decode()
        size = int(archive[offset + 124 : offset + 136].rstrip(b"\0 "), 8)
        members[name] = archive[offset + 512 : offset + 512 + size]
        offset += 512 + size + -size % 512
    return members


def whole(gateway: Gateway, path: str = "/test.cvd", **headers: str) -> Answer:
    """A GET of a whole file that must succeed."""
    answer = gateway.ask(path, extra=headers)
    assert (answer.status, answer.complete) == (200, True), f"{path}: {answer.status}\n{gateway.log}"
    return answer


def explain(site: Site, outcome: Outcome) -> str:
    """Output to read if a run went wrong."""
    return f"{outcome}\nat the CDN: {site.origin.trace}\n{outcome.output}\n{site.gateway.log}"
