"""The doctor on the gateway: configuration, cache, disk, clock, DNS, and the origin."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clamproxy.authority import Authority
from clamproxy.authority import found as found_authority
from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.doctor import gateway_checks as module
from clamproxy.doctor.findings import Deadline, Finding, Status, examine
from clamproxy.doctor.gateway_checks import GatewayChecks, judge_authority, proxy_pid
from clamproxy.notices.episodes import Chronicle
from clamproxy.notices.report import KEY
from clamproxy.notices.targets import targets_of
from clamproxy.origin.budget import PER_FILE
from clamproxy.releases.holds import FILE_NAME, Hold, hold
from clamproxy.site_files import Catalog, Edition, SiteFile, State
from clamproxy.storage.records import Records
from tests.support import faults
from tests.support.dns_server import FakeDns, Mode
from tests.support.fake_gateway import answer, gateways
from tests.support.fixtures import MakeCvd
from tests.support.object_store import READ_ONLY, ObjectStore
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, put_cvd

type Found = dict[str, Finding]
type Examine = Callable[..., Found]

OK, WARNING, PROBLEM, SKIPPED = Status
P = "/daily.cvd"
VERSION = 28


@pytest.fixture
def dns() -> Iterator[FakeDns]:
    with FakeDns() as server:
        server.versions["daily"] = VERSION
        yield server


@pytest.fixture
def origin(origin: OriginServer, make_cvd: MakeCvd) -> OriginServer:
    """It has a database, and tells the time."""
    origin.put("daily.cvd", make_cvd(VERSION))
    tell_time(origin, time.time())
    return origin


def tell_time(origin: OriginServer, at: float) -> None:
    origin.rule("*", faults.Fault(headers={"Date": formatdate(at, usegmt=True)}))


@pytest.fixture
def look(tmp_path: Path, origin: OriginServer, dns: FakeDns, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examines a gateway with this cache, origin and DNS."""
    for name in [name for name in os.environ if name.startswith("CLAMPROXY_")]:
        monkeypatch.delenv(name)

    def examined(**sections: dict[str, Any]) -> Found:
        settings: dict[str, dict[str, Any]] = {
            "upstream": {"url": origin.url, "user_agent": AGENT},
            "versions": {"nameservers": [dns.nameserver]},
        }
        for name, section in sections.items():
            settings[name] = settings.get(name, {}) | section
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(settings))
        return run(str(path))

    return examined


def run(config: str | None) -> Found:
    deadline = Deadline(60)
    with closing(GatewayChecks(config, ["daily"], deadline)) as side:
        return {finding.subject: finding for finding in examine(side.checks(), deadline)}


@pytest.fixture
def cache(tmp_path: Path, make_cvd: MakeCvd) -> Path:
    """A cache in which something is."""
    store = Store(tmp_path / "cache")
    put_cvd(store, 5, make_cvd(5))
    store.close()
    return store.directory


def note(cache: Path, **notes: Any) -> None:
    with closing(Store(cache)) as store:
        for key, value in notes.items():
            store.set_note(key, value)


def cooldown(failure: str, reason: str, seconds: float = 5000) -> dict[str, Any]:
    now = time.time()
    return {"until": now + seconds, "failures": 1, "failure": failure, "reason": reason, "noted_at": now}


def check(found: Found, subject: str, status: Status, text: str, remedy: str = "") -> None:
    finding = found[subject]
    assert finding.status is status, finding
    assert text in finding.text, finding
    assert remedy in finding.remedy, finding
    if status in (PROBLEM, WARNING):
        assert finding.remedy, finding


def test_all_is_well(look: Examine, cache: Path) -> None:
    found = look(access={"max_connections": 10})
    assert {name for name, finding in found.items() if finding.status is not OK} == {
        "authority",
        "notices",
        "object store",
        "upstream proxy",
    }, found
    check(found, "index", OK, "1 object; daily 5")
    check(found, "version record", OK, "daily 28")
    check(found, "upstream", OK, "answers ClamAV/1.4.6: daily 28")


