"""The gateway as a service of systemd: what it tells, and under the unit's own restrictions."""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.confinement import LIBRARY, confined_environment
from tests.support.dns_server import FakeDns
from tests.support.freshclam import OK
from tests.support.gateway import ROOT, Gateway, Way
from tests.support.origin import OriginServer
from tests.support.service_manager import Manager
from tests.support.site import Site, eventually, settings_for

from .conftest import MakeSite

UNIT = ROOT / "contrib" / "systemd" / "clamproxy.service"
DOCKERFILE = ROOT / "contrib" / "docker" / "Dockerfile"


@pytest.fixture
def gateway(tmp_path: Path, origin: OriginServer, dns: FakeDns, manager: Manager) -> Iterator[Gateway]:
    """One that systemd has started."""
    with Gateway(tmp_path / "site", settings_for(origin, dns), environment=manager.environment) as gateway:
        yield gateway


def reload(gateway: Gateway) -> None:
    os.kill(gateway.pid, signal.SIGHUP)


def test_life_of_the_service(gateway: Gateway, manager: Manager) -> None:
    assert eventually(manager.listen) == ["READY=1"]
    assert eventually(lambda: manager.listen() and manager.signs > 2)
    gateway.config.write_text(gateway.config.read_text() + "\nlog: {format: json}\n")
    reload(gateway)
    assert eventually(lambda: manager.listen()[1:]) == ["RELOADING=1"] or manager.states[2:] == ["READY=1"]
    assert eventually(lambda: manager.listen()[2:]) == ["READY=1"]
    assert gateway.stop() == 0
    assert eventually(lambda: manager.listen()[3:]) == ["STOPPING=1"]


def test_a_refused_reload_is_reported_as_ended(gateway: Gateway, manager: Manager) -> None:
    """systemctl reload would wait for it."""
    assert eventually(manager.listen) == ["READY=1"]
    gateway.config.write_text("cache: {size_limit: much}\n")
    reload(gateway)
    assert eventually(lambda: manager.listen()[2:])
    assert manager.states == ["READY=1", "RELOADING=1", "READY=1"]


def test_ready_means_that_clients_are_served(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, manager: Manager
) -> None:
    gateway = Gateway(tmp_path / "site", settings_for(origin, dns), environment=manager.environment)
    gateway.start()
    try:
        assert eventually(manager.listen) == ["READY=1"]
        with gateway.connection(Way.CONNECT_HTTP):
            pass  # the tunnel stands
    finally:
        gateway.kill()


def test_a_start_that_fails_is_never_ready(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, manager: Manager
) -> None:
    settings = settings_for(origin, dns, cache={"size_limit": "much"})
    gateway = Gateway(tmp_path / "site", settings, environment=manager.environment)
    with suppress(RuntimeError):  # it may listen for a moment before the error ends it
        gateway.start()
    try:
        assert eventually(lambda: "cache.size_limit is 'much'" in gateway.log)
    finally:
        gateway.kill()
    assert manager.listen() == []


def test_a_process_that_hangs_gives_no_sign_of_life(gateway: Gateway, manager: Manager) -> None:
    assert eventually(manager.listen) == ["READY=1"]
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        assert eventually(lambda: _status(gateway, "State") == "T", every=0.02)
        manager.listen()
        before = manager.signs
        time.sleep(1)
        manager.listen()
        assert manager.signs == before
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    assert eventually(lambda: manager.listen() and manager.signs > before)


@pytest.fixture(params=[1, 2])
def confined(request: pytest.FixtureRequest, tmp_path: Path, make_site: MakeSite) -> Site:
    """A site whose gateway, from its first line on, has the system calls that the unit leaves it."""
    reason = None
    if shutil.which("systemd-analyze") is None:
        reason = "systemd-analyze is not installed"
    elif ctypes.util.find_library("seccomp") is None and not _loads():
        reason = f"{LIBRARY} is not installed"
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)
    environment = confined_environment(tmp_path / "confinement", UNIT)
    return make_site(environment=environment, workers=request.param)


def _loads() -> bool:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def test_restrictions_leave_the_gateway_all_that_it_needs(confined: Site) -> None:
    """TLS, patches, building of databases, reload and stop, without write-and-execute memory and so on."""
    confined.publish(2, advertised=6)
    http = confined.client("http", local=1)
    assert http.run().code == OK
    https = confined.client("https", Way.CONNECT_HTTPS)
    assert https.run().code == OK
    assert _status(confined.gateway, "Seccomp") == "2"
    reload(confined.gateway)
    assert confined.gateway.ask("/test.cvd").status == 200
    assert eventually(lambda: confined.gateway.stats()["requests"] > 0)
    assert confined.gateway.stats()["errors"] == 0
    assert confined.gateway.stop() == 0
    log = confined.gateway.log
    assert not re.search("traceback|not permitted|not supported|denied", log, re.IGNORECASE), log


def _status(gateway: Gateway, name: str) -> str:
    """What the kernel says of the process."""
    lines = Path(f"/proc/{gateway.pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def test_health_check_of_the_image(site: Site) -> None:
    """The very line of the Dockerfile, with the port of this gateway."""
    line = re.search(r'CMD \["python", "-c", "(.*)"\]', DOCKERFILE.read_text())
    assert line is not None
    code = line[1].replace(":8080/", f":{site.gateway.port}/")
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, timeout=60).returncode == 0
    site.gateway.kill()
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0
