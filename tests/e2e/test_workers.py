"""`clamproxy run --workers`: several processes that look like one to clients, commands and systemd."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from dns import message
from dns.query import tcp, udp

from tests.support import faults
from tests.support.big import Forgery, begun_download
from tests.support.dns_server import FakeDns
from tests.support.freshclam import OK
from tests.support.gateway import (
    ALL_SET_UP,
    SET_UP,
    START_LIMIT,
    Gateway,
    Settings,
    TunnelRefused,
    Way,
    _clean_environment,
    connectable,
    free_ports,
)
from tests.support.origin import OriginServer
from tests.support.processes import children
from tests.support.scenes import ROOMY
from tests.support.service_manager import Manager
from tests.support.site import LOCALHOST, Site, eventually, publish, settings_for, signed

from .conftest import MakeForged, MakeSite
from .test_reload import READ, REFUSED, UNCHANGED, hang_up, write

WORKERS = 2
WHOLE = re.compile(
    r"\d{4}-\d\d-\d\dT\S+ (info|warning) 127\.0\.0\.1 GET /x{60}\d+ [^/]+ ClamAV/\S+( \(.*\))?"
)
REPLACED = "another one starts"


class OwnPorts(Gateway):
    """A gateway that listens where its configuration says."""

    arguments: tuple[str, ...] = ()
    """More of them."""

    def _program(self) -> list[str]:
        command = [sys.executable, "-m", "clamproxy.cli", "run", "--workers", str(self._workers)]
        return [*command, "--config", str(self.config), *self.arguments]

    def _spawn(self) -> None:
        environment = {**_clean_environment(self._environment), "HOME": str(self.directory)}
        with (self.directory / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._program(), cwd=self.directory, env=environment, stdout=log, stderr=log
            )

    def _listens(self) -> bool:
        process = self._process
        assert process is not None
        done = ALL_SET_UP if self._workers > 1 else SET_UP
        eventually(lambda: done in self.log or process.poll() is not None, limit=2 * START_LIMIT)
        return done in self.log


@contextmanager
def running(directory: Path, settings: Settings, *arguments: str, count: int = WORKERS) -> Iterator[Gateway]:
    """A gateway that listens where its configuration and its arguments say."""
    gateway = OwnPorts(directory, settings, workers=count)
    gateway.arguments = arguments
    gateway.start()
    if not arguments:
        gateway.port = int(settings["listen"]["proxy"].rpartition(":")[2])
    try:
        yield gateway
    finally:
        gateway.kill()


@pytest.fixture
def pair(make_site: MakeSite) -> Site:
    """A site whose gateway has two workers."""
    return make_site(workers=WORKERS)


def workers_of(gateway: Gateway) -> list[int]:
    """The pids of the workers, oldest first."""
    return children(gateway.pid)


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def asked_of_each(gateway: Gateway, path: str = "/test.cvd") -> Counter[bytes]:
    """Ask while one worker after the other is stopped, so that each of the others has answered."""
    bodies = Counter[bytes]()
    for pid in workers_of(gateway):
        os.kill(pid, signal.SIGSTOP)
        try:
            bodies[gateway.ask(path).body] += 1
        finally:
            os.kill(pid, signal.SIGCONT)
    return bodies


# Life


def test_all_workers_serve(pair: Site) -> None:
    pair.publish(2)
    assert pair.client(local=1).run().code == OK
    assert asked_of_each(pair.gateway) == {signed("test-2.cvd"): WORKERS}
    assert asked_of_each(pair.gateway, "/status.json").total() == WORKERS
    with pair.gateway.connection(Way.REVERSE) as connection:
        connection.request("GET", "/test.cvd", headers={"Host": "database.clamav.net"})
        assert connection.getresponse().status == 200
    assert pair.gateway.stop() == 0


def test_the_log_says_once_what_all_workers_do(pair: Site) -> None:
    for once in (
        "Configuration: ",
        "proxy listening at",
        "HTTPS clients have to trust",
        "2 workers are serving",
    ):
        assert pair.gateway.log.count(once) == 1, once


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(pair: Site, number: signal.Signals) -> None:
    workers = workers_of(pair.gateway)
    assert len(workers) == WORKERS
    process = pair.gateway._process
    assert process is not None
    os.kill(pair.gateway.pid, number)
    assert process.wait(40) == 0
    assert not any(map(is_alive, workers))
    assert "raceback" not in pair.gateway.log


def test_a_worker_that_is_killed_is_replaced(pair: Site) -> None:
    pair.publish(2)
    assert pair.gateway.ask("/test.cvd").status == 200
    before = workers_of(pair.gateway)
    failures = 0
    os.kill(before[0], signal.SIGKILL)
    for _ in range(50):
        try:
            assert pair.gateway.ask("/test.cvd").status == 200
        except (OSError, HTTPException):
            failures += 1
    assert failures <= 1
    assert eventually(lambda: len(set(workers_of(pair.gateway)) - set(before)) == 1)
    assert REPLACED in pair.gateway.log
    assert before[1] in workers_of(pair.gateway)
    # The other one is killed as well, so it is the new one that answers.
    assert eventually(lambda: _serves_without(pair.gateway, before[1]))


def _serves_without(gateway: Gateway, pid: int) -> bool:
    os.kill(pid, signal.SIGSTOP)
    try:
        return gateway.ask("/test.cvd", timeout=2).status == 200
    except OSError:
        return False
    finally:
        os.kill(pid, signal.SIGCONT)


def test_all_workers_killed_at_once(pair: Site) -> None:
    """Connections wait in the queue until a new one is there."""
    pair.publish(2)
    assert pair.gateway.ask("/test.cvd").status == 200
    for pid in workers_of(pair.gateway):
        os.kill(pid, signal.SIGKILL)
    assert pair.gateway.ask("/test.cvd").status == 200
    assert pair.gateway.stop() == 0


def test_workers_are_replaced_when_nobody_reads_the_log(
    tmp_path: Path, origin: OriginServer, dns: FakeDns
) -> None:
    """With no worker left that could write it, the parent writes to a pipe that is closed."""
    (port,) = free_ports(1)
    gateway = OwnPorts(
        tmp_path, settings_for(origin, dns, listen={"proxy": f"127.0.0.1:{port}"}), workers=WORKERS
    )
    gateway.port = port
    environment = {**_clean_environment(), "HOME": str(tmp_path)}
    with subprocess.Popen(
        gateway._program(),
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any(ALL_SET_UP in line for line in process.stdout)
            process.stdout.close()
            for _ in range(2):
                for pid in children(process.pid):
                    os.kill(pid, signal.SIGKILL)
                with urlopen(f"http://127.0.0.1:{port}/status.json", timeout=START_LIMIT) as answer:
                    assert answer.status == 200
            process.terminate()
            assert process.wait(40) == 0
        finally:
            for pid in (*children(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_no_worker_outlives_the_parent(pair: Site) -> None:
    workers = workers_of(pair.gateway)
    process = pair.gateway._process
    assert process is not None
    os.kill(pair.gateway.pid, signal.SIGKILL)
    process.wait(40)
    assert eventually(lambda: not any(map(is_alive, workers)))
    assert not connectable(pair.gateway.port)
    pair.gateway.start()  # on the same cache
    assert len(workers_of(pair.gateway)) == WORKERS


# Ports


def test_names_are_answered_by_all(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    """DNS over UDP and TCP at one port, whichever worker answers."""
    (port,) = free_ports(1)
    settings = settings_for(origin, dns, listen={"dns": f"127.0.0.1:{port}"})
    dns.versions["test"] = 2
    with running(tmp_path, settings, "-p", "0") as gateway:
        query = message.make_query("current.cvd.clamav.net", "TXT")
        for pid in workers_of(gateway):
            os.kill(pid, signal.SIGSTOP)
            try:
                for ask in (udp, tcp):
                    assert ask(query, "127.0.0.1", port=port, timeout=20).rcode() == 0
            finally:
                os.kill(pid, signal.SIGCONT)


def test_all_announce_what_one_has_fetched(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    """One worker follows the releases, and machines may get their answers from another."""
    port, proxy = free_ports(2)
    listen = {"dns": f"127.0.0.1:{port}", "proxy": f"127.0.0.1:{proxy}"}
    settings = settings_for(origin, dns, listen=listen, delta=ROOMY)

    query = message.make_query("test.cvd.clamav.net", "TXT")

    def announced(gateway: Gateway) -> list[str]:
        """What each worker tells: the others are stopped meanwhile."""
        texts = []
        for pid in workers_of(gateway):
            os.kill(pid, signal.SIGSTOP)
            try:
                answer = udp(query, "127.0.0.1", port=port, timeout=20)
            finally:
                os.kill(pid, signal.SIGCONT)
            texts.append(answer.answer[0][0].strings[0].decode().partition(":")[0] if answer.answer else "")
        return texts

    with running(tmp_path, settings) as gateway:
        for version in (4, 5):
            publish(origin, version)
            dns.versions["test"] = version
            if version == 4:
                assert gateway.ask("/test.cvd", Way.CONNECT_HTTP).status == 200
            told = eventually(lambda wanted=str(version): announced(gateway) == [wanted] * WORKERS)  # type: ignore[misc]
            assert told, (announced(gateway), gateway.log)


def test_any_free_port(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    """All workers get the same one."""
    settings = settings_for(origin, dns, listen={"proxy": "127.0.0.1:8080"})
    with running(tmp_path, settings, "-p", "0") as gateway:
        (port,) = set(re.findall(r"proxy listening at 127.0.0.1:(\d+)", gateway.log))
        for pid in workers_of(gateway):
            os.kill(pid, signal.SIGSTOP)
            try:
                with urlopen(f"http://127.0.0.1:{port}/status.json", timeout=20) as answer:
                    assert answer.status == 200
            finally:
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("others_workers", [1, 2])
def test_a_port_that_another_gateway_has(
    tmp_path: Path, origin: OriginServer, dns: FakeDns, others_workers: int
) -> None:
    (port,) = free_ports(1)
    settings = settings_for(origin, dns, listen={"proxy": f"127.0.0.1:{port}"})
    with running(tmp_path / "other", settings, count=others_workers):
        gateway = OwnPorts(tmp_path / "one", settings, workers=WORKERS)
        result = subprocess.run(gateway._program(), capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"clamproxy: 127.0.0.1:{port}: address already in use")


def test_a_start_that_fails_says_so_once(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    settings = settings_for(origin, dns, serving={"users": str(tmp_path / "missing")})
    gateway = OwnPorts(tmp_path / "one", settings, workers=WORKERS)
    with pytest.raises(RuntimeError):
        gateway.start()
    assert len(gateway.log.splitlines()) == 1, gateway.log


def test_a_start_in_which_a_worker_is_killed(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    """As by a system without memory. A service manager tries again."""
    (port,) = free_ports(1)
    gateway = OwnPorts(
        tmp_path, settings_for(origin, dns, listen={"proxy": f"127.0.0.1:{port}"}), workers=WORKERS
    )
    gateway._spawn()
    try:
        process = gateway._process
        assert process is not None
        (first,) = eventually(lambda: workers_of(gateway), every=0.02)
        os.kill(first, signal.SIGKILL)
        assert process.wait(40) == 1
        assert gateway.log == "clamproxy: Worker 1 has ended (SIGKILL) during the start.\n"
    finally:
        gateway.kill()


def test_another_port_after_a_reload(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    first, second = free_ports(2)
    settings = settings_for(origin, dns, listen={"proxy": f"127.0.0.1:{first}"})
    with running(tmp_path, settings) as gateway:
        write(gateway, listen={"proxy": f"127.0.0.1:{second}"})
        assert gateway.tool("reload").returncode == 0
        assert eventually(lambda: not connectable(first))
        gateway.port = second
        assert asked_of_each(gateway, "/status.json").total() == WORKERS
        write(gateway, listen={"proxy": f"127.0.0.1:{first}"})
        assert gateway.tool("reload").returncode == 0
        gateway.port = first
        assert asked_of_each(gateway, "/status.json").total() == WORKERS
        assert eventually(lambda: not connectable(second))


def test_a_port_that_a_refused_reload_has_tried(tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
    """It is free afterwards."""
    first, free, taken = free_ports(3)
    settings = settings_for(origin, dns, listen={"proxy": f"127.0.0.1:{first}"})
    with running(tmp_path, settings) as gateway, socket.create_server((LOCALHOST, taken)):
        write(gateway, listen={"proxy": [f"127.0.0.1:{port}" for port in (free, taken)]})
        result = gateway.tool("reload")
        assert (result.returncode, result.stdout) == (1, "")
        assert f"127.0.0.1:{taken}: address already in use" in result.stderr
        assert not connectable(free)
        assert from_each(gateway)


# Reload


@pytest.mark.parametrize("is_signal", [True, False])
def test_all_workers_take_a_new_configuration(pair: Site, is_signal: bool) -> None:
    pair.publish(2)
    write(pair.gateway, serving={"databases": ["daily"]})
    if is_signal:
        hang_up(pair.gateway)
        assert eventually(lambda: READ in pair.gateway.log)
    else:
        result = pair.gateway.tool("reload")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.count("Process") == 1
        assert f"Process {pair.gateway.pid}: the configuration was reloaded." in result.stdout
    assert eventually(lambda: asked_of_each(pair.gateway)[signed("test-2.cvd")] == 0)
    assert pair.gateway.log.count(READ) == 1


def test_a_wrong_configuration_changes_nothing(pair: Site) -> None:
    pair.publish(2)
    pair.gateway.config.write_text("log: {format: xml}\n")
    result = pair.gateway.tool("reload")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"clamproxy: process {pair.gateway.pid}: the configuration stays as it was: ")
    assert asked_of_each(pair.gateway) == {signed("test-2.cvd"): WORKERS}
    assert pair.gateway.log.count(REFUSED) == 1


def test_a_change_of_thousands_of_names(pair: Site) -> None:
    """What a worker tells the parent of it fits into a message."""
    write(pair.gateway, serving={"pass_through": [f"{'a' * 50}{number}.test" for number in range(5000)]})
    result = pair.gateway.tool("reload")
    assert (result.returncode, result.stderr) == (0, "")
    assert "serving.pass_through: [] → [" in result.stdout
    assert "has not changed" in pair.gateway.tool("reload").stdout


def test_a_new_worker_that_cannot_start_is_tried_again(pair: Site) -> None:
    """The other one goes on with the configuration that it has."""
    pair.publish(2)
    good = pair.gateway.config.read_text()
    pair.gateway.config.write_text("log: {format: xml}\n")
    dead, other = workers_of(pair.gateway)
    os.kill(dead, signal.SIGKILL)
    assert eventually(lambda: "another try follows" in pair.gateway.log)
    assert pair.gateway.ask("/test.cvd").status == 200
    pair.gateway.config.write_text(good)
    assert eventually(lambda: _serves_without(pair.gateway, other))
    assert UNCHANGED not in pair.gateway.log


# The service manager


@pytest.fixture
def service(tmp_path: Path, origin: OriginServer, dns: FakeDns, manager: Manager) -> Iterator[Gateway]:
    """One that systemd has started."""
    environment = {**manager.environment, "WATCHDOG_USEC": "4000000"}
    settings = settings_for(origin, dns)
    with Gateway(tmp_path / "site", settings, environment=environment, workers=WORKERS) as gateway:
        yield gateway


def test_systemd_hears_one_voice(service: Gateway, manager: Manager) -> None:
    assert eventually(manager.listen) == ["READY=1"]
    assert eventually(lambda: manager.listen() and manager.signs > 1)
    write(service, log={"format": "json"})
    assert service.tool("reload").returncode == 0
    assert eventually(lambda: manager.listen()[2:]) == ["READY=1"]
    assert manager.states[1] == "RELOADING=1"
    assert service.stop() == 0
    assert eventually(lambda: manager.listen()[3:]) == ["STOPPING=1"]


def test_a_worker_that_hangs_is_replaced(service: Gateway, manager: Manager) -> None:
    before = workers_of(service)
    os.kill(before[0], signal.SIGSTOP)
    assert eventually(lambda: "hangs, and is killed" in service.log)
    assert eventually(lambda: not is_alive(before[0]))
    assert eventually(lambda: len(set(workers_of(service)) - set(before)) == 1)
    assert manager.listen() == ["READY=1"]


# One voice


def from_each(gateway: Gateway, path: str = "/status.json") -> list[dict[str, Any]]:
    """A page as each worker gives it, while the other one is stopped."""
    pages = []
    for pid in workers_of(gateway):
        os.kill(pid, signal.SIGSTOP)
        try:
            with urlopen(f"http://127.0.0.1:{gateway.port}{path}", timeout=30) as answer:
                pages.append(json.load(answer))
        finally:
            os.kill(pid, signal.SIGCONT)
    return pages


def test_every_worker_tells_the_same_of_the_gateway(pair: Site) -> None:
    pair.publish(2)
    for _ in range(6):
        assert pair.gateway.ask("/test.cvd").status == 200
    assert pair.gateway.stats()["requests"] == 6
    (about, same) = (page["gateway"] for page in from_each(pair.gateway))
    assert about["processes"] == same["processes"] == [pair.gateway.pid, *workers_of(pair.gateway)]
    assert about["started_at"] == same["started_at"]
    assert {page["stats"]["requests"] for page in from_each(pair.gateway)} == {6}
    os.kill(workers_of(pair.gateway)[0], signal.SIGKILL)
    assert eventually(
        lambda: (
            from_each(pair.gateway)[0]["gateway"]["processes"]
            == [pair.gateway.pid, *workers_of(pair.gateway)]
        )
    )
    assert from_each(pair.gateway)[0]["gateway"]["started_at"] == about["started_at"]


def test_every_worker_tells_of_a_transfer(make_forged: MakeForged, forgery: Forgery) -> None:
    big = make_forged(workers=WORKERS)
    big.origin.rule("W", faults.stall(4_000_000), times=1)
    with begun_download(big.gateway) as client:
        assert eventually(lambda: _tell_of(big.gateway) == {WORKERS})
        big.origin.heal()
        assert client.read() == (forgery.body, True)
    assert eventually(lambda: _tell_of(big.gateway) == {0})


def _tell_of(gateway: Gateway) -> set[int]:
    """How many of the workers know of a transfer, for one that they all know; 0 if none does."""
    pages = [page["transfers"] for page in from_each(gateway)]
    names = {one["name"] for page in pages for one in page}
    return {sum(name in (one["name"] for one in page) for page in pages) for name in names} or {0}


def test_process_metrics_are_sums(pair: Site) -> None:
    with urlopen(f"http://127.0.0.1:{pair.gateway.port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    resident = float(re.findall(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)[0])
    largest = max(_resident(pid) for pid in workers_of(pair.gateway))
    assert resident > 1.5 * largest


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Limits


def test_connections_are_counted_together(make_site: MakeSite) -> None:
    """A client above its limit is refused by whichever worker gets it."""
    site = make_site(workers=WORKERS, access={"max_connections_per_client": 6})
    with ExitStack() as opened:
        for _ in range(6):
            opened.enter_context(site.gateway.connection(Way.CONNECT_HTTP))
        for _ in range(4):
            with pytest.raises((OSError, TunnelRefused)), site.gateway.connection(Way.CONNECT_HTTP):
                pass
    assert eventually(lambda: _can_connect(site.gateway))


def test_a_full_gateway_lets_waiting_clients_in(make_site: MakeSite) -> None:
    site = make_site(workers=WORKERS, access={"max_connections": 5})
    site.publish(2)
    with ExitStack() as opened:
        for _ in range(5):
            opened.enter_context(site.gateway.connection(Way.CONNECT_HTTP))
        with pytest.raises(TimeoutError), site.gateway.connection(Way.CONNECT_HTTP, timeout=2):
            pass
    for _ in range(10):
        assert site.gateway.ask("/test.cvd").status == 200
    # What a worker had that has died no longer counts.
    with ExitStack() as opened:
        for _ in range(5):
            opened.enter_context(site.gateway.connection(Way.CONNECT_HTTP))
        for pid in workers_of(site.gateway):
            os.kill(pid, signal.SIGKILL)
        assert site.gateway.ask("/test.cvd").status == 200


def _can_connect(gateway: Gateway) -> bool:
    try:
        with gateway.connection(Way.CONNECT_HTTP):
            return True
    except (OSError, TunnelRefused):
        return False


# The parent proxy


class _Refusal(BaseHTTPRequestHandler):
    """A proxy that accepts no password."""

    def do_GET(self) -> None:
        self.server.tried.append(self.headers["Proxy-Authorization"])  # type: ignore[attr-defined]
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def test_a_wrong_password_is_tried_once(make_site: MakeSite) -> None:
    """However many workers there are; a few more tries may lock the account."""
    with ThreadingHTTPServer((LOCALHOST, 0), _Refusal) as proxy:
        tried: list[str | None] = []
        proxy.tried = tried  # type: ignore[attr-defined]
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://name:wrong@{LOCALHOST}:{proxy.server_address[1]}"
        site = make_site(workers=WORKERS, upstream={"proxy": url})
        site.publish(2)
        asked_of_each(site.gateway)
        assert len(tried) == 1
        dead, other = workers_of(site.gateway)
        os.kill(dead, signal.SIGKILL)
        assert eventually(lambda: _serves_page_without(site.gateway, other))
        asked_of_each(site.gateway)
        assert len(tried) == 1
        write(site.gateway, log={"format": "json"})  # the password may have been corrected at the proxy
        assert site.gateway.tool("reload").returncode == 0
        asked_of_each(site.gateway)
        assert len(tried) == 2
        proxy.shutdown()


def _serves_page_without(gateway: Gateway, pid: int) -> bool:
    os.kill(pid, signal.SIGSTOP)
    try:
        with urlopen(f"http://{LOCALHOST}:{gateway.port}/livez", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
    finally:
        os.kill(pid, signal.SIGCONT)


# The log


def test_lines_of_workers_are_whole(pair: Site) -> None:
    pair.publish(2)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: pair.gateway.ask(f"/{'x' * 60}{number}"), range(400)))
    assert len(answers) == 400
    lines = [line for line in pair.gateway.log.splitlines() if "xxx" in line]
    assert len(lines) == 400
    assert [line for line in lines if not WHOLE.fullmatch(line)] == []
