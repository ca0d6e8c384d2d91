"""The commands ls, verify, purge and prefetch."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from clamproxy import cli
from clamproxy.cache.published import Metadata
from clamproxy.cache.store import Store
from clamproxy.cli import purge as purging
from clamproxy.cli.ls import CachedObject
from clamproxy.cli.purge import chosen
from clamproxy.objects import Kind, ObjectId
from tests.support.data import read_testdata, require_testdata, trust_testdata
from tests.support.faults import Fault
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, put

NAMES = ("test-3.cvd", "test-3.cvd.sign", "test-4.cdiff", "test-4.cdiff.sign", "test-5.cdiff", "test-6.cld")
DAY = 86400.0


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory of its own, with a cache, and without settings of the environment."""
    require_testdata()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", str(tmp_path / "cache"))
    monkeypatch.setenv("CLAMPROXY_UPSTREAM__CVD_CERTS_DIRECTORY", str(trust_testdata(tmp_path / "certs")))
    store = Store(tmp_path / "cache")
    for name in NAMES:
        object_id, body = ObjectId.parse(name), read_testdata(name)
        header = body[:512].decode() if object_id.kind in (Kind.CVD, Kind.CLD) else None
        put(store, object_id, body, header=header)
    store.close()


@pytest.fixture
def asking(origin: OriginServer, monkeypatch: pytest.MonkeyPatch) -> OriginServer:
    """The origin that is asked."""
    monkeypatch.setenv("CLAMPROXY_UPSTREAM__URL", origin.url)
    monkeypatch.setenv("CLAMPROXY_UPSTREAM__USER_AGENT", f"'{AGENT}'")
    monkeypatch.setenv("CLAMPROXY_VERSIONS__DNS", "false")
    for name in (*NAMES[:5], "test-5.cdiff.sign"):
        origin.put("test.cvd" if name == NAMES[0] else name, read_testdata(name))
    return origin


def invoke(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, arguments, input=stdin)


