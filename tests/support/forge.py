"""Signs CVDs, cdiffs and ``.sign`` files with test keys, for tests and benchmarks."""

from __future__ import annotations

import base64
import gzip
import hashlib
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder
from cryptography.x509.oid import NameOID

from clamproxy.formats.header import HEADER_SIZE
from clamproxy.formats.signatures import PSS_SALT_LENGTH, RsaPublicKey, TrustedKeys, encode_number

SIGNATURES = 1
FUNCTIONALITY_LEVEL = 81
BUILDER = "forge"

_PIECE = 2**20
_PSS_MASKED = 223  # 2048 bits less the hash and the trailer, docs/protocol.md 4.3
_STORED_BLOCK = 65535  # RFC 1951 3.2.4: bytes that a stored block holds, after 5 bytes of its own
_STORED_OVERHEAD = 5
_COPYING = b"Made for tests; nothing in here is a signature of anything.\n"


@dataclass(frozen=True)
class ForgeKeys:
    """Private keys of the sizes that ClamAV uses, one for each use."""

    cvd: rsa.RSAPrivateKey
    info: rsa.RSAPrivateKey
    cdiff: rsa.RSAPrivateKey

    @classmethod
    def generate(cls) -> Self:
        """New keys; `forge_keys` is quicker if any will do."""
        # ClamAV's PSS keys have 2047 bits, which matters: see clamproxy.formats.signatures.
        return cls(*(rsa.generate_private_key(65537, bits) for bits in (1024, 2047, 2047)))

    @property
    def trusted(self) -> TrustedKeys:
        """The public keys, for the verifier."""
        return TrustedKeys(_public(self.cvd), _public(self.info), _public(self.cdiff), (self.root,))

    @property
    def root(self) -> bytes:
        """The certificate in DER by which `forge_sign` signs, the same one for the same keys."""
        return _certificate(self.cdiff).public_bytes(Encoding.DER)

    def save(self, directory: Path) -> None:
        """Write the keys into a directory, for another process to load."""
        directory.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            key: rsa.RSAPrivateKey = getattr(self, field.name)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (directory / f"{field.name}.pem").write_bytes(pem)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The keys that `save` wrote."""
        keys = []
        for field in fields(cls):
            key = load_pem_private_key((directory / f"{field.name}.pem").read_bytes(), None)
            assert isinstance(key, rsa.RSAPrivateKey)
            keys.append(key)
        return cls(*keys)


@cache
def forge_keys() -> ForgeKeys:
    """The keys of this process."""
    return ForgeKeys.generate()


def forge_cvd(
    path: Path,
    database: str,
    version: int,
    size: int = 0,
    stime: int = 1_700_000_000,
    keys: ForgeKeys | None = None,
) -> None:
    """Write a CVD that is signed as ClamAV's are; the same arguments give the same bytes.

    Args:
        path: the file to write.
        database: the name in its members.
        version: the version in its header.
        size: bytes that the whole file shall have, hit within 0.1 % and 2 KiB; a small file
            if it is less than that. The contents cannot be compressed, and take little memory.
        stime: seconds since 1970 in its header.
        keys: who signs; the keys of this process by default.
    """
    keys = keys or forge_keys()
    filler_size = max(0, size * _STORED_BLOCK // (_STORED_BLOCK + _STORED_OVERHEAD) - 4096)
    seed = f"{database}-{version}-{stime}-{filler_size}"
    listed = [(f"{database}.ndb", filler_size, _sha256(_filler(seed, filler_size)))]
    info = info_member(info_line(version, stime), listed, keys)
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("wb") as file:
        file.write(bytes(HEADER_SIZE))
        tar = _chain(
            _tar_bytes("COPYING", _COPYING),
            _tar_bytes(f"{database}.info", info),
            _tar_member(f"{database}.ndb", filler_size, _filler(seed, filler_size)),
        )
        for piece in _stored_gzip(tar):
            digest.update(piece)
            file.write(piece)
        file.seek(0)
        file.write(cvd_header(version, stime, digest.digest(), keys))


def seal(version: int, payload: bytes, keys: ForgeKeys | None = None, stime: int = 1_700_000_000) -> bytes:
    """A correctly signed CVD with any payload, for what a verifier must find behind a good signature."""
    digest = hashlib.md5(payload, usedforsecurity=False).digest()
    return cvd_header(version, stime, digest, keys or forge_keys()) + payload


def payload_of(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A payload with the given members: a compressed tar as ClamAV writes it."""
    return gzip.compress(b"".join(_chain(*(_tar_bytes(name, data) for name, data in members))), 6, mtime=0)


