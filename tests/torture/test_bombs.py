"""A few bytes that stand for many cost no memory."""

from __future__ import annotations

import gzip
import tarfile
import tracemalloc

from clamproxy.formats.header import HEADER_SIZE
from tests.support.forge import payload_of, seal
from tests.torture.conftest import Figures
from tests.torture.effort import rounds
from tests.torture.parsers import BY_NAME

SIZE = rounds(32, 256) * 2**20
"""Bytes that each of them stands for."""
ROOM = 24 * 2**20
"""Bytes that reading may take at a time; the largest member or line that is kept whole has 16 MiB."""

ZEROS = bytes(SIZE)


def laughs(levels: int = 9) -> bytes:
    """YAML with lists of lists, each of which names the one before nine times."""
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "\n".join(lines).encode()


def announced(name: str, size: int) -> bytes:
    """The header of a member that doesn't follow."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


BOMBS = [
    ("report of a gateway", gzip.compress(ZEROS, 9)),
    ("report of a gateway", gzip.compress(b"\n" * SIZE, 9)),
    ("tar of a CVD", payload_of([("COPYING", b"x"), ("daily.ndb", ZEROS)])),
    ("tar of a CLD", payload_of([("COPYING", b"x"), ("daily.ndb", ZEROS)])),
    (".info within a CVD", bytes(HEADER_SIZE) + payload_of([("x", ZEROS), ("daily.info", b"x")])),
    (".info within a CVD", bytes(HEADER_SIZE) + payload_of([("daily.info", ZEROS)])),
    ("CVD", seal(1, payload_of([("daily.info", ZEROS)]))),
    ("tar of a bundle", announced("daily-1.cvd", 8 * 2**30 - 1)),
    ("bundle", announced("manifest.json", 8 * 2**30 - 1)),
    ("proxy.yaml", b"serving:\n  databases:\n" + laughs().replace(b"- ", b"  - ")),
    ("proxy.yaml", laughs()),
    (".sign", b"#clamsign-1.0\n" + b"1:1:pkcs7-pem:AAAA\n" * 2**15),
]


def test_no_memory(figures: Figures) -> None:
    peaks = [taken(name, data) for name, data in BOMBS]
    figures("bombs", bombs=len(BOMBS), MiB_behind_each=SIZE // 2**20, MiB_taken=max(peaks) // 2**20)
    assert {name for (name, _), peak in zip(BOMBS, peaks, strict=True) if peak > ROOM} == set()


def taken(name: str, data: bytes) -> int:
    """Bytes of memory that reading takes at its peak."""
    tracemalloc.start()
    try:
        BY_NAME[name].accepts(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
