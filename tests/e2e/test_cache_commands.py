"""``clamproxy ls``, ``verify``, ``purge`` and ``prefetch`` beside a proxy that runs."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clamproxy.cache.store import Store
from clamproxy.objects import Kind, ObjectId
from tests.support import faults
from tests.support.big import PATH, Download
from tests.support.freshclam import OK
from tests.support.gateway import TOOL_LIMIT, Gateway
from tests.support.scenes import BASE, NEWEST, explain, hold, settle, version_of, whole
from tests.support.site import Site, eventually, flipped, signed

from .conftest import MakeSite

NAMED = {"user_agent": "ClamAV/1.4.6 (OS: Linux, ARCH: x86_64, CPU: x86_64)"}


def spoil(gateway: Gateway, name: str, *, cut: bool = False) -> None:
    """Change a byte of a published file, or cut some off, as a bad disk does."""
    store = Store(gateway.cache, tidy=False)
    published = store.open(ObjectId.parse(name))
    assert published is not None, name
    with published:
        path = Path(published.path)
    store.close()
    body = path.read_bytes()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(flipped(body))
        file.truncate(len(body) - 10 if cut else len(body))


def listing(gateway: Gateway) -> set[str]:
    result = gateway.tool("ls", "--json")
    assert result.returncode == 0, result.stderr
    return {entry["name"] for entry in json.loads(result.stdout)["objects"]}


def verified(gateway: Gateway, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    result = gateway.tool("verify", "--json", *arguments)
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["ok"] == (result.returncode == 0)
    return result.returncode, report


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {case["name"]: case["outcome"] for case in report["bad"]}


def run_to_the_end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    with process:
        _, errors = process.communicate(timeout=TOOL_LIMIT)
    return process.returncode, errors.decode()


class TestList:
    """What is there."""

    def test_of_a_running_proxy(self, behind: Site) -> None:
        names = listing(behind.gateway)
        patches = {f"test-{version}.cdiff" for version in range(BASE + 1, NEWEST + 1)}
        assert {f"test-{BASE}.cvd", f"test-{BASE}.cvd.sign"} | patches <= names
        result = behind.gateway.tool("ls", "--database", "test")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines()[-1].startswith(f"{len(names)} objects, ")
        assert len(result.stdout.splitlines()) == len(names) + 2


class TestVerify:
    """Objects that were spoilt on the disk."""

    def test_all_good(self, behind: Site) -> None:
        result = behind.gateway.tool("verify")
        assert (result.returncode, result.stdout) == (0, "")
        assert result.stderr.endswith(": all good.\n")

    def test_a_spoilt_base_is_told_and_stays(self, roomy: Site) -> None:
        hold(roomy, BASE)
        spoil(roomy.gateway, f"test-{BASE}.cvd")
        result = roomy.gateway.tool("verify")
        assert (result.returncode, result.stdout) == (1, "")
        bad, last = result.stderr.splitlines()
        assert bad.startswith(f"clamproxy: test-{BASE}.cvd: ")
        assert last.endswith(": 1 bad.")
        assert f"test-{BASE}.cvd" in listing(roomy.gateway)

    @pytest.mark.parametrize("cut", [False, True])
    def test_a_spoilt_base_is_made_up_for(self, roomy: Site, cut: bool) -> None:
        """The proxy, which served the bad bytes a moment before, notices without a restart."""
        hold(roomy, BASE)
        spoil(roomy.gateway, f"test-{BASE}.cvd", cut=cut)
        code, report = verified(roomy.gateway, "--repair")
        assert (code, outcomes(report)) == (0, {f"test-{BASE}.cvd": "mended"}), report
        assert [entry["name"] for entry in report["quarantine"]] == ([] if cut else [f"test-{BASE}.cvd"])
        assert whole(roomy.gateway).body == signed(f"test-{NEWEST}.cvd")
        outcome = roomy.client("fresh").run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(roomy, outcome)
        assert verified(roomy.gateway)[0] == 0

    @pytest.mark.parametrize("name", [f"test-{BASE + 1}.cdiff", "test-4.cdiff", f"test-{BASE}.cvd.sign"])
    def test_a_spoilt_patch_or_signature_is_made_up_for(self, roomy: Site, name: str) -> None:
        hold(roomy, BASE)
        spoil(roomy.gateway, name, cut=name.endswith(".sign"))
        roomy.origin.put(name, signed(name))
        code, report = verified(roomy.gateway, "--repair")
        assert (code, outcomes(report)) == (0, {name: "mended"}), report
        assert roomy.gateway.ask(f"/{name}").body == signed(name)
        assert not roomy.origin.count("W")
        outcome = roomy.client("fresh").run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(roomy, outcome)

    def test_an_origin_that_does_not_deliver(self, roomy: Site) -> None:
        """What is bad goes nevertheless; later it is fetched."""
        hold(roomy, BASE)
        spoil(roomy.gateway, f"test-{BASE}.cvd")
        roomy.origin.rule("*", faults.status(503))
        code, report = verified(roomy.gateway, "--repair")
        assert (code, outcomes(report)) == (1, {f"test-{BASE}.cvd": "dropped"})
        assert report["bad"][0]["remark"]
        assert f"test-{BASE}.cvd" not in listing(roomy.gateway)
        roomy.origin.heal()
        assert eventually(lambda: roomy.gateway.ask("/test.cvd").body == signed(f"test-{NEWEST}.cvd"))

    def test_without_fetching(self, roomy: Site) -> None:
        hold(roomy, BASE)
        spoil(roomy.gateway, f"test-{BASE}.cvd")
        result = roomy.gateway.tool("verify", "--repair", "--no-fetch")
        assert result.returncode == 1
        assert "; dropped (not fetched)" in result.stderr
        assert whole(roomy.gateway).body == signed(f"test-{NEWEST}.cvd")

    def test_while_objects_come_and_go(self, roomy: Site) -> None:
        """Neither command nor proxy stumbles over the other."""
        hold(roomy, BASE)
        running = [roomy.gateway.start_tool("verify") for _ in range(2)]
        assert roomy.gateway.tool("purge", "--yes", "--kind", "cdiff").returncode == 0
        for process in running:
            code, errors = run_to_the_end(process)
            assert code == 0, errors
        outcome = roomy.client("fresh").run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(roomy, outcome)

    def test_a_gap_that_cannot_be_filled(self, roomy: Site) -> None:
        """The proxy notices it without a restart: clients are led no further than patches lead."""
        hold(roomy, BASE)
        spoil(roomy.gateway, "test-4.cdiff")
        roomy.origin.refuse()  # else the proxy fetches the patch again as soon as it is gone
        assert verified(roomy.gateway, "--repair", "--no-fetch")[0] == 1
        for _ in range(2):
            outcome = roomy.client("fresh").run()
            assert (outcome.code, outcome.version) == (OK, 3), explain(roomy, outcome)
        assert "Update failed" not in outcome.output, outcome.output


class TestPurge:
    """Parts of the cache are taken from under the proxy."""

    def test_needs_a_yes(self, behind: Site) -> None:
        before = listing(behind.gateway)
        result = behind.gateway.tool("purge")
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert "--yes" in result.stderr
        result = behind.gateway.tool("purge", "--dry-run")
        assert (result.returncode, set(result.stdout.split())) == (0, before)
        assert listing(behind.gateway) == before

    def test_a_base_without_its_patches(self, roomy: Site) -> None:
        """Patches that lead on from nothing still serve who has their versions, and the next base."""
        hold(roomy, BASE)
        result = roomy.gateway.tool("purge", "--kind", "cvd", "--yes")
        assert result.returncode == 0, result.stderr
        names = listing(roomy.gateway)
        assert {name for name in names if "cvd" in name} == set()
        older = roomy.client("older", local=BASE).run()
        assert (older.code, older.version) == (OK, NEWEST), explain(roomy, older)
        fresh = roomy.client("fresh").run()
        assert (fresh.code, fresh.databases) == (OK, {"test.cvd": NEWEST}), explain(roomy, fresh)
        assert version_of(whole(roomy.gateway).body) == NEWEST

    def test_patches_without_their_base(self, roomy: Site) -> None:
        hold(roomy, BASE)
        assert roomy.gateway.tool("purge", "--kind", "cdiff", "--yes").returncode == 0
        assert f"test-{BASE}.cvd" in listing(roomy.gateway)
        fresh = roomy.client("fresh").run()
        assert (fresh.code, fresh.version) == (OK, NEWEST), explain(roomy, fresh)

    def test_everything(self, roomy: Site) -> None:
        hold(roomy, BASE)
        settle(roomy.origin)
        assert roomy.gateway.tool("purge", "--yes").returncode == 0
        assert listing(roomy.gateway) == set()
        assert roomy.gateway.stats()["databases"]["test"]["cached"] is None
        fresh = roomy.client("fresh").run()
        assert (fresh.code, fresh.databases) == (OK, {"test.cvd": NEWEST}), explain(roomy, fresh)

    def test_who_is_reading_goes_on(self, big: Site) -> None:
        body = big.gateway.ask(PATH).body
        with big.gateway.connection(buffer=16 * 1024) as connection:
            connection.request("GET", PATH, headers={"Host": "database.clamav.net"})
            response = connection.getresponse()
            beginning = response.read(1024)
            assert big.gateway.tool("purge", "--yes").returncode == 0
            assert listing(big.gateway) == set()
            assert beginning + response.read() == body

    def test_quarantine(self, roomy: Site) -> None:
        hold(roomy, BASE)
        spoil(roomy.gateway, f"test-{BASE}.cvd")
        assert verified(roomy.gateway, "--repair", "--no-fetch")[1]["quarantine"]
        names = listing(roomy.gateway)
        assert roomy.gateway.tool("purge", "--quarantine", "--yes").returncode == 0
        assert verified(roomy.gateway)[1]["quarantine"] == []
        assert listing(roomy.gateway) == names


class TestPrefetch:
    """What is fetched for no client."""

    def test_for_a_running_proxy(self, make_site: MakeSite) -> None:
        site = make_site(upstream=NAMED, serving={"prefetch": "none"})
        site.publish(NEWEST)
        result = site.gateway.tool("prefetch", "--database", "test")
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        assert result.stderr == f"clamproxy: test: CVD {NEWEST}.\n"
        site.origin.refuse()
        assert whole(site.gateway).body == signed(f"test-{NEWEST}.cvd")
        for name in (f"test-{NEWEST}.cdiff", f"test-{NEWEST}.cvd.sign"):
            assert site.gateway.ask(f"/{name}").body == signed(name)

    def test_nothing_is_fetched_twice(self, make_site: MakeSite) -> None:
        site = make_site(upstream=NAMED, serving={"prefetch": "none"})
        site.publish(NEWEST)
        for _ in range(2):
            assert site.gateway.tool("prefetch", "--database", "test").returncode == 0
        assert (site.origin.count("W"), site.origin.count(f"D{NEWEST}")) == (1, 1), site.origin.trace

    def test_an_origin_that_does_not_deliver(self, make_site: MakeSite) -> None:
        site = make_site(upstream=NAMED, serving={"databases": ["test", "other"]})
        site.publish(NEWEST)
        result = site.gateway.tool("prefetch", "--database", "test", "--database", "other")
        assert result.returncode == 2, result.stderr
        fetched, missing = [line for line in result.stderr.splitlines() if line.startswith("clamproxy: ")]
        assert fetched == f"clamproxy: test: CVD {NEWEST}."
        assert missing.startswith("clamproxy: other: nothing is cached; ")

    def test_refused_in_one_line(self, make_site: MakeSite) -> None:
        site = make_site(upstream={"offline": True})
        for arguments, words in (((), "upstream.offline"), (("--database", "nothing"), "upstream.offline")):
            result = site.gateway.tool("prefetch", *arguments)
            assert (result.returncode, result.stderr.count("\n")) == (1, 1)
            assert words in result.stderr

    def test_interrupted(self, make_site: MakeSite) -> None:
        """Ctrl-C: no traceback; what has arrived is kept."""
        site = make_site(upstream=NAMED | {"read_timeout": "20s"}, serving={"prefetch": "none"})
        site.publish(NEWEST)
        site.origin.rule("W", faults.Fault(stall_after=4000))
        process = site.gateway.start_tool("prefetch", "--database", "test")
        partial = site.gateway.cache / "partial" / f"test-{NEWEST}.cvd.part"
        assert eventually(lambda: partial.exists() and partial.stat().st_size, every=0.02)
        process.send_signal(signal.SIGINT)
        code, errors = run_to_the_end(process)
        assert code == 1
        assert "Traceback" not in errors, errors
        site.origin.heal()
        assert site.gateway.tool("prefetch", "--database", "test").returncode == 0
        assert site.origin.trace.split().count("R") == 1, site.origin.trace

    def test_joins_a_transfer_of_the_proxy(self, make_forged: MakeSite) -> None:
        site = make_forged(upstream=NAMED, serving={"prefetch": "none"})
        site.origin.rate = 2_000_000
        download = Download(site.gateway)
        assert eventually(lambda: list((site.gateway.cache / "partial").glob("daily-*.cvd.part")))
        process = site.gateway.start_tool("prefetch", "--database", "daily")
        answer = download.answer()
        assert (answer.status, answer.complete) == (200, True)
        site.origin.rate = None
        code, errors = run_to_the_end(process)
        assert code == 0, errors
        assert site.origin.count("W") == 1, site.origin.trace

    def test_the_proxy_joins_its_transfer(self, make_site: MakeSite) -> None:
        site = make_site(upstream=NAMED, serving={"prefetch": "none"})
        site.publish(NEWEST)
        site.origin.rule("W", faults.Fault(rate=len(signed(f"test-{NEWEST}.cvd"))))
        process = site.gateway.start_tool("prefetch", "--database", "test")
        assert eventually(lambda: list((site.gateway.cache / "partial").glob("test-*.cvd.part")), every=0.02)
        assert whole(site.gateway).body == signed(f"test-{NEWEST}.cvd")
        code, errors = run_to_the_end(process)
        assert code == 0, errors
        assert site.origin.count("W") == 1, site.origin.trace


@pytest.mark.parametrize(
    "arguments",
    [
        ("stats",),
        ("stats", "--json"),
        ("ls",),
        ("ls", "--json"),
        ("verify", "--json"),
        ("purge", "--dry-run"),
    ],
)
def test_a_reader_that_leaves(behind: Site, arguments: tuple[str, ...]) -> None:
    """``clamproxy … | head -1``: no traceback."""
    process = behind.gateway.start_tool(*arguments)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read().decode()
    process.wait(TOOL_LIMIT)
    assert "Traceback" not in errors, errors
    assert "Exception ignored" not in errors, errors


def test_objects_have_kinds_that_purge_knows() -> None:
    """A new kind must not be one that nothing deletes."""
    from clamproxy.cli.purge import _KINDS

    assert set().union(*_KINDS.values()) == set(Kind)
