"""Version records: what is read from them, and how they are composed (docs/protocol.md 3, trap 36)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.formats.version_record import (
    IN_PRIMARY,
    LONGEST_RECORD,
    OLDEST_RECORD,
    VersionRecord,
    compose,
    compose_single,
    record_name,
    single_name,
    with_versions,
)
from clamproxy.objects import MAX_VERSION
from tests.support.dns_server import PRIMARY

NOW = 1_759_500_000.0
RECORD = "1.4.3:62:27780:1759500000:1:90:49192:339"
ALL = {"main": 62, "daily": 27780, "safebrowsing": 49192, "bytecode": 339}


def parse_primary(text: str, now: float) -> dict[str, int]:
    return dict(VersionRecord.parse(text).versions_at(now))


def parse_single(text: str, now: float) -> int:
    return VersionRecord.parse(text, "test").versions_at(now)["test"]


def with_field(position: int, text: str) -> str:
    fields = RECORD.split(":")
    fields[position] = text
    return ":".join(fields)


def without(*names: str) -> dict[str, int]:
    return {name: version for name, version in ALL.items() if name not in names}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RECORD, ALL),
        pytest.param(RECORD + ":more", ALL, id="a field that is new"),
        pytest.param(with_field(2, ""), without("daily"), id="an empty field"),
        pytest.param(with_field(2, "x"), without("daily"), id="a garbled field leaves the others"),
        (with_field(2, "0"), without("daily")),
        (with_field(2, "-5"), without("daily")),
        (with_field(2, "+5"), without("daily")),
        (with_field(2, " 5"), without("daily")),
        (with_field(2, "5.5"), without("daily")),
        (with_field(2, "\u0665"), without("daily")),
        (with_field(2, "\u00b2"), without("daily")),
        (with_field(2, str(MAX_VERSION)), {**ALL, "daily": MAX_VERSION}),
        (with_field(2, str(MAX_VERSION + 1)), without("daily")),
        (with_field(2, "9" * 200), without("daily")),
        (with_field(0, ""), ALL),
        (with_field(7, "x"), without("bytecode")),
    ],
)
def test_the_primary_record(text: str, expected: dict[str, int]) -> None:
    assert parse_primary(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.4.3",
        "v=spf1 include:spf.example ~all",
        "1.4.3:62:27780:1759500000:1:90:49192",
        with_field(3, ""),
        with_field(3, "x"),
        with_field(3, "-1759500000"),
        with_field(3, "1759500000.5"),
        pytest.param(with_field(3, "9" * 400), id="a time beyond all floats"),
        pytest.param(with_field(3, "0"), id="the epoch"),
    ],
)
def test_no_primary_record(text: str) -> None:
    with pytest.raises(ValueError, match="record"):
        parse_primary(text, NOW)


@pytest.mark.parametrize(
    ("age", "counts"),
    [(0, True), (OLDEST_RECORD, True), (OLDEST_RECORD + 1, False), (-3600, True)],
    ids=["new", "12 h", "trap 36: older than 12 h", "the clock is behind"],
)
def test_the_record_time(age: int, counts: bool) -> None:
    primary, single = with_field(3, str(int(NOW) - age)), f"5:{int(NOW) - age}"
    if counts:
        assert parse_primary(primary, NOW) == ALL
        assert parse_single(single, NOW) == 5
    else:
        with pytest.raises(ValueError, match="12 hours"):
            parse_primary(primary, NOW)
        with pytest.raises(ValueError, match="12 hours"):
            parse_single(single, NOW)


@pytest.mark.parametrize(("text", "version"), [("5:1759500000", 5), ("5:1759500000:x:y", 5)])
def test_the_record_of_one_database(text: str, version: int) -> None:
    assert parse_single(text, NOW) == version


@pytest.mark.parametrize("text", ["", "5", ":", "0:1759500000", "x:1759500000", "5:", "5:x", "5 :1759500000"])
def test_no_record_of_one_database(text: str) -> None:
    with pytest.raises(ValueError, match="record"):
        parse_single(text, NOW)


records = st.text(max_size=255) | st.lists(
    st.integers().map(str) | st.sampled_from(["", "1759500000", "9" * 60, "\u0665", "x"]), max_size=12
).map(":".join)


@given(records)
@example(":".join(["9" * 5000] * 8))
def test_any_text_is_a_record_or_a_value_error(text: str) -> None:
    for parse in (parse_primary, parse_single):
        try:
            found = parse(text, NOW)
        except ValueError:
            continue
        versions = found.values() if isinstance(found, dict) else [found]
        assert all(0 < version <= MAX_VERSION for version in versions)


@pytest.mark.parametrize(
    ("database", "domain", "name", "single"),
    [
        ("daily", PRIMARY, PRIMARY, "daily.cvd.clamav.net"),
        ("test", PRIMARY, "test.cvd.clamav.net", "test.cvd.clamav.net"),
        ("test", "versions.example.org", "test.example.org", "test.example.org"),
    ],
)
def test_where_a_version_is_announced(database: str, domain: str, name: str, single: str) -> None:
    assert (record_name(database, domain), single_name(database, domain)) == (name, single)


# Composing

TEMPLATE = "1.4.3:62:27780:1700000000:1:90:49192:339"
SERVED = {"main": 63, "daily": 27800, "safebrowsing": 49193, "bytecode": 340}


@pytest.mark.parametrize(
    ("versions", "template", "record"),
    [
        pytest.param(SERVED, TEMPLATE, "1.4.3:63:27800:1759500000:1:90:49193:340", id="all"),
        pytest.param(SERVED, None, "0.103.0:63:27800:1759500000:0:90:49193:340", id="no template"),
        pytest.param(
            {"daily": 27800},
            TEMPLATE,
            "1.4.3:-:27800:1759500000:1:90:-:-",
            id="unknown: no number",
        ),
        pytest.param(
            {"daily": 1, "test": 6}, None, "0.103.0:-:1:1759500000:0:90:-:-", id="a database without a field"
        ),
        pytest.param(
            SERVED,
            TEMPLATE + ":more:",
            "1.4.3:63:27800:1759500000:1:90:49193:340:more:-",
            id="new fields",
        ),
        pytest.param(
            SERVED,
            "::::::::",
            "0.103.0:63:27800:1759500000:0:90:49193:340:-",
            id="empty fields",
        ),
        pytest.param(SERVED, "1.4.3", "1.4.3:63:27800:1759500000:0:90:49193:340", id="a short template"),
        pytest.param(
            SERVED, "1.4\n3:x:x:x:\xe4", "0.103.0:63:27800:1759500000:0:90:49193:340", id="no printable ASCII"
        ),
        pytest.param(
            SERVED,
            "9" * 250 + TEMPLATE,
            "0.103.0:63:27800:1759500000:0:90:49193:340",
            id="too long a template",
        ),
    ],
)
def test_a_primary_record_is_composed(versions: dict[str, int], template: str | None, record: str) -> None:
    assert compose(versions, template, NOW + 0.7) == record


@given(
    st.dictionaries(st.sampled_from([*SERVED, "test"]), st.integers(1, MAX_VERSION)),
    st.none() | st.text(max_size=300) | st.lists(st.text(max_size=9), max_size=12).map(":".join),
)
def test_any_template_makes_a_record_that_clients_can_read(
    versions: dict[str, int], template: str | None
) -> None:
    record = compose(versions, template, NOW + 0.7)
    assert len(record.encode("ascii")) <= LONGEST_RECORD
    assert "::" not in record
    expected = {database: version for database, version in versions.items() if database != "test"}
    assert parse_primary(record, NOW + OLDEST_RECORD - 1) == expected


def test_a_record_of_one_database_is_composed() -> None:
    assert compose_single(27800, NOW + 0.7) == "27800:1759500000"
    assert parse_single(compose_single(27800, NOW + 0.7), NOW + 0.7) == 27800


versions = st.dictionaries(st.sampled_from(sorted(IN_PRIMARY)), st.integers(1, MAX_VERSION))
moments = st.floats(0, 10**10)


@given(versions, st.none() | st.text("0123456789.:-x", max_size=300), moments)
def test_what_is_composed_is_parsed_again(versions: dict[str, int], template: str | None, now: float) -> None:
    assert VersionRecord.parse(compose(versions, template, now)) == VersionRecord(versions, int(now))


@given(st.integers(1, MAX_VERSION), moments)
def test_what_is_composed_of_one_database_is_parsed_again(version: int, now: float) -> None:
    record = VersionRecord.parse(compose_single(version, now), "test")
    assert record == VersionRecord({"test": version}, int(now))


@given(versions, versions)
def test_some_versions_are_replaced(before: dict[str, int], after: dict[str, int]) -> None:
    record = with_versions(compose(before, RECORD, NOW), {**after, "test": 6})
    assert VersionRecord.parse(record) == VersionRecord(before | after, int(NOW))
    assert record.startswith("1.4.3:")
