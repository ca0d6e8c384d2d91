"""``clamproxy client-config``."""

from __future__ import annotations

import click

from clamproxy.cli.common import config_option, fail, settings_of, tell
from clamproxy.setup.freshclam_lines import Mode, own_name
from clamproxy.setup.freshclam_lines import client_config as compose
from clamproxy.setup.place import proxies


@click.command("client-config")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.HTTP.value,
    show_default=True,
    help="How the machines use the gateway.",
)
@click.option("--gateway", metavar="NAME", help="Name or address of the gateway; default: this machine's.")
@click.option("--port", type=int, help="Port of the proxy; default: where it listens.")
@config_option
def client_config(mode: str, gateway: str | None, port: int | None, config: str | None) -> None:
    """Print the lines of freshclam.conf for its machines.

    http: a proxy, nothing to trust. https: a proxy, with the gateway's certificate authority.
    mirror: no proxy setting. private: whole files, no DNS.
    """
    settings = settings_of(config)
    port = proxies(settings)[0].port if port is None else port
    name = gateway or _guess()
    try:
        lines = compose(settings, Mode(mode), name, port, names_user=True)
    except ValueError as error:
        fail(f"the gateway is {name!r}, port {port}; expected {error}")
    click.echo(lines, nl=False)


def _guess() -> str:
    name = own_name()
    if name is None:
        fail("this machine has no name or address that others can reach; give one with --gateway")
    tell(f"Warning: {name} is a guess; if machines reach the gateway by another name, give --gateway.")
    return name
