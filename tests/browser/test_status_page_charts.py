"""The status page in a real Chromium: its charts."""

from __future__ import annotations

import time

from selenium.webdriver import ActionChains, Keys

from tests.support.chromium import merged

from .conftest import Page
from .pictures import BUSY, EMPTY


def test_charts_tell_their_sums(page: Page) -> None:
    browser = page.show(BUSY)
    series = BUSY["history"]["series"]
    total, hits, misses, errors = (
        sum(n or 0 for n in series[name]) for name in ("requests", "hits", "misses", "errors")
    )
    label = browser.run("return document.querySelector('#request-chart svg').getAttribute('aria-label')")
    others = total - hits - misses - errors
    assert label == (
        f"Requests of the last day: {total:,} requests in all; {hits:,} hits, {others} other results, "
        f"{misses} misses, {errors} errors."
    )
    label = browser.run("return document.querySelector('#byte-chart svg').getAttribute('aria-label')")
    assert label == "Bytes of the last day: 1.4 GiB served to machines, 75.7 MiB from the origin."
    assert browser.texts("#request-chart .legend b") == [f"{n:,}" for n in (hits, others, misses, errors)]
    assert browser.run("return document.querySelector('svg').getAttribute('role')") == "img"


def test_axes(page: Page) -> None:
    browser = page.show(BUSY)
    labels = browser.run(
        "return [...document.querySelectorAll('#byte-chart .label')].map((one) => one.textContent)"
    )
    assert labels[:3] == ["0 B", "50 MiB", "100 MiB"]
    assert labels[3:] == ["18:00", "21:00", "00:00", "03:00", "06:00", "09:00", "12:00"]


def test_tooltip_under_the_pointer(page: Page) -> None:
    browser = page.show(BUSY)
    plot = browser.driver.find_element("css selector", "#request-chart .plot")
    ActionChains(browser.driver).move_to_element(plot).perform()
    lines = browser.until(lambda: browser.run(TOOLTIP))
    first = next(step for step in range(288) if lines[0].startswith(clock(start_of(step))))
    assert lines[0] == between(clock(start_of(first)), clock(start_of(first + 3)))
    counted = {
        name: sum(BUSY["history"]["series"][name][first : first + 3]) for name in ("hits", "misses", "errors")
    }
    assert [line for line in lines[1:] if "other" not in line] == [
        f"{n} {name}" for name, n in counted.items()
    ]
    inside = browser.run("""
        const tip = document.querySelector(".tip").getBoundingClientRect();
        const all = document.querySelector("#request-chart svg").getBoundingClientRect();
        return tip.left >= all.left && tip.right <= all.right && tip.bottom <= all.bottom;
    """)
    assert inside
    ActionChains(browser.driver).move_to_element(browser.driver.find_element("id", "version")).perform()
    browser.until(lambda: not browser.run(TOOLTIP))


TOOLTIP = "return [...document.querySelectorAll('.tooltip text')].map((line) => line.textContent)"


def start_of(step: int) -> float:
    """When a step of the history begins, in Unix seconds."""
    return float(BUSY["history"]["until"] - (288 - step) * BUSY["history"]["step"])


def between(start: str, end: str) -> str:
    """A span of time as the page writes it."""
    return f"{start}\u2013{end}"


def clock(seconds: float) -> str:
    """Hours and minutes in UTC, as the browser of the tests has them."""
    return time.strftime("%H:%M", time.gmtime(seconds))


def test_tooltip_by_keys(page: Page) -> None:
    browser = page.show(BUSY)
    plot = browser.driver.find_element("css selector", "#byte-chart .plot")
    plot.send_keys(Keys.ARROW_LEFT)
    assert browser.run(TOOLTIP)[0] == between("14:30", "14:45")  # the slot that runs now
    plot.send_keys(Keys.ARROW_LEFT)
    said = browser.run("return document.querySelector('#byte-chart [aria-live]').textContent")
    assert said.startswith(between("14:15", "14:30"))
    assert said.endswith(" from the origin")
    plot.send_keys(Keys.HOME)
    assert browser.run(TOOLTIP)[0] == between("14:30", "14:45")
    page.change(merged(BUSY, stats={"requests": 1}))
    assert browser.run(TOOLTIP)[0] == between("14:30", "14:45")  # new figures leave it there
    plot.send_keys(Keys.ESCAPE)
    assert browser.run(TOOLTIP) == []


def test_where_the_gateway_was_not_there(page: Page) -> None:
    browser = page.show(BUSY)
    assert "gateway not running" in browser.text("#request-chart")
    plot = browser.driver.find_element("css selector", "#request-chart .plot")
    plot.send_keys(Keys.HOME)
    for _ in range(62):
        plot.send_keys(Keys.ARROW_RIGHT)
    assert browser.run(TOOLTIP)[1:] == ["the gateway was not running"]
    gap = browser.run("return document.querySelector('#request-chart path.gap').getBBox().width")
    assert gap > 10
    whole = merged(BUSY, history={"series": {name: [1] * 288 for name in BUSY["history"]["series"]}})
    page.change(whole)
    assert "gateway not running" not in browser.text("#request-chart")


def test_a_day_without_requests(page: Page) -> None:
    browser = page.show(EMPTY)
    assert "No requests in the last day." in browser.run(
        "return document.getElementById('request-chart').textContent"
    )
    label = browser.run("return document.querySelector('#byte-chart svg').getAttribute('aria-label')")
    assert label == "Bytes of the last day: nothing yet."
