"""``.sign`` files: nothing is taken that OpenSSL refuses, and everything that ClamAV's tool makes.

`openssl smime` calls ``PKCS7_verify`` as libclamav does, `openssl cms` the newer function. Both are asked.
"""

from __future__ import annotations

import io
import random
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import product
from pathlib import Path
from ssl import DER_cert_to_PEM_cert

import pytest
from cryptography.hazmat.primitives.hashes import SHA224, SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7HashTypes, PKCS7Options

from clamproxy.formats.cms import verify_signed_data
from clamproxy.formats.codesign import parse_sign
from clamproxy.formats.signatures import InvalidObject
from tests.support.data import SIGN_NAMES, keys_of_testdata, read_testdata
from tests.support.programs import require_program
from tests.support.signers import CODE, TLS, Issued, Wish, authority, signed_data
from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds

CONTENT = b"a database" * 20
OTHER = b"another database" * 20
YEAR = timedelta(days=365)

STRICTER = {
    "appended bytes": "OpenSSL ignores what follows the signature",
    "attached": "OpenSSL takes the file that is given, whatever is inside",
    "indefinite lengths": "BER; ClamAV's tool writes DER",
    "key identifier": "names the signer in another way, which PKCS #7 doesn't know either",
    "no attributes": "the signature could be taken for one of other attributes",
    "PSS": "ClamAV's tool uses PKCS #1 v1.5",
    "SHA-1": "collisions",
    "SHA-224": "too short",
}
"""What OpenSSL may take and we refuse, and why."""
NOT_MADE = {
    "Ed25519": "OpenSSL signs with it since 3.2",
    "PSS": "only RSA has it",
    "SHA-1": "may be switched off in the system's configuration",
}
"""What this version of OpenSSL may be unable to make, and why. Whatever else it can't make is not tested."""


@dataclass(frozen=True)
class Case:
    name: str
    der: bytes
    root: bytes = field(default_factory=lambda: authority().der)
    content: bytes = CONTENT

    def is_taken(self) -> bool:
        try:
            verify_signed_data(self.der, (self.root,), io.BytesIO(self.content))
        except InvalidObject:
            return False
        return True


class OpenSsl:
    """OpenSSL's command line, with a directory of its own."""

    def __init__(self, directory: Path) -> None:
        require_program("openssl")
        self._directory = directory

    def takes(self, case: Case, command: str) -> bool:
        """Whether `openssl cms` or `openssl smime` accepts it."""
        self._put("content", case.content)
        self._put("signature", case.der)
        self._put("root", DER_cert_to_PEM_cert(case.root).encode())
        verify = [command, "-verify", "-inform", "DER", "-in", "signature", "-content", "content", "-binary"]
        return self._run(*verify, "-CAfile", "root", "-out", "out").returncode == 0

    def signs(self, signer: Issued, others: Sequence[Issued], command: str, *options: str) -> bytes | None:
        """A signature of `CONTENT`; None if this version of OpenSSL can't make it."""
        self._put("content", CONTENT)
        self._put("signer", signer.pem)
        self._put("key", signer.key_pem)
        self._put("chain", b"".join(one.pem for one in others))
        sign = [command, "-sign", "-binary", "-in", "content", "-signer", "signer", "-inkey", "key"]
        more = ["-certfile", "chain"] if others else []
        done = self._run(*sign, *more, "-outform", "DER", *options)
        return done.stdout if done.returncode == 0 else None

    def _put(self, name: str, content: bytes) -> None:
        (self._directory / name).write_bytes(content)

    def _run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["openssl", *words], cwd=self._directory, capture_output=True)


@pytest.fixture
def openssl(tmp_path: Path) -> OpenSsl:
    return OpenSsl(tmp_path)


@cache
def intermediate(depth: int = 1, kind: str = "rsa") -> Issued:
    issuer = authority() if depth == 1 else intermediate(depth - 1, kind)
    return Wish(f"Intermediate {depth} {kind}", kind, is_authority=True).issue(issuer)


