"""Where the gateway listens, how it starts, and which mistakes stop the start with a line."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from dns import message

from tests.support.gateway import (
    ADDON,
    END_LIMIT,
    ROOT,
    SET_UP,
    START_LIMIT,
    connectable,
    free_ports,
    tool,
)
from tests.support.site import eventually

CLAMPROXY = [sys.executable, "-m", "clamproxy.cli", "run"]
MITMDUMP = [str(Path(sys.executable).with_name("mitmdump")), "-s", str(ROOT / ADDON)]
both = pytest.mark.parametrize("program", [CLAMPROXY, MITMDUMP], ids=["clamproxy", "mitmdump"])
MITMPROXYS = ("Loading script", "Only processing", "exiting...")
"""What it says itself, before or after that."""
LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ error (.*)")

type Listen = dict[str, Any]


class Started:
    """The gateway as an administrator starts it: in its directory, which has a proxy.yaml."""

    def __init__(self, directory: Path, program: list[str], *arguments: str, **environment: str) -> None:
        self.directory = directory
        self._log = directory / "log"
        kept = {name: text for name, text in os.environ.items() if not name.startswith("CLAMPROXY_")}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, *arguments],
                cwd=directory,
                env=kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self) -> None:
        """Until all is set up."""
        eventually(lambda: SET_UP in self.log or self.process.poll() is not None, limit=START_LIMIT)
        assert SET_UP in self.log, self.log

    def refusal(self) -> str:
        """The one line with which the start ended."""
        assert self.process.wait(START_LIMIT) == 1, self.log
        assert "Traceback" not in self.log
        assert "listening at" not in self.log
        (line,) = [line for line in self.log.splitlines() if not any(own in line for own in MITMPROXYS)]
        match = LINE.fullmatch(line)
        return match[1] if match else line.removeprefix("clamproxy: ")

    def reload(self, expected: str, **sections: Any) -> str:
        """Change the configuration; gives what is logged of that."""
        before = len(self.log)
        configure(self.directory, **sections)
        self.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: expected in self.log[before:]), self.log
        return self.log[before:]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(END_LIMIT)
        finally:
            self.process.kill()


def configure(directory: Path, **sections: Any) -> None:
    """Nothing outside is ever asked."""
    content = {"upstream": {"offline": True}, "status": {"listen": None}, **sections}
    (directory / "proxy.yaml").write_text(yaml.safe_dump(content))


type Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the gateway with a section `listen`, or others; by default, at any free port."""
    started: list[Started] = []

    def make(program: list[str], *arguments: str, listen: Listen | None = None, **sections: Any) -> Started:
        environment = sections.pop("environment", {})
        configure(tmp_path, listen=listen or {"proxy": free_ports(1)[0]}, **sections)
        confdir = () if "HOME" in environment else ("--set", f"confdir={tmp_path / 'conf'}")
        started.append(Started(tmp_path, program, *confdir, *arguments, **environment))
        return started[-1]

    yield make
    for one in started:
        one.end()