def forge_database(
    database: str, version: int, files: Mapping[str, bytes], keys: ForgeKeys | None = None
) -> bytes:
    """A CVD with the given files, correctly listed in its ``.info``."""
    info = forge_info(database, version, files, keys)
    return seal(
        version, payload_of([("COPYING", _COPYING), (f"{database}.info", info), *files.items()]), keys
    )


def forge_info(
    database: str, version: int, files: Mapping[str, bytes], keys: ForgeKeys | None = None
) -> bytes:
    """The ``.info`` member of the CVD that `forge_database` makes from the same arguments."""
    listed = [(name, len(data), _sha256([data])) for name, data in files.items()]
    return info_member(info_line(version), listed, keys or forge_keys())


def forge_patch(
    database: str,
    version: int,
    before: Mapping[str, bytes],
    after: Mapping[str, bytes],
    script: bytes,
    keys: ForgeKeys | None = None,
) -> bytes:
    """A cdiff that a client can apply to what `forge_database` makes of one version less.

    Args:
        database: whose it is.
        version: the version that it leads to.
        before: the files that it applies to.
        after: the files that it leads to.
        script: the commands that do so; those for ``.info`` are made here.
        keys: who signs; the keys of this process by default.
    """
    old = forge_info(database, version - 1, before, keys).splitlines()
    new = forge_info(database, version, after, keys).splitlines()
    lines = [f"OPEN {database}.info".encode()]
    for number, line in enumerate(old, 1):
        prefix = line.split(b" ")[0][:16]
        change = b"XCHG %d %b %b" % (number, prefix, new[number - 1]) if number <= len(new) else b""
        lines.append(change or b"DEL %d %b" % (number, prefix))
    lines += [b"ADD " + line for line in new[len(old) :]]
    edits = b"".join(line + b"\n" for line in [*lines, b"CLOSE"])
    return forge_cdiff(database, version, edits + script, keys)


def cvd_header(version: int, stime: int, digest: bytes, keys: ForgeKeys) -> bytes:
    """The 512 bytes in front of a payload with this MD5."""
    signature = _sign_number(keys.cvd, int.from_bytes(digest)).decode()
    fields = info_line(version, stime).split(":")
    fields[5:7] = [digest.hex(), signature]
    return ":".join(fields).ljust(HEADER_SIZE).encode()


def info_line(version: int, stime: int = 1_700_000_000) -> str:
    """The first line of an ``.info`` member."""
    built = datetime.fromtimestamp(stime, UTC).strftime("%d %b %Y %H-%M +0000")
    return f"ClamAV-VDB:{built}:{version}:{SIGNATURES}:{FUNCTIONALITY_LEVEL}:X:X:{BUILDER}:{stime}"


def info_member(first_line: str, listed: Iterable[tuple[str, int, str]], keys: ForgeKeys) -> bytes:
    """A signed ``.info`` member that lists files by name, size and SHA-256 in hex."""
    lines = [first_line, *(f"{name}:{size}:{sha256}" for name, size, sha256 in listed)]
    text = "".join(f"{line}\n" for line in lines).encode()
    return text + b"DSIG:" + sign_sha256(keys.info, hashlib.sha256(text).digest()) + b"\n"


def forge_cdiff(
    database: str, version: int, script: bytes | None = None, keys: ForgeKeys | None = None
) -> bytes:
    """A signed cdiff.

    Args:
        database: whose ``.ndb`` the script touches, if none is given.
        version: the version in its header.
        script: its commands, uncompressed.
        keys: who signs; the keys of this process by default.
    """
    if script is None:
        script = f"OPEN {database}.ndb\nADD Forged.{version}:0:*:{version:08x}\nCLOSE\n".encode()
    return seal_cdiff(version, gzip.compress(script, mtime=0), len(script), keys)


