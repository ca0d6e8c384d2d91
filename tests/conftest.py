"""What all tests have in common."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from clamproxy.cache.store import Store
from tests.support.data import keys_of_tests
from tests.support.fixtures import Child, Fill, MakeCvd, Write
from tests.support.forge import forge_cdiff, forge_cvd
from tests.support.object_store import ObjectStore, moto_server
from tests.support.origin import OriginServer
from tests.support.patience import be_patient
from tests.support.seaweedfs import seaweedfs
from tests.support.stored import SIGNATURE, cdiff, cvd, put, put_cvd, sign, stime_of

# How long an example takes says something of the machine only. HYPOTHESIS_PROFILE=deep looks for longer.
settings.register_profile("usual", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", settings.get_profile("usual"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))


def pytest_configure() -> None:
    """Start programs with the usual signals, also if nohup or a background job ignores them."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests in `torture` tried."""
    reports = [
        report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])
    ]
    tried = sorted(
        str(value) for report in reports for name, value in report.user_properties if name == "tried"
    )
    if tried:
        terminalreporter.section("what was tried")
        terminalreporter.write("".join(f"{line}\n" for line in tried))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Don't use bytes in the name of a test: they may be signed anew in each process."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    store = Store(tmp_path / "cache", keys=keys_of_tests())
    yield store
    store.close()


@pytest.fixture
def origin() -> Iterator[OriginServer]:
    """A fake CDN without files."""
    with OriginServer() as server:
        yield server


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    """The port of moto's S3, which all tests of this process share, each with a bucket of its own."""
    with moto_server() as port:
        yield port


@pytest.fixture(scope="session")
def seaweedfs_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The same of SeaweedFS."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as port:
        yield port


@pytest.fixture
def object_store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """An object store with an empty bucket, which can be made to fail; see `SERVERS`."""
    port = request.getfixturevalue(f"{getattr(request, 'param', 'moto')}_port")
    with ObjectStore(port, f"site-{secrets.token_hex(6)}") as store:
        yield store


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's gateway waits longer than in life; see `be_patient`."""
    be_patient(monkeypatch.setattr)


@pytest.fixture
def make_cvd(tmp_path: Path) -> MakeCvd:
    """Gives the bytes of forged CVDs: version, size, database."""

    def make(version: int, size: int = 0, database: str = "daily") -> bytes:
        path = tmp_path / f"forged-{database}-{version}.cvd"
        forge_cvd(path, database, version, size, stime_of(version))
        return path.read_bytes()

    return make


@pytest.fixture
def child() -> Child:
    """Runs Python code in a process of its own, with the given arguments."""

    def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        root = Path(__file__).parents[1]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=root)

    return run


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """The cache on the other side."""
    store = Store(tmp_path / "other")
    yield store
    store.close()


@pytest.fixture
def fill(make_cvd: MakeCvd) -> Fill:
    """Puts a CVD and cdiffs into a store, with their signatures."""

    def do(store: Store, version: int | None, patches: range = range(0), database: str = "daily") -> None:
        if version is not None:
            body = make_cvd(version, database=database)
            put_cvd(store, version, body, database)
            put(store, sign(cvd(version, database)), SIGNATURE(body))
        for patch in patches:
            body = forge_cdiff(database, patch)
            put(store, cdiff(patch, database), body, last_modified=1.7e9 + patch)
            put(store, sign(cdiff(patch, database)), SIGNATURE(body))

    return do


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file."""

    def write_text(text: str) -> Path:
        path = tmp_path / "proxy.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text
