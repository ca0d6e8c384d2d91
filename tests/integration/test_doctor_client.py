"""The doctor as a client: each cause by its name, with what to do about it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from clamproxy.authority import configured_names
from clamproxy.authority import found as found_authority
from clamproxy.config.settings import Settings
from clamproxy.config.units import Nameserver
from clamproxy.doctor import client_checks as module
from clamproxy.doctor.client_checks import Client, Subject
from clamproxy.doctor.findings import Deadline, Finding, Status, Verdict, examine
from clamproxy.doctor.tls_checks import Trust, own_trust, trust_of
from clamproxy.doctor.wire import Proxy
from clamproxy.setup.trust import INSTALLED_FILES, LINUX_FILE, RHEL_FILE
from tests.support.dns_server import FakeDns, Mode
from tests.support.fake_gateway import (
    CDN,
    ESTABLISHED,
    HEADER,
    MISS,
    PATCH,
    VERSION,
    Act,
    FakeGateway,
    answer,
    close,
    drip,
    from_clamproxy,
    gateways,
    header,
    in_words,
    patch,
    stay_silent,
)
from tests.support.forge import forge_keys

DOCTORS = "Clamproxy-Doctor: yes"
AGENT = "ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64)"

type Make = Callable[..., FakeGateway]
type Found = dict[str, Finding]

OK, WARNING, PROBLEM, SKIPPED = Status


@pytest.fixture
def make() -> Iterator[Make]:
    with gateways() as make:
        yield make


@pytest.fixture
def dns() -> Iterator[FakeDns]:
    with FakeDns() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that are not about DNS ask nobody."""
    monkeypatch.setattr(module, "compare_with_gateway", lambda *_: Verdict(OK, "agrees"))


def examined(
    port: int,
    *,
    host: str = "127.0.0.1",
    credentials: str | None = None,
    trust: Trust | Sequence[Trust] = (),
    dns: FakeDns | None = None,
) -> Found:
    proxy = Proxy(host, port, AGENT, credentials)
    trusts = [trust] if isinstance(trust, Trust) else trust
    servers = [Nameserver(dns.address, dns.port)] if dns else []
    subject = Subject(proxy, ["daily"], forge_keys().trusted, trusts, servers)
    deadline = Deadline(60)
    return {finding.subject: finding for finding in examine(Client(subject, deadline).checks(), deadline)}


def check(found: Found, subject: str, status: Status, text: str, remedy: str = "") -> None:
    finding = found[subject]
    assert finding.status is status, finding
    assert text in finding.text, finding
    assert remedy in finding.remedy, finding
    if status is PROBLEM:
        assert finding.remedy, finding


def test_all_is_well(make: Make) -> None:
    gateway = make()
    found = examined(gateway.port)
    assert {name for name, finding in found.items() if finding.status is OK} == {
        "name",
        "connection",
        "proxy",
        "header",
        "clock",
        "patch",
        "cache",
        "dns",
    }
    check(found, "header", OK, f"daily {VERSION}, built 60 min ago")
    check(found, "patch", OK, "ClamAV's signature")
    check(found, "https", SKIPPED, "--https")


def test_requests_are_those_of_freshclam(make: Make) -> None:
    """But for the field by which the gateway knows that they don't count."""
    gateway = make()
    examined(gateway.port, credentials="alice:s3cret")
    tunnels = [head for head in gateway.seen if head.startswith("CONNECT")]
    files = [head for head in gateway.seen if head.startswith("GET")]
    assert tunnels[0] == (
        f"CONNECT {CDN}:80 HTTP/1.1\r\nHost: {CDN}:80\r\nProxy-Authorization: Basic YWxpY2U6czNjcmV0\r\n"
        f"User-Agent: {AGENT}\r\nProxy-Connection: Keep-Alive\r\n{DOCTORS}\r\n\r\n"
    )
    assert files[0] == (
        f"GET {HEADER} HTTP/1.1\r\nHost: {CDN}\r\nRange: bytes=0-511\r\nUser-Agent: {AGENT}\r\n"
        f"Accept: */*\r\nConnection: close\r\n{DOCTORS}\r\n\r\n"
    )
    assert [head.split()[1] for head in files] == [HEADER, PATCH, PATCH], "no whole CVD is fetched"
    assert "Range" not in files[1]


