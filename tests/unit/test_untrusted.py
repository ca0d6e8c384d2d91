"""JSON that anybody may have written, and everything saved that is read with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from clamproxy.cache.partial import peek
from clamproxy.cache.published import Metadata
from clamproxy.feeds.entry import StoredResponse
from clamproxy.front.client_request import Caller, ClientRequest
from clamproxy.releases.holds import FILE_NAME, HoldsError, read_holds
from clamproxy.storage.records import Records, count_in
from clamproxy.untrusted import parse_first_json, parse_json
from tests.support.strategies import json_values

DEEP = "[" * 100_000
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}),
        ('{"a": 1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),  # as some editors save it
        (b"18446744073709551615", 2**64 - 1),  # an inode's number
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\ud800x"', "?x"),
        (b'["\\ud83d", "\\uDE00"]', ["?", "?"]),
        ('"\ud800"', "?"),
        (b'{"\\udfff": 1}', {"?": 1}),
        (b"1e300", 1e300),
    ],
)
def test_what_is_read(content: bytes | str, value: Any) -> None:
    assert parse_json(content) == value


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1] x", b"\xff", b"\xed\xa0\x80", DEEP.encode(), DEEP, f"{{{DEEP}"),
        *(
            b"NaN",
            b"[Infinity]",
            b"-Infinity",
            b"1e999",
            b"-1e999",
            HUGE,
            f"-{HUGE}",
            str(10**400),
            str(2**64),
        ),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_something_else(content: bytes | str) -> None:
    assert parse_json(content) is None


@given(json_values)
def test_whatever_is_read_can_be_used_anywhere(value: Any) -> None:
    """As a float, in SQLite's and the system's numbers, and in a text that is sent."""
    found = parse_json(json.dumps(value))
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    if isinstance(found, int):
        float(found)


def test_a_value_that_something_follows() -> None:
    assert parse_first_json('{"a": 1}}, 2') == {"a": 1}
    for text in ("", "x", DEEP, "NaN", f"[{HUGE}] x"):
        assert parse_first_json(text) is None


SIDECAR = '{{"size": {}}}'


@pytest.mark.parametrize("content", [DEEP, HUGE, "[]", "\ud800", SIDECAR.format("-1"), SIDECAR.format(HUGE)])
def test_beside_a_partial_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "daily-2.cdiff.part"
    path.write_bytes(b"0123")
    path.with_suffix(".json").write_bytes(content.encode(errors="surrogatepass"))
    seen = peek(path)
    assert seen is not None
    assert (seen.have, seen.size) == (4, None)


METADATA: dict[str, Any] = {"size": 3, "fetched_at": 1.0}
WRONG: dict[str, list[Any]] = {
    "size": [None, -1, "3", True, 2.5],
    "fetched_at": [None, "1", [], False],
    "last_modified": ["1", {}, True],
    "header": [1, []],
    "sha256": [1, []],
    "unknown": [1],
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in WRONG for wrong in WRONG[name]])
def test_metadata_of_an_object(name: str, wrong: object) -> None:
    assert Metadata.from_json(json.dumps(METADATA)) == Metadata(3, 1.0)
    assert Metadata.from_json(json.dumps(METADATA | {name: wrong})) is None


def test_metadata_that_is_no_json() -> None:
    for text in (DEEP, HUGE, "null", '{"size": 1e999, "fetched_at": 1}'):
        assert Metadata.from_json(text) is None


ENTRY: dict[str, Any] = {
    **{"key": "0" * 64, "place": "x", "headers": [], "redirect_lifetime": None, "selection": {}},
    **{"size": 1, "sha256": "1" * 64, "requested_at": 1.0, "received_at": 1.0, "obtained_at": 1.0},
    "replaced_until": 0.0,
}


@pytest.mark.parametrize("name", ["requested_at", "received_at", "obtained_at", "replaced_until"])
@pytest.mark.parametrize("wrong", ["NaN", "1e999", None, -1, 1e300, 10**400])
def test_times_of_a_stored_response(name: str, wrong: object) -> None:
    """Such a time would fail the request that finds the response."""
    StoredResponse.from_json(json.dumps(ENTRY))
    with pytest.raises(ValueError, match=r"not an? (entry|time)"):
        StoredResponse.from_json(json.dumps(ENTRY | {name: wrong}))


@pytest.mark.parametrize("since", ["1e999", "NaN", str(10**400)])
def test_holds(tmp_path: Path, since: str) -> None:
    held = (
        f'{{"holds": {{"daily": {{"version": 1, "since": {since}, "by": "a", "why": ""}}}}, "changes": []}}'
    )
    (tmp_path / FILE_NAME).write_text(held)
    with pytest.raises(HoldsError, match="damaged"):
        read_holds(tmp_path)


def test_counters(tmp_path: Path) -> None:
    assert [count_in(text) for text in ("17", "", "x", "-1", HUGE)] == [17, None, None, None, None]
    records = Records(tmp_path)
    assert records.set_note("counter/hits", 10**4200)  # an unreadable counter begins anew
    assert records.counters() == {}
    assert records.add({"hits": 1})
    assert records.counters() == {"hits": 1}


@pytest.mark.parametrize("read", [lambda text: text, lambda text: f"0{text}"], ids=["long", "with a zero"])
def test_the_length_of_a_request(read: Callable[[str], str]) -> None:
    caller = Caller("192.0.2.1", "192.0.2.2", 8080)
    fields = [("Content-Length", read(HUGE))]
    request = ClientRequest("POST", "/", fields, "", "", 0, caller=caller, started_at=0)
    assert request.content_length > 10**15
