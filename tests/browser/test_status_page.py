"""The status page in a real Chromium: what it shows, how it stays up to date, and who can use it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Keys

from tests.support.chromium import Browser, merged
from tests.support.gateway import ROOT

from .conftest import Page
from .pictures import BUSY, DAY, EMPTY, HOUR, MANY, NOT_READY, NOW, fleet_of, late, machine

STATIC = ROOT / "clamproxy/web/static"
NONE = "\u2013"
"""What stands where nothing is known: a dash."""


def rows(browser: Browser, table: str) -> list[list[str]]:
    """The visible texts of a table's cells, line breaks as spaces."""
    script = """
        return [...document.getElementById(arguments[0]).rows]
            .map((row) => [...row.cells].map((cell) => cell.innerText.replace(/\\s+/g, " ").trim()))
    """
    found: list[list[str]] = browser.run(script, table)
    return found


# What is shown


def test_figures(page: Page) -> None:
    browser = page.show(BUSY)
    assert browser.driver.title == "clamproxy: ready"
    assert browser.text("#state") == "Ready"
    assert (browser.text("#version"), browser.text("#uptime")) == ("0.2.0", "12 d")
    assert (browser.text("#hit-ratio"), browser.text("#saved")) == ("97.4%", "407 GiB")
    assert (browser.text("#requests"), browser.text("#cache")) == ("48,211", "341 MiB")
    assert browser.text("#hit-ratio-note") == "46,922 answers cost the origin nothing"
    assert browser.text("#requests-note") == "46,102 hits, 1,204 misses, 41 errors"
    assert browser.text("#problems") == ""


def test_databases(page: Page) -> None:
    assert rows(page.show(BUSY), "databases") == [
        ["bytecode", "up to date", "339", "339", "339", "1 Aug, 14:30", "275 KiB"],
        ["daily", "1 behind", "27801", "27800", "27779", "30 Aug, 14:30", "62.0 MiB"],
        ["main", "up to date", "62", "62", "62", "21 Oct 2024", "163 MiB"],
        ["safebrowsing", "not cached", "49191", NONE, NONE, NONE, NONE],
    ]


def test_transfers(page: Page) -> None:
    browser = page.show(BUSY)
    assert browser.texts("#transfers .name") == ["daily-27801.cvd", "daily-27801.cdiff"]
    assert browser.texts("#transfers .muted") == ["23.0 MiB of 62.0 MiB, 37%", "3.9 KiB so far"]
    known, unsized = browser.run(
        "return [...document.querySelectorAll('progress')].map((bar) => bar.position)"
    )
    assert known == pytest.approx(23 / 62)
    assert unsized == -1
    labels = browser.run(
        "return [...document.querySelectorAll('progress')].map((bar) => bar.labels[0].innerText)"
    )
    assert ["daily-27801" in label for label in labels] == [True, True]


def test_cooldowns_and_quarantine(page: Page) -> None:
    browser = page.show(BUSY)
    assert rows(browser, "cooldowns") == [
        [
            "client ClamAV/0.103.2",
            "17:30 in 3 h",
            "forbidden the origin answers 403 to this version (cf-ray 8f1c22a7bb)",
        ],
        ["/daily-27801.cdiff", "14:42 in 12 min", "rate limited 429 with Retry-After: 720"],
    ]
    assert rows(browser, "quarantine") == [
        ["daily-27798.cdiff", "19 Sept, 14:30", "14.2 KiB", "the signature does not match (cf-ray 8f0ab3)"]
    ]


def test_feeds(page: Page) -> None:
    browser = page.show(BUSY)
    assert rows(browser, "feed-hosts") == [
        ["urlhaus.abuse.ch", "1,312", "1,290", "0", NONE],
        ["www.securiteinfo.com", "288", "201", "14", "15:00 in 30 min"],
    ]
    assert browser.text("#feeds-note") == "6 objects, 31.0 MiB"
    page.change(EMPTY)
    assert browser.text("#feeds") == ""


