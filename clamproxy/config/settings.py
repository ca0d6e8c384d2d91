"""The configuration as frozen ``Settings``: every key with its type, default and limits.

The ``description`` of a field is what an error says was expected.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from clamproxy.config.fields import (
    AbsolutePath,
    BaseUrl,
    Count,
    DatabaseName,
    Duration,
    Endpoints,
    HostName,
    Section,
    Share,
    Size,
    Switch,
    available,
    certificates,
    client_authorities,
    roots,
    with_obstore,
)
from clamproxy.config.notation import OneOrMore
from clamproxy.config.quantities import DURATION
from clamproxy.config.rates import Rates
from clamproxy.config.servers import MOST_TARGETS, MailSection, NotifySection, Peers, no_peer_twice
from clamproxy.config.units import (
    ADDRESS,
    ANY,
    DATABASE,
    DOMAIN_PATTERN,
    ENDPOINT,
    FLEET_STORE,
    GIB,
    HOST_PATTERN,
    HTTP_PROXY,
    KIB,
    MIB,
    NAMESERVER,
    NETWORK,
    TOKEN,
    USER,
    Address,
    Endpoint,
    HttpProxy,
    Nameserver,
    Network,
    client_ip,
    domain_matches,
    host_matches,
    normal_host,
)

LONGEST_DELAY = 30 * 86400.0
"""The longest delay of a release, in seconds."""
_TIMEOUT = "a duration such as 10s, more than 0 and at most 1h"
_SWITCH = "true or false"
_NETWORKS = 'a list of networks such as [10.0.0.5, "fd00::/64"]'
_RATE = "a rate such as 2MB/s, at least 16KiB/s, or a mapping from hours such as Mo-Fr 8-18 to rates, or null"
_ENDPOINTS = 'a port, an address with a port such as "*:8080", a list of them, or null'


class ListenSection(Section):
    """Where the gateway listens; options on the command line override it."""

    proxy: Endpoints = Field(
        (Endpoint(ANY, 8080),),
        min_length=1,
        description='a port, an address with a port such as "*:8080", or a list of one or more of them',
    )
    reverse: Endpoints = Field((), description=_ENDPOINTS)
    dns: Endpoints = Field((), description=_ENDPOINTS)

    @field_validator("proxy", "reverse", "dns", mode="after")
    @classmethod
    def _no_port_twice(cls, endpoints: tuple[Endpoint, ...], info: ValidationInfo) -> tuple[Endpoint, ...]:
        taken = [(other, f"listen.{name}") for name, others in info.data.items() for other in others]
        for endpoint in endpoints:
            for other, where in taken:
                if endpoint.clashes(other):
                    raise PydanticCustomError("conflict", f"another port, as {other} is already in {where}")
            taken.append((endpoint, "the same list"))
        return endpoints


class CacheSection(Section):
    """Where cached files are kept, and how many."""

    directory: AbsolutePath = Field(
        default=Path("cache"),
        validate_default=True,
        description="the path of a directory",
    )
    size_limit: Size = Field(4 * GIB, ge=MIB, description="a size such as 4GiB, at least 1 MiB")
    keep_cdiffs: Count = Field(120, ge=0, description="a whole number, at least 0")


class StateSection(Section):
    """Where the records are kept, which can't be fetched again: the fleet, the counters and their history."""

    directory: AbsolutePath | None = Field(None, description="the path of a directory, or null")


