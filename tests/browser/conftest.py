"""One Chromium for the tests of a module, and a page with figures of each test's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.chromium import Browser, StatusServer, open_browser

NONE = "\u2013"
"""What stands where nothing is known: a dash."""
UNHEARD = re.compile(r"((status|fleet)\.json\S*|client-config) - Failed to load resource")

SETTLED = """
    const byId = (id) => document.getElementById(id);
    return byId("fleet-body").hidden || byId("fleet-count").innerText || !byId("silence").hidden;
"""
"""Whether the machines are shown, or none can be."""


def rows(browser: Browser, table: str) -> list[list[str]]:
    """The visible texts of a table's cells, line breaks as spaces."""
    script = """
        return [...document.getElementById(arguments[0]).rows]
            .map((row) => [...row.cells].map((cell) => cell.innerText.replace(/\\s+/g, " ").trim()))
    """
    found: list[list[str]] = browser.run(script, table)
    return found


@dataclass(slots=True)
class Page:
    """The status page in a browser."""

    browser: Browser
    server: StatusServer

    def show(self, status: Any, **look: Any) -> Browser:
        """Open the page on these figures, and wait until it shows them.

        Args:
            status: see `StatusServer.status`.
            look: see `Browser.look`.
        """
        self.server.status = status
        self.browser.open(self.server.url)
        self.browser.look(**look)
        self.browser.until(lambda: self.browser.text("#state") not in ("", "Loading …"))
        self.browser.until(lambda: self.browser.run(SETTLED))
        return self.browser

    def machines(self, count: int) -> list[list[str]]:
        """Wait until this many machines are listed; returns the texts of their cells."""
        self.browser.until(lambda: len(rows(self.browser, "machines")) == count)
        return rows(self.browser, "machines")

    def change(self, status: Any = None, *, code: int = 200) -> None:
        """Make the gateway answer differently from now on, and wait until the page has seen it."""
        if status is not None:
            self.server.status = status
        self.server.code = code
        self.next_answer()

    def next_answer(self) -> None:
        """Wait until the page has asked once more and shows the answer."""
        self.ask_now()
        # The next question is asked when the answer to this one has been shown.
        self.ask_now()

    def ask_now(self) -> None:
        """Have the page ask without a wait, as it does when it comes to the front."""
        before = self.server.count("/status.json")

        def asked() -> bool:
            self.browser.run("document.dispatchEvent(new Event('visibilitychange'))")
            return self.server.count("/status.json") > before

        self.browser.until(asked)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser; each test opens its own page in it."""
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """The status page, not opened yet. The console must stay empty, except for what the test provokes."""
    server = StatusServer()
    try:
        yield Page(browser, server)
        assert [message for message in browser.messages() if not UNHEARD.search(message)] == []
    finally:
        browser.driver.get("about:blank")
        server.close()