@pytest.mark.parametrize(
    ("changes", "words", "mood"),
    [
        ({}, "Ready", "good"),
        ({"problems": ["The disk is nearly full."]}, "Ready, with 1 problem", "warn"),
        ({"ready": False, "problems": ["Nothing is cached."]}, "Not ready", "bad"),
        ({"ready": False}, "Not ready", "bad"),
        ({"gateway": {"offline": True}}, "Ready, offline by configuration", "good"),
    ],
)
def test_state(page: Page, changes: dict[str, Any], words: str, mood: str) -> None:
    browser = page.show(merged(BUSY, **changes))
    assert browser.text("#state") == words
    assert browser.driver.title == f"clamproxy: {words.lower()}"
    assert browser.run("return document.getElementById('state').className") == f"state {mood}"
    assert browser.texts("#problem-list li") == changes.get("problems", [])


def test_a_new_gateway_tells_what_to_do(page: Page) -> None:
    page.server.client_config = b"HTTPProxyServer gateway.example.net\nHTTPProxyPort 8080\n<b>&amp;\n"
    browser = page.show(EMPTY)
    browser.until_text("#client-config", "gateway.example.net")
    lines = "HTTPProxyServer gateway.example.net\nHTTPProxyPort 8080\n<b>&amp;"
    assert browser.text("#client-config") == lines
    assert "No machine has asked yet" in browser.text("#fleet-empty")
    assert (
        browser.run("return document.querySelector('#fleet-empty a').href")
        == f"{page.server.url}client-config"
    )
    assert browser.text("#hit-ratio") == NONE
    for name in ("databases", "transfers", "cooldowns", "quarantine"):
        assert browser.text(f"#{name}-empty")
    assert browser.text("#fleet-body") == browser.text("#fleet-tools") == ""
    page.change(BUSY)
    assert browser.text("#fleet-empty") == browser.text("#databases-empty") == ""
    assert len(rows(browser, "machines")) == 14


def test_a_new_gateway_without_lines_for_clients(page: Page) -> None:
    browser = page.show(EMPTY)
    browser.until(lambda: page.server.count("/client-config"))
    page.next_answer()
    assert "HTTPProxyServer" in browser.text("#client-config")
    assert page.server.count("/client-config") == 1


def test_links(page: Page) -> None:
    browser = page.show(BUSY)
    links = browser.run("return [...document.querySelectorAll('footer a')].map((link) => link.href)")
    assert links == [
        f"{page.server.url}{name}" for name in ("client-config", "ca.pem", "metrics", "status.json")
    ]


# Machines


def test_machines(page: Page) -> None:
    browser = page.show(BUSY)
    found = rows(browser, "machines")
    assert [row[1] for row in found[:6]] == [
        "41 behind for 41 d",
        "12 behind for 12 d",
        "unknown",
        "2 behind for 2 d",
        "unknown",
        "up to date",
    ]
    assert found[0] == [
        "10.0.4.2 00000001-8d58-4bdf-8241-000000000001",
        "41 behind for 41 d",
        "main 62 daily 27759 bytecode 339",
        "0.103.2 end of life Linux x86_64",
        "no request since 11 Aug, 14:30",
        "503 for daily-27790.cdiff: the origin limits requests for it 18 Sept, 14:30",
    ]
    assert found[2][2:] == [NONE, NONE, "11 min ago", NONE]
    assert browser.texts("#fleet-states button") == [
        "all 14",
        "behind 3",
        "unknown 2",
        "up to date 9",
        "end of life 1",
    ]
    assert browser.texts("#machines .late") == ["daily 27759", "daily 27788", "daily 27798"]


def test_silence_is_told_as_what_it_is(page: Page) -> None:
    seen = [30, HOUR - 1, 2 * HOUR, 3 * DAY, 200 * DAY]
    browser = page.show(
        merged(BUSY, fleet=fleet_of(*(machine(n, last_seen=NOW - ago) for n, ago in enumerate(seen))))
    )
    assert [row[4] for row in rows(browser, "machines")] == [
        "30 s ago",
        "59 min ago",
        "no request since 12:30",
        "no request since 18 Sept, 14:30",
        "no request since 5 Mar 2026",
    ]
    assert "offline" not in browser.text("body").lower()


