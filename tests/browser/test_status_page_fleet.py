"""The status page in a real Chromium: names, groups, the trend, and one machine's story."""

from __future__ import annotations

from selenium.webdriver import Keys

from tests.support.chromium import merged

from .conftest import Page, rows
from .pictures import BUSY, GROUPED, WEB01, story_of

OPEN = "return document.getElementById('story').open"


def test_names_groups_and_clones(page: Page) -> None:
    page.show(GROUPED)
    found = {row[0].split()[0]: row for row in page.machines(5)}
    assert found["web01.example.net"][:2] == [
        "web01.example.net 10.0.4.21 servers 00000014-8d58-4bdf-8241-000000000014",
        "up to date cloned",
    ]
    assert found["10.0.4.23"][0].startswith("10.0.4.23 desktops 00000016-")


def test_a_group_is_chosen(page: Page) -> None:
    browser = page.show(GROUPED)
    page.machines(5)
    browser.run("document.getElementById('fleet-groups').open = true")
    assert rows(browser, "groups") == [
        ["desktops", "2", "1", "0", "0", "1"],
        ["servers", "2", "1", "1", "1", "0"],
        ["no group", "1", "1", "0", "0", "0"],
    ]
    browser.driver.find_elements("css selector", "#groups button")[1].click()
    assert all("servers" in row[0] for row in page.machines(2))
    assert browser.run("return document.getElementById('fleet-group').value") == "servers"
    page.next_answer()  # new figures leave the choice as it is
    page.machines(2)
    browser.driver.find_elements("css selector", "#groups button")[2].click()
    page.machines(1)


def test_without_groups_nothing_is_said_of_them(page: Page) -> None:
    browser = page.show(BUSY)
    for name in ("fleet-groups", "fleet-chart"):
        assert browser.run("return document.getElementById(arguments[0]).hidden", name)
    assert not browser.driver.find_element("id", "fleet-group").is_displayed()
    assert "cloned" not in browser.text("#fleet-states")


def test_the_last_thirty_days(page: Page) -> None:
    browser = page.show(GROUPED)
    label = browser.run("return document.querySelector('#fleet-chart svg').getAttribute('aria-label')")
    assert label == "Share of the machines of the last 30 days: 99.0% up to date, 1.7% overdue."
    assert "gateway not running" in browser.text("#fleet-chart")
    labels = browser.run(
        "return [...document.querySelectorAll('#fleet-chart .label')].map((one) => one.textContent)"
    )
    assert labels[:3] == ["0%", "50%", "100%"]
    assert labels[-1] == "19 Sept"
    plot = browser.driver.find_element("css selector", "#fleet-chart .plot")
    plot.send_keys(Keys.END)
    said = browser.run("return document.querySelector('#fleet-chart [aria-live]').textContent")
    assert said.startswith("21 Sept, ")
    assert said.endswith("% overdue")


def test_a_machine_is_opened_and_closed_by_keys(page: Page) -> None:
    page.server.story = story_of(WEB01)
    browser = page.show(GROUPED, width=360)
    page.machines(5)
    button = browser.driver.find_element("xpath", "//button[text()='web01.example.net']")
    button.send_keys(Keys.ENTER)
    browser.until(lambda: browser.run(OPEN))
    assert page.server.queries[-1] == f"machine={WEB01['uuid']}"
    assert browser.text("#story-title") == "web01.example.net"
    assert "remove freshclam.dat" in browser.text("#story-cloned")
    assert len(rows(browser, "story-versions")) == 12
    assert rows(browser, "story-versions")[0] == ["daily 27800", "14:00", "2 h 30 min", "10.0.4.21"]
    assert rows(browser, "story-errors") == [["daily-27799.cdiff: status 503", "20 Sept, 14:30", "3"]]
    assert rows(browser, "story-requests") == [["daily-27800.cdiff", "14:00", "200", "14.2 KiB"]]
    assert "1.4.6 since 12 Sept, 14:30, 1.4.5 since 12 Aug, 14:30" in browser.text("#story-facts")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    box = browser.run(
        "return JSON.parse(JSON.stringify(document.getElementById('story').getBoundingClientRect()))"
    )
    assert 0 <= box["left"] < box["right"] <= 360
    browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    browser.until(lambda: not browser.run(OPEN))
    assert browser.run("return document.activeElement.textContent") == "web01.example.net"


def test_a_story_that_is_not_available(page: Page) -> None:
    browser = page.show(GROUPED)
    page.machines(5)
    browser.driver.find_element("xpath", "//button[text()='web01.example.net']").click()
    browser.until(lambda: browser.run(OPEN))
    assert browser.text("#story-trouble") == "The story of this machine is not available now."
    browser.driver.find_element("id", "story-close").click()
    assert not browser.run(OPEN)


def test_what_a_story_says_is_only_text(page: Page) -> None:
    bad = "<img src=x onerror=alert(1)>"
    errors = [{"kind": bad, "at": 5.0, "what": bad, "count": 1}]
    page.server.story = merged(story_of(WEB01), name=bad, group=bad, errors=errors)
    browser = page.show(merged(GROUPED, fleet={"groups": [{"group": bad, "total": 1}]}))
    page.machines(5)
    browser.driver.find_element("xpath", "//button[text()='web01.example.net']").click()
    browser.until(lambda: browser.run(OPEN))
    assert browser.text("#story-title") == bad
    assert browser.run("return document.querySelectorAll('img').length") == 1  # that of the page itself