def seal_cdiff(version: int, stream: bytes, script_size: int = 0, keys: ForgeKeys | None = None) -> bytes:
    """A correctly signed cdiff with any bytes in place of the compressed script."""
    signed = f"ClamAV-Diff:{version}:{script_size}:".encode() + stream
    return signed + b":" + sign_sha256((keys or forge_keys()).cdiff, hashlib.sha256(signed).digest())


def forge_sign(data: bytes = b"", keys: ForgeKeys | None = None) -> bytes:
    """A ``.sign`` file for the data; who trusts the keys trusts its signer, too."""
    key = (keys or forge_keys()).cdiff
    builder = PKCS7SignatureBuilder().set_data(data).add_signer(_certificate(key), key, SHA256())
    options = [PKCS7Options.DetachedSignature, PKCS7Options.Binary]
    der = builder.sign(Encoding.DER, options)
    return b"#clamsign-1.0\n230::pkcs7-pem:" + base64.b64encode(der) + b"\n"


def sign_sha256(key: rsa.RSAPrivateKey, digest: bytes) -> bytes:
    """A PSS signature in ClamAV's digits, the way ClamAV makes it (docs/protocol.md 4.3)."""
    modulus = key.public_key().public_numbers().n
    for attempt in range(1000):
        salt = hashlib.sha256(digest + attempt.to_bytes(4)).digest()[:PSS_SALT_LENGTH]
        salted = hashlib.sha256(bytes(8) + digest + salt).digest()
        mask = b"".join(hashlib.sha256(salted + i.to_bytes(4)).digest() for i in range(7))[:_PSS_MASKED]
        block = int.from_bytes(b"\x01" + salt) ^ int.from_bytes(mask)
        block &= (1 << 8 * _PSS_MASKED - 1) - 1
        encoded = int.from_bytes(block.to_bytes(_PSS_MASKED) + salted + b"\xbc")
        if encoded < modulus:
            return _sign_number(key, encoded)
    raise AssertionError("no salt leads to a number below the modulus")


def _sign_number(key: rsa.RSAPrivateKey, number: int) -> bytes:
    # By the Chinese remainder theorem (RFC 8017 5.1.2): a third of the time of one large power.
    private = key.private_numbers()
    at_q = pow(number, private.dmq1, private.q)
    rest = (pow(number, private.dmp1, private.p) - at_q) * private.iqmp % private.p
    return encode_number(at_q + private.q * rest)


def _public(key: rsa.RSAPrivateKey) -> RsaPublicKey:
    numbers = key.public_key().public_numbers()
    return RsaPublicKey(numbers.n, numbers.e)


@cache
def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Forge")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial_number=1)
    # For longer than any clock in a test can jump.
    builder = builder.not_valid_before(datetime(1970, 1, 1)).not_valid_after(datetime(9999, 1, 1))
    return builder.sign(key, SHA256())


def _filler(seed: str, size: int) -> Iterator[bytes]:
    """Bytes that no compressor makes smaller, other ones for each seed."""
    block = random.Random(seed).randbytes(min(size, _PIECE))
    for offset in range(0, size, _PIECE):
        yield (offset.to_bytes(8) + block[8:])[: size - offset]


def _sha256(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _tar_bytes(name: str, data: bytes) -> Iterator[bytes]:
    return _tar_member(name, len(data), [data])


def _tar_member(name: str, size: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A tar member as ClamAV's common/tar.c writes it: only name, size and checksum are set."""
    header = bytearray(512)
    header[: len(name)] = name.encode()
    digits = f"{size:o}".encode()
    header[124 : 124 + len(digits)] = digits
    checksum = f"{sum(header) + 256:06o}".encode()
    header[148 : 148 + len(checksum)] = checksum
    yield bytes(header)
    yield from pieces
    yield bytes(-size % 512)


def _chain(*parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield from part


def _stored_gzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A gzip stream that compresses nothing, for speed."""
    compressor = zlib.compressobj(level=0, wbits=31)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()
