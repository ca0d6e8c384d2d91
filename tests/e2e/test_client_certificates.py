"""Machines that present a certificate of access.client_ca, and those that don't, with the real freshclam."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from clamproxy.access.users import user_line
from tests.support.freshclam import OK, Outcome
from tests.support.gateway import TunnelRefused, Way
from tests.support.site import Site, eventually

from .conftest import MakeSite

VERSION = 6
HOST = "database.clamav.net"


class Machines:
    """An authority that signs machines' certificates, and what it has signed."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.authority, self.file = directory, trustme.CA(), directory / "machines.pem"
        self.authority.cert_pem.write_to_path(self.file)
        self.known = self.issue("known", self.authority)
        self.foreign = self.issue("foreign", trustme.CA())

    def issue(self, name: str, authority: trustme.CA) -> dict[str, str]:
        """The environment of a machine that has a certificate."""
        issued = authority.issue_cert(f"{name}.example.net")
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return {"FRESHCLAM_CLIENT_CERT": str(certificate), "FRESHCLAM_CLIENT_KEY": str(key)}

    def revoke(self, machine: dict[str, str]) -> None:
        """Put a revocation list into the file, as an administrator would do at any time."""
        authority = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        key = serialization.load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        assert isinstance(key, EllipticCurvePrivateKey)
        lost = x509.load_pem_x509_certificate(Path(machine["FRESHCLAM_CLIENT_CERT"]).read_bytes())
        now = datetime.datetime.now(datetime.UTC)
        entry = (
            x509.RevokedCertificateBuilder().serial_number(lost.serial_number).revocation_date(now).build()
        )
        revoked = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.subject)
            .last_update(now - datetime.timedelta(hours=1))
            .next_update(now + datetime.timedelta(days=1))
            .add_revoked_certificate(entry)
            .sign(key, hashes.SHA256())
        )
        text = self.authority.cert_pem.bytes() + revoked.public_bytes(serialization.Encoding.PEM)
        written = self.file.with_suffix(".new")
        written.write_bytes(text)
        written.replace(self.file)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


type Start = Callable[..., Site]


@pytest.fixture(params=[True, False], ids=["lane", "mitmproxy"])
def start(request: pytest.FixtureRequest, make_site: MakeSite, machines: Machines) -> Start:
    """Starts a gateway that asks for certificates."""

    def make(**access: object) -> Site:
        site: Site = make_site(
            access={"client_ca": str(machines.file), **access}, serving={"express": request.param}
        )
        site.publish(VERSION)
        return site

    return make


def run(site: Site, name: str, way: Way, environment: dict[str, str], *extra: str) -> Outcome:
    client = site.client(name, way, extra=list(extra))
    client.environment |= environment
    return client.run()


def assert_refused(outcome: Outcome) -> None:
    assert outcome.code != OK, outcome.output
    assert outcome.databases == {}
    assert not outcome.cooling, outcome.output


def test_freshclam_with_and_without_a_certificate(start: Start, machines: Machines) -> None:
    site = start()
    outcome = run(site, "known", Way.CONNECT_HTTPS, machines.known)
    assert (outcome.code, outcome.version) == (OK, VERSION), outcome.output + site.gateway.log
    assert_refused(run(site, "without", Way.CONNECT_HTTPS, {}))
    assert_refused(run(site, "foreign", Way.CONNECT_HTTPS, machines.foreign))
    assert_refused(run(site, "plain", Way.CONNECT_HTTP, machines.known))
    assert eventually(lambda: "peer did not return a certificate" in site.gateway.log), site.gateway.log
    assert "Traceback" not in site.gateway.log


def test_a_revoked_certificate_is_refused_from_then_on(start: Start, machines: Machines) -> None:
    site, lost = start(), machines.issue("lost", machines.authority)
    assert run(site, "lost", Way.CONNECT_HTTPS, lost).code == OK
    machines.revoke(lost)
    assert_refused(run(site, "lost again", Way.CONNECT_HTTPS, lost))
    outcome = run(site, "known", Way.CONNECT_HTTPS, machines.known)
    assert outcome.code == OK, outcome.output + site.gateway.log
    assert "certificate revoked" in site.gateway.log, site.gateway.log


def test_a_file_that_becomes_useless_changes_nothing(start: Start, machines: Machines) -> None:
    site = start()
    for name, text in (("empty", b""), ("half", machines.file.read_bytes()[:100])):
        machines.file.write_bytes(text)
        assert run(site, name, Way.CONNECT_HTTPS, machines.known).code == OK, site.gateway.log
        assert_refused(run(site, f"{name} foreign", Way.CONNECT_HTTPS, machines.foreign))
    assert site.gateway.log.count("access.client_ca stays as it was") >= 1


def test_a_revocation_list_that_is_cut_off_changes_nothing(start: Start, machines: Machines) -> None:
    """A file that is being copied, for example."""
    lost = machines.issue("lost", machines.authority)
    machines.revoke(lost)
    site, whole = start(), machines.file.read_bytes()
    for number, text in enumerate((whole[:-40], whole[:-8], whole[: whole.index(b"N X509 CRL")])):
        machines.file.write_bytes(text)
        assert_refused(run(site, f"lost {number}", Way.CONNECT_HTTPS, lost))
        assert run(site, f"known {number}", Way.CONNECT_HTTPS, machines.known).code == OK, site.gateway.log
    assert "access.client_ca stays as it was" in site.gateway.log


