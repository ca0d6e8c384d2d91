"""fangfrisch, which holds each file of a feed against the digest beside it, behind the gateway."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.faults import Fault
from tests.support.origin import OriginServer
from tests.support.programs import require_program
from tests.support.site import LOCALHOST, Site, origin_certificates

from .conftest import MakeSite

LIMIT = 50
"""Seconds for one run."""
NAMES = ("my.ndb", "other.hdb")
LONG, SHORT = {"Cache-Control": "max-age=86400"}, {"Cache-Control": "max-age=0"}


@dataclass(slots=True, kw_only=True)
class Fangfrisch:
    """One installation: a directory, a configuration, and its database of what it has."""

    directory: Path
    prefix: str
    environment: dict[str, str]

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        self.files.mkdir()
        urls = [f"url_{name.partition('.')[0]} = ${{prefix}}{name}" for name in NAMES]
        lines = [
            "[DEFAULT]",
            f"db_url = sqlite:///{self.directory}/db.sqlite",
            f"local_directory = {self.files}",
            "[feed]",
            "enabled = yes",
            "integrity_check = sha256",
            f"prefix = {self.prefix}",
            *urls,
        ]
        self._config.write_text("\n".join(lines) + "\n")
        assert self._call("initdb").returncode == 0

    @property
    def files(self) -> Path:
        return self.directory / "files"

    def content(self) -> dict[str, bytes]:
        """What it has fetched and found good."""
        return {path.name: path.read_bytes() for path in self.files.iterdir()}

    def run(self) -> str:
        """``fangfrisch refresh``, whatever the time of the last one; what it complains of."""
        result = self._call("--force", "refresh")
        assert result.returncode == 0, result.stderr
        complaints = [line for line in result.stderr.splitlines() if "WARN" in line or "ERROR" in line]
        return "\n".join(complaints)

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [require_program("fangfrisch"), "--conf", str(self._config), *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory)} | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    @property
    def _config(self) -> Path:
        return self.directory / "fangfrisch.conf"


@dataclass(frozen=True, slots=True)
class Scene:
    """A site whose gateway knows one feed, over https as nearly all of them."""

    site: Site
    feed: OriginServer

    def publish(self, text: str, of_file: dict[str, str] = LONG, of_digest: dict[str, str] = SHORT) -> None:
        """New files, and their digests."""
        self.feed.heal()
        for name in NAMES:
            body = f"{text}.{name}".encode()
            digest = f"{hashlib.sha256(body).hexdigest()}  {name}\n".encode()
            for path, content, headers in ((name, body, of_file), (f"{name}.sha256", digest, of_digest)):
                self.feed.put(path, content)
                self.feed.rule(f"/{path}", Fault(headers=headers))

    def client(self, name: str) -> Fangfrisch:
        gateway = self.site.gateway
        return Fangfrisch(
            directory=self.site.directory / name,
            prefix=f"https://{LOCALHOST}:{self.feed.port}/",
            environment={
                "https_proxy": f"http://{LOCALHOST}:{gateway.port}",
                "REQUESTS_CA_BUNDLE": str(gateway.ca),
            },
        )


@pytest.fixture
def scene(make_site: MakeSite, tmp_path: Path) -> Iterator[Scene]:
    require_program("fangfrisch")
    context, bundle = origin_certificates(tmp_path / "certificates")
    with OriginServer(context) as feed:
        site = make_site(feeds={"hosts": [LOCALHOST]}, upstream={"ca_bundle": str(bundle)})
        yield Scene(site, feed)


def expected(text: str) -> dict[str, bytes]:
    return {name: f"{text}.{name}".encode() for name in NAMES}


@pytest.mark.parametrize(
    ("of_file", "of_digest"),
    [(LONG, SHORT), (SHORT, LONG), ({}, SHORT)],
    ids=["the digest expires first", "the file expires first", "nothing is said of the file"],
)
def test_each_file_fits_its_digest(scene: Scene, of_file: dict[str, str], of_digest: dict[str, str]) -> None:
    """With ``integrity_check``, over some releases, for who comes first and for who comes after."""
    first, second = scene.client("first"), scene.client("second")
    for text in ("one", "two", "three"):
        scene.publish(text, of_file, of_digest)
        for client in (first, second):
            assert client.run() == "", scene.site.gateway.log
            assert client.content() == expected(text), scene.site.gateway.log


def test_a_second_machine_costs_the_feed_nothing(scene: Scene) -> None:
    scene.publish("one", LONG, LONG)
    assert scene.client("first").run() == ""
    scene.feed.forget()
    second = scene.client("second")
    assert second.run() == ""
    assert second.content() == expected("one")
    # The digest came before its file, and is looked at once more.
    assert sorted(seen.path for seen in scene.feed.requests() if seen.status == 200) == []
    third = scene.client("third")
    scene.feed.forget()
    assert third.run() == ""
    assert scene.feed.trace == ""
