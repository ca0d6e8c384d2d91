"""Delta serving: when a cached CVD, and the patches after it, stand for a newer version. Pure.

A new client that gets an older CVD than is advertised asks at once for the cdiffs from there on
(protocol.md 2.5, measured: test-3.cvd and three cdiffs became version 6). So a release costs the
site its cdiff, and a whole CVD is only fetched anew where patches don't lead on, or where there
are so many of them that a new client loses time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from clamproxy.config.settings import Delta


class Renewal(StrEnum):
    """When the base is to be replaced by a newer CVD."""

    NOT_NEEDED = "not needed"
    IN_A_QUIET_HOUR = "in a quiet hour"
    AT_ONCE = "at once"


@dataclass(frozen=True, slots=True)
class Lineage:
    """A cached CVD, the base, and the cached cdiffs that follow it without a gap."""

    base: int
    """Version of the CVD."""
    base_size: int
    """Its bytes."""
    reached: int
    """The version that the last of the cdiffs leads to; that of the base if there is none."""
    patch_bytes: int = 0
    """Bytes of these cdiffs together."""
    is_blocked: bool = False
    """Whether the next cdiff is here and leads nowhere: it is empty, with which the vendor tells
    clients to take the whole CVD (trap 15), or it doesn't fit."""

    @property
    def patches(self) -> int:
        """How many patches a client applies that gets the base."""
        return self.reached - self.base

    def is_within(self, limits: Delta) -> bool:
        """Whether patches and base together are still a good deal for a new client."""
        return self.patches <= limits.max_patches and self.patch_bytes <= limits.max_share * self.base_size


def renewal(lineage: Lineage, limits: Delta, *, next_is_gone: bool = False) -> Renewal:
    """When to fetch a newer base.

    Args:
        lineage: what is here.
        limits: the section ``delta`` of the configuration.
        next_is_gone: whether the next cdiff is advertised, and the origin has it no more.
    """
    if not limits.enabled:
        return Renewal.NOT_NEEDED
    if lineage.is_blocked or next_is_gone or not lineage.is_within(limits):
        return Renewal.AT_ONCE
    if lineage.patches >= limits.renew_after:
        return Renewal.IN_A_QUIET_HOUR
    return Renewal.NOT_NEEDED
