"""Several gateways in one view: three real ones, of which each may know the others."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.gateway import Gateway, Way
from tests.support.site import eventually

TOKEN = "0123456789abcdef-of-c"
OFFLINE: dict[str, dict[str, Any]] = {"upstream": {"offline": True}}
UUID = "00000000-0000-4000-8000-{:012d}"
AGENT = f"ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: {UUID})"

type Json = dict[str, Any]


@pytest.fixture
def others(tmp_path: Path) -> Iterator[tuple[Gateway, Gateway]]:
    """b, and c, which has a token and labels. Each has a machine of its own, and both know machine 9."""
    labels = tmp_path / "labels.txt"
    labels.write_text(f"{UUID.format(2)} = web02, servers\n")
    of_c: Json = {**OFFLINE, "status": {"token": TOKEN}, "fleet": {"labels": str(labels)}}
    with ExitStack() as running:
        b = running.enter_context(Gateway(tmp_path / "b", OFFLINE))
        c = running.enter_context(Gateway(tmp_path / "c", of_c))
        for gateway, machines in ((b, (1, 9)), (c, (2, 9))):
            for number in machines:
                gateway.ask("/daily.cvd", Way.REVERSE, user_agent=AGENT.format(number))
            assert eventually(partial(has_machines, gateway, len(machines))), gateway.log
        yield b, c


def has_machines(gateway: Gateway, count: int) -> bool:
    """Whether a gateway has written down its machines."""
    return len(json.loads(gateway.tool("fleet", "--json").stdout or "[]")) == count


def entry(gateway: Gateway, token: str | None = None) -> Json:
    return {"url": f"http://127.0.0.1:{gateway.port}", "token": token}


def page(gateway: Gateway, path: str) -> Json:
    answer = gateway.ask(path, Way.REVERSE)
    assert answer.status == 200, answer.body
    found: Json = json.loads(answer.body)
    return found


def peers(gateway: Gateway) -> dict[str, Json]:
    return {one["name"]: one for one in page(gateway, "/status.json?machines=0")["peers"]}


def machines(gateway: Gateway, query: str = "") -> dict[int, str | None]:
    """The numbers of the machines, and by which gateway they were seen."""
    listed = page(gateway, f"/fleet.json{query}")["machines"]
    return {int(one["uuid"][-4:]): one.get("gateway") for one in listed}


def test_three_gateways_in_one_view(others: tuple[Gateway, Gateway], tmp_path: Path) -> None:
    b, c = others
    of_b, of_c = f"127.0.0.1:{b.port}", f"127.0.0.1:{c.port}"
    settings = {**OFFLINE, "fleet": {"peers": [entry(b), entry(c, TOKEN)]}}
    with Gateway(tmp_path / "a", settings) as a:
        a.ask("/daily.cvd", Way.REVERSE, user_agent=AGENT.format(5))

        def is_complete() -> bool:
            return machines(a, "?gateway=all") == {5: None, 1: of_b, 2: of_c, 9: of_c}

        assert eventually(is_complete), f"{peers(a)} {machines(a, '?gateway=all')} {a.log}"
        known = peers(a)
        assert [known[name]["up"] for name in (of_b, of_c)] == [True, True]
        assert (known[of_b]["ready"], known[of_b]["fleet"]["total"]) == (False, 2)
        assert "no database has been imported" in known[of_b]["problems"][0]
        # Its own machines are what they were.
        assert machines(a) == {5: None}
        assert "gateway" not in page(a, "/fleet.json")["machines"][0]
        assert machines(a, f"?gateway={of_c}") == {2: of_c, 9: of_c}
        everything = page(a, "/fleet.json?gateway=all&q=000000000009&limit=1")
        assert (everything["total"], everything["found"]) == (4, 1)
        assert a.ask("/fleet.json?gateway=elsewhere", Way.REVERSE).status == 400
        metrics = a.ask("/metrics", Way.REVERSE).body.decode()
        assert f'clamproxy_peer_up{{peer="{of_b}"}} 1.0' in metrics

        # In a terminal, too.
        listed = a.tool("fleet", "--all-gateways")
        assert f" (by {of_c})" in listed.stdout
        assert ", 4 machines, " in f", {listed.stdout}".replace(" - ", ", ")
        found = json.loads(a.tool("fleet", "--all-gateways", "--json").stdout)
        assert {int(one["uuid"][-4:]): one["gateway"] for one in found} == {
            5: None,
            1: of_b,
            2: of_c,
            9: of_c,
        }

        # c has given its machines names and groups.
        assert machines(a, "?gateway=all&group=servers") == {2: of_c}
        listed = a.tool("fleet", "--all-gateways", "--group", "servers", "--json")
        assert [one["name"] for one in json.loads(listed.stdout)] == ["web02"]
        as_csv = a.tool("fleet", "--all-gateways", "--csv").stdout
        lines = csv.DictReader(io.StringIO(as_csv, newline=""))
        assert {line["uuid"][-1]: line["gateway"] for line in lines} == {
            "5": "",
            "1": of_b,
            "2": of_c,
            "9": of_c,
        }

        # b is told of a while it runs: a circle does no harm.
        b.settings["fleet"] = {"peers": [entry(a)]}
        b.config.write_text(yaml.safe_dump(b.settings))
        os.kill(b.pid, signal.SIGHUP)
        of_a = f"127.0.0.1:{a.port}"
        assert eventually(lambda: machines_of_all(b) == {1: None, 9: None, 5: of_a}), b.log
        assert list(peers(b)) == [of_a]
        assert list(peers(a)) == [of_b, of_c]


def machines_of_all(gateway: Gateway) -> dict[int, str | None]:
    """Of all gateways, or nothing until a reload has told of others."""
    return machines(gateway, "?gateway=all") if peers(gateway) else {}


def test_a_peer_that_refuses_and_one_that_is_not_there(
    others: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    b, c = others
    gone = entry(b)
    b.kill()
    settings = {**OFFLINE, "fleet": {"peers": [gone, entry(c, TOKEN[:-1])]}}
    with Gateway(tmp_path / "a", settings) as a:
        assert eventually(lambda: all(one["up"] is False for one in peers(a).values())), peers(a)
        reasons = [one["reason"] for one in peers(a).values()]
        assert "Connection refused" in reasons[0]
        assert reasons[1] == "it answers 401: its status.token is required in fleet.peers"
        assert f"127.0.0.1:{b.port} doesn't answer (" in a.tool("fleet", "--all-gateways").stdout
        assert TOKEN[:-1] not in a.log + json.dumps(page(a, "/status.json"))
