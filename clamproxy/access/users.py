"""Users: names and passwords as freshclam sends them (RFC 7617), compared with hashes.

Checking a hash is slow by design, and freshclam makes a new connection for each file. So the result of a
check is remembered under a keyed digest, and checks run in threads, only a few at a time.
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
"""Checks at a time; more would take the processor away from users who are known already."""


class Users:
    """The configured users. Event loop only.

    Args:
        lines: ``name:hash``, as `user_line` makes them. The last one for a name counts.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._hashes = dict(line.split(":", 1) for line in lines)
        self._nobody = generate_password_hash(secrets.token_hex()) if self._hashes else ""
        self._key = secrets.token_bytes(32)
        self._checked: dict[bytes, bool] = {}
        self._slots = asyncio.Semaphore(AT_A_TIME)

    def __bool__(self) -> bool:
        """Whether clients have to authenticate at all."""
        return bool(self._hashes)

    async def admit(self, field: str | None, *, at_once: bool = False) -> bool:
        """Whether a Proxy-Authorization or Authorization field holds a user's name and password.

        Args:
            field: the field's value, whatever the client sent; None if it sent none.
            at_once: refuse rather than wait until a check is possible.
        """
        if not self._hashes:
            return True
        try:
            given = Authorization.from_header(field)
        except ValueError:  # not base64
            return False
        if given is None or given.type != "basic" or not given.username:
            return False
        name, password = str(given.username), str(given.password or "")
        digest = hmac.digest(self._key, f"{name}:{password}".encode(errors="replace"), "sha256")
        if (known := self._checked.get(digest)) is not None:
            return known
        if at_once and self._slots.locked():
            return False
        # An unknown name takes as long as a wrong password, or the time would tell which names exist.
        pwhash = self._hashes.get(name, self._nobody)
        async with self._slots:
            if (known := self._checked.get(digest)) is not None:
                return known  # many machines with one password ask at the same time
            known = await asyncio.to_thread(check_password_hash, pwhash, password) and name in self._hashes
        self._remember(digest, known)
        return known

    def _remember(self, digest: bytes, known: bool) -> None:
        self._checked[digest] = known
        if len(self._checked) > MOST_REMEMBERED:
            # Wrong ones first: somebody who tries out passwords must not displace known users.
            wrong = next((key for key, admitted in self._checked.items() if not admitted), None)
            del self._checked[wrong if wrong is not None else next(iter(self._checked))]


def user_line(name: str, password: str) -> str:
    """A line for ``access.users``.

    Args:
        name: without a colon, which would end it in what clients send (RFC 7617 2).

    Raises:
        ValueError: the name is empty, too long, or contains a colon or white space.
    """
    if not name or len(name) > 128 or ":" in name or any(character.isspace() for character in name):
        raise ValueError("a name of at most 128 characters, without colons or white space")
    return f"{name}:{generate_password_hash(password)}"
