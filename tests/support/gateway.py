"""Starts the proxy as its users do, and talks to it in each way that its clients do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Self

import yaml

from tests.support.data import TESTDATA, trust_testdata
from tests.support.prefork import CLAMPROXY, MITMDUMP, Forked
from tests.support.processes import children, is_at_rest

ROOT = Path(__file__).resolve().parents[2]
ADDON = "addons/clamav_cache.py"
FORGED_ADDON = "tests/support/forged_addon.py"
PATIENT_ADDON = "tests/support/patient_addon.py"
CDN = "database.clamav.net"
PIECE = 64 * 1024
START_LIMIT = 60.0
"""Seconds within which the proxy must serve."""
SET_UP = "HTTPS clients have to trust"
"""Part of the last line that it prints at its start; its ports open before it has read its settings."""
ALL_SET_UP = "workers are serving"
"""The same for several workers."""

END_LIMIT = 40
"""Seconds within which it must end after SIGTERM."""
TOOL_LIMIT = 60
"""Seconds for one run of the command line tool."""
LOG_PATIENCE = 0.025
"""Seconds without a new line, after which the log of a process at rest is complete: requests' lines wait
0.01 s for others."""
STATS_PATIENCE = 0.4
"""The same for the figures, which are written every 0.1 s."""
EXPRESS = "CLAMPROXY_SERVING__EXPRESS"
"""The environment variable that makes all tests run without the express lane, if it is ``false``."""

type Settings = dict[str, dict[str, Any]]
type Stream = IO[bytes] | int
"""A file, or a constant such as `subprocess.PIPE`."""


class Way(StrEnum):
    """The ways in (docs/protocol.md 1.4)."""

    CONNECT_HTTP = "connect80"
    CONNECT_HTTPS = "connect443"
    ABSOLUTE = "absolute"
    REVERSE = "reverse"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the proxy as a client saw it."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    complete: bool
    """Whether the body has the length that was announced."""

    @property
    def cache_status(self) -> str:
        """The Cache-Status header, "" if there is none."""
        return self.headers.get("cache-status", "")


class Gateway:
    """A proxy process with its settings and cache directory, which can be stopped and started."""

    def __init__(
        self,
        directory: Path,
        settings: Settings,
        *,
        script: str = ADDON,
        environment: dict[str, str] | None = None,
        modes: Sequence[str] = (),
        is_command: bool = False,
        workers: int = 1,
    ) -> None:
        """Nothing runs yet.

        Args:
            directory: for all its files.
            settings: of proxy.yaml; some are added where a test doesn't care.
            script: what mitmdump loads.
            environment: more variables; with PYTHONPATH among them the command is run.
            modes: more modes of mitmdump.
            is_command: run the installed command, not a fork (see prefork.py).
            workers: with more than one, `clamproxy run --workers` is run; then `pid` is the parent's.
        """
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.cache = directory / "cache"
        self.config = directory / "proxy.yaml"
        self.settings = {
            **settings,
            "cache": {"directory": str(self.cache), **settings.get("cache", {})},
            "tls": {"directory": str(directory / "ca"), **settings.get("tls", {})},
            # Its port would be the same for all that run side by side.
            "status": {"listen": None, **settings.get("status", {})},
        }
        self._environment = environment or {}
        is_forged = script not in (ADDON, PATIENT_ADDON) or "CLAMPROXY_TEST_KEYS" in self._environment
        if not is_forged and (TESTDATA / "clamav-test.crt").is_file():
            roots = str(trust_testdata(directory.with_name(f"{directory.name}-roots")))
            self.settings["upstream"] = {"cvd_certs_directory": roots, **settings.get("upstream", {})}
        self.config.write_text(yaml.safe_dump(self.settings))
        self.port = 0
        self.reverse_port = 0
        self._script = script
        self._modes = modes
        self._workers = workers
        self._is_command = is_command or workers > 1 or "PYTHONPATH" in self._environment
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._logged = 0
        """Characters of the log that earlier processes have written."""

    def beside(self, directory: Path) -> Gateway:
        """Another process with the same settings, cache and certificates; it doesn't run yet.

        Args:
            directory: for its log and its copy of the settings.
        """
        return Gateway(directory, self.settings, script=self._script, environment=self._environment)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # The process

    def start(self, *, at_same_ports: bool = False) -> None:
        """Start it and wait until it listens.

        Args:
            at_same_ports: for clients that know it already, as after a service manager's restart.

        Raises:
            RuntimeError: it ended, or does not listen in time; its log is in the message.
        """
        for _ in range(3):
            if not at_same_ports:
                self.port, self.reverse_port = free_ports(2)
            self._spawn()
            if self._listens():
                return
            self.kill()
            if "address already in use" not in self.log and "EADDRINUSE" not in self.log:
                break
        raise RuntimeError(f"the proxy does not listen:\n{self.log}")

    def stop(self) -> int:
        """End it by SIGTERM, as a service manager does; returns its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._process is not None:
            self._end(signal.SIGKILL)

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has printed. Lines about requests come slightly late, so it waits for the last one."""
        text, still = self._printed(), 0
        for _ in range(40):
            time.sleep(LOG_PATIENCE)
            before, text = text, self._printed()
            still = still + 1 if text == before else 0
            # Some are never at rest; those aren't waiting for their turn.
            if still == 10 or (still and self._is_at_rest()):
                break
        return text

    @property
    def ca(self) -> Path:
        """The certificate that HTTPS clients have to trust."""
        return self.directory / "conf" / "mitmproxy-ca-cert.pem"

    def stats(self) -> dict[str, Any]:
        """``clamproxy stats --json``. They are written a little late, so it waits until they rest."""
        figures = self._look_at_stats()
        for _ in range(20 if self._process is not None else 0):
            time.sleep(STATS_PATIENCE)
            before, figures = figures, self._look_at_stats()
            if figures == before and self._is_at_rest():
                break
        return figures

    def _printed(self) -> str:
        """What it has printed so far."""
        path = self.directory / "gateway.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _is_at_rest(self) -> bool:
        return self._process is None or is_at_rest(self._process.pid)

    def _look_at_stats(self) -> dict[str, Any]:
        result = self.tool("stats", "--json")
        assert result.returncode == 0, result.stderr
        figures: dict[str, Any] = json.loads(result.stdout)
        return figures

    def tool(self, *arguments: str, stdin: Stream = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        """Run the command line tool with the configuration of this proxy, as `tool` does."""
        return tool(*arguments, "--config", str(self.config), stdin=stdin, environment=self._environment)

    def start_tool(self, *arguments: str, stdin: Stream = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start the command line tool in the same way, for tests that kill it or feed it."""
        return start_tool(
            *arguments, "--config", str(self.config), stdin=stdin, environment=self._environment
        )

    def _spawn(self) -> None:
        self._logged = len(self._printed())
        arguments = ["--listen-host", "127.0.0.1"]
        arguments += ["--mode", f"regular@127.0.0.1:{self.port}"]
        for mode in (f"reverse:http://{CDN}@127.0.0.1:{self.reverse_port}", *self._modes):
            arguments += ["--mode", mode]
        arguments += ["--set", f"confdir={self.directory / 'conf'}"]
        environment = _clean_environment(self._environment)
        if not self._is_command:
            self._copy_authority()
        with (self.directory / "gateway.log").open("ab") as log, Path(os.devnull).open("rb") as nothing:
            if self._is_command:
                self._process = subprocess.Popen(
                    [*self._program(), *arguments],
                    cwd=ROOT,
                    env=environment,
                    stdin=nothing,
                    stdout=log,
                    stderr=log,
                )
            else:
                arguments += self._addon()
                self._process = Forked(
                    MITMDUMP, arguments, environment, stdin=nothing, stdout=log, stderr=log
                )

    def _addon(self) -> list[str]:
        return ["-s", self._script, "--set", f"clamproxy_config={self.config}"]

    def _program(self) -> list[str]:
        if self._workers == 1:
            return [str(Path(sys.executable).with_name("mitmdump")), *self._addon()]
        command = [sys.executable, "-m", "tests.support.command", self._script, "run"]
        return [*command, "--workers", str(self._workers), "--config", str(self.config)]

    def _listens(self) -> bool:
        assert self._process is not None
        # The first worker starts before the others.
        deadline = time.monotonic() + START_LIMIT * min(2, self._workers)
        while time.monotonic() < deadline and self._process.poll() is None:
            if (SET_UP if self._workers == 1 else ALL_SET_UP) in self._printed()[self._logged :]:
                self._keep_authority()
                return connectable(self.port) and connectable(self.reverse_port)
            time.sleep(0.05)
        return False

    def _copy_authority(self) -> None:
        """Spare the process the making of a key, which costs as much as the rest of its start."""
        directory = self.directory / "conf"
        if not directory.exists():
            directory.mkdir()
            for name, content in _authority.items():
                (directory / name).write_bytes(content)

    def _keep_authority(self) -> None:
        if not _authority and not self._is_command:
            _authority.update({path.name: path.read_bytes() for path in self.ca.parent.iterdir()})

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        workers = children(process.pid) if number is signal.SIGKILL and self._workers > 1 else []
        process.send_signal(number)
        for pid in workers:  # they would take a while to end by themselves
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        try:
            return process.wait(END_LIMIT)
        finally:
            process.kill()
            process.wait(10)

    # Its clients

    def ask(
        self,
        path: str,
        way: Way = Way.CONNECT_HTTP,
        *,
        method: str = "GET",
        host: str = CDN,
        timeout: float = 30,
        source: str | None = None,
        extra: Mapping[str, str] | None = None,
        **headers: str,
    ) -> Answer:
        """One request on a connection of its own, as freshclam does it.

        Args:
            path: the path with its query string.
            way: how the proxy is reached.
            method: the HTTP method.
            host: the host (and port) that is asked for.
            timeout: seconds without a byte that are borne.
            source: the client's address.
            extra: more headers, named as `headers` are.
            headers: more headers, ``if_range="…"`` for If-Range.
        """
        with self.connection(way, host=host, timeout=timeout, source=source) as connection:
            send(connection, path, way, method=method, host=host, **{**headers, **(extra or {})})
            return receive(connection)

    @contextmanager
    def connection(
        self,
        way: Way = Way.CONNECT_HTTP,
        *,
        host: str = CDN,
        timeout: float = 30,
        buffer: int | None = None,
        source: str | None = None,
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection to the proxy, through its tunnel where the way has one; nothing is asked yet.

        Args:
            way: how the proxy is reached.
            host: the host (and port) of the tunnel.
            timeout: seconds without a byte that are borne.
            buffer: size of the receive buffer of the socket in bytes, for readers that are slow.
            source: the client's address.
        """
        port = self.reverse_port if way is Way.REVERSE else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        stream = socket.socket()
        try:
            if buffer is not None:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            stream.settimeout(timeout)
            if source is not None:
                stream.bind((source, 0))
            stream.connect(("127.0.0.1", port))
            if way in (Way.CONNECT_HTTP, Way.CONNECT_HTTPS):
                tunnel(stream, _with_port(host, 443 if way is Way.CONNECT_HTTPS else 80))
            if way is Way.CONNECT_HTTPS:
                stream = self._tls_context().wrap_socket(stream, server_hostname=host.partition(":")[0])
            connection.sock = stream
            yield connection
        finally:
            connection.close()
            stream.close()

    def _tls_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.set_alpn_protocols(["http/1.1"])
        return context


def tool(
    *arguments: str, stdin: Stream = subprocess.DEVNULL, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``clamproxy``, which may fail, but not with a traceback, and must not show progress bars.

    Args:
        arguments: the command and its arguments.
        stdin: a file or a pipe to read from.
        environment: more variables.
    """
    with contextlib.ExitStack() as files:
        output, errors = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        source = files.enter_context(Path(os.devnull).open("rb")) if stdin == subprocess.DEVNULL else stdin
        process = Forked(
            CLAMPROXY, arguments, _clean_environment(environment), stdin=source, stdout=output, stderr=errors
        )
        try:
            code = process.wait(TOOL_LIMIT)
        finally:
            process.kill()
        # Decoded as it is: line ends that are no newlines would be signs of a progress bar.
        stdout, stderr = (_written(file).decode(errors="replace") for file in (output, errors))
    assert "Traceback" not in stderr, stderr
    assert not {"\r", "\x1b"} & set(stderr), repr(stderr)
    return subprocess.CompletedProcess(["clamproxy", *arguments], code, stdout, stderr)


def _written(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def start_tool(
    *arguments: str, stdin: Stream = subprocess.DEVNULL, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``clamproxy``; what it prints goes into pipes."""
    installed = Path(sys.executable).with_name("clamproxy")
    program = [str(installed)] if installed.exists() else [sys.executable, "-m", "clamproxy.cli"]
    return subprocess.Popen(
        [*program, *arguments],
        cwd=ROOT,
        env=_clean_environment(environment),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without the settings of the user who runs the tests, except `EXPRESS`."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    kept = {
        name: value for name, value in kept.items() if not name.startswith("CLAMPROXY_") or name == EXPRESS
    }
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | dict(more or {})


class TunnelRefused(Exception):
    """CONNECT was not answered with 200."""

    def __init__(self, status: int) -> None:
        super().__init__(f"CONNECT was answered with {status}")
        self.status = status


def tunnel(stream: socket.socket, target: str) -> None:
    """CONNECT, byte for byte as freshclam sends it (docs/protocol.md 9.1, A4).

    Raises:
        TunnelRefused: the answer is not 200; its status is 0 when the connection was closed.
    """
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {USER_AGENT}\r\n"
    stream.sendall(f"{request}Proxy-Connection: Keep-Alive\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        piece = stream.recv(1)
        if not piece:
            break
        answer += piece
    status = int(answer.split()[1]) if answer else 0
    if status != 200:
        raise TunnelRefused(status)


USER_AGENT = "ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64, UUID: 0738ec71-8d58-4bdf-8241-6ad688adc4fd)"


def send(
    connection: http.client.HTTPConnection,
    path: str,
    way: Way = Way.CONNECT_HTTP,
    /,
    *,
    method: str = "GET",
    host: str = CDN,
    **headers: str,
) -> None:
    """Send a request with freshclam's headers on a connection from `Gateway.connection`."""
    target = f"http://{host}{path}" if way is Way.ABSOLUTE else path
    own = "127.0.0.1" if way is Way.REVERSE else host
    fields = {"Host": own, "User-Agent": USER_AGENT, "Accept": "*/*", "Connection": "close"}
    if way is Way.ABSOLUTE:
        fields["Proxy-Connection"] = "Keep-Alive"
    fields |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in fields.items():
        connection.putheader(name, value)
    connection.endheaders()


def receive(connection: http.client.HTTPConnection) -> Answer:
    """Read an answer to its end, complete or not."""
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, *read_body(response))


def read_body(response: http.client.HTTPResponse) -> tuple[bytes, bool]:
    """The bytes of a body that arrive, and whether they are all that were announced."""
    pieces = []
    announced = response.length
    try:
        while piece := response.read1(PIECE):
            pieces.append(piece)
    except (http.client.IncompleteRead, ConnectionError, ssl.SSLError):
        return b"".join(pieces), False
    finally:
        response.close()
    body = b"".join(pieces)
    return body, announced is None or len(body) == announced


def _with_port(host: str, port: int) -> str:
    return host if ":" in host else f"{host}:{port}"


def connectable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, and that neither the kernel nor another thread uses in the meantime."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.choice(_PORTS)
        with _ports_lock, socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _ports_given:
                probe.bind(("127.0.0.1", port))
                _ports_given.add(port)
                chosen.append(port)
    return chosen


def held_port() -> socket.socket:
    """A socket that keeps a port for a server of this process, which may go and come back.

    The server binds to it as well, with SO_REUSEADDR. While it is away, connections are refused.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def _own_ports() -> range:
    """Below the kernel's range for outgoing connections; others for each test process that runs now."""
    blocks = [range(first, first + _BLOCK) for first in range(10_500, 31_500, _BLOCK)]
    for block in blocks:
        with contextlib.suppress(OSError):
            # An abstract name is taken until the process ends.
            _claim.bind(f"\0clamproxy tests {block.start}")
            return block
    return random.choice(blocks)


_authority: dict[str, bytes] = {}
"""The files of the certificate authority that mitmproxy made at the first start."""

_BLOCK = 1_500
"""More ports than a test process uses."""
_claim = socket.socket(socket.AF_UNIX)
_PORTS = _own_ports()
_ports_lock = threading.Lock()
_ports_given: set[int] = set()
