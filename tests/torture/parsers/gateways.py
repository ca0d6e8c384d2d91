"""What other gateways tell, by HTTP or through the object store."""

from __future__ import annotations

import json
from typing import Any

from clamproxy.origin.cooldown import Cooldown
from clamproxy.peers.answers import AnswerError, parse_machines, parse_status
from clamproxy.releases.holds import Hold, HoldChange, Holds, decode, encode, merged
from clamproxy.sharing.gateway_document import DocumentError, GatewayDocument, id_in
from clamproxy.sharing.reports import LARGEST_LINE, MOST_LINES, packed, unpacked
from clamproxy.sharing.topics import TOPICS, Reading, understood
from tests.support.forge import forge_database
from tests.torture.parsers.parser import Parser

_NOW = 1_790_000_000.0
_HEADER = forge_database("daily", 1, {"daily.ndb": b"a\n"})[:512].decode()
_NOTES: dict[str, dict[str, Any]] = {
    "advertised": {"daily": [27800, _NOW]},
    "record": {"current.cvd.clamav.net": "0.103.12:62:27800:1790000000:1:90:49192:339"},
    "head": {"daily": {"header": _HEADER, "seen_at": _NOW, "advertised": 1, "wanted": 1, "fruitless": 1}},
    "first-seen": {"daily": {"27800": _NOW}},
    "agent": {"1.4.6": {"user_agent": "ClamAV/1.4.6", "seen_at": _NOW}},
    "cld": {"daily": _NOW},
    "stuck": {"daily-27800.cdiff": {"failures": 1, "since": _NOW, "last": _NOW}},
    "cooldown": {
        "/daily.cvd": {"until": _NOW, "failures": 1, "failure": "forbidden", "reason": "x", "noted_at": _NOW}
    },
    "headless": {"daily": [_NOW, 60]},
    "missing": {"daily-27800.cdiff": [_NOW, 60]},
    "budget": {"/daily.cvd": [_NOW]},
}
_DOCUMENT = GatewayDocument("gateway", "0" * 16, _NOW, _NOTES).encode()
_HELD = Hold(27800, _NOW, "root", "why")
HOLDS = encode(Holds({"daily": _HELD}, (HoldChange("daily", _NOW, "root", 27800, "why"),)))
_COUNTS = dict.fromkeys(("total", "up_to_date", "behind", "unknown", "overdue", "end_of_life"), 1)
_STATUS = {
    "gateway": {"version": "1", "now": _NOW},
    "ready": True,
    "problems": ["x"],
    "databases": [{"name": "daily", "advertised": 1, "reached": 1}],
    "fleet": {"enabled": True, **_COUNTS},
}
_MACHINE = {
    **dict.fromkeys(("uuid", "address", "name", "group", "freshclam", "os", "arch"), "x"),
    **{"first_seen": _NOW, "last_seen": _NOW, "end_of_life": False, "cloned": False},
    "databases": {"daily": {"version": 1, "behind": 1, "behind_since": _NOW, "seen_at": _NOW}},
    "last_error": {"at": _NOW, "what": "x"},
}


def _document(data: bytes) -> None:
    document = GatewayDocument.parse(data)
    reading = Reading(5.0, _NOW, {"daily": 27800})
    notes = understood(document.notes, reading)
    assert notes.keys() <= {topic.name for topic in TOPICS}
    for cooldown in notes.get("cooldown", {}).values():
        Cooldown.parse(cooldown, _NOW)
    # What was understood is told on, and understood again.
    again = json.loads(json.dumps(notes).encode())
    assert understood(again, Reading(0.0, _NOW, {"daily": 27800})) == notes
    assert GatewayDocument.parse(document.encode()) == document


def _holds(data: bytes) -> None:
    holds = decode(data)
    assert decode(encode(holds)).in_force == holds.in_force
    merged(holds, decode(HOLDS))
    merged(decode(HOLDS), holds)
    for held in holds.in_force.values():
        held.explain()


def _report(data: bytes) -> None:
    lines = 0
    for line in unpacked(data):
        lines += 1
        assert len(line) <= LARGEST_LINE
    assert lines <= MOST_LINES


def _machines(data: bytes) -> None:
    page = parse_machines(data, _NOW, 5.0)
    json.dumps([machine.to_json() for machine in page.machines]).encode()
    assert all(machine.last_seen <= _NOW for machine in page.machines)


def _status(data: bytes) -> None:
    assert all(line.isprintable() for line in parse_status(data).lines())


PARSERS = (
    Parser("document of a gateway", _document, (_DOCUMENT,), (DocumentError,)),
    Parser("name of a document", lambda data: id_in(data.decode("latin-1")), (b"0123456789abcdef.json",)),
    Parser("holds", _holds, (HOLDS,), (ValueError,)),
    Parser("report of a gateway", _report, (packed([b'{"a": 1}', b"{}"]) or b"",), (ValueError,)),
    Parser("status.json of a gateway", _status, (json.dumps(_STATUS).encode(),), (AnswerError,)),
    Parser(
        "fleet.json of a gateway",
        _machines,
        (json.dumps({"machines": [_MACHINE]}).encode(),),
        (AnswerError,),
    ),
)