class UpstreamSection(Section):
    """Where to fetch files that aren't cached; timeouts in seconds."""

    url: BaseUrl = Field(
        "https://database.clamav.net",
        description="an http:// or https:// URL without credentials, query or fragment",
    )
    address: Annotated[tuple[Annotated[Address, ADDRESS], ...], OneOrMore()] = Field(
        (), description='an IP address such as 192.0.2.1 or "[2001:db8::1]:443", a list of them, or null'
    )
    proxy: Annotated[HttpProxy, HTTP_PROXY] | None = Field(
        None, description="an http:// or https:// URL such as http://user:password@proxy:3128, or null"
    )
    proxy_auth: Annotated[Literal["basic", "ntlm", "negotiate"], AfterValidator(available)] = Field(
        "basic", description="basic, ntlm or negotiate"
    )
    ca_bundle: Annotated[AbsolutePath, AfterValidator(certificates)] | None = Field(
        None, description="a readable file of PEM certificates, or null"
    )
    cvd_certs_directory: Annotated[AbsolutePath, AfterValidator(roots)] | None = Field(
        None, description="a readable directory with .crt or .pem files of PEM certificates, or null"
    )
    connect_timeout: Duration = Field(10.0, gt=0, le=3600, description=_TIMEOUT)
    read_timeout: Duration = Field(30.0, gt=0, le=3600, description=_TIMEOUT)
    offline: Switch = Field(False, description=_SWITCH)
    user_agent: Annotated[str, Field(strict=True, pattern=r"^[!-~][ -~]{0,254}$")] | None = Field(
        None, description="a string such as ClamAV/1.4.3 (OS: Linux, ARCH: x86_64), or null"
    )
    rate_limit: Rates | None = Field(None, description=_RATE)

    @property
    def parent_proxy(self) -> HttpProxy | None:
        """The proxy, and how to log in there."""
        return None if self.proxy is None else replace(self.proxy, scheme=self.proxy_auth)


CLAMAV_RECORD = "current.cvd.clamav.net"
"""The name of the record with the advertised versions; freshclam asks for it by default."""


class VersionsSection(Section):
    """How the gateway learns the advertised versions; `refresh` in seconds."""

    dns: Switch = Field(True, description=_SWITCH)
    domain: HostName = Field(CLAMAV_RECORD, description="a host name")
    nameservers: tuple[Annotated[Nameserver, NAMESERVER], ...] = Field(
        (), description='a list of IP addresses such as [192.0.2.1, "[2001:db8::1]:53"]'
    )
    refresh: Duration = Field(
        300.0, gt=0, le=86400, description="a duration such as 5min, more than 0 and at most 1d"
    )
    doh: BaseUrl | None = Field(
        None, description="the URL of a DNS-over-HTTPS server such as https://192.0.2.1/dns-query, or null"
    )


DEFAULT_CLIENTS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "::1/128"),
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # RFC 1918
        *("fc00::/7", "fe80::/10", "169.254.0.0/16"),  # RFC 4193, RFC 4291, RFC 3927
        "100.64.0.0/10",  # RFC 6598
    )
)


class ServingSection(Section):
    """What is served, and to whom."""

    hosts: tuple[Annotated[str, HOST_PATTERN], ...] = Field(
        ("database.clamav.net", "db.local.clamav.net", "db.*.clamav.net"),
        min_length=1,
        description="a list of one or more host names such as [database.clamav.net]",
    )
    databases: tuple[DatabaseName, ...] = Field(
        ("main", "daily", "bytecode", "safebrowsing", "test", "valhalla"),
        min_length=1,
        description="a list of one or more names such as [main, daily]",
    )
    clients: tuple[Annotated[Network, NETWORK], ...] = Field(
        DEFAULT_CLIENTS,
        min_length=1,
        description='a list of one or more networks such as [10.0.0.0/8, "fd00::/8"]',
    )
    pass_through: tuple[Annotated[str, DOMAIN_PATTERN], ...] = Field(
        (), description='a list of host names such as [www.example.com, "*.example.com"]'
    )
    prefetch: Literal["cdiffs", "all", "none"] = Field("cdiffs", description="cdiffs, all or none")
    other_names: Literal["refuse", "forward"] = Field("refuse", description="refuse or forward")
    express: Switch = Field(True, description=_SWITCH)
    rate_limit_per_client: Rates | None = Field(None, description=_RATE)
    dns_name: HostName | None = Field(
        None, description="a host name such as current.cvd.example.net, or null"
    )

    def is_clamav_host(self, host: str) -> bool:
        """Tell whether a host (without port) is answered as the CDN; ``*`` is one label."""
        return host in self.hosts or any(host_matches(pattern, host) for pattern in self.hosts)

    def passes_through(self, host: str) -> bool:
        """Tell whether requests for a host (without port) are forwarded as they are."""
        return any(domain_matches(pattern, host) for pattern in self.pass_through)

    def admits(self, address: str) -> bool:
        """Tell whether a client may use the proxy.

        Args:
            address: Its address, as its socket gives it.
        """
        ip = client_ip(address)
        return ip is not None and any(ip in network for network in self.clients)


