"""The authority for a long-running process, while `clamproxy ca` may change it."""

from __future__ import annotations

import logging
from pathlib import Path

from clamproxy.authority.authority import Authority
from clamproxy.authority.keyfile import FILE, AuthorityError
from clamproxy.readable import shown_error

logger = logging.getLogger(__name__)

type _Look = tuple[int, int, int] | None
"""Inode, time and size, by which a replaced file is told from the previous one; None if there is none."""


class CurrentAuthority:
    """Returns the present authority: the file is read again when it has been replaced."""

    def __init__(self, directory: Path) -> None:
        """Read the authority. Blocks for a moment.

        Raises:
            AuthorityError: it can't be read, or is damaged.
        """
        self._directory = directory
        self._complaint = ""
        try:
            self._look = _look_at(directory)
            self._authority = Authority.load(directory)
        except OSError as error:
            raise AuthorityError(f"certificate authority: {shown_error(error)}") from error

    def __call__(self) -> Authority | None:
        """The authority; None if none has been created.

        If it disappears or can't be read any more, the last one remains in use. Falling back to
        mitmproxy's authority, which may sign for any name, is the operator's decision, by a restart.
        """
        try:
            look = _look_at(self._directory)
            if look != self._look:
                self._reload(look)
        except (AuthorityError, OSError) as error:
            self._complain(str(error))
        return self._authority

    def _reload(self, look: _Look) -> None:
        try:
            authority = Authority.load(self._directory)
        except AuthorityError:
            self._look, self._complaint = look, ""  # the content is the same the next time
            raise
        self._look, self._complaint = look, ""
        if authority is not None:
            self._authority = authority
        elif self._authority is not None:
            self._complain(f"there is none in {self._directory}")

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            logger.warning("The certificate authority stays as it was: %s.", reason)


def _look_at(directory: Path) -> _Look:
    try:
        status = (directory / FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