def test_filter(page: Page) -> None:
    browser = page.show(BUSY)
    field = browser.driver.find_element("id", "fleet-filter")
    field.send_keys("FreeBSD")
    assert [row[0].split()[0] for row in rows(browser, "machines")] == ["10.0.4.3"]
    assert browser.text("#fleet-count") == "1 of 14 machines."
    field.clear()
    for searched, count in (("10.0.4.2", 1), ("0000000e-8d58", 1), ("27759", 1), ("503", 1), ("nothing", 0)):
        field.clear()
        field.send_keys(searched)
        assert len(rows(browser, "machines")) == count, searched


def test_choices(page: Page) -> None:
    browser = page.show(BUSY)
    buttons = browser.driver.find_elements("css selector", "#fleet-states button")
    for button, count in zip(buttons, (14, 3, 2, 9, 1), strict=True):
        button.click()
        assert len(rows(browser, "machines")) == count
        pressed = browser.texts("#fleet-states [aria-pressed=true]")
        assert pressed == [button.text]
    page.change(MANY)
    assert len(rows(browser, "machines")) == 7  # the choice holds


def test_more_machines_than_are_listed(page: Page) -> None:
    fleet = fleet_of(*(late(n, 600 - n) for n in range(500))) | {"total": 1234}
    browser = page.show(merged(BUSY, fleet=fleet))
    found = rows(browser, "machines")
    assert [row[0].split()[1] for row in found] == [one["uuid"] for one in fleet["machines"]]
    assert browser.text("#fleet-count") == (
        "500 machines. The 500 worst of 1,234 are here; “clamproxy fleet” lists them all."
    )


def test_machines_that_share_a_name(page: Page) -> None:
    browser = page.show(merged(BUSY, fleet=fleet_of(*(machine(1) for _ in range(20)))))
    page.next_answer()
    assert len(rows(browser, "machines")) == 20


def test_no_table_of_machines(page: Page) -> None:
    browser = page.show(merged(BUSY, fleet=fleet_of() | {"enabled": False}))
    assert "fleet.enabled" in browser.text("#fleet-off")
    assert browser.text("#fleet-empty") == browser.text("#fleet-body") == ""


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


def test_it_asks_by_itself(page: Page) -> None:
    browser = page.show(BUSY)
    page.server.status = merged(BUSY, stats={"requests": 7})
    browser.until(lambda: browser.text("#requests") == "7")


def test_a_hidden_page_asks_nothing(page: Page) -> None:
    browser = page.show(BUSY)
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
            "The gateway wants its token (status.token): reload this page to give it. ",
            "No figures",
        ),
        (
            200,
            b"<html>a captive portal",
            "What the gateway answers can't be read. No figures since ",
            "No figures",
        ),
        (200, b"null", "What the gateway answers can't be read. No figures since ", "No figures"),
    ],
)
def test_no_answer(page: Page, code: int, body: bytes | None, words: str, state: str) -> None:
    browser = page.show(BUSY)
    page.change(body, code=code)
    told = browser.until_text("#silence", words)
    assert told.endswith("What is below is as it was then.")
    assert browser.text("#state") == state
    assert browser.driver.title == f"clamproxy: {state.lower()}"
    assert browser.run("return document.getElementById('data').className") == "stale"
    assert browser.text("#requests") == "48,211"
    page.change(BUSY)
    browser.until(lambda: browser.text("#silence") == "")
    assert browser.text("#state") == "Ready"
    assert browser.run("return document.getElementById('data').className") == ""


def test_no_answer_from_the_beginning(page: Page) -> None:
    page.server.code = 0
    browser = page.show(BUSY)
    assert browser.text("#silence").startswith("No answer from the gateway since ")
    assert "below" not in browser.text("#silence")
    assert browser.text("#requests") == NONE
    page.server.code = 200
    browser.until(lambda: browser.text("#requests") == "48,211")  # it goes on asking by itself


def test_it_asks_less_often_while_there_is_no_answer(page: Page) -> None:
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


