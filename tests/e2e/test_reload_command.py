"""``clamproxy reload``: every running process reads its file, and the command says what has changed."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event
from urllib.request import urlopen

import pytest

from clamproxy.config.differences import KeyChange
from clamproxy.control import ReloadOutcome, marks
from tests.support import faults
from tests.support.big import Forgery, begun_download
from tests.support.gateway import Gateway, connectable, free_ports
from tests.support.site import LOCALHOST, Site, eventually, open_site

from .conftest import MakeSite
from .test_reload import READ, REFUSED, UNCHANGED, write

NOBODY = 65534
TOKEN = "of-sixteen-characters-or-more"
AS_ANOTHER = f"""
import encodings.utf_8_sig, os, sys
from clamproxy.cli import main
os.setgroups([])
os.setuid({NOBODY})
main(sys.argv[1:])
"""
"""Python itself may be out of that user's reach, so it starts as this one."""
IMPOSTOR = """
import os, secrets, socket, sys
server = socket.socket(socket.AF_UNIX)
os.setuid(int(sys.argv[1]))
server.bind(f"\\0clamproxy/{secrets.token_hex(8)}")
server.listen()
print("ready", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(sys.argv[2].encode())
"""


def test_what_has_changed(site: Site) -> None:
    write(site.gateway, cache={"keep_cdiffs": 7}, status={"token": TOKEN}, log={"format": "text"})
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"Process {site.gateway.pid}: the configuration was reloaded.",
        "  cache.keep_cdiffs: 120 → 7",
        "  status.token: null → '***'",
    ]
    log = site.gateway.log
    assert f"{READ}: cache.keep_cdiffs: 120 → 7; status.token: null → '***'.\n" in log
    assert TOKEN not in log


def test_it_is_in_force_when_the_command_ends(site: Site) -> None:
    site.publish(2)
    assert site.gateway.ask("/test.cvd").status == 200
    for databases, status in ((["daily"], 404), (["test"], 200)):
        write(site.gateway, serving={"databases": databases})
        assert site.gateway.tool("reload").returncode == 0
        assert site.gateway.ask("/test.cvd").status == status


def test_nothing_has_changed(site: Site) -> None:
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"Process {site.gateway.pid}: the configuration has not changed.\n"
    assert UNCHANGED in site.gateway.log


@pytest.mark.parametrize(
    ("content", "reason"),
    [("serving: {databases: [daily]\n", "line 2, column 1"), ("log: {format: xml}\n", "log.format is 'xml'")],
)
def test_a_wrong_file(site: Site, content: str, reason: str) -> None:
    site.publish(2)
    site.gateway.config.write_text(content)
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"clamproxy: process {site.gateway.pid}: the configuration stays as it was: ")
    assert reason in line
    assert REFUSED in site.gateway.log
    assert site.gateway.ask("/test.cvd").status == 200


def test_another_cache_directory(site: Site, tmp_path: Path) -> None:
    """The process is found although the command's configuration already names another cache."""
    write(site.gateway, cache={"directory": str(tmp_path / "elsewhere")})
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"cache.directory: {site.gateway.cache} → {tmp_path / 'elsewhere'}" in result.stdout
    assert (tmp_path / "elsewhere" / "objects").is_dir()


def test_what_the_command_line_overrides(site: Site) -> None:
    write(site.gateway, listen={"proxy": "127.0.0.1:1"})
    result = site.gateway.tool("reload")
    assert result.returncode == 0
    assert result.stdout.splitlines()[1:] == [
        "  listen.proxy: '*:8080' → 127.0.0.1:1",
        "  But: The section listen has changed, but the command line still overrides it.",
    ]


def test_no_proxy(site: Site, make_site: MakeSite) -> None:
    """Neither one that has ended, nor one that has nothing to do with this configuration."""
    other = make_site()
    assert site.gateway.stop() == 0
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no proxy with the configuration or the cache of" in result.stderr
    assert READ not in other.gateway.log
    assert UNCHANGED not in other.gateway.log
    site.gateway.config.write_text("log: {format: xml}\n")
    assert "log.format is 'xml'" in site.gateway.tool("reload").stderr


