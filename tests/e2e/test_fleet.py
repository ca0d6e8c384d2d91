"""The fleet: what real freshclams let the gateway know of themselves."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import faults
from tests.support.freshclam import FAILED, OK, Freshclam, Outcome, require_freshclam
from tests.support.gateway import USER_AGENT, Gateway, Way
from tests.support.scenes import BASE, NEWEST, PROBE, ROOMY, hold
from tests.support.site import Site, build_time, eventually

from .conftest import MakeSite

UUID_OFFSET, UUID_LENGTH = 17, 36
"""Where the UUID is in freshclam.dat (docs/protocol.md 2.4)."""

type Json = dict[str, Any]


def uuid_of(client: Freshclam) -> str:
    state = (client.databases / "freshclam.dat").read_bytes()
    return state[UUID_OFFSET : UUID_OFFSET + UUID_LENGTH].decode("ascii")


def fleet(gateway: Gateway, *options: str, is_critical: bool = False) -> list[Json]:
    """What ``clamproxy fleet --json`` lists. Its exit code may also say that this freshclam is too old."""
    result = gateway.tool("fleet", "--json", *options)
    assert result.returncode in ((2,) if is_critical else (0, 1)), result.stdout + result.stderr
    machines: list[Json] = json.loads(result.stdout)
    return machines


def machine(gateway: Gateway, client: Freshclam, is_meant: Callable[[Json], object]) -> Json:
    """What is known of a client, once that is as expected; visits are written within seconds."""

    def look() -> Json | None:
        found = [one for one in fleet(gateway) if one["uuid"] == uuid_of(client)]
        return found[0] if found and is_meant(found[0]) else None

    found = eventually(look)
    assert found, f"{fleet(gateway)}\n{gateway.log}"
    return found


def has(version: int, behind: int | None = 0) -> Callable[[Json], bool]:
    """Whether a machine has a version of database test and is so many releases behind."""

    def is_so(one: Json) -> bool:
        found = one["databases"].get("test")
        return found is not None and (found["version"], found["behind"]) == (version, behind)

    return is_so


def succeeded(outcome: Outcome, version: int) -> None:
    assert (outcome.code, outcome.version) == (OK, version), outcome.output


@pytest.fixture(autouse=True)
def _has_a_table(site: Site) -> None:
    """The table is there from the start: monitoring may ask before the first client does."""
    assert eventually(lambda: site.gateway.tool("fleet").returncode == 0), site.gateway.log


@pytest.mark.parametrize(
    ("way", "use_dns"), [(Way.CONNECT_HTTP, False), (Way.CONNECT_HTTPS, True)], ids=["http", "dns"]
)
def test_the_life_of_a_machine(site: Site, way: Way, use_dns: bool) -> None:
    """A first install, nothing new, a release that it hasn't fetched yet, an update by patches."""
    started_at = time.time()
    site.publish(4)
    client = site.client(way=way, use_dns=use_dns)
    succeeded(client.run(), 4)
    first = machine(site.gateway, client, has(4))
    assert (first["address"], first["freshclam"], first["os"]) == ("127.0.0.1", installed(), "Linux")
    assert started_at - 1 < first["first_seen"] <= first["last_seen"] < time.time() + 1
    assert first["last_error"] is None

    succeeded(client.run(), 4)
    if use_dns:
        # It had no reason to ask.
        assert machine(site.gateway, client, has(4))["last_seen"] == first["last_seen"]
    else:
        machine(site.gateway, client, lambda one: has(4)(one) and one["last_seen"] > first["last_seen"])

    site.publish(6)
    learn(site)
    # Since the release, which ClamAV built years ago; as soon as the gateway has proven its patch.
    machine(
        site.gateway,
        client,
        lambda one: has(4, 2)(one) and one["databases"]["test"]["behind_since"] == build_time(5),
    )
    succeeded(client.run(), 6)
    last = machine(site.gateway, client, has(6))
    assert (last["databases"]["test"]["behind_since"], last["last_error"]) == (None, None)
    assert last["first_seen"] == first["first_seen"]


def learn(site: Site) -> None:
    """Let the gateway learn what is advertised: it asks DNS when it is asked."""

    def has_learned() -> bool:
        # Without a UUID this is no machine.
        site.gateway.ask("/test.cvd", method="HEAD", user_agent="curl/8.5.0")
        return bool(site.gateway.stats()["databases"]["test"]["advertised"] == site.dns.versions["test"])

    assert eventually(has_learned), site.gateway.log


def installed() -> str:
    """The version of the freshclam that is tested with."""
    shown = subprocess.run([require_freshclam(), "--version"], stdout=subprocess.PIPE, text=True).stdout
    return shown.split()[1].partition("/")[0]


def test_a_machine_that_was_there_before_the_gateway(site: Site) -> None:
    """In HTTP mode a probe tells a build time that the gateway has not seen; the first patch tells all."""
    site.publish(6)
    client = site.client(local=3)
    succeeded(client.run(), 6)
    assert machine(site.gateway, client, has(6))["last_error"] is None


def test_an_older_cvd_and_patches(make_site: MakeSite) -> None:
    """Delta serving: the CVD that a new client gets is not the newest, and it is seen to go on from there."""
    site = make_site(delta=ROOMY)
    hold(site, BASE, NEWEST)
    client = site.client()
    succeeded(client.run(), NEWEST)
    machine(site.gateway, client, has(NEWEST))