class TestWay:
    def test_no_such_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def look_up(*_: object, **__: object) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        found = examined(8080, host="gateway.invalid")
        check(found, "name", PROBLEM, "gateway.invalid can't be resolved: Name or service", "HTTPProxyServer")
        check(found, "connection", SKIPPED, "because of: name")
        check(found, "patch", SKIPPED, "because of: name")
        check(found, "dns", OK, "")

    def test_a_resolver_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_CONNECT_LIMIT", 0.1)
        end = threading.Event()

        def look_up(*_: object, **__: object) -> list[Any]:
            end.wait(20)
            return []

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        check(examined(8080, host="gateway.invalid"), "name", PROBLEM, "no answer within")
        end.set()

    def test_an_impossible_name(self) -> None:
        check(examined(8080, host="a" * 80 + ".example"), "name", PROBLEM, "can't be resolved")

    def test_nothing_listens(self, make: Make) -> None:
        gateway = make()
        gateway.close()
        found = examined(gateway.port)
        check(found, "connection", PROBLEM, "refused: nothing listens", "clamproxy run")
        check(found, "header", SKIPPED, "because of: connection")

    def test_an_address_that_swallows_all(self, monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
        gateway = make()

        def connect(*_: object, **__: object) -> Any:
            raise TimeoutError("timed out")

        monkeypatch.setattr(socket, "create_connection", connect)
        check(examined(gateway.port), "connection", PROBLEM, "a firewall drops", "firewall")


SQUID = {"server": "squid/5.7", "via": "1.1 proxy (squid/5.7)", "x_squid_error": "ERR_ACCESS_DENIED 0"}


class TestTunnel:
    @pytest.mark.parametrize(
        ("connect", "text", "remedy"),
        [
            (close, "closes the connection without an answer", "serving.clients"),
            (b"\x15\x03\x01\x00\x02\x02\x46", "isn't HTTP", "HTTPProxyPort"),
            (b"220 mail.example.net ESMTP\r\n", "isn't HTTP", "HTTPProxyPort"),
            (answer(407, proxy_authenticate='Basic realm="clamproxy"'), "requires a user", "--user NAME"),
            (answer(403, b"<html>denied</html>", **SQUID), "forbids CONNECT", "HTTPProxyServer"),
            (answer(403, **SQUID), "squid/5.7", "HTTPProxyServer"),
            (
                in_words(502, f"no tunnel to {CDN}:80"),
                f"refuses CONNECT {CDN}:80: no tunnel",
                "serving.hosts",
            ),
            (answer(502, b"bad", **SQUID), "not clamproxy, or a broken one", "HTTPProxyPort"),
            (answer(504), "with 504: not clamproxy", "HTTPProxyPort"),
            (in_words(503, "the gateway has an error"), "for now: the gateway has", "clamproxy doctor"),
            (answer(405, b"", server="nginx"), "nginx) answers CONNECT with 405: a web server", "Port"),
            (answer(400), "a web server, not a proxy", "HTTPProxyServer"),
        ],
    )
    def test_refusals(self, make: Make, connect: bytes | Act, text: str, remedy: str) -> None:
        found = examined(make(connect).port)
        check(found, "connection", OK, "")
        check(found, "proxy", PROBLEM, text, remedy)
        check(found, "header", SKIPPED, "because of: proxy")

    def test_a_wrong_password(self, make: Make) -> None:
        found = examined(make(answer(407)).port, credentials="alice:s3cret")
        check(found, "proxy", PROBLEM, "doesn't accept user alice", "hash-password")
        assert "s3cret" not in str(found)

    @pytest.mark.parametrize("act", [stay_silent, drip])
    def test_too_slow(self, make: Make, monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
        monkeypatch.setattr(module, "_ANSWER_LIMIT", 0.5)
        check(examined(make(act).port), "proxy", PROBLEM, "doesn't answer within", "origin may be slow")


class TestHeader:
    @pytest.mark.parametrize(
        ("raw", "text", "remedy"),
        [
            (answer(206, header(), **SQUID), "this is not clamproxy", "HTTPProxyServer"),
            (answer(206, header(), server="cloudflare"), "server: cloudflare", "another proxy in between"),
            (answer(200, b"<html>Log in</html>"), "no Via or Cache-Status", "HTTPProxyServer"),
            (in_words(503, "the origin is not asked until X: status 403"), "refuses this version", "doctor"),
            (in_words(503, "the origin is not asked until X: status 429"), "too many requests", "doctor"),
            (in_words(503, "the origin has not answered in time"), "not answered in time", "doctor"),
            (in_words(404, "not a file of ClamAV's databases"), "has no /daily.cvd", "serving.databases"),
            (in_words(502, "loop: this request has come"), "run in a loop", "upstream.url"),
            (in_words(500, "what"), "with 500: what", "doctor"),
            (from_clamproxy(206, b"<html>Log in</html>"), "no CVD header", "changes answers"),
            (from_clamproxy(206, header()[:100], length=512), "cut off after 100 bytes", "changes"),
            (close, "closes the connection", "serving.clients"),
            (b"nonsense\r\n", "isn't HTTP", "HTTPProxyServer"),
        ],
    )
    def test_no_header(self, make: Make, raw: bytes | Act, text: str, remedy: str) -> None:
        found = examined(make(files={HEADER: raw}).port)
        check(found, "proxy", OK, "")
        check(found, "header", PROBLEM, text, remedy)
        check(found, "patch", SKIPPED, "because of: header")

    @pytest.mark.parametrize(
        ("raw", "text"),
        [
            (from_clamproxy(200, header() + bytes(5000)), "status 200 instead of 206"),
            (from_clamproxy(206, header(), "clamproxy; fwd=stale"), "the origin doesn't deliver it"),
            (from_clamproxy(206, header(age=9 * 86400)), "built 9 d ago; a newer one should appear"),
        ],
    )
    def test_a_header_that_gives_reason_to_worry(self, make: Make, raw: bytes, text: str) -> None:
        found = examined(make(files={HEADER: raw}).port)
        check(found, "header", WARNING, text)
        assert found["header"].remedy
        check(found, "patch", OK, "")

    def test_terminal_sequences_are_defused(self, make: Make) -> None:
        found = examined(make(files={HEADER: in_words(503, "\x1b[2J\x07" + "x" * 5000)}).port)
        assert found["header"].text.isprintable()
        assert len(found["header"].text) <= 300

    @pytest.mark.parametrize(("shift", "direction"), [(7290, "2 h behind"), (-90000, "25 h ahead of")])
    def test_the_clock(self, make: Make, shift: float, direction: str) -> None:
        raw = from_clamproxy(206, header(), at=time.time() + shift)
        check(examined(make(files={HEADER: raw}).port), "clock", PROBLEM, direction, "NTP")


class TestPatch:
    @pytest.mark.parametrize(
        ("raw", "status", "text", "remedy"),
        [
            (in_words(404, "no such version yet"), WARNING, f"no daily-{VERSION}.cdiff", "wait"),
            (in_words(503, "the origin is not asked"), PROBLEM, "can't deliver", "doctor"),
            (from_clamproxy(200, patch()[:-60] + bytes(60)), PROBLEM, "not as ClamAV signed", "device"),
            (from_clamproxy(200, patch(VERSION - 1)), PROBLEM, "not as ClamAV signed", "device"),
            (from_clamproxy(200, b"<html>Log in</html>"), PROBLEM, "not as ClamAV signed", "device"),
            (
                from_clamproxy(200, patch()[:100], length=1000),
                PROBLEM,
                "incomplete: it ends after 100 bytes",
                "device",
            ),
            (close, PROBLEM, "closes the connection", "serving.clients"),
        ],
    )
    def test_no_patch(self, make: Make, raw: bytes | Act, status: Status, text: str, remedy: str) -> None:
        check(examined(make(files={PATCH: raw}).port), "patch", status, text, remedy)

    def test_an_empty_patch_is_as_good(self, make: Make) -> None:
        check(
            examined(make(files={PATCH: from_clamproxy(200)}).port), "patch", OK, "fetch this version whole"
        )

    def test_not_cached(self, make: Make) -> None:
        found = examined(make(files={PATCH: from_clamproxy(200, patch(), MISS)}).port)
        check(found, "cache", WARNING, "wasn't answered from the cache (clamproxy; fwd=miss)", "log")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class TestTls:
    @pytest.fixture
    def bundle(self, authority: trustme.CA, tmp_path: Path) -> Trust:
        path = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(str(path))
        return Trust(path, "--ca")

    def context(self, authority: trustme.CA, *names: str, until: datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        begin = until - timedelta(days=30) if until else None
        authority.issue_cert(*(names or (CDN,)), not_before=begin, not_after=until).configure_cert(context)
        return context

    def test_trusted(self, make: Make, authority: trustme.CA, bundle: Trust) -> None:
        found = examined(make(tls=self.context(authority)).port, trust=bundle)
        check(found, "https", OK, f"https works with {bundle.bundle} (--ca)")

    def test_of_another_authority(self, make: Make, bundle: Trust) -> None:
        found = examined(make(tls=self.context(trustme.CA())).port, trust=bundle)
        check(found, "https", PROBLEM, "is not trusted", "clamproxy ca install")
        check(found, "https", PROBLEM, f"looked in {bundle.bundle}")

    def test_expired(self, make: Make, authority: trustme.CA, bundle: Trust) -> None:
        until = datetime.now(UTC) - timedelta(days=3)
        found = examined(make(tls=self.context(authority, until=until)).port, trust=bundle)
        check(found, "https", PROBLEM, f"expired on {until:%Y-%m-%d}", "restart clamproxy")

    def test_expired_for_a_clock_that_is_wrong(
        self, make: Make, authority: trustme.CA, bundle: Trust
    ) -> None:
        until = datetime.now(UTC) - timedelta(days=3)
        raw = from_clamproxy(206, header(), at=(until - timedelta(days=1)).timestamp())
        gateway = make(files={HEADER: raw}, tls=self.context(authority, until=until))
        found = examined(gateway.port, trust=bundle)
        check(found, "https", PROBLEM, "this machine's clock is wrong", "NTP")

    def test_not_valid_yet(self, make: Make, authority: trustme.CA, bundle: Trust) -> None:
        until = datetime.now(UTC) + timedelta(days=40)
        found = examined(make(tls=self.context(authority, until=until)).port, trust=bundle)
        check(found, "https", PROBLEM, "not valid yet", "clock of the gateway")

    def test_for_another_name(self, make: Make, authority: trustme.CA, bundle: Trust) -> None:
        found = examined(make(tls=self.context(authority, "www.example.net")).port, trust=bundle)
        check(found, "https", PROBLEM, "is for another name")

    def test_no_tls(self, make: Make, bundle: Trust) -> None:
        gateway = make(lambda stream: stream.sendall(ESTABLISHED + b"Who is there?\r\n"))
        check(examined(gateway.port, trust=bundle), "https", PROBLEM, "the gateway doesn't do TLS")

    @pytest.mark.parametrize("content", [None, "", "no certificate"])
    def test_an_unusable_bundle(self, make: Make, tmp_path: Path, content: str | None) -> None:
        path = tmp_path / "given.pem"
        if content is not None:
            path.write_text(content)
        found = examined(make().port, trust=Trust(path, "CURL_CA_BUNDLE"))
        check(found, "https", PROBLEM, f"the certificates in {path} (CURL_CA_BUNDLE) can't be used", "PEM")

    def test_what_freshclam_trusts(self, tmp_path: Path) -> None:
        given, named = tmp_path / "given.pem", tmp_path / "named.pem"
        environ = {"CURL_CA_BUNDLE": str(named), "SSL_CERT_FILE": "/ignored.pem"}
        assert trust_of(given, environ) == [Trust(given, "--ca")]
        assert trust_of(None, environ, [])[0] == Trust(named, "CURL_CA_BUNDLE")
        assert "ignored" not in str(trust_of(None, {"SSL_CERT_FILE": "/ignored.pem"}))

    def test_what_the_service_trusts(self, tmp_path: Path) -> None:
        """The variable is in its unit, and not here; the file is where the snippet has put it."""
        there, not_there = tmp_path / "there.pem", tmp_path / "not_there.pem"
        there.write_text("")
        first, *others = trust_of(None, {}, [str(not_there), str(there)])
        assert first == Trust(there, "where `clamproxy ca install` puts it")
        assert [trust.origin for trust in others] == ["the system's bundle"]
        environ = {"CURL_CA_BUNDLE": str(there)}
        assert [trust.bundle for trust in trust_of(None, environ, [str(there)])].count(there) == 1
        assert {LINUX_FILE, RHEL_FILE} < set(INSTALLED_FILES)

    def test_one_good_bundle_of_several_is_enough(
        self, make: Make, authority: trustme.CA, bundle: Trust, tmp_path: Path
    ) -> None:
        other, missing = tmp_path / "other.pem", Trust(tmp_path / "missing.pem", "gone")
        trustme.CA().cert_pem.write_to_path(str(other))
        gateway = make(tls=self.context(authority))
        strange = Trust(other, "the system's bundle")
        check(examined(gateway.port, trust=[missing, strange, bundle]), "https", OK, "(--ca)")
        found = examined(gateway.port, trust=[missing, strange])
        check(found, "https", PROBLEM, f"looked in {missing}, {strange}", "clamproxy ca install")

    def test_the_gateways_own(self, make: Make, tmp_path: Path) -> None:
        assert own_trust(tmp_path / "ca") == []
        found_authority(tmp_path / "ca", configured_names(Settings())[0], time.time())
        (own,) = own_trust(tmp_path / "ca")
        assert "this gateway's own authority" in str(own)
        assert own.context().cert_store_stats()["x509_ca"] == 1
        for path in (tmp_path / "ca").iterdir():
            path.write_text("{")
        assert own_trust(tmp_path / "ca") == []


class TestDns:
    @pytest.fixture(autouse=True)
    def _names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from clamproxy.doctor.dns_checks import compare_with_gateway

        monkeypatch.setattr(module, "compare_with_gateway", compare_with_gateway)

    @pytest.mark.parametrize(
        ("advertised", "status", "text"),
        [
            (VERSION, OK, "which is what the gateway serves"),
            (VERSION + 1, WARNING, "perhaps a new release"),
            (VERSION + 2, PROBLEM, "2 releases behind"),
            (VERSION - 1, WARNING, f"the gateway already serves {VERSION}"),
        ],
    )
    def test_agreement(self, make: Make, dns: FakeDns, advertised: int, status: Status, text: str) -> None:
        dns.versions["daily"] = advertised
        check(examined(make().port, dns=dns), "dns", status, text)

    @pytest.mark.parametrize(
        ("mode", "text"),
        [
            (Mode.NXDOMAIN, "does not exist"),
            (Mode.SERVFAIL, "no version record"),
            (Mode.GARBAGE, "not a version record"),
            (Mode.SHORT, "not a version record"),
            (Mode.STALE, "older than 12 hours"),
        ],
    )
    def test_no_record(self, make: Make, dns: FakeDns, mode: Mode, text: str) -> None:
        dns.mode = mode
        check(examined(make().port, dns=dns), "dns", WARNING, text, "--no-dns")

    def test_without_the_gateway(self, make: Make, dns: FakeDns) -> None:
        gateway = make()
        gateway.close()
        check(examined(gateway.port, dns=dns), "dns", OK, f"DNS advertises daily {VERSION}")
