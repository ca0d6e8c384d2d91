"""Fixtures of the end-to-end tests: the real freshclam, the real proxy, a fake CDN and a fake DNS server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.big import Forgery, forge, open_forged_site
from tests.support.bundles import OFFLINE, Bundles, open_bundles
from tests.support.data import require_testdata
from tests.support.dns_server import FakeDns, open_dns
from tests.support.gateway import Gateway
from tests.support.mirror import ANEW, NAMED, Mirror, idle_site, open_mirror
from tests.support.origin import OriginServer
from tests.support.scenes import BASE, ROOMY, hold
from tests.support.service_manager import Manager
from tests.support.site import Site, SitePool, open_site, settings_for

type MakeSite = Callable[..., Site]
type MakeForged = Callable[..., Site]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session", autouse=True)
def _data() -> None:
    require_testdata()


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SitePool]:
    """Sites with the usual settings, started ahead."""
    pool = SitePool(tmp_path_factory.mktemp("sites"))
    yield pool
    pool.close()


@pytest.fixture
def site(sites: SitePool) -> Iterator[Site]:
    """A site with the usual settings and an empty cache; nothing is published yet."""
    site = sites.take()
    yield site
    site.close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[MakeSite]:
    """Starts sites with their own settings; takes the arguments of `open_site` except the directory."""
    opened: list[Site] = []
    numbers = itertools.count()

    def make(**options: object) -> Site:
        opened.append(open_site(tmp_path / f"site-{next(numbers)}", **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for site in opened:
        site.close()


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with version 2 and all cdiffs up to 6 in its cache. Tests must not change it."""
    site = open_site(tmp_path_factory.mktemp("behind"), delta=ROOMY)
    hold(site, BASE)
    yield site
    site.close()


@pytest.fixture
def roomy(make_site: MakeSite) -> Site:
    """A site whose delta serving accepts cdiffs of any size."""
    return make_site(delta=ROOMY)


@pytest.fixture(scope="module")
def forgery(tmp_path_factory: pytest.TempPathFactory) -> Forgery:
    """Two versions of a big CVD, signed with test keys."""
    return forge(tmp_path_factory.mktemp("forged"))


@pytest.fixture
def make_forged(tmp_path: Path, forgery: Forgery) -> Iterator[MakeForged]:
    """Makes sites that trust the test keys, with the settings that the test needs."""
    opened: list[Site] = []

    def make(**sections: Any) -> Site:
        opened.append(open_forged_site(tmp_path / f"site-{len(opened)}", forgery, **sections))
        return opened[-1]

    yield make
    for site in opened:
        site.close()


@pytest.fixture
def big(make_forged: MakeForged) -> Site:
    """A site that trusts the test keys."""
    return make_forged()


@pytest.fixture
def dns() -> Iterator[FakeDns]:
    """A fake DNS server alone."""
    with open_dns() as server:
        yield server


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundles]:
    """What a gateway with internet access has exported."""
    with open_bundles(tmp_path_factory.mktemp("bundles")) as bundles:
        yield bundles


@pytest.fixture
def idle(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> Gateway:
    """A gateway without internet access that isn't running and has no cache yet."""
    return Gateway(tmp_path / "idle", settings_for(origin, dns, **OFFLINE))


@pytest.fixture
def mirror(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> Iterator[Mirror]:
    """A mirror whose proxy isn't running, and whose cache no freshclam has used."""
    site = idle_site(tmp_path / "site", origin, dns, upstream=NAMED, versions=ANEW)
    with open_mirror(site) as mirror:
        yield mirror


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager()
    yield manager
    manager.close()
