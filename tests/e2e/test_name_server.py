"""The gateway as the clients' name server, its dns.txt, and DNS over HTTPS towards the outside."""

from __future__ import annotations

import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from tests.support.dns_server import PRIMARY, FakeDns, Mode, free_address, open_dns
from tests.support.doh_server import ConnectProxy, FakeDoh
from tests.support.freshclam import OK
from tests.support.gateway import Gateway, Settings, Way
from tests.support.origin import OriginServer
from tests.support.scenes import NEWEST, ROOMY, settle
from tests.support.site import (
    LOCALHOST,
    Break,
    Site,
    eventually,
    lacks,
    origin_certificates,
    publish,
    resolver_of,
    settings_for,
)

FOREIGN = "www.example.com"
OWN, PARENT = "current.cvd.site.example.net", "current.cvd.parent.example.net"
"""Where machines find the version record, and where the gateway does."""


class NameGateway(Gateway):
    """A proxy that is the clients' name server, too."""

    def __init__(self, directory: Path, settings: Settings, resolver: tuple[str, int]) -> None:
        super().__init__(directory, settings, modes=["dns@{}:{}".format(*resolver)])
        self.resolver = resolver
        """Address and port of its name server."""
        self._logged = 0

    def query(
        self, name: str = PRIMARY, kind: str = "TXT", *, tcp: bool = False, timeout: float = 20
    ) -> dns.message.Message:
        """Ask it."""
        ask = dns.query.tcp if tcp else dns.query.udp
        return ask(dns.message.make_query(name, kind), self.resolver[0], timeout, self.resolver[1])

    def text(self, name: str = PRIMARY, *, tcp: bool = False) -> str:
        """The record of a name; empty if there is none."""
        answer = self.query(name, tcp=tcp)
        return answer.answer[0][0].strings[0].decode() if answer.answer else ""

    def _spawn(self) -> None:
        self._logged = len(self.log)
        super()._spawn()

    def _listens(self) -> bool:
        def answers() -> bool:
            # This is printed when both its TCP side and its UDP side are up.
            return "DNS server listening" in self.log[self._logged :]

        return super()._listens() and eventually(answers, every=0.05)


type Start = Callable[..., Site]


