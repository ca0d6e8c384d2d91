"""What the gateway finds on its own disk: records that a failing disk, or somebody else, may have changed."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from werkzeug.datastructures import Headers

from clamproxy.authority.changes import found
from clamproxy.authority.constraints import PermittedNames
from clamproxy.authority.keyfile import FILE as KEYS
from clamproxy.authority.keyfile import AuthorityError, read_state
from clamproxy.cache.partial import PartialFile, peek
from clamproxy.cache.published import Metadata
from clamproxy.feeds.entry import StoredResponse
from clamproxy.feeds.sharing_rules import ResponseHead, age, is_fresh
from clamproxy.fleet.reading import UnreadableFleetError, read_fleet
from clamproxy.fleet.story import parse_changes, parse_requests
from clamproxy.fleet.table import FILE_NAME as MACHINES
from clamproxy.history import Past
from clamproxy.notes import UNREADABLE
from clamproxy.notices.episodes import Episode
from clamproxy.objects import Kind, ObjectId
from clamproxy.origin.cooldown import Cooldown
from clamproxy.origin.endings import TransferEnding
from clamproxy.releases.first_seen import parse_seen
from clamproxy.releases.holds import FILE_NAME as HOLDS
from clamproxy.releases.holds import HoldsError, read_holds
from clamproxy.site_files.catalog import FILE_NAME as CATALOG
from clamproxy.site_files.catalog import Catalog
from clamproxy.site_files.ignoring import IgnoreList
from clamproxy.untrusted import parse_json
from tests.support.fleet_rows import NOW, put_rows, row
from tests.torture.parsers.gateways import HOLDS as HELD
from tests.torture.parsers.parser import Parser

_OBJECT = ObjectId("daily", 2, Kind.CDIFF)


@cache
def _place(name: str) -> Path:
    """A directory of this process; it goes when the process ends."""
    return Path(_root().name, name)


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A reader of a directory with a file of that name."""

    def check(data: bytes) -> None:
        directory = _place(f"with {name}")
        directory.mkdir(exist_ok=True)
        (directory / name).write_bytes(data)
        read(directory)

    return check