def test_a_second_authority_needs_a_list_as_well(start: Start, machines: Machines) -> None:
    second = trustme.CA()
    machines.revoke(machines.issue("lost", machines.authority))
    machines.file.write_bytes(machines.file.read_bytes() + second.cert_pem.bytes())
    site = start()
    assert run(site, "known", Way.CONNECT_HTTPS, machines.known).code == OK, site.gateway.log
    assert_refused(run(site, "other", Way.CONNECT_HTTPS, machines.issue("other", second)))
    # mitmproxy words it like OpenSSL.
    reasons = ("no revocation list of its authority", "unable to get certificate CRL")
    assert any(reason in site.gateway.log for reason in reasons), site.gateway.log


def test_a_file_that_is_cut_off_prevents_the_start(make_site: MakeSite, machines: Machines) -> None:
    machines.revoke(machines.known)
    whole = machines.file.read_bytes()
    for text in (whole[:-8], whole[: whole.index(b"N X509 CRL")]):
        machines.file.write_bytes(text)
        with pytest.raises(RuntimeError, match="expected a complete file, without half a PEM block"):
            make_site(access={"client_ca": str(machines.file)})


def test_a_user_may_log_in_over_http_instead(start: Start, machines: Machines) -> None:
    site = start(users=[user_line("alice", "secret")])
    login = ("HTTPProxyUsername alice", "HTTPProxyPassword secret")
    assert run(site, "alice", Way.CONNECT_HTTP, {}, *login).code == OK, site.gateway.log
    assert run(site, "known", Way.CONNECT_HTTPS, machines.known).code == OK, site.gateway.log
    assert_refused(run(site, "nobody", Way.CONNECT_HTTP, {}))
    assert_refused(run(site, "without", Way.CONNECT_HTTPS, {}, *login))


def test_nothing_is_served_to_whoever_presents_none(start: Start) -> None:
    site = start()
    with pytest.raises(TunnelRefused) as caught:
        site.gateway.ask("/test.cvd")
    assert caught.value.status == 407
    assert site.gateway.ask("/test.cvd", Way.ABSOLUTE).status == 407
    assert site.gateway.ask("/test.cvd", Way.ABSOLUTE, host=f"127.0.0.1:{site.gateway.port}").status == 401
    # TLS is expected in the tunnel, but whoever speaks plain HTTP there is not let in either.
    with site.gateway.connection(Way.CONNECT_HTTP, host=f"{HOST}:443") as connection:
        connection.request("GET", "/test.cvd", headers={"Host": HOST})
        assert connection.getresponse().status in (401, 407)
    with pytest.raises((ssl.SSLError, OSError)):
        site.gateway.ask("/test.cvd", Way.CONNECT_HTTPS)


def test_a_certificate_counts_after_a_change_of_servers(start: Start, machines: Machines) -> None:
    """A request that isn't ordinary goes from the lane to mitmproxy, in the middle of TLS."""
    site = start()
    context = ssl.create_default_context(cafile=str(site.gateway.ca))
    context.load_cert_chain(machines.known["FRESHCLAM_CLIENT_CERT"], machines.known["FRESHCLAM_CLIENT_KEY"])
    with site.gateway.connection(Way.CONNECT_HTTP, host=f"{HOST}:443") as connection:
        assert connection.sock is not None
        connection.sock = context.wrap_socket(connection.sock, server_hostname=HOST)
        for headers in ({}, {"X-Long": "x" * 6000}, {}):
            connection.request("GET", "/test.cvd", headers={"Host": HOST, "User-Agent": "x", **headers})
            response = connection.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(start: Start, machines: Machines, version: ssl.TLSVersion) -> None:
    """The certificate is checked each time: it may have expired since, or its authority's list."""
    site = start()
    context = ssl.create_default_context(cafile=str(site.gateway.ca))
    context.maximum_version = version
    context.load_cert_chain(machines.known["FRESHCLAM_CLIENT_CERT"], machines.known["FRESHCLAM_CLIENT_KEY"])
    session = None
    for _ in range(2):
        with site.gateway.connection(Way.CONNECT_HTTP, host=f"{HOST}:443") as connection:
            assert connection.sock is not None
            sock = context.wrap_socket(connection.sock, server_hostname=HOST, session=session)
            connection.sock = sock
            connection.request("GET", "/test.cvd", headers={"Host": HOST, "User-Agent": "x"})
            response = connection.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True)
            assert not sock.session_reused
            session = sock.session


def test_the_file_must_be_readable_at_the_start(make_site: MakeSite, tmp_path: Path) -> None:
    missing = os.fspath(tmp_path / "none.pem")
    with pytest.raises(RuntimeError, match="readable file of PEM certificates"):
        make_site(access={"client_ca": missing})
