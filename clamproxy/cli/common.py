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

from clamproxy.cache.layout import is_cache, require_readable
from clamproxy.cache.store import Store
from clamproxy.cli.completion import complete_database, complete_file
from clamproxy.cli.parameters import parsed_by
from clamproxy.config.loading import (
    LOCAL_CONFIG,
    SYSTEM_CONFIG,
    ConfigurationError,
    find_config,
    is_configured,
    load_settings,
)
from clamproxy.config.settings import ListenSection, Settings
from clamproxy.config.units import DATABASE
from clamproxy.formats.signatures import CLAMAV_KEYS, TrustedKeys
from clamproxy.objects import Kind
from clamproxy.readable import shown_error, shown_user
from clamproxy.setup.place import nearest, proxies
from clamproxy.storage.records import Records

type _Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _one_file(_: click.Context, option: click.Parameter, files: tuple[str, ...]) -> str | None:
    if len(files) > 1:
        raise click.BadParameter(f"given {len(files)} times, expected once", param=option)
    return files[0] if files else None


config_option: _Decorator = click.option(
    "--config",
    metavar="FILE",
    multiple=True,
    callback=_one_file,
    shell_complete=complete_file,
    help="Configuration file; default: ./proxy.yaml, /etc/clamproxy/proxy.yaml.",
)


def database_option(default: str) -> _Decorator:
    """The option ``--database``; `default` says in its help which databases are meant without it."""
    return click.option(
        "--database",
        "databases",
        metavar="NAME",
        multiple=True,
        callback=parsed_by(lambda names: tuple(map(DATABASE.parse, names))),
        shell_complete=complete_database,
        help=f"Only this database; can be given more than once. Default: {default}.",
    )


def settings_of(config: str | None, *, creates: bool = False) -> Settings:
    """The configuration; ends the process if it is wrong.

    Args:
        config: the file that the user has named.
        creates: whether the command creates what doesn't exist yet, which would be a mistake in a
            directory that has nothing to do with the proxy.
    """
    try:
        path = find_config(config)
        settings = load_settings(path, os.environ)
    except ConfigurationError as error:
        fail(str(error))
    directory = settings.cache.directory
    if creates and not is_configured(path, os.environ) and not directory.is_dir():
        fail(
            f"there is neither a configuration ({LOCAL_CONFIG}, {SYSTEM_CONFIG}) nor a cache ({directory}); "
            "run this in the proxy's directory, or with its --config FILE"
        )
    return settings


def gateway_here(config: str | None) -> tuple[str, int]:
    """Where a program on this machine reaches its gateway; the default if that is unknown."""
    try:
        settings = load_settings(find_config(config), os.environ)
    except ConfigurationError:
        return nearest(ListenSection().proxy[0])
    return nearest(proxies(settings)[0])


def tell(message: str) -> None:
    """Print a line for the operator to stderr, where it can't get into what is piped on."""
    click.echo(f"clamproxy: {message}", err=True)


def is_asked_at_terminal() -> bool:
    """Whether the standard input is a terminal, so that questions can be asked; not if it is closed."""
    return sys.stdin is not None and sys.stdin.isatty()


def write_out(text: str) -> None:
    """Print at once; see `clamproxy.cli.output` for what happens if that fails."""
    sys.stdout.write(text)
    sys.stdout.flush()


def fail(message: str) -> NoReturn:
    """End the process with one line."""
    tell(message)
    sys.exit(1)


def keys_of(settings: Settings) -> TrustedKeys:
    """What objects must be signed with; ends the process if the certificates can't be read."""
    try:
        return CLAMAV_KEYS.with_roots(settings.upstream.cvd_certs_directory)
    except (OSError, ValueError) as error:
        fail(f"upstream.cvd_certs_directory: {error}")


@contextmanager
def opened_store(
    directory: Path, *, make: bool = False, state: Path | None = None, keys: TrustedKeys = CLAMAV_KEYS
) -> Iterator[Store]:
    """The cache, whether or not the proxy is running; ends the process if it can't be used.

    Args:
        directory: the cache directory.
        make: whether to make it if it doesn't exist.
        state: the state directory, for callers that need the counters.
        keys: `keys_of` the settings, for callers that verify signatures.
    """
    try:
        if not make:
            require_cache(directory)
            if directory.is_dir() and not is_cache(directory):  # it would become one
                fail(f"{directory}: this is no cache; has the proxy been started?")
        require_readable(directory)
        store = Store(directory, tidy=False, records=Records(state or directory), keys=keys)
    except (OSError, sqlite3.Error) as error:
        fail(shown_trouble(directory, error))
    try:
        yield store
    except sqlite3.Error as error:
        fail(shown_trouble(directory, error))
    finally:
        store.close()


def require_cache(directory: Path) -> None:
    """End the process if there is no cache directory yet. Raises an OSError if that can't be seen."""
    if not directory.exists():
        fail(f"{directory}: no such cache directory; has the proxy been started?")


def require_owner(directory: Path) -> None:
    """End the process if it would leave files in another user's cache that the proxy can't use."""
    if whose := _whose(directory):
        fail(whose)


def shown_trouble(directory: Path, error: Exception) -> str:
    """Why a directory of the proxy can't be used, in one line.

    Args:
        directory: it.
        error: what came of trying: of the system, or of SQLite.
    """
    causes = (error, error.__cause__)
    is_refused = any(isinstance(cause, PermissionError | sqlite3.OperationalError) for cause in causes)
    if is_refused and (whose := _whose(directory)):
        return whose
    reason = shown_error(error) if isinstance(error, OSError) else str(error)
    return reason if reason.startswith(str(directory)) else f"{directory}: {reason}"


def _whose(directory: Path) -> str | None:
    """Which user to run as for another user's directory, in one line; None if it belongs to this user."""
    for place in (directory, *directory.parents):
        try:
            uid = place.stat().st_uid
        except PermissionError:  # a parent directory is closed
            continue
        except OSError:
            return None
        is_own = uid == os.geteuid()
        return None if is_own else f"{place}: belongs to user {shown_user(uid)}; run this as that user"
    return None


def cached_databases(store: Store) -> set[str]:
    """The databases that have a cached CVD."""
    return {object_id.database for object_id in store.sizes() if object_id.kind is Kind.CVD}


def require_known(names: Iterable[str], settings: Settings, cached: set[str]) -> None:
    """End the process if a database is neither served nor cached, so that its name must be a typo."""
    known = cached.union(settings.serving.databases)
    for name in names:
        if name not in known:
            fail(f"there is no database {name} here, only {', '.join(sorted(known))}.")
