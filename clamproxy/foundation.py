"""What all parts of a service stand on: the cache, its writer, the counters, and what the site shares."""

from __future__ import annotations

from clamproxy.cache.layout import NEWEST_PROVEN
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.config.units import MIB
from clamproxy.files import sweep_unfinished
from clamproxy.formats.signatures import TrustedKeys
from clamproxy.leases.leases import Leases
from clamproxy.notes import Notes
from clamproxy.sharing.gateway_document import DIRECTORY as REPORTS
from clamproxy.sharing.site import TOPIC as FLEET_STORE
from clamproxy.sharing.site import Site
from clamproxy.state import directory_for_changes, make_state_directory, move_choices, move_records
from clamproxy.statistics import Stats
from clamproxy.storage.records import Records
from clamproxy.threads import Writer

HELD = 64 * MIB
"""How many bytes of objects are held in memory while the disk accepts none: hundreds of patches."""


class Foundation:
    """Owns the cache, its writer, and what is shared with the site. Made and stopped on the event loop.

    Args:
        keys: what objects must be signed with; the settings may name other certificates.
        is_gateway: whether this isn't a command's, which may run beside a gateway.

    Raises:
        OSError: the cache directory can't be used.
        ConfigurationError: nor can the object store.
        HoldsError: nobody knows what is held.
    """

    def __init__(self, settings: Settings, keys: TrustedKeys, *, is_gateway: bool = True) -> None:
        self.keys = keys = keys.with_roots(settings.upstream.cvd_certs_directory)
        state = make_state_directory(settings) if is_gateway else directory_for_changes(settings)
        sweep_unfinished(state)
        self.records = Records(state)
        self.store = Store(settings.cache.directory, records=self.records, keys=keys, hold=HELD)
        for part in (NEWEST_PROVEN, REPORTS):  # the store sweeps its objects only
            sweep_unfinished(settings.cache.directory / part)
        move_records(self.store, settings.cache.directory)
        self.held = move_choices(state, settings.cache.directory)
        """What is held, if the state directory can't tell."""
        self.writer = Writer(self.store.condition.failed)
        self.stats = Stats(self.store, self.writer)
        notes = self.shared_notes(FLEET_STORE)
        self.site = Site(settings.fleet_store, self.store, notes, self.stats.count_fleet_store)

    @property
    def leases(self) -> Leases:
        """Of the workers of this machine and, with an object store, of its site."""
        return self.site.leases

    def shared_notes(self, topic: str) -> Notes:
        """Notes in the cache, of which the processes that share it tell each other."""
        return Notes(self.store, self.writer, topic, shared=self.store.noted)

    def kept_notes(self, topic: str) -> Notes:
        """Notes in the state directory: what can't be learnt again."""
        return Notes(self.records, self.writer, topic)

    def stop(self) -> None:
        """Write what was noted, and close the cache. Blocks for milliseconds."""
        self.site.stop()
        self.stats.flush()
        self.writer.submit(self.store.mend)
        self.writer.submit(self.store.disconnect)
        self.writer.close()
        self.store.close()
