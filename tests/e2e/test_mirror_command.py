"""``clamproxy mirror``: a directory that any web server can serve, tried with http.server and freshclam."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.dns_server import FakeDns, Mode
from tests.support.freshclam import OK
from tests.support.gateway import END_LIMIT, USER_AGENT
from tests.support.mirror import (
    ANEW,
    NAMED,
    NOT_DELIVERED,
    TEST,
    Mirror,
    Result,
    idle_site,
    open_mirror,
    told,
)
from tests.support.origin import OriginServer
from tests.support.site import Site, build_time, eventually, flipped, resolver_of, signed

from .conftest import MakeSite

FOREIGN = {
    "index.html": b"<html>",
    "robots.txt": b"",
    ".htaccess": b"Options -Indexes",
    "test.cvd.bak": b"x",
    "test.hdb": b"y",
    "main.cvd": b"of another database",
    "daily-27800.cdiff": b"of another database",
    "archive/test-1.cvd": b"z",
}


def another_file_system(directory: Path) -> Path:
    """A directory for temporary files that is not on the file system of another; skips without one."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == directory.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    return memory


class TestClients:
    """Real clients of the web server."""

    def test_from_one_release_to_the_next(self, mirror: Mirror) -> None:
        mirror.release(4)
        clients = [
            mirror.client("fresh"),
            mirror.client("older", local=3),
            mirror.client("private", private=True),
        ]
        for client in clients:
            outcome = client.run()
            assert (outcome.code, outcome.version) == (OK, 4), told(mirror, outcome)
        mirror.release(5)
        for client, kind in zip(clients, ("cld", "cld", "cvd"), strict=True):
            outcome = client.run()
            assert (outcome.code, outcome.databases) == (OK, {f"test.{kind}": 5}), told(mirror, outcome)
            assert "up-to-date" in client.run().output

    def test_with_dns(self, mirror: Mirror) -> None:
        """The version comes from ClamAV's record, the files from the mirror."""
        resolver = resolver_of(mirror.site.dns)
        mirror.release(5)
        client = mirror.client("client", resolver=resolver)
        assert client.run().databases == {"test.cvd": 5}
        mirror.release(6)
        outcome = client.run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": 6}), told(mirror, outcome)


class TestFiles:
    """What is in the directory."""

    def test_layout(self, mirror: Mirror) -> None:
        mirror.release(4)
        mirror.assert_sound()
        for version in (5, 6):
            mirror.release(version)
            mirror.assert_sound()
        assert {4, 5, 6} <= mirror.patches()
        others = mirror.names() - {path.name for path in mirror.directory.glob("test*")}
        assert others == {"dns.txt"}

    def test_links_for_all_to_read(self, mirror: Mirror) -> None:
        mirror.release(6)
        for path in mirror.directory.glob("test*"):
            status = path.stat()
            assert status.st_nlink == 2, path.name
            assert status.st_mode & 0o777 == 0o444, path.name
        assert (mirror.directory / "dns.txt").stat().st_mode & 0o444 == 0o444
        assert mirror.directory.stat().st_mode & 0o555 == 0o555
        assert mirror.site.gateway.cache.stat().st_mode & 0o777 == 0o700

    def test_copies_on_another_file_system(self, mirror: Mirror) -> None:
        mirror.site.publish(6)
        with tempfile.TemporaryDirectory(dir=another_file_system(mirror.site.directory)) as directory:
            there = Mirror(mirror.site, Path(directory) / "mirror", mirror.url)
            there.update()
            there.assert_sound()
            for path in there.directory.glob("test*"):
                status = path.stat()
                assert (status.st_nlink, status.st_mode & 0o777) == (1, 0o444), path.name
            assert (there.directory / "test.cvd").stat().st_mtime == build_time(6) + 60

    def test_dates(self, mirror: Mirror) -> None:
        """The origin's Last-Modified: later than the build time that clients compare it with."""
        mirror.release(6)
        assert (mirror.directory / "test.cvd").stat().st_mtime == build_time(6) + 60

    def test_dns_record(self, mirror: Mirror) -> None:
        """As the TXT record (docs/protocol.md 3), its time is now; of the usual databases none is there."""
        mirror.release(6)
        begin = int(time.time())
        result = mirror.run()
        assert result.returncode == NOT_DELIVERED, told(mirror, result)
        record = (mirror.directory / "dns.txt").read_text()
        assert record.endswith("\n")
        release, main, daily, recorded, warn, level, safe, bytecode = record.rstrip("\n").split(":")
        assert (release, warn, level) == ("1.4.6", "0", "90")
        assert {main, daily, safe, bytecode} == {"-"}
        assert begin <= int(recorded) <= time.time()

    def test_foreign_files_stay(self, mirror: Mirror) -> None:
        mirror.site.publish(5)
        for name, content in FOREIGN.items():
            (mirror.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror.directory / name).write_bytes(content)
        for version in (5, 6):
            mirror.release(version, "--keep-cdiffs", "1")
        assert mirror.version() == 6
        assert {name: (mirror.directory / name).read_bytes() for name in FOREIGN} == FOREIGN

    def test_superseded_files_go(self, mirror: Mirror) -> None:
        """The signature of the CVD before stays for one run."""
        mirror.release(5, "--keep-cdiffs", "1")
        mirror.release(6, "--keep-cdiffs", "1")
        right = {"dns.txt", "test.cvd", "test-6.cvd.sign", "test-6.cdiff", "test-6.cdiff.sign"}
        assert mirror.names() == right | {"test-5.cvd.sign"}
        mirror.update("--keep-cdiffs", "1")
        assert mirror.names() == right

    def test_too_few_patches(self, mirror: Mirror) -> None:
        """Who lacks more takes the whole CVD."""
        mirror.release(6, "--keep-cdiffs", "1")
        assert mirror.patches() == {6}
        outcome = mirror.client("client", local=4).run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 6}), told(mirror, outcome)

    def test_a_damaged_file_is_mended(self, mirror: Mirror) -> None:
        """Somebody has replaced the file; the size is not the same."""
        mirror.release(6)
        path = mirror.directory / "test.cvd"
        path.unlink()
        path.write_bytes(flipped(signed("test-5.cvd")))
        mirror.run(*TEST)
        mirror.assert_sound()
        assert mirror.version() == 6