class Delta(Section):
    """Delta serving: an older CVD and the cdiffs from there on."""

    enabled: Switch = Field(True, description=_SWITCH)
    max_patches: Count = Field(90, ge=1, description="a whole number, at least 1")
    max_share: Share = Field(0.1, ge=0, le=1, description="a share such as 10% or 0.1, at most 100%")
    renew_after: Count = Field(30, ge=1, description="a whole number, at least 1")


class ReleasesSection(Section):
    """How long new releases are held back, and from whom; times in seconds."""

    delay: dict[DatabaseName, Duration] = Field(
        {}, description="databases with durations of at most 30d, such as {daily: 4h}"
    )
    canaries: tuple[Annotated[Network, NETWORK], ...] = Field(
        (), description='a list of networks such as [10.0.0.0/28, "fd00::/64"]'
    )
    longest_hold: Duration = Field(
        3 * 86400.0, ge=60, le=365 * 86400, description="a duration such as 3d, from 1min to 365d"
    )

    @field_validator("delay", mode="before")
    @classmethod
    def _names_and_durations(cls, value: object) -> object:
        """Explain what is wrong inside the mapping, which errors don't show."""
        for database, delay in value.items() if isinstance(value, dict) else ():
            try:
                DATABASE.parse(database)
                if not 0 <= DURATION.parse(delay) <= LONGEST_DELAY:
                    raise ValueError
            except ValueError:
                wrong = {"wrong": f"{database}: {delay}"[:60]}
                text = "databases with durations of at most 30d, such as daily: 4h; not {wrong}"
                raise PydanticCustomError("conflict", text, wrong) from None
        return {} if value is None else value

    def __hash__(self) -> int:
        return hash((*sorted(self.delay.items()), self.canaries, self.longest_hold))

    def is_canary(self, address: str) -> bool:
        """Tell whether a client gets new releases at once, by its address as its socket gives it."""
        ip = client_ip(address) if self.canaries and address else None
        return ip is not None and any(ip in network for network in self.canaries)


class AccessSection(Section):
    """How much of the gateway clients may use, and whether they have to log in."""

    users: tuple[Annotated[str, USER], ...] = Field(
        (), description="a list of lines that `clamproxy hash-password` printed, each beginning with - "
    )
    client_ca: Annotated[AbsolutePath, AfterValidator(client_authorities)] | None = Field(
        None, description="a readable file of PEM certificates, or null"
    )
    proxy_protocol: tuple[Annotated[Network, NETWORK], ...] = Field((), description=_NETWORKS)
    forwarded_for: tuple[Annotated[Network, NETWORK], ...] = Field((), description=_NETWORKS)
    max_connections: Count = Field(2000, ge=1, description="a whole number, at least 1")
    max_connections_per_client: Count = Field(200, ge=1, description="a whole number, at least 1")
    max_request_line: Size = Field(
        8 * KIB, ge=256, le=MIB, description="a size such as 8KiB, from 256 to 1 MiB"
    )
    max_header_size: Size = Field(
        32 * KIB, ge=KIB, le=MIB, description="a size such as 32KiB, from 1 KiB to 1 MiB"
    )
    idle_timeout: Duration = Field(
        120.0, ge=1, le=86400, description="a duration such as 2min, from 1s to 1d"
    )


class TlsSection(Section):
    """The certificate authority for clients that use https."""

    directory: AbsolutePath = Field(
        default=Path("ca"),
        validate_default=True,
        description="the path of a directory",
    )
    names: tuple[HostName, ...] = Field((), description="a list of host names such as [gateway.example.net]")


class FleetSection(Section):
    """The table of machines; `keep` and `behind_for` in seconds."""

    enabled: Switch = Field(True, description=_SWITCH)
    max_clients: Count = Field(20_000, ge=1, le=1_000_000, description="a whole number from 1 to 1000000")
    keep: Duration = Field(
        90 * 86400.0, ge=3600, le=3650 * 86400, description="a duration such as 90d, from 1h to 3650d"
    )
    behind_for: Duration = Field(
        86400.0, ge=60, le=365 * 86400, description="a duration such as 36h, from 1min to 365d"
    )
    peers: Annotated[Peers, AfterValidator(no_peer_twice)] = Field(
        (),
        max_length=MOST_TARGETS,
        description='a list of entries such as {url: "http://gateway2:8080", token: …}',
    )
    labels: AbsolutePath | None = Field(None, description="the path of a file, or null")
    reverse_dns: Switch = Field(False, description=_SWITCH)
    nameservers: tuple[Annotated[Nameserver, NAMESERVER], ...] = Field(
        (), description='a list of IP addresses such as [192.0.2.1, "[2001:db8::1]:53"]'
    )


