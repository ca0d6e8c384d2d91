"""``clamproxy reload``."""

from __future__ import annotations

import os
import sys

import click

from clamproxy.cli.common import config_option, fail, tell
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.control import NoAnswerError, Running, running
from clamproxy.readable import one_line

_LONGEST = 2000
"""Characters of a text from another process, perhaps another user's. It must not control the terminal."""


@click.command()
@config_option
def reload(config: str | None) -> None:
    """Have the running proxy read its configuration again.

    Prints which keys have changed. If anything is wrong, nothing changes, and the exit code is 1.
    Reaches every proxy on this machine that has the same configuration file or the same cache; run it as
    the proxy's user, or as root.
    """
    problem, path, cache = None, None, None
    try:
        path = find_config(config)
        cache = load_settings(path, os.environ).cache.directory
    except ConfigurationError as error:
        problem = str(error)  # the proxy itself may say so, as it may have other environment variables
    failures = [not _reload(proxy) for proxy in running(path, cache)]
    if not failures:
        place = path.absolute() if path is not None else cache
        fail(problem or f"no proxy with the configuration or the cache of {place} is running here")
    sys.exit(any(failures))


def _reload(proxy: Running) -> bool:
    """Have one process reload, and print the outcome; returns whether its configuration is now the file's."""
    try:
        outcome = proxy.reload()
    except NoAnswerError as error:
        tell(f"process {proxy.pid} was not reloaded: {error}")
        return False
    if outcome.error is not None:
        tell(f"process {proxy.pid}: the configuration stays as it was: {one_line(outcome.error, _LONGEST)}")
        return False
    done = "was reloaded" if outcome.changes else "has not changed"
    click.echo(f"Process {proxy.pid}: the configuration {done}.")
    for change in outcome.changes:
        click.echo(f"  {one_line(str(change), _LONGEST)}")
    for remark in outcome.remarks:
        click.echo(f"  But: {one_line(remark, _LONGEST)}.")
    return True
