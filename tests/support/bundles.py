"""Bundles: exported by a gateway with internet access, damaged in many ways, imported by one without."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.freshclam import OK
from tests.support.gateway import Gateway
from tests.support.scenes import NEWEST, ROOMY, Members, advance, hold, whole
from tests.support.site import open_site

type Snapshot = dict[str, bytes]

OFFLINE: dict[str, Any] = {"upstream": {"offline": True}, "delta": ROOMY}
"""Configuration of a gateway without internet access."""
BASE = 4
CVD = f"test-{BASE}.cvd"
PATCH = f"test-{NEWEST}.cdiff"
MANIFEST = "manifest.json"
REFUSED = 1
"""Exit code of a refused import."""


@dataclass(frozen=True, slots=True)
class Bundles:
    """Files that a gateway with internet access has exported, one release after another."""

    first: Path
    """CVD 4 and cdiff 5."""
    patch: Path
    """Cdiff 6, since 5."""
    second: Path
    """CVD 4 and cdiffs 5 and 6."""
    whole: Path
    """CVD 6."""


def export(gateway: Gateway, file: Path, *options: str) -> Path:
    """Export into a file, which must succeed."""
    result = gateway.tool("export", str(file), *options)
    assert (result.returncode, result.stdout) == (OK, ""), result.stderr
    return file


def take_in(gateway: Gateway, file: Path, *options: str) -> str:
    """Import a file, which must succeed; returns what is printed."""
    result = gateway.tool("import", str(file), *options)
    assert (result.returncode, result.stdout) == (OK, ""), result.stderr
    return result.stderr


def refusal(gateway: Gateway, file: Path, *options: str) -> str:
    """Import a file, which must be refused and change nothing; returns the line that says why."""
    before = snapshot(gateway.cache)
    result = gateway.tool("import", str(file), *options)
    assert (result.returncode, result.stdout) == (REFUSED, ""), result.stderr
    assert snapshot(gateway.cache) == before
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def snapshot(cache: Path) -> Snapshot:
    """All files of a cache except locks and databases, which change when they are opened.

    The files of an unpacked bundle aren't part of the cache yet.
    """
    left_out = ("staging", "cache.db", "fleet.sqlite")
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and "lock" not in path.name and not any(name in str(path) for name in left_out)
    }


def objects(cache: Path) -> set[bytes]:
    """The contents of all files."""
    return {path.read_bytes() for path in cache.rglob("*") if path.is_file() and "sqlite" not in path.name}


def members_of(bundle: Path) -> Members:
    """Name to content, in the order of the file."""
    with tarfile.open(bundle) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def pack(file: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar as `export` does."""
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def forged(bundle: Path, file: Path, contents: Members) -> Path:
    """A copy of a bundle with other contents, correctly listed in its manifest."""
    members = members_of(bundle) | contents
    manifest = json.loads(members[MANIFEST])
    for item in manifest["databases"]["test"]["objects"]:
        content = members[item["name"]]
        item |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return pack(file, members | {MANIFEST: json.dumps(manifest).encode()})


def with_manifest(bundle: Path, file: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle whose manifest is changed for database test."""
    members = members_of(bundle)
    manifest = json.loads(members[MANIFEST])
    change(manifest["databases"]["test"])
    return pack(file, members | {MANIFEST: json.dumps(manifest).encode()})


@contextmanager
def open_bundles(directory: Path) -> Iterator[Bundles]:
    """Bundles exported into a directory by a gateway with internet access."""
    site = open_site(directory / "outside", delta=ROOMY)
    try:
        hold(site, BASE, NEWEST - 1)
        whole(site.gateway, f"/test-{NEWEST - 1}.cdiff.sign")
        first = export(site.gateway, directory / "first.tar")
        advance(site, NEWEST - 1, NEWEST)
        patch = export(site.gateway, directory / "patch.tar", "--since", str(NEWEST - 1))
        second = export(site.gateway, directory / "second.tar")
        whole(site.gateway, user_agent="curl/8.5.0")
        whole(site.gateway, f"/test-{NEWEST}.cvd.sign")
        site.gateway.stop()
        yield Bundles(first, patch, second, export(site.gateway, directory / "whole.tar"))
    finally:
        site.close()
