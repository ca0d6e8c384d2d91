"""Who is asked for a TXT record: name servers, or a DNS-over-HTTPS server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from clamproxy.config.units import HttpProxy
from clamproxy.origin import resolver as resolver_module
from clamproxy.origin.resolver import LARGEST_MESSAGE, DnsResolver, DohResolver
from tests.support.dns_server import PRIMARY, FakeDns, Mode
from tests.support.doh_server import ConnectProxy, FakeDoh
from tests.support.site import origin_certificates


class ResolverHarness:
    """A DNS-over-HTTPS server, and resolvers that trust it."""

    def __init__(self, dns: FakeDns, doh: FakeDoh, bundle: Path) -> None:
        self.dns, self.doh, self.bundle = dns, doh, bundle
        self.made: list[DohResolver] = []

    def make(self, proxy: HttpProxy | None = None, *, trusts: bool = True) -> DohResolver:
        self.made.append(DohResolver(self.doh.url, proxy, self.bundle if trusts else None))
        return self.made[-1]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ResolverHarness]:
    tls, bundle = origin_certificates(tmp_path)
    with FakeDns() as dns, FakeDoh(dns, tls) as doh:
        harness = ResolverHarness(dns, doh, bundle)
        yield harness
        for resolver in harness.made:
            resolver.close()


@pytest.mark.parametrize("name", [PRIMARY, "test.cvd.clamav.net"])
async def test_both_resolvers_get_the_same_record(harness: ResolverHarness, name: str) -> None:
    harness.dns.versions["test"] = 6
    plain = DnsResolver([(harness.dns.address, harness.dns.port)])
    text = await harness.make().txt(name)
    assert text.partition(":")[0] in ("1.4.6", "6")
    assert (await plain.txt(name)).partition(":")[0] == text.partition(":")[0]
    plain.close()


async def test_what_goes_over_the_wire(harness: ResolverHarness) -> None:
    """RFC 8484 4.1: id 0; and nothing tells who asks."""
    resolver = harness.make()
    await resolver.txt(PRIMARY)
    await resolver.txt(PRIMARY)
    method, headers = harness.doh.requests[0]
    assert (method, headers["content-type"], headers["accept"]) == ("POST", *["application/dns-message"] * 2)
    assert "user-agent" not in headers
    assert harness.dns.queries == [PRIMARY] * 2


@pytest.mark.parametrize("credentials", [None, "user:p\u00e4ssword"])
async def test_through_a_proxy(harness: ResolverHarness, credentials: str | None) -> None:
    with ConnectProxy(credentials) as proxy:
        resolver = harness.make(HttpProxy(proxy.url, credentials))
        assert (await resolver.txt(PRIMARY)).startswith("1.4.6:")
        assert proxy.tunnels == [f"localhost:{harness.doh.port}"]


async def test_a_proxy_that_refuses(harness: ResolverHarness) -> None:
    with ConnectProxy("user:password") as proxy, pytest.raises(Exception, match="407"):
        await harness.make(HttpProxy(proxy.url, None)).txt(PRIMARY)
    assert harness.dns.queries == []


async def test_a_certificate_that_is_not_trusted(harness: ResolverHarness) -> None:
    with pytest.raises(Exception, match=r"(?i)certificate"):
        await harness.make(trusts=False).txt(PRIMARY)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(Mode.NXDOMAIN, "NXDOMAIN"), (Mode.SERVFAIL, "SERVFAIL"), (Mode.SILENT, ".")],
)
async def test_no_record(harness: ResolverHarness, mode: Mode, reason: str) -> None:
    harness.dns.mode = mode
    with pytest.raises(Exception, match=reason):
        await harness.make().txt(PRIMARY)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": 503}, "status 503"),
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, "status 302"),
        ({"headers": {"Content-Type": "text/html"}}, "'text/html'"),
        ({"body": b""}, "."),
        ({"body": b"<html>"}, "."),
        ({"body": bytes(LARGEST_MESSAGE + 1)}, "too long"),
        ({"body": dns.message.make_query(PRIMARY, "TXT", id=0).to_wire()}, "another question"),
        ({"headers": {"Content-Length": "10000", "Connection": "close"}}, "."),
    ],
)
async def test_answers_that_are_no_use(
    harness: ResolverHarness, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(resolver_module, "DOH_TIMEOUT", 0.5)
    harness.doh.answer = answer
    with pytest.raises(Exception, match=reason):
        await harness.make().txt(PRIMARY)


def respond(change: Callable[[dns.message.Message], None], name: str = PRIMARY) -> bytes:
    answer = dns.message.make_response(dns.message.make_query(name, "TXT", id=0))
    change(answer)
    return answer.to_wire()


def alias(answer: dns.message.Message) -> None:
    answer.answer.append(dns.rrset.from_text(f"{PRIMARY}.", 60, "IN", "CNAME", "versions.example.org."))
    answer.answer.append(dns.rrset.from_text("versions.example.org.", 60, "IN", "TXT", '"one" "two"'))


async def test_an_alias_is_followed_and_the_first_string_counts(harness: ResolverHarness) -> None:
    harness.doh.answer = {"body": respond(alias)}
    assert await harness.make().txt(PRIMARY) == "one"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(respond(lambda answer: None), id="no record"),
        pytest.param(respond(alias, "other.cvd.clamav.net"), id="another name"),
    ],
)
async def test_an_answer_without_the_record(harness: ResolverHarness, body: bytes) -> None:
    harness.doh.answer = {"body": body}
    with pytest.raises(ValueError, match="an answer"):
        await harness.make().txt(PRIMARY)


async def test_a_server_that_never_answers(harness: ResolverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "DOH_LIFETIME", 0.3)
    harness.doh.answer = {"headers": {"Content-Length": "10000"}}
    with pytest.raises(TimeoutError):
        await harness.make().txt(PRIMARY)
