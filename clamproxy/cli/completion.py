"""``clamproxy completion``, and what the values of options are completed to."""

from __future__ import annotations

import os

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import Settings

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_VARIABLE = "_CLAMPROXY_COMPLETE"
"""By which the script asks us; it must be the name that click expects."""
_PLACES = """\b
Where to put it:
  bash  ~/.local/share/bash-completion/completions/clamproxy
  zsh   _clamproxy, in a directory of $fpath
  fish  ~/.config/fish/completions/clamproxy.fish
"""


@click.command(epilog=_PLACES)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script for a shell's completion."""
    script = _SHELLS[shell](context.find_root().command, {}, "clamproxy", _VARIABLE)
    click.echo(script.source(), nl=False)


def complete_file(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Let the shell complete the name of a file."""
    return [CompletionItem(begun, type="file")]


def complete_database(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """The databases that the gateway serves, by the configuration that the command line names."""
    try:
        settings = load_settings(find_config(context.params.get("config")), os.environ)
    except ConfigurationError:
        settings = Settings()
    return [CompletionItem(name) for name in sorted(settings.serving.databases) if name.startswith(begun)]