def _resolver_address() -> tuple[str, int]:
    try:
        return free_address(), 53
    except OSError:  # good for queries, useless for freshclam
        return LOCALHOST, random.randint(15_000, 32_000)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a site whose proxy is a name server, with the settings that the test needs."""
    opened: list[Site] = []

    def make(**sections: Any) -> Site:
        origin, fake_dns = OriginServer(), open_dns()
        settings = settings_for(origin, fake_dns, **sections)
        gateway = NameGateway(tmp_path / "gateway", settings, _resolver_address())
        opened.append(Site(tmp_path, origin, fake_dns, gateway))
        (gateway.directory / "conf").mkdir()
        (gateway.directory / "conf" / "config.yaml").write_text(f"dns_name_servers: [{fake_dns.address}]\n")
        gateway.start()
        return opened[-1]

    yield make
    for site in opened:
        site.close()


def names_of(site: Site) -> NameGateway:
    assert isinstance(site.gateway, NameGateway)
    return site.gateway


def resolver_for_clients(site: Site) -> str:
    """The gateway's address as a client's name server; skips the test where that cannot be."""
    resolver_of(site.dns)
    address, port = names_of(site).resolver
    assert port == 53
    return address


def counted(gateway: Gateway) -> int:
    """Requests of clients so far; the last one is made here, from the cache: all before are counted then."""

    def told() -> int:
        return gateway.log.count(" GET /test-6.cdiff ")

    before = told()
    assert gateway.ask("/test-6.cdiff").status == 200
    assert eventually(lambda: told() > before), gateway.log
    number = len(re.findall(r" (?:GET|HEAD) /test", gateway.log))
    assert eventually(lambda: gateway.stats()["requests"] == number), gateway.log
    return number


# freshclam


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.REVERSE])
def test_freshclam_with_the_gateway_as_its_name_server(start: Start, way: Way) -> None:
    """A new client, one behind, one that is current: the last one sends no HTTP request at all."""
    site = start()
    resolver = resolver_for_clients(site)
    site.publish(5)
    fresh = site.client("fresh", way, resolver=resolver)
    outcome = fresh.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 5}), outcome.output + site.gateway.log
    assert "HTTP mode" not in outcome.output, outcome.output + site.gateway.log
    site.publish(6)
    # After versions.refresh, and once the gateway can serve it.
    assert eventually(lambda: names_of(site).text("test.cvd.clamav.net").startswith("6:"))
    outcome = fresh.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cld": 6}), outcome.output + site.gateway.log
    settle(site.origin)
    before, asked = counted(site.gateway), len(site.origin.requests())
    outcome = fresh.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cld": 6}), outcome.output + site.gateway.log
    assert "test.cld database is up-to-date" in outcome.output
    assert counted(site.gateway) == before + 1, "but the one of this test"
    assert len(site.origin.requests()) == asked
    assert "OUTDATED" not in outcome.output
    assert f" DNS {PRIMARY} TXT NOERROR " in site.gateway.log


@pytest.mark.parametrize(
    "spoil", [lambda origin: origin.put("test-5.cdiff", b""), lacks("test-5.cdiff")], ids=["empty", "missing"]
)
@pytest.mark.parametrize("enabled", [True, False], ids=["delta serving", "whole files"])
def test_freshclam_after_a_patch_that_leads_nowhere(start: Start, enabled: bool, spoil: Break) -> None:
    """It goes by the gateway's DNS alone, so it doesn't ask for the whole CVD before that is announced."""
    site = start(delta={**ROOMY, "enabled": enabled})
    client = site.client(resolver=resolver_for_clients(site))
    site.publish(4)
    assert client.run().version == 4
    publish(site.origin, NEWEST)
    spoil(site.origin)
    site.dns.versions["test"] = NEWEST
    record = eventually(lambda: names_of(site).text("test.cvd.clamav.net").startswith(f"{NEWEST}:"))
    assert record, site.gateway.log
    outcome = client.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), outcome.output + site.gateway.log
    assert site.origin.count("W") == 2, site.origin.trace


def test_freshclam_asks_by_http_for_what_the_gateway_does_not_know(start: Start) -> None:
    """main has no number in the record; daily, behind it, is announced all the same."""
    site = start()
    resolver = resolver_for_clients(site)
    site.dns.versions["main"] = 0
    outcome = site.client("main", resolver=resolver, database="main", attempts=1).run()
    assert "Trying to retrieve CVD header" in outcome.output
    outcome = site.client("daily", resolver=resolver, database="daily", attempts=1).run()
    assert "daily.cvd version from DNS: 27800" in outcome.output, outcome.output


def test_freshclam_while_nothing_is_known(start: Start) -> None:
    site = start()
    resolver = resolver_for_clients(site)
    site.publish(6)
    site.dns.mode = Mode.SERVFAIL
    outcome = site.client(resolver=resolver).run()
    assert "HTTP mode" in outcome.output
    assert (outcome.code, outcome.version) == (OK, 6), outcome.output + site.gateway.log


@pytest.mark.parametrize("database", ["test", "daily"])
def test_freshclam_with_a_record_of_the_sites_own_name(start: Start, database: str) -> None:
    """As `client-config` says, and although nobody forwards clamav.net anywhere."""
    site = start(serving={"dns_name": OWN}, versions={"domain": PARENT})
    resolver = resolver_for_clients(site)
    site.dns.zone = PARENT.partition(".")[2]
    site.publish(6)
    printed = site.gateway.tool("client-config", "--gateway", LOCALHOST).stdout
    (line,) = re.findall("^DNSDatabaseInfo .*", printed, re.MULTILINE)
    outcome = site.client(resolver=resolver, database=database, extra=[line], attempts=1).run()
    version = {"test": 6, "daily": 27800}[database]
    assert f"{database}.cvd version from DNS: {version}" in outcome.output, outcome.output + site.gateway.log
    assert f" DNS {OWN} TXT NOERROR " in site.gateway.log
    assert f" DNS {PRIMARY} " not in site.gateway.log
    if database == "test":
        assert (outcome.code, outcome.version) == (OK, 6), outcome.output + site.gateway.log
    assert {name.partition(".")[2] for name in site.dns.queries} == {site.dns.zone}


# Queries


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_records(start: Start, tcp: bool) -> None:
    site = start()
    site.publish(6)
    gateway = names_of(site)
    assert gateway.text(tcp=tcp).startswith("1.4.6:62:27800:")
    assert gateway.text("test.cvd.clamav.net", tcp=tcp).startswith("6:")
    assert gateway.text("daily.cvd.clamav.net", tcp=tcp).startswith("27800:")
    assert gateway.query(FOREIGN, "A", tcp=tcp).rcode() == dns.rcode.REFUSED
    assert gateway.query(FOREIGN, "TXT", tcp=tcp).rcode() == dns.rcode.REFUSED


def test_the_record_outlives_a_restart_and_the_dns_outside(start: Start) -> None:
    site = start()
    gateway = names_of(site)
    first = gateway.text()
    assert eventually(lambda: site.gateway.stats()["databases"].get("daily", {}).get("advertised")) == 27800
    gateway.stop()
    site.dns.mode = Mode.SILENT
    gateway.start()
    record = gateway.text()
    first_time, second_time = (int(text.split(":")[3]) for text in (first, record))
    assert record.replace(str(second_time), str(first_time)) == first
    assert abs(time.time() - second_time) < 60  # fresh, else clients fall back to HTTP (trap 36)


def test_foreign_clients_get_no_answer(start: Start) -> None:
    site = start(serving={"clients": ["192.0.2.0/24"]})
    gateway = names_of(site)
    with pytest.raises(dns.exception.Timeout):
        gateway.query(timeout=1)
    with pytest.raises((EOFError, OSError)):
        gateway.query(tcp=True)
    assert site.dns.queries == []
    assert eventually(lambda: "not in serving.clients" in gateway.log)


def test_connections_for_queries_count_like_others(start: Start) -> None:
    site = start(access={"max_connections_per_client": 3})
    gateway = names_of(site)
    held = [socket.create_connection(gateway.resolver, timeout=20) for _ in range(3)]
    try:
        with pytest.raises((EOFError, OSError)):
            gateway.query(tcp=True)
        assert gateway.text()  # by UDP nothing stays open
    finally:
        for stream in held:
            stream.close()
    assert eventually(lambda: "max_connections_per_client has been reached" in gateway.log)


def test_other_names_are_forwarded_where_that_is_wanted(start: Start) -> None:
    """By mitmproxy, to the name servers of its options; the names of the gateway's records are not."""
    site = start(serving={"other_names": "forward", "databases": ["daily", "test"]})
    gateway = names_of(site)
    resolver_of(site.dns)  # mitmproxy asks port 53
    site.dns.versions["valhalla"] = 9
    assert gateway.text("valhalla.cvd.clamav.net").startswith("9:")
    assert site.dns.count("valhalla.cvd.clamav.net") == 1
    assert gateway.text().startswith("1.4.6:")
    assert gateway.query(PRIMARY, "A").rcode() == dns.rcode.NOERROR
    assert "serving.other_names" not in gateway.log


