"""``clamproxy export`` and ``clamproxy import``."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from clamproxy.bundle import (
    BundleError,
    Manifest,
    Since,
    import_bundle,
    select,
    write_bundle,
    written_file,
)
from clamproxy.cli.bars import Bars
from clamproxy.cli.common import (
    cached_databases,
    config_option,
    database_option,
    fail,
    is_asked_at_terminal,
    keys_of,
    opened_store,
    require_known,
    require_owner,
    settings_of,
    tell,
)
from clamproxy.cli.completion import complete_file
from clamproxy.cli.output import binary_output
from clamproxy.cli.sharing import give
from clamproxy.objects import ObjectId
from clamproxy.readable import shown_count, shown_error, shown_size
from clamproxy.releases.holds import HoldsError
from clamproxy.releases.limits_in_force import ceilings_of
from clamproxy.state import state_directory

_STANDARD_STREAM = "-"


def _since(_: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> Since:
    try:
        return Since.parse(texts)
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from None


@click.command()
@click.argument("file", shell_complete=complete_file)
@click.option(
    "--since",
    metavar="VERSION",
    multiple=True,
    callback=_since,
    help="Only the patches after this version, such as 27790, or daily=27790,bytecode=339.",
)
@database_option("all cached ones")
@config_option
def export(file: str, since: Since, databases: tuple[str, ...], config: str | None) -> None:
    """Write the cached files to FILE, for another gateway.

    FILE is a tar archive for `clamproxy import`; - means the standard output. What is held back here, by
    `clamproxy hold` or releases.delay, is left out. This works whether the proxy runs or not.
    """
    settings = settings_of(config)
    require_owner(settings.cache.directory)
    keys = keys_of(settings)
    with (
        opened_store(settings.cache.directory, state=state_directory(settings), keys=keys) as store,
        _refusals(file),
    ):
        require_known(databases, settings, cached_databases(store))
        selection = select(store, databases, since, ceilings_of(store, settings.releases, time.time()))
        for remark in selection.remarks:
            tell(remark)
        if not selection.databases:
            fail("there is nothing to export.")
        with _output(file) as stream, Bars() as bars:
            manifest = write_bundle(store, selection, stream, bars)
    _tell_contents("Exported", manifest)


@click.command("import")
@click.argument("file", shell_complete=complete_file)
@click.option("--allow-older", is_flag=True, help="Import even if the cache has newer versions.")
@config_option
def import_(file: str, allow_older: bool, config: str | None) -> None:
    """Import FILE, written by `clamproxy export`, into the cache.

    - means the standard input. Everything is verified with ClamAV's keys before anything is published.
    This works whether the proxy runs or not. With fleet_store, the other gateways get the files from the
    object store.
    """
    settings = settings_of(config, creates=True)
    cache = settings.cache
    require_owner(cache.directory)
    keys = keys_of(settings)
    with (
        _refusals(file),
        _input(file) as stream,
        opened_store(cache.directory, make=True, state=state_directory(settings), keys=keys) as store,
    ):
        ceilings = ceilings_of(store, settings.releases, time.time())
        with Bars() as bars:
            manifest = import_bundle(store, stream, keys, allow_older=allow_older, progress=bars)
        if not allow_older:  # otherwise, the older versions might be dropped at once
            store.collect_garbage(cache.keep_cdiffs, cache.size_limit, ceilings=ceilings)
        listed = [ObjectId.parse(one.name) for part in manifest.databases.values() for one in part.objects]
        give(settings, store, filter(store.has, listed))
    _tell_contents("Imported", manifest)


@contextmanager
def _refusals(file: str) -> Iterator[None]:
    """Report any failure in one line."""
    try:
        yield
    except HoldsError as error:
        fail(str(error))
    except BundleError as error:
        fail(f"{file}: {error}")
    except BrokenPipeError:  # the reader of the standard output has left; click ends quietly
        raise
    except OSError as error:
        fail(shown_error(error) if error.filename else f"{file}: {shown_error(error)}")


@contextmanager
def _output(file: str) -> Iterator[BinaryIO]:
    if file != _STANDARD_STREAM:
        with written_file(Path(file)) as stream:
            yield stream
        return
    stdout = binary_output()
    if stdout.isatty():
        fail("the standard output is a terminal, but a bundle is not text")
    yield stdout
    stdout.flush()


@contextmanager
def _input(file: str) -> Iterator[BinaryIO]:
    if file == _STANDARD_STREAM:
        if is_asked_at_terminal():
            fail("the standard input is a terminal")
        yield io.BytesIO() if sys.stdin is None else sys.stdin.buffer  # None: it is closed
        return
    with Path(file).open("rb") as stream:
        yield stream


def _tell_contents(done: str, manifest: Manifest) -> None:
    for database, part in manifest.databases.items():
        what = "the CVD and patches" if part.is_whole else f"patches from {part.base}"
        objects, size = shown_count(len(part.objects), "object"), shown_size(part.size)
        tell(f"{done} {database} {part.version}: {what}, {objects}, {size}.")