def refusal(*arguments: str, code: int = 1) -> str:
    """The one line of a command that fails."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("clamproxy: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def spoil(name: str) -> None:
    store = Store(Path("cache"))
    published = store.open(ObjectId.parse(name))
    assert published is not None
    with published:
        path = Path(published.path)
    path.chmod(0o600)
    body = path.read_bytes()
    path.write_bytes(body[:-5] + b"xxxxx")
    store.close()


def names() -> set[str]:
    store = Store(Path("cache"))
    try:
        return {object_id.file_name for object_id in store.sizes()}
    finally:
        store.close()


@pytest.mark.parametrize("command", ["ls", "verify", "purge", "prefetch"])
def test_help(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "--config FILE" in result.output
    assert "--database NAME" in result.output


@pytest.mark.parametrize("command", [("ls",), ("verify",), ("purge", "--yes")])
def test_no_cache_directory(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", "nowhere")
    assert "no such cache directory" in refusal(*command)


@pytest.mark.parametrize("command", [("verify",), ("purge", "--yes"), ("prefetch",)])
def test_another_users_cache(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "run this as that user" in refusal(*command)


class TestList:
    """ls."""

    def test_table(self) -> None:
        result = invoke("ls")
        assert (result.exit_code, result.stderr) == (0, "")
        head, *lines, total = result.stdout.splitlines()
        assert head.split() == ["DATABASE", "KIND", "VERSION", "SIZE", "FETCHED", "BUILT"]
        assert [line.split()[1:3] for line in lines] == [
            ["cdiff", "4"],
            ["cdiff", "5"],
            ["cdiff.sign", "4"],
            ["cld", "6"],
            ["cvd", "3"],
            ["cvd.sign", "3"],
        ]
        assert "2021-06-2" in lines[4]
        assert total.startswith("6 objects, ")

    def test_json(self) -> None:
        values = json.loads(invoke("ls", "--json").stdout)
        assert (values["count"], len(values["objects"])) == (6, 6)
        assert values["bytes"] == sum(entry["size"] for entry in values["objects"])
        assert values["objects"][4] == {
            "name": "test-3.cvd",
            "database": "test",
            "kind": "cvd",
            "version": 3,
            "size": len(read_testdata("test-3.cvd")),
            "fetched_at": 1.0,
            "built_at": int(read_testdata("test-3.cvd")[:512].split(b":")[8]),
        }

    def test_of_a_database(self) -> None:
        result = invoke("ls", "--database", "daily")
        assert (result.exit_code, result.stdout) == (0, "0 objects, 0 B\n")
        assert invoke("ls", "--database", "A/B").exit_code == 2

    def test_strange_metadata(self) -> None:
        store = Store(Path("cache"))
        path = store.partials / "x"
        path.write_bytes(b"x")
        store.publish(ObjectId("test", 9, Kind.CVD), path, Metadata(1, 1e300, header="no header"))
        store.close()
        (line,) = [line for line in invoke("ls").stdout.splitlines() if " 9 " in line]
        assert line.split()[-2:] == ["?", "-"]

    def test_one_object(self) -> None:
        assert invoke("purge", "--yes", "--kind", "cdiff", "--kind", "cvd").exit_code == 0
        assert invoke("ls").stdout.splitlines()[-1].startswith("1 object, ")

    def test_other_feeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their number and size, and not what they are."""
        assert "feeds" not in invoke("ls").stdout
        monkeypatch.setenv("CLAMPROXY_FEEDS__HOSTS", "[urlhaus.abuse.ch]")
        assert invoke("ls").stdout.endswith("Other feeds: 0 files, 0 B\n")
        monkeypatch.delenv("CLAMPROXY_FEEDS__HOSTS")
        feeds = Path("cache", "feeds")
        feeds.mkdir()
        for name, size in (("a.json", 10), ("a.0123", 2048), ("b.part", 5000)):
            (feeds / name).write_bytes(bytes(size))
        assert invoke("ls").stdout.endswith("Other feeds: 1 file, 2.0 KiB\n")
        assert "feeds" not in invoke("ls", "--database", "test").stdout
        assert json.loads(invoke("ls", "--json").stdout)["feeds"] == {"count": 1, "bytes": 2048}


