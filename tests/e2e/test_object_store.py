"""Gateways with separate cache directories and one object store cost the origin what one gateway costs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import faults
from tests.support.dns_server import FakeDns
from tests.support.freshclam import OK
from tests.support.gateway import ADDON, PATIENT_ADDON, Gateway
from tests.support.object_store import FULL, SERVERS, ObjectStore, make_bucket
from tests.support.origin import OriginServer
from tests.support.scenes import PROBE, explain, shown
from tests.support.site import Site, assert_proven_cld, eventually, settings_for, signed

type MakeGateway = Callable[..., Site]


@pytest.fixture
def make_gateway(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, object_store: ObjectStore
) -> Iterator[MakeGateway]:
    """Starts gateways of one site, each with an empty disk; they are patient unless the store is to fail."""
    started: list[Gateway] = []
    numbers = itertools.count()

    def make(*, script: str = PATIENT_ADDON, **sections: dict[str, Any]) -> Site:
        directory = tmp_path / f"gateway{next(numbers)}"
        settings: dict[str, Any] = settings_for(origin, dns, **sections) | {"fleet_store": object_store.url}
        gateway = Gateway(directory, settings, script=script, environment=object_store.environment)
        started.append(gateway)
        gateway.start()
        return Site(directory, origin, dns, gateway)

    yield make
    for gateway in started:
        gateway.kill()


def repeated(origin: OriginServer) -> dict[str, int]:
    """What the origin was asked for more than once, header probes included."""
    counts = Counter(seen.short_name for seen in origin.requests())
    return {name: count for name, count in counts.items() if count > 1}


def in_bucket(object_store: ObjectStore, name: str) -> bool:
    return object_store.count("PUT", f"/objects/test/{name}") > 0


def update_all(sites: list[Site], name: str, local: int | None = None) -> None:
    """A freshclam at each gateway, all at once."""
    clients = [site.client(name, local=local) for site in sites]
    with ThreadPoolExecutor(len(sites)) as pool:
        for site, outcome in zip(sites, pool.map(lambda client: client.run(), clients), strict=True):
            assert outcome.code == OK, explain(site, outcome)


@SERVERS
def test_a_cold_start_and_a_release_day(make_gateway: MakeGateway, origin: OriginServer) -> None:
    sites = [make_gateway() for _ in range(3)]
    sites[0].publish(4)
    update_all(sites, "new")
    update_all(sites, "old", local=3)
    assert repeated(origin) == {}, origin.trace
    assert origin.count("W") == 1
    sites[0].publish(5)
    assert eventually(lambda: [shown(site.gateway) for site in sites] == [5, 5, 5])
    update_all(sites, "new", local=4)
    assert repeated(origin) == {}, origin.trace
    answers = [site.gateway.ask("/test.cvd", range=PROBE) for site in sites]
    assert len({(answer.body, answer.headers["last-modified"]) for answer in answers}) == 1


def test_an_empty_disk_and_a_warm_store(
    make_gateway: MakeGateway, origin: OriginServer, object_store: ObjectStore
) -> None:
    first = make_gateway()
    first.publish(4)
    update_all([first], "new")
    update_all([first], "old", local=3)
    assert eventually(lambda: in_bucket(object_store, "test-4.cdiff"))
    assert eventually(lambda: in_bucket(object_store, "test-4.cvd"))
    first.gateway.kill()
    origin.forget()
    origin.refuse()
    answer = make_gateway().gateway.ask("/test.cvd")
    assert (answer.status, answer.body) == (200, signed("test-4.cvd"))
    answer = make_gateway().gateway.ask("/test.cvd", range=PROBE)
    assert (answer.status, answer.body) == (206, signed("test-4.cvd")[:512])
    answer = make_gateway().gateway.ask("/test-4.cdiff")
    assert (answer.status, answer.body) == (200, signed("test-4.cdiff"))
    fresh = make_gateway()
    update_all([fresh], "new")
    update_all([fresh], "old", local=3)
    unused = make_gateway()
    assert eventually(lambda: "cvd" in unused.gateway.tool("ls").stdout), "before any client asks"


def test_a_cld_is_built_once(
    make_gateway: MakeGateway, origin: OriginServer, object_store: ObjectStore
) -> None:
    first, second = make_gateway(), make_gateway()
    first.publish(3)
    update_all([first], "new")
    first.publish(4)
    assert eventually(lambda: first.gateway.ask("/test.cld", timeout=60).status == 200)
    clds = [site.gateway.ask("/test.cld", timeout=60) for site in (first, second)]
    assert [answer.status for answer in clds] == [200, 200]
    assert clds[0].body == clds[1].body
    assert_proven_cld(clds[0].body)
    assert sum("Built test-4.cld" in site.gateway.log for site in (first, second)) == 1
    assert repeated(origin) == {}, origin.trace


def test_the_gateway_that_fetches_is_killed(make_gateway: MakeGateway, origin: OriginServer) -> None:
    first, second = make_gateway(), make_gateway()
    first.publish(4)
    origin.rule("/test.cvd", faults.stall(2000), times=2)
    with ThreadPoolExecutor(2) as pool:
        lost = pool.submit(lambda: first.gateway.ask("/test.cvd", timeout=60))
        assert eventually(lambda: origin.count("W"))
        waiting = pool.submit(lambda: second.gateway.ask("/test.cvd", timeout=60))
        first.gateway.kill()
        origin.heal()
        answer = waiting.result()
        assert lost.exception() is not None or not lost.result().complete
    assert (answer.status, answer.body) == (200, signed("test-4.cvd"))
    assert origin.count("W") == 2, origin.trace


@pytest.mark.parametrize("trouble", ["down", "stalled", "full", "other bytes", "truncated"])
def test_a_store_that_fails_costs_no_client_anything(
    make_gateway: MakeGateway, origin: OriginServer, object_store: ObjectStore, trouble: str
) -> None:
    sites = [make_gateway(script=ADDON), make_gateway(script=ADDON)]
    sites[0].publish(4)
    update_all(sites[:1], "first")
    origin.forget()
    match trouble:
        case "down":
            object_store.go_down()
        case "stalled":
            object_store.faults.is_stalled = True
        case "full":
            object_store.faults.refuse = FULL
        case "other bytes":
            object_store.faults.change = b"ClamAV-VDB:"
        case "truncated":
            object_store.faults.is_truncating = True
    sites[0].publish(5)
    update_all(sites, "new")
    update_all(sites, "old", local=4)
    assert all(count <= 2 for count in repeated(origin).values()), origin.trace
    if trouble == "down":
        object_store.come_back()
    object_store.faults.is_stalled = False
    object_store.faults.refuse = {}
    assert eventually(lambda: in_bucket(object_store, "test-5.cdiff"), limit=90), "it catches up by itself"


def test_commands(
    make_gateway: MakeGateway, origin: OriginServer, object_store: ObjectStore, moto_port: int
) -> None:
    site = make_gateway(upstream={"user_agent": "ClamAV/1.4.6 (OS: Linux)"})
    site.gateway.stop()
    site.publish(4)
    result = site.gateway.tool("prefetch", "--database", "test")
    assert result.returncode == 0, result.stderr
    assert in_bucket(object_store, "test-4.cvd"), "what was fetched was uploaded before the command ended"
    mirror = ["mirror", str(site.directory / "mirror"), "--database", "test"]
    for arguments in (["verify"], ["ls"], mirror):
        result = site.gateway.tool(*arguments)
        assert result.returncode == 0, (arguments, result.stderr)
    origin.refuse()
    result = site.gateway.tool("purge", "--yes")
    assert "object store" in result.stderr
    result = site.gateway.tool("prefetch", "--database", "test")
    assert result.returncode == 0, result.stderr
    assert "CVD 4" in result.stderr
    bundle = str(site.directory / "bundle.tar")
    assert site.gateway.tool("export", bundle).returncode == 0
    other = f"{object_store.bucket}-other"
    make_bucket(moto_port, other)
    config = site.gateway.config
    config.write_text(config.read_text().replace(object_store.bucket, other))
    assert site.gateway.tool("purge", "--yes").returncode == 0
    result = site.gateway.tool("import", bundle)
    assert result.returncode == 0, result.stderr
    assert object_store.count("PUT", f"{other}/prefix/objects/test/test-4.cvd")
    object_store.go_down()
    result = site.gateway.tool("import", bundle)
    assert result.returncode == 0, result.stderr
    assert "Not everything is in the object store yet" in result.stderr
    object_store.come_back()