class TestOrigin:
    """What it is asked, and what becomes of its failures."""

    def test_the_second_run_downloads_nothing(self, mirror: Mirror) -> None:
        mirror.release(6)
        assert mirror.site.origin.count("W") == 1
        mirror.site.origin.forget()
        before = {path.name: path.stat().st_ino for path in mirror.directory.glob("test*")}
        mirror.update()
        # If DNS answers late, the header tells what is current.
        assert mirror.site.origin.trace in ("", "P")
        assert {path.name: path.stat().st_ino for path in mirror.directory.glob("test*")} == before

    @pytest.mark.parametrize("reason", ["option", "setting"])
    def test_nobody_is_asked(self, mirror: Mirror, tmp_path: Path, reason: str) -> None:
        site = mirror.site
        mirror.release(5)
        site.publish(6)
        site.origin.forget()
        site.dns.queries.clear()
        options = {"option": ["--cached-only"], "setting": []}[reason]
        cache = {"directory": str(site.gateway.cache)}
        offline = {"offline": reason == "setting"} | NAMED
        again = idle_site(tmp_path / "again", site.origin, site.dns, upstream=offline, cache=cache)
        with open_mirror(again, "second") as second:
            second.update(*options)
            assert second.version() == 5
            second.assert_sound()
        assert (site.origin.trace, site.dns.queries) == ("", [])

    def test_gone(self, mirror: Mirror) -> None:
        mirror.release(5)
        names = mirror.names()
        mirror.site.publish(6)
        mirror.site.origin.refuse()
        result = self._failed(mirror)
        assert "test" in result.stderr
        assert (mirror.version(), mirror.names()) == (5, names)
        mirror.assert_sound()
        outcome = mirror.client("client").run()
        assert (outcome.code, outcome.version) == (OK, 5), told(mirror, outcome)
        mirror.site.origin.accept()
        assert eventually(lambda: mirror.run(*TEST).returncode == OK, every=0.5)
        assert mirror.version() == 6

    @pytest.mark.parametrize(
        "fault",
        [faults.html(), faults.replaced(flipped(signed("test-6.cvd"))), faults.status(403)],
        ids=["page", "damaged", "forbidden"],
    )
    def test_wrong_content(self, mirror: Mirror, fault: faults.Fault) -> None:
        mirror.release(5)
        mirror.site.publish(6)
        mirror.site.origin.rule("W", fault)
        self._failed(mirror)
        assert mirror.version() == 5
        assert "test-5.cvd.sign" in mirror.names()

    @pytest.mark.parametrize("mode", [Mode.SILENT, Mode.SERVFAIL])
    def test_without_dns(self, mirror: Mirror, mode: Mode) -> None:
        """The version comes from the header of the CVD."""
        mirror.site.publish(6)
        mirror.site.dns.mode = mode
        mirror.update()
        assert mirror.version() == 6
        mirror.assert_sound()

    @pytest.mark.parametrize("mode", [Mode.SILENT, Mode.SERVFAIL])
    def test_dns_fails_the_second_time(self, mirror: Mirror, mode: Mode) -> None:
        """Exit code 0 means up to date: so the CVD's header is looked at, or it is another code."""
        mirror.release(5)
        mirror.site.publish(6)
        mirror.site.dns.mode = mode
        result = mirror.run(*TEST)
        assert (mirror.version(), result.returncode) in ((6, OK), (5, NOT_DELIVERED)), told(mirror, result)
        mirror.assert_sound()

    def test_never_backwards(self, mirror: Mirror, tmp_path: Path) -> None:
        """The cache of another gateway, which is behind."""
        mirror.release(6)
        mirror.site.publish(5)
        behind = idle_site(
            tmp_path / "behind", mirror.site.origin, mirror.site.dns, upstream=NAMED, versions=ANEW
        )
        older = Mirror(behind, mirror.directory, mirror.url)
        result = older.run(*TEST)
        assert "test" in result.stderr
        assert mirror.version() == 6, told(mirror, result)
        mirror.assert_sound()

    def test_nothing_to_begin_with(self, mirror: Mirror) -> None:
        mirror.site.origin.refuse()
        result = mirror.run(*TEST)
        assert result.returncode == 1, told(mirror, result)
        assert mirror.version() is None

    def test_nobody_to_ask_in_the_name_of(self, tmp_path: Path, origin: OriginServer, dns: FakeDns) -> None:
        site = idle_site(tmp_path, origin, dns)
        site.publish(6)
        with open_mirror(site) as mirror:
            result = mirror.run(*TEST)
        assert result.returncode == 1, result.stderr
        assert "upstream.user_agent" in result.stderr
        assert origin.trace == ""

    @staticmethod
    def _failed(mirror: Mirror) -> Result:
        """Run until it has heard of the release, which cannot be had."""
        results: list[Result] = []

        def failed() -> bool:
            results.append(mirror.run(*TEST))
            return results[-1].returncode == NOT_DELIVERED

        assert eventually(failed), told(mirror, results[-1])
        return results[-1]


