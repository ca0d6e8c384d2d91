"""What is known about notices, as the gateway last saved it: for pages and commands. Blocks."""

from __future__ import annotations

import socket
import time
from typing import Any

from clamproxy.config.settings import Settings
from clamproxy.notices.episodes import Chronicle
from clamproxy.notices.rules import RULE_OF
from clamproxy.notices.targets import targets_of
from clamproxy.storage.records import Records

TOPIC = "notices/"
KEY = f"{TOPIC}chronicle"
"""The record in which the state is kept."""


def gateway_name() -> str:
    """What this gateway is called in notices."""
    return socket.gethostname()


def read_chronicle(records: Records, now: float) -> Chronicle:
    """The state as it was last saved; an empty one if there is none.

    Args:
        now: Unix seconds.
    """
    try:
        return Chronicle.parse(records.notes(TOPIC).get(KEY.removeprefix(TOPIC)), now)
    except ValueError:
        return Chronicle()


def read_report(records: Records, settings: Settings) -> dict[str, Any]:
    """The state for status.json. Times are in Unix seconds."""
    chronicle, targets = read_chronicle(records, time.time()), targets_of(settings)
    ids = {target.id for target in targets}
    return {
        "targets": [
            {
                "name": target.name,
                "attempted_at": last.at if (last := chronicle.deliveries.get(target.id)) else None,
                "failures": last.failures if last else 0,
                "reason": last.reason if last else None,
            }
            for target in targets
        ],
        "alerts": [
            {
                "name": one.rule,
                "subject": one.subject or None,
                "severity": RULE_OF[one.rule].severity.value,
                "title": RULE_OF[one.rule].title,
                "text": one.text,
                "since": one.since,
                "notified": sum(key in ids and one.key in memory for key, memory in chronicle.told.items()),
            }
            for one in chronicle.episodes.values()
            if one.ended is None
        ],
    }
