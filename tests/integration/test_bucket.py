"""The bucket: what it does with a store that works, and with one that doesn't."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from clamproxy.bucket import bucket as module
from clamproxy.bucket import bucket_requests
from clamproxy.bucket.bucket import Bucket, open_bucket
from clamproxy.bucket.bucket_errors import BucketError
from clamproxy.bucket.bucket_requests import LARGEST_DOCUMENT, PART
from clamproxy.config.units import MIB
from tests.support.fixtures import Child
from tests.support.gcs import gcs_server
from tests.support.object_store import BROKEN, FULL, READ_ONLY, SERVERS, Faults, ObjectStore, credentials
from tests.support.stored import until

PATIENT = pytest.mark.usefixtures("patience")
"""For tests of what a store does that is all right, however busy the machine is."""
COUNTED: list[tuple[str, bool]] = []


@pytest.fixture
async def bucket(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    COUNTED.clear()
    bucket = open_bucket(object_store.use(monkeypatch), lambda kind, failed: COUNTED.append((kind, failed)))
    yield bucket
    bucket.stop()


async def download(bucket: Bucket, path: str, limit: int = 200 * MIB) -> bytes | None:
    found = await bucket.open(path, limit)
    return None if found is None else b"".join([chunk async for chunk in found])


@PATIENT
@SERVERS
async def test_documents(bucket: Bucket) -> None:
    assert await bucket.get("a/b c") is None
    first = await bucket.create("a/b c", b"1")
    assert first is not None
    assert await bucket.create("a/b c", b"2") is None
    second = await bucket.replace("a/b c", b"3", first)
    assert second is not None
    assert second != first
    assert await bucket.replace("a/b c", b"4", first) is None
    assert await bucket.replace("a/gone", b"4", first) is None
    stored = await bucket.get("a/b c")
    assert stored is not None
    assert (stored.content, stored.etag) == (b"3", second)
    third = await bucket.put("a/b c", b"5")
    assert await bucket.replace("a/b c", b"6", third) is not None
    await bucket.delete("a/b c")
    await bucket.delete("a/b c")
    assert await bucket.get("a/b c") is None
    assert bucket.condition.state is None


@PATIENT
@SERVERS
async def test_lists_are_whole(bucket: Bucket) -> None:
    assert await bucket.list("gateways") == {}
    etags = {}
    for number in range(1005):  # a page of S3 has 1,000
        etags[f"deep/{number}"] = await bucket.put(f"gateways/deep/{number}", b"x" * (number % 7))
    await bucket.put("gateways-not/1", b"")
    found = await bucket.list("gateways/")
    assert {path: one.etag for path, one in found.items()} == etags
    assert found["deep/13"].size == 6


@SERVERS
async def test_of_16_that_race_one_wins(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, patience: None
) -> None:
    # SeaweedFS lets those that lose wait, for up to a second for each of the others.
    bucket = open_bucket(object_store.use(monkeypatch))
    for round_ in range(5):
        path, contents = f"race/{round_}", [str(number).encode() for number in range(16)]
        made = await asyncio.gather(*(bucket.create(path, one) for one in contents))
        (etag,) = {one for one in made if one is not None}
        assert made.count(None) == 15
        changed = await asyncio.gather(*(bucket.replace(path, b"not " + one, etag) for one in contents))
        assert sum(one is not None for one in changed) == 1
    bucket.stop()


@PATIENT
@SERVERS
@pytest.mark.parametrize("size", [0, 1000, PART, 2 * PART + 12345])
async def test_objects_go_up_once(
    bucket: Bucket, object_store: ObjectStore, tmp_path: Path, size: int
) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    with (tmp_path / "file").open("rb") as file:
        assert await bucket.upload("objects/x.cvd", file.fileno(), {"modified": "12.5"})
        assert not await bucket.upload("objects/x.cvd", file.fileno())
        assert file.tell() == 0
    found = await bucket.open("objects/x.cvd", size)
    assert found is not None
    assert found.size == size
    assert found.about == {"modified": "12.5"}
    assert b"".join([chunk async for chunk in found]) == content[:size]
    assert await bucket.open("objects/y.cvd", size) is None
    if size:
        with pytest.raises(BucketError, match="more than"):
            await bucket.open("objects/x.cvd", size - 1)
    assert bucket.condition.state is None, "the store is all right"


def _set(store: ObjectStore, **faults: object) -> None:
    for name, value in faults.items():
        setattr(store.faults, name, value)


OUTAGES: dict[str, tuple[Callable[[ObjectStore], object], str]] = {
    "down": (lambda store: store.go_down(), "Connection refused"),
    "stalled": (lambda store: _set(store, is_stalled=True), "no response"),
    "slow": (lambda store: _set(store, delay=5.0), "no response"),
    "full": (lambda store: _set(store, refuse=FULL), r"507 Insufficient Storage \(InsufficientStorage\)"),
    "read-only": (lambda store: _set(store, refuse=READ_ONLY), r"403 Forbidden \(AccessDenied\)"),
    "broken": (lambda store: _set(store, refuse=BROKEN), r"500 Internal Server Error \(InternalError\)"),
}


@pytest.mark.parametrize("name", OUTAGES)
async def test_an_outage_costs_seconds_once(
    bucket: Bucket, object_store: ObjectStore, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    begin, reason = OUTAGES[name]
    caplog.set_level(logging.INFO)
    await bucket.put("a", b"1")
    begin(object_store)
    async with asyncio.timeout(60):
        with pytest.raises(BucketError, match=reason):
            await bucket.put("a", b"2")
    assert COUNTED == [("put", False), ("put", True)]
    for call in (bucket.get("a"), bucket.create("b", b""), bucket.list("")):
        with pytest.raises(BucketError, match=reason):
            await call
    assert {kind for kind, _ in COUNTED[2:]} <= {"check"}
    state = bucket.condition.state
    assert state is not None
    assert state.reason.startswith(f"{object_store.url}: put failed: ")

    object_store.faults = Faults()
    if name == "down":
        object_store.come_back()
    await until(lambda: bucket.condition.state is None)
    assert await bucket.get("a") is not None
    lines = [record.getMessage() for record in caplog.records if "object store" in record.getMessage()]
    assert len(lines) == 2, lines
    for line in [*lines, str(state)]:
        assert "test-" not in line
        assert "http://" not in line
        assert "\n" not in line


async def test_a_download_that_is_cut_is_an_error(
    bucket: Bucket, object_store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x" * MIB)
    with (tmp_path / "file").open("rb") as file:
        assert await bucket.upload("objects/x", file.fileno())
    object_store.faults.cut_after = 300_000
    with pytest.raises(BucketError, match="download failed"):
        await download(bucket, "objects/x")
    object_store.faults.cut_after = None
    await until(lambda: bucket.condition.state is None)
    assert await download(bucket, "objects/x") == b"x" * MIB


async def test_a_download_that_is_slow_is_an_error(
    bucket: Bucket, object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALL_LIMIT", 0.5)
    (tmp_path / "file").write_bytes(b"x" * 4 * MIB)
    with (tmp_path / "file").open("rb") as file:
        object_store.faults.rate = None
        assert await bucket.upload("objects/x", file.fileno())
    object_store.faults.rate = MIB / 4
    with pytest.raises(BucketError, match="bytes came in time"):
        await download(bucket, "objects/x")


async def test_a_cancelled_call_ends_at_once(bucket: Bucket, object_store: ObjectStore) -> None:
    object_store.faults.is_stalled = True
    for call in (bucket.get("a"), bucket.put("a", b""), bucket.list("a")):
        task = asyncio.create_task(call)
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert bucket.condition.state is None


@PATIENT
@SERVERS
@pytest.mark.parametrize(
    ("ignores", "missing"),
    [(("If-None-Match",), "create-only"), (("If-Match",), "replacement"), ((), None)],
)
async def test_the_check_finds_out_about_conditional_writes(
    bucket: Bucket, object_store: ObjectStore, ignores: tuple[str, ...], missing: str | None
) -> None:
    object_store.faults.ignores = ignores
    found = await bucket.check()
    assert found is None if missing is None else missing in (found or "")
    assert await bucket.list("checks") == {}


@pytest.mark.parametrize("lie", [{"change": b"x"}, {"is_truncating": True}], ids=str)
async def test_the_check_finds_a_store_that_lies(
    bucket: Bucket, object_store: ObjectStore, lie: dict[str, object]
) -> None:
    _set(object_store, **lie)
    with pytest.raises(BucketError, match="doesn't give back what was written"):
        await bucket.check()


@pytest.mark.parametrize(
    ("url", "variable"), [("s3://bucket", "AWS_ENDPOINT_URL"), ("az://container", "AZURE_STORAGE_ENDPOINT")]
)
def test_an_endpoint_without_a_scheme_is_named(
    url: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "store.example.net:9000")
    with pytest.raises(BucketError, match=f"{variable} must begin with https:// or http://"):
        open_bucket(url)


async def test_the_check_finds_a_bucket_that_is_not_there(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_store.use(monkeypatch)
    bucket = open_bucket("s3://no-such-bucket")
    with pytest.raises(BucketError, match="there is no such bucket"):
        await bucket.check()
    for call in (bucket.get("a"), bucket.put("a", b"1")):
        with pytest.raises(BucketError, match="there is no such bucket"):
            await call
    bucket.stop()


async def test_a_document_that_is_too_large_is_no_failure(bucket: Bucket, object_store: ObjectStore) -> None:
    object_store.write("holds.json", b"x" * (LARGEST_DOCUMENT + 1))
    stored = await bucket.get("holds.json")
    assert stored is not None
    assert stored.content == b""
    assert await bucket.replace("holds.json", b"{}", stored.etag) is not None
    assert bucket.condition.state is None


def _not_allowed_to_list(store: ObjectStore) -> Callable[[], object]:
    store.faults.refuse = {"LIST": (403, "AccessDenied")}
    return store.faults.refuse.clear


def _name_that_is_no_path(store: ObjectStore) -> Callable[[], object]:
    store.write("gateways//x", b"")
    return lambda: store.delete("gateways//x")


def _too_many_names(store: ObjectStore) -> Callable[[], object]:
    for number in range(7):
        store.write(f"gateways/{number}", b"")
    return lambda: store.delete("gateways/0")


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (_not_allowed_to_list, r"403 Forbidden \(AccessDenied\)"),
        (_name_that_is_no_path, "gateways//x"),
        (_too_many_names, "more than 6 names are below gateways"),
    ],
)
async def test_a_store_of_which_only_lists_fail_stays_unusable(
    bucket: Bucket,
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    begin: Callable[[ObjectStore], Callable[[], object]],
    reason: str,
) -> None:
    monkeypatch.setattr(bucket_requests, "MOST_LISTED", 6)
    monkeypatch.setattr(module, "CHECK_AFTER_MOST", 0.2)
    end = begin(object_store)
    with pytest.raises(BucketError, match=reason):
        await bucket.list("gateways")
    await until(lambda: object_store.count("DELETE", "checks/") > 2)
    assert bucket.condition.state is not None
    assert re.search(reason, bucket.condition.state.reason)
    assert sum("can't be used" in record.getMessage() for record in caplog.records) == 1
    end()
    await until(lambda: bucket.condition.state is None)
    await bucket.list("gateways")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:99999", "must be an http:// or https:// URL"),
        ("AWS_ACCESS_KEY_ID", "not-to-be-shown\n", "has a line break"),
        ("AWS_REGION", "\tus-east-1", "has a line break or a control character"),
    ],
)
def test_an_environment_that_obstore_panics_about(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    url = object_store.use(monkeypatch)
    monkeypatch.setenv(variable, value)
    with pytest.raises(BucketError, match=f"the environment variable {variable} {reason}") as caught:
        open_bucket(url)
    assert "shown" not in str(caught.value)


async def test_a_panic_is_an_outage(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    url = object_store.use(monkeypatch)
    monkeypatch.setattr(bucket_requests, "_check_endpoints", lambda _: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    bucket = open_bucket(url)
    with pytest.raises(BucketError, match="get failed: obstore panicked"):
        await bucket.get("a")
    assert bucket.condition.state is not None
    bucket.stop()


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
async def test_a_write_that_meets_another_one_is_no_outage(
    bucket: Bucket, object_store: ObjectStore, code: str
) -> None:
    """S3 answers some concurrent conditional writes with 409, and wants them to be tried again."""
    etag = await bucket.put("a", b"1")
    object_store.faults.refuse = {"PUT": (409, code)}
    assert await bucket.create("b", b"") is None
    assert await bucket.replace("a", b"2", etag) is None
    assert bucket.condition.state is None


MEMORY = """
import asyncio, resource, sys
from clamproxy.bucket.bucket import open_bucket
from tests.support.patience import be_patient

