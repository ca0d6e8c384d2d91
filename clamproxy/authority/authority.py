"""The authority in use: it signs certificates for hosts, and knows what clients have to trust."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from clamproxy.authority.certificates import Leaf, make_leaf, pem_of, utc
from clamproxy.authority.constraints import PermittedNames
from clamproxy.authority.keyfile import FILE, AuthorityError, Generation, read_state
from clamproxy.config.units import HOST_NAME

MAX_LEAVES = 256
"""How many certificates of hosts are kept for later handshakes."""


class ForeignName(Exception):
    """The authority may not sign for this host."""


class Authority:
    """The generations of an authority, and the certificates that it has signed lately.

    Args:
        directory: where the generations were read from.
        generations: one or more, oldest first.

    Raises:
        ValueError: one of them has no name constraints.
    """

    def __init__(self, directory: Path, generations: Sequence[Generation]) -> None:
        self.directory = directory
        self.generations = tuple(generations)
        self._permitted = {
            generation: PermittedNames.of_certificate(generation.certificate) for generation in generations
        }
        self._leaves: OrderedDict[tuple[str, Generation], Leaf] = OrderedDict()

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Read an authority; None if there is none. Blocks for a moment.

        Raises:
            AuthorityError: it is damaged.
            OSError: it can't be read.
        """
        generations = read_state(directory)
        try:
            return cls(directory, generations) if generations else None
        except ValueError as error:
            raise AuthorityError(f"{directory / FILE} is damaged: {error}") from error

    def signer(self, now: float | None = None) -> Generation:
        """The generation that signs at a given time (Unix seconds, by default now)."""
        now = time.time() if now is None else now
        begun = [generation for generation in self.generations if generation.signs_from <= now]
        return (begun or self.generations[:1])[-1]

    def successor(self, now: float | None = None) -> Generation | None:
        """The generation that will sign once the overlap is over; None if there is no overlap."""
        last = self.generations[-1]
        return None if last is self.signer(now) else last

    def permitted(self, now: float | None = None) -> PermittedNames:
        """The names that the authority can sign for at that time."""
        return self._permitted[self.signer(now)]

    def names_of(self, generation: Generation) -> PermittedNames:
        return self._permitted[generation]

    def certificate_for(self, host: str, now: float | None = None) -> Leaf:
        """The certificate of a host: a kept one while it is fresh, else a new one.

        Args:
            host: a host name or an IPv4 address, as sent by a client.
            now: Unix seconds, by default the present time.

        Raises:
            ForeignName: the authority may not sign for it.
        """
        now = time.time() if now is None else now
        signer = self.signer(now)
        name = self._permitted_name(host, signer)
        leaf = self._leaves.get((name, signer))
        if leaf is None or not leaf.is_fresh(now):
            leaf = make_leaf(name, signer.certificate, signer.key, utc(now))
            self._leaves[name, signer] = leaf
            if len(self._leaves) > MAX_LEAVES:
                self._leaves.popitem(last=False)
        self._leaves.move_to_end((name, signer))
        return leaf

    def bundle(self, now: float | None = None) -> bytes:
        """All roots, which clients have to trust, as PEM; the root of the signing generation comes first."""
        signer = self.signer(now)
        others = [generation for generation in self.generations if generation is not signer]
        return b"".join(pem_of(generation.root) for generation in (signer, *others))

    def _permitted_name(self, host: str, signer: Generation) -> str:
        try:
            name = HOST_NAME.parse(host)
        except ValueError:
            raise ForeignName(f"{host!r:.80} is not a host name") from None
        if not self._permitted[signer].cover(name):
            raise ForeignName(
                f"the certificate authority may not sign for {name}, only for {self._permitted[signer]}"
            )
        return name
