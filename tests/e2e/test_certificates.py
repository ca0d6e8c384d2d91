"""The gateway's own certificate authority, with the real openssl and the real freshclam."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clamproxy.authority import Generation, configured_names, found
from clamproxy.authority.keyfile import FILE, read_state
from clamproxy.config.loading import load_settings
from tests.support.freshclam import OK, Outcome
from tests.support.gateway import CDN, Gateway, Way
from tests.support.scenes import explain
from tests.support.site import Site, eventually

from .conftest import MakeSite

OPENSSL_LIMIT = 60
FOREIGN = "www.example.com"


@pytest.fixture(scope="module", autouse=True)
def _openssl() -> None:
    if shutil.which("openssl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("openssl is not installed")
        pytest.skip("openssl is not installed")


@pytest.fixture
def secured(site: Site) -> Site:
    """A site whose proxy was running when its authority was made; version 5 is released."""
    settings = load_settings(site.gateway.config, {})
    found(settings.tls.directory, configured_names(settings)[0], time.time())
    site.publish(5)
    return site


def certificates_of(site: Site, name: str) -> Path:
    """What clients have to trust at the moment, in a file."""
    path = site.directory / name
    path.write_bytes(served(site.gateway))
    return path


def served(gateway: Gateway) -> bytes:
    """/ca.pem, as a machine fetches it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{gateway.port}/ca.pem", timeout=30) as answer:
        body: bytes = answer.read()
        return body


def rotated(site: Site) -> tuple[Path, Path]:
    """Begin a rotation; returns what clients got before and after."""
    before = certificates_of(site, "before.pem")
    told = site.gateway.tool("ca", "rotate")
    assert told.returncode == 0, told.stderr
    return before, certificates_of(site, "after.pem")


def update(site: Site, name: str, bundle: Path) -> Outcome:
    """A new machine that trusts a bundle updates by https."""
    return site.client(name, Way.CONNECT_HTTPS, environment={"CURL_CA_BUNDLE": str(bundle)}).run()


def listens(gateway: Gateway) -> bool:
    try:
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5).close()
    except OSError:
        return False
    return True


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["openssl", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=OPENSSL_LIMIT,
    )


def connect(
    gateway: Gateway, bundle: Path, name: str = CDN, *, way: Way = Way.CONNECT_HTTPS
) -> subprocess.CompletedProcess[str]:
    """A handshake of `openssl s_client`, which looks for a name in the certificate."""
    place = (
        ("-connect", f"127.0.0.1:{gateway.reverse_port}")
        if way is Way.REVERSE
        else ("-proxy", f"127.0.0.1:{gateway.port}", "-connect", f"{CDN}:443")
    )
    checks = ("-verify_hostname", name, "-verify_return_error", "-CAfile", str(bundle), "-no-CApath")
    return openssl("s_client", *place, "-servername", name, *checks, "-showcerts")


def shown_certificate(result: subprocess.CompletedProcess[str]) -> x509.Certificate:
    """The certificate that the server has shown."""
    assert result.returncode == 0, result.stdout + result.stderr
    return x509.load_pem_x509_certificate(result.stdout.encode())


def generations(gateway: Gateway) -> tuple[Generation, ...]:
    return read_state(gateway.directory / "ca")


