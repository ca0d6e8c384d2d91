"""Origins that are reached at given addresses: everything but the connection goes by the name in the URL."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from clamproxy.config.settings import UpstreamSection
from clamproxy.config.units import Address
from clamproxy.doctor.reach import reach
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.upstream import OriginError, Upstream
from tests.support.gateway import free_ports
from tests.support.origin import OriginServer
from tests.support.stored import NEW

HOST, PATH = "cdn.example.net", "/daily-5.cdiff"
SILENT = Address("127.0.0.1", free_ports(1)[0])
"""Where nobody listens."""


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


def serve(authority: trustme.CA, name: str) -> tuple[OriginServer, list[str | None]]:
    """An origin with a certificate, and the names that clients ask for by SNI."""
    context, names = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), list[str | None]()
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda _, asked, __: names.append(asked)
    return OriginServer(context), names


def fetch(url: str, tmp_path: Path, addresses: Sequence[Address]) -> bytes:
    upstream = Upstream(
        url,
        proxy=None,
        ca_bundle=tmp_path / "ca.pem",
        connect_timeout=5.0,
        read_timeout=5.0,
        via="1.1 clamproxy-test",
        count=lambda requests, length: None,
        addresses=addresses,
    )
    try:
        with upstream.get(PATH, NEW) as answer:
            return b"".join(answer.chunks())
    finally:
        upstream.close()


@pytest.mark.parametrize("before", [(), (SILENT,), (SILENT, SILENT)])
def test_the_first_address_that_answers_is_used(
    authority: trustme.CA, tmp_path: Path, before: tuple[Address, ...]
) -> None:
    origin, names = serve(authority, HOST)
    with origin:
        origin.put(PATH.removeprefix("/"), b"0123456789")
        url, addresses = f"https://{HOST}:{origin.port}", (*before, Address("127.0.0.1", origin.port))
        assert fetch(url, tmp_path, addresses) == b"0123456789"
        (seen,) = origin.requests()
        assert (seen.headers["host"], names) == (f"{HOST}:{origin.port}", [HOST])
        section = UpstreamSection.model_construct(
            url=url, address=addresses, proxy=None, ca_bundle=tmp_path / "ca.pem"
        )
        assert f"a connection to {HOST}" in reach(section, 5)


def test_without_a_port_the_urls_counts(authority: trustme.CA, tmp_path: Path) -> None:
    origin, _ = serve(authority, HOST)
    with origin:
        origin.put(PATH.removeprefix("/"), b"0123456789")
        assert fetch(f"https://{HOST}:{origin.port}", tmp_path, [Address("127.0.0.1")]) == b"0123456789"


def test_the_certificate_must_have_the_name_in_the_url(authority: trustme.CA, tmp_path: Path) -> None:
    origin, _ = serve(authority, "127.0.0.1")
    with origin, pytest.raises(OriginError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(f"https://{HOST}:{origin.port}", tmp_path, [Address("127.0.0.1")])


def test_if_nobody_answers_the_origin_is_unreachable(authority: trustme.CA, tmp_path: Path) -> None:
    with pytest.raises(OriginError) as caught:
        fetch(f"http://{HOST}", tmp_path, [SILENT, SILENT])
    assert caught.value.failure is FailureKind.UNREACHABLE
