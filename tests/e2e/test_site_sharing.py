"""Gateways of a site that share an object store: what one learns, the others know; a hold is the site's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.sharing.gateway_document import GatewayDocument
from tests.support.dns_server import FakeDns, open_dns
from tests.support.faults import Fault
from tests.support.freshclam import OK
from tests.support.gateway import PATIENT_ADDON, Gateway, Way
from tests.support.object_store import ObjectStore
from tests.support.origin import OriginServer
from tests.support.scenes import ROOMY, explain, refreshed, shown, version_of
from tests.support.site import Site, eventually, publish, settings_for, signed

AGENT = "ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 00000000-0000-4000-8000-{:012d})"


@dataclass
class SharingSite:
    """An origin, an object store, and any number of gateways."""

    directory: Path
    origin: OriginServer
    dns: FakeDns
    store: ObjectStore
    stack: ExitStack
    gateways: list[Gateway] = field(default_factory=list)

    def gateway(self, name: str, **sections: Any) -> Gateway:
        """A gateway with an empty disk, which runs."""
        settings: dict[str, Any] = {**settings_for(self.origin, self.dns, delta=ROOMY)}
        settings["fleet_store"] = self.store.url
        gateway = Gateway(
            self.directory / name,
            {**settings, **sections},
            script=PATIENT_ADDON,
            environment=self.store.environment,
        )
        self.gateways.append(gateway)
        return self.stack.enter_context(gateway)

    def publish(self, version: int) -> None:
        publish(self.origin, version)
        self.dns.versions["test"] = version

    def of(self, gateway: Gateway) -> Site:
        """The same with one gateway, for clients."""
        return Site(self.directory, self.origin, self.dns, gateway)


@pytest.fixture
def sharing(tmp_path: Path, object_store: ObjectStore) -> Iterator[SharingSite]:
    with ExitStack() as stack:
        origin, dns = OriginServer(), open_dns()
        stack.callback(origin.close)
        stack.callback(dns.close)
        yield SharingSite(tmp_path, origin, dns, object_store, stack)


def ready(gateway: Gateway) -> str:
    return gateway.ask("/readyz", Way.REVERSE).body.decode()


def has_machines(gateway: Gateway, count: int) -> bool:
    return len(json.loads(gateway.tool("fleet", "--json").stdout or "[]")) == count


def until(look: Callable[[], object], *gateways: Gateway) -> None:
    assert eventually(look), "\n\n".join(gateway.log for gateway in gateways)


def test_a_hold_is_the_whole_sites(sharing: SharingSite) -> None:
    sharing.publish(4)
    first, second = sharing.gateway("a"), sharing.gateway("b")
    for gateway in (first, second):
        assert version_of(gateway.ask("/test.cvd").body) == 4
    result = first.tool("hold", "test", "--why", "false positives")
    assert "test is held at version 4 from now on (all gateways of the site)." in result.stderr, result
    first.kill()
    until(lambda: "test is held at version 4, by " in second.log, second)
    sharing.publish(6)
    assert refreshed(sharing.of(second))
    outcome = sharing.of(second).client(local=3).run()
    assert (outcome.code, outcome.version) == (OK, 4), explain(sharing.of(second), outcome)

    # A gateway without a volume knows it before its first client.
    pod = sharing.gateway("pod")
    answer = pod.ask("/test.cvd")
    assert (answer.status, version_of(answer.body)) in ((200, 4), (503, None)), pod.log
    assert pod.ask("/test-6.cdiff").status == 404

    result = pod.tool("release", "test")
    assert "test is no longer held (all gateways of the site)" in result.stderr, result
    until(lambda: shown(second) == 6, second)
    first.start()
    until(lambda: shown(first) == 6, first)


def test_a_store_that_is_down_delays_no_start_for_long(sharing: SharingSite) -> None:
    sharing.publish(4)
    sharing.store.go_down()
    gateway = sharing.gateway("a")
    assert version_of(gateway.ask("/test.cvd").body) == 4
    assert "isn't known what other gateways hold" in gateway.log
    until(lambda: "isn't known what other gateways of the site hold" in ready(gateway), gateway)
    result = gateway.tool("hold", "test")
    assert result.returncode == 0
    held, warning = result.stderr.splitlines()
    assert "test is held at version 4 from now on (this gateway)." in held
    assert "Warning: the other gateways of the site don't know yet: s3://" in warning
    sharing.store.come_back()
    until(lambda: "other gateways" not in ready(gateway), gateway)
    other = sharing.gateway("b")
    until(lambda: "test is held at version 4, by " in other.log, gateway, other)


def test_what_one_learns_the_others_know(sharing: SharingSite) -> None:
    """The origin refuses a file to one gateway: the other one doesn't ask."""
    sharing.publish(4)
    first, second = sharing.gateway("a"), sharing.gateway("b")
    sharing.origin.rule("/test.cvd", Fault(status=429, headers={"Retry-After": "600"}))
    assert first.ask("/test.cvd").status == 503

    def told() -> bool:
        with closing(Store(second.cache, tidy=False)) as store:
            return "/test.cvd" in store.noted.site_notes("cooldown")

    until(told, first, second)
    sharing.origin.forget()
    answer = second.ask("/test.cvd")
    assert (answer.status, sharing.origin.count("/test.cvd")) == (503, 0), second.log
    assert int(answer.headers["retry-after"]) > 60


