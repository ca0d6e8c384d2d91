"""A whole site on loopback: a fake CDN, a fake DNS server, the proxy, and freshclam installations."""

from __future__ import annotations

import io
import itertools
import os
import ssl
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trustme

from clamproxy.formats.cld import verify_cld
from clamproxy.formats.signatures import CLAMAV_KEYS
from clamproxy.objects import Kind, ObjectId
from tests.support.data import TESTDATA, read_testdata
from tests.support.dns_server import FakeDns, namespace_refusal, open_dns
from tests.support.faults import Fault, replaced
from tests.support.freshclam import Freshclam
from tests.support.gateway import ADDON, CDN, Gateway, Settings, Way
from tests.support.origin import OriginServer

HOSTS = [CDN, "db.local.clamav.net", "db.*.clamav.net", "localhost"]
LOCALHOST = "127.0.0.1"


def signed(name: str) -> bytes:
    """A file of the test data, signed by ClamAV."""
    return read_testdata(name)


def build_time(version: int) -> int:
    """When a test CVD was built, in Unix seconds; clients send it as If-Modified-Since."""
    return int(signed(f"test-{version}.cvd")[:512].split(b":")[8])


def flipped(body: bytes, position: int = -100) -> bytes:
    """The same bytes with one changed."""
    changed = bytearray(body)
    changed[position] ^= 0xFF
    return bytes(changed)


def publish(origin: OriginServer, version: int, *, advertised: int | None = None) -> None:
    """Put a release of database test on the CDN.

    Args:
        origin: the CDN.
        version: of test.cvd.
        advertised: cdiffs exist up to this version, `version` by default.
    """
    origin.put("test.cvd", signed(f"test-{version}.cvd"))
    origin.put(f"test-{version}.cvd.sign", signed(f"test-{version}.cvd.sign"))
    for patch in range(2, min(advertised or version, 6) + 1):
        origin.put(f"test-{patch}.cdiff", signed(f"test-{patch}.cdiff"))
        origin.put(f"test-{patch}.cdiff.sign", signed(f"test-{patch}.cdiff.sign"))


def assert_proven_cld(body: bytes) -> None:
    """A CLD that the gateway built is made of what ClamAV signed."""
    version = int(body[:512].split(b":")[2])
    verify_cld(io.BytesIO(body), ObjectId("test", version, Kind.CLD), CLAMAV_KEYS)


type Break = Callable[[OriginServer], object]
"""Something that goes wrong at the CDN."""


def lacks(name: str) -> Break:
    """A file is missing."""
    return lambda origin: origin.remove(name)


def answers(path: str, fault: Fault, *, times: int | None = None) -> Break:
    """Requests are answered with a fault; see `OriginServer.rule`."""
    return lambda origin: origin.rule(path, fault, times=times)


def corrupts(path: str, name: str, *, times: int | None = None) -> Break:
    """One byte of a file is wrong, while all checksums of the transport are right."""
    return lambda origin: origin.rule(path, replaced(flipped(signed(name))), times=times)


def swaps(path: str, name: str, *, modified: str | None = "keep") -> Break:
    """A file has the content of another file of the test data."""
    return lambda origin: origin.rule(path, Fault(body=signed(name), modified=modified))


def http_date(seconds: float) -> str:
    """A date as HTTP headers have it."""
    return formatdate(seconds, usegmt=True)


@dataclass(slots=True)
class Site:
    """The parts of one test."""

    directory: Path
    origin: OriginServer
    dns: FakeDns
    gateway: Gateway

    def publish(self, version: int, *, advertised: int | None = None) -> None:
        """Release a version of database test: files on the CDN, and DNS advertises it."""
        publish(self.origin, version, advertised=advertised)
        self.dns.versions["test"] = advertised or version

    def client(
        self,
        name: str = "client",
        way: Way = Way.CONNECT_HTTP,
        *,
        local: int | None = None,
        use_dns: bool = False,
        **options: Any,
    ) -> Freshclam:
        """An installation of freshclam whose requests reach the proxy in one of the ways.

        Args:
            name: of its directory.
            way: how.
            local: the version that it already has.
            use_dns: DNS mode; the test is skipped where it is impossible.
            options: fields of `Freshclam`.
        """
        resolver = resolver_of(self.dns) if use_dns else None
        fields = client_fields(way, self.gateway) | {"resolver": resolver} | options
        client = Freshclam(directory=self.directory / name, **fields)
        if local is not None:
            client.install(TESTDATA / f"test-{local}.cvd")
        return client

    def warm(self, version: int) -> None:
        """Release a version and let two clients fetch it, so that its CVD and cdiff are in the cache.

        Afterwards, the origin's record is empty.
        """
        self.publish(version)
        fresh = self.client("warm-fresh").run()
        updated = self.client("warm-updated", local=version - 1).run()
        assert (fresh.version, updated.version) == (version, version), fresh.output + updated.output
        self.origin.forget()

    def assert_nothing_bad_is_stored(self, *also: bytes) -> None:
        """Whatever the proxy serves without the origin is a file as ClamAV signed it.

        Args:
            also: further bodies that are right: the empty cdiff.
        """
        self.origin.refuse()
        right = {signed(path.name) for path in TESTDATA.glob("test-*") if path.suffix != ".cld"} | set(also)
        for name in ("test.cvd", *(f"test-{patch}.cdiff" for patch in range(2, 7)), "test.cld"):
            answer = self.gateway.ask(f"/{name}")
            assert answer.status in (200, 404, 503), (name, answer.status)
            if answer.status == 200 and answer.complete and name == "test.cld":
                assert_proven_cld(answer.body)
            elif answer.status == 200 and answer.complete:
                assert answer.body in right, name

    def close(self) -> None:
        """Stop all."""
        self.gateway.kill()
        self.dns.close()
        self.origin.close()


