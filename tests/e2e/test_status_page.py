"""The status page of a real gateway in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chromium import Browser, open_browser
from tests.support.site import Site

from .conftest import MakeSite


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that needs no proxy."""
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def states(browser: Browser) -> list[str]:
    """The state of each machine, as the page has it."""
    return browser.texts("#machines td:nth-child(2) .tag")


def counted(site: Site) -> str:
    """The requests so far, as the page shows them."""
    seen = json.loads(site.gateway.ask("/status.json", host=f"127.0.0.1:{site.gateway.port}").body)
    return f"{seen['stats']['requests']:,}"


def test_life_of_a_gateway(site: Site, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{site.gateway.port}/")
    browser.until(lambda: browser.text("#state") not in ("", "Loading …"))
    browser.until_text("#client-config", "HTTPProxyServer")
    assert "No machine has asked yet" in browser.text("#fleet-empty")

    site.publish(6)
    assert site.client("one").run().version == 6
    browser.until_text("#databases", "test")
    browser.until_text("#state", "Ready")
    browser.until(lambda: states(browser) == ["up to date"])
    requests = int(browser.text("#requests").replace(",", ""))
    assert requests >= 1
    assert browser.text("#databases td") == "up to date"

    assert site.client("two").run().version == 6
    browser.until(lambda: int(browser.text("#requests").replace(",", "")) > requests)
    browser.until(lambda: browser.text("#hit-ratio") != "–")  # noqa: RUF001
    browser.until(lambda: browser.text("#requests") == counted(site))
    assert browser.messages() == []

    site.gateway.kill()
    browser.until_text("#silence", "No answer from the gateway since")
    assert browser.driver.title == "clamproxy: no answer"
    assert states(browser)


def test_the_page_by_its_name_through_the_proxy(make_site: MakeSite, tmp_path: Path) -> None:
    site = make_site()
    with open_browser(tmp_path / "chromium", proxy=site.gateway.port) as browser:
        browser.open("http://clamproxy/")
        browser.until(lambda: browser.text("#state") not in ("", "Loading …"))
        browser.until_text("#as-of", ":")
        assert browser.text("#version")
        assert browser.messages() == []
