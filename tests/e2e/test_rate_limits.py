"""Limits of the link and of clients. Whatever the load, nobody gets more bytes than a limit allows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.big import PATH, SIZE, VERSION, Download, Forgery, begun_download
from tests.support.forge import forge_cdiff
from tests.support.gateway import Way
from tests.support.site import Site, eventually

from .conftest import MakeForged
from .test_reload import reload

LINK, CLIENT = 1_000_000, 4_000_000
"""Bytes per second."""
BUFFERED = 1_000_000
"""Bytes that may be in buffers, besides what goes at once to a client that was idle."""
PATCH = f"/daily-{VERSION}.cdiff"


@contextmanager
def at_most(rate: int, expected: int, at_once: int = 0) -> Iterator[None]:
    """What is transferred meanwhile takes as long as the rate demands. A busy machine only takes longer."""
    begun = time.monotonic()
    yield
    assert expected <= rate * (time.monotonic() - begun) + BUFFERED + at_once


def status(site: Site) -> dict[str, Any]:
    answer = site.gateway.ask("/status.json", Way.ABSOLUTE, host="clamproxy")
    return json.loads(answer.body)  # type: ignore[no-any-return]


def is_under_way(site: Site) -> bool:
    return any(transfer["name"].endswith(".cvd") for transfer in status(site)["transfers"])


def test_a_patch_does_not_wait_for_a_large_file_on_the_same_link(
    make_forged: MakeForged, forgery: Forgery
) -> None:
    site = make_forged(upstream={"rate_limit": {"0-24": LINK}})
    site.origin.put(PATCH.removeprefix("/"), forge_cdiff("daily", VERSION))
    assert "upstream.rate_limit: 1MB/s from now on." in site.gateway.log
    with at_most(LINK, SIZE), begun_download(site.gateway) as client:
        assert site.gateway.ask(PATCH).status == 200
        assert is_under_way(site)
        assert client.read() == (forgery.body, True)
    rates = status(site)["rates"]
    assert rates["upstream"]["limit"] == LINK
    assert 0 < rates["upstream"]["rate"] <= LINK * 1.1
    assert "stalled" not in site.gateway.log


def test_a_reload_frees_what_is_under_way(make_forged: MakeForged, forgery: Forgery) -> None:
    site = make_forged(upstream={"rate_limit": "64KiB/s"})
    with begun_download(site.gateway) as client:
        assert eventually(lambda: is_under_way(site))
        assert "upstream.rate_limit: no limit from now on." in reload(
            site.gateway, upstream={"rate_limit": None}
        )
        assert client.read() == (forgery.body, True)  # at 64 KiB/s that would take two minutes


@pytest.mark.parametrize("express", [True, False])
@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS])
def test_a_clients_connections_share_its_rate(
    make_forged: MakeForged, forgery: Forgery, way: Way, express: bool
) -> None:
    site = make_forged(serving={"express": express})
    assert site.gateway.ask(PATH).body == forgery.body
    assert eventually(lambda: status(site)["rates"]["clients"] == {"limit": None, "waiting": 0})
    # At a rate that no machine is too busy for, both have to wait. They are one client.
    reload(site.gateway, serving={"express": express, "rate_limit_per_client": 65536})
    downloads = [Download(site.gateway, way) for _ in range(2)]
    assert eventually(lambda: status(site)["rates"]["clients"] == {"limit": 65536, "waiting": 1}, every=0.05)
    with at_most(CLIENT, 2 * SIZE, at_once=CLIENT):
        reload(site.gateway, serving={"express": express, "rate_limit_per_client": CLIENT})
        assert all(download.answer().body == forgery.body for download in downloads)


def test_a_reload_limits_what_is_under_way(make_forged: MakeForged, forgery: Forgery) -> None:
    site = make_forged()
    assert site.gateway.ask(PATH).body == forgery.body
    with begun_download(site.gateway, buffer=65536) as client:
        reload(site.gateway, serving={"rate_limit_per_client": CLIENT})
        with at_most(CLIENT, SIZE, at_once=CLIENT):
            assert client.read() == (forgery.body, True)
