"""clamproxy(1), from the definitions of the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from clamproxy.config.loading import ENVIRONMENT_PREFIX, LOCAL_CONFIG, PASSWORD_VARIABLE, SYSTEM_CONFIG
from clamproxy.manual import roff

_UNCHANGED = "\b"
"""On a line of its own, it tells click to leave the paragraph after it as it is."""
_FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")

_SUMMARY = "a caching forward HTTP proxy for ClamAV signature databases"
_DESCRIPTION = (
    "clamproxy runs on a gateway, and the machines of a network name it in their freshclam.conf. From then "
    "on each signature file crosses the internet link once, however many machines there are.",
    "All commands work while the proxy runs. Run them as the proxy's user, in its directory or with the same "
    "`--config`.",
)
_EXIT_STATUS = (
    ("0", "Done."),
    ("1", "Failed; one line on the standard error says why."),
    ("2", "The command line is wrong."),
    ("3", "The standard output could not be written."),
)
_ENVIRONMENT = (
    (f"{ENVIRONMENT_PREFIX}SECTION__KEY", "Overrides a key of proxy.yaml; see clamproxy-proxy.yaml(5)."),
    (PASSWORD_VARIABLE, "The password of `clamproxy doctor --user`."),
)
_FILES = (
    (f"./{LOCAL_CONFIG}", "The configuration, unless `--config` names another file."),
    (str(SYSTEM_CONFIG), "The configuration, if there is no proxy.yaml in the working directory."),
    ("./cache, ./cache-state, ./ca", "By default, the cache, the records and the certificate authority."),
)


def program_page(program: click.Group, version: str) -> str:
    """The page, in roff."""
    # With the settings of a real run, as the first context decides on the names of --help for all later ones.
    context = click.Context(program, info_name="clamproxy", **program.context_settings)
    lines = [
        roff.title("CLAMPROXY", 1, version, "clamproxy"),
        roff.section("NAME"),
        rf"clamproxy \- {_SUMMARY}",
        roff.section("SYNOPSIS"),
        rf"{roff.bold('clamproxy')} \fICOMMAND\fR [\fIOPTIONS\fR]",
        roff.section("DESCRIPTION"),
        *map(roff.paragraph, _DESCRIPTION),
        roff.section("COMMANDS"),
        *_commands(program, context),
        roff.section('"EXIT STATUS"'),
        roff.paragraph("Unless the command says otherwise:"),
        *(roff.definition(roff.bold(code), roff.prose(meaning)) for code, meaning in _EXIT_STATUS),
        roff.section("ENVIRONMENT"),
        *(roff.definition(roff.bold(name), roff.prose(meaning)) for name, meaning in _ENVIRONMENT),
        roff.section("FILES"),
        *(roff.definition(roff.bold(name), roff.prose(meaning)) for name, meaning in _FILES),
        roff.section('"SEE ALSO"'),
        r"\fBclamproxy\-proxy.yaml\fR(5), \fBfreshclam\fR(1), \fBfreshclam.conf\fR(5)",
    ]
    return roff.document(lines)


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """The commands of a group, each followed by its own commands."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        yield from _command(command, inner)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield roff.subsection(f"{roff.bold(context.command_path)} {roff.escaped(usage)}")
    yield from _help(command.help)
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if record is not None and isinstance(option, click.Option) and "--help" not in option.opts:
            yield roff.definition(_FLAG.sub(_bold_flag, record[0]), roff.prose(record[1]))
    yield from _help(command.epilog)


def _bold_flag(flag: re.Match[str]) -> str:
    return roff.bold(flag[0])


def _help(text: str | None) -> Iterator[str]:
    """The paragraphs of a help text."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text or "").strip()):
        first, _, rest = part.partition("\n")
        if first.strip() == _UNCHANGED:
            yield ".PP"
            yield roff.verbatim(rest.splitlines())
        elif part:
            yield roff.paragraph(part)
