"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """The cores that the scheduler gives this process; at least 1.

    A container or a unit with CPUQuota may use only part of the machine's, which its affinity doesn't show.

    Args:
        cgroups: where the cgroups of version 2 are mounted.
        own: names this process's cgroup.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *_quotas(cgroups, own)]))


def _quotas(cgroups: Path, own: Path) -> list[int]:
    """The limits in cores of this process's cgroup and of those around it (cpu.max, cgroups(7))."""
    found = []
    with suppress(OSError, ValueError):
        name = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/")
        place = cgroups / name.strip("/")
        for directory in (place, *place.parents):
            if not directory.is_relative_to(cgroups):
                break
            with suppress(OSError, ValueError):
                quota, period = (directory / "cpu.max").read_text().split()
                found.append(math.ceil(int(quota) / int(period)))  # "max" is no number
    return found
