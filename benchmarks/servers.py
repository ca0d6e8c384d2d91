"""The contenders: nginx and clamproxy, each started with a configuration of its own, and stopped again."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme

from benchmarks.load import Target

PROJECT = Path(__file__).resolve().parent.parent
ADDON = PROJECT / "tests" / "support" / "forged_addon.py"
"""clamproxy, made to trust the test keys; which keys are trusted is decided in code alone."""
HOST = "database.clamav.net"
_START_LIMIT = 30.0
"""Seconds that a server may take to start, or to stop."""
_MIB = 1 << 20


class ServerError(Exception):
    """A server that didn't start."""


@dataclass(frozen=True, slots=True)
class File:
    """The file that is downloaded: where it is, its bytes and the hex digest of them."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        name: nginx or clamproxy.
        pid: its first process.
        plain: how it is asked in plain HTTP.
        tls: how it is asked through TLS.
    """

    name: str
    pid: int
    plain: Target
    tls: Target

    def reset_peak(self) -> None:
        """Start a new measurement of the peak memory (proc(5), clear_refs)."""
        for pid in self._processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """Peak resident memory since `reset_peak`, of all processes together, in MiB."""
        return sum(_peak_kib(pid) for pid in self._processes()) * 1024 / _MIB

    def _processes(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [self.pid, *map(int, children.split())]


def _peak_kib(pid: int) -> int:
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def nginx_program() -> str | None:
    """Where nginx is; it is often outside an ordinary user's PATH."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def nginx_version(program: str) -> str:
    """What nginx calls itself: ``nginx/1.22.1``."""
    shown = subprocess.run([program, "-v"], capture_output=True, text=True, check=True)
    return shown.stderr.strip().removeprefix("nginx version: ")


_NGINX_CONFIG = """\
daemon off;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/nginx.log;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush off;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    server {{
        listen 127.0.0.1:{plain};
        listen 127.0.0.1:{tls} ssl;
        ssl_certificate {work}/cert.pem;
        ssl_certificate_key {work}/cert.pem;
        ssl_protocols TLSv1.3;
        root {root};
    }}
}}
"""


@contextmanager
def nginx(program: str, file: File, work: Path) -> Iterator[Server]:
    """Run nginx with one worker and sendfile; its certificate is EC P-256.

    Args:
        program: the program.
        file: what it serves.
        work: an empty directory for what it needs.
    """
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(work / "ca.pem")
    authority.issue_cert(HOST, key_type=trustme.KeyType.ECDSA).private_key_and_cert_chain_pem.write_to_path(
        work / "cert.pem"
    )
    plain, tls = free_port(), free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    config = _NGINX_CONFIG.format(work=work, user=user, plain=plain, tls=tls, root=file.path.parent)
    (work / "nginx.conf").write_text(config)
    command = [program, "-p", str(work), "-c", str(work / "nginx.conf")]
    with _running(command, work / "nginx.out", dict(os.environ), lambda: _answers(plain, "/")) as pid:
        yield Server("nginx", pid, _target(file, plain), _target(file, tls, ca_file=work / "ca.pem"))


@contextmanager
def clamproxy(file: File, origin_url: str, keys: Path, work: Path) -> Iterator[Server]:
    """Run clamproxy with an empty cache, as the addon of this environment's mitmdump.

    Plain requests have the absolute-form that proxies are asked in; TLS ones go through CONNECT.

    Args:
        file: what the origin serves.
        origin_url: where misses are fetched.
        keys: directory of the keys that the file is signed with.
        work: an empty directory for cache, configuration and log.
    """
    port = free_port()
    (work / "proxy.yaml").write_text(
        f"cache: {{directory: {work}/cache}}\n"
        f"upstream: {{url: '{origin_url}'}}\n"
        "versions: {dns: false}\n"
        f"serving: {{databases: [{file.path.stem}]}}\n"
    )
    command = [
        *(str(Path(sys.executable).with_name("mitmdump")), "-s", str(ADDON)),
        *("--listen-host", "127.0.0.1", "-p", str(port)),
        *("--set", f"clamproxy_config={work}/proxy.yaml", "--set", f"confdir={work}/confdir"),
    ]
    # The settings of whoever runs this must not get into the run.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLAMPROXY_")}
    environment = {**inherited, "PYTHONPATH": str(PROJECT), "CLAMPROXY_TEST_KEYS": str(keys)}
    # A name that no database has is a 404 from the gateway itself: the origin isn't asked.
    probe = f"http://{HOST}/ready"
    with _running(command, work / "proxy.log", environment, lambda: _answers(port, probe)) as pid:
        plain = _target(file, port, proxied=True)
        tls = _target(file, port, proxied=True, ca_file=work / "confdir" / "mitmproxy-ca-cert.pem")
        yield Server("clamproxy", pid, plain, tls)


def _target(file: File, port: int, *, proxied: bool = False, ca_file: Path | None = None) -> Target:
    return Target(
        address=("127.0.0.1", port),
        host=HOST,
        path=f"/{file.path.name}",
        size=file.size,
        sha256=file.sha256,
        proxied=proxied,
        ca_file=None if ca_file is None else str(ca_file),
    )


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, url: str) -> bool:
    """Whether a server answers a request with anything but a failure of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", url, headers={"Host": HOST, "Connection": "close"})
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def _running(
    command: list[str], log: Path, environment: dict[str, str], ready: Callable[[], bool]
) -> Iterator[int]:
    """Run a command from the project's directory; yields its process id once it is ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=PROJECT
        )
    try:
        give_up = time.monotonic() + _START_LIMIT
        while not ready():
            if process.poll() is not None or time.monotonic() > give_up:
                raise ServerError(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_START_LIMIT)
        if process.poll() is None:
            process.kill()
            process.wait()