class TestVerify:
    """verify."""

    def test_all_good(self) -> None:
        result = invoke("verify")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr.startswith("clamproxy: 6 objects, ")
        assert result.stderr.endswith(": all good.\n")

    def test_bad_ones(self) -> None:
        spoil("test-3.cvd")
        spoil("test-4.cdiff")
        result = invoke("verify")
        assert (result.exit_code, result.stdout) == (1, "")
        base, patch, total = result.stderr.splitlines()
        assert patch == "clamproxy: test-4.cdiff: wrong signature"
        assert base.startswith("clamproxy: test-3.cvd: payload ")
        assert total.endswith(": 2 bad.")
        assert names() == set(NAMES)

    def test_a_signature_that_leads_to_no_trusted_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CLAMPROXY_UPSTREAM__CVD_CERTS_DIRECTORY")
        result = invoke("verify")
        assert result.exit_code == 1
        assert "test-3.cvd.sign: the signer's certificate is not trusted" in result.output

    def test_of_another_database(self) -> None:
        spoil("test-3.cvd")
        assert invoke("verify", "--database", "main").exit_code == 0
        assert "no database nothing" in refusal("verify", "--database", "nothing")

    def test_dropped(self) -> None:
        spoil("test-3.cvd")
        spoil("test-6.cld")
        result = invoke("verify", "--repair", "--no-fetch", "--json")
        assert (result.exit_code, result.stderr) == (1, "")
        report = json.loads(result.stdout)
        assert (report["checked"], report["ok"]) == (6, False)
        assert {case["name"]: case["outcome"] for case in report["bad"]} == {
            "test-3.cvd": "dropped",
            "test-6.cld": "mended",
        }
        assert {one["name"] for one in report["quarantine"]} == {"test-3.cvd", "test-6.cld"}
        assert names() == set(NAMES) - {"test-3.cvd", "test-6.cld"}
        result = invoke("verify")
        assert result.exit_code == 0
        assert result.stderr.count("clamproxy: In quarantine since ") == 2

    def test_mended(self, asking: OriginServer) -> None:
        for name in NAMES[:4]:
            spoil(name) if "sign" not in name else None
        result = invoke("verify", "--repair")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("; mended") == 2
        assert names() >= set(NAMES)
        assert sorted(seen.path for seen in asking.seen if seen.method == "GET").count("/test-4.cdiff") == 1

    def test_mended_by_a_newer_one(self, asking: OriginServer) -> None:
        asking.put("test.cvd", read_testdata("test-6.cvd"))
        spoil("test-3.cvd")
        assert invoke("verify", "--repair").exit_code == 0
        assert "test-6.cvd" in names()

    def test_an_older_one_is_not_enough(self, asking: OriginServer) -> None:
        asking.put("test.cvd", read_testdata("test-2.cvd"))
        spoil("test-3.cvd")
        result = invoke("verify", "--repair")
        assert result.exit_code == 1
        assert "; dropped (the origin has only an older version)" in result.stderr

    def test_what_the_origin_has_no_more(self, asking: OriginServer) -> None:
        asking.remove("test-4.cdiff")
        spoil("test-4.cdiff")
        assert invoke("verify", "--repair").exit_code == 0
        assert "test-4.cdiff" not in names()

    def test_nobody_is_asked_too_often(self, asking: OriginServer) -> None:
        store = Store(Path("cache"))
        store.set_note("budget//test-4.cdiff", [time.time()] * 5)
        store.close()
        spoil("test-4.cdiff")
        result = invoke("verify", "--repair")
        assert result.exit_code == 1
        assert "; dropped (it was asked for 5 times within the last hour)" in result.stderr
        assert not asking.seen

    def test_a_cool_down_holds(self, asking: OriginServer) -> None:
        asking.rule("*", Fault(status=429))
        spoil("test-4.cdiff")
        assert invoke("verify", "--repair").exit_code == 1
        asking.heal()
        asking.put("test.cvd", read_testdata("test-4.cvd"))
        asking.put("test-3.cdiff", read_testdata("test-3.cdiff"))
        result = invoke("prefetch", "--database", "test")
        assert result.exit_code == 2
        (line,) = [line for line in result.stderr.splitlines() if "CVD" in line]
        assert line.startswith("clamproxy: test: CVD 3; ")
        assert ": status 429" in line
        assert len(asking.requests("/test-4.cdiff")) == 1

    def test_in_nobodys_name(self, asking: OriginServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CLAMPROXY_UPSTREAM__USER_AGENT")
        spoil("test-4.cdiff")
        assert "upstream.user_agent" in invoke("verify", "--repair").stderr
        assert not asking.seen

    def test_offline(self, asking: OriginServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLAMPROXY_UPSTREAM__OFFLINE", "true")
        spoil("test-4.cdiff")
        result = invoke("verify", "--repair")
        assert result.exit_code == 1
        assert "; dropped (not fetched)" in result.stderr
        assert not asking.seen

    def test_needs_repair(self) -> None:
        assert invoke("verify", "--no-fetch").exit_code == 2


class TestPurge:
    """purge."""

    @pytest.mark.parametrize(
        ("arguments", "left"),
        [
            ((), set()),
            (("--kind", "cvd"), {"test-4.cdiff", "test-4.cdiff.sign", "test-5.cdiff", "test-6.cld"}),
            (("--kind", "cdiff"), {"test-3.cvd", "test-3.cvd.sign", "test-6.cld"}),
            (("--kind", "sign"), {"test-3.cvd", "test-4.cdiff", "test-5.cdiff", "test-6.cld"}),
            (("--kind", "cld", "--kind", "cdiff"), {"test-3.cvd", "test-3.cvd.sign"}),
            (("--database", "main"), set(NAMES)),
            (("--older-than", "1d", "--kind", "cld"), set(NAMES) - {"test-6.cld"}),
            (("--older-than", "36500d"), set(NAMES)),
        ],
    )
    def test_what_goes(self, arguments: tuple[str, ...], left: set[str]) -> None:
        would = set(invoke("purge", "--dry-run", *arguments).stdout.split())
        assert names() == set(NAMES)
        result = invoke("purge", "--yes", *arguments)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (0, "", 1)
        assert names() == left == set(NAMES) - would

    def test_the_last_line(self) -> None:
        assert "Deleted 2 objects (1 cvd, 1 cvd.sign), " in invoke("purge", "--yes", "--kind", "cvd").stderr
        assert invoke("purge", "--yes", "--kind", "cvd").stderr == "clamproxy: there is nothing to delete.\n"

    def test_a_version_that_was_newest(self) -> None:
        assert invoke("purge", "--yes", "--kind", "cvd").exit_code == 0
        values = json.loads(invoke("stats", "--json").stdout)
        assert values["databases"] == {}

    def test_needs_a_yes(self) -> None:
        assert "use --yes" in refusal("purge")
        assert names() == set(NAMES)

    @pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
    def test_asks_at_a_terminal(self, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
        monkeypatch.setattr(purging, "is_asked_at_terminal", lambda: True)
        result = invoke("purge", stdin=answer)
        assert (result.exit_code, result.stdout) == (code, "")
        assert "Delete 6 objects" in result.stderr
        assert names() == (set() if code == 0 else set(NAMES))

    def test_not_half_done(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C in the middle waits for the end."""
        drop, handler = Store.drop, signal.getsignal(signal.SIGINT)

        def interrupted(store: Store, object_id: ObjectId) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            drop(store, object_id)

        monkeypatch.setattr(Store, "drop", interrupted)
        result = invoke("purge", "--yes")
        assert result.exit_code != 0
        assert names() == set()
        assert signal.getsignal(signal.SIGINT) is handler

    @pytest.mark.parametrize(
        ("arguments", "left"),
        [
            ((), set()),
            (("--kind", "cvd"), {"strange", "test-4.cdiff"}),
            (("--database", "test"), {"strange", "daily-5.cvd"}),
            (("--older-than", "1d"), {"test-4.cdiff", "daily-5.cvd", "strange"}),
        ],
    )
    def test_quarantine(self, arguments: tuple[str, ...], left: set[str]) -> None:
        store = Store(Path("cache"))
        for name in ("test-4.cdiff", "daily-5.cvd", "strange"):
            (store.partials / name).write_bytes(b"x")
            store.quarantine(name, store.partials / name, "reason")
        store.close()
        assert invoke("purge", "--quarantine", "--yes", *arguments).exit_code == 0
        files = {path.name for path in Path("cache/quarantine").iterdir()}
        assert {name.partition(".1")[0] for name in files} == left
        assert len(files) == 2 * len(left)
        assert names() == set(NAMES)

    def test_wrong_arguments(self) -> None:
        assert invoke("purge", "--older-than", "5 apples").exit_code == 2
        assert invoke("purge", "--kind", "exe").exit_code == 2
        assert "no database nothing" in refusal("purge", "--yes", "--database", "nothing")

    def test_order(self) -> None:
        """Bases before patches, oldest first, each with its signature."""
        entries = [
            CachedObject(ObjectId.parse(name), 1, 10.0, None)
            for name in (
                "a-5.cdiff",
                "a-6.cdiff.sign",
                "a-6.cdiff",
                "a-4.cvd",
                "a-5.cdiff.sign",
                "a-6.cld",
                "a-3.cvd",
            )
        ]
        found = [one.file_name for one in chosen(entries, (), set(Kind), 10.0)]
        assert found == [
            "a-3.cvd",
            "a-4.cvd",
            "a-6.cld",
            "a-5.cdiff",
            "a-5.cdiff.sign",
            "a-6.cdiff",
            "a-6.cdiff.sign",
        ]

    def test_a_younger_signature_goes_with_its_object(self) -> None:
        ages = {"a-5.cdiff": 10.0, "a-5.cdiff.sign": 20.0, "a-6.cdiff": 20.0, "a-6.cdiff.sign": 20.0}
        entries = [CachedObject(ObjectId.parse(name), 1, at, None) for name, at in ages.items()]
        found = {one.file_name for one in chosen(entries, (), {Kind.CDIFF}, 15.0)}
        assert found == {"a-5.cdiff", "a-5.cdiff.sign"}


class TestPrefetch:
    """prefetch."""

    def test_fetches_what_is_missing(self, asking: OriginServer) -> None:
        asking.put("test.cvd", read_testdata("test-6.cvd"))
        for name in ("test-6.cdiff", "test-6.cdiff.sign", "test-6.cvd.sign"):
            asking.put(name, read_testdata(name))
        result = invoke("prefetch", "--database", "test", "--database", "test")
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == "clamproxy: test: CVD 6.\n"
        assert names() >= {"test-6.cvd", "test-6.cdiff", "test-6.cdiff.sign", "test-6.cvd.sign"}

    def test_makes_a_cache(self, asking: OriginServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", "new")
        assert invoke("prefetch", "--database", "test").exit_code == 0
        assert "test-3.cvd" in invoke("ls", "--json").stdout

    def test_of_all_databases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[list[str]] = []

        def fetch(_: object, databases: list[str]) -> dict[str, str]:
            asked.append(databases)
            return {"main": "status 503"}

        monkeypatch.setattr(cli.prefetch, "fetch_releases", fetch)
        result = invoke("prefetch")
        assert result.exit_code == 2
        assert asked == [["main", "daily", "bytecode", "test"]]
        assert result.stderr.splitlines() == [
            "clamproxy: main: nothing is cached; the newest version is not known: status 503.",
            "clamproxy: daily: nothing is cached.",
            "clamproxy: bytecode: nothing is cached.",
            "clamproxy: test: CVD 3, patches up to 5.",
        ]

    @pytest.mark.parametrize(
        ("advertised", "missing"),
        [
            (None, "not known whether there is a newer one"),
            (5, "a part of it is missing"),
            (6, "6 is missing"),
        ],
    )
    def test_what_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, advertised: int | None, missing: str
    ) -> None:
        """One line tells what is here and what is not."""
        store = Store(Path("cache"))
        if advertised is not None:
            store.set_note("advertised/test", [advertised, time.time()])
        store.close()
        monkeypatch.setattr(cli.prefetch, "fetch_releases", lambda *_: {"test": "status 503"})
        result = invoke("prefetch", "--database", "test")
        assert result.exit_code == 2
        assert result.stderr == f"clamproxy: test: CVD 3, patches up to 5; {missing}: status 503.\n"

    def test_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "no database nothing" in refusal("prefetch", "--database", "nothing")
        monkeypatch.setenv("CLAMPROXY_UPSTREAM__OFFLINE", "true")
        assert "upstream.offline" in refusal("prefetch")


@pytest.mark.parametrize("command", [("ls",), ("verify",), ("purge", "--yes"), ("stats",)])
def test_a_damaged_index(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Store) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(Store, "sizes", refuse)
    assert "database disk image is malformed" in refusal(*command)


def test_options_are_told_apart() -> None:
    """Options that delete are never abbreviations of others."""
    options: list[Any] = [one for one in purging.purge.params if isinstance(one, click.Option)]
    assert {"--dry-run", "--yes", "--quarantine"} <= {name for option in options for name in option.opts}