def path(depth: int, kind: str) -> tuple[Issued, list[Issued]]:
    """A signer, and the intermediates between the root and it."""
    between = [intermediate(number, kind) for number in range(1, depth + 1)]
    return Wish(f"Signer {depth} {kind}", kind).issue(between[-1] if between else authority()), between


def forged() -> Iterator[Case]:
    """What `cryptography` makes: ClamAV's way with all kinds of keys, hashes and chains."""
    digests: list[PKCS7HashTypes] = [SHA256(), SHA384(), SHA512(), SHA224()]
    for kind, depth, digest in product(("rsa", "ec"), range(3), digests):
        signer, between = path(depth, kind)
        name = "SHA-224" if isinstance(digest, SHA224) else f"good: {kind}, {depth}, {digest.name}"
        yield Case(name, signed_data(CONTENT, [signer], between, digest=digest))
    (rsa, _), (ec, between) = path(0, "rsa"), path(2, "ec")
    yield Case("good: two signers", signed_data(CONTENT, [rsa, ec], between))
    yield Case("good: with the root", signed_data(CONTENT, [ec], [*between, authority()]))
    yield Case("good: unrelated certificate", signed_data(CONTENT, [rsa], between))
    yield Case("no attributes", signed_data(CONTENT, [rsa], options=[PKCS7Options.NoAttributes]))
    yield Case("no certificate", signed_data(CONTENT, [rsa], options=[PKCS7Options.NoCerts]))
    yield Case("missing intermediate", signed_data(CONTENT, [ec], between[:1]))
    yield Case("one of two unknown", signed_data(CONTENT, [rsa, Wish("Nobody", "ec").issue()]))
    yield Case("other content", signed_data(OTHER, [rsa]))
    yield Case("truncated content", signed_data(CONTENT, [rsa]), content=CONTENT[:-1])
    yield Case(
        "another root", signed_data(CONTENT, [rsa]), Wish("Root", is_authority=True, usages=()).issue(rsa).der
    )


def untrusted() -> Iterator[Case]:
    """Certificates that must not sign or vouch."""
    wishes = [
        Wish("expired", "ec", validity=(-2 * YEAR, -YEAR)),
        Wish("not yet valid", "ec", validity=(YEAR, 2 * YEAR)),
        Wish("for TLS", "ec", usages=(TLS,)),
        Wish("for code alone", "ec", usages=(CODE,)),
        Wish("signs nothing", "ec", signs=False),
        Wish("for anything", "ec", usages=(), signs=None),
        Wish("authority that signs", "ec", is_authority=True),
    ]
    for wish in wishes:
        yield Case(wish.name, signed_data(CONTENT, [wish.issue(authority())]))
        issuer = Wish(
            f"{wish.name}, as an authority", is_authority=True, usages=wish.usages, validity=wish.validity
        )
        middle = issuer.issue(authority())
        yield Case(issuer.name, signed_data(CONTENT, [Wish(f"by {wish.name}", "ec").issue(middle)], [middle]))
    no_authority = Wish("no authority", "ec").issue(authority())
    yield Case(
        "no authority", signed_data(CONTENT, [Wish("by nobody", "ec").issue(no_authority)], [no_authority])
    )


def by_openssl(openssl: OpenSsl, missing: Counter[str]) -> Iterator[Case]:
    """What OpenSSL can make; what it can't is counted as missing."""
    ways = {
        "good: smime": ("smime",),
        "good: smime, SHA-512": ("smime", "-md", "sha512"),
        "good: cms": ("cms",),
        "good: cms, no capabilities": ("cms", "-nosmimecap"),
        "SHA-1": ("cms", "-md", "sha1"),
        "SHA-1 ": ("smime", "-md", "sha1"),
        "no attributes": ("cms", "-noattr"),
        "key identifier": ("cms", "-keyid"),
        "attached": ("cms", "-nodetach"),
        "indefinite lengths": ("cms", "-nodetach", "-stream", "-indef"),
        "PSS": ("cms", "-keyopt", "rsa_padding_mode:pss"),
    }
    for kind, depth, (name, options) in product(("rsa", "ec"), (0, 2), ways.items()):
        signer, between = path(depth, kind)
        der = openssl.signs(signer, between, *options)
        if der is None:
            missing[name.strip()] += 1
        else:
            yield Case(name.strip(), der)
    edwards = Wish("Ed25519", "ed25519").issue(authority())
    der = openssl.signs(edwards, (), "cms", "-md", "sha512")
    if der is None:
        missing["Ed25519"] += 1
    else:
        yield Case("Ed25519", der)
    (rsa, _) = path(0, "rsa")
    whole = signed_data(CONTENT, [rsa])
    assert whole[:2] == b"\x30\x82"
    yield Case("indefinite lengths", b"\x30\x80" + whole[4:] + b"\0\0")
    yield Case("appended bytes", whole + b"\0")
    yield Case("appended bytes", whole + whole)


