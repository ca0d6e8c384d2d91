"""The status page in a real Chromium: what it shows, and who can use it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.select import Select

from tests.support.chromium import Browser, merged
from tests.support.gateway import ROOT

from .conftest import NONE, Page, rows
from .pictures import BUSY, DAY, EMPTY, HOUR, HUGE, MANY, NOT_READY, NOW, fleet_of, late, machine

STATIC = ROOT / "clamproxy/web/static"


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
    assert browser.text("#saved-note") == "412 GiB served, 5.0 GiB fetched, byte hit ratio 98.8%"
    assert browser.text("#problems") == ""


def test_databases(page: Page) -> None:
    browser = page.show(BUSY)
    assert rows(browser, "databases") == [
        ["bytecode", "up to date", "339", "339", "339", "1 Aug, 14:30", "275 KiB"],
        ["daily", "1 behind", "27801", "27779", "27800", "30 Aug, 14:30", "62.0 MiB"],
        ["main", "up to date", "62", "62", "62", "21 Oct 2024", "163 MiB"],
    ]
    assert browser.texts("table:has(#databases) thead th")[2:5] == ["Advertised", "Cached", "Reached"]
    assert browser.text("#databases-missing") == "Advertised, nothing cached: safebrowsing."
    page.change(merged(BUSY, databases=BUSY["databases"][-1:]))
    assert "Nothing is cached yet" in browser.text("#databases-empty")
    assert browser.text("#databases-missing") == "Advertised, nothing cached: safebrowsing."
    page.change(merged(BUSY, databases=BUSY["databases"][:-1]))
    assert browser.text("#databases-missing") == ""


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


def test_what_is_held_back(page: Page) -> None:
    browser = page.show(BUSY)
    assert browser.text("#releases") == ""
    hold = {"database": "daily", "version": 27800, "cause": "hold", "since": NOW - 2 * HOUR, "until": None}
    delay = {"database": "main", "version": 62, "cause": "delay", "since": None, "until": NOW + 3 * HOUR}
    who = {"by": "alice", "why": "false positives on notepad.exe", "forgotten": False}
    counts = {"older": 3, "same": 94, "newer": 2}
    nobody = {"by": None, "why": None, "forgotten": False}
    page.change(
        merged(BUSY, releases=[{**hold, **who, "machines": counts}, {**delay, **nobody, "machines": None}])
    )
    assert rows(browser, "release-limits") == [
        [
            *("daily", "27800", "hold", "12:30 2 h", "alice: false positives on notepad.exe"),
            "94 this one, 2 a newer one, 3 an older one",
        ],
        ["main", "62", "delay", "17:30 in 3 h", NONE, NONE],
    ]


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


def test_files_of_the_site(page: Page) -> None:
    browser = page.show(BUSY)
    found = rows(browser, "site-files")
    assert [(row[0], row[1], row[3], row[4]) for row in found] == [
        ("site.ign2", "published", "112 B", NONE),
        ("local.yar", "refused", "20.0 KiB", "line 12: syntax error"),
        ("new.ndb", "waiting", NONE, "it couldn't be checked yet"),
        ("README.md", "skipped", NONE, "ClamAV loads no .md files"),
    ]
    assert browser.text("#files-note") == "2 published, 1,840 requests, 3.0 MiB served"
    page.change(EMPTY)
    assert browser.text("#files") == ""


def test_gateways(page: Page) -> None:
    browser = page.show(BUSY)
    own, *others = rows(browser, "gateway-list")
    assert own == ["this gateway", "ready", "bytecode 339 daily 27800 main 62", *own[3:4], "14:30"]
    assert others == [
        [
            "gw-berlin.example.net:8080 0.2.0",
            "ready",
            "bytecode 339 daily 27801 main 62",
            "1,200: 1,150 up to date, 40 behind",
            "14:29",
        ],
        [
            "gw-oslo.example.net:8080 0.2.0",
            "1 problem",
            "daily 27795",
            "1,200: 590 up to date, 600 behind 512 overdue",
            "14:29",
        ],
        [
            "gw-rome.example.net:8080 0.2.0",
            "not reachable Failed to establish a new connection: [Errno 111] Connection refused",
            "bytecode 339 daily 27801 main 62",
            "1,200: 1,150 up to date, 40 behind",
            "09:30",
        ],
        ["10.9.0.1:8080", "not asked yet", NONE, NONE, NONE],
    ]
    assert browser.text("#gateways-note") == "1 gateway not reachable: the figures are the last known"
    page.change(merged(BUSY, peers=[]))
    assert browser.text("#gateways") == ""
    assert browser.text("#fleet-gateways") == ""


def test_machines_of_all_gateways(page: Page) -> None:
    browser = page.show(BUSY)
    choice = Select(browser.driver.find_element("id", "fleet-gateway"))
    assert [option.text for option in choice.options][:3] == [
        "This gateway's machines",
        "All gateways' machines",
        "Those of gw-berlin.example.net:8080",
    ]
    seen = {**machine(7), "gateway": "gw-oslo.example.net:8080"}
    page.server.fleet = {**fleet_of(machine(1), seen), "found": 2, "now": NOW, "machines": [machine(1), seen]}
    choice.select_by_value("all")
    browser.until(lambda: any("gateway=all" in query for query in page.server.queries))
    own, other = page.machines(2)
    assert "by gw-oslo" not in own[0]
    assert other[0].endswith("by gw-oslo.example.net:8080")
    # Only the gateway that saw a machine has its story.
    stories = browser.driver.find_elements("css selector", "#machines button")
    assert [button.text for button in stories] == [machine(1)["address"]]
    name = browser.driver.find_element("css selector", "#machines tr:nth-child(2) [title]")
    assert name.get_attribute("title") == "Its story is on the page of gw-oslo.example.net:8080"
    choice.select_by_value("gw-oslo.example.net:8080")
    browser.until(lambda: any("gateway=gw-oslo.example.net%3A8080" in query for query in page.server.queries))


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
        f"{page.server.url}{name}"
        for name in ("client-config", "ca.pem", "metrics", "status.json", "fleet.json", "fleet.csv")
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
        "bytecode 339 daily 27759 main 62",
        "0.103.2 end of life Linux x86_64",
        "no request since 11 Aug, 14:30",
        "503 for daily-27790.cdiff: the origin limits requests for it 18 Sept, 14:30",
    ]
    assert found[2][2:] == [NONE, NONE, "11 min ago", NONE]
    assert browser.texts("#fleet-states button") == [
        "all 14",
        "overdue 3",
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


def test_behind_and_overdue(page: Page) -> None:
    """After a release all are behind for a while. Worth a colour are those that stay so."""
    recent = {"databases": {"daily": {"behind_since": NOW - 3 * HOUR}}}
    nobody_knows = {"databases": {"daily": {"behind_since": None}}}
    browser = page.show(
        merged(BUSY, fleet=fleet_of(late(1, 1, **recent), late(2, 4), late(3, 1, **nobody_knows), machine(4)))
    )
    assert [row[1] for row in rows(browser, "machines")] == [
        "1 behind for 3 h",
        "4 behind for 4 d",
        "1 behind",
        "up to date",
    ]
    assert browser.texts("#machines .tag.warn") == ["4 behind", "1 behind"]
    assert browser.texts("#machines .late") == ["daily 27796", "daily 27799"]
    assert browser.texts("#fleet-states button")[1:3] == ["overdue 2", "behind 3"]
    assert "1 d" in browser.run("return document.querySelectorAll('#fleet-states button')[1].title")
    dates = browser.run(
        "return [...document.querySelectorAll('#machines td:nth-child(2) time')].map((t) => t.title)"
    )
    assert ["2026" in date for date in dates] == [True, True]


def test_search(page: Page) -> None:
    browser = page.show(BUSY)
    field = browser.driver.find_element("id", "fleet-filter")
    field.send_keys("FreeBSD")
    assert [row[0].split()[0] for row in page.machines(1)] == ["10.0.4.3"]
    assert browser.text("#fleet-count") == "1 of 14 machines."
    field.clear()
    for searched, found in (
        ("10.0.4.2", 1),
        ("nothing", 0),
        ("0000000e-8d58", 1),
        ("linux", 12),
        ("27759", 1),
        ("MAIN  linux 1.4.6", 10),
        ("503", 1),
    ):
        field.clear()
        field.send_keys(searched)
        page.machines(found)
        assert browser.text("#machines-empty") == ("" if found else "No machine matches."), searched


def test_typing_asks_once(page: Page) -> None:
    browser = page.show(MANY)
    page.next_answer()
    browser.driver.find_element("id", "fleet-filter").send_keys("10.0.4.17")
    browser.until_text("#fleet-count", "11 of 300 machines")
    searches = {parse_qs(query)["q"][0] for query in page.server.queries if "q=" in query}
    assert "10.0.4.17" in searches
    assert len(searches) < len("10.0.4.17")


def test_choices(page: Page) -> None:
    browser = page.show(BUSY)
    buttons = browser.driver.find_elements("css selector", "#fleet-states button")
    for button, count in zip(buttons, (14, 3, 3, 2, 9, 1), strict=True):
        button.click()
        page.machines(count)
        pressed = browser.texts("#fleet-states [aria-pressed=true]")
        assert pressed == [button.text]
    page.change(MANY)
    page.machines(7)  # the choice holds


def test_each_machine_of_a_large_fleet_is_found(page: Page) -> None:
    """Healthy and unknown ones, too, though status.json lists the worst only."""
    browser = page.show(HUGE)
    assert len(rows(browser, "machines")) == 50
    assert browser.text("#fleet-count") == "2,000 machines; showing 1 to 50."
    browser.driver.find_elements("css selector", "#fleet-states button")[3].click()  # unknown
    assert browser.until_text("#fleet-count", "298") == "298 of 2,000 machines; showing 1 to 50."
    assert {row[1] for row in page.machines(50)} == {"unknown"}
    browser.driver.find_elements("css selector", "#fleet-states button")[0].click()
    browser.driver.find_element("id", "fleet-filter").send_keys(HUGE["fleet"]["machines"][-1]["uuid"])
    assert [row[1] for row in page.machines(1)] == ["up to date"]
    assert browser.run("return document.getElementsByTagName('*').length") < 3000


def places(browser: Browser) -> tuple[str, bool, bool]:
    """What is said of the part that is shown, and whether there is something before and after it."""
    can = [browser.driver.find_element("id", f"fleet-{way}").is_enabled() for way in ("previous", "next")]
    return browser.text("#fleet-count"), can[0], can[1]


def test_pages(page: Page) -> None:
    browser = page.show(merged(BUSY, fleet=fleet_of(*(machine(n) for n in range(120)))))
    forward, back = (browser.driver.find_element("id", f"fleet-{way}") for way in ("next", "previous"))
    assert places(browser) == ("120 machines; showing 1 to 50.", False, True)
    forward.click()
    browser.until_text("#fleet-count", "51 to 100")
    forward.click()
    browser.until_text("#fleet-count", "101 to 120")
    assert places(browser) == ("120 machines; showing 101 to 120.", True, False)
    assert len(rows(browser, "machines")) == 20
    assert browser.run("return document.activeElement.className") == "scroller"
    page.next_answer()
    assert places(browser)[0] == "120 machines; showing 101 to 120."
    # Most of them are gone: the last page that is left is shown.
    page.change(merged(BUSY, fleet=fleet_of(*(machine(n) for n in range(70)))))
    browser.until_text("#fleet-count", "51 to 70")
    back.click()
    browser.until_text("#fleet-count", "1 to 50")
    page.change(merged(BUSY, fleet=fleet_of(*(machine(n) for n in range(50)))))
    assert places(browser)[0] == "50 machines."
    assert browser.text("#fleet-pages") == ""
    browser.driver.find_element("id", "fleet-filter").send_keys("10.0.4.1")
    browser.until_text("#fleet-count", "of 50 machines.")


def test_order(page: Page) -> None:
    browser = page.show(BUSY)
    order = browser.driver.find_element("id", "fleet-sort")
    Select(order).select_by_visible_text("By address")
    expected = [f"10.0.4.{n}" for n in range(2, 16)]
    browser.until(lambda: [row[0].split()[0] for row in rows(browser, "machines")] == expected)
    page.next_answer()
    assert [row[0].split()[0] for row in rows(browser, "machines")] == expected


@pytest.mark.parametrize("code", [0, 401, 503])
def test_no_list_of_machines(page: Page, code: int) -> None:
    """What else is known is shown as ever, and the list comes back."""
    browser = page.show(BUSY)
    page.server.fleet_code = code
    page.next_answer()
    assert browser.text("#fleet-count") == "The list of machines is not available now."
    assert (browser.text("#state"), browser.text("#silence")) == ("Ready", "")
    page.server.fleet_code = 200
    page.next_answer()
    assert browser.text("#fleet-count") == "14 machines."


def test_machines_that_share_a_name(page: Page) -> None:
    browser = page.show(merged(BUSY, fleet=fleet_of(*(machine(1) for _ in range(20)))))
    page.next_answer()
    assert len(rows(browser, "machines")) == 20


def test_no_table_of_machines(page: Page) -> None:
    browser = page.show(merged(BUSY, fleet=fleet_of() | {"enabled": False}))
    assert "fleet.enabled" in browser.text("#fleet-off")
    assert browser.text("#fleet-empty") == browser.text("#fleet-body") == ""


# Who can use it


def test_landmarks_and_names(page: Page) -> None:
    browser = page.show(BUSY)
    assert browser.run("return document.documentElement.lang") == "en"
    for selector in ("header", "main", "footer", "nav", "h1"):
        assert browser.run("return document.querySelectorAll(arguments[0]).length", selector) == 1, selector
    unnamed = browser.run("""
        const named = (e) => e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
            || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
        const all = "a, button, input, select, progress, section, svg, [tabindex='0'], nav";
        return [...document.querySelectorAll(all)].filter((e) => !named(e)).map((e) => e.outerHTML);
    """)
    assert unnamed == []
    doubled = browser.run("""
        const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
        return ids.filter((id, n) => ids.indexOf(id) !== n);
    """)
    assert doubled == []
    assert browser.run("return [...document.querySelectorAll('th')].filter((th) => !th.scope).length") == 0


def test_everything_is_reached_by_keys(page: Page) -> None:
    browser = page.show(merged(BUSY, fleet=fleet_of(*(machine(n) for n in range(120)))))
    reached: list[str] = []
    for _ in range(100):  # each machine on the page can be opened
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.append(
            browser.run("""
                const e = document.activeElement;
                const outline = getComputedStyle(e).outlineStyle;
                return `${e.id || e.className || e.innerText} ${outline === "none" ? "unseen" : "seen"}`;
            """)
        )
    assert reached[0].startswith("skip ")
    for name in (
        "plot",
        "fleet-filter",
        "fleet-sort",
        "all 120",
        "scroller",
        "fleet-next",
        "Lines for clients",
    ):
        assert f"{name} seen" in reached, name


PICTURES = {"busy": BUSY, "huge": HUGE, "not ready": NOT_READY, "empty": EMPTY}


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


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_some_machines_at_a_time(page: Page, width: int) -> None:
    browser = page.show(HUGE, width=width, height=800)
    browser.until_text("#fleet-count", "2,000 machines; showing 1 to 20.")
    assert browser.run("return document.documentElement.scrollHeight") < 10_000
    browser.driver.find_element("id", "fleet-next").click()
    browser.until_text("#fleet-count", "21 to 40")
    # The next page is read from its top on.
    assert abs(browser.run("return document.getElementById('fleet').getBoundingClientRect().top")) < 5


def test_without_motion(page: Page) -> None:
    browser = page.show(BUSY, calm=True)
    shown = "return [...document.querySelectorAll('progress')].map((bar) => bar.checkVisibility())"
    assert browser.run(shown) == [True, False]
    browser.look(calm=False)
    assert browser.run(shown) == [True, True]
    style = (STATIC / "style.css").read_text()
    assert "animation" not in style
    assert "transition" not in style
