"""What several commands need."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import diskcache

from clamproxy.cache.store import Store
from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.config.settings import Settings
from clamproxy.config.units import parse_database
from clamproxy.objects import Kind

type _Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

config_option: _Decorator = click.option(
    "--config", metavar="FILE", help="Configuration file; default: ./proxy.yaml, /etc/clamproxy/proxy.yaml."
)


def database_option(default: str) -> _Decorator:
    """The option ``--database``, with what holds without it."""
    return click.option(
        "--database",
        "databases",
        metavar="NAME",
        multiple=True,
        callback=_database_names,
        help=f"Only this database; may be given several times. Default: {default}.",
    )


def _database_names(_: click.Context, option: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(parse_database(name) for name in names)
    except ValueError as error:
        raise click.BadParameter(f"expected {error}", param=option) from None


def settings_of(config: str | None) -> Settings:
    """The configuration; ends the process if it is wrong."""
    try:
        return load_settings(find_config(config, Path.cwd()), os.environ)
    except ConfigurationError as error:
        fail(str(error))


def tell(message: str) -> None:
    """A line for the operator, where it can't get into what is piped on."""
    click.echo(f"clamproxy: {message}", err=True)


def fail(message: str) -> NoReturn:
    """End the process with one line."""
    tell(message)
    sys.exit(1)


@contextmanager
def opened_store(directory: Path, *, make: bool = False) -> Iterator[Store]:
    """The cache, whether the proxy runs or not; ends the process if it can't be used.

    Args:
        directory: the cache directory.
        make: whether to make it if it is not there.
    """
    if not make and not directory.is_dir():
        fail(f"{directory}: no such cache directory; has the proxy been started?")
    try:
        store = Store(directory, tidy=False)
    except OSError as error:
        fail(f"{directory}: {error.strerror or error}")
    try:
        yield store
    except (sqlite3.Error, diskcache.Timeout) as error:
        fail(f"{directory}: {error or 'the index is locked'}")
    finally:
        store.close()


def require_owner(directory: Path) -> None:
    """End the process if it would leave files in another user's cache that the proxy can't use."""
    if directory.is_dir() and directory.stat().st_uid != os.geteuid():
        fail(f"{directory}: belongs to user {directory.owner()}; run this as that user")


def cached_databases(store: Store) -> set[str]:
    """The databases of which there is a CVD."""
    return {object_id.database for object_id in store.sizes() if object_id.kind is Kind.CVD}


def require_known(names: Iterable[str], settings: Settings, cached: set[str]) -> None:
    """End the process if a database is neither served nor cached: its name is a slip."""
    known = cached.union(settings.serving.databases)
    for name in names:
        if name not in known:
            fail(f"there is no database {name} here, but {', '.join(sorted(known))}.")


def shown_size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def shown_error(error: OSError) -> str:
    """An error of the system in one line, with the file that it is about."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if isinstance(error.filename, (str, Path)) else reason