def test_as_openssl(openssl: OpenSsl, figures: Figures) -> None:
    """Whatever we take, OpenSSL takes; whatever is made as ClamAV makes it, both take."""
    counts, missing = Counter[str](), Counter[str]()
    stricter = set()
    for case in [*forged(), *untrusted(), *by_openssl(openssl, missing)]:
        ours = case.is_taken()
        theirs = {command: openssl.takes(case, command) for command in ("cms", "smime")}
        assert not ours or all(theirs.values()), f"{case.name}: {theirs}"
        assert ours or not case.name.startswith("good"), case.name
        if not ours and any(theirs.values()):
            stricter.add(case.name)
        counts[f"taken_by_{ours + sum(theirs.values())}_of_3"] += 1
    assert stricter <= STRICTER.keys()
    assert missing.keys() <= NOT_MADE.keys(), missing
    figures(
        "kinds of .sign files",
        **counts,
        not_made_by_OpenSSL=missing.total(),
        taken_here_alone=0,
        refused_here_alone=" / ".join(sorted(stricter)),
    )


@pytest.mark.parametrize("command", ["cms", "smime"])
def test_clamavs_own_files(openssl: OpenSsl, command: str) -> None:
    (root,) = keys_of_testdata().roots
    for name in SIGN_NAMES:
        (der,) = parse_sign(read_testdata(name))
        content = read_testdata(name.removesuffix(".sign"))
        case = Case(name, der, root, content)
        assert case.is_taken()
        assert openssl.takes(case, command)
        assert not Case(name, der, root, content + b"\0").is_taken()


def test_damage(openssl: OpenSsl, figures: Figures) -> None:
    """Each bit flipped, each length cut off: refused, or OpenSSL takes it as well."""
    seeds = [case.der for case in forged() if case.name in ("good: rsa, 0, sha256", "good: ec, 2, sha384")]
    (root,) = keys_of_testdata().roots
    name = "test-1.cvd.sign"
    seeds_with_content = [(der, authority().der, CONTENT) for der in seeds]
    seeds_with_content += [(parse_sign(read_testdata(name))[0], root, read_testdata("test-1.cvd"))]
    tried = taken = 0
    for der, trusted, content in seeds_with_content:
        for spoilt in _spoilt(der):
            tried += 1
            assert not Case("damaged", spoilt, trusted, OTHER).is_taken()
            case = Case("damaged", spoilt, trusted, content)
            if case.is_taken():
                taken += 1
                assert openssl.takes(case, "smime")
                assert openssl.takes(case, "cms")
    figures("damaged .sign files", tried=tried, taken_as_by_openssl=taken, taken_for_another_file=0)


def _spoilt(der: bytes) -> Iterator[bytes]:
    chance = random.Random(SEED)
    flips = [(spot, bit) for spot in range(len(der)) for bit in range(8)]
    for spot, bit in chance.sample(flips, min(len(flips), rounds(300, len(flips)))):
        yield der[:spot] + bytes([der[spot] ^ 1 << bit]) + der[spot + 1 :]
    for end in chance.sample(range(len(der)), min(len(der), rounds(30, len(der)))):
        yield der[:end]
    for _ in range(rounds(100, 5000)):
        start, length, to = (chance.randrange(len(der)) for _ in range(3))
        piece = der[start : start + length % 64]
        yield chance.choice(
            [
                der[:to] + piece + der[to:],
                der[:to] + piece + der[to + len(piece) :],
                der[:start] + der[start + len(piece) :],
            ]
        )
