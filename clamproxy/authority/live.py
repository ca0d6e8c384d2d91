"""The authority of a process that runs for long, while `clamproxy ca` changes it."""

from __future__ import annotations

import logging
from pathlib import Path

from clamproxy.authority.authority import Authority
from clamproxy.authority.keyfile import FILE, AuthorityError

logger = logging.getLogger(__name__)

type _Look = tuple[int, int, int] | None
"""What tells a file from the one that was there before."""


class CurrentAuthority:
    """Gives the authority as it is now: the file is read again when it has been replaced."""

    def __init__(self, directory: Path) -> None:
        """Read it. Blocks for a moment.

        Args:
            directory: where it is kept, if it is.

        Raises:
            AuthorityError: it can't be read, or is damaged.
        """
        self._directory = directory
        self._complaint = ""
        try:
            self._look = _look_at(directory)
            self._authority = Authority.load(directory)
        except OSError as error:
            raise AuthorityError(f"certificate authority: {error.filename}: {error.strerror}") from error

    def __call__(self) -> Authority | None:
        """The authority, None if none has been founded.

        One that can't be read any more, or is gone, goes on as it was: falling back to mitmproxy's,
        which may sign for any name, is for the operator to decide, by a restart.
        """
        try:
            look = _look_at(self._directory)
            if look != self._look:
                self._look, self._complaint = look, ""
                self._reload()
        except (AuthorityError, OSError) as error:
            self._complain(str(error))
        return self._authority

    def _reload(self) -> None:
        authority = Authority.load(self._directory)
        if authority is not None:
            self._authority = authority
        elif self._authority is not None:
            self._complain(f"there is none in {self._directory}")

    def _complain(self, reason: str) -> None:
        if reason != self._complaint:
            self._complaint = reason
            logger.warning("The certificate authority is used as it was before: %s.", reason)


def _look_at(directory: Path) -> _Look:
    try:
        status = (directory / FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
