"""Bundles between two caches: exported, taken apart, put together again, imported, refused."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest

from clamproxy.bundle import BundleError, Manifest, Since, import_bundle, select, write_bundle
from clamproxy.bundle.manifest import MANIFEST_NAME
from clamproxy.cache.store import Store
from clamproxy.formats.signatures import TrustedKeys
from tests.support.forge import forge_keys
from tests.support.stored import read

KEYS = forge_keys().trusted


def exported(store: Store, *databases: str, since: str | None = None) -> bytes:
    stream = io.BytesIO()
    write_bundle(store, select(store, databases, Since.parse([since] if since else [])), stream)
    return stream.getvalue()


def imported(store: Store, bundle: bytes, keys: TrustedKeys = KEYS, **options: Any) -> Manifest:
    return import_bundle(store, io.BytesIO(bundle), keys, **options)


def contents(store: Store) -> dict[str, bytes | None]:
    return {object_id.file_name: read(store, object_id) for object_id in store.sizes()}


def names(bundle: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return tar.getnames()


def unpacked(bundle: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def packed(members: dict[str, bytes], manifest: dict[str, Any] | None = None) -> bytes:
    """A tar like GNU tar's, which is accepted as well."""
    stream = io.BytesIO()
    if manifest is not None:
        members = members | {MANIFEST_NAME: json.dumps(manifest).encode()}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def manifest_of(bundle: bytes) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(unpacked(bundle)[MANIFEST_NAME])
    return data


def assert_refused(
    store: Store, bundle: bytes, words: str = ".", keys: TrustedKeys = KEYS, **options: Any
) -> str:
    """Returns the line that says why. A bundle that is cut off may leave something to go on with."""
    before = contents(store)
    with pytest.raises(BundleError, match=words) as error:
        imported(store, bundle, keys, **options)
    assert "\n" not in str(error.value)
    assert contents(store) == before
    if "cut off" not in str(error.value):
        assert_nothing_staged(store)
    return str(error.value)


def assert_nothing_staged(store: Store) -> None:
    assert [path.name for path in (store.directory / "staging").iterdir()] == ["lock"]
