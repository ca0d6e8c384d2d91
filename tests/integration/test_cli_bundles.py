"""The commands export, import and mirror."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clamproxy import cli
from clamproxy.cache.store import Store
from clamproxy.cli.output import CANNOT_WRITE
from clamproxy.config.settings import Settings
from clamproxy.objects import Kind, ObjectId
from clamproxy.releases.holds import read_holds
from tests.support.data import CDIFF_NAMES, read_testdata, require_testdata, trust_testdata
from tests.support.faults import Fault
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, put


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory of its own, without settings of the environment."""
    require_testdata()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", str(tmp_path / "cache"))
    monkeypatch.setenv("CLAMPROXY_UPSTREAM__CVD_CERTS_DIRECTORY", str(trust_testdata(tmp_path / "certs")))


@pytest.fixture
def _filled() -> None:
    """A cache with version 3 of database test, and what leads to 6."""
    with_files("test-3.cvd", "test-3.cvd.sign", *CDIFF_NAMES)


def with_files(*names: str, directory: str = "cache") -> None:
    store = Store(Path(directory))
    for name in names:
        object_id, body = ObjectId.parse(name), read_testdata(name)
        header = body[:512].decode() if object_id.kind is Kind.CVD else None
        put(store, object_id, body, header=header, last_modified=1_624_500_000.0)
    store.close()


def reached(directory: str) -> int | None:
    store = Store(Path(directory))
    try:
        return store.reached_version("test")
    finally:
        store.close()


def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli.main, arguments, input=stdin)


