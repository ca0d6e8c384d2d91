"""``clamproxy doctor``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from clamproxy.cli.common import config_option, fail, gateway_here, write_out
from clamproxy.cli.parameters import parse_gateway, parsed_by
from clamproxy.config.loading import PASSWORD_VARIABLE, ConfigurationError, find_config, load_settings
from clamproxy.config.units import Nameserver, parse_database, parse_nameserver
from clamproxy.doctor.findings import Deadline, Finding, Status, examine, exit_code
from clamproxy.doctor.freshclam import FreshclamConf, find_conf, read_conf, user_agent
from clamproxy.formats.signatures import CLAMAV_KEYS

if TYPE_CHECKING:
    from clamproxy.doctor.client import Subject
    from clamproxy.doctor.tls import Trust
    from clamproxy.doctor.wire import Proxy

LIMIT = 24.0
"""Seconds for all checks; the one that runs at the end may take some more."""

_GATEWAY, _CLIENT = "gateway", "client"
_TITLES = {_GATEWAY: "On this gateway", _CLIENT: "As a client of {}"}
_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red", Status.SKIPPED: "dim"}
_WIDTH = max(map(len, Status)) + 1
_SUBJECT_WIDTH = 16


@click.command()
@click.option(
    "--gateway",
    metavar="HOST[:PORT]",
    callback=parsed_by(parse_gateway),
    help="The gateway to try as a client; default: this machine if it is one, else freshclam's proxy.",
)
@click.option("--local/--no-local", default=None, help="Whether to look at the gateway on this machine, too.")
@click.option("--https", is_flag=True, help="Try https as well, with the certificates that are trusted here.")
@click.option(
    "--ca", metavar="FILE", type=click.Path(path_type=Path), help="The CA to trust; implies --https."
)
@click.option(
    "--user", metavar="NAME", help=f"HTTPProxyUsername; the password is ${PASSWORD_VARIABLE}, or asked."
)
@click.option(
    "--database", metavar="NAME", default="daily", callback=parsed_by(parse_database), show_default=True
)
@click.option(
    "--nameserver",
    metavar="ADDRESS",
    callback=parsed_by(parse_nameserver),
    help="Ask this DNS server as a client.",
)
@click.option(
    "--freshclam-conf",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where freshclam's settings are.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def doctor(
    gateway: tuple[str, int] | None,
    local: bool | None,
    https: bool,
    ca: Path | None,
    user: str | None,
    database: str,
    nameserver: Nameserver | None,
    freshclam_conf: Path | None,
    as_json: bool,
    config: str | None,
) -> None:
    """Find out what is wrong, and what to do about it.

    Asks the gateway for what a freshclam asks for: a header and a patch, no whole database. On the
    gateway it looks at configuration, cache, disk, clock, DNS and upstream as well.

    Exit code: 0 all is well, 1 warnings, 2 problems.
    """
    is_local = _is_gateway(config) if local is None else local
    conf = _freshclam_conf(freshclam_conf)
    if gateway is None and is_local and freshclam_conf is None:
        gateway, conf = gateway_here(config), FreshclamConf()
    if gateway is None and conf.host is not None:
        gateway = conf.host, conf.port
    if gateway is None:
        fail("which gateway? freshclam.conf has no HTTPProxyServer here; give --gateway HOST:PORT")
    credentials = f"{user}:{_password(user)}" if user else conf.credentials
    wants_https = https or ca is not None or conf.uses_https
    trusts = _trusts(ca, config, is_local=is_local) if wants_https else []
    subject = _subject(gateway, credentials, database, nameserver, trusts)
    shown = _Shown(as_json, str(subject.proxy))
    for side, finding in _findings(subject, config, is_local):
        shown.add(side, finding)
    shown.end()
    sys.exit(exit_code(finding for _, finding in shown.findings))


def _findings(subject: Subject, config: str | None, is_local: bool) -> Iterator[tuple[str, Finding]]:
    from clamproxy.doctor.client import Client
    from clamproxy.doctor.explain import HERE, ON_GATEWAY

    deadline = Deadline(LIMIT)
    if is_local:
        from clamproxy.doctor.gateway import GatewaySide

        with closing(GatewaySide(config, subject.database, deadline)) as side:
            for finding in examine(side.checks(), deadline):
                yield _GATEWAY, finding
    for finding in examine(Client(subject, deadline).checks(), deadline):
        # Who has been told to look at the gateway is there already.
        remedy = finding.remedy.replace(ON_GATEWAY, HERE) if is_local else finding.remedy
        yield _CLIENT, replace(finding, remedy=remedy)


def _subject(
    gateway: tuple[str, int],
    credentials: str | None,
    database: str,
    nameserver: Nameserver | None,
    trusts: Sequence[Trust],
) -> Subject:
    from clamproxy.doctor.client import Subject
    from clamproxy.doctor.wire import Proxy

    proxy: Proxy = Proxy(*gateway, user_agent=user_agent(), credentials=credentials)
    return Subject(proxy, database, CLAMAV_KEYS, trusts, [nameserver] if nameserver else [])


def _trusts(ca: Path | None, config: str | None, *, is_local: bool) -> list[Trust]:
    """What clients with https may trust here: on a gateway its own authority, too."""
    from clamproxy.doctor.tls import own_trust, trust_of

    trusts = trust_of(ca)
    if is_local and ca is None:
        with suppress(ConfigurationError):  # that is a finding of its own
            settings = load_settings(find_config(config, Path.cwd()), os.environ)
            trusts += own_trust(settings.tls.directory)
    return trusts


def _is_gateway(config: str | None) -> bool:
    """Whether this machine has a configuration or a cache of clamproxy."""
    try:
        path = find_config(config, Path.cwd())
        return path is not None or load_settings(None, os.environ).cache.directory.is_dir()
    except ConfigurationError:
        return True  # one that is wrong


def _freshclam_conf(explicit: Path | None) -> FreshclamConf:
    path = explicit or find_conf()
    try:
        return FreshclamConf() if path is None else read_conf(path)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")


def _password(user: str) -> str:
    if (password := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return password
    return str(click.prompt(f"Password of {user}", hide_input=True, err=True))


class _Shown:
    """What is printed: each finding as it comes, or all of them as JSON."""

    def __init__(self, as_json: bool, gateway: str) -> None:
        self.findings: list[tuple[str, Finding]] = []
        self._as_json = as_json
        self._gateway = gateway
        self._console = Console(highlight=False, soft_wrap=True)

    def add(self, side: str, finding: Finding) -> None:
        """One more."""
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
        """No more."""
        if self._as_json:
            rows = [{"side": side, **finding.to_json()} for side, finding in self.findings]
            code = exit_code(finding for _, finding in self.findings)
            status = (Status.OK, Status.WARNING, Status.PROBLEM)[code]
            values = {"status": status, "gateway": self._gateway, "findings": rows}
            write_out(json.dumps(values, indent=2) + "\n")
