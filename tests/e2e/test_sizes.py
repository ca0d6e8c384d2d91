"""Sizes as in life: an 85 MB file, verified and served, with flat memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests.support.big import PATH, Forgery, open_forged_site
from tests.support.forge import forge_cvd, forge_keys
from tests.support.gateway import Way
from tests.support.processes import peak_of
from tests.support.site import Site

SIZE = 85_000_000
VERSION = 27800
MOST_MEMORY = 200 * 1024
"""kB."""


@pytest.fixture(scope="module")
def forgery(tmp_path_factory: pytest.TempPathFactory) -> Forgery:
    directory = tmp_path_factory.mktemp("sizes")
    forge_keys().save(directory / "keys")
    path = directory / "daily.cvd"
    forge_cvd(path, "daily", VERSION, SIZE, 1_700_000_000)
    body = path.read_bytes()
    return Forgery(directory / "keys", body, body)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, forgery: Forgery) -> Iterator[Site]:
    site = open_forged_site(tmp_path_factory.mktemp("site"), forgery, upstream={"read_timeout": "60s"})
    yield site
    site.close()


def test_85_megabytes(site: Site, forgery: Forgery) -> None:
    """The first client's file arrives from the origin, the others' come from disk; memory stays flat."""
    expected = hashlib.sha256(forgery.body).digest()
    for way in (Way.CONNECT_HTTP, Way.CONNECT_HTTPS, Way.ABSOLUTE, Way.REVERSE):
        answer = site.gateway.ask(PATH, way, timeout=60)
        assert (answer.status, answer.complete) == (200, True), site.gateway.log
        assert hashlib.sha256(answer.body).digest() == expected
    assert [seen.short_name for seen in site.origin.requests(PATH)].count("W") == 1
    assert peak_of(site.gateway.pid) < MOST_MEMORY