class TestHandshake:
    """What the proxy shows."""

    def test_leaf(self, secured: Site) -> None:
        bundle = certificates_of(secured, "ca.pem")
        result = connect(secured.gateway, bundle)
        leaf = shown_certificate(result)
        assert "Verify return code: 0 (ok)" in result.stdout
        (generation,) = generations(secured.gateway)
        key = leaf.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert (key.curve.name, key == generation.certificate.public_key()) == ("secp256r1", False)
        leaf.verify_directly_issued_by(generation.certificate)
        # The next client gets the same one.
        assert shown_certificate(connect(secured.gateway, bundle)) == leaf

    def test_openssl_verifies_the_certificate(self, secured: Site, tmp_path: Path) -> None:
        bundle = certificates_of(secured, "ca.pem")
        leaf = tmp_path / "leaf.pem"
        leaf.write_text(connect(secured.gateway, bundle).stdout)
        verified = openssl(
            *("verify", "-CAfile", str(bundle), "-untrusted", str(leaf)),
            *("-purpose", "sslserver", "-x509_strict", str(leaf)),
        )
        assert (verified.returncode, verified.stdout) == (0, f"{leaf}: OK\n"), verified.stderr
        text = openssl("x509", "-in", str(leaf), "-noout", "-text").stdout
        assert "NIST CURVE: P-256" in text
        assert "TLS Web Server Authentication" in text

    def test_reverse_mode(self, secured: Site) -> None:
        """serving.hosts are among the names: localhost in the tests."""
        result = connect(secured.gateway, certificates_of(secured, "ca.pem"), "localhost", way=Way.REVERSE)
        assert shown_certificate(result).issuer == generations(secured.gateway)[0].certificate.subject

    @pytest.mark.parametrize("way", [Way.CONNECT_HTTPS, Way.REVERSE])
    def test_foreign_name_is_refused(self, secured: Site, way: Way) -> None:
        result = connect(secured.gateway, certificates_of(secured, "ca.pem"), FOREIGN, way=way)
        assert result.returncode != 0
        assert "unrecognized name" in result.stderr, result.stderr
        assert "BEGIN CERTIFICATE" not in result.stdout

        def told() -> list[str]:
            return [line for line in secured.gateway.log.splitlines() if FOREIGN in line]

        assert eventually(told)
        # Other lines of this connection would be there by the time that another one is served.
        shown_certificate(connect(secured.gateway, certificates_of(secured, "ca.pem")))
        assert len(told()) == 1, secured.gateway.log
        assert "TLS refused" in told()[0]


@pytest.fixture(scope="module")
def stolen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Generation, Path]:
    directory = tmp_path_factory.mktemp("stolen")
    gateway = Gateway(directory, {})
    assert gateway.tool("ca", "init").returncode == 0
    bundle = directory / "ca.pem"
    bundle.write_text(gateway.tool("ca", "export").stdout)
    return read_state(directory / "ca")[0], bundle


