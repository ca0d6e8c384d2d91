"""Users: name and password as freshclam sends them (RFC 7617), compared with hashes.

A hash is slow to check by design; freshclam connects anew for each file. So what has been checked is
remembered, as a keyed digest, and the checks run in threads, few at a time.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Iterable

from werkzeug.datastructures import Authorization
from werkzeug.security import check_password_hash, generate_password_hash

MOST_REMEMBERED = 1024
AT_A_TIME = 2
"""Checks; more would take the processor from those who are known."""


class Users:
    """The users that are configured. Event loop only."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Take over the users.

        Args:
            lines: ``name:hash``, as `user_line` makes them. The last one counts for a name.
        """
        self._hashes = dict(line.split(":", 1) for line in lines)
        self._nobody = generate_password_hash(secrets.token_hex()) if self._hashes else ""
        self._key = secrets.token_bytes(32)
        self._checked: dict[bytes, bool] = {}
        self._slots = asyncio.Semaphore(AT_A_TIME)

    def __bool__(self) -> bool:
        """Whether anybody has to say who they are."""
        return bool(self._hashes)

    async def admit(self, field: str | None, *, at_once: bool = False) -> bool:
        """Whether a Proxy-Authorization or Authorization field names a user and its password.

        Args:
            field: its value, whatever the client sent; None if there is none.
            at_once: rather refuse than queue for a check.
        """
        if not self._hashes:
            return True
        try:
            given = Authorization.from_header(field)
        except ValueError:  # characters that no base64 has
            return False
        if given is None or given.type != "basic" or not given.username:
            return False
        name, password = str(given.username), str(given.password or "")
        digest = hmac.digest(self._key, f"{name}:{password}".encode(errors="replace"), "sha256")
        if (known := self._checked.get(digest)) is not None:
            return known
        if at_once and self._slots.locked():
            return False
        # An unknown name takes as long as a wrong password: else names could be tried out.
        pwhash = self._hashes.get(name, self._nobody)
        async with self._slots:
            known = await asyncio.to_thread(check_password_hash, pwhash, password) and name in self._hashes
        self._remember(digest, known)
        return known

    def _remember(self, digest: bytes, known: bool) -> None:
        self._checked[digest] = known
        if len(self._checked) > MOST_REMEMBERED:
            # Wrong ones first: whoever tries passwords must not push out who is known.
            wrong = next((key for key, admitted in self._checked.items() if not admitted), None)
            del self._checked[wrong if wrong is not None else next(iter(self._checked))]


def user_line(name: str, password: str) -> str:
    """A line for ``access.users``.

    Args:
        name: without a colon, which ends it in what clients send (RFC 7617 2).
        password: anything.

    Raises:
        ValueError: the name is empty, too long, or has a colon or white space.
    """
    if not name or len(name) > 128 or ":" in name or any(character.isspace() for character in name):
        raise ValueError("a name of at most 128 characters, without colons and white space")
    return f"{name}:{generate_password_hash(password)}"