def test_a_hostile_document_gets_nothing_served_that_is_not_signed(sharing: SharingSite) -> None:
    """Somebody with access to the store claims everything at once."""
    sharing.publish(4)
    gateway = sharing.gateway("a")
    assert version_of(gateway.ask("/test.cvd").body) == 4
    now = time.time()
    header = signed("test-4.cvd")[:512].decode("ascii").replace(":4:", ":5:", 1)
    refusal = {
        "until": now + 1e6,
        "failures": 9,
        "failure": "forbidden",
        "reason": "\x1b[2J",
        "noted_at": now,
    }
    document = GatewayDocument(
        "evil\nhost",
        "x",
        now,
        {
            "advertised": {"test": [2**31 - 1, now], "main": [10**12, now]},
            "head": {"test": {"header": header.ljust(512)[:512], "seen_at": now}},
            "cooldown": {"/test.cvd": refusal, "client ClamAV/1.4.6": refusal, "origin": refusal},
            "budget": {f"/test-{number}.cdiff": [now] * 10 for number in range(1, 2000)},
            "stuck": {"test-5.cdiff": {"failures": 99, "since": now - 9999, "last": now}},
            "first-seen": {"test": {"5": 1.0}},
            "agent": {"99.0.0": {"user_agent": "ClamAV/99.0.0 (evil)", "seen_at": now}},
        },
    )
    sharing.store.write("gateways/0123456789abcdef.json", document.encode())
    sharing.store.write("gateways/fedcba9876543210.json", b"[" * 400_000)

    def told() -> bool:
        with closing(Store(gateway.cache, tidy=False)) as store:
            return bool(store.noted.site_notes("cooldown")) and len(store.noted.site_notes("budget")) <= 500

    until(told, gateway)
    until(lambda: "fedcba9876543210 tells is ignored" in gateway.log, gateway)
    # It may have to wait with the origin, but goes on with what it has, and that is what ClamAV signed.
    for local, reached in ((None, 4), (3, 3)):
        outcome = sharing.of(gateway).client(f"client-{reached}", local=local).run()
        expected = (OK, reached, False)
        assert (outcome.code, outcome.version, outcome.cooling) == expected, explain(
            sharing.of(gateway), outcome
        )
    answer = gateway.ask("/test.cvd")
    assert (answer.status, answer.body) == (200, signed("test-4.cvd"))
    [peer] = json.loads(gateway.ask("/status.json?machines=0", Way.REVERSE).body)["peers"]
    assert peer["name"].isprintable()
    assert "\x1b" not in gateway.log


def test_gateways_and_their_machines_are_in_one_view(sharing: SharingSite) -> None:
    offline: dict[str, Any] = {"upstream": {"offline": True}}
    first, second = sharing.gateway("a", **offline), sharing.gateway("b", **offline)
    for gateway, numbers in ((first, (1, 9)), (second, (2, 9))):
        for number in numbers:
            gateway.ask("/daily.cvd", Way.REVERSE, user_agent=AGENT.format(number))
        until(partial(has_machines, gateway, 2))
    second.stop()
    second.start()  # its first report tells of its machines

    def page(path: str) -> Any:
        return json.loads(first.ask(path, Way.REVERSE).body)

    def machines() -> dict[str, Any]:
        listed = page("/fleet.json?gateway=all")["machines"]
        return {one["uuid"][-1]: one["gateway"] for one in listed}

    until(lambda: len(machines()) == 3, first, second)
    [other] = page("/status.json?machines=0")["peers"]
    assert (other["site"], other["url"], other["up"], other["fleet"]["total"]) == (True, None, True, 2)
    assert machines() == {"1": None, "2": other["name"], "9": other["name"]}
    assert "clamproxy_site_gateways 1.0" in first.ask("/metrics", Way.REVERSE).body.decode()
    listed = first.tool("fleet", "--all-gateways").stdout
    assert ", 3 machines, " in f", {listed}".replace(" - ", ", ")
    assert f"(by {other['name']})" in listed
