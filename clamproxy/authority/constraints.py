"""The names that an authority may sign for, in the form of name constraints."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

from cryptography import x509

from clamproxy.config.settings import Settings

ALWAYS = "clamav.net"
"""Permitted together with all names below it, whatever is configured."""
_NOBODY = "invalid"
"""A domain that never exists (RFC 2606)."""


@dataclass(frozen=True, slots=True)
class PermittedNames:
    """IP addresses, and domains with all names below them."""

    domains: tuple[str, ...]
    addresses: tuple[IPv4Address, ...] = ()

    @classmethod
    def of_certificate(cls, certificate: x509.Certificate) -> Self:
        """Read the permitted names from an authority's certificate.

        Raises:
            ValueError: it has no name constraints.
        """
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            raise ValueError("a certificate without name constraints") from None
        domains, addresses = [], []
        for subtree in constraints.permitted_subtrees or ():
            if isinstance(subtree, x509.DNSName):
                domains.append(subtree.value)
            elif isinstance(subtree, x509.IPAddress) and isinstance(subtree.value, ipaddress.IPv4Network):
                addresses.append(subtree.value.network_address)
        return cls(tuple(domains), tuple(addresses))

    def cover(self, name: str) -> bool:
        """Whether a host name in lower case, or an IP address, is permitted."""
        try:
            return ipaddress.ip_address(name) in self.addresses
        except ValueError:
            return any(name == domain or name.endswith(f".{domain}") for domain in self.domains)

    def missing(self, wanted: PermittedNames) -> list[str]:
        """The wanted names that are not permitted."""
        names = [*wanted.domains, *map(str, wanted.addresses)]
        return [name for name in names if not self.cover(name)]

    def constraints(self) -> x509.NameConstraints:
        """The extension for the authority's certificate.

        A type of name that the extension doesn't mention is unrestricted. So all addresses are excluded
        except the permitted ones, and mail addresses and URIs are permitted only for a domain that
        doesn't exist. This isn't possible for directory names: Go's verifier rejects every certificate
        that has a critical constraint on them. The common name of a certificate does no harm: verifiers
        that still take it for a host name check it against these constraints (OpenSSL, GnuTLS, NSS,
        Java).
        """
        addresses = [x509.IPAddress(ipaddress.ip_network(address)) for address in self.addresses]
        permitted: list[x509.GeneralName] = [x509.DNSName(domain) for domain in self.domains]
        permitted += [*addresses, x509.RFC822Name(_NOBODY), x509.UniformResourceIdentifier(_NOBODY)]
        excluded = ["::/0"] if addresses else ["0.0.0.0/0", "::/0"]
        return x509.NameConstraints(
            permitted_subtrees=permitted,
            excluded_subtrees=[x509.IPAddress(ipaddress.ip_network(network)) for network in excluded],
        )

    def __str__(self) -> str:
        return ", ".join([*self.domains, *map(str, self.addresses)])


def configured_names(settings: Settings) -> tuple[PermittedNames, list[str]]:
    """The names that the authority of a gateway has to sign for.

    Returns:
        The names, and the host patterns that can't be expressed as a name constraint.
    """
    domains, addresses, impossible = [ALWAYS], [], []
    for pattern in (*settings.serving.hosts, *settings.feeds.hosts, *settings.tls.names):
        domain = _domain_of(pattern)
        if domain is None:
            impossible.append(pattern)
            continue
        try:
            addresses.append(IPv4Address(domain))
        except ValueError:
            domains.append(domain)
    return PermittedNames(_without_lower(domains), tuple(dict.fromkeys(addresses))), impossible


def _domain_of(pattern: str) -> str | None:
    """The domain that contains all names of a pattern; None if that is as wide as a top-level domain."""
    _, wildcard, rest = pattern.rpartition("*")
    domain = rest.removeprefix(".")
    return domain if domain and (not wildcard or "." in domain) else None


def _without_lower(domains: Iterable[str]) -> tuple[str, ...]:
    """Each domain once, without those that are below another."""
    unique = list(dict.fromkeys(domains))
    return tuple(name for name in unique if not any(name.endswith(f".{other}") for other in unique))
