"""What administrators write, by hand or by a program of theirs, and what ClamAV's programs print."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from clamproxy.authority.certificates import make_authority, new_key, pem_of
from clamproxy.authority.constraints import PermittedNames
from clamproxy.bundle.contents import Since
from clamproxy.config.example import example
from clamproxy.config.labels import parse_labels
from clamproxy.config.loading import ConfigurationError, load_settings
from clamproxy.doctor.conf_mistakes import judge
from clamproxy.doctor.freshclam import parse_conf
from clamproxy.doctor.route import bypass, route_of
from clamproxy.proxy.client_trust import ClientTrust
from clamproxy.site_files.checking import CheckError, verdict_of
from clamproxy.site_files.ignoring import IgnoreList, signature_name
from tests.torture.parsers.parser import Parser


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _written(name: str, data: bytes) -> Path:
    path = Path(_root().name, name)
    path.write_bytes(data)
    return path


def _proxy_yaml(data: bytes) -> None:
    path = _written("proxy.yaml", data)
    try:
        load_settings(path, {})
    except ConfigurationError as error:
        if not str(error).isprintable():
            raise AssertionError("an error of more than one line") from error
        raise


def _freshclam_conf(data: bytes) -> None:
    conf = parse_conf(data.decode("utf-8", "replace"))
    _ = conf.databases
    environ = {
        "http_proxy": conf.first("HTTPProxyServer") or "",
        "no_proxy": conf.first("DatabaseMirror") or "",
    }
    for variables in ({}, environ):
        judge(Path("freshclam.conf"), conf, route_of(conf, variables), 0o644)
        bypass(conf, variables)


def _labels(data: bytes) -> None:
    labels = parse_labels(data.decode("utf-8", "replace"), "labels")
    labels.of("12345678-9abc-4def-8012-3456789abcde", "192.0.2.1")
    labels.groups()


def _ignored(data: bytes) -> None:
    path = _written("local.ign2", data)
    IgnoreList(path.parent, path.parent).signatures()


def _variable(data: bytes) -> None:
    """A value in the environment; the system allows neither NUL nor anything undecodable."""
    text = data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    name, _, value = text.partition("=")
    load_settings(None, {f"CLAMPROXY_{name}": value})


def _authority() -> bytes:
    return pem_of(make_authority(new_key(), PermittedNames(("example.net",)), datetime.now(UTC))[0])


_CONF = (
    b"DatabaseMirror database.clamav.net\nHTTPProxyServer gw.example.net\nHTTPProxyPort 8080\nChecks 24\n",
    b"PrivateMirror http://user:key@[::1]:8080/\nHTTPProxyUsername a\nHTTPProxyPassword b\n"
    b"ExcludeDatabase main\n",
    b"DatabaseMirror https://db.local.clamav.net\nDatabaseMirror http://mirror.example.net\nChecks 99\n"
    b"Bytecode no\r\n",
    b"HTTPProxyServer http://[gw\nDatabaseMirror http://gw:8080\nDatabaseMirror http://[gw\n",
    b"DatabaseMirror http://gw\nDatabaseMirror http://[gw\n",
    b"Checks %b\nHTTPProxyServer gw\nHTTPProxyPort %b\n" % (b"9" * 5000, b"9" * 5000),
)
_SAID = (
    b"LibClamAV Error: Can't load a.ndb: Malformed database\nERROR: Malformed database\n",
    b"LibClamAV Warning: cli_loadyara: failed to parse or load 1 yara rules from file a.yar, "
    b"successfully loaded 2 rules.\n",
    b"LibClamAV Warning: unknown extension\n",
)

PARSERS = (
    Parser(
        "proxy.yaml",
        _proxy_yaml,
        (
            example().encode(),
            b"cache: {directory: /x}\nserving: {databases: [a]}\n",
            b"a: &a [*a]",
            b"upstream: {rate_limit: 5 Mbit/s, url: http://x}",
        ),
        (ConfigurationError,),
    ),
    Parser(
        "environment variable",
        _variable,
        (b"LISTEN__PROXY=0.0.0.0:80", b"CACHE__MAX_SIZE=10 GiB", b"UPSTREAM__RATE_LIMIT={8-18: 5 Mbit/s}"),
        (ConfigurationError,),
    ),
    Parser("freshclam.conf", _freshclam_conf, _CONF),
    Parser(
        "names of machines",
        _labels,
        (b"192.0.2.0/24 = , office # x\n12345678-9abc-4def-8012-3456789abcde = a, b\n",),
        (ConfigurationError,),
    ),
    Parser("list of ignored signatures", _ignored, (b"Win.A-1\n#c\nX:0123\n",)),
    Parser(
        "name of a signature",
        lambda data: signature_name(data.decode("utf-8", "replace")),
        (b"YARA.x.UNOFFICIAL",),
        (ValueError,),
    ),
    Parser(
        "output of clamscan",
        lambda data: verdict_of(2, data.decode("utf-8", "replace")),
        _SAID,
        (CheckError,),
    ),
    Parser(
        "versions of another gateway",
        lambda data: Since.parse([data.decode("utf-8", "replace")]),
        (b"27790,daily=5",),
        (ValueError,),
    ),
    Parser(
        "authorities of clients",
        lambda data: ClientTrust.read(_written("ca.pem", data)),
        (_authority(), b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n"),
        (ValueError,),
    ),
)