# Charts


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
    assert "gateway not there" in browser.text("#request-chart")
    plot = browser.driver.find_element("css selector", "#request-chart .plot")
    plot.send_keys(Keys.HOME)
    for _ in range(62):
        plot.send_keys(Keys.ARROW_RIGHT)
    assert browser.run(TOOLTIP)[1:] == ["the gateway was not there"]
    gap = browser.run("return document.querySelector('#request-chart path.gap').getBBox().width")
    assert gap > 10
    whole = merged(BUSY, history={"series": {name: [1] * 288 for name in BUSY["history"]["series"]}})
    page.change(whole)
    assert "gateway not there" not in browser.text("#request-chart")


def test_a_day_without_requests(page: Page) -> None:
    browser = page.show(EMPTY)
    assert "No requests in the last day." in browser.run(
        "return document.getElementById('request-chart').textContent"
    )
    label = browser.run("return document.querySelector('#byte-chart svg').getAttribute('aria-label')")
    assert label == "Bytes of the last day: nothing yet."


# Who can use it


def test_landmarks_and_names(page: Page) -> None:
    browser = page.show(BUSY)
    assert browser.run("return document.documentElement.lang") == "en"
    for selector in ("header", "main", "footer", "nav", "h1"):
        assert browser.run("return document.querySelectorAll(arguments[0]).length", selector) == 1, selector
    unnamed = browser.run("""
        const named = (e) => e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
            || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
        return [...document.querySelectorAll("a, button, input, progress, section, svg, [tabindex='0'], nav")]
            .filter((e) => !named(e)).map((e) => e.outerHTML);
    """)
    assert unnamed == []
    doubled = browser.run("""
        const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
        return ids.filter((id, n) => ids.indexOf(id) !== n);
    """)
    assert doubled == []
    assert browser.run("return [...document.querySelectorAll('th')].filter((th) => !th.scope).length") == 0


def test_everything_is_reached_by_keys(page: Page) -> None:
    browser = page.show(BUSY)
    reached: list[str] = []
    for _ in range(40):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.append(
            browser.run("""
                const e = document.activeElement;
                const outline = getComputedStyle(e).outlineStyle;
                return `${e.id || e.className || e.innerText} ${outline === "none" ? "unseen" : "seen"}`;
            """)
        )
    assert reached[0].startswith("skip ")
    for name in ("plot", "fleet-filter", "all 14", "end of life 1", "scroller", "Lines for clients"):
        assert f"{name} seen" in reached, name


PICTURES = {"busy": BUSY, "many": MANY, "not ready": NOT_READY, "empty": EMPTY}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("width", [320, 360, 390, 768, 1280])
def test_no_width_makes_the_page_scroll_sideways(page: Page, name: str, width: int) -> None:
    browser = page.show(PICTURES[name], width=width, height=800)
    assert browser.run("return window.innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width
    chart = browser.run("return document.querySelector('svg').getBoundingClientRect().right")
    assert 0 < chart <= width


def test_machines_are_cards_on_a_phone(page: Page) -> None:
    browser = page.show(BUSY, width=360, height=800)
    first, second = browser.run("""
        const cells = [...document.querySelector("#machines tr").cells];
        return cells.slice(0, 2).map((cell) => cell.getBoundingClientRect());
    """)
    clipped = browser.run("""
        return [...document.querySelectorAll(".cards td, .cards th, .cards time")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth - 10).map((e) => e.innerText);
    """)
    assert clipped == []
    assert first["left"] <= second["left"] + 1
    assert second["top"] >= first["bottom"] - 1
    assert browser.run("return document.querySelector('#machines td').getAttribute('role')") == "cell"


def test_without_motion(page: Page) -> None:
    browser = page.show(BUSY, calm=True)
    shown = "return [...document.querySelectorAll('progress')].map((bar) => bar.checkVisibility())"
    assert browser.run(shown) == [True, False]
    browser.look(calm=False)
    assert browser.run(shown) == [True, True]
    style = (STATIC / "style.css").read_text()
    assert "animation" not in style
    assert "transition" not in style
