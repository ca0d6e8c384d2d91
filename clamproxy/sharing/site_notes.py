"""What other gateways of the site have told, as notes in the index: ``site/<gateway>/<topic>/<key>``.

All processes of the machine read them there; the one that exchanges documents writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from clamproxy.cache.store import Store
from clamproxy.formats.version_record import OLDEST_RECORD
from clamproxy.notes import SITE, site_key
from clamproxy.sharing.topics import Notes, Reading, told

_TOPIC, _KEY = "about", "gateway"
"""Where this gateway notes what it knows about another one itself."""


@dataclass(frozen=True, slots=True)
class About:
    """Another gateway that is there."""

    gateway: str
    """Its id."""
    name: str
    """As it calls itself, for people."""
    difference: float
    """Seconds to add to its times."""
    heard_at: float
    """When it last wrote, about, in Unix seconds by this gateway's clock."""


def own_notes(store: Store) -> Notes:
    """What this gateway has learnt itself and tells others. Blocks."""

    def of_topic(topic: str) -> Mapping[str, Any]:
        return store.notes(f"{topic}/") or store.records.notes(f"{topic}/")

    return told(of_topic)


def reading_of(store: Store, difference: float, now: float) -> Reading:
    """What it takes to read the notes of a gateway whose clock differs by so many seconds. Quick."""
    advertised = {}
    for database, saved in store.notes("advertised/").items():
        match saved:
            case [int(version), int() | float() as learnt_at] if 0 <= now - learnt_at < OLDEST_RECORD:
                advertised[database] = version
    return Reading(difference, now, advertised)


def gateways(store: Store) -> dict[str, About]:
    """The other gateways that are there, by their id. Takes some 100 µs."""
    found = {}
    for saved in store.noted.site_notes(_TOPIC, _KEY).get(_KEY, ()):
        with suppress(TypeError):
            about = About(**saved)
            found[about.gateway] = about
    return found


def replace(store: Store, about: About, notes: Notes) -> None:
    """Note what a gateway tells now, and nothing else. Blocks."""
    gateway = about.gateway
    noted = {
        site_key(gateway, topic, key): value
        for topic, values in notes.items()
        for key, value in values.items()
    }
    _change(store, gateway, {**noted, site_key(gateway, _TOPIC, _KEY): asdict(about)})


def forget(store: Store, gateway: str) -> None:
    """Forget all that a gateway has told. Blocks."""
    _change(store, gateway, {})


def _change(store: Store, gateway: str, values: Mapping[str, Any]) -> None:
    prefix = f"{SITE}{gateway}/"
    gone = {f"{prefix}{key}": None for key in store.notes(prefix)}
    store.noted.set_notes({**gone, **values})
