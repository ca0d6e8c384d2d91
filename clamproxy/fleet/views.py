"""What is known about the machines, as the pages show it at this moment. Blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clamproxy.config.settings import FleetSection
from clamproxy.fleet.biography import Biography, read_biography
from clamproxy.fleet.fleet_upkeep import take_sample
from clamproxy.fleet.live_labels import LiveLabels
from clamproxy.fleet.machine import Machine
from clamproxy.fleet.reading import UnreadableFleetError, read_fleet, read_trend
from clamproxy.fleet.trend import Sample


class FleetViews:
    """Reads the table of machines. Any thread.

    Args:
        directory: the state directory.
        advertised: gives the version of each database that machines should have.
    """

    def __init__(
        self,
        directory: Path,
        settings: FleetSection,
        labels: LiveLabels,
        advertised: Callable[[], Mapping[str, int]],
    ) -> None:
        self._behind_for = settings.behind_for
        self._directory = directory
        self._labels = labels
        self._advertised = advertised

    def all(self) -> list[Machine]:
        try:
            return read_fleet(self._directory, self._advertised(), time.time(), self._labels.get())
        except UnreadableFleetError:
            return []  # the next writer logs that, and starts a new file

    def trend(self) -> Mapping[str, Any] | None:
        try:
            return read_trend(self._directory, time.time())
        except UnreadableFleetError:
            return None

    def biography(self, uuid: str) -> Biography | None:
        return read_biography(self._directory, uuid, self._advertised(), time.time(), self._labels.get())

    def sample(self) -> Sample | None:
        """The machines counted, see `take_sample`."""
        return take_sample(self.all(), self._behind_for, time.time())
