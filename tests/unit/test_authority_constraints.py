"""The names that the certificate authority may sign for."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from cryptography import x509

from clamproxy.authority import PermittedNames, configured_names
from clamproxy.authority.certificates import make_authority, new_key, utc
from clamproxy.config.settings import Settings

NOW = 1_790_000_000.0


def settings(**sections: dict[str, Any]) -> Settings:
    return Settings.model_validate(sections)


def names(**sections: dict[str, Any]) -> PermittedNames:
    return configured_names(settings(**sections))[0]


def test_default_is_clamav_only() -> None:
    assert configured_names(Settings()) == (PermittedNames(("clamav.net",)), [])


@pytest.mark.parametrize(
    ("sections", "domains"),
    [
        ({"serving": {"hosts": ["mirror.example.com"]}}, ("mirror.example.com",)),
        ({"serving": {"hosts": ["db.*.example.com", "localhost"]}}, ("example.com", "localhost")),
        ({"feeds": {"hosts": ["*.example.org", "urlhaus.abuse.ch"]}}, ("example.org", "urlhaus.abuse.ch")),
        ({"tls": {"names": ["gateway.example.net", "gateway"]}}, ("gateway.example.net", "gateway")),
        ({"tls": {"names": ["a.example.net", "example.net", "example.net"]}}, ("example.net",)),
        ({"serving": {"hosts": ["db.xy.clamav.net"]}}, ()),
        ({"tls": {"names": ["notclamav.net"]}}, ("notclamav.net",)),
    ],
)
def test_configured_domains(sections: dict[str, Any], domains: tuple[str, ...]) -> None:
    assert names(**sections).domains == ("clamav.net", *domains)


@pytest.mark.parametrize("pattern", ["*", "db.*", "*.com", "10.0.0.*", "a.*.*"])
def test_pattern_that_is_too_wide(pattern: str) -> None:
    assert configured_names(settings(serving={"hosts": [pattern]})) == (
        PermittedNames(("clamav.net",)),
        [pattern],
    )


def test_addresses() -> None:
    found = names(tls={"names": ["192.0.2.7", "192.0.2.7", "gw"]}, serving={"hosts": ["10.0.0.1"]})
    assert found == PermittedNames(("clamav.net", "gw"), (IPv4Address("10.0.0.1"), IPv4Address("192.0.2.7")))
    assert str(found) == "clamav.net, gw, 10.0.0.1, 192.0.2.7"


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("clamav.net", True),
        ("database.clamav.net", True),
        ("a.b.clamav.net", True),
        ("notclamav.net", False),
        ("clamav.net.example.com", False),
        ("net", False),
        ("", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8::1", False),
    ],
)
def test_cover(name: str, covered: bool) -> None:
    assert PermittedNames(("clamav.net",), (IPv4Address("192.0.2.7"),)).cover(name) is covered


def test_missing() -> None:
    have = PermittedNames(("clamav.net",), (IPv4Address("192.0.2.7"),))
    wanted = PermittedNames(("db.clamav.net", "gw"), (IPv4Address("192.0.2.7"), IPv4Address("192.0.2.8")))
    assert have.missing(wanted) == ["gw", "192.0.2.8"]


@pytest.mark.parametrize(
    ("permitted", "excluded"),
    [
        (PermittedNames(("clamav.net", "gw")), ["0.0.0.0/0", "::/0"]),
        (PermittedNames(("clamav.net",), (IPv4Address("192.0.2.7"),)), ["::/0"]),
    ],
)
def test_constraints(permitted: PermittedNames, excluded: list[str]) -> None:
    for certificate in make_authority(new_key(), permitted, utc(NOW)):
        assert_constraints(certificate, permitted, excluded)


def assert_constraints(certificate: x509.Certificate, permitted: PermittedNames, excluded: list[str]) -> None:
    extension = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert extension.critical
    assert [str(name.value) for name in extension.value.excluded_subtrees or ()] == excluded
    # Mail addresses and URIs must be mentioned, too: what isn't is unrestricted.
    kinds = {type(name) for name in extension.value.permitted_subtrees or ()}
    assert {x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier} <= kinds
    assert PermittedNames.of_certificate(certificate) == permitted