@pytest.mark.parametrize("use_dns", [False, True], ids=["http", "dns"])
def test_an_origin_in_trouble(site: Site, use_dns: bool) -> None:
    site.publish(6)
    site.origin.rule("*", faults.status(503))
    client = site.client(use_dns=use_dns, attempts=1)
    outcome = client.run()
    assert outcome.code == FAILED, outcome.output
    failed = machine(site.gateway, client, lambda one: one["last_error"])
    assert (failed["databases"], failed["last_error"]["what"]) == ({}, "test.cvd: status 503")


def test_a_cvd_that_does_not_arrive(site: Site) -> None:
    """The client goes on having what it had."""
    site.publish(6)
    site.origin.rule("W", faults.status(503))
    client = site.client(local=5, scripted=False, attempts=1)
    client.run()
    failed = machine(site.gateway, client, lambda one: one["last_error"])
    assert failed["last_error"]["what"] == "test.cvd: status 503"
    assert "test" not in failed["databases"] or failed["databases"]["test"]["version"] == 5


def test_private_mirror(site: Site) -> None:
    site.publish(5)
    client = site.client(way=Way.REVERSE, private=True)
    succeeded(client.run(), 5)
    machine(site.gateway, client, has(5))
    succeeded(client.run(), 5)
    assert machine(site.gateway, client, has(5))["last_error"] is None


def test_monitoring(site: Site) -> None:
    site.publish(4)
    client = site.client()
    succeeded(client.run(), 4)
    machine(site.gateway, client, has(4))
    site.publish(6)
    learn(site)
    machine(site.gateway, client, has(4, 2))
    assert [one["uuid"] for one in fleet(site.gateway, "--behind", "2", is_critical=True)] == [
        uuid_of(client)
    ]
    assert fleet(site.gateway, "--behind", "3", "--stale", "1d") == []
    shown = site.gateway.tool("fleet", "--stale", "1ms")
    assert shown.returncode == 2
    assert shown.stdout.startswith("CLAMPROXY FLEET CRITICAL - 1 machine, 1 listed, 1 behind")
    assert uuid_of(client) in shown.stdout
    assert site.gateway.tool("fleet", "--behind", "none").returncode == 3


def test_who_is_no_machine(site: Site) -> None:
    site.publish(6)
    for agent in ("curl/8.5.0", "CVDUPDATE/1.2.0 (0738ec71-8d58-4bdf-8241-6ad688adc4fd)", "ClamAV/1.4.6"):
        assert site.gateway.ask("/test.cvd", user_agent=agent).status == 200
    assert site.gateway.ask("/test-6.cdiff", user_agent=USER_AGENT).status == 200
    assert eventually(lambda: fleet(site.gateway))
    assert [one["uuid"] for one in fleet(site.gateway)] == ["0738ec71-8d58-4bdf-8241-6ad688adc4fd"]


def test_an_old_freshclam_is_pointed_out(site: Site) -> None:
    site.publish(6)
    old = USER_AGENT.replace("1.4.6", "0.103.12")
    assert site.gateway.ask("/test.cvd", range=PROBE, user_agent=old).status == 206
    assert eventually(lambda: site.gateway.tool("fleet").returncode == 1), site.gateway.log
    shown = site.gateway.tool("fleet").stdout
    assert shown.startswith("CLAMPROXY FLEET WARNING - 1 machine, ")
    assert "0.103.12 (end of life)" in shown


def test_a_restart_and_a_kill_forget_nothing(site: Site) -> None:
    site.publish(6)
    client = site.client()
    succeeded(client.run(), 6)
    site.gateway.stop()  # what is pending is written
    before = machine(site.gateway, client, has(6))
    site.gateway.start()
    site.gateway.kill()
    assert machine(site.gateway, client, has(6)) == before
    site.gateway.start()
    client.proxy = ("127.0.0.1", site.gateway.port)
    succeeded(client.run(), 6)
    machine(site.gateway, client, lambda one: has(6)(one) and one["last_seen"] > before["last_seen"])


def test_a_machine_that_is_gone(site: Site) -> None:
    """It is forgotten while the proxy runs, and is a new one when it comes back."""
    site.publish(6)
    gone, other = site.client("gone"), site.client("other")
    for client in (gone, other):
        succeeded(client.run(), 6)
        machine(site.gateway, client, has(6))
    before = time.time()
    result = site.gateway.tool("fleet", "forget", uuid_of(gone))
    assert result.returncode == 0, result.stdout + result.stderr
    assert [one["uuid"] for one in fleet(site.gateway)] == [uuid_of(other)]
    succeeded(other.run(), 6)  # what the recorder writes then doesn't bring it back
    machine(site.gateway, other, lambda one: one["last_seen"] > before)
    assert [one["uuid"] for one in fleet(site.gateway)] == [uuid_of(other)]
    succeeded(gone.run(), 6)
    assert machine(site.gateway, gone, has(6))["first_seen"] > before
    assert (
        len(
            json.loads(site.gateway.ask("/fleet.json", host=f"127.0.0.1:{site.gateway.port}").body)[
                "machines"
            ]
        )
        == 2
    )
