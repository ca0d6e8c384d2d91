"""The wheel and the sdist as users install them: pinned, in a fresh environment, far from a checkout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.packaging.conftest import Packages
from tests.support.contrib import ROOT
from tests.support.dns_server import FakeDns
from tests.support.gateway import CDN, END_LIMIT, free_ports
from tests.support.origin import OriginServer
from tests.support.programs import give_up, require_program
from tests.support.site import eventually, publish, signed

INSTALL_LIMIT = 300
"""Seconds for all that is fetched."""
COMMAND_LIMIT = 120
"""Seconds; the first start in an environment compiles everything."""

pytestmark = pytest.mark.timeout(2 * INSTALL_LIMIT)


class Environment:
    """A virtual environment with what requirements.txt pins, and an empty directory to work in."""

    def __init__(self, directory: Path, interpreter: str) -> None:
        self.bin = directory / "venv" / "bin"
        self._home = directory / "home"
        self._home.mkdir()
        uv("venv", "--quiet", "--offline", "--python", interpreter, str(self.bin.parent))
        self.install("--require-hashes", "--only-binary", ":all:", "-r", str(ROOT / "requirements.txt"))

    def install(self, *arguments: str) -> None:
        uv("pip", "install", "--quiet", "--python", str(self.bin / "python"), *arguments)

    def command(self, *arguments: str) -> list[str]:
        return [str(self.bin / "clamproxy"), *arguments]

    def variables(self, **settings: str) -> dict[str, str]:
        """Nothing by which Python or clamproxy would find the checkout."""
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self._home), "LANG": "C.UTF-8", **settings}

    def run(self, directory: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=directory,
            env=self.variables(**settings),
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT,
        )


def uv(*arguments: str) -> None:
    command = [require_program("uv"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    if "Failed to fetch" in result.stderr:
        give_up(f"the package index can't be reached: {result.stderr.strip().splitlines()[-1]}")
    assert result.returncode == 0, result.stderr


def interpreter_of(version: str) -> str:
    """This Python, if it is that version, or one that pyenv or the system has."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for candidate in (*map(str, sorted(versions.glob(f"{version}.*/bin/python"))), f"python{version}"):
        try:
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True, timeout=COMMAND_LIMIT)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    give_up(f"there is no Python {version}")


@pytest.fixture(scope="module", params=["3.12", "3.13"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment"), interpreter_of(request.param))


@pytest.fixture
def dns() -> Iterator[FakeDns]:
    with FakeDns() as server:
        yield server


@contextmanager
def running(environment: Environment, directory: Path, port: int, **settings: str) -> Iterator[None]:
    """`clamproxy run`; ends it as a service manager would."""
    log = directory.with_name("gateway.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            environment.command("run", "--port", str(port)),
            cwd=directory,
            env=environment.variables(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        is_ready = eventually(lambda: "proxy listening at" in log.read_text(), limit=COMMAND_LIMIT)
        assert is_ready, log.read_text()
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_LIMIT) == 0, log.read_text()
    finally:
        process.kill()
        process.wait(END_LIMIT)
    assert "Traceback" not in log.read_text()


def misses(stats: subprocess.CompletedProcess[str]) -> int:
    assert stats.returncode == 0, stats.stderr
    return int(json.loads(stats.stdout)["misses"])


@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_three_commands_in_an_empty_directory(
    environment: Environment,
    form: str,
    packages: Packages,
    tmp_path: Path,
    origin: OriginServer,
    dns: FakeDns,
) -> None:
    package = getattr(packages, form)
    environment.install("--reinstall", "--no-deps", "--no-build-isolation", "--offline", str(package))
    directory = tmp_path / "empty"
    directory.mkdir()

    example = environment.run(directory, "config", "example")
    assert (example.returncode, example.stderr) == (0, "")
    (directory / "proxy.yaml").write_text(example.stdout)
    assert example.stdout == (ROOT / "proxy.yaml").read_text()

    publish(origin, 6)
    dns.versions["test"] = 6
    (port,) = free_ports(1)
    settings = {
        "CLAMPROXY_UPSTREAM__URL": origin.url,
        "CLAMPROXY_VERSIONS__NAMESERVERS": f"['{dns.nameserver}']",
        "CLAMPROXY_SERVING__DATABASES": "[test]",
        "CLAMPROXY_STATUS__LISTEN": "null",
    }
    with running(environment, directory, port, **settings):
        proxy = urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{port}"})
        opener = urllib.request.build_opener(proxy)
        with opener.open(f"http://{CDN}/test.cvd", timeout=COMMAND_LIMIT) as response:
            assert response.read() == signed("test-6.cvd")
        assert eventually(lambda: misses(environment.run(directory, "stats", "--json", **settings)) == 1)
        asked = ("--gateway", f"127.0.0.1:{port}", "--nameserver", dns.nameserver, "--database", "test")
        doctor = environment.run(directory, "doctor", *asked, **settings)
        assert doctor.returncode in {0, 1}, doctor.stdout + doctor.stderr
    assert {path.name for path in directory.iterdir()} == {"cache", "cache-state", "proxy.yaml"}


def test_man_pages_are_where_man_looks(environment: Environment, packages: Packages) -> None:
    environment.install("--reinstall", "--no-deps", "--offline", str(packages.wheel))
    command = [require_program("man"), "--where", "clamproxy", "clamproxy-proxy.yaml"]
    result = subprocess.run(command, env=environment.variables(), capture_output=True, text=True, timeout=60)
    assert [Path(line).name for line in result.stdout.split()] == ["clamproxy.1", "clamproxy-proxy.yaml.5"]
