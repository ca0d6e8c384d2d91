"""Changes to an authority: creating it, adding the next certificate, and dropping the previous one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clamproxy.authority.authority import Authority
from clamproxy.authority.certificates import make_authority, new_key, utc, utc_text
from clamproxy.authority.constraints import PermittedNames
from clamproxy.authority.keyfile import AuthorityError, Generation, locked, write_state


def found(directory: Path, names: PermittedNames, now: float) -> Authority:
    """Create an authority.

    Args:
        directory: where to keep it.
        names: the names that it may sign for.
        now: Unix seconds.

    Raises:
        AuthorityError: there is one already.
        OSError: it can't be written.
    """
    with locked(directory, make=True):
        if Authority.load(directory) is not None:
            raise AuthorityError(
                f"there is already an authority in {directory}; `clamproxy ca rotate` renews it"
            )
        return _write(directory, [_new_generation(names, now, now)])


def rotate(directory: Path, names: PermittedNames, now: float, overlap: float) -> Authority:
    """Make the next certificate. The present one signs until the overlap is over.

    Certificates that no longer sign are dropped.

    Args:
        directory: where the authority is kept.
        names: the names that the next certificate may sign for.
        now: Unix seconds.
        overlap: seconds in which all clients have to install the next root.

    Raises:
        AuthorityError: there is no authority, or an overlap is not over.
        OSError: it can't be written.
    """
    with _held(directory) as authority:
        _require_no_overlap(authority, now)
        signer = authority.signer(now)
        end = signer.certificate.not_valid_after_utc.timestamp()
        signs_from = max(now, min(now + overlap, end))
        return _write(directory, [signer, _new_generation(names, now, signs_from)])


def finish_rotation(directory: Path, now: float, *, early: bool = False) -> Authority:
    """Drop all certificates except the last one.

    Args:
        directory: where the authority is kept.
        now: Unix seconds.
        early: end an overlap that is not over yet: the last certificate signs from now on.

    Raises:
        AuthorityError: there is no authority, nothing to drop, or an overlap is not over.
        OSError: it can't be written.
    """
    with _held(directory) as authority:
        if len(authority.generations) == 1:
            raise AuthorityError("there is only one certificate, so there is nothing to drop")
        if not early:
            _require_no_overlap(authority, now)
        last = authority.generations[-1]
        return _write(directory, [replace(last, signs_from=min(now, last.signs_from))])


@contextmanager
def _held(directory: Path) -> Iterator[Authority]:
    """The authority, locked against changes by other processes."""
    authority = Authority.load(directory)
    if authority is None:
        raise AuthorityError(f"there is no authority in {directory}; `clamproxy ca init` makes one")
    with locked(directory):
        # Another process may have changed it before the lock was taken.
        authority = Authority.load(directory) or authority
        yield authority


def _require_no_overlap(authority: Authority, now: float) -> None:
    successor = authority.successor(now)
    if successor is not None:
        date = utc_text(successor.signs_from)
        raise AuthorityError(f"the last rotation is not over yet: its certificate signs from {date} on")


def _new_generation(names: PermittedNames, now: float, signs_from: float) -> Generation:
    key = new_key()
    root, certificate = make_authority(key, names, utc(now))
    return Generation(root, certificate, key, signs_from)


def _write(directory: Path, generations: Sequence[Generation]) -> Authority:
    write_state(directory, generations)
    return Authority(directory, generations)
