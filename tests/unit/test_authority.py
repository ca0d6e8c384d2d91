"""The certificate authority: what it signs, what it keeps, and how it changes."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import signal
import stat
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, ServerVerifier, Store, VerificationError

from clamproxy.authority import (
    Authority,
    AuthorityError,
    CurrentAuthority,
    ForeignName,
    Generation,
    PermittedNames,
    finish_rotation,
    found,
    rotate,
)
from clamproxy.authority.authority import MAX_LEAVES
from clamproxy.authority.certificates import make_leaf, pem_of, title_of, utc
from clamproxy.authority.keyfile import FILE, locked, read_state
from tests.support.site import eventually

DAY = 86400.0
NOW = float(int(time.time()))
NAMES = PermittedNames(("clamav.net", "gw.example.net"))
HOST = "database.clamav.net"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "ca"


@pytest.fixture
def authority(directory: Path) -> Authority:
    return found(directory, NAMES, NOW)


def bundle_of(authority: Authority, now: float = NOW) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(authority.bundle(now))


class TestCertificates:
    """What is in them."""

    @pytest.mark.parametrize(("attribute", "levels_below"), [("root", 1), ("certificate", 0)])
    def test_authority(self, authority: Authority, attribute: str, levels_below: int) -> None:
        certificate: x509.Certificate = getattr(authority.signer(NOW), attribute)
        extensions = certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, levels_below)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)
        assert not usage.value.digital_signature
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        assert title_of(certificate).startswith("clamproxy CA ")
        assert len(title_of(certificate)) <= 64
        certificate.verify_directly_issued_by(authority.signer(NOW).root)

    def test_key_of_the_root_is_no_more(self, authority: Authority) -> None:
        generation = authority.signer(NOW)
        assert generation.root.public_key() != generation.key.public_key()
        assert (authority.directory / FILE).read_text().count("PRIVATE KEY") == 2  # BEGIN and END

    def test_leaf(self, authority: Authority) -> None:
        issuer = authority.signer(NOW).certificate
        leaf = authority.certificate_for(HOST, NOW)
        certificate, key = leaf.certificate, leaf.certificate.public_key()
        certificate.verify_directly_issued_by(issuer)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        assert key == leaf.key.public_key()
        assert key != issuer.public_key()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert list(names.value) == [x509.DNSName(HOST)]
        # Without a subject there is no common name that an old client could look at.
        assert (names.critical, len(list(certificate.subject))) == (True, 0)
        key_id = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert key_id.key_identifier == issuer_id.digest
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert (
            certificate.not_valid_before_utc.timestamp() < NOW < certificate.not_valid_after_utc.timestamp()
        )
        assert certificate.not_valid_after_utc.timestamp() - NOW <= 31 * DAY

    def test_leaf_for_an_address(self, directory: Path) -> None:
        authority = found(directory, PermittedNames(("clamav.net",), (IPv4Address("192.0.2.7"),)), NOW)
        leaf = authority.certificate_for("192.0.2.7", NOW).certificate
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.IPAddress(IPv4Address("192.0.2.7"))]
        with pytest.raises(ForeignName):
            authority.certificate_for("192.0.2.8", NOW)

    @pytest.mark.parametrize(
        "host",
        [
            *("www.example.com", "example.net", "notclamav.net", "clamav.net.evil", "192.0.2.1", "::1"),
            *("", "*", "a b", "*.clamav.net", "clamav.net\0", "ÿ.clamav.net", "x" * 300 + ".clamav.net"),
        ],
    )
    def test_foreign_names(self, authority: Authority, host: str) -> None:
        with pytest.raises(ForeignName) as error:
            authority.certificate_for(host, NOW)
        assert str(error.value).isprintable()

    def test_names_are_one_in_any_case(self, authority: Authority) -> None:
        leaf = authority.certificate_for("Database.ClamAV.net.", NOW)
        assert leaf is authority.certificate_for(HOST, NOW)

    def test_leaf_is_kept_until_it_gets_old(self, authority: Authority) -> None:
        leaf = authority.certificate_for(HOST, NOW)
        assert authority.certificate_for(HOST, NOW + 15 * DAY) is leaf
        renewed = authority.certificate_for(HOST, NOW + 25 * DAY)
        assert renewed is not leaf
        assert renewed.key.public_key() != leaf.key.public_key()
        assert authority.certificate_for(HOST, NOW + 26 * DAY) is renewed
        # A clock that is set back.
        assert authority.certificate_for(HOST, NOW) is not renewed

    def test_leaf_ends_with_its_authority(self, authority: Authority) -> None:
        end = authority.signer(NOW).certificate.not_valid_after_utc
        late = end.timestamp() - 5 * DAY
        leaf = authority.certificate_for(HOST, late)
        assert leaf.certificate.not_valid_after_utc == end
        assert authority.certificate_for(HOST, late + 60) is leaf
        authority.certificate_for(HOST, end.timestamp() + 5 * DAY)  # no good, but no crash

    def test_leaves_are_bounded(self, authority: Authority) -> None:
        leaf = authority.certificate_for(HOST, NOW)
        for number in range(MAX_LEAVES):
            authority.certificate_for(f"n{number}.clamav.net", NOW)
        assert authority.certificate_for(HOST, NOW) is not leaf
        assert len(authority._leaves) == MAX_LEAVES


class TestAnotherVerifier:
    """Not only OpenSSL's: the one of the `cryptography` package, as web browsers have it."""

    @pytest.mark.parametrize("host", [HOST, "gw.example.net"])
    def test_own_name(self, authority: Authority, host: str) -> None:
        leaf = authority.certificate_for(host)
        assert len(verifier(authority, host).verify(leaf.certificate, [leaf.issuer])) == 3

    @pytest.mark.parametrize("host", ["www.example.com", "example.net", "notclamav.net"])
    def test_foreign_name(self, authority: Authority, host: str) -> None:
        generation = authority.signer()
        leaf = make_leaf(host, generation.certificate, generation.key, utc(NOW))
        with pytest.raises(VerificationError):
            verifier(authority, host).verify(leaf.certificate, [leaf.issuer])


