"""`clamproxy doctor` against a real gateway: silent where all is well, precise where it isn't."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from werkzeug.security import generate_password_hash

from tests.support import faults
from tests.support.dns_server import Mode, namespace_refusal
from tests.support.fake_gateway import answer, gateways
from tests.support.gateway import CDN, USER_AGENT, tool
from tests.support.raw import Relay
from tests.support.site import LOCALHOST, Site, eventually

from .conftest import MakeSite
from .test_reload import reload

FEW = {"max_connections": 50}
"""Fewer than any limit of open files."""
NAMED = {"user_agent": USER_AGENT}

type Row = dict[str, Any]
type Rows = dict[tuple[str, str], Row]


def start(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """On the gateway, whose name server answers what the gateway's own does."""
    gateway = f"{LOCALHOST}:{site.gateway.port}"
    common = ("--gateway", gateway, "--database", "test", "--nameserver", site.dns.nameserver)
    return site.gateway.tool("doctor", *common, *arguments)


def examine(site: Site, *arguments: str, code: int) -> Rows:
    """The findings by side and subject."""
    result = start(site, "--json", *arguments)
    assert (result.returncode, result.stderr) == (code, ""), result.stdout + site.gateway.log
    return {(row["side"], row["subject"]): row for row in json.loads(result.stdout)["findings"]}


def check(row: Row, status: str, text: str, remedy: str = "") -> None:
    assert row["status"] == status, row
    assert text in row["text"], row
    assert remedy in (row["remedy"] or ""), row


def test_all_is_well(make_site: MakeSite) -> None:
    site = make_site(access=FEW)
    site.publish(6)
    site.gateway.ask("/test.cvd")
    site.origin.forget()
    rows = examine(site, "--https", "--ca", str(site.gateway.ca), code=0)
    assert {row["status"] for row in rows.values()} == {"ok", "skipped"}
    for subject in ("name", "connection", "proxy", "header", "clock", "patch", "cache", "https", "dns"):
        assert rows["client", subject]["status"] == "ok", rows["client", subject]
    for subject in ("configuration", "cache directory", "disk space", "index", "version record", "clock"):
        assert rows["gateway", subject]["status"] == "ok", rows["gateway", subject]
    assert site.origin.count("W") == 0, "no whole CVD is fetched"
    result = start(site)
    assert (result.returncode, result.stderr) == (0, "")
    assert "On this gateway\n" in result.stdout
    assert f"As a client of {LOCALHOST}:{site.gateway.port}\n" in result.stdout
    assert "\x1b" not in result.stdout
    assert "Do:" not in result.stdout


def test_an_empty_cache(make_site: MakeSite) -> None:
    """The first freshclam would be served: and the origin is asked for a header and a patch at most."""
    site = make_site(access=FEW, upstream=NAMED, serving={"prefetch": "none"})
    site.publish(6)
    rows = examine(site, code=0)
    check(rows["gateway", "upstream"], "ok", "test 6")
    check(rows["client", "patch"], "ok", "test-6.cdiff has ")
    assert site.origin.count("W") == 0
    assert site.origin.count("P") <= 2


def test_origin_down(make_site: MakeSite) -> None:
    site = make_site(access=FEW, upstream=NAMED)
    site.publish(6)
    site.origin.refuse()
    rows = examine(site, code=2)
    check(rows["gateway", "upstream"], "problem", "can't be reached", "firewall")
    check(rows["client", "proxy"], "ok", "200")
    check(rows["client", "header"], "problem", "can't deliver /test.cvd", "about this gateway")
    check(rows["client", "patch"], "skipped", "because of: header")


def test_origin_refuses(make_site: MakeSite) -> None:
    site = make_site(access=FEW, upstream=NAMED)
    site.publish(6)
    site.origin.rule("*", faults.status(403))
    rows = examine(site, code=2)
    check(rows["gateway", "upstream"], "problem", "answers 403", "old versions of freshclam")
    site.origin.forget()
    check(rows["client", "header"], "problem", "403")
    rows = examine(site, code=2)
    check(rows["gateway", "upstream"], "skipped", "cool-down until")
    check(rows["gateway", "cool-downs"], "warning", "client ClamAV/1.4.6", "wait")