def client_fields(way: Way, gateway: Gateway) -> dict[str, Any]:
    """The configuration of freshclam for each way in (docs/protocol.md 1.4)."""
    if way is Way.CONNECT_HTTP:
        return {"mirrors": [f"http://{CDN}"], "proxy": (LOCALHOST, gateway.port)}
    if way is Way.CONNECT_HTTPS:
        trust = {"CURL_CA_BUNDLE": str(gateway.ca)}
        return {"mirrors": [f"https://{CDN}"], "proxy": (LOCALHOST, gateway.port), "environment": trust}
    if way is Way.ABSOLUTE:
        return {
            "mirrors": [f"http://{CDN}"],
            "environment": {"http_proxy": f"http://{LOCALHOST}:{gateway.port}"},
        }
    return {"mirrors": [f"http://{LOCALHOST}:{gateway.reverse_port}"]}


def resolver_of(dns: FakeDns) -> str:
    """The address by which freshclam reaches a fake DNS server; skips the test if it can't."""
    reason = _namespace_refusal() if dns.port == 53 else "port 53 cannot be bound"
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)
    return dns.address


@cache
def _namespace_refusal() -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        return namespace_refusal(Path(directory))


def settings_for(origin: OriginServer, dns: FakeDns, **sections: dict[str, Any]) -> Settings:
    """A proxy.yaml for tests, with short times and the fake servers; `sections` are laid over it.

    An origin that is silent is given up after a few seconds: on a busy machine, an answer may take two.
    """
    settings: Settings = {
        "upstream": {"url": origin.url, "connect_timeout": "6s", "read_timeout": "6s"},
        "versions": {"nameservers": [dns.nameserver], "refresh": "1s"},
        "serving": {"hosts": HOSTS},
    }
    for name, section in sections.items():
        settings[name] = settings.get(name, {}) | section
    return settings


def open_site(
    directory: Path,
    *,
    tls: ssl.SSLContext | None = None,
    script: str = ADDON,
    environment: dict[str, str] | None = None,
    workers: int = 1,
    **sections: dict[str, Any],
) -> Site:
    """Start a site.

    Args:
        directory: for all its files.
        tls: makes the origin an HTTPS server.
        script: what mitmdump loads.
        environment: more variables for the proxy.
        workers: as for `Gateway`.
        sections: what is different in proxy.yaml.
    """
    origin, dns = OriginServer(tls), open_dns()
    gateway = Gateway(
        directory / "gateway",
        settings_for(origin, dns, **sections),
        script=script,
        environment=environment,
        workers=workers,
    )
    site = Site(directory, origin, dns, gateway)
    try:
        gateway.start()
    except BaseException:
        site.close()
        raise
    return site


class SitePool:
    """Starts sites before the tests that take them, because starting the proxy takes a while."""

    AHEAD = 2

    def __init__(self, directory: Path) -> None:
        self._directories = (directory / f"site-{number}" for number in itertools.count())
        self._executor = ThreadPoolExecutor(2)
        self._ready: deque[Future[Site]] = deque()

    def take(self) -> Site:
        """A site that no other test has used."""
        while len(self._ready) <= self.AHEAD:
            self._ready.append(self._executor.submit(open_site, next(self._directories)))
        return self._ready.popleft().result()

    def close(self) -> None:
        """Stop the sites that nobody took."""
        self._executor.shutdown(cancel_futures=True)
        for future in self._ready:
            if not future.cancelled() and future.exception() is None:
                future.result().close()


def origin_certificates(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A TLS context for the origin, and the CA bundle that trusts it."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", LOCALHOST).configure_cert(context)
    bundle = directory / "origin-ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    return context, bundle


def eventually[T](look: Callable[[], T], *, limit: float = 40.0, every: float = 0.2) -> T:
    """Look repeatedly until the result is true; returns the last result.

    Args:
        look: what to evaluate.
        limit: seconds.
        every: seconds between looks.
    """
    deadline = time.monotonic() + limit
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(every)
    return found