class StatusSection(Section):
    """The pages about the gateway itself."""

    host: HostName | None = Field("clamproxy", description="a host name, or null")
    listen: Annotated[Endpoint, ENDPOINT] | None = Field(
        Endpoint("127.0.0.1", 8081),
        description='an IP address and a port such as 127.0.0.1:8081 or "[::1]:8081", or null',
    )
    token: Annotated[SecretStr, TOKEN] | None = Field(
        None,
        validate_default=True,
        description="a string of at least 16 characters from A-Z, a-z, 0-9 and -._~, or null",
    )

    @field_validator("token", mode="after")
    @classmethod
    def _guards_the_listener(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        """Whoever can reach the listener can read the names of all machines."""
        listen = info.data.get("listen")
        if token is None and listen is not None and not listen.is_loopback:
            raise PydanticCustomError("conflict", "a token, because status.listen is not a loopback address")
        return token


class LogSection(Section):
    """How the log is written."""

    format: Literal["text", "json"] = Field("text", description="text or json")


class FeedsSection(Section):
    """Other signature feeds, cached by the rules of HTTP; `stale_if_error` in seconds."""

    hosts: tuple[Annotated[str, DOMAIN_PATTERN], ...] = Field(
        (), description='a list of host names such as [urlhaus.abuse.ch, "*.example.com"]'
    )
    size_limit: Size = Field(GIB, ge=MIB, description="a size such as 1GiB, at least 1 MiB")
    stale_if_error: Duration = Field(
        7 * 86400.0, le=365 * 86400, description="a duration such as 7d, at most 365d"
    )

    def covers(self, host: str) -> bool:
        """Tell whether requests for a host (without port) are answered from the cache of feeds."""
        return any(domain_matches(pattern, host) for pattern in self.hosts)

    def may_lead_to(self, host: str, address: str) -> bool:
        """Tell whether a feed may have an address of this machine or its link: if that is listed, too."""
        return normal_host(host) == "localhost" or self.covers(address)


class FilesSection(Section):
    """Files of the site's own: local databases that machines get by `DatabaseCustomURL`."""

    directory: AbsolutePath | None = Field(
        default=Path("files"), validate_default=True, description="the path of a directory, or null"
    )


class Settings(Section):
    """The whole configuration."""

    listen: ListenSection = Field(default_factory=ListenSection)
    cache: CacheSection = Field(default_factory=CacheSection)
    state: StateSection = Field(default_factory=StateSection)
    upstream: UpstreamSection = Field(default_factory=UpstreamSection)
    versions: VersionsSection = Field(default_factory=VersionsSection)
    serving: ServingSection = Field(default_factory=ServingSection)
    delta: Delta = Field(default_factory=Delta)
    releases: ReleasesSection = Field(default_factory=ReleasesSection)
    access: AccessSection = Field(default_factory=AccessSection)
    tls: TlsSection = Field(default_factory=TlsSection)
    fleet: FleetSection = Field(default_factory=FleetSection)
    fleet_store: Annotated[str, FLEET_STORE, AfterValidator(with_obstore)] | None = Field(
        None, description=f"{FLEET_STORE.expected}, or null"
    )
    status: StatusSection = Field(default_factory=StatusSection)
    log: LogSection = Field(default_factory=LogSection)
    feeds: FeedsSection = Field(default_factory=FeedsSection)
    files: FilesSection = Field(default_factory=FilesSection)
    notify: NotifySection = Field(default_factory=NotifySection)
    mail: MailSection = Field(default_factory=MailSection)

    @property
    def asks_dns(self) -> bool:
        """Whether advertised versions are learned from DNS."""
        return self.versions.dns and not self.upstream.offline

    @model_validator(mode="before")
    @classmethod
    def _fill_sections(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Let absent and empty sections be validated too: their defaults need the context."""
        keys = {"fleet_store"}  # of no section
        given = {
            name: {} if content is None and name not in keys else content for name, content in data.items()
        }
        return {name: {} for name in cls.model_fields if name not in keys} | given