def verifier(authority: Authority, host: str) -> ServerVerifier:
    store = Store([generation.root for generation in authority.generations])
    return PolicyBuilder().store(store).build_server_verifier(x509.DNSName(host))


class TestFile:
    """What is on the disk."""

    def test_nothing(self, directory: Path) -> None:
        assert Authority.load(directory) is None

    def test_modes(self, authority: Authority, directory: Path) -> None:
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / FILE).stat().st_mode) == 0o600
        assert [path.name for path in directory.iterdir()] == [FILE]

    def test_read_back(self, authority: Authority, directory: Path) -> None:
        again = Authority.load(directory)
        assert again is not None
        assert again.bundle(NOW) == authority.bundle(NOW)
        assert again.permitted(NOW) == NAMES
        again.certificate_for(HOST, NOW).certificate.verify_directly_issued_by(
            authority.signer(NOW).certificate
        )

    def test_is_not_overwritten(self, authority: Authority, directory: Path) -> None:
        before = (directory / FILE).read_bytes()
        with pytest.raises(AuthorityError, match=str(directory)):
            found(directory, NAMES, NOW)
        assert (directory / FILE).read_bytes() == before

    def test_damaged(self, authority: Authority, directory: Path) -> None:
        path = directory / FILE
        content = json.loads(path.read_text())
        other = found(directory.parent / "other", NAMES, NOW).directory / FILE
        swapped = json.loads(path.read_text())
        swapped["generations"][0]["key"] = json.loads(other.read_text())["generations"][0]["key"]
        swapped_root = json.loads(path.read_text())
        swapped_root["generations"][0]["root"] = json.loads(other.read_text())["generations"][0]["root"]
        changes = [("signs_from", at) for at in ("NaN", 10**400, 1e999, None)]
        changes += [(name, text) for name in ("root", "certificate", "key") for text in (1, None, "\ud800")]
        wrong = [
            {**content, "generations": [{**content["generations"][0], name: to}]} for name, to in changes
        ]
        newer = {**content, "format": 2}
        none = {**content, "generations": []}
        for text in (
            "",
            "{",
            "[]",
            "null",
            "[" * 100_000,
            *map(json.dumps, (swapped, swapped_root, newer, none, *wrong)),
        ):
            path.write_text(text)
            with pytest.raises(AuthorityError, match="damaged") as error:
                Authority.load(directory)
            assert "\n" not in str(error.value)
            # Neither is it taken for nothing and overwritten.
            with pytest.raises(AuthorityError, match="damaged"):
                found(directory, NAMES, NOW)

    def test_unreadable(self, directory: Path) -> None:
        (directory / FILE).mkdir(parents=True)
        with pytest.raises(OSError, match=FILE):
            Authority.load(directory)

    def test_foreign_certificate(self, directory: Path, authority: Authority) -> None:
        """One without constraints would sign for anything."""
        leaf = authority.certificate_for(HOST, NOW)
        with pytest.raises(ValueError, match="without name constraints"):
            Authority(directory, [Generation(authority.signer(NOW).root, leaf.certificate, leaf.key, NOW)])

    def test_directory_of_all(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        directory.chmod(0o777)
        with pytest.raises(AuthorityError, match="0700"):
            found(directory, NAMES, NOW)

    def test_one_change_at_a_time(self, authority: Authority, directory: Path) -> None:
        with locked(directory), pytest.raises(AuthorityError, match="another process"):
            rotate(directory, NAMES, NOW, DAY)
        rotate(directory, NAMES, NOW, DAY)

    def test_left_over_by_a_crash(self, authority: Authority, directory: Path) -> None:
        part = directory / f"{FILE}.part"
        part.write_text("half")
        part.chmod(0o644)
        rotate(directory, NAMES, NOW, DAY)
        assert [path.name for path in directory.iterdir()] == [FILE]
        assert stat.S_IMODE((directory / FILE).stat().st_mode) == 0o600


class TestRotation:
    """The next certificate."""

    def test_by_itself(self, authority: Authority, directory: Path) -> None:
        former = authority.signer(NOW)
        first = former.root
        rotated = rotate(directory, PermittedNames(("clamav.net", "new.example")), NOW, 30 * DAY)
        second = rotated.generations[-1].root
        assert title_of(second) != title_of(first)
        assert bundle_of(rotated) == [first, second]
        before, after = NOW + 29 * DAY, NOW + 31 * DAY
        assert rotated.certificate_for(HOST, before).certificate.issuer == former.certificate.subject
        assert rotated.successor(before) is rotated.generations[1]
        with pytest.raises(ForeignName):
            rotated.certificate_for("new.example", before)
        signer = rotated.generations[-1].certificate
        rotated.certificate_for(HOST, after).certificate.verify_directly_issued_by(signer)
        rotated.certificate_for("new.example", after)
        assert rotated.successor(after) is None
        assert bundle_of(rotated, after) == [second, first]

    def test_twice_is_refused(self, authority: Authority, directory: Path) -> None:
        rotate(directory, NAMES, NOW, 30 * DAY)
        before = (directory / FILE).read_bytes()
        with pytest.raises(AuthorityError, match="not over"):
            rotate(directory, NAMES, NOW + 29 * DAY, 30 * DAY)
        with pytest.raises(AuthorityError, match="not over"):
            finish_rotation(directory, NOW + 29 * DAY)
        assert (directory / FILE).read_bytes() == before

    def test_after_the_overlap(self, authority: Authority, directory: Path) -> None:
        second = rotate(directory, NAMES, NOW, 30 * DAY).generations[-1].root
        again = rotate(directory, NAMES, NOW + 31 * DAY, 30 * DAY)
        assert again.generations[0].root == second
        assert len(again.generations) == 2

    def test_finish(self, authority: Authority, directory: Path) -> None:
        second = rotate(directory, NAMES, NOW, 30 * DAY).generations[-1].root
        finished = finish_rotation(directory, NOW + 31 * DAY)
        assert bundle_of(finished) == [second]
        assert (
            pem_of(authority.signer(NOW).root).decode().splitlines()[2] not in (directory / FILE).read_text()
        )
        with pytest.raises(AuthorityError, match="nothing"):
            finish_rotation(directory, NOW + 31 * DAY)

    def test_finish_early(self, authority: Authority, directory: Path) -> None:
        second = rotate(directory, NAMES, NOW, 30 * DAY).generations[-1].root
        finished = finish_rotation(directory, NOW + 60, early=True)
        assert finished.signer(NOW + 60).root == second
        rotate(directory, NAMES, NOW + 61, DAY)

    def test_without_overlap(self, authority: Authority, directory: Path) -> None:
        rotated = rotate(directory, NAMES, NOW, 0)
        assert rotated.signer(NOW) is rotated.generations[1]

    def test_overlap_ends_with_the_certificate(self, authority: Authority, directory: Path) -> None:
        end = authority.signer(NOW).certificate.not_valid_after_utc.timestamp()
        rotated = rotate(directory, NAMES, end - DAY, 30 * DAY)
        assert rotated.generations[1].signs_from == end

    @pytest.mark.parametrize("change", [rotate, finish_rotation])
    def test_nothing_there(self, directory: Path, change: object) -> None:
        with pytest.raises(AuthorityError, match="ca init"):
            rotate(directory, NAMES, NOW, DAY) if change is rotate else finish_rotation(directory, NOW)
        assert not directory.exists()


def _rotate_for_ever(directory: Path) -> None:
    while True:
        rotate(directory, NAMES, NOW, 0)


@pytest.mark.parametrize("number", range(4))
def test_killed_at_any_time(authority: Authority, directory: Path, number: int) -> None:
    """Whenever it is killed there is a whole authority, with the keys to its certificates."""
    process = multiprocessing.get_context("fork").Process(target=_rotate_for_ever, args=(directory,))
    process.start()
    try:
        first = read_state(directory)[0].certificate
        assert eventually(lambda: read_state(directory)[0].certificate != first, every=0.01)
        time.sleep(0.003 * number)
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(10)
    assert 1 <= len(read_state(directory)) <= 2
    assert Authority.load(directory) is not None
    rotate(directory, NAMES, NOW, 0)


class TestCurrent:
    """A process that runs while the authority changes."""

    def test_changes_are_seen(self, directory: Path) -> None:
        current = CurrentAuthority(directory)
        assert current() is None
        found(directory, NAMES, NOW)
        authority = current()
        assert authority is not None
        assert current() is authority
        rotate(directory, NAMES, NOW, DAY)
        rotated = current()
        assert rotated is not None
        assert len(rotated.generations) == 2

    def test_an_authority_whose_directory_is_gone_goes_on(
        self, authority: Authority, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        current = CurrentAuthority(directory)
        kept = (directory / FILE).read_bytes()
        for damage in (None, "{"):
            caplog.clear()
            (directory / FILE).unlink(missing_ok=True)
            if damage is not None:
                (directory / FILE).write_text(damage)
            found_now = [current() for _ in range(3)]
            assert found_now[0] is not None
            assert found_now.count(found_now[0]) == 3
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
        (directory / FILE).write_bytes(kept)
        assert current() is not found_now[0]

    def test_a_file_that_cannot_be_read_for_a_moment(
        self, authority: Authority, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There may be no descriptors left; then, too, a rotation isn't missed."""
        current = CurrentAuthority(directory)
        rotate(directory, NAMES, NOW, DAY)

        def fail(_: Path) -> NoReturn:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as exhausted:
            exhausted.setattr(Authority, "load", fail)
            assert current() is not None
        rotated = current()
        assert rotated is not None
        assert len(rotated.generations) == 2

    def test_damaged_at_the_start(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / FILE).write_text("{")
        with pytest.raises(AuthorityError):
            CurrentAuthority(directory)
