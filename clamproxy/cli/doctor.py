"""``clamproxy doctor``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from clamproxy.cli.common import config_option, fail
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.units import Nameserver, parse_database, parse_nameserver
from clamproxy.doctor.findings import Deadline, Finding, Status, examine, exit_code
from clamproxy.doctor.freshclam_conf import FreshclamConf, find_conf, read_conf
from clamproxy.formats.signatures import CLAMAV_KEYS

if TYPE_CHECKING:
    from clamproxy.doctor.client import Subject
    from clamproxy.doctor.wire import Proxy

LIMIT = 24.0
"""Seconds for all checks; the one that runs at the end may take some more."""
PASSWORD_VARIABLE = "CLAMPROXY_PASSWORD"  # noqa: S105

_GATEWAY, _CLIENT = "gateway", "client"
_TITLES = {_GATEWAY: "On this gateway", _CLIENT: "As a client of {}"}
_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.PROBLEM: "bold red", Status.SKIPPED: "dim"}
_WIDTH = max(map(len, Status)) + 1
_SUBJECT_WIDTH = 16


def _parsed_gateway(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\s/@]+))(?::([0-9]{1,5}))?", value)
    if match is None or not 1 <= int(match[3] or 1) <= 65535:
        raise click.BadParameter("expected HOST or HOST:PORT", param=option)
    return match[1] or match[2], int(match[3] or 8080)


def _parsed_database(_: click.Context, option: click.Parameter, value: str) -> str:
    try:
        return parse_database(value)
    except ValueError as error:
        raise click.BadParameter(f"expected {error}", param=option) from None


def _parsed_nameserver(_: click.Context, option: click.Parameter, value: str | None) -> Nameserver | None:
    try:
        return None if value is None else parse_nameserver(value)
    except ValueError as error:
        raise click.BadParameter(f"expected {error}", param=option) from None


@click.command()
@click.option(
    "--gateway",
    metavar="HOST[:PORT]",
    callback=_parsed_gateway,
    help="The gateway to try as a client; default: this machine if it is one, else freshclam's proxy.",
)
@click.option("--local/--no-local", default=None, help="Whether to look at the gateway on this machine, too.")
@click.option("--https", is_flag=True, help="Try https as well, with the gateway's certificate.")
@click.option(
    "--ca", metavar="FILE", type=click.Path(path_type=Path), help="The CA to trust; implies --https."
)
@click.option(
    "--user", metavar="NAME", help=f"HTTPProxyUsername; the password is ${PASSWORD_VARIABLE}, or asked."
)
@click.option("--database", metavar="NAME", default="daily", callback=_parsed_database, show_default=True)
@click.option(
    "--nameserver", metavar="ADDRESS", callback=_parsed_nameserver, help="Ask this DNS server as a client."
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
        gateway, conf = ("127.0.0.1", 8080), FreshclamConf()
    if gateway is None and conf.host is not None:
        gateway = conf.host, conf.port
    if gateway is None:
        fail("which gateway? freshclam.conf has no HTTPProxyServer here; give --gateway HOST:PORT")
    credentials = f"{user}:{_password(user)}" if user else conf.credentials
    subject = _subject(gateway, credentials, database, nameserver, ca, https or conf.uses_https)
    shown = _Shown(as_json, str(subject.proxy))
    for side, finding in _findings(subject, config, is_local):
        shown.add(side, finding)
    shown.end()
    sys.exit(exit_code(finding for _, finding in shown.findings))


def _findings(subject: Subject, config: str | None, is_local: bool) -> Iterator[tuple[str, Finding]]:
    from clamproxy.doctor.client import Client

    deadline = Deadline(LIMIT)
    if is_local:
        from clamproxy.doctor.gateway import GatewaySide

        with closing(GatewaySide(config, subject.database, deadline)) as side:
            for finding in examine(side.checks(), deadline):
                yield _GATEWAY, finding
    for finding in examine(Client(subject, deadline).checks(), deadline):
        yield _CLIENT, finding


def _subject(
    gateway: tuple[str, int],
    credentials: str | None,
    database: str,
    nameserver: Nameserver | None,
    ca: Path | None,
    https: bool,
) -> Subject:
    from clamproxy.doctor.client import Subject
    from clamproxy.doctor.tls import trust_of
    from clamproxy.doctor.wire import Proxy

    proxy: Proxy = Proxy(*gateway, user_agent=user_agent(), credentials=credentials)
    trust = trust_of(ca) if https or ca is not None else None
    return Subject(proxy, database, CLAMAV_KEYS, trust, [nameserver] if nameserver else [])


def user_agent() -> str:
    """As the freshclam of this machine introduces itself, without the machine's UUID."""
    version, program = "1.4.3", shutil.which("freshclam")
    if program is not None:
        try:
            result = subprocess.run(  # noqa: S603
                [program, "--version"], capture_output=True, text=True, timeout=3, check=False
            )
        except (OSError, subprocess.SubprocessError):
            pass
        else:
            if match := re.match(r"ClamAV (\d+(?:\.\d+){1,2})", result.stdout):
                version = match[1]
    machine = os.uname().machine
    return f"ClamAV/{version} (OS: {os.uname().sysname}, ARCH: {machine}, CPU: {machine})"


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
        if begins:
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
            click.echo(json.dumps({"status": status, "gateway": self._gateway, "findings": rows}, indent=2))