def test_nothing_is_counted(make_site: MakeSite) -> None:
    """The doctor is no machine. What it costs the origin is real."""
    site = make_site(access=FEW, upstream=NAMED, serving={"prefetch": "none"})
    site.publish(6)
    rows = examine(site, code=0)
    check(rows["client", "cache"], "ok", "clamproxy; hit")
    examine(make_site(serving={"hosts": ["mirror.example.net"]}), "--no-local", code=2)
    asked = site.origin.count("W") + site.origin.count("P") + site.origin.count("D6")
    figures = eventually(lambda: (found := site.gateway.stats())["upstream_requests"] == asked and found)
    assert figures, site.gateway.stats()
    counted = ("requests", "hits", "misses", "collapsed", "negative", "refused", "errors", "bytes_served")
    assert {figures[name] for name in counted} == {0}
    assert "/test-6.cdiff 6 status 200" in site.gateway.log
    site.gateway.ask("/test-6.cdiff")
    assert eventually(lambda: site.gateway.stats()["hits"]) == 1


def test_nobody_hides_from_the_fleet(site: Site) -> None:
    """A machine that says it is the doctor is seen all the same."""
    site.publish(6)
    site.gateway.ask("/test-6.cdiff", extra={"Clamproxy-Doctor": "yes"})

    def machines() -> list[Row]:
        rows: list[Row] = json.loads(site.gateway.tool("fleet", "--json").stdout)
        return rows

    (machine,) = eventually(machines)
    assert machine["uuid"] in USER_AGENT


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_parent_proxy_wants_a_password(make_site: MakeSite, scheme: str) -> None:
    with gateways() as make:
        refusing = make(answer(407, proxy_authenticate='Basic realm="squid"'))
        parent = {"url": f"{scheme}://origin.example.net", "proxy": f"http://127.0.0.1:{refusing.port}"}
        site = make_site(access=FEW, upstream=NAMED | parent)
        rows = examine(site, code=2)
    check(
        rows["gateway", "upstream"],
        "problem",
        "requires a user and a password (407)",
        "set upstream.proxy to http:",
    )


def test_a_loop(make_site: MakeSite) -> None:
    """The name in upstream.url leads to the gateway itself."""
    site = make_site(access=FEW, upstream=NAMED)
    site.publish(6)
    with Relay(site.gateway.port) as mapped:  # on its own port, the configuration is refused
        url = f"http://localhost:{mapped.port}"
        reload(site.gateway, upstream={"url": url})
        for _ in range(2):
            rows = examine(site, code=2)
            text = f"leads back to this gateway: {url}, with the address "
            check(rows["gateway", "upstream"], "problem", text, "name server without that zone")
            check(rows["client", "header"], "problem", "requests run in a loop", "correct upstream.url")


def test_a_loop_over_another_gateway(make_site: MakeSite) -> None:
    site, other = make_site(access=FEW, upstream=NAMED), make_site()
    site.publish(6)
    reload(site.gateway, upstream={"url": f"http://localhost:{other.gateway.port}"})
    reload(other.gateway, upstream={"url": f"http://localhost:{site.gateway.port}"})
    rows = examine(site, code=2)
    check(rows["gateway", "upstream"], "problem", "leads back to this gateway", "correct upstream.url")
    check(rows["client", "header"], "problem", "requests run in a loop", "correct upstream.url")


def test_the_cdns_name_leads_here(make_site: MakeSite, tmp_path: Path) -> None:
    """A local zone that sends machines to the gateway sends the gateway to itself."""
    if (refusal := namespace_refusal(tmp_path)) is not None:
        pytest.skip(refusal)
    site = make_site(access=FEW, upstream={**NAMED, "url": f"https://{CDN}"})
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {CDN}\n")
    gateway = f"{LOCALHOST}:{site.gateway.port}"
    doctor = [str(Path(sys.executable).with_name("clamproxy")), "doctor", "--gateway", gateway, "--json"]
    doctor += [
        "--config",
        str(site.gateway.config),
        "--nameserver",
        site.dns.nameserver,
        "--database",
        "test",
    ]
    bind = 'mount --bind "$0" /etc/hosts && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", bind, str(hosts), *doctor]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = {(row["side"], row["subject"]): row for row in json.loads(result.stdout)["findings"]}
    text = f"leads back to this gateway: https://{CDN}, with the address 127.0.0.1 (this machine itself)"
    check(rows["gateway", "upstream"], "problem", text, "name server without that zone")


def test_dns_wrong(make_site: MakeSite) -> None:
    site = make_site(access=FEW)
    site.publish(6)
    site.dns.mode = Mode.NXDOMAIN
    rows = examine(site, code=1)
    check(rows["gateway", "version record"], "warning", "does not exist", "versions.nameservers")
    check(rows["client", "dns"], "warning", "does not exist", "--no-dns")
    check(rows["client", "header"], "ok", "test 6")


