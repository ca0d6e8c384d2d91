"""Texts that machines and origins have chosen, on the status page: they are shown, and do nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.chromium import merged
from tests.support.gateway import ROOT

from .conftest import Page
from .pictures import BUSY, NOW, fleet_of, machine

STATIC = ROOT / "clamproxy/web/static"

HOSTILE = {
    "image": "<img src=x onerror=\"window.hit='image'\">",
    "script": "\"><script>window.hit='script'</script>",
    "attribute": "' onmouseover='window.hit=1' autofocus onfocus=\"window.hit='focus'\" x=\"",
    "frame": "</td></table><iframe srcdoc=\"<script>parent.hit='frame'</script>\"></iframe>",
    "style": "</title></textarea><style>*{display:none}</style>",
    "link": "javascript:window.hit='link'",
    "template": "${window.hit='template'}{{constructor.constructor('window.hit=1')()}}",
    "prototype": "__proto__",
    "constructor": "constructor",
    "reversed": "\u202eexe.cvd\u202c \u2066\u200f\u061c evil",
    "invisible": "a\u200b\u200c\u200d\ufeff\u2028\u2029\u0000\u0007\x1b[31mb",
    "surrogate": "\ud800 lone \udfff",
    "long": "x" * 10_000,
    "long words": "word " * 2000,
    "marks": "Z" + "\u0300\u0301\u0302" * 300,
    "spaces": "   \t\r\n  ",
    "wide": "﷽" * 200,
}

FORBIDDEN = (
    "script:not([src='app.js']), iframe, style, object, embed, base, form, "
    "[onerror], [onmouseover], [onfocus], [autofocus]"
)
HIDDEN = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)


def poisoned(value: Any, text: str, *, numbers: bool = False, key: str = "") -> Any:
    """The same figures with this text in the place of each text."""
    if isinstance(value, dict):
        # Names of databases come from outside, too.
        renamed = {text: next(iter(value.values()))} if key == "databases" and value else {}
        return {
            name: poisoned(item, text, numbers=numbers, key=name)
            for name, item in {**value, **renamed}.items()
        }
    if isinstance(value, list):
        return [poisoned(item, text, numbers=numbers) for item in value]
    if isinstance(value, str) or (numbers and isinstance(value, int | float)):
        return text
    return value


def assert_harmless(page: Page, width: int, longest: int = 1001) -> None:
    browser = page.browser
    assert browser.run("return window.hit") is None
    assert browser.run("return document.querySelectorAll(arguments[0]).length", FORBIDDEN) == 0
    assert browser.run("return document.images.length") == 1
    assert browser.run("return [...document.links].map((link) => link.protocol)") == ["http:"] * 8
    assert browser.run("return document.documentElement.scrollWidth") <= width
    texts = browser.run("""
        const found = [document.title];
        const both = NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT;
        const walker = document.createTreeWalker(document.documentElement, both);
        while (walker.nextNode()) {
            const node = walker.currentNode;
            if (node.nodeType === Node.TEXT_NODE) found.push(node.data);
            else found.push(...[...node.attributes].map((attribute) => attribute.value));
        }
        return found;
    """)
    assert [text for text in texts if HIDDEN.search(text)] == []
    assert (
        max(len(text) for text in texts if not text.startswith("M")) <= longest
    )  # paths of charts are longer


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_texts(page: Page, name: str, width: int) -> None:
    status = poisoned(merged(BUSY, problems=["one", "two"], ready=False), HOSTILE[name])
    browser = page.show(status, width=width, height=800)
    page.change(merged(status, stats={"requests": 7}))
    assert browser.text("#requests") == "7"
    assert browser.text("#state") == "Not ready"
    assert len(browser.texts("#machines tr")) == 14
    browser.driver.find_element("id", "fleet-filter").send_keys("<img src=x>")
    assert_harmless(page, width)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_in_the_place_of_numbers(page: Page, name: str) -> None:
    status = poisoned(merged(BUSY, problems=["one"]), HOSTILE[name], numbers=True)
    page.server.fleet = poisoned(BUSY["fleet"] | {"found": 5000}, HOSTILE[name], numbers=True)
    browser = page.show(merged(status, fleet={"total": 14, "enabled": True}))
    assert browser.text("#requests") == "\u2013"
    assert len(browser.texts("#machines tr")) == 14
    assert_harmless(page, 1280)


def test_a_hostile_machine_is_shown_as_it_is(page: Page) -> None:
    text = HOSTILE["image"]
    browser = page.show(
        merged(BUSY, fleet=fleet_of(machine(1, uuid=text, os=text, last_error={"at": NOW, "what": text})))
    )
    assert text in browser.text("#machines .clamp")
    assert browser.text("#machines .uuid") == text


def test_hidden_characters_are_seen(page: Page) -> None:
    browser = page.show(merged(BUSY, problems=["daily\u202edvc.exe"]))
    assert browser.texts("#problem-list li") == ["daily\ufffddvc.exe"]


def test_hostile_lines_for_clients(page: Page) -> None:
    page.server.client_config = HOSTILE["frame"].encode() + b"\n" + b"x" * 100_000
    browser = page.show(merged(BUSY, peers=[], fleet=fleet_of()), width=360)
    shown = browser.until_text("#client-config", "iframe")
    assert len(shown) <= 4000
    assert_harmless(page, 360, 4000)


def test_nothing_comes_from_elsewhere(page: Page) -> None:
    browser = page.show(BUSY)
    page.next_answer()
    asked = browser.run(
        "return performance.getEntries().map((entry) => entry.name).filter((name) => name.includes(':'))"
    )
    assert asked
    assert all(url.startswith(page.server.url) for url in asked)


def test_the_policy_holds(page: Page) -> None:
    """The page works under it, and it forbids what a hole in the page would let in."""
    browser = page.show(BUSY)
    browser.run("""
        const script = document.createElement("script");
        script.textContent = "window.hit = 'inline'";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror=\\"window.hit='image'\\">");
        document.body.insertAdjacentHTML("beforeend", "<p id=styled style='color: red'>x");
    """)
    browser.until(lambda: sum("Content Security Policy" in message for message in browser.messages()) >= 1)
    assert browser.run("return window.hit") is None
    assert browser.run("return getComputedStyle(document.getElementById('styled')).color") != "rgb(255, 0, 0)"
    page.browser.messages()


def test_the_files_have_nothing_inline() -> None:
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\ssrc=)", page) == []
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:|(?:src|href)=.(?:https?:|//)", page) == []
    for path in STATIC.glob("*.js"):
        script = path.read_text()
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|\.style\b|\"style\"",
            script,
        )
        assert found == [], path.name
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", script) == [], path.name
    assert re.findall(r"url\(|@import", (STATIC / "style.css").read_text()) == []
