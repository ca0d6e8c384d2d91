"""clamproxy as shipped, except for directories, port, origin and DNS server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contenders.contender import Server
from benchmarks.contenders.process import PROJECT, answers, running
from benchmarks.load.asking import HOST, Entry, Form
from benchmarks.mirror import Mirror
from clamproxy.config.settings import ServingSection
from tests.support.gateway import free_ports

ADDON = PROJECT / "tests" / "support" / "forged_addon.py"
"""clamproxy, made to trust the test keys; only code can change which keys are trusted."""


class Clamproxy:
    """The addon in this environment's mitmdump, with the project's proxy.yaml; or several workers."""

    def __init__(self, *, express: bool = True, workers: int = 1) -> None:
        self.name = "workers" if workers > 1 else "clamproxy" if express else "no-express"
        self._express = express
        self._workers = workers

    def missing(self) -> str:
        no_lane = not self._express and "express" not in ServingSection.model_fields
        return "this version has no serving.express" if no_lane else ""

    def version(self) -> str:
        lane = "" if self._express else ", serving.express: false"
        workers = f", --workers {self._workers}" if self._workers > 1 else ""
        return f"proxy.yaml as shipped{lane}{workers}; CONNECT, and absolute-form where it says so"

    @contextmanager
    def start(self, mirror: Mirror, work: Path, *, always_fresh: bool = False) -> Iterator[Server]:
        (port,) = free_ports(1)
        settings = self._settings(mirror, work, always_fresh)
        (work / "proxy.yaml").write_text(yaml.safe_dump(settings))
        command = [
            *self._program(),
            *("--listen-host", "127.0.0.1", "-p", str(port)),
            *("--set", f"clamproxy_config={work}/proxy.yaml", "--set", f"confdir={work}/confdir"),
        ]
        # The user's own settings must not affect the run.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLAMPROXY_")}
        environment = {**inherited, "PYTHONPATH": str(PROJECT), "CLAMPROXY_TEST_KEYS": str(mirror.keys)}
        # For a name that isn't a database's, the gateway itself responds 404, without asking the origin.
        ready = f"http://{HOST}/ready"
        with running(
            command, work, lambda: self._all_serve(work) and answers(port, ready), environment
        ) as process:
            yield Server(
                self.name,
                process,
                machine=Entry(port, Form.TUNNEL),
                plain=Entry(port, Form.ABSOLUTE),
                tls=Entry(port, Form.TUNNEL, str(work / "confdir" / "mitmproxy-ca-cert.pem")),
            )

    def _program(self) -> list[str]:
        if self._workers == 1:
            return [str(Path(sys.executable).with_name("mitmdump")), "-s", str(ADDON)]
        command = [sys.executable, "-m", "tests.support.command", str(ADDON), "run"]
        return [*command, "--workers", str(self._workers)]

    def _all_serve(self, work: Path) -> bool:
        log = (work / "output.log").read_text(errors="replace")
        return self._workers == 1 or f"{self._workers} workers are serving" in log

    def _settings(self, mirror: Mirror, work: Path, always_fresh: bool) -> dict[str, Any]:
        settings: dict[str, Any] = yaml.safe_load((PROJECT / "proxy.yaml").read_text())
        settings["cache"]["directory"] = str(work / "cache")
        settings["state"]["directory"] = str(work / "state")
        settings["tls"]["directory"] = str(work / "ca")
        settings["upstream"]["url"] = mirror.url
        settings["versions"]["nameservers"] = [mirror.nameserver]
        # Several may run side by side.
        settings["status"]["listen"] = None
        if always_fresh:
            settings["versions"]["refresh"] = "1s"
        if not self._express:
            settings["serving"]["express"] = False
        return settings