def test_dns_ahead(make_site: MakeSite) -> None:
    site = make_site(access=FEW, versions={"refresh": "1h"})
    site.publish(5)
    site.gateway.ask("/test.cvd")
    site.dns.versions["test"] = 7
    check(examine(site, code=2)["client", "dns"], "problem", "2 releases behind")


def test_wrong_authority(site: Site, tmp_path: Path) -> None:
    site.publish(6)
    bundle = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(bundle))
    rows = examine(site, "--ca", str(bundle), "--no-local", code=2)
    check(rows["client", "https"], "problem", "of 'mitmproxy' is not trusted", "clamproxy ca install")
    assert str(bundle) in rows["client", "https"]["text"]


def test_own_authority(make_site: MakeSite, tmp_path: Path) -> None:
    """That which `clamproxy ca init` makes."""
    site = make_site(access=FEW)
    site.publish(6)
    assert site.gateway.tool("ca", "init").returncode == 0
    bundle = tmp_path / "ca.pem"
    bundle.write_text(site.gateway.tool("ca", "export").stdout)
    site.gateway.stop()
    site.gateway.start()
    rows = examine(site, "--ca", str(bundle), code=0)
    check(rows["gateway", "authority"], "ok", "valid until")
    check(rows["client", "https"], "ok", f"https works with {bundle}")
    rows = examine(site, "--https", code=0)
    check(rows["client", "https"], "ok", "this gateway's own authority")


@pytest.mark.parametrize(
    ("serving", "text", "remedy"),
    [
        ({"clients": ["10.0.0.0/8"]}, "closes the connection", "serving.clients"),
        ({"hosts": ["mirror.example.net"]}, "no tunnel to database.clamav.net:80", "serving.hosts"),
    ],
)
def test_the_gateway_refuses(make_site: MakeSite, serving: dict[str, Any], text: str, remedy: str) -> None:
    rows = examine(make_site(serving=serving), "--no-local", code=2)
    check(rows["client", "proxy"], "problem", text, remedy)


def test_users(make_site: MakeSite) -> None:
    site = make_site(access={"users": [f"alice:{generate_password_hash('s3cret')}"]})
    check(examine(site, "--no-local", code=2)["client", "proxy"], "problem", "requires a user", "--user NAME")
    site.publish(6)
    gateway = f"{LOCALHOST}:{site.gateway.port}"
    common = ("--gateway", gateway, "--database", "test", "--nameserver", site.dns.nameserver, "--no-local")
    for password, code, text in (
        ("s3cret", 0, "test-6.cdiff has"),
        ("wrong", 2, "doesn't accept user alice"),
    ):
        result = tool("doctor", *common, "--user", "alice", environment={"CLAMPROXY_PASSWORD": password})
        assert (result.returncode, text in result.stdout) == (code, True), result.stdout + site.gateway.log


def test_a_database_that_is_not_served(make_site: MakeSite) -> None:
    rows = examine(make_site(serving={"databases": ["daily"]}), "--no-local", code=2)
    check(rows["client", "header"], "problem", "has no /test.cvd", "serving.databases")


def test_the_gateway_is_stopped(site: Site) -> None:
    site.gateway.stop()
    gateway = f"{LOCALHOST}:{site.gateway.port}"
    result = tool("doctor", "--gateway", gateway, "--no-local", "--nameserver", site.dns.nameserver)
    assert result.returncode == 2
    assert "nothing listens on this port" in result.stdout
    assert "Do: " in result.stdout


def test_from_the_lines_of_a_client(make_site: MakeSite, tmp_path: Path) -> None:
    """What `clamproxy client-config` printed leads the doctor to the gateway."""
    site = make_site(access=FEW)
    site.publish(6)
    lines = site.gateway.tool("client-config", "--gateway", LOCALHOST, "--port", str(site.gateway.port))
    conf = tmp_path / "freshclam.conf"
    conf.write_text(f"DatabaseDirectory {tmp_path}\nDatabaseOwner root\n{lines.stdout}")
    common = ("--database", "test", "--nameserver", site.dns.nameserver, "--no-local")
    result = tool("doctor", *common, "--freshclam-conf", str(conf))
    assert result.returncode == 0, result.stdout
    assert f"As a client of {LOCALHOST}:{site.gateway.port}" in result.stdout