async def both():
    be_patient()
    bucket = open_bucket(sys.argv[1])
    await bucket.put("small", b"")  # loads what is needed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(sys.argv[2], "rb") as file:
        assert await bucket.upload("objects/big", file.fileno())
    found = await bucket.open("objects/big", 2**30)
    received = sum([len(chunk) async for chunk in found])
    print(received, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(both())
"""


def test_big_objects_need_little_memory(
    object_store: ObjectStore, tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in credentials(object_store.data_port).items():
        monkeypatch.setenv(name, value)
    size = 110 * MIB
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)
    result = child(MEMORY, object_store.url, tmp_path / "file")
    assert result.returncode == 0, result.stderr
    received, kibibytes = map(int, result.stdout.split())
    assert received == size
    assert kibibytes < 64 * 1024


# Google Cloud Storage replaces by generation, not by ETag


@pytest.fixture
async def google_bucket(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    with gcs_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        bucket = open_bucket("gs://bucket/prefix")
        yield bucket
        bucket.stop()


async def test_google(google_bucket: Bucket, tmp_path: Path) -> None:
    bucket = google_bucket
    assert await bucket.check() is None
    assert await bucket.list("checks") == {}
    first = await bucket.create("a", b"1")
    assert first is not None
    assert await bucket.create("a", b"1") is None
    second = await bucket.replace("a", b"2", first)
    assert second is not None
    assert await bucket.replace("a", b"3", first) is None
    again = await bucket.replace("a", b"1", second)
    assert again == first, "the ETag is of the content"
    assert await bucket.replace("a", b"4", second) is None
    assert await bucket.replace("gone", b"4", second) is None
    assert (await bucket.list(""))["a"].etag == again
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with (tmp_path / "file").open("rb") as file:
        assert await bucket.upload("objects/x", file.fileno(), {"modified": "12.5"})
        assert not await bucket.upload("objects/x", file.fileno())
    found = await bucket.open("objects/x", MIB)
    assert found is not None
    assert found.about == {"modified": "12.5"}
    await bucket.delete("a")
    await bucket.delete("a")
    assert bucket.condition.state is None


async def test_what_another_gateway_has_replaced_at_google(google_bucket: Bucket) -> None:
    other = open_bucket("gs://bucket/prefix")
    first = await google_bucket.create("a", b"1")
    assert first is not None
    stored = await other.get("a")
    assert stored is not None
    assert await other.replace("a", b"2", stored.etag) is not None
    assert await google_bucket.replace("a", b"3", first) is None
