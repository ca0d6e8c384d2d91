"""Bundles that are written or imported while a gateway works in the same cache."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clamproxy.bundle import BundleError, Manifest, Since, select, sweep_staging, write_bundle
from clamproxy.bundle.contents import Reporter
from clamproxy.bundle.importing import STAGING
from clamproxy.cache.partial import LONGEST_KEPT
from clamproxy.cache.store import Store
from tests.support import bundle_parts
from tests.support.fixtures import Fill
from tests.support.stored import cdiff, cvd, put, sign

type Meanwhile = Callable[[Callable[[], None]], None]


@pytest.fixture
def gateway(store: Store) -> Iterator[Store]:
    """The cache of `store` as another process sees it."""
    other = Store(store.directory, tidy=False)
    yield other
    other.close()


@pytest.fixture
def meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Makes something happen right after the export has listed the cache: it gets the list from before."""

    def happen(happens: Callable[[], None]) -> None:
        listed = store.sizes()
        happens()
        monkeypatch.setattr(store, "sizes", lambda: listed)

    return happen


def exported(store: Store, since: str | None = None, progress: Reporter | None = None) -> Manifest:
    selection = select(store, since=Since.parse([since] if since else []))
    return write_bundle(store, selection, io.BytesIO(), progress)


@pytest.mark.parametrize(("release", "patches"), [(None, range(7, 8)), (7, range(7, 8)), (9, range(0))])
@pytest.mark.parametrize(("since", "base"), [(None, 4), ("5", 5)])
def test_what_arrives_meanwhile_is_for_the_next_bundle(
    store: Store,
    gateway: Store,
    fill: Fill,
    meanwhile: Meanwhile,
    release: int | None,
    patches: range,
    since: str | None,
    base: int,
) -> None:
    fill(store, 4, range(5, 7))
    meanwhile(lambda: fill(gateway, release, patches))
    daily = exported(store, since).databases["daily"]
    assert (daily.version, daily.base, daily.is_whole) == (6, base, since is None)


def test_the_first_cvd_arrives_meanwhile(
    store: Store, gateway: Store, fill: Fill, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: fill(gateway, 4))
    with pytest.raises(BundleError, match="has just changed: try again"):
        select(store, ["daily"])


def test_a_patch_is_replaced_meanwhile(
    store: Store, gateway: Store, fill: Fill, meanwhile: Meanwhile
) -> None:
    """An empty one, by which clients were told to fetch the CVD."""
    fill(store, 4)
    put(store, cdiff(5), b"")

    def replace() -> None:
        gateway.drop(cdiff(5))
        fill(gateway, None, range(5, 6))

    meanwhile(replace)
    with pytest.raises(BundleError, match="has just changed: try again"):
        exported(store)


def test_a_signature_is_replaced_between_its_digest_and_its_bytes(
    store: Store, gateway: Store, fill: Fill
) -> None:
    """Such a bundle would be refused as damaged."""
    fill(store, 4)
    size = store.sizes()[sign(cvd(4))]

    class Replacing(Reporter):
        """Acts when the digest of the CVD has been made, which comes after its signature's."""

        done = False

        def advance(self, database: str, count: int) -> None:
            if count != size and not self.done:
                self.done = True
                gateway.drop(sign(cvd(4)))
                put(gateway, sign(cvd(4)), b"x" * size)

    with pytest.raises(BundleError, match="has just changed: try again"):
        exported(store, progress=Replacing())


def age(area: Path) -> None:
    os.utime(area, (time.time() - LONGEST_KEPT - 60,) * 2)


def area_of(store: Store) -> Path:
    (area,) = (path for path in (store.directory / STAGING).iterdir() if path.is_dir())
    return area


def test_upkeep_leaves_a_running_import_alone(store: Store, other: Store, fill: Fill) -> None:
    """However long ago its directory was changed."""
    fill(store, 4)

    class Tidying(Reporter):
        def advance(self, database: str, size: int) -> None:
            age(area_of(other))
            sweep_staging(other.directory)

    bundle_parts.imported(other, bundle_parts.exported(store), progress=Tidying())
    assert other.reached_version("daily") == 4


def test_what_a_resumed_import_leaves_is_kept_as_long_as_anew(store: Store, other: Store, fill: Fill) -> None:
    fill(store, 4)
    bundle = bundle_parts.exported(store)
    bundle_parts.assert_refused(other, bundle[: len(bundle) // 2], "cut off")
    there = area_of(other)
    os.utime(there, (time.time() - LONGEST_KEPT + 60,) * 2)
    before = there.stat().st_mtime
    bundle_parts.assert_refused(other, bundle[: len(bundle) // 2], "cut off")
    assert area_of(other).stat().st_mtime > before
