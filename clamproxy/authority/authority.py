"""The authority as it is used: it signs for hosts, and tells what clients have to trust."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from clamproxy.authority.certificates import Leaf, make_leaf, pem_of, utc
from clamproxy.authority.constraints import PermittedNames
from clamproxy.authority.keyfile import FILE, AuthorityError, Generation, read_state
from clamproxy.config.units import parse_host_name

MAX_LEAVES = 256
"""Certificates of hosts that are kept for the next handshake."""


class ForeignName(Exception):
    """The authority may not sign for a host."""


class Authority:
    """The generations of an authority, and the certificates that it has signed lately."""

    def __init__(self, directory: Path, generations: Sequence[Generation]) -> None:
        """Prepare.

        Args:
            directory: where they are from.
            generations: one or more, oldest first.

        Raises:
            ValueError: one of them has no name constraints.
        """
        self.directory = directory
        self.generations = tuple(generations)
        self._permitted = {
            generation: PermittedNames.of_certificate(generation.certificate) for generation in generations
        }
        self._leaves: OrderedDict[tuple[str, Generation], Leaf] = OrderedDict()

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Read what is kept; None if there is no authority. Blocks for a moment.

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
        """The generation that signs at a time (Unix seconds), by default now."""
        now = time.time() if now is None else now
        begun = [generation for generation in self.generations if generation.signs_from <= now]
        return (begun or self.generations[:1])[-1]

    def successor(self, now: float | None = None) -> Generation | None:
        """The generation that will sign when an overlap is over; None if there is no overlap."""
        last = self.generations[-1]
        return None if last is self.signer(now) else last

    def permitted(self, now: float | None = None) -> PermittedNames:
        """The names that can be signed for."""
        return self._permitted[self.signer(now)]

    def names_of(self, generation: Generation) -> PermittedNames:
        """The names that a generation can sign for."""
        return self._permitted[generation]

    def certificate_for(self, host: str, now: float | None = None) -> Leaf:
        """The certificate of a host; it is made if there is none that is good for a while.

        Args:
            host: a host name or an IPv4 address, as a client says it.
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
        """All roots, which clients have to trust, as PEM; first that of the generation that signs."""
        signer = self.signer(now)
        others = [generation for generation in self.generations if generation is not signer]
        return b"".join(pem_of(generation.root) for generation in (signer, *others))

    def _permitted_name(self, host: str, signer: Generation) -> str:
        try:
            name = parse_host_name(host)
        except ValueError:
            raise ForeignName(f"{host!r:.80} is no host name") from None
        if not self._permitted[signer].cover(name):
            raise ForeignName(
                f"the certificate authority may not sign for {name}, but for {self._permitted[signer]}"
            )
        return name
