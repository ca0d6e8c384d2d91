"""The command line."""

from __future__ import annotations

import click

from clamproxy import __version__
from clamproxy.cli import bundles, mirror, run, stats


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="clamproxy")
def main() -> None:
    """A caching forward HTTP proxy for ClamAV signature databases."""


for _command in (run.run, stats.stats, mirror.mirror, bundles.export, bundles.import_):
    main.add_command(_command)
