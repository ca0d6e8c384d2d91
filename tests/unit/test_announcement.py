"""What the gateway announces itself, and when it looks for news."""

from __future__ import annotations

import asyncio

import pytest

from clamproxy import announcement as announcement_module
from clamproxy.announcement import Announcer
from clamproxy.formats.version_record import IN_PRIMARY

RECORD = "1.4.3:62:27780:1700000000:1:90:49192:339"


class Known:
    """What is known, and who looked."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self.looks: list[str] = []
        self.news: dict[str, int] = {}
        self.hangs = False

    async def look(self, database: str, client: str) -> None:
        self.looks.append(database)
        if self.hangs:
            await asyncio.Event().wait()
        self.versions |= self.news

    def announcer(self) -> Announcer:
        return Announcer(lambda database, _: self.versions.get(database), lambda: RECORD, self.look)


async def test_a_query_looks_for_news_first() -> None:
    known = Known()
    known.news = {"daily": 5, "test": 6}
    announcer = known.announcer()
    assert (await announcer.single("test") or "").startswith("6:")
    assert (await announcer.primary() or "").startswith("1.4.3:-:5:")
    # A hold may limit each of them.
    assert known.looks[0] == "test"
    assert sorted(known.looks[1:]) == sorted(IN_PRIMARY)


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