class TestBesideTheProxy:
    """One cache for both."""

    def test_what_the_proxy_has_fetched(self, site: Site) -> None:
        """Its freshclam is the one in whose name the rest is fetched."""
        site.warm(6)
        with open_mirror(site) as mirror:
            mirror.update()
            mirror.assert_sound()
            assert {site.origin.count("W"), site.origin.count("D6")} == {0}
            outcome = mirror.client("at-the-mirror").run()
        assert (outcome.code, outcome.version) == (OK, 6), outcome.output

    def test_what_the_proxy_has_not_fetched(self, make_site: MakeSite) -> None:
        """No client has asked for signatures."""
        site = make_site(serving={"prefetch": "none"}, versions={"refresh": "5min"})
        site.publish(6)
        assert site.client().run().version == 6
        with open_mirror(site) as mirror:
            mirror.update()
            mirror.assert_sound()
        assert site.origin.count("W") == 1

    def test_what_the_mirror_has_fetched(self, make_site: MakeSite) -> None:
        site = make_site(upstream=NAMED)
        site.publish(6)
        with open_mirror(site) as mirror:
            mirror.update()
        site.origin.forget()
        for name, local in (("fresh", None), ("older", 5)):
            outcome = site.client(name, local=local).run()
            assert (outcome.code, outcome.version) == (OK, 6), outcome.output
        assert {site.origin.count("W"), site.origin.count("D6")} == {0}, site.origin.trace


def test_two_runs_at_a_time(mirror: Mirror) -> None:
    """One waits, or says that the other is at it."""
    mirror.release(5)
    mirror.site.publish(6)
    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(lambda _: mirror.run(*TEST), range(2)))
    assert {result.returncode for result in results} <= {OK, 1}, [result.stderr for result in results]
    mirror.assert_sound()
    mirror.release(6)
    assert mirror.site.origin.count("W") == 2


@pytest.mark.parametrize(
    "options", [["--keep-cdiffs", "0"], ["--keep-cdiffs", "many"], ["--database", "../test"]]
)
def test_wrong_options(mirror: Mirror, options: list[str]) -> None:
    mirror.site.publish(6)
    result = mirror.run(*options)
    assert result.returncode == 2, told(mirror, result)
    assert mirror.site.origin.trace == ""


def test_a_database_that_there_is_not(mirror: Mirror) -> None:
    """Nobody is asked for it."""
    result = mirror.run(*TEST, "--database", "nosuch")
    assert result.returncode == 1, told(mirror, result)
    (line,) = result.stderr.splitlines()
    assert "nosuch" in line
    assert "bytecode, daily, main" in line
    assert (mirror.site.origin.trace, mirror.site.dns.queries) == ("", [])


def test_a_file_in_the_place_of_the_directory(mirror: Mirror) -> None:
    mirror.site.publish(6)
    mirror.directory.write_text("mine")
    result = mirror.run(*TEST)
    assert (result.returncode, mirror.directory.read_text()) == (2, "mine")
    assert str(mirror.directory) in result.stderr.splitlines()[-1]


def test_bars_for_whoever_looks(site: Site, tmp_path: Path) -> None:
    """On a terminal each file that comes has a bar; it is gone at the end."""
    site.publish(5)
    site.origin.rule("W", faults.slow(6000))
    terminal, end = os.openpty()
    installed = Path(sys.executable).with_name("clamproxy")
    command = [str(installed), "mirror", str(tmp_path / "www"), "--database", "test"]
    environment = {**os.environ, "TERM": "xterm", "CLAMPROXY_UPSTREAM__USER_AGENT": f'"{USER_AGENT}"'}
    with subprocess.Popen(
        [*command, "--config", str(site.gateway.config)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=end,
    ) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(terminal, 4096):
                shown += piece
        assert process.wait(END_LIMIT) == 0, shown
    os.close(terminal)
    assert b"test-5.cvd" in shown
    assert b"kB" in shown or b"KiB" in shown or b"bytes" in shown, shown