def is_alive(port: int, host: str = "127.0.0.1") -> bool:
    """Whether the gateway answers there."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextmanager
def taken(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", port))
        if kind is socket.SOCK_STREAM:
            other.listen()
        yield


def printed_port(directory: Path) -> int:
    """What machines are told."""
    result = tool("client-config", "--gateway", "gw", "--config", str(directory / "proxy.yaml"))
    match = re.search(r"^HTTPProxyPort (\d+)$", result.stdout, re.MULTILINE)
    assert match is not None, result.stdout + result.stderr
    return int(match[1])


def is_printed(directory: Path, port: int) -> bool:
    return printed_port(directory) == port


# Where


@both
def test_as_configured(start: Start, tmp_path: Path, program: list[str]) -> None:
    """There, and nowhere else: mitmproxy's own default may be another's port."""
    port, reverse, dns = free_ports(3)
    proxy = [f"{host}:{port}" for host in ("127.0.0.1", "[::1]")[: 1 + has_ipv6()]]
    gateway = start(program, listen={"proxy": proxy, "reverse": reverse, "dns": f"127.0.0.1:{dns}"})
    gateway.wait()
    assert is_alive(port)
    assert is_alive(port, "::1") == has_ipv6()
    assert connectable(reverse)
    assert connectable(dns)
    places = re.findall(r"listening at (.*)\.", gateway.log)
    assert sorted(places) == sorted([*proxy, f"*:{reverse}", f"127.0.0.1:{dns}"])  # they open side by side
    assert printed_port(tmp_path) == port


def test_a_client_of_dns_that_has_asked_is_answered_and_let_go(start: Start) -> None:
    """mitmproxy would keep its connection until it has been idle for long."""
    port, proxy = free_ports(2)
    start(MITMDUMP, listen={"proxy": proxy, "dns": f"127.0.0.1:{port}"}).wait()
    query = message.make_query("current.cvd.clamav.net", "TXT").to_wire()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(len(query).to_bytes(2) + query)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as reader:
            answer = reader.read()
    assert int.from_bytes(answer[:2]) == len(answer) - 2
    assert message.from_wire(answer[2:]).id == int.from_bytes(query[:2])


@both
def test_the_command_line_wins(start: Start, tmp_path: Path, program: list[str]) -> None:
    """Over the proxy's port alone; commands know of it for as long as it holds."""
    configured, given, reverse = free_ports(3)
    gateway = start(program, "-p", str(given), listen={"proxy": configured, "reverse": reverse})
    gateway.wait()
    assert is_alive(given)
    assert connectable(reverse)
    assert not connectable(configured)
    assert eventually(lambda: printed_port(tmp_path) == given)
    log = gateway.reload("was reloaded", listen={"proxy": configured})
    assert "the command line still overrides it" in log
    assert is_alive(given)
    gateway.end()
    assert printed_port(tmp_path) == given
    again = start(program, listen={"proxy": configured})
    again.wait()
    assert eventually(lambda: printed_port(tmp_path) == configured)


def test_modes_of_the_command_line_are_all(start: Start) -> None:
    configured, given, reverse = free_ports(3)
    gateway = start(CLAMPROXY, "--mode", f"regular@{given}", listen={"proxy": configured, "reverse": reverse})
    gateway.wait()
    assert is_alive(given)
    assert not connectable(configured)
    assert not connectable(reverse)


def test_doctor_finds_its_gateway(start: Start, tmp_path: Path) -> None:
    configured, given = free_ports(2)
    for arguments, port in (((), configured), (("-p", str(given)), given)):
        gateway = start(CLAMPROXY, *arguments, listen={"proxy": configured})
        gateway.wait()
        assert eventually(partial(is_printed, tmp_path, port))
        result = tool("doctor", "--local", "--json", "--config", str(tmp_path / "proxy.yaml"))
        assert json.loads(result.stdout)["gateway"] == f"127.0.0.1:{port}"
        gateway.end()


# Reload


def test_a_reload_moves_the_listener(start: Start, tmp_path: Path) -> None:
    first, second, other = free_ports(3)
    gateway = start(CLAMPROXY, listen={"proxy": first})
    gateway.wait()
    gateway.reload(f"listening at *:{second}", listen={"proxy": second})
    assert eventually(lambda: is_alive(second))
    assert eventually(lambda: not connectable(first))
    assert printed_port(tmp_path) == second
    gateway.reload(f"listening at *:{other}", listen={"proxy": [second, other]})
    assert is_alive(second)
    assert is_alive(other)


def test_a_reload_to_a_place_that_is_taken_changes_nothing(start: Start) -> None:
    first, second = free_ports(2)
    gateway = start(CLAMPROXY, listen={"proxy": first})
    gateway.wait()
    with taken(second):
        log = gateway.reload("stays as it was", listen={"proxy": second})
    assert f"HTTP(S) proxy on *:{second}: address already in use" in log
    assert is_alive(first)
    log = gateway.reload("stays as it was", listen={"proxy": first}, status={"listen": f"127.0.0.1:{first}"})
    assert "expected another port" in log
    assert is_alive(first)


