"""``clamproxy client-config``."""

from __future__ import annotations

import click

from clamproxy.authority import Authority, AuthorityError
from clamproxy.cli.common import config_option, fail, settings_of, shown_trouble, tell
from clamproxy.config.settings import Settings
from clamproxy.readable import shown_error
from clamproxy.setup.client_forms import Form, client_form
from clamproxy.setup.freshclam_lines import Mode, own_name
from clamproxy.setup.freshclam_lines import client_config as compose
from clamproxy.setup.place import proxies
from clamproxy.site_files.publisher import read_catalog
from clamproxy.state import state_directory


@click.command("client-config")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.HTTP.value,
    show_default=True,
    help="How the machines use the gateway.",
)
@click.option(
    "--gateway",
    metavar="NAME",
    help="The gateway's name or address, as machines reach it; default: this machine's.",
)
@click.option("--port", type=int, help="The proxy's port; default: the one that it listens on.")
@click.option(
    "--for",
    "form",
    type=click.Choice([form.value for form in Form]),
    help="Not only the lines, but what puts them there: a shell script for Linux and FreeBSD, an Ansible "
    "playbook, a startup script for Windows by Group Policy, or lines for a Dockerfile.",
)
@config_option
def client_config(
    mode: str, gateway: str | None, port: int | None, form: str | None, config: str | None
) -> None:
    """Print the lines that machines need in freshclam.conf.

    With http and https, the gateway is their proxy; with https, they have to trust its certificate
    authority. With mirror, it is their DatabaseMirror; with private, their PrivateMirror, which means
    whole files and no DNS.
    """
    settings = settings_of(config)
    port = proxies(settings)[0].port if port is None else port
    name = gateway or _guess()
    try:
        text = compose(settings, Mode(mode), name, port, files=_files(settings), names_user=True)
        if form is not None:
            certificates = _certificates(settings) if Mode(mode) is Mode.HTTPS else ""
            text = client_form(Form(form), text, certificates)
    except ValueError as error:
        fail(f"the gateway is {name!r}, port {port}; expected {error}")
    click.echo(text, nl=False)


def _certificates(settings: Settings) -> str:
    try:
        authority = Authority.load(settings.tls.directory)
    except AuthorityError as error:
        fail(str(error))
    except OSError as error:
        fail(shown_trouble(settings.tls.directory, error))
    if authority is None:
        fail(f"there is no authority in {settings.tls.directory}; `clamproxy ca init` makes one")
    return authority.bundle().decode()


def _files(settings: Settings) -> list[str]:
    """The site's own files that are published, as far as this user may know."""
    if settings.files.directory is None:
        return []
    try:
        return read_catalog(state_directory(settings)).published
    except OSError as error:
        tell(
            f"Warning: the DatabaseCustomURL lines of the site's own files are missing: {shown_error(error)}"
        )
        return []


def _guess() -> str:
    name = own_name()
    if name is None:
        fail("this machine has no name or address that others can reach; give one with --gateway")
    tell(f"Warning: {name} is a guess; if machines reach the gateway by another name, use --gateway.")
    return name
