"""fleet_store: a gateway starts with any object store, except one that can't do what is needed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dns_server import FakeDns
from tests.support.freshclam import OK, Freshclam
from tests.support.gateway import Gateway, Way, tool
from tests.support.object_store import ObjectStore
from tests.support.origin import OriginServer
from tests.support.site import client_fields, eventually, publish, settings_for

from .test_status_site import direct

ALONE = "so this gateway works alone"


@pytest.fixture
def gateway(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, object_store: ObjectStore
) -> Iterator[Gateway]:
    """One with the object store, not started yet, for a site with version 6 of database test."""
    publish(origin, 6)
    dns.versions["test"] = 6
    environment = {"CLAMPROXY_FLEET_STORE": object_store.url, **object_store.environment}
    gateway = Gateway(tmp_path / "gateway", settings_for(origin, dns), environment=environment)
    yield gateway
    gateway.kill()


def page(gateway: Gateway, path: str) -> str:
    answer = direct(gateway.port, path)
    assert answer.status == 200
    return answer.body.decode()


def status(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page(gateway, "/status.json"))
    return found


def is_up(gateway: Gateway) -> bool:
    return "clamproxy_fleet_store_up 1.0" in page(gateway, "/metrics")


def test_an_outage_is_told_everywhere_and_costs_no_client_anything(
    gateway: Gateway, object_store: ObjectStore
) -> None:
    gateway.start()
    assert eventually(lambda: object_store.count("DELETE", "checks/") == 1)
    assert is_up(gateway)
    assert "clamproxy_site_gateways 0.0" in page(gateway, "/metrics")
    assert "object store" not in page(gateway, "/readyz")
    assert ALONE not in gateway.log

    object_store.go_down()
    # Whatever it asks the store next.
    assert eventually(lambda: not is_up(gateway))
    assert eventually(lambda: ALONE in page(gateway, "/readyz"))
    found = status(gateway)
    assert found["ready"]
    assert found["fleet_store"]["failure"].startswith(object_store.url)
    assert eventually(lambda: sum(status(gateway)["fleet_store"]["failures"].values()) > 0)
    assert eventually(lambda: gateway.stats()["fleet_store"]["failure"] is not None)
    assert "Object store" in gateway.tool("stats").stdout

    object_store.come_back()
    assert eventually(lambda: is_up(gateway))
    assert eventually(lambda: gateway.stats()["fleet_store"]["failure"] is None)
    assert ALONE not in page(gateway, "/readyz")
    assert gateway.log.count(ALONE) == gateway.log.count("can be used again") == 1
    for shown in (gateway.log, page(gateway, "/status.json"), page(gateway, "/metrics")):
        assert "test-secret" not in shown
        assert "test-key" not in shown


@pytest.mark.parametrize("condition", ["down", "stalled", "without conditional writes"])
def test_a_gateway_starts_and_serves_alone(
    gateway: Gateway, object_store: ObjectStore, tmp_path: Path, condition: str
) -> None:
    if condition == "down":
        object_store.go_down()
    elif condition == "stalled":
        object_store.faults.is_stalled = True
    else:
        object_store.faults.ignores = ("If-None-Match",)  # and the check of `clamproxy run` was left out
    gateway.start()
    client = Freshclam(directory=tmp_path / "client", **client_fields(Way.CONNECT_HTTP, gateway))
    assert client.run().code == OK
    assert eventually(lambda: not is_up(gateway))
    assert ALONE in page(gateway, "/readyz")


def run(store: ObjectStore, directory: Path, url: str) -> Any:
    """`clamproxy run`, which ends at once or is ended after a while."""
    config = directory / "proxy.yaml"
    config.write_text(yaml.safe_dump({"fleet_store": url}))
    return tool("run", "--port", "0", "--config", str(config), environment=store.environment)


@pytest.mark.parametrize(
    ("header", "missing"),
    [("If-None-Match", "create-only writes"), ("If-Match", "conditional replacement")],
)
def test_a_store_without_conditional_writes_is_refused(
    object_store: ObjectStore, tmp_path: Path, header: str, missing: str
) -> None:
    object_store.faults.ignores = (header,)
    result = run(object_store, tmp_path, object_store.url)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"fleet_store is {object_store.url}; expected another object store: it has no {missing}" in line
    assert object_store.count("DELETE", "checks/") == 1


def test_reload(tmp_path: Path, origin: OriginServer, dns: FakeDns, object_store: ObjectStore) -> None:
    with Gateway(
        tmp_path / "gateway", settings_for(origin, dns), environment=object_store.environment
    ) as gateway:
        assert status(gateway)["fleet_store"] is None
        assert "fleet_store" not in page(gateway, "/metrics")

        def reload(url: str | None, expected: str) -> None:
            gateway.config.write_text(yaml.safe_dump({**gateway.settings, "fleet_store": url}))
            before = len(gateway.log)
            os.kill(gateway.pid, signal.SIGHUP)
            assert eventually(lambda: expected in gateway.log[before:]), gateway.log[before:]

        reload(object_store.url, f"fleet_store: null → {object_store.url}")
        assert is_up(gateway)
        object_store.faults.ignores = ("If-Match",)
        reload(f"{object_store.url}/other", "The configuration stays as it was: fleet_store is")
        assert status(gateway)["fleet_store"]["url"] == object_store.url
        reload(None, f"fleet_store: {object_store.url} → null")
        assert status(gateway)["fleet_store"] is None
        assert eventually(lambda: gateway.stats()["fleet_store"]["url"] is None)