def refusal(*arguments: str, stdin: bytes | None = None) -> str:
    """The one line of a command that fails."""
    result = invoke(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("clamproxy: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def to(monkeypatch: pytest.MonkeyPatch, directory: str) -> None:
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", str(Path(directory).absolute()))


@pytest.mark.usefixtures("_filled")
def test_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke("export", "x.tar")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "clamproxy: Exported test 6: the CVD and patches, 7 objects, 19.5 KiB.\n"
    assert Path("x.tar").is_file()
    to(monkeypatch, "other")
    result = invoke("import", "x.tar")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "clamproxy: Imported test 6: the CVD and patches, 7 objects, 19.5 KiB.\n"
    assert reached("other") == 6


@pytest.mark.usefixtures("_filled")
def test_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files("test-3.cvd", directory="other")
    result = invoke("export", "-", "--since", "3")
    assert "Exported test 6: patches from 3, 3 objects" in result.stderr
    with tarfile.open(fileobj=io.BytesIO(result.stdout_bytes)) as tar:
        assert tar.getnames() == ["manifest.json", "test-3.cvd.sign", *CDIFF_NAMES[2:]]
    to(monkeypatch, "other")
    assert invoke("import", "-", stdin=result.stdout_bytes).exit_code == 0
    assert reached("other") == 6


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("since", [(), ("--since", "3")], ids=["whole", "smaller than a buffer"])
@pytest.mark.parametrize(
    ("output", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_an_output_that_takes_no_bundle(since: tuple[str, ...], output: str, reason: str) -> None:
    """One line, which doesn't say that it was exported."""
    command = ["/bin/sh", "-c", f'exec "{sys.executable}" -m clamproxy.cli export - "$@" {output}', "sh"]
    result = subprocess.run([*command, *since], stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert result.stderr == f"clamproxy: the standard output can't be written: {reason}\n"
    assert result.returncode == CANNOT_WRITE


@pytest.mark.usefixtures("_filled")
def test_a_bundle_that_nobody_reads() -> None:
    """A failure, unlike for text; the reader has said why it left."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "clamproxy.cli", "export", "-"]
    try:
        result = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.usefixtures("_filled")
def test_a_hold_before_the_first_start() -> None:
    """It is where the gateway will look for it."""
    result = invoke("hold", "test")
    assert (result.exit_code, "is held at version" in result.stderr) == (0, True), result.output
    assert read_holds(Path("cache-state")).in_force.keys() == {"test"}
    assert invoke("release", "test").exit_code == 0


@pytest.mark.usefixtures("_filled")
def test_while_the_proxy_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Store(Path("cache"))
    assert invoke("export", "x.tar").exit_code == 0
    assert invoke("import", "x.tar").exit_code == 0
    running.close()


@pytest.mark.usefixtures("_filled")
def test_export_says_what_it_leaves_out() -> None:
    result = invoke("export", "x.tar", "--since", "6")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "clamproxy: test is left out: there is nothing newer than 6.",
        "clamproxy: there is nothing to export.",
    ]
    assert "daily is left out: no CVD of it is cached" in invoke("export", "x", "--database", "daily").stderr
    assert not list(Path().glob("x*"))


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("command", ["export", "mirror"])
def test_a_database_that_there_is_not(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("CLAMPROXY_SERVING__DATABASES", "[main, daily]")
    monkeypatch.setattr(cli.mirror, "_fetch", lambda *_: pytest.fail("asked"))
    line = refusal(command, "x", "--database", "test", "--database", "dialy")
    assert line == "clamproxy: there is no database dialy here, only daily, main, test.\n"
    assert not Path("x").exists()


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("directory", ["cache", "cache/objects/test"])
def test_a_mirror_is_not_made_in_the_cache(directory: str) -> None:
    before = sorted(Path("cache").rglob("*.c*"))
    assert "this is in the cache" in refusal("mirror", directory, "--cached-only", "--keep-cdiffs", "1")
    assert sorted(Path("cache").rglob("*.c*")) == before


def test_a_mirror_needs_a_name() -> None:
    """With an unset variable, the working directory would become a mirror."""
    result = invoke("mirror", "")
    assert (result.exit_code, "it is empty" in result.stderr) == (2, True)


@pytest.mark.usefixtures("_filled")
def test_refusals_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file or directory" in refusal("export", "nowhere/x.tar")
    assert "no such cache directory" not in refusal("import", "nowhere.tar")
    Path("x.tar").write_bytes(b"text")
    assert "x.tar: the bundle is cut off" in refusal("import", "x.tar")
    assert invoke("export", "x.tar", "--since", "3").exit_code == 0
    with_files("test-2.cvd", directory="other")
    to(monkeypatch, "other")
    assert "need test 3, but the cache has only 2" in refusal("import", "x.tar")
    assert reached("other") == 2


def test_never_backwards_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files("test-4.cvd")
    with_files("test-6.cvd", directory="other")
    assert invoke("export", "x.tar").exit_code == 0
    to(monkeypatch, "other")
    assert "has test 4, but the cache already has 6" in refusal("import", "x.tar")
    assert invoke("import", "x.tar", "--allow-older").exit_code == 0
    assert reached("other") == 6


def test_import_keeps_the_cache_in_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with_files("test-6.cvd", *CDIFF_NAMES)
    assert invoke("export", "x.tar").exit_code == 0
    to(monkeypatch, "other")
    monkeypatch.setenv("CLAMPROXY_CACHE__KEEP_CDIFFS", "2")
    assert invoke("import", "x.tar").exit_code == 0
    store = Store(Path("other"))
    assert {object_id.file_name for object_id in store.sizes()} == {
        "test-6.cvd",
        "test-5.cdiff",
        "test-6.cdiff",
    }
    store.close()


@pytest.mark.parametrize("arguments", [["export", "x"], ["mirror", "m", "--cached-only"]])
def test_no_cache_is_one_line(arguments: list[str]) -> None:
    assert "no such cache directory" in refusal(*arguments)


@pytest.mark.usefixtures("_filled")
@pytest.mark.parametrize("command", ["export", "import", "mirror"])
def test_only_the_owner_of_the_cache(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    owner = Path("cache").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert "run this as that user" in refusal(command, "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "x", "--since", "new"],
        ["export", "x", "--database", "../x"],
        ["mirror"],
        ["mirror", "m", "--keep-cdiffs", "0"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.usefixtures("_filled")
def test_bars_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in invoke("export", "x.tar").stderr
    monkeypatch.setenv("TERM", "xterm")
    from clamproxy.cli.bars import Bars

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bars() as bars:
        bars.begin({"daily": 100})
        bars.advance("daily", 40)
    assert "daily" in terminal.getvalue()


# mirror


@pytest.mark.usefixtures("_filled")
def test_mirror_of_what_is_cached() -> None:
    result = invoke("mirror", "m", "--cached-only", "--keep-cdiffs", "1", "--database", "test")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "clamproxy: test 3; 5 files added, 0 removed.\n"
    names = {path.name for path in Path("m").iterdir()} - {".clamproxy.lock"}
    patches = {"test-4.cdiff", "test-5.cdiff", "test-6.cdiff"}
    assert names == {"test.cvd", "test-3.cvd.sign", "dns.txt", *patches}


@pytest.mark.usefixtures("_filled")
def test_databases_of_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetch(settings: Settings, databases: list[str]) -> dict[str, str]:
        asked.append(databases)
        return {}

    monkeypatch.setattr(cli.mirror, "_fetch", fetch)
    assert invoke("mirror", "m").exit_code == 0
    assert invoke("mirror", "m", "--database", "test").exit_code == 0
    monkeypatch.setenv("CLAMPROXY_SERVING__DATABASES", "[daily, test]")
    assert invoke("mirror", "m").exit_code == 0
    assert asked == [["main", "daily", "bytecode", "test"], ["test"], ["daily", "test"]]
    monkeypatch.setenv("CLAMPROXY_UPSTREAM__OFFLINE", "true")
    assert invoke("mirror", "m").exit_code == 0
    assert len(asked) == 3


@pytest.mark.usefixtures("_filled")
def test_an_origin_that_does_not_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.mirror, "_fetch", lambda *_: {"test": "status 503"})
    result = invoke("mirror", "m", "--database", "test")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0] == "clamproxy: Warning: test could not be updated: status 503."
    assert Path("m/test.cvd").is_file()
    assert "no CVD of main is cached" in invoke("mirror", "m", "--database", "main").stderr


@pytest.mark.usefixtures("_filled")
def test_mirror_announces_what_the_cache_leads_to() -> None:
    store = Store(Path("cache"))
    put(store, ObjectId("daily", 7, Kind.CVD), b"body")
    store.set_note("record/current.cvd.clamav.net", "1.4.3:62:5:1759500000:1:90:49192:339")
    store.close()
    assert invoke("mirror", "m", "--cached-only", "--database", "daily").exit_code == 0
    fields = Path("m/dns.txt").read_text().split(":")
    assert (fields[0], fields[2]) == ("1.4.3", "7")


@pytest.mark.usefixtures("_filled")
def test_a_mirror_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "m/x")

    monkeypatch.setattr(os, "link", refuse)
    message = refusal("mirror", "m", "--cached-only", "--database", "test")
    assert message == "clamproxy: m/x: Read-only file system\n"


def test_mirror_fetches_what_is_missing(origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAMPROXY_UPSTREAM__URL", origin.url)
    monkeypatch.setenv("CLAMPROXY_UPSTREAM__USER_AGENT", f"'{AGENT}'")
    monkeypatch.setenv("CLAMPROXY_VERSIONS__DNS", "false")
    for name in [f"test-6.{kind}" for kind in ("cvd.sign", "cdiff", "cdiff.sign")]:
        origin.put(name, read_testdata(name))
    origin.put("test.cvd", read_testdata("test-6.cvd"))
    result = invoke("mirror", "m", "--database", "test")
    assert (result.exit_code, result.stdout) == (0, "")
    assert Path("m/test.cvd").read_bytes() == read_testdata("test-6.cvd")
    assert Path("m/test-6.cvd.sign").read_bytes() == read_testdata("test-6.cvd.sign")
    origin.rule("*", Fault(status=503))
    assert invoke("mirror", "m", "--database", "test", "--database", "daily").exit_code == 2
    assert Path("m/test.cvd").read_bytes() == read_testdata("test-6.cvd")