class TestStolenKey:
    """Whoever has the authority's key can impersonate none but the configured hosts."""

    @pytest.mark.parametrize(
        "names",
        [[x509.DNSName(CDN)], [x509.DNSName("clamav.net")], [x509.DNSName("db.de.clamav.net")]],
        ids=lambda names: names[0].value,
    )
    def test_own_names(
        self, stolen: tuple[Generation, Path], names: list[x509.GeneralName], tmp_path: Path
    ) -> None:
        generation, _ = stolen
        assert verify(stolen, signed(generation, names), tmp_path) == ""

    def test_key_of_the_root(self, stolen: tuple[Generation, Path]) -> None:
        """A verifier may overlook the constraints of what it trusts: what the key signs is below that."""
        generation, bundle = stolen
        assert x509.load_pem_x509_certificates(bundle.read_bytes()) == [generation.root]
        assert generation.root.public_key() != generation.key.public_key()
        assert generation.certificate.public_key() == generation.key.public_key()
        constraints = generation.certificate.extensions.get_extension_for_class(x509.NameConstraints)
        assert constraints.critical

    @pytest.mark.parametrize(
        "names",
        [
            [x509.DNSName(FOREIGN)],
            [x509.DNSName("clamav.net.example.com")],
            [x509.DNSName("notclamav.net")],
            [x509.DNSName("*.net")],
            [x509.DNSName(CDN), x509.DNSName(FOREIGN)],
            [x509.IPAddress(ipaddress.ip_address("192.0.2.1"))],
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))],
            [x509.IPAddress(ipaddress.ip_address("2001:db8::1"))],
            [x509.RFC822Name("root@example.com")],
            [x509.UniformResourceIdentifier(f"https://{FOREIGN}/")],
        ],
        ids=lambda names: "+".join(str(name.value) for name in names),
    )
    def test_foreign_names(
        self, stolen: tuple[Generation, Path], names: list[x509.GeneralName], tmp_path: Path
    ) -> None:
        generation, _ = stolen
        assert "subtree violation" in verify(stolen, signed(generation, names), tmp_path)

    def test_common_name_alone(self, stolen: tuple[Generation, Path], tmp_path: Path) -> None:
        """Old clients take the common name, where there is no other."""
        generation, _ = stolen
        certificate = signed(generation, [], common_name=FOREIGN)
        assert "subtree violation" in verify(stolen, certificate, tmp_path)

    def test_authority_below(self, stolen: tuple[Generation, Path], tmp_path: Path) -> None:
        generation, _ = stolen
        key = ec.generate_private_key(ec.SECP256R1())
        below = signed(generation, None, common_name="below", key=key)
        leaf = signed(replace(generation, certificate=below, key=key), [x509.DNSName(CDN)])
        error = verify(stolen, leaf, tmp_path, below)
        assert "path length constraint exceeded" in error

    def test_other_purposes(self, stolen: tuple[Generation, Path], tmp_path: Path) -> None:
        generation, _ = stolen
        certificate = signed(generation, [x509.DNSName(CDN)], purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
        error = verify(stolen, certificate, tmp_path, purpose="sslclient")
        assert re.search(r"(?i)(unsuitable|unsupported) certificate purpose|invalid CA certificate", error)


def signed(
    issuer: Generation,
    names: Sequence[x509.GeneralName] | None,
    *,
    common_name: str = "",
    key: ec.EllipticCurvePrivateKey | None = None,
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
) -> x509.Certificate:
    """A certificate as a thief would make it; with None for `names` it is an authority itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False)
    )
    if names is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
    return builder.sign(issuer.key, hashes.SHA256())


def verify(
    stolen: tuple[Generation, Path],
    leaf: x509.Certificate,
    directory: Path,
    *below: x509.Certificate,
    purpose: str = "sslserver",
) -> str:
    """`openssl verify`; returns what it says against the certificate."""
    generation, bundle = stolen
    path, chain = directory / "leaf.pem", directory / "chain.pem"
    path.write_bytes(leaf.public_bytes(Encoding.PEM))
    between = (generation.certificate, *below)
    chain.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in between))
    trust = ("-CAfile", str(bundle), "-no-CApath", "-untrusted", str(chain))
    result = openssl("verify", *trust, "-purpose", purpose, str(path))
    assert (result.returncode == 0) == (result.stdout == f"{path}: OK\n"), result.stderr
    return "" if result.returncode == 0 else result.stdout + result.stderr


class TestFreshclam:
    """The real freshclam, by https."""

    def test_update(self, secured: Site) -> None:
        outcome = update(secured, "client", certificates_of(secured, "ca.pem"))
        assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 5}), explain(secured, outcome)

    def test_who_trusts_mitmproxy_only(self, secured: Site) -> None:
        outcome = update(secured, "client", secured.gateway.ca)
        assert outcome.version is None
        assert not outcome.cooling

    def test_overlap(self, secured: Site) -> None:
        """Machines with the bundle of before the rotation go on, as those with the new one do."""
        before, after = rotated(secured)
        assert [path.read_text().count("BEGIN CERT") for path in (before, after)] == [1, 2]
        for bundle in (before, after):
            outcome = update(secured, f"client-{bundle.stem}", bundle)
            assert outcome.version == 5, explain(secured, outcome)
        assert secured.gateway.tool("ca", "rotate").returncode == 1

    def test_finished_rotation(self, secured: Site) -> None:
        before, after = rotated(secured)
        assert secured.gateway.tool("ca", "rotate", "--finish", "--early").returncode == 0
        assert update(secured, "client-before", before).version is None
        outcome = update(secured, "client-after", after)
        assert outcome.version == 5, explain(secured, outcome)
        assert served(secured.gateway).decode() in after.read_text()

    def test_next_certificate_signs_by_itself(self, secured: Site) -> None:
        gateway = secured.gateway
        assert gateway.tool("ca", "rotate", "--overlap", "2s").returncode == 0
        bundle = certificates_of(secured, "ca.pem")
        last = generations(gateway)[-1]
        signer = last.certificate.subject
        assert eventually(lambda: shown_certificate(connect(gateway, bundle)).issuer == signer)
        outcome = update(secured, "client", bundle)
        assert outcome.version == 5, explain(secured, outcome)
        # The former one is still in the bundle, though behind it.
        shown = x509.load_pem_x509_certificates(served(gateway))
        assert [certificate == last.root for certificate in shown] == [True, False]

    def test_debian_snippet(self, secured: Site, tmp_path: Path) -> None:
        """Run under directories of the test, with a systemctl that only notes what it is told."""
        script = secured.gateway.tool("ca", "install", "--for", "debian").stdout
        root, tools = tmp_path / "root", tmp_path / "tools"
        for place in (root / "run/systemd/system", tools):
            place.mkdir(parents=True)
        (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
        (tools / "systemctl").chmod(0o755)
        script = re.sub(r"(?<=[\s\"])/(?=usr/local/|etc/systemd/|run/)", f"{root}/", script)
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        result = subprocess.run(
            ["sh"], input=script, env=environment, text=True, capture_output=True, timeout=OPENSSL_LIMIT
        )
        assert (result.returncode, result.stderr) == (0, "")
        told = (tmp_path / "told").read_text().splitlines()
        assert told == ["daemon-reload", "try-restart clamav-freshclam.service"]
        drop_in = (root / "etc/systemd/system/clamav-freshclam.service.d/clamproxy.conf").read_text()
        variable = re.search(r"^\[Service\]\nEnvironment=CURL_CA_BUNDLE=(\S+)$", drop_in, re.MULTILINE)
        assert variable is not None
        outcome = update(secured, "client", Path(variable[1]))
        assert (outcome.code, outcome.version) == (OK, 5), explain(secured, outcome)


class TestLife:
    """Which authority is used, and what is said about it."""

    def test_a_gateway_without_an_authority(self, site: Site) -> None:
        """mitmproxy's goes on being used."""
        site.publish(5)
        assert eventually(lambda: "clamproxy ca init" in site.gateway.log), site.gateway.log
        assert site.gateway.log.count("HTTPS clients have to trust") == 1
        assert served(site.gateway) == site.gateway.ca.read_bytes()
        outcome = update(site, "client", site.gateway.ca)
        assert (outcome.code, outcome.version) == (OK, 5), explain(site, outcome)
        assert site.gateway.tool("ca", "export").returncode == 1

    def test_the_authority_is_used_after_a_restart(self, secured: Site) -> None:
        bundle = certificates_of(secured, "ca.pem")
        secured.gateway.stop()
        secured.gateway.start()
        leaf = shown_certificate(connect(secured.gateway, bundle))
        assert leaf.issuer == generations(secured.gateway)[0].certificate.subject
        told = [line for line in secured.gateway.log.splitlines() if "HTTPS clients have to trust" in line]
        assert str(secured.gateway.directory / "ca") in told[-1]

    def test_a_damaged_authority_stops_the_start(self, secured: Site) -> None:
        secured.gateway.stop()
        (secured.gateway.directory / "ca" / FILE).write_text("{")
        with suppress(RuntimeError):  # it may listen for a moment before the error ends it
            secured.gateway.start()
        assert eventually(lambda: not listens(secured.gateway)), secured.gateway.log
        assert eventually(lambda: "damaged" in secured.gateway.log)
        assert "Traceback" not in secured.gateway.log

    def test_a_lost_authority_is_not_replaced_by_mitmproxys(self, secured: Site) -> None:
        bundle = certificates_of(secured, "ca.pem")
        leaf = shown_certificate(connect(secured.gateway, bundle))
        (secured.gateway.directory / "ca" / FILE).unlink()
        assert shown_certificate(connect(secured.gateway, bundle)).issuer == leaf.issuer
        assert eventually(lambda: "stays as it was" in secured.gateway.log), secured.gateway.log

    def test_configured_names(self, make_site: MakeSite) -> None:
        site = make_site(environment={"CLAMPROXY_TLS__NAMES": "[gateway.example.net]"})
        assert site.gateway.tool("ca", "init").returncode == 0
        bundle = certificates_of(site, "ca.pem")
        shown_certificate(connect(site.gateway, bundle, "gateway.example.net", way=Way.REVERSE))
