"""The command line."""

from __future__ import annotations

import logging
from typing import Any

import click

from clamproxy import __version__
from clamproxy.cli import (
    bundles,
    ca,
    client_config,
    completion,
    config,
    doctor,
    files,
    fleet,
    hash_password,
    hold,
    ignore,
    ls,
    man,
    mirror,
    notify,
    prefetch,
    purge,
    reload,
    run,
    stats,
    verify,
)
from clamproxy.cli.output import checked_output

# Commands say themselves what came of the object store. mitmproxy's handlers still get these lines.
for package in ("bucket", "leases", "sharing"):
    logging.getLogger(f"clamproxy.{package}").addHandler(logging.NullHandler())


class _Commands(click.Group):
    """Makes all commands handle their output alike."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        with checked_output():
            return super().main(*arguments, **options)


_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(cls=_Commands, context_settings=_HELP)
@click.version_option(__version__, prog_name="clamproxy")
def main() -> None:
    """A caching forward HTTP proxy for ClamAV signature databases."""


for _command in (
    run.run,
    reload.reload,
    stats.stats,
    ls.ls,
    verify.verify,
    purge.purge,
    prefetch.prefetch,
    hold.hold,
    hold.release,
    mirror.mirror,
    bundles.export,
    bundles.import_,
    client_config.client_config,
    doctor.doctor,
    ca.ca,
    config.config,
    fleet.fleet,
    files.files,
    ignore.ignore,
    notify.notify,
    hash_password.hash_password,
    man.man,
    completion.completion,
):
    # A command keeps the names that it was first asked for, even if that was without the group.
    _command.context_settings.update(_HELP)
    main.add_command(_command)
