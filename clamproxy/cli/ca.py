"""``clamproxy ca``: the certificate authority for clients that use https."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import click

from clamproxy.authority import (
    Authority,
    AuthorityError,
    Generation,
    PermittedNames,
    configured_names,
    finish_rotation,
    found,
    rotate,
)
from clamproxy.authority.certificates import fingerprint, title_of, utc_text
from clamproxy.cache.owners import claim
from clamproxy.cli.common import config_option, fail, require_owner, settings_of, shown_trouble, tell
from clamproxy.cli.parameters import duration
from clamproxy.config.settings import Settings
from clamproxy.setup.trust import TARGETS, install_snippet

LONGEST_OVERLAP = 3650 * 86400.0
"""In seconds."""
SHORT_REST = 90 * 86400.0
"""In seconds; a certificate that is valid for less time than this is pointed out."""


@click.group()
def ca() -> None:
    """The certificate authority for clients that use https.

    It can sign only for ClamAV's hosts, serving.hosts, feeds.hosts and tls.names: nobody can use its
    key to impersonate anything else. A running proxy takes up each change at once.
    """


@ca.command()
@config_option
def init(config: str | None) -> None:
    """Make the authority, in tls.directory.

    From then on, the proxy uses it instead of mitmproxy's.
    """
    settings = _writable_settings(config)
    names = _names(settings)
    with _refusals(settings):
        claim(settings.cache.directory, settings.tls.directory)
        authority = found(settings.tls.directory, names, time.time())
    tell(f"{title_of(authority.signer().root)} is in {authority.directory} and signs for {names}.")
    tell("`clamproxy ca install --for …` prints a script that makes a machine trust it; see --help.")


@ca.command("rotate")
@click.option(
    "--overlap",
    metavar="TIME",
    default="30d",
    show_default=True,
    callback=duration("a duration such as 30d, at most 3650d", longest=LONGEST_OVERLAP),
    help="How long the current certificate goes on signing while you install the next one on the clients.",
)
@click.option("--finish", is_flag=True, help="Drop the old certificate, after the overlap.")
@click.option("--early", is_flag=True, help="With --finish: end the overlap early.")
@config_option
def rotate_(overlap: float, finish: bool, early: bool, config: str | None) -> None:
    """Make the next certificate, for the names configured now.

    `ca export` and /ca.pem then give both certificates, and clients should trust both until the
    overlap is over. From then on, the next one signs. The old one stays in the bundle until
    `ca rotate --finish`, or until the rotation after this one.
    """
    if early and not finish:
        raise click.UsageError("--early needs --finish.")
    settings = _writable_settings(config)
    with _refusals(settings):
        if finish:
            authority = finish_rotation(settings.tls.directory, time.time(), early=early)
            tell(f"{title_of(authority.signer().root)} is the only certificate now.")
            return
        authority = rotate(settings.tls.directory, _names(settings), time.time(), overlap)
    last = authority.generations[-1]
    title = title_of(last.root)
    if authority.successor() is None:
        tell(f"{title} signs from now on; clients that don't trust it yet get nothing over https.")
    else:
        tell(f"{title} will sign from {utc_text(last.signs_from)} on; it is in the bundle now.")
        tell("Before then, run `clamproxy ca install --for …` again, and what it prints on each machine.")


@ca.command()
@click.option("--pem", is_flag=True, help="Print the certificates themselves, like `ca export`.")
@config_option
def show(pem: bool, config: str | None) -> None:
    """Show the certificates, which one signs, and for which names."""
    settings = settings_of(config)
    authority = _authority(settings)
    if pem:
        _print_bundle(authority)
        return
    for generation in authority.generations:
        click.echo("\n".join(_described(authority, generation)))
    wanted, _ = configured_names(settings)
    missing = authority.names_of(authority.generations[-1]).missing(wanted)
    if missing:
        tell(
            f"Warning: configured later, so the certificate doesn't permit them: {', '.join(missing)}; "
            "run `clamproxy ca rotate`."
        )
    rest = authority.generations[-1].root.not_valid_after_utc.timestamp() - time.time()
    if rest < SHORT_REST:
        tell("Warning: the last certificate expires soon; run `clamproxy ca rotate`.")


@ca.command()
@config_option
def export(config: str | None) -> None:
    """Print the certificates that clients have to trust, as PEM."""
    _print_bundle(_authority(settings_of(config)))


@ca.command()
@click.option("--for", "target", type=click.Choice(tuple(TARGETS)), default="debian", show_default=True)
@config_option
def install(target: str, config: str | None) -> None:
    """Print a script that makes freshclam trust the authority.

    It contains the certificates: nothing has to be fetched, so nothing can be forged on the way.
    """
    click.echo(install_snippet(target, _authority(settings_of(config)).bundle().decode()), nl=False)


def _writable_settings(config: str | None) -> Settings:
    """The configuration; ends the process unless this is the user that the proxy runs as."""
    settings = settings_of(config, creates=True)
    require_owner(settings.cache.directory)
    require_owner(settings.tls.directory)
    return settings


def _names(settings: Settings) -> PermittedNames:
    names, impossible = configured_names(settings)
    for pattern in impossible:
        tell(
            f"Warning: {pattern} is left out: it can't be limited to one domain. List its hosts in tls.names."
        )
    return names


def _authority(settings: Settings) -> Authority:
    with _refusals(settings):
        authority = Authority.load(settings.tls.directory)
    if authority is None:
        fail(f"there is no authority in {settings.tls.directory}; `clamproxy ca init` makes one")
    return authority


@contextmanager
def _refusals(settings: Settings) -> Iterator[None]:
    """Report any failure in one line."""
    try:
        yield
    except AuthorityError as error:
        fail(str(error))
    except OSError as error:
        fail(shown_trouble(settings.tls.directory, error))


def _print_bundle(authority: Authority) -> None:
    sys.stdout.write(authority.bundle().decode())


def _described(authority: Authority, generation: Generation) -> Iterator[str]:
    certificate = generation.root
    valid = f"{_day(certificate.not_valid_before_utc)} to {_day(certificate.not_valid_after_utc)}"
    yield title_of(certificate)
    yield f"  signs:    {_signs(authority, generation)}"
    yield f"  valid:    {valid}"
    yield f"  SHA-256:  {fingerprint(certificate)}"
    yield f"  names:    {authority.names_of(generation)}, and all below them"


def _signs(authority: Authority, generation: Generation) -> str:
    successor = authority.successor()
    if generation is successor:
        return f"from {utc_text(generation.signs_from)} on"
    if generation is not authority.signer():
        return "no longer; `clamproxy ca rotate --finish` drops it"
    return "now" if successor is None else f"now, until {utc_text(successor.signs_from)}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