def _value(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    """A reader of a JSON value."""
    return lambda data: read(parse_json(data))


def _sidecar(data: bytes) -> None:
    """What is beside a partial file."""
    directory = _place("partials")
    directory.mkdir(exist_ok=True)
    path = directory / f"{_OBJECT.file_name}.part"
    path.write_bytes(b"ClamAV-Diff:2")
    path.with_suffix(".json").write_bytes(data)
    seen = peek(path)
    assert seen is not None
    assert seen.size is None or seen.size >= 0
    partial = PartialFile.claim(directory, _OBJECT)
    try:
        assert partial.have in (0, 13)
        TransferEnding.parse(partial.ending, 0.0)
    finally:
        partial.release()


def _metadata(data: bytes) -> None:
    metadata = Metadata.from_json(data.decode("utf-8", "replace"))
    if metadata is not None:
        assert metadata.size >= 0
        _ = metadata.built_at
        assert Metadata.from_json(metadata.to_json()) == metadata


def _stored_response(data: bytes) -> None:
    entry = StoredResponse.from_json(data)
    assert StoredResponse.from_json(entry.to_json()) == entry
    assert "/" not in entry.body_name
    times = (entry.head.requested_at, entry.head.received_at, entry.obtained_at, entry.replaced_until)
    assert all(0 <= at < 2**40 for at in times)
    entry.is_not_newer(NOW)
    age(entry.head, NOW)
    is_fresh(entry.head, Headers(), NOW)


def _machines(data: bytes) -> None:
    """A table of machines in which the column with the databases is damaged."""
    directory = _place("fleet")
    if not directory.exists():
        put_rows(directory, row("one", daily=5))
    with closing(sqlite3.connect(directory / MACHINES)) as connection, connection:
        connection.execute("UPDATE machines SET databases = ?", (data.decode("utf-8", "replace"),))
    for machine in read_fleet(directory, {"daily": 6}, NOW):
        json.dumps(machine.to_json(), allow_nan=False)


def _story(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    parse_requests(text)
    parse_changes(text)


def _past(saved: Any) -> None:
    past = Past.parse(saved)
    assert Past.parse(json.loads(json.dumps(past.saved()))) == past
    json.dumps(past.to_json({}, NOW), allow_nan=False)


def _authority() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        found(Path(directory), PermittedNames(()), NOW)
        return Path(directory, KEYS).read_bytes()


_EPISODE = {
    "rule": "ClamproxyNotReady",
    "subject": "x",
    "text": "y",
    "returns": 0,
    "since": NOW,
    "missing": None,
    "ended": None,
}
_COOLDOWN = {"until": NOW, "failures": 1, "failure": "forbidden", "reason": "x", "noted_at": NOW}
_SIDECAR = {
    "size": 20,
    "etag": '"x"',
    "last_modified": None,
    "ended": TransferEnding("x", None, "a").to_json(),
}
_STORED = StoredResponse(
    "0" * 64,
    "feed.example.net",
    ResponseHead(Headers({"ETag": "x"}), NOW, NOW, 5.0),
    {"accept": "x"},
    3,
    "1" * 64,
    NOW,
)
_FILE = {
    **{"name": "a.ndb", "state": "published", "since": NOW, "reason": "", "source": [1, 2, 3]},
    "served": {"sha256": "a" * 64, "size": 1, "published_at": int(NOW), "checked_by": "clamscan"},
}
_CATALOG = {"files": [_FILE], "withdrawn": {"b.ndb": int(NOW)}, "trouble": ""}
_IGNORED = {"at": NOW, "action": "add", "signature": "A.B", "by": "root", "why": "x"}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


PARSERS = (
    Parser("JSON", parse_json, (b'{"a": [1, 2.5, null, true, "x"]}', b"[[[[1e300]]]]")),
    Parser("holds.json", _in_file(HOLDS, read_holds), (HELD,), (HoldsError,)),
    Parser("catalog of the site's files", _in_file(CATALOG, Catalog.load), (_json(_CATALOG),)),
    Parser(
        "history of ignored signatures",
        _in_file("ignored.jsonl", lambda directory: IgnoreList(directory, directory).history()),
        (_json(_IGNORED) + b"\n" + _json(_IGNORED),),
    ),
    Parser("keys of the authority", _in_file(KEYS, read_state), (_authority(),), (AuthorityError,)),
    Parser("beside a partial file", _sidecar, (_json(_SIDECAR), _json(_SIDECAR) + b"}, 1]")),
    Parser(
        "metadata of an object",
        _metadata,
        (Metadata(3, NOW, last_modified=NOW, header="x").to_json().encode(),),
    ),
    Parser("stored response of a feed", _stored_response, (_STORED.to_json().encode(),), (ValueError,)),
    Parser("row of the table of machines", _machines, (_json({"daily": [5, NOW]}),), (UnreadableFleetError,)),
    Parser(
        "story of a machine",
        _story,
        (b"1790000000 daily.cvd 200 5\n", b"daily 5 1790000000 1 0\nprogram 1.4 1 0 0\n"),
    ),
    Parser("cool-down", _value(lambda saved: Cooldown.parse(saved, NOW)), (_json(_COOLDOWN),), (ValueError,)),
    Parser(
        "end of a transfer",
        _value(lambda saved: TransferEnding.parse(saved, 0.0)),
        (_json(_SIDECAR["ended"]),),
    ),
    Parser("versions first seen", _value(parse_seen), (_json({"27800": NOW}),), UNREADABLE),
    Parser(
        "episode of a notice",
        _value(lambda saved: Episode.parse(saved, NOW)),
        (_json(_EPISODE),),
        (ValueError,),
    ),
    Parser("history", _value(_past), (_json(Past().saved()),)),
)