def test_malformed_queries_do_no_harm(start: Start) -> None:
    site = start()
    gateway = names_of(site)
    header = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0)
    pointers = b"".join(struct.pack("!H", 0xC000 | (14 + 2 * step)) for step in range(3000))
    odd = [b"", b"x", header, header + b"\x0cxn--99999999\0\0\x10\0\x01", header + b"\x02a.\0\0\x10\0\x01"]
    odd += [header + pointers, header + b"\xc0\x0c\0\x10\0\x01", bytes(range(256)), b"\xff" * 512]
    for message in odd:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
            stream.sendto(message, gateway.resolver)
        with socket.create_connection(gateway.resolver, timeout=20) as stream:
            stream.sendall(struct.pack("!H", len(message)) + message)
    assert gateway.text().startswith("1.4.6:")
    assert "Traceback" not in gateway.log
    assert "crashed" not in gateway.log


def test_http_on_the_proxy_port_is_no_dns(start: Start) -> None:
    """What looks like DNS on the HTTP port is refused there, as before."""
    gateway = names_of(start())
    message = dns.message.make_query(PRIMARY, "TXT").to_wire()
    with socket.create_connection((LOCALHOST, gateway.port), timeout=20) as stream:
        stream.sendall(struct.pack("!H", len(message)) + message)
        stream.shutdown(socket.SHUT_WR)
        assert b"clamav" not in stream.recv(4096)