def test_all_that_share_a_cache(site: Site, tmp_path: Path) -> None:
    shared = {**site.gateway.settings, "cache": {"directory": str(site.gateway.cache)}}
    with Gateway(tmp_path / "second", shared) as second:
        write(site.gateway, cache={"keep_cdiffs": 7})
        result = site.gateway.tool("reload")
        assert (result.returncode, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert f"Process {site.gateway.pid}: the configuration was reloaded." in lines
        assert f"Process {second.pid}: the configuration has not changed." in lines
        second.config.write_text("log: {format: xml}\n")
        result = site.gateway.tool("reload")
        assert result.returncode == 1
        assert f"process {second.pid}: the configuration stays as it was" in result.stderr
        assert f"Process {site.gateway.pid}: the configuration has not changed." in result.stdout


def test_two_at_once(site: Site) -> None:
    """Each tells the truth: one, or the first, has brought the change about."""
    write(site.gateway, cache={"keep_cdiffs": 7})
    commands = [site.gateway.start_tool("reload") for _ in range(3)]
    told = [command.communicate(timeout=60)[0].decode() for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0]
    assert all("120 → 7" in one or "has not changed" in one for one in told), told
    assert any("120 → 7" in one for one in told)
    assert site.gateway.log.count(READ) == 1


def test_a_download_goes_on(big: Site, forgery: Forgery) -> None:
    big.origin.rule("W", faults.stall(4_000_000), times=1)
    with begun_download(big.gateway) as client:
        write(big.gateway, serving={"prefetch": "none"})
        assert big.gateway.tool("reload").returncode == 0
        big.origin.heal()
        assert client.read() == (forgery.body, True)


def test_a_stranger_with_a_full_queue(site: Site) -> None:
    """Anybody may take such a name, and accept nothing."""
    with socket.socket(socket.AF_UNIX) as stranger, ExitStack() as waiting:
        stranger.bind(f"\0clamproxy/{secrets.token_hex(8)}")
        stranger.listen(0)
        with suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(stranger.getsockname())
        result = site.gateway.tool("reload")
    assert (result.returncode, result.stderr) == (0, "")


@contextmanager
def impostor(user: int, config: Path, outcome: ReloadOutcome) -> Iterator[None]:
    """A process of this user that says it is the proxy."""
    said = json.dumps({**marks(config, None), "is_permitted": True})
    command = [sys.executable, "-c", IMPOSTOR, str(user), f"{said}\n{json.dumps(asdict(outcome))}\n"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        process.terminate()


def test_a_strangers_outcome(site: Site) -> None:
    """Without a configuration, nobody knows the proxy's user. Then no user but root is taken for it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    site.gateway.config.write_text("log: {format: xml}\n")
    assert site.gateway.stop() == 0
    with impostor(NOBODY, site.gateway.config, ReloadOutcome()):
        result = site.gateway.tool("reload")
    assert (result.returncode, result.stdout) == (1, "")
    assert "log.format is 'xml'" in result.stderr


def test_nothing_but_text_reaches_the_terminal(site: Site) -> None:
    escape = "\x1b]0;title\x07"
    assert site.gateway.stop() == 0
    outcomes = (
        ReloadOutcome((KeyChange("log.format", escape, escape),), (escape,)),
        ReloadOutcome(error=escape),
    )
    for outcome, code in zip(outcomes, (0, 1), strict=True):
        with impostor(os.geteuid(), site.gateway.config, outcome):
            result = site.gateway.tool("reload")
        assert result.returncode == code
        assert "?]0;title?" in result.stdout + result.stderr
        assert "\x1b" not in result.stdout + result.stderr


@pytest.fixture
def public() -> Iterator[Site]:
    """A site whose configuration everybody may read."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        site = open_site(directory / "site")
        for path in (site.gateway.config.parent.parent, site.gateway.config.parent):
            path.chmod(0o755)
        yield site
        site.close()


def test_another_user(public: Site) -> None:
    write(public.gateway, cache={"keep_cdiffs": 7})
    public.gateway.config.chmod(0o644)
    command = [sys.executable, "-c", AS_ANOTHER, "reload", "--config", str(public.gateway.config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert (result.returncode, result.stdout) == (1, "")
    reason = "it belongs to user root; run this as that user or root"
    assert result.stderr == f"clamproxy: process {public.gateway.pid} was not reloaded: {reason}\n"
    assert READ not in public.gateway.log


def test_a_process_that_is_stopped_in_between(site: Site) -> None:
    """Nothing is left of a process that was killed, so that nothing else is taken for it."""
    site.gateway.kill()
    assert site.gateway.tool("reload").returncode == 1
    site.gateway.start()
    result = site.gateway.tool("reload")
    assert result.stdout == f"Process {site.gateway.pid}: the configuration has not changed.\n"
    assert eventually(lambda: UNCHANGED in site.gateway.log)


# Where the pages are


def with_pages(make_site: MakeSite, workers: int = 1) -> tuple[Site, int]:
    """A site with a listener for pages, which begins a moment after the proxy, and its port."""
    (port,) = free_ports(1)
    site = make_site(workers=workers, status={"listen": f"{LOCALHOST}:{port}"})
    assert eventually(lambda: connectable(port)), site.gateway.log
    return site, port


def page(port: int, host: str = LOCALHOST) -> int:
    """The status of the answer of the listener for pages."""
    with urlopen(f"http://{host}:{port}/livez", timeout=20) as answer:
        return int(answer.status)


def assert_refused(site: Site, taken: str) -> None:
    """The command says why, in one line, and the log too."""
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"clamproxy: process {site.gateway.pid}: the configuration stays as it was: ")
    assert f"status.listen, {taken}: address already in use" in line
    assert site.gateway.log.count(REFUSED) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_place_for_the_pages_that_is_taken(make_site: MakeSite, workers: int) -> None:
    """All or nothing: the rest of the file has no effect either, and the pages stay where they are."""
    site, port = with_pages(make_site, workers)
    site.publish(2)
    assert page(port) == 200
    with socket.create_server((LOCALHOST, 0)) as other:
        taken = f"{LOCALHOST}:{other.getsockname()[1]}"
        write(site.gateway, status={"listen": taken}, serving={"databases": ["daily"]})
        assert_refused(site, taken)
        assert page(port) == 200
        assert site.gateway.ask("/test.cvd").status == 200
    # Once the port is free, the same file is taken.
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stderr) == (0, "")
    assert page(int(taken.rpartition(":")[2])) == 200
    assert eventually(lambda: not connectable(port))
    assert site.gateway.ask("/test.cvd").status == 404


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_port_of_another_address_that_is_taken(make_site: MakeSite, workers: int) -> None:
    site, port = with_pages(make_site, workers)
    with socket.create_server(("127.0.0.2", port)):
        write(site.gateway, status={"listen": f"127.0.0.2:{port}"})
        assert_refused(site, f"127.0.0.2:{port}")
        assert page(port) == 200


def test_the_pages_on_all_addresses_instead_of_one(make_site: MakeSite) -> None:
    """Their own port, which is in use, doesn't count as taken."""
    site, port = with_pages(make_site)
    write(site.gateway, status={"listen": f"0.0.0.0:{port}", "token": TOKEN})
    result = site.gateway.tool("reload")
    assert (result.returncode, result.stderr) == (0, "")
    assert page(port, "127.0.0.2") == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_no_client_of_the_pages_notices_a_reload(make_site: MakeSite, workers: int) -> None:
    """Who connects at that moment is answered, by the new configuration or the old."""
    site, port = with_pages(make_site, workers)
    refused: list[OSError] = []
    is_over = Event()

    def connect() -> None:
        while not is_over.wait(0.002):
            try:
                socket.create_connection((LOCALHOST, port), timeout=20).close()
            except OSError as error:
                refused.append(error)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(connect)
        try:
            for number in range(5):
                write(site.gateway, cache={"keep_cdiffs": 50 + number})
                assert site.gateway.tool("reload").returncode == 0
        finally:
            is_over.set()
    assert not refused
