"""The status page in a real Chromium: how it stays up to date, and what it makes of odd answers or none."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.chromium import merged

from .conftest import NONE, Page, rows
from .pictures import BUSY, EMPTY, MANY, NOW, fleet_of, machine

# Up to date without a reload


def test_figures_change_in_place(page: Page) -> None:
    browser = page.show(MANY)
    field = browser.driver.find_element("id", "fleet-filter")
    field.send_keys("10.0.4")
    browser.run("""
        document.querySelector("#fleet .scroller").scrollTop = 700;
        window.scrollTo(0, 300);
        window.kept = document.querySelectorAll("#machines tr")[30];
        getSelection().selectAllChildren(window.kept.cells[0]);
        document.getElementById("fleet-filter").focus({ preventScroll: true });
    """)
    selected = browser.run("return getSelection().toString()")
    changed = merged(MANY, stats={"requests": 48999}, transfers=[])
    changed["fleet"]["machines"][30]["last_seen"] = NOW - 5
    page.change(changed)
    assert browser.text("#requests") == "48,999"
    assert browser.text("#transfers-empty")
    assert rows(browser, "machines")[30][4] == "5 s ago"
    assert browser.run("return document.querySelector('#fleet .scroller').scrollTop") == 700
    assert browser.run("return window.scrollY") == 300
    assert browser.run("return document.activeElement.id") == "fleet-filter"
    assert browser.run("return document.getElementById('fleet-filter').value") == "10.0.4"
    assert browser.run("return document.querySelectorAll('#machines tr')[30] === window.kept")
    assert browser.run("return getSelection().toString()") == selected


def test_rows_come_and_go(page: Page) -> None:
    browser = page.show(BUSY)
    for order in ([3, 1, 2], [2], [5, 4, 2, 1], [1, 2, 4, 5], [4, 5, 1, 9]):
        page.change(merged(BUSY, fleet=fleet_of(*(machine(n) for n in order))))
        assert [row[0].split()[0] for row in rows(browser, "machines")] == [f"10.0.4.{n + 1}" for n in order]


def test_the_page_rests_while_nothing_changes(page: Page) -> None:
    browser = page.show(BUSY)
    page.next_answer()
    browser.run("""
        window.changes = [];
        const note = (record) => window.changes.push(record.target.outerHTML ?? record.target.data);
        const all = { subtree: true, childList: true, attributes: true, characterData: true };
        new MutationObserver((records) => records.forEach(note)).observe(document.body, all);
    """)
    page.next_answer()
    assert browser.run("return window.changes") == []


def test_the_page_asks_by_itself(page: Page) -> None:
    browser = page.show(BUSY)
    page.server.status = merged(BUSY, stats={"requests": 7})
    browser.until(lambda: browser.text("#requests") == "7")


def test_a_hidden_page_asks_nothing(page: Page) -> None:
    browser = page.show(BUSY)
    page.next_answer()  # the next question comes by the clock
    browser.run("""
        Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
        document.dispatchEvent(new Event("visibilitychange"));
    """)
    time.sleep(0.5)  # for a question that was under way
    before = page.server.count("/status.json")
    time.sleep(3)
    assert page.server.count("/status.json") == before
    browser.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    browser.until(lambda: page.server.count("/status.json") > before)


# When there is no answer


@pytest.mark.parametrize(
    ("code", "body", "words", "state"),
    [
        (0, None, "No answer from the gateway since ", "No answer"),
        (
            503,
            None,
            "The gateway answers with an error (503); its log says why. No figures since ",
            "No figures",
        ),
        (
            401,
            None,
            "The gateway requires its token (status.token): reload this page to enter it. ",
            "No figures",
        ),
        (
            200,
            b"<html>a captive portal",
            "The gateway's answer can't be read. No figures since ",
            "No figures",
        ),
        (200, b"null", "The gateway's answer can't be read. No figures since ", "No figures"),
    ],
)
def test_no_answer(page: Page, code: int, body: bytes | None, words: str, state: str) -> None:
    browser = page.show(BUSY)
    page.change(body, code=code)
    told = browser.until_text("#silence", words)
    assert told.endswith("The figures below are from then.")
    assert browser.text("#state") == state
    assert browser.driver.title == f"clamproxy: {state.lower()}"
    assert browser.run("return document.getElementById('data').className") == "stale"
    assert browser.text("#requests") == "48,211"
    page.change(BUSY)
    browser.until(lambda: browser.text("#silence") == "")
    assert browser.text("#state") == "Ready"
    assert browser.run("return document.getElementById('data').className") == ""


def test_it_goes_on_asking_after_an_error_of_its_own(page: Page) -> None:
    browser = page.show(BUSY)
    browser.run("document.getElementById('silence').id = 'gone'")
    browser.until(lambda: "the page has no #silence" in str(browser.messages()))
    browser.run("document.getElementById('gone').id = 'silence'")
    page.server.status = merged(BUSY, stats={"requests": 48_212})
    browser.until_text("#requests", "48,212")


def test_no_answer_from_the_beginning(page: Page) -> None:
    page.server.code = 0
    browser = page.show(BUSY)
    assert browser.text("#silence").startswith("No answer from the gateway since ")
    assert "below" not in browser.text("#silence")
    assert browser.text("#requests") == NONE
    page.server.code = 200
    browser.until(lambda: browser.text("#requests") == "48,211")  # it goes on asking by itself


def test_the_page_asks_less_often_while_there_is_no_answer(page: Page) -> None:
    browser = page.show(BUSY)
    browser.run("""
        window.waits = [];
        const wait = window.setTimeout;
        window.setTimeout = (work, time) => {
            window.waits.push(time);
            return wait(work, 0);
        };
    """)
    page.server.code = 0
    browser.until(lambda: len(browser.run("return window.waits")) >= 8)
    waits = browser.run("return window.waits")
    later = waits[waits.index(4000) :]
    assert later[:5] == [4000, 8000, 16_000, 30_000, 30_000]


def test_with_a_token(page: Page) -> None:
    page.server.token = "a-token-of-the-tests"
    page.server.status = EMPTY
    page.server.client_config = b"HTTPProxyServer gateway.example.net"
    page.browser.open(page.server.url.replace("://", f"://anybody:{page.server.token}@"))
    page.browser.until_text("#state", "Ready")
    page.browser.until_text("#client-config", "gateway.example.net")


# Odd answers


def without_values(value: Any) -> Any:
    """The same figures with null in each place where there was a number or a text."""
    if isinstance(value, dict):
        return {name: without_values(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_values(item) for item in value]
    return None


ODD = {
    "nothing": {},
    "null": dict.fromkeys(BUSY),
    "nulls": without_values(BUSY),
    "other types": {
        name: [1, "x", None] if isinstance(value, dict) else {"a": 1} for name, value in BUSY.items()
    },
    "numbers": dict.fromkeys(BUSY, 7),
    "short history": merged(BUSY, history={"series": {"requests": [1, 2], "hits": []}}),
    "far times": merged(
        BUSY,
        gateway={"started_at": 1e300},
        cooldowns=[{"what": "origin", "until": 1e300, "failure": "unreachable", "reason": "-"}],
        fleet=fleet_of(machine(1, last_seen=-1e17), machine(2, last_seen=0)),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_missing_and_odd_values(page: Page, name: str) -> None:
    browser = page.show(ODD[name])
    page.change(BUSY)
    assert browser.text("#requests") == "48,211"
    page.change(ODD[name])
    shown = browser.text("body")
    for word in ("NaN", "undefined", "null", "[object", "Invalid", "Infinity"):
        assert word not in shown
