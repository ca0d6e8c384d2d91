"""Version records that the gateway composes itself (protocol.md 3, trap 36)."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy import announcement as announcement_module
from clamproxy.announcement import LONGEST_RECORD, Announcer, compose, compose_single
from clamproxy.objects import MAX_VERSION
from clamproxy.origin.versions import OLDEST_RECORD, parse_primary, parse_single

NOW = 1_759_500_000.7
RECORD = "1.4.3:62:27780:1700000000:1:90:49192:339"
ALL = {"main": 63, "daily": 27800, "safebrowsing": 49193, "bytecode": 340}


@pytest.mark.parametrize(
    ("versions", "template", "record"),
    [
        pytest.param(ALL, RECORD, "1.4.3:63:27800:1759500000:1:90:49193:340", id="all"),
        pytest.param(ALL, None, "0.103.0:63:27800:1759500000:0:90:49193:340", id="no template"),
        pytest.param(
            {"daily": 27800}, RECORD, "1.4.3:-:27800:1759500000:1:90:-:-", id="what is not known is no number"
        ),
        pytest.param(
            {"daily": 1, "test": 6}, None, "0.103.0:-:1:1759500000:0:90:-:-", id="a database without a field"
        ),
        pytest.param(
            ALL,
            RECORD + ":more:",
            "1.4.3:63:27800:1759500000:1:90:49193:340:more:-",
            id="new fields",
        ),
        pytest.param(
            ALL,
            "::::::::",
            "0.103.0:63:27800:1759500000:0:90:49193:340:-",
            id="empty fields",
        ),
        pytest.param(ALL, "1.4.3", "1.4.3:63:27800:1759500000:0:90:49193:340", id="a short template"),
        pytest.param(
            ALL, "1.4\n3:x:x:x:\xe4", "0.103.0:63:27800:1759500000:0:90:49193:340", id="no printable ASCII"
        ),
        pytest.param(
            ALL, "9" * 250 + RECORD, "0.103.0:63:27800:1759500000:0:90:49193:340", id="too long a template"
        ),
    ],
)
def test_the_primary_record(versions: dict[str, int], template: str | None, record: str) -> None:
    assert compose(versions, template, NOW) == record


@given(
    st.dictionaries(st.sampled_from([*ALL, "test"]), st.integers(1, MAX_VERSION)),
    st.none() | st.text(max_size=300) | st.lists(st.text(max_size=9), max_size=12).map(":".join),
)
def test_any_template_makes_a_record_that_clients_can_read(
    versions: dict[str, int], template: str | None
) -> None:
    record = compose(versions, template, NOW)
    assert len(record.encode("ascii")) <= LONGEST_RECORD
    assert "::" not in record
    expected = {database: version for database, version in versions.items() if database != "test"}
    assert parse_primary(record, NOW + OLDEST_RECORD - 1) == expected


def test_the_record_of_one_database() -> None:
    assert compose_single(27800, NOW) == "27800:1759500000"
    assert parse_single(compose_single(27800, NOW), NOW) == 27800


class Known:
    """What is known, and who looked."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.looks: list[str] = []
        self.news: dict[str, int] = {}
        self.hangs = False

    async def look(self, database: str) -> None:
        self.looks.append(database)
        if self.hangs:
            await asyncio.Event().wait()
        self.versions |= self.news

    def announcer(self) -> Announcer:
        return Announcer(self.versions.get, lambda: RECORD, self.look)


async def test_a_query_looks_for_news_first() -> None:
    known = Known()
    known.news = {"daily": 5, "test": 6}
    announcer = known.announcer()
    assert (await announcer.single("test") or "").startswith("6:")
    assert (await announcer.primary() or "").startswith("1.4.3:-:5:")
    assert known.looks == ["test", "daily"]


async def test_nothing_known() -> None:
    known = Known()
    announcer = known.announcer()
    assert await announcer.primary() is None
    assert await announcer.single("test") is None
    known.versions["test"] = 6
    assert await announcer.primary() is None


async def test_news_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcement_module, "PATIENCE", 0.01)
    known = Known()
    known.hangs, known.versions["daily"] = True, 5
    assert (await known.announcer().primary() or "").startswith("1.4.3:-:5:")
