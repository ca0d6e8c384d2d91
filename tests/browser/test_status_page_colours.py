"""The colours of the status page: text stands out from its ground as WCAG 2 demands (AA)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.chromium import merged
from tests.support.gateway import ROOT

from .conftest import Page
from .pictures import BUSY, EMPTY, NOT_READY

TEXT = 4.5
"""WCAG 2.2, 1.4.3: the contrast of text."""
GRAPHICS = 3.0
"""WCAG 2.2, 1.4.11: that of parts of charts and of the edges of controls."""

type Colour = tuple[float, float, float]


def luminance(colour: Colour) -> float:
    """Relative luminance, from 0 to 1 (WCAG 2.2); the colour's parts are from 0 to 255."""
    parts = [part / 255 for part in colour]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, other: Colour) -> float:
    """From 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def palette(scheme: str) -> dict[str, Colour]:
    """The custom properties of style.css."""
    style = (ROOT / "clamproxy/web/static/style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    found: dict[str, Colour] = {}
    for block in blocks[: 1 if scheme == "light" else 2]:
        for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{6});", block):
            found[name] = (int(value[:2], 16), int(value[2:4], 16), int(value[4:], 16))
    return found


PAIRS = [
    *((text, ground, TEXT) for text in ("text", "muted", "link") for ground in ("page", "card", "raised")),
    *((mood, f"{mood}-back", TEXT) for mood in ("good", "warn", "bad", "plain")),
    ("warn", "card", TEXT),  # late databases
    ("card", "link", TEXT),  # the button that is pressed
    ("tip-text", "tip", TEXT),
    ("control", "card", GRAPHICS),
    *(
        (f"chart-{name}", "card", GRAPHICS)
        for name in ("hits", "others", "misses", "errors", "served", "fetched")
    ),
]


def test_the_measure() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("one", "other", "least"), PAIRS)
def test_contrast_of_the_palette(scheme: str, one: str, other: str, least: float) -> None:
    colours = palette(scheme)
    assert contrast(colours[one], colours[other]) >= least


def test_both_palettes_are_whole() -> None:
    style = (ROOT / "clamproxy/web/static/style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = re.compile(r"(--[\w-]+):")
    assert names.findall(light) == names.findall(dark)
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    assert used == set(names.findall(light))
    assert re.findall(r"#[0-9a-f]{3,8}\b", style.replace(light, "").replace(dark, "")) == []


# Each text that is shown, with its colour and its ground: the nearest one that isn't transparent.
SEEN = """
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgb = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const ground = (element) => {
        for (let e = element; e; e = e.parentElement) {
            if (e.classList.contains("tooltip")) return rgb(getComputedStyle(e.querySelector(".tip")).fill);
            const colour = rgb(getComputedStyle(e).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255, 255];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const colour = element instanceof SVGElement ? style.fill : style.color;
        found.push([walker.currentNode.data.trim().slice(0, 40), rgb(colour), ground(element)]);
    }
    return found;
"""


def too_faint(seen: list[list[Any]]) -> list[list[Any]]:
    """The texts that don't stand out."""
    assert len(seen) > 40
    return [one for one in seen if contrast(tuple(one[1][:3]), tuple(one[2][:3])) < TEXT]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_contrast_of_what_is_shown(page: Page, dark: bool, width: int) -> None:
    browser = page.show(merged(BUSY, problems=["One thing."]), dark=dark, width=width)
    browser.driver.find_element("css selector", "#request-chart .plot").send_keys("\ue012")  # a tooltip
    assert too_faint(browser.run(SEEN)) == []
    for status in (EMPTY, NOT_READY):
        page.change(status)
        assert too_faint(browser.run(SEEN)) == []
    page.change(BUSY, code=503)
    browser.until(lambda: browser.text("#silence"))
    assert too_faint(browser.run(SEEN)) == []


@pytest.mark.parametrize("dark", [False, True])
def test_scheme_follows_the_reader(page: Page, dark: bool) -> None:
    browser = page.show(BUSY, dark=dark)
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb({}, {}, {})".format(*palette("dark" if dark else "light")["page"])
