"""``clamproxy config``."""

from __future__ import annotations

import json
import os

import click

from clamproxy.cli.common import config_option, fail
from clamproxy.config.conflicts import find_conflict
from clamproxy.config.effective import effective_values, to_json, to_yaml
from clamproxy.config.example import example as example_text
from clamproxy.config.labels import require_labels
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.setup.place import proxies


@click.group()
def config() -> None:
    """Show, check and explain the configuration."""


@config.command()
@config_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON, with sizes in bytes, durations in seconds and shares as numbers.",
)
def show(config: str | None, as_json: bool) -> None:
    """Print the values in force, and where each comes from. Secrets are masked."""
    try:
        path = find_config(config)
        values = effective_values(path, os.environ)
    except ConfigurationError as error:
        fail(str(error))
    if as_json:
        file = str(path.absolute()) if path is not None else None
        click.echo(json.dumps({"file": file, "settings": to_json(values)}, indent=2))
    else:
        click.echo(f"# {path.absolute() if path is not None else 'no configuration file'}")
        click.echo("\n".join(to_yaml(values)))


@config.command()
@config_option
def check(config: str | None) -> None:
    """Check whether the configuration is valid.

    The exit code is 0 if it is; otherwise 1, with the first problem in one line.
    """
    try:
        path = find_config(config)
        settings = load_settings(path, os.environ)
        require_labels(settings)
    except ConfigurationError as error:
        fail(str(error))
    if (conflict := find_conflict(settings, proxies(settings))) is not None:
        fail(f"{path or 'defaults'}: {conflict}")
    click.echo(
        f"{path.absolute()}: valid" if path is not None else "no configuration file: the defaults are valid"
    )


@config.command()
def example() -> None:
    """Print a proxy.yaml that explains each key, with its default.

    Without changes it means the same as no configuration file at all.
    """
    try:
        click.echo(example_text(), nl=False)
    except ConfigurationError as error:
        fail(str(error))


@config.command()
def schema() -> None:
    """Print a JSON schema of proxy.yaml, for editors."""
    from clamproxy.config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