# dns.txt


def test_dns_txt(site: Site) -> None:
    own = f"{LOCALHOST}:{site.gateway.port}"
    answer = site.gateway.ask("/dns.txt", Way.ABSOLUTE, host=own)
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body.startswith(b"1.4.6:62:27800:")
    assert answer.body.endswith(b":339\n")
    assert answer.cache_status == "clamproxy; detail=status"
    assert site.gateway.ask("/dns.txt", Way.ABSOLUTE, host=own, method="HEAD").status == 200
    assert site.gateway.ask("/dns.txt", Way.ABSOLUTE, host=own, method="POST").status == 405


@pytest.mark.parametrize("way", [way for way in Way if way is not Way.REVERSE])
def test_the_cdn_has_no_dns_txt(site: Site, way: Way) -> None:
    """The gateway has, by whatever name it is asked, and on each of its ports."""
    assert site.gateway.ask("/dns.txt", way).status == 404


def test_dns_txt_while_nothing_is_known(site: Site) -> None:
    site.dns.mode = Mode.SERVFAIL
    answer = site.gateway.ask("/dns.txt", Way.ABSOLUTE, host=f"{LOCALHOST}:{site.gateway.port}")
    assert answer.status == 503


# Out by DNS over HTTPS


def test_dns_over_https_through_a_proxy(tmp_path: Path) -> None:
    """The only way out is a proxy with a password; the name server of the site knows nothing."""
    tls, bundle = origin_certificates(tmp_path)
    with (
        FakeDns() as outside,
        FakeDns() as inside,
        FakeDoh(outside, tls) as doh,
        ConnectProxy("user:secret") as proxy,
        OriginServer(tls) as origin,
    ):
        outside.versions["test"] = 6
        inside.mode = Mode.NXDOMAIN
        upstream = {
            "url": origin.url,
            "proxy": f"http://user:secret@127.0.0.1:{proxy.port}",
            "ca_bundle": str(bundle),
        }
        settings = settings_for(origin, inside, upstream=upstream, versions={"doh": doh.url})
        with NameGateway(tmp_path / "gateway", settings, _resolver_address()) as gateway:
            assert gateway.text().startswith("1.4.6:62:27800:"), gateway.log
            assert gateway.text("test.cvd.clamav.net").startswith("6:")
            databases = eventually(lambda: gateway.stats()["databases"].get("test"))
            assert databases["advertised"] == 6
            assert gateway.stats()["upstream_requests"] == 0
        assert set(proxy.tunnels) == {f"localhost:{doh.port}"}
        assert inside.queries == []


def test_offline_nobody_is_asked(start: Start) -> None:
    site = start(upstream={"offline": True})
    gateway = names_of(site)
    assert gateway.query("valhalla.cvd.clamav.net").rcode() == dns.rcode.SERVFAIL
    assert site.dns.queries == []
