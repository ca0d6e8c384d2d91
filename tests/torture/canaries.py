"""Strings that stand for secrets, and the search for them."""

from __future__ import annotations

import base64
import random
import re
import string

LENGTH = 24


class Canaries:
    """Secrets by their names, each made when it is asked for.

    Args:
        seed: what they are made from.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._spellings: dict[str, tuple[bytes, ...]] = {}
        self.secrets: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self.secrets:
            letters = string.ascii_letters + string.digits
            self.keep(name, "".join(self._random.choices(letters, k=LENGTH)))
        return self.secrets[name]

    def keep(self, name: str, secret: str) -> None:
        """Look for a secret that somebody else has made."""
        self.secrets[name] = secret
        self._spellings[name] = tuple(_spellings(secret.encode()))

    def found_in(self, content: bytes) -> list[str]:
        """The names of the secrets that are there, as they are, or encoded."""
        unquoted = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes.fromhex(match[1].decode()), content)
        lower = content.lower()
        return [
            name
            for name, (plain, hexadecimal, *coded) in self._spellings.items()
            if plain.lower() in lower
            or hexadecimal in lower
            or plain in unquoted
            or any(one in content for one in coded)
        ]


def _spellings(secret: bytes) -> list[bytes]:
    """The secret itself, in hexadecimal, and in Base64, wherever it begins there."""
    coded = [
        base64.b64encode(b"x" * shift + secret)[(0, 2, 3)[shift] :].rstrip(b"=")[:-2] for shift in range(3)
    ]
    return [secret, secret.hex().encode(), *coded]
