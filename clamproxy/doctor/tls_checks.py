"""TLS with the gateway's certificate: whether clients trust it, and if not, why."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from clamproxy.authority import Authority, AuthorityError
from clamproxy.doctor import explain
from clamproxy.doctor.explain import TOLERANCE
from clamproxy.doctor.findings import Deadline, Verdict, ok, problem
from clamproxy.doctor.wire import NoTls, Proxy, TunnelRefused, WireError, connected, get, open_tunnel, wrap
from clamproxy.formats.header import HEADER_SIZE
from clamproxy.readable import shown_span
from clamproxy.setup.trust import INSTALLED_FILES

SYSTEM_BUNDLES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Alpine, Arch
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # RHEL, Fedora
    Path("/etc/ssl/ca-bundle.pem"),  # SUSE
    Path("/etc/ssl/cert.pem"),  # BSD
)
"""Where libcurl was built to look, whatever SSL_CERT_FILE says (docs/protocol.md 7)."""

_EXPIRED, _NOT_YET, _WRONG_NAME, _NOT_PERMITTED = 10, 9, 62, 47
"""Error codes of X509_verify_cert(3)."""
_OF_A_TRUSTED_AUTHORITY = (_EXPIRED, _NOT_YET, _WRONG_NAME, _NOT_PERMITTED)
"""Errors that trusting other certificates would not cure."""
_SECOND_LOOK = 3.0
"""Seconds in which the distrusted certificate is fetched for a closer look."""
_INSTALL = (
    "`clamproxy ca install` on the gateway prints a script that installs its certificate here; "
    "DatabaseMirror http://database.clamav.net needs none."
)


@dataclass(frozen=True, slots=True)
class Trust:
    """The certificates that freshclam would trust."""

    bundle: Path | None
    """The file that holds them; None for OpenSSL's defaults."""
    origin: str
    """Why it is that file."""
    certificates: str | None = None
    """Certificates as PEM that are used in place of those in the file."""

    def context(self) -> ssl.SSLContext:
        """A TLS context like freshclam's.

        Raises:
            OSError: the file can't be read, or holds no certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.certificates is not None:
            context.load_verify_locations(cadata=self.certificates)
        elif self.bundle is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cafile=self.bundle)
        context.set_alpn_protocols(["http/1.1"])
        return context

    def __str__(self) -> str:
        return f"{self.bundle or 'the default certificates of OpenSSL'} ({self.origin})"


def trust_of(
    ca: Path | None, environ: Mapping[str, str] = os.environ, installed: Iterable[str] = INSTALLED_FILES
) -> list[Trust]:
    """What freshclam may trust on this machine, the likeliest first.

    By libcurl's rules that is CURL_CA_BUNDLE, else the system's bundle. But a service gets the variable
    from its unit, where nobody else sees it, so the files that the unit is told to name count as well.

    Args:
        ca: the file that the user gave, if any; then nothing else counts.
        installed: where `clamproxy ca install` puts the certificates.
    """
    if ca is not None:
        return [Trust(ca, "--ca")]
    found = [Trust(Path(named), "CURL_CA_BUNDLE")] if (named := environ.get("CURL_CA_BUNDLE")) else []
    places = [Path(path) for path in installed if path != named]
    found += [
        Trust(path, "where `clamproxy ca install` puts it") for path in places if os.access(path, os.R_OK)
    ]
    system = next((path for path in SYSTEM_BUNDLES if path.is_file()), None)
    return [*found, Trust(system, "the system's bundle")]


def own_trust(directory: Path) -> list[Trust]:
    """The authority of the gateway on this machine; empty if there is none, or if it can't be read.

    Args:
        directory: tls.directory.
    """
    try:
        authority = Authority.load(directory)
    except (OSError, AuthorityError):  # reported by the check of the authority
        return []
    if authority is None:
        return []
    return [Trust(directory, "this gateway's own authority", authority.bundle().decode("ascii"))]


def judge_tls(
    trusts: Sequence[Trust],
    proxy: Proxy,
    address: tuple[str, int],
    host: str,
    path: str,
    seconds: float,
    date: float | None,
) -> Verdict:
    """Do what a client with https does.

    Args:
        trusts: what the client may trust, tried one after the other; one of them is enough.
        proxy: the gateway.
        address: address and port of the gateway.
        host: the CDN's name.
        path: path of a CVD, whose header is requested.
        seconds: time limit for everything together.
        date: the gateway's time in Unix seconds, if it is known.
    """
    deadline, unusable, distrusted = Deadline(seconds), list[Verdict](), list[ssl.SSLCertVerificationError]()
    tried = ", ".join(map(str, trusts))
    for trust in trusts:
        try:
            context = trust.context()
        except OSError as error:
            text = f"the certificates in {trust} can't be used: {error.strerror or error}"
            remedy = "name a file that user clamav can read, with certificates in PEM form."
            unusable.append(problem(text, remedy))
            continue
        try:
            return _ask(trust, context, proxy, address, host, path, deadline.allow(seconds))
        except ssl.SSLCertVerificationError as error:
            distrusted.append(error)
            if error.verify_code in _OF_A_TRUSTED_AUTHORITY:
                break
    if not distrusted:
        return unusable[0]
    certificate = _presented(proxy, address, host, deadline.allow(_SECOND_LOOK))
    return _distrusted(distrusted[-1], tried, certificate, date)


def _ask(
    trust: Trust,
    context: ssl.SSLContext,
    proxy: Proxy,
    address: tuple[str, int],
    host: str,
    path: str,
    seconds: float,
) -> Verdict:
    """Request a header.

    Raises:
        ssl.SSLCertVerificationError: the certificate is not trusted.
    """
    target = f"{host}:443"
    try:
        with connected(address, seconds) as stream:
            open_tunnel(stream, proxy, target)
            with wrap(stream, context, host) as secured:
                answer = get(
                    secured, host, path, proxy.user_agent, span=f"0-{HEADER_SIZE - 1}", largest=HEADER_SIZE
                )
    except ssl.SSLCertVerificationError:
        raise
    except NoTls as error:
        return problem(f"the gateway {error}", explain.ON_GATEWAY)
    except TunnelRefused as error:
        return explain.tunnel(error, proxy, target)
    except (OSError, WireError) as error:
        return explain.no_answer(error, f"https through CONNECT {target}")
    if answer.status not in (200, 206):
        return explain.status(answer, path, proxy)
    return ok(f"https works with {trust}")


def _distrusted(
    error: ssl.SSLCertVerificationError,
    tried: str,
    certificate: x509.Certificate | None,
    date: float | None,
) -> Verdict:
    issuer = f" of {_issuer(certificate)!r}" if certificate else ""
    if error.verify_code in (_EXPIRED, _NOT_YET):
        return _outside_its_time(error.verify_code, certificate, date)
    if error.verify_code == _WRONG_NAME:
        return problem(
            f"the certificate{issuer} is for another name: {error.verify_message}", explain.ON_GATEWAY
        )
    if error.verify_code == _NOT_PERMITTED:
        return problem(
            f"the gateway's authority may not sign for this name: {error.verify_message}",
            "add the name to serving.hosts or tls.names on the gateway, then `clamproxy ca rotate` there.",
        )
    text = (
        f"the certificate authority{issuer} is not trusted, says {error.verify_message!r}; looked in {tried}"
    )
    return problem(text, _INSTALL)


def _outside_its_time(code: int, certificate: x509.Certificate | None, date: float | None) -> Verdict:
    now = time.time()
    if date is not None and abs(now - date) > TOLERANCE:
        return problem(
            f"this machine's clock is wrong: it is {shown_span(abs(now - date))} off the gateway's, "
            "and so the certificate seems " + ("expired" if code == _EXPIRED else "not valid yet"),
            "correct the clock, and let NTP keep it right (timedatectl set-ntp true).",
        )
    if code == _NOT_YET:
        return problem(
            "the gateway's certificate is not valid yet: the gateway's clock was ahead when it was made",
            "correct the clock of the gateway, then make a new certificate (`clamproxy ca rotate` there).",
        )
    moment = datetime.fromtimestamp(now, UTC)
    if certificate is not None and certificate.not_valid_after_utc < moment:
        what = f"the gateway's certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
        return problem(what, "restart clamproxy on the gateway: it makes a new one.")
    return problem(
        "the certificate authority of the gateway has expired",
        f"run `clamproxy ca rotate` on the gateway, then here: {_INSTALL}",
    )


def _presented(proxy: Proxy, address: tuple[str, int], host: str, seconds: float) -> x509.Certificate | None:
    """The certificate that the gateway presents, without verifying it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with connected(address, seconds) as stream:
            open_tunnel(stream, proxy, f"{host}:443")
            with wrap(stream, context, host) as secured:
                der = secured.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der) if der else None
    except (OSError, WireError, TunnelRefused, ValueError, x509.InvalidVersion):
        return None


def _issuer(certificate: x509.Certificate) -> str:
    names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.issuer.rfc4514_string()
