"""Delta serving: when a cached CVD and the patches after it can stand in for a newer version. Pure.

A new client that gets an older CVD than advertised asks at once for the cdiffs that follow
(docs/protocol.md 2.5, measured: test-3.cvd and three cdiffs became version 6). So a release costs the site
only its cdiff. A whole CVD is fetched again only where patches don't lead on, or where there are so many
of them that a new client loses time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from clamproxy.config.settings import Delta


class Renewal(StrEnum):
    """When to replace the base with a newer CVD."""

    NOT_NEEDED = "not needed"
    IN_A_QUIET_HOUR = "in a quiet hour"
    AT_ONCE = "at once"


@dataclass(frozen=True, slots=True)
class Lineage:
    """A cached CVD, the base, and the cached cdiffs that follow it without a gap."""

    base: int
    base_size: int
    """Size of that CVD in bytes."""
    reached: int
    """The version that the last of the cdiffs leads to; the base's own if there are none."""
    patch_bytes: int = 0
    """Total size of the cdiffs in bytes."""
    is_blocked: bool = False
    """Whether the next cdiff is here but leads nowhere. Either it is empty, which is how the vendor tells
    clients to fetch the whole CVD (trap 15), or it doesn't fit."""

    @property
    def patches(self) -> int:
        """How many patches a client that gets the base must apply."""
        return self.reached - self.base

    def is_within(self, limits: Delta) -> bool:
        """Whether the base with its patches is still a good choice for a new client."""
        return self.patches <= limits.max_patches and self.patch_bytes <= limits.max_share * self.base_size


def renewal(lineage: Lineage, limits: Delta, *, next_is_gone: bool = False) -> Renewal:
    """When to fetch a newer base.

    Where patches don't lead on, a newer CVD is needed without delta serving as well: clients that learn the
    versions from the gateway's DNS hear of no later one, so none of them would ever ask for it.

    Args:
        next_is_gone: whether the next cdiff is advertised, but won't come.
    """
    if lineage.is_blocked or next_is_gone:
        return Renewal.AT_ONCE
    if not limits.enabled:
        return Renewal.NOT_NEEDED
    if not lineage.is_within(limits):
        return Renewal.AT_ONCE
    if lineage.patches >= limits.renew_after:
        return Renewal.IN_A_QUIET_HOUR
    return Renewal.NOT_NEEDED
