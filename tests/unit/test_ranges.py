"""Conditional and Range requests (RFC 9110 13 and 14)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.ranges import Representation, Selection, select

SIZE = 1000
BUILT = 1_700_000_000
DATE = http_date(BUILT)
EARLIER, LATER = http_date(BUILT - 1), http_date(BUILT + 1)
FILE = Representation(SIZE, "daily-5.cvd", BUILT)
WHOLE = Selection(200, 0, SIZE)
NOT_MODIFIED = Selection(304)
UNSATISFIABLE = Selection(416, content_range=f"bytes */{SIZE}")


def part(start: int, length: int, size: int = SIZE) -> Selection:
    return Selection(206, start, length, f"bytes {start}-{start + length - 1}/{size}")


def ask(file: Representation = FILE, **fields: str) -> Selection:
    names = {name.replace("_", "-"): value for name, value in fields.items()}
    return select(Headers(list(names.items())), file)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        pytest.param("bytes=0-511", part(0, 512), id="trap 11: freshclam's header probe"),
        pytest.param("bytes=0-95", part(0, 96), id="trap 12: cvdupdate's header probe"),
        ("bytes=0-0", part(0, 1)),
        ("bytes=999-999", part(999, 1)),
        ("bytes=500-", part(500, 500)),
        ("bytes=0-", part(0, SIZE)),
        ("bytes=900-5000", part(900, 100)),
        ("bytes=-1", part(999, 1)),
        ("bytes=-500", part(500, 500)),
        pytest.param("bytes=-5000", part(0, SIZE), id="14.1.2: a longer suffix is the whole"),
        pytest.param("BYTES=0-1", part(0, 2), id="14.1: units in any case"),
        ("bytes=1000-", UNSATISFIABLE),
        ("bytes=1000-2000", UNSATISFIABLE),
        pytest.param("bytes=-0", UNSATISFIABLE, id="14.1.2: the last 0 bytes"),
        pytest.param("bytes=0-1,5-6", WHOLE, id="several ranges"),
        pytest.param("bytes=0-1,2000-", WHOLE, id="several ranges, one not satisfiable"),
        pytest.param("bytes=5-1", WHOLE, id="14.1.1: an invalid range is ignored"),
        pytest.param("lines=0-1", WHOLE, id="14.2: an unknown unit is ignored"),
        ("bytes=", WHOLE),
        ("bytes=-", WHOLE),
        ("bytes=a-b", WHOLE),
        ("bytes=0x0-0x1", WHOLE),
        ("bytes=+0-1", WHOLE),
        ("bytes=1.5-2", WHOLE),
        ("bytes", WHOLE),
        ("0-1", WHOLE),
        ("", WHOLE),
        ("bytes=\u0660-\u0661", WHOLE),
        pytest.param("bytes=" + "9" * 5000 + "-", WHOLE, id="more digits than int() takes"),
    ],
)
def test_range(field: str, expected: Selection) -> None:
    assert ask(Range=field) == expected


def test_without_a_range_the_whole_is_sent() -> None:
    assert ask() == WHOLE


@pytest.mark.parametrize("field", ["bytes=0-511", "bytes=0-", "bytes=-1", "bytes=-0", "bytes=5-"])
def test_trap_12_an_empty_object_has_no_ranges_and_no_416(field: str) -> None:
    assert ask(Representation(0, "daily-5.cdiff"), Range=field) == Selection(200)


def test_trap_12_a_range_may_be_longer_than_the_object() -> None:
    assert ask(Representation(100, "x"), Range="bytes=0-511") == part(0, 100, 100)


BEGINNING = Representation(None, None, BUILT)
"""A file of which only the beginning is known: neither its length nor its tag."""


def beginning(length: int) -> Selection:
    return Selection(206, 0, length, f"bytes 0-{length - 1}/*")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"Range": "bytes=0-511"}, beginning(512), id="trap 11: freshclam's header probe"),
        pytest.param({"Range": "bytes=0-95"}, beginning(96), id="trap 12: cvdupdate's header probe"),
        pytest.param({"Range": "bytes=9-9"}, Selection(206, 9, 1, "bytes 9-9/*"), id="14.4: a single byte"),
        pytest.param({"Range": "bytes=0-"}, Selection(200), id="to the end, wherever that is"),
        pytest.param({"Range": "bytes=-5"}, Selection(200), id="a suffix"),
        pytest.param({"Range": "bytes=-0"}, Selection(200), id="an empty suffix"),
        pytest.param({"Range": "bytes=0-1,5-6"}, Selection(200), id="several ranges"),
        pytest.param({"Range": "lines=0-1"}, Selection(200), id="another unit"),
        pytest.param({}, Selection(200), id="the whole"),
        pytest.param({"Range": "bytes=0-511", "If_Modified_Since": DATE}, NOT_MODIFIED, id="trap 14"),
        pytest.param({"Range": "bytes=0-511", "If_Modified_Since": EARLIER}, beginning(512), id="newer"),
        pytest.param({"Range": "bytes=0-511", "If_Range": DATE}, beginning(512), id="If-Range by date"),
        pytest.param({"Range": "bytes=0-511", "If_Range": EARLIER}, Selection(200), id="If-Range, changed"),
        pytest.param({"Range": "bytes=0-511", "If_Range": '"x"'}, Selection(200), id="no tag matches"),
        pytest.param({"Range": "bytes=0-511", "If_Range": '"None"'}, Selection(200), id="no tag at all"),
        pytest.param({"If_None_Match": '"x"'}, Selection(200), id="no tag to compare with"),
        pytest.param({"If_None_Match": "None"}, Selection(200), id="nor to be called None"),
    ],
)
def test_a_file_of_unknown_length(fields: dict[str, str], expected: Selection) -> None:
    assert ask(BEGINNING, **fields) == expected


def test_a_file_of_unknown_length_has_no_tag() -> None:
    assert dict(BEGINNING.headers) == {"Accept-Ranges": "bytes", "Last-Modified": DATE}


@given(st.integers(0, 700), st.integers(0, 700))
def test_a_range_of_the_beginning_does_not_depend_on_the_length(first: int, last: int) -> None:
    field = f"bytes={first}-{last}"
    unknown, known = ask(BEGINNING, Range=field), ask(FILE, Range=field)
    assert (unknown.start, unknown.length) == ((known.start, known.length) if first <= last else (0, 0))
    assert unknown.status == known.status


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ('"daily-5.cvd"', part(0, 10)),
        (' "daily-5.cvd" ', part(0, 10)),
        pytest.param('W/"daily-5.cvd"', WHOLE, id="13.1.5: a weak tag never matches"),
        ('"daily-4.cvd"', WHOLE),
        ("daily-5.cvd", WHOLE),
        ("*", WHOLE),
        (DATE, part(0, 10)),
        pytest.param(EARLIER, WHOLE, id="13.1.5: an exact match, not an order: earlier"),
        pytest.param(LATER, WHOLE, id="13.1.5: an exact match, not an order: later"),
        ("", WHOLE),
    ],
)
def test_if_range(field: str, expected: Selection) -> None:
    assert ask(Range="bytes=0-9", If_Range=field) == expected


def test_if_range_by_date_needs_a_last_modified() -> None:
    assert ask(Representation(SIZE, "x"), Range="bytes=0-9", If_Range=DATE) == WHOLE


def test_if_range_without_range_means_nothing() -> None:
    assert ask(If_Range='"daily-5.cvd"') == WHOLE


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"If_None_Match": '"daily-5.cvd"'}, NOT_MODIFIED),
        ({"If_None_Match": 'W/"daily-5.cvd"'}, NOT_MODIFIED),
        ({"If_None_Match": '"a", "daily-5.cvd"'}, NOT_MODIFIED),
        ({"If_None_Match": "*"}, NOT_MODIFIED),
        ({"If_None_Match": '"daily-4.cvd"'}, WHOLE),
        ({"If_None_Match": ""}, WHOLE),
        ({"If_Modified_Since": DATE}, NOT_MODIFIED),
        ({"If_Modified_Since": LATER}, NOT_MODIFIED),
        ({"If_Modified_Since": EARLIER}, WHOLE),
        ({"If_Modified_Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, WHOLE),
        pytest.param({"If_Modified_Since": "yesterday"}, WHOLE, id="13.1.3: no date is ignored"),
        pytest.param(
            {"If_None_Match": '"daily-4.cvd"', "If_Modified_Since": LATER},
            WHOLE,
            id="13.1.3: If-Modified-Since is ignored beside If-None-Match",
        ),
        pytest.param(
            {"Range": "bytes=0-511", "If_Modified_Since": DATE},
            NOT_MODIFIED,
            id="trap 14: 304 takes precedence over Range",
        ),
        ({"Range": "bytes=5000-", "If_None_Match": '"daily-5.cvd"'}, NOT_MODIFIED),
        ({"Range": "bytes=0-9", "If_Modified_Since": EARLIER}, part(0, 10)),
    ],
)
def test_conditions(fields: dict[str, str], expected: Selection) -> None:
    assert ask(FILE, **fields) == expected


def test_without_a_last_modified_no_time_is_late_enough() -> None:
    assert ask(Representation(SIZE, "x"), If_Modified_Since=LATER) == WHOLE


def test_trap_10_no_304_without_a_condition() -> None:
    assert select(Headers(), FILE, lambda _: True) == WHOLE


def test_the_caller_may_decide_what_not_modified_means() -> None:
    headers = Headers([("If-Modified-Since", EARLIER)])
    assert select(headers, FILE, lambda since: since == BUILT - 1) == NOT_MODIFIED
    assert select(Headers([("If-Modified-Since", LATER)]), FILE, lambda _: False) == WHOLE


def test_fractions_of_a_second_do_not_count() -> None:
    file = Representation(SIZE, "x", BUILT + 0.9)
    assert file.headers["Last-Modified"] == DATE
    assert ask(file, If_Modified_Since=DATE) == NOT_MODIFIED
    assert ask(file, Range="bytes=0-9", If_Range=DATE) == part(0, 10)


def test_validator_fields() -> None:
    assert dict(FILE.headers) == {
        "ETag": '"daily-5.cvd"',
        "Accept-Ranges": "bytes",
        "Last-Modified": DATE,
    }
    assert "Last-Modified" not in Representation(SIZE, "x").headers


texts = st.text(max_size=40)
ranges = st.builds(
    "bytes={}{}-{}".format, st.sampled_from(["", " ", "0-0,"]), st.integers(0, 99) | texts, st.integers()
)


@given(
    size=st.integers(0, 60),
    fields=st.dictionaries(
        st.sampled_from(["Range", "If-Range", "If-None-Match", "If-Modified-Since"]),
        texts | ranges | st.sampled_from([DATE, EARLIER, LATER, '"etag"', "*"]),
    ),
)
@example(10, {"Range": "bytes=0-" + "9" * 5000})
@example(10, {"If-None-Match": '"' * 100})
@example(10, {"If-Modified-Since": "Mon, 01 Jan 99999 00:00:00 GMT"})
def test_any_selection_agrees_with_slicing(size: int, fields: dict[str, str]) -> None:
    content = bytes(range(size))
    headers = Headers()
    for name, value in fields.items():
        headers[name] = "".join(value.splitlines())
    selection = select(headers, Representation(size, "etag", BUILT))
    selected = content[selection.start : selection.start + selection.length]
    assert len(selected) == selection.length
    match selection.status:
        case 200:
            assert selected == content
            assert selection.content_range is None
        case 206:
            end = selection.start + selection.length - 1
            assert selection.length > 0
            assert selection.content_range == f"bytes {selection.start}-{end}/{size}"
        case 416:
            assert selection.length == 0
            assert selection.content_range == f"bytes */{size}"
        case status:
            assert status == 304
            assert selection.length == 0


@pytest.mark.parametrize("name", ["If-Modified-Since", "If-Range"])
@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 -0100",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 0100 00:00:00 +2359",
        "Mon, 01 Jan 1900 00:00:00 GMT",
    ],
)
def test_dates_at_the_ends_of_time(name: str, date: str) -> None:
    assert ask(FILE, **{"Range": "bytes=0-9", name: date}).status in (200, 206, 304)