# Mistakes


@pytest.mark.parametrize(
    ("program", "key"), [(CLAMPROXY, "proxy"), (MITMDUMP, "proxy"), (MITMDUMP, "reverse"), (CLAMPROXY, "dns")]
)
def test_a_port_that_is_taken(start: Start, program: list[str], key: str) -> None:
    free, port = free_ports(2)
    kind = socket.SOCK_DGRAM if key == "dns" else socket.SOCK_STREAM
    with taken(port, kind):
        line = start(program, listen={"proxy": free} | {key: port}).refusal()
    assert f"*:{port}: address already in use" in line


def test_a_port_of_the_command_line_that_is_taken(start: Start) -> None:
    (port,) = free_ports(1)
    with taken(port):
        line = start(MITMDUMP, "-p", str(port)).refusal()
    assert line.startswith(f"HTTP(S) proxy on *:{port}: address already in use")


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        (
            MITMDUMP,
            ["my.yaml"],
            "unexpected argument 'my.yaml'; to name a configuration file, use --config FILE",
        ),
        (CLAMPROXY, ["-q", "my.yaml"], "unexpected argument 'my.yaml'"),
        (CLAMPROXY, ["my.yaml"], "did you mean --config my.yaml?"),
        (MITMDUMP, ["--set", "clamproxy_conf=my.yaml"], "did you mean clamproxy_config?"),
        (MITMDUMP, ["--set", "clamproxy_config=none.yaml"], "none.yaml: no such configuration file"),
        (
            MITMDUMP,
            ["--set", "clamproxy_config=."],
            ".: this is a directory, not a configuration file",
        ),
        (MITMDUMP, ["-p", "70000"], "expected a port up to 65535"),
    ],
)
def test_mistakes_on_the_command_line(
    start: Start, program: list[str], arguments: list[str], words: str
) -> None:
    (port,) = free_ports(1)
    assert words in start(program, *arguments, listen={"proxy": port}).refusal()


def test_a_variable_that_is_no_setting(start: Start) -> None:
    line = start(MITMDUMP, environment={"CLAMPROXY_CACHE_SIZE_LIMIT": "1GiB"}).refusal()
    assert "CLAMPROXY_CACHE_SIZE_LIMIT is not a setting" in line
    assert "did you mean CLAMPROXY_CACHE__SIZE_LIMIT?" in line


def test_values_that_cannot_work_together(start: Start, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    line = start(MITMDUMP, listen={"proxy": port}, upstream={"url": url}).refusal()
    assert line.startswith(f"{tmp_path / 'proxy.yaml'}: upstream.url is {url}; expected another address")


# Without a home


@both
@pytest.mark.parametrize("home", ["/dev/null", "/nonexistent"])
def test_a_user_without_a_home(start: Start, tmp_path: Path, program: list[str], home: str) -> None:
    """The rule for system users. mitmproxy wants to keep an authority there."""
    (port,) = free_ports(1)
    gateway = start(program, listen={"proxy": port}, environment={"HOME": home})
    gateway.wait()
    assert is_alive(port)
    assert "Traceback" not in gateway.log
    place = tmp_path / "ca" / "mitmproxy"
    assert f"have to trust {place / 'mitmproxy-ca-cert.pem'}" in gateway.log
    assert [path.stat().st_mode & 0o777 for path in (place.parent, place)] == [0o700, 0o700]
    assert not Path("/nonexistent").exists()
    gateway.end()
    certificate = (place / "mitmproxy-ca-cert.pem").read_bytes()
    again = start(program, listen={"proxy": port}, environment={"HOME": home})
    again.wait()
    assert (place / "mitmproxy-ca-cert.pem").read_bytes() == certificate


@both
def test_no_place_for_an_authority(start: Start, program: list[str]) -> None:
    places = {"cache": {"directory": "/dev/null/cache"}, "tls": {"directory": "/dev/null/ca"}}
    line = start(program, environment={"HOME": "/dev/null"}, **places).refusal()
    assert line.endswith("can be written to; set tls.directory, or use --set confdir=DIRECTORY")
