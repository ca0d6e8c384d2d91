"""A real Chromium without a window, and a server of the status page with the test's own figures."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.wait import WebDriverWait
from werkzeug.datastructures import Headers

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.messages import Request, Response
from clamproxy.responses import complete
from clamproxy.web.machines import Query, fleet_json
from clamproxy.web.pages import Pages
from clamproxy.web.sources import Sources
from tests.support.machines import machine_of

WAIT = 40.0
"""How many seconds the page may take to show something."""
START_LIMIT = 60
"""How many seconds one command of the browser may take."""
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--window-size=1280,900",
)


class Browser:
    """A window of Chromium."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load a page, with nothing left over from the previous one."""
        self.driver.get("about:blank")
        self.messages()
        self.look()
        self.driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a script returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """The visible text of the first element; "" if there is none."""
        return next(iter(self.texts(selector)), "")

    def texts(self, selector: str) -> list[str]:
        """The visible texts of all these elements."""
        script = """
            return [...document.querySelectorAll(arguments[0])]
                .map((element) => element.checkVisibility() ? element.innerText : "")
        """
        return cast(list[str], self.run(script, selector))

    def until[T](self, look: Callable[[], T], *, limit: float = WAIT) -> T:
        """Look until the result is true, and return it.

        Raises:
            TimeoutException: that takes too long.
        """
        waiting = WebDriverWait(self.driver, limit, 0.1, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda _: look())

    def until_text(self, selector: str, part: str) -> str:
        """Wait until an element shows a text that has this part."""
        return self.until(lambda: part in (text := self.text(selector)) and text) or ""

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, calm: bool = False) -> None:
        """Change the size of the window, or prefer dark colours or no motion."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else ""},
        ]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def messages(self) -> list[str]:
        """What appeared in the console since the last call, including violations of the policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file, for people."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return window.innerWidth")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.save_screenshot(str(path))


@contextmanager
def open_browser(directory: Path, *, proxy: int | None = None) -> Iterator[Browser]:
    """Start Chromium with a new profile; skips the test if it isn't installed.

    Args:
        directory: for the profile.
        proxy: the port of an HTTP proxy on this machine for all requests; none by default.
    """
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        _do_without("chromium and chromedriver are not installed")
    options = ChromeOptions()
    options.binary_location = str(chromium)
    way = "--no-proxy-server" if proxy is None else f"--proxy-server=http://127.0.0.1:{proxy}"
    for flag in (*FLAGS, way, f"--user-data-dir={directory / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "ignore")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"TZ": "UTC", "HOME": str(directory)}
    # With the path given, Selenium neither looks for a driver nor fetches one.
    window = Chrome(options, ChromeService(str(driver), env=environment))
    try:
        window.set_page_load_timeout(START_LIMIT)
        window.set_script_timeout(START_LIMIT)
        yield Browser(window)
    finally:
        window.quit()


def _do_without(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class StatusServer:
    """Serves the files of the page as the gateway does, and the test's own status.json."""

    def __init__(self) -> None:
        self.status: Any = {}
        """What status.json holds: bytes as they are, anything else as JSON."""
        self.code = 200
        """The status of that answer; 0 closes the connection instead."""
        self.client_config = b""
        """The lines for freshclam.conf; none: 404."""
        self.asked: list[str] = []
        """The paths of all requests."""
        self.queries: list[str] = []
        """Those of the questions for machines."""
        self.fleet: Any = None
        """What fleet.json holds, if it isn't made from status.json."""
        self.story: Any = None
        """What fleet.json holds about one machine; none: 404."""
        self.fleet_code = 200
        """The status of that answer, while `code` is 200."""
        self.token: str | None = None
        """What a reader has to show; see status.token."""
        # Of its sources only the settings are asked for: static files need no more.
        self._site = Pages(Sources(settings=self._settings, store=cast(Store, None), started_at=0.0))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return self.asked.count(path)

    def _settings(self) -> Settings:
        return Settings.model_validate({"status": {"token": self.token}})

    def _response(self, target: str, headers: Headers) -> Response | None:
        path, _, query = target.partition("?")
        self.asked.append(path)
        if path in ("/status.json", "/fleet.json"):
            is_status = path == "/status.json"
            code = self.code if is_status or self.code != 200 else self.fleet_code
            if query.startswith("machine=") and self.story is None:
                code = 404
            if code == 0:
                return None
            body = self._status_json() if is_status else self._fleet_json(query)
            return self._laid_over(headers, code, body, "application/json")
        if path == "/client-config":
            code = 200 if self.client_config else 404
            return self._laid_over(headers, code, self.client_config, "text/plain")
        return self._page(path, headers)

    def _page(self, path: str, headers: Headers) -> Response:
        response = asyncio.run(self._site.handle(Request("GET", path, headers), peer="127.0.0.1"))
        complete(response, "GET")
        return response

    def _status_json(self) -> bytes:
        return self.status if isinstance(self.status, bytes) else json.dumps(self.status).encode()

    def _fleet_json(self, query: str) -> bytes:
        """What the gateway makes of the machines in status.json."""
        self.queries.append(query)
        if query.startswith("machine="):
            return json.dumps(self.story).encode()
        if self.fleet is not None:
            return json.dumps(self.fleet).encode()
        counts = dict(self.status["fleet"])
        machines = [machine_of(one) for one in counts.pop("machines")]
        return fleet_json(machines, counts, Query.parse(query), self.status["gateway"]["now"])

    def _laid_over(self, headers: Headers, code: int, body: bytes, content_type: str) -> Response:
        """An answer of the test with the header fields of the site, its policy above all."""
        shown = Headers({"Authorization": headers.get("Authorization", "")})
        response = self._page("/style.css", shown)
        if response.status == 401:
            return response
        response.status, response.body = code, body
        response.headers["Content-Type"] = content_type
        response.headers["Cache-Control"] = "no-store"
        del response.headers["ETag"]
        return response

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                response = server._response(self.path, Headers(list(self.headers.items())))
                if response is None:
                    self.close_connection = True
                    return
                assert isinstance(response.body, bytes)
                self.send_response_only(response.status)
                response.headers["Content-Length"] = str(len(response.body))
                for name, value in response.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(response.body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        return Handler


def merged(base: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of figures with some of them changed; a dict is merged into the one that is there."""
    changed = dict(base)
    for name, value in changes.items():
        old = changed.get(name)
        changed[name] = merged(old, **value) if isinstance(old, dict) and isinstance(value, dict) else value
    return changed