@pytest.mark.parametrize(
    ("serving", "databases"),
    [
        ({}, ["daily", "main", "bytecode", "valhalla"]),
        ({"databases": ["main", "daily", "valhalla"]}, ["daily", "main", "valhalla"]),
        ({"databases": ["test"]}, ["test"]),
    ],
)
def test_databases_that_machines_get(
    look: Examine, cache: Path, make_cvd: MakeCvd, serving: dict[str, Any], databases: list[str]
) -> None:
    """Not those that are enabled but have never come: ClamAV has given some up."""
    with closing(Store(cache)) as store:
        put_cvd(store, 9, make_cvd(9, database="valhalla"), database="valhalla")
    look(serving=serving)
    with closing(GatewayChecks(str(cache.parent / "own.yaml"), [], Deadline(60))) as side:
        list(examine(side.checks(), Deadline(60)))
        assert side.databases == databases


def test_before_the_first_start(look: Examine, tmp_path: Path) -> None:
    found = look()
    check(found, "cache directory", SKIPPED, "the first start creates it")
    check(found, "cool-downs", SKIPPED, "because of: cache directory")
    check(found, "upstream", OK, "")
    assert not (tmp_path / "cache").exists(), "the doctor makes nothing"


class TestConfiguration:
    def test_wrong(self, tmp_path: Path) -> None:
        path = tmp_path / "own.yaml"
        path.write_text("cache:\n  size_limit: much\n")
        found = run(str(path))
        check(found, "configuration", PROBLEM, "cache.size_limit is 'much'", "proxy.yaml")
        assert {finding.status for finding in found.values()} == {PROBLEM, SKIPPED}

    def test_missing(self, tmp_path: Path) -> None:
        check(run(str(tmp_path / "none.yaml")), "configuration", PROBLEM, "no such configuration file")


