"""``clamproxy doctor``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from clamproxy.cli.common import config_option, database_option, fail, gateway_here, write_out
from clamproxy.cli.parameters import parse_gateway, parsed_by
from clamproxy.config.loading import (
    PASSWORD_VARIABLE,
    ConfigurationError,
    find_config,
    load_settings,
    working_directory,
)
from clamproxy.config.settings import CLAMAV_RECORD
from clamproxy.config.units import NAMESERVER, Nameserver, host_and_port
from clamproxy.doctor.findings import Deadline, Finding, Status, examine, exit_code
from clamproxy.doctor.freshclam import (
    STANDARD_DATABASES,
    FreshclamConf,
    find_conf,
    hidden_conf,
    read_conf,
    user_agent,
)
from clamproxy.doctor.route import Route, route_of
from clamproxy.formats.signatures import CLAMAV_KEYS

if TYPE_CHECKING:
    from clamproxy.doctor.client_checks import Subject
    from clamproxy.doctor.tls_checks import Trust

LIMIT = 24.0
"""Seconds for all checks together; the check that is running at the end may take a little longer."""

_GATEWAY, _CLIENT, _MACHINE = "gateway", "client", "machine"
_TITLES = {_GATEWAY: "On this gateway", _CLIENT: "As a client of {}", _MACHINE: "On this machine"}
_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red", Status.SKIPPED: "dim"}
_WIDTH = max(map(len, Status)) + 1
_SUBJECT_WIDTH = 16


@click.command()
@click.option(
    "--gateway",
    metavar="HOST[:PORT]",
    callback=parsed_by(parse_gateway),
    help="The gateway to test as a client; default: this machine if it is one, or else freshclam's proxy.",
)
@click.option("--local/--no-local", default=None, help="Whether to check the gateway on this machine, too.")
@click.option(
    "--https", is_flag=True, help="Test https as well, with the certificates that this machine trusts."
)
@click.option(
    "--ca", metavar="FILE", type=click.Path(path_type=Path), help="The CA to trust; implies --https."
)
@click.option(
    "--user",
    metavar="NAME",
    help=f"HTTPProxyUsername. The password comes from ${PASSWORD_VARIABLE} or a prompt.",
)
@database_option("those in freshclam.conf; on the gateway, the cached ones")
@click.option(
    "--nameserver",
    metavar="ADDRESS",
    callback=parsed_by(NAMESERVER.parse),
    help="The DNS server to ask as a client.",
)
@click.option(
    "--freshclam-conf",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="freshclam's configuration file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def doctor(
    gateway: tuple[str, int] | None,
    local: bool | None,
    https: bool,
    ca: Path | None,
    user: str | None,
    databases: tuple[str, ...],
    nameserver: Nameserver | None,
    freshclam_conf: Path | None,
    as_json: bool,
    config: str | None,
) -> None:
    """Find out what is wrong, and what to do about it.

    The doctor asks the gateway for what freshclam would: the header of each database and one patch, but
    no whole database. The gateway doesn't count these requests. On a machine, the doctor also checks
    freshclam's configuration, cool-down, daemon and databases; on the gateway, it checks configuration,
    cache, disk, clock, DNS and upstream.

    Exit code: 0 all is well, 1 warnings, 2 problems.
    """
    try:
        working_directory()
    except ConfigurationError as error:
        fail(str(error))
    is_local = _is_gateway(config) if local is None else local
    path = freshclam_conf or (None if is_local and gateway is None else find_conf())
    conf = FreshclamConf() if path is None else _read(path)
    own = Route(*gateway_here(config)) if is_local and freshclam_conf is None else None
    configured = route_of(conf, os.environ)
    route = _route(gateway, configured or own)
    leads_here = configured is not None and route is configured
    is_machine = path is not None and (freshclam_conf is not None or leads_here)
    credentials = f"{user}:{_password(user)}" if user else route.credentials
    wants_https = https or ca is not None or route.uses_https
    visit = _Visit(
        route=replace(route, credentials=credentials),
        databases=databases or (tuple(conf.databases) if is_machine else ()),
        nameserver=nameserver,
        trusts=_trusts(ca, config, is_local=is_local) if wants_https else [],
        config=config,
        is_local=is_local,
        machine=(path, conf) if path is not None and is_machine else None,
        left_alone=None if is_machine or is_local else path,
    )
    shown = _Shown(as_json, host_and_port(route.host, route.port))
    for side, finding in visit.findings():
        shown.add(side, finding)
    shown.end()
    sys.exit(exit_code(finding for _, finding in shown.findings))


@dataclass(frozen=True, slots=True)
class _Visit:
    """What the doctor examines."""

    route: Route
    databases: Sequence[str]
    """The databases that the user has named; may be empty."""
    nameserver: Nameserver | None
    trusts: Sequence[Trust]
    config: str | None
    is_local: bool
    machine: tuple[Path, FreshclamConf] | None
    """Path and content of freshclam's configuration; None if it isn't examined."""
    left_alone: Path | None
    """A configuration that isn't examined because it doesn't lead to this gateway."""

    def findings(self) -> Iterator[tuple[str, Finding]]:
        """All findings, each with the side that it is about."""
        from clamproxy.doctor.client_checks import Client
        from clamproxy.doctor.explain import HERE, ON_GATEWAY
        from clamproxy.doctor.machine_checks import MachineChecks

        deadline = Deadline(LIMIT)
        databases = self.databases
        if self.is_local:
            from clamproxy.doctor.gateway_checks import GatewayChecks

            with closing(GatewayChecks(self.config, databases, deadline)) as side:
                for finding in examine(side.checks(), deadline):
                    yield _GATEWAY, finding
            databases = side.databases
        client = Client(self._subject(databases or STANDARD_DATABASES), deadline)
        for finding in examine(client.checks(), deadline):
            # A user whom a remedy sends to the gateway is already there.
            remedy = finding.remedy.replace(ON_GATEWAY, HERE) if self.is_local else finding.remedy
            yield _CLIENT, replace(finding, remedy=remedy)
        if self.machine is not None:
            # Checking this machine takes only a moment, so it is done however long the network took.
            machine = MachineChecks(*self.machine, client.served)
            for finding in examine(machine.checks(), Deadline(LIMIT)):
                yield _MACHINE, finding
        elif self.left_alone is not None:
            text = f"{self.left_alone} doesn't point to this gateway; use --freshclam-conf to check it anyway"
            yield _MACHINE, Finding(Status.SKIPPED, "freshclam.conf", text)

    def _subject(self, databases: Sequence[str]) -> Subject:
        from clamproxy.doctor.client_checks import Subject
        from clamproxy.doctor.wire import Proxy

        route, nameservers = self.route, [self.nameserver] if self.nameserver else []
        proxy = Proxy(route.host, route.port, user_agent=user_agent(), credentials=route.credentials)
        conf = self.machine[1] if self.machine is not None else FreshclamConf()
        return Subject(
            proxy,
            databases,
            CLAMAV_KEYS,
            self.trusts,
            nameservers,
            route.target,
            is_mirror=route.is_mirror,
            record=conf.first("DNSDatabaseInfo") or CLAMAV_RECORD,
        )


def _route(given: tuple[str, int] | None, configured: Route | None) -> Route:
    """The route to the gateway: as the user says, or else as freshclam is configured.

    Args:
        given: by --gateway.
        configured: by freshclam.conf or the environment, or because this machine is the gateway.
    """
    if configured is not None and given in (None, (configured.host, configured.port)):
        return configured
    if given is None and (hidden := hidden_conf()) is not None:
        fail(f"which gateway? {hidden} can't be read by this user; run this with sudo, or use --gateway")
    if given is None:
        fail("which gateway? freshclam.conf has no HTTPProxyServer here; use --gateway HOST:PORT")
    return Route(*given)


def _trusts(ca: Path | None, config: str | None, *, is_local: bool) -> list[Trust]:
    """What clients with https may trust here; on a gateway, its own authority as well."""
    from clamproxy.doctor.tls_checks import own_trust, trust_of

    trusts = trust_of(ca)
    if is_local and ca is None:
        with suppress(ConfigurationError):  # this is reported as a separate finding
            settings = load_settings(find_config(config), os.environ)
            trusts += own_trust(settings.tls.directory)
    return trusts


def _is_gateway(config: str | None) -> bool:
    """Whether this machine has a configuration or a cache of clamproxy."""
    try:
        path = find_config(config)
        return path is not None or load_settings(None, os.environ).cache.directory.is_dir()
    except ConfigurationError:
        return True  # there is a configuration, but it is wrong


def _read(path: Path) -> FreshclamConf:
    try:
        return read_conf(path)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")


def _password(user: str) -> str:
    if (password := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return password
    return str(click.prompt(f"Password for {user}", hide_input=True, err=True))


class _Shown:
    """Prints the findings: each as it is made, or all of them as JSON."""

    def __init__(self, as_json: bool, gateway: str) -> None:
        self.findings: list[tuple[str, Finding]] = []
        self._as_json = as_json
        self._gateway = gateway
        self._console = Console(highlight=False, soft_wrap=True)

    def add(self, side: str, finding: Finding) -> None:
        begins = not self.findings or self.findings[-1][0] != side
        self.findings.append((side, finding))
        if self._as_json:
            return
        with self._console.capture() as captured:
            self._print(side if begins else None, finding)
        write_out(captured.get())

    def _print(self, side: str | None, finding: Finding) -> None:
        if side is not None:
            self._console.print(Text(_TITLES[side].format(self._gateway), style="bold"))
        line = Text.assemble(
            "  ",
            (f"{finding.status:<{_WIDTH}}", _STYLES[finding.status]),
            f"{finding.subject:<{_SUBJECT_WIDTH}}",
            finding.text,
        )
        self._console.print(line)
        if finding.remedy:
            self._console.print(Text(f"  {'':{_WIDTH}}{'':{_SUBJECT_WIDTH}}Do: {finding.remedy}"))

    def end(self) -> None:
        if self._as_json:
            rows = [{"side": side, **finding.to_json()} for side, finding in self.findings]
            code = exit_code(finding for _, finding in self.findings)
            status = (Status.OK, Status.WARNING, Status.PROBLEM)[code]
            values = {"status": status, "gateway": self._gateway, "findings": rows}
            write_out(json.dumps(values, indent=2) + "\n")