class TestCache:
    def test_mode(self, look: Examine, cache: Path) -> None:
        cache.chmod(0o755)
        check(look(), "cache directory", WARNING, "has mode 0755", f"chmod 700 {cache}")

    def test_a_file_in_the_way(self, look: Examine, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("")
        check(look(), "cache directory", PROBLEM, "is not a directory", "cache.directory")

    def test_of_another_user(self, look: Examine, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
        found = look()
        check(found, "cache directory", WARNING, "belongs to user", "run this as the proxy's user")
        check(found, "index", SKIPPED, "another user")
        assert "an unknown amount" in found["disk space"].text
        check(found, "upstream", SKIPPED, "without the index")

    def test_not_writable(self, look: Examine, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda *_: False)
        check(look(), "cache directory", PROBLEM, "can't be written", "ReadWritePaths")

    def test_a_damaged_index(self, look: Examine, cache: Path) -> None:
        (cache / "index" / "cache.db").write_bytes(b"no database at all" * 1000)
        for name in ("cache.db-wal", "cache.db-shm"):
            (cache / "index" / name).unlink(missing_ok=True)
        found = look()
        check(found, "index", WARNING, "the index is damaged", "rebuilds the index")
        assert found["quarantine"].status is OK

    @pytest.mark.parametrize(
        ("free", "status", "text"),
        [
            (10 * 2**30, OK, "10.0 GiB are free"),
            (2 * 2**30, WARNING, "may grow to 4.0 GiB"),
            (2**20, PROBLEM, "may not fit"),
        ],
    )
    def test_disk(
        self,
        look: Examine,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        free: int,
        status: Status,
        text: str,
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        check(look(), "disk space", status, text)

    def test_quarantine(self, look: Examine, cache: Path) -> None:
        with closing(Store(cache)) as store:
            path = store.partials / "x"
            path.write_bytes(b"<html>")
            store.quarantine("daily-6.cvd", path, "does not begin with ClamAV-VDB:")
        text = "1 rejected file, the last one daily-6.cvd: does not begin with ClamAV-VDB:"
        check(look(), "quarantine", WARNING, text, str(cache / "quarantine"))

    def test_stuck_patches(self, look: Examine, cache: Path) -> None:
        check(look(), "patches", OK, "keeps failing verification")
        trouble = {"failures": 7, "since": time.time() - 7200, "last": time.time()}
        note(cache, **{"stuck/daily-6.cdiff": trouble})
        check(look(), "patches", WARNING, "daily-6.cdiff failed verification 7 times", "the quarantine")

    def test_own_files(self, look: Examine, cache: Path) -> None:
        check(look(), "own files", OK, "none")
        place = cache / "site-files"  # without a state directory, records are in the cache
        place.mkdir()
        unchecked = Edition("0" * 64, 10, 1_800_000_000, None)
        Catalog({"a.ndb": SiteFile("a.ndb", State.PUBLISHED, 1.0, served=unchecked)}).save(place)
        check(look(), "own files", WARNING, "clamscan isn't installed", "apt install clamav")
        Catalog({"a.ndb": SiteFile("a.ndb", State.REFUSED, 1.0, "line 3")}).save(place)
        check(look(), "own files", WARNING, "a.ndb is refused", "clamproxy files")
        assert look(files={"directory": None})["own files"].status is SKIPPED

    def test_notices(self, look: Examine, cache: Path) -> None:
        check(look(), "notices", SKIPPED, "nobody is told")
        sections = {"notify": {"webhooks": [{"url": "http://hooks.example.net/SECRET", "form": "json"}]}}
        check(look(**sections), "notices", OK, "nothing has failed with 1 target")
        (target,) = targets_of(Settings.model_validate(sections))
        failed = Chronicle().after_attempt(target.id, "the server answered 500", time.time())
        Records(cache.with_name("cache-state")).set_note(KEY, failed.saved())
        text = "json webhook at http://hooks.example.net failed 1 time: the server answered 500"
        check(look(**sections), "notices", WARNING, text, "clamproxy notify test")

    def test_holds(self, look: Examine, cache: Path) -> None:
        check(look(), "holds", OK, "no database is held or delayed")
        hold(cache, "daily", Hold(6, time.time() - 60, "alice", "false positives"))
        check(look(), "holds", OK, "by alice: false positives")
        hold(cache, "daily", Hold(6, time.time() - 4 * 86400, "alice"))
        check(look(), "holds", WARNING, "longer than releases.longest_hold", "`clamproxy release daily`")
        (cache / FILE_NAME).write_text("")
        check(look(), "holds", PROBLEM, "is damaged", "`clamproxy hold DATABASE VERSION`")

    @pytest.mark.parametrize(
        ("failure", "reason", "text"),
        [
            ("forbidden", "status 403", "refuses this version of freshclam as too old"),
            ("rate limited", "status 429", "too many requests"),
            ("unreachable", "Connection refused", "can't be reached"),
            ("bad content", "gzip", "not one of ClamAV's files"),
            ("server error", "status 500", "passes"),
        ],
    )
    def test_cooldowns(self, look: Examine, cache: Path, failure: str, reason: str, text: str) -> None:
        note(cache, **{"cooldown/client ClamAV/1.0.0": cooldown(failure, reason)})
        note(cache, **{"cooldown//main.cvd": cooldown(failure, reason, seconds=10)})
        note(cache, **{"cooldown//old.cvd": cooldown(failure, reason, seconds=-10)})
        found = look()
        check(found, "cool-downs", WARNING, text)
        check(found, "cool-downs", WARNING, f"(client ClamAV/1.0.0): {reason} (and 1 more")


class TestLimits:
    @pytest.mark.parametrize(
        ("hard", "status", "text"),
        [
            (100, WARNING, "may have 100 files open; access.max_connections: 2000"),
            (10_000, OK, "10,000 files"),
            (resource.RLIM_INFINITY, OK, "any number of files"),
        ],
    )
    def test_files(
        self, look: Examine, monkeypatch: pytest.MonkeyPatch, hard: int, status: Status, text: str
    ) -> None:
        monkeypatch.setattr(resource, "prlimit", lambda *_: (64, hard))
        check(look(), "file limit", status, text, "LimitNOFILE" if status is WARNING else "")

    def test_the_proxy_that_runs(self, cache: Path) -> None:
        code = "import sys; from pathlib import Path; from clamproxy.cache.store import Store\n"
        code += "store = Store(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", code, str(cache)]
        assert proxy_pid(cache) is None
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            assert proxy_pid(cache) == process.pid
            assert proxy_pid(cache, cache / "no such file") is None
            process.communicate()
        assert proxy_pid(cache) is None


class TestAuthority:
    def test_none(self, look: Examine) -> None:
        check(look(), "authority", SKIPPED, "clamproxy ca init")

    def test_good(self, look: Examine, tmp_path: Path) -> None:
        make_authority(tmp_path / "ca", Settings())
        check(look(), "authority", OK, "is valid until")

    def test_of_another_user(self, look: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Authority, "load", refuse)
        check(look(), "authority", WARNING, "can't be read by this user", "the proxy's user")

    def test_names_that_came_later(self, look: Examine, tmp_path: Path) -> None:
        make_authority(tmp_path / "ca", Settings())
        check(look(tls={"names": ["gw.example.net"]}), "authority", WARNING, "gw.example.net", "ca rotate")

    def test_damaged(self, look: Examine, tmp_path: Path) -> None:
        make_authority(tmp_path / "ca", Settings())
        for path in (tmp_path / "ca").iterdir():
            path.write_text("{")
        check(look(), "authority", PROBLEM, "damaged")

    @pytest.mark.parametrize(
        ("begin", "end", "status", "text"),
        [
            (-10, 100, OK, "valid until"),
            (-10, 10, WARNING, "expires on"),
            (-10, -1, PROBLEM, "expired"),
            (1, 100, PROBLEM, "not valid before"),
        ],
    )
    def test_the_time_of_the_authority(self, begin: int, end: int, status: Status, text: str) -> None:
        verdict = judge_authority(certificate(begin, end), time.time())
        assert (verdict.status, text in verdict.text) == (status, True), verdict

    def test_a_successor_is_there(self) -> None:
        assert judge_authority(certificate(-10, 10) + certificate(-1, 99), time.time()).status is OK


def make_authority(directory: Path, settings: Settings) -> None:
    from clamproxy.authority import configured_names

    found_authority(directory, configured_names(settings)[0], time.time())


def certificate(begin: int, end: int) -> bytes:
    """A certificate that counts between two days, seen from today, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now + timedelta(days=begin))
    signed = builder.not_valid_after(now + timedelta(days=end)).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


class TestDns:
    @pytest.mark.parametrize(
        ("mode", "text"),
        [
            (Mode.NXDOMAIN, "does not exist"),
            (Mode.SERVFAIL, "says SERVFAIL)"),
            (Mode.SILENT, " doesn't answer)"),
            (Mode.GARBAGE, "not a version record"),
            (Mode.STALE, "older than 12 hours"),
        ],
    )
    def test_no_record(self, look: Examine, dns: FakeDns, mode: Mode, text: str) -> None:
        dns.mode = mode
        found = look()
        check(found, "version record", WARNING, text, "versions.nameservers")
        check(found, "version record", WARNING, "; the CDN is asked for the header of each CVD instead")

    @pytest.mark.parametrize("section", [{"upstream": {"offline": True}}, {"versions": {"dns": False}}])
    def test_not_asked(self, look: Examine, dns: FakeDns, section: dict[str, Any]) -> None:
        check(look(**section), "version record", SKIPPED, "doesn't ask DNS")
        assert dns.queries == []


class TestUpstream:
    def test_the_request_is_in_the_books(self, look: Examine, cache: Path, origin: OriginServer) -> None:
        check(look(), "upstream", OK, "")
        (seen,) = origin.requests()
        assert seen.headers["user-agent"] == AGENT
        assert seen.headers["range"] == "bytes=0-511"
        with closing(Store(cache)) as store:
            assert len(store.note(f"budget/{P}")) == 1
            assert store.counters() == {"upstream_requests": 1, "upstream_bytes": 512}

    def test_looks_are_counted(self, look: Examine, cache: Path, origin: OriginServer) -> None:
        """A person needs no pauses; but the CDN limits the number. A connection costs none of it."""
        for _ in range(PER_FILE):
            check(look(), "upstream", OK, "daily 28")
        check(look(), "upstream", SKIPPED, f"was requested {PER_FILE} times ")
        check(look(), "upstream", SKIPPED, f"there is a connection to localhost:{origin.port}")
        assert len(origin.requests()) == PER_FILE

    def test_without_a_request_the_origin_is_connected_to(
        self, look: Examine, cache: Path, origin: OriginServer
    ) -> None:
        note(cache, **{"cooldown/origin": cooldown("unreachable", "Connection refused")})
        origin.refuse()
        found = look()
        check(found, "upstream", PROBLEM, "can't be reached: ", "firewall")
        check(found, "cool-downs", WARNING, "can't be reached", "firewall")
        assert "finding" not in found["cool-downs"].remedy

    @pytest.mark.parametrize("key", [P, "origin", "client ClamAV/1.4.6"])
    def test_a_cooldown_is_respected(
        self, look: Examine, cache: Path, origin: OriginServer, key: str
    ) -> None:
        note(cache, **{f"cooldown/{key}": cooldown("forbidden", "status 403")})
        check(look(), "upstream", SKIPPED, "cool-down until ")
        assert origin.requests() == []

    def test_the_newest_freshclam_is_named(self, look: Examine, cache: Path, origin: OriginServer) -> None:
        agent = AGENT.replace("1.4.6", "1.5.3")
        note(cache, **{"agent/1.5.3": {"user_agent": agent, "seen_at": time.time()}})
        check(look(), "upstream", OK, "ClamAV/1.5.3")
        assert origin.requests()[0].headers["user-agent"] == agent

    def test_nobody_to_ask_for(self, look: Examine, cache: Path, origin: OriginServer) -> None:
        check(look(upstream={"user_agent": None}), "upstream", SKIPPED, "no supported freshclam")
        assert origin.requests() == []

    def test_offline(self, look: Examine, cache: Path, origin: OriginServer) -> None:
        check(look(upstream={"offline": True}), "upstream", SKIPPED, "offline")
        assert origin.requests() == []

    @pytest.mark.parametrize(
        ("fault", "text", "remedy"),
        [
            (faults.status(403), "answers 403 to ClamAV/1.4.6: The CDN refuses this version", "wait"),
            (faults.status(429, retry_after="7200"), "too many requests", "no other machine"),
            (faults.status(404), "answers 404", "upstream.url"),
            (faults.status(502), "answers 502", "tries again"),
            (faults.status(407), "requires a user and a password", "upstream.proxy"),
            (faults.html(), "is not a CVD", "replaces answers"),
            (faults.reset(), "can't be reached", "DNS and default route"),
            pytest.param(
                faults.Fault(headers={"Content-Encoding": "gzip"}),
                "is not a CVD: answer is encoded as gzip",
                "replaces answers",
                id="a file that the gateway would refuse, too",
            ),
        ],
    )
    def test_what_the_origin_answers(
        self, look: Examine, cache: Path, origin: OriginServer, fault: faults.Fault, text: str, remedy: str
    ) -> None:
        origin.rule("*", fault)
        check(look(), "upstream", PROBLEM, text, remedy)
        assert len(origin.requests()) == 1

    @pytest.mark.parametrize(("status", "key", "wait"), [(403, "client ClamAV/1.4.6", 60), (429, P, 7200)])
    def test_a_refusal_begins_a_cooldown(
        self, look: Examine, cache: Path, origin: OriginServer, status: int, key: str, wait: float
    ) -> None:
        origin.rule("*", faults.status(status, retry_after="7200" if status == 429 else "0"))
        look()
        with closing(Store(cache)) as store:
            noted = store.note(f"cooldown/{key}")
        assert noted["until"] - noted["noted_at"] == pytest.approx(wait)
        check(look(), "upstream", SKIPPED, "cool-down until")
        assert len(origin.requests()) == 1

    def test_the_origin_is_down(self, look: Examine, origin: OriginServer) -> None:
        origin.refuse()
        check(look(), "upstream", PROBLEM, "can't be reached: ", "firewall")
        found = look()
        assert "object at" not in found["upstream"].text

    def test_a_certificate_that_is_not_trusted(self, look: Examine, tmp_path: Path, dns: FakeDns) -> None:
        from tests.support.site import origin_certificates

        tls, _ = origin_certificates(tmp_path / "tls")
        with OriginServer(tls) as secured:
            found = look(upstream={"url": secured.url})
        check(found, "upstream", PROBLEM, "is not trusted", "upstream.ca_bundle")

    @pytest.mark.parametrize("is_trusted", [True, False])
    def test_tls_without_a_request(
        self, look: Examine, tmp_path: Path, cache: Path, is_trusted: bool
    ) -> None:
        from tests.support.site import origin_certificates

        note(cache, **{f"cooldown/{P}": cooldown("rate limited", "status 429")})
        tls, bundle = origin_certificates(tmp_path / "tls")
        with OriginServer(tls) as secured:
            found = look(upstream={"url": secured.url} | ({"ca_bundle": str(bundle)} if is_trusted else {}))
            assert secured.requests() == []
        if is_trusted:
            check(found, "upstream", SKIPPED, "its certificate is trusted")
        else:
            check(found, "upstream", PROBLEM, "is not trusted", "upstream.ca_bundle")

    def test_a_tunnel_without_a_request(self, look: Examine, cache: Path) -> None:
        """The proxy on the way is asked for a tunnel, and tells what is wrong."""
        note(cache, **{f"cooldown/{P}": cooldown("rate limited", "status 429")})
        upstream = {"url": "https://database.example.net"}
        with gateways() as make:
            refusing = make(answer(407))
            found = look(upstream=upstream | {"proxy": f"http://user:s3cret@127.0.0.1:{refusing.port}"})
            check(found, "upstream", PROBLEM, "requires a user and a password", "percent-encoded")
            head = next(head for head in refusing.seen if head)
        assert head.startswith("CONNECT database.example.net:443 ")

    def test_a_proxy_that_wants_a_password_is_asked_once(
        self, look: Examine, cache: Path, origin: OriginServer
    ) -> None:
        """With each further try, by the doctor or by the gateway, it may lock the account."""
        origin.rule("*", faults.status(407))
        for _ in range(2):
            check(look(), "upstream", PROBLEM, "requires a user and a password", "percent-encoded")
        assert len(origin.requests()) == 1
        with closing(Store(cache)) as store:
            assert store.note("cooldown/parent proxy")["failure"] == "proxy authentication"

    def test_its_proxy_is_down(self, look: Examine, origin: OriginServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        found = look(upstream={"proxy": f"http://user:s3cret@127.0.0.1:{port}"})
        check(found, "upstream proxy", PROBLEM, f"127.0.0.1:{port} can't be reached: refused")
        check(found, "upstream", SKIPPED, "because of: upstream proxy")
        assert "s3cret" not in str(found)

    def test_its_proxy_is_up(self, look: Examine, origin: OriginServer) -> None:
        found = look(upstream={"proxy": f"http://127.0.0.1:{origin.port}"})
        check(found, "upstream proxy", OK, "can be reached")


class TestClock:
    @pytest.mark.parametrize(("shift", "text"), [(7290, "2 h behind"), (-200_000, "2 d ahead of")])
    def test_by_the_origin(self, look: Examine, origin: OriginServer, shift: float, text: str) -> None:
        tell_time(origin, time.time() + shift)
        check(look(), "clock", PROBLEM, f"{text} that of the origin", "NTP")

    def test_by_the_record(
        self, look: Examine, dns: FakeDns, origin: OriginServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        origin.refuse()
        check(look(), "clock", OK, "not behind the version record")
        monkeypatch.setattr(dns, "_text", lambda *_: f"1:62:27800:{int(time.time() + 7200)}:0:90:1:339")
        check(look(), "clock", PROBLEM, "behind that of the version record")

    def test_nobody_tells(self, look: Examine, dns: FakeDns, origin: OriginServer) -> None:
        origin.refuse()
        dns.mode = Mode.NXDOMAIN
        check(look(), "clock", SKIPPED, "neither the origin nor DNS gave")


def test_findings_are_json(look: Examine) -> None:
    rows = json.loads(json.dumps([finding.to_json() for finding in look().values()]))
    assert set(rows[0]) == {"status", "subject", "text", "remedy"}
    assert rows[0]["remedy"] is None


def test_a_check_that_fails_hides_nothing(look: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError("at the disk")

    monkeypatch.setattr(module, "_bytes_below", fail)
    found = look()
    check(found, "disk space", PROBLEM, "the check itself failed: at the disk", "bug")
    check(found, "version record", OK, "")


# The object store


def test_without_an_object_store(look: Examine) -> None:
    check(look(), "object store", SKIPPED, "fleet_store is not set")


def test_an_object_store(look: Examine, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAMPROXY_FLEET_STORE", object_store.use(monkeypatch))
    check(look(), "object store", OK, "can be used, with conditional writes")
    assert object_store.count("PUT", "checks/") > 1
    object_store.faults.ignores = ("If-Match",)
    check(look(), "object store", PROBLEM, "no conditional replacement", "another object store")
    object_store.faults.ignores = ()
    object_store.faults.refuse = READ_ONLY
    check(look(), "object store", PROBLEM, "403 Forbidden (AccessDenied)", "rights")
    object_store.go_down()
    check(look(), "object store", PROBLEM, "Connection refused", "address")


def test_the_clock_of_the_object_store(
    look: Examine, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAMPROXY_FLEET_STORE", object_store.use(monkeypatch))
    object_store.faults.clock = -3600.0
    check(look(), "object store", WARNING, "ahead of the object store's", "NTP")
