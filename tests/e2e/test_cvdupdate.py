"""cvdupdate, ClamAV's own mirror tool, behind the gateway (docs/protocol.md 9.5)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.files import ASSUMED_UPLOAD_DELAY
from tests.support.gateway import CDN, Way
from tests.support.programs import require_program
from tests.support.scenes import NEWEST, ROOMY, hold, settle, shown
from tests.support.site import LOCALHOST, Site, answers, build_time, eventually, resolver_of, signed

from .conftest import MakeSite

DAILY_FIELD = 2
"""Where the primary TXT record has a version that this test can choose: that of daily."""
NOWHERE = f"http://{LOCALHOST}:9"
LIMIT = 50
"""Seconds for one run."""


@dataclass(slots=True, kw_only=True)
class CvdUpdate:
    """One installation: a directory, a configuration, and where database test comes from."""

    directory: Path
    url: str
    nameserver: str
    use_dns: bool = True
    """Whether the version comes from the TXT record or from the header of the CVD."""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        (self.directory / "config.json").write_text(json.dumps(self._config()))
        database = {
            "url": self.url,
            "retry after": 0,
            "last modified": 0,
            "last checked": 0,
            "DNS field": DAILY_FIELD if self.use_dns else 0,
            "local version": 0,
            "CDIFFs": [],
        }
        self._state.write_text(json.dumps({"dbs": {"test.cvd": database}}))

    @property
    def files(self) -> dict[str, bytes]:
        """What it has fetched; dns.txt is its own."""
        directory = self.directory / "db"
        return {path.name: path.read_bytes() for path in directory.glob("*") if path.name != "dns.txt"}

    @property
    def cooling(self) -> bool:
        """Whether it was told to stay away."""
        return bool(json.loads(self._state.read_text())["dbs"]["test.cvd"]["retry after"])

    def backdate(self, seconds: float) -> None:
        """Let the last run have been at that time; it is what the header probe has for its condition."""
        state = json.loads(self._state.read_text())
        state["dbs"]["test.cvd"]["last modified"] = seconds
        self._state.write_text(json.dumps(state))

    def run(self) -> tuple[int, str]:
        """``cvd update``: its exit code, which is the number of errors, and what it prints."""
        # It also looks for a newer release of itself, which must not leave this machine.
        proxies = {"http_proxy": "", "https_proxy": NOWHERE, "no_proxy": ""}
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory)}
        result = subprocess.run(
            [require_program("cvd"), "update", "--verbose", "--config", str(self.directory / "config.json")],
            env=environment | proxies | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        return result.returncode, result.stdout

    @property
    def _state(self) -> Path:
        return self.directory / "state.json"

    def _config(self) -> dict[str, object]:
        return {
            "nameserver": self.nameserver,
            "max retry": 3,
            "log directory": str(self.directory / "logs"),
            "rotate logs": True,
            "# logs to keep": 30,
            "db directory": str(self.directory / "db"),
            "rotate cdiffs": True,
            "# cdiffs to keep": 30,
            "state file": str(self._state),
        }


def proxies(site: Site) -> dict[str, str]:
    proxy = f"http://{LOCALHOST}:{site.gateway.port}"
    return {"http_proxy": proxy, "https_proxy": proxy}


def mirror(site: Site, name: str = "mirror", way: Way = Way.ABSOLUTE, *, use_dns: bool = True) -> CvdUpdate:
    """An installation whose requests reach the gateway in one of the ways that it knows."""
    require_program("cvd")
    proxy = f"http://{LOCALHOST}:{site.gateway.port}"
    url, environment = {
        Way.ABSOLUTE: (f"http://{CDN}", proxies(site)),
        Way.CONNECT_HTTPS: (
            f"https://{CDN}",
            {"https_proxy": proxy, "REQUESTS_CA_BUNDLE": str(site.gateway.ca)},
        ),
        Way.REVERSE: (f"http://{LOCALHOST}:{site.gateway.reverse_port}", dict[str, str]()),
    }[way]
    return CvdUpdate(
        directory=site.directory / name,
        url=f"{url}/test.cvd",
        nameserver=resolver_of(site.dns),
        use_dns=use_dns,
        environment=environment,
    )


def direct(site: Site, *, use_dns: bool = True) -> CvdUpdate:
    """One that asks the origin itself."""
    require_program("cvd")
    return CvdUpdate(
        directory=site.directory / "direct",
        url=f"{site.origin.url}/test.cvd",
        nameserver=resolver_of(site.dns),
        use_dns=use_dns,
    )


def release(site: Site, version: int) -> None:
    """Release a version, and let the TXT record show it where the program looks."""
    site.publish(version)
    site.dns.versions["daily"] = version


ways = pytest.mark.parametrize("way", [Way.ABSOLUTE, Way.CONNECT_HTTPS, Way.REVERSE])
modes = pytest.mark.parametrize("use_dns", [True, False], ids=["dns", "header"])


@ways
@modes
def test_the_directory_is_as_from_the_origin(site: Site, way: Way, use_dns: bool) -> None:
    """A new mirror, and an update of two releases."""
    through, straight = mirror(site, way=way, use_dns=use_dns), direct(site, use_dns=use_dns)
    for version in (4, NEWEST):
        release(site, version)
        assert eventually(lambda wanted=version: shown(site.gateway) == wanted), site.gateway.log  # type: ignore[misc]
        for program in (through, straight):
            code, output = program.run()
            assert code == 0, output + site.gateway.log
            # The test data are years old, and the next release comes soon after this one.
            program.backdate(build_time(version) + ASSUMED_UPLOAD_DELAY)
        assert through.files["test.cvd"] == signed(f"test-{version}.cvd")
        assert through.files == straight.files
    names = {"test.cvd", "test-4.cvd.sign", "test-6.cvd.sign"}
    names |= {f"test-{version}.cdiff{end}" for version in (4, 5, 6) for end in ("", ".sign")}
    assert set(through.files) == names


@modes
def test_a_second_mirror_costs_nothing(site: Site, use_dns: bool) -> None:
    release(site, NEWEST)
    assert mirror(site, "first", use_dns=use_dns).run()[0] == 0
    settle(site.origin)
    site.origin.forget()
    second = mirror(site, "second", use_dns=use_dns)
    assert second.run()[0] == 0
    assert second.files["test.cvd"] == signed("test-6.cvd")
    assert site.origin.trace == ""
    assert "up-to-date" in second.run()[1]


@ways
@modes
def test_delta_serving_does_not_concern_cvdupdate(make_site: MakeSite, way: Way, use_dns: bool) -> None:
    """The gateway holds an old CVD and its cdiffs; cvdupdate gets the version that it asks for."""
    site = make_site(delta=ROOMY)
    hold(site, 2)
    site.dns.versions["daily"] = NEWEST
    program = mirror(site, way=way, use_dns=use_dns)
    code, output = program.run()
    assert code == 0, output + site.gateway.log
    assert program.files["test.cvd"] == signed("test-6.cvd")
    assert program.files["test-6.cdiff"] == signed("test-6.cdiff")
    assert program.files["test-6.cvd.sign"] == signed("test-6.cvd.sign")
    assert site.origin.count("W") == 1


def test_cvdupdate_knows_of_a_release_before_the_gateway(make_site: MakeSite) -> None:
    """``?version=N`` is a demand: what is cached is older, and the gateway's own look-up is an hour old."""
    site = make_site(versions={"refresh": "1h"})
    release(site, 5)
    program = mirror(site)
    assert program.run()[0] == 0
    release(site, NEWEST)
    code, output = program.run()
    assert code == 0, output + site.gateway.log
    assert program.files["test.cvd"] == signed("test-6.cvd")
    assert program.files["test-6.cdiff"] == signed("test-6.cdiff")


@pytest.mark.parametrize("code", [429, 403, 503])
def test_a_refusal_of_the_origin_is_not_passed_on(site: Site, code: int) -> None:
    """A Retry-After that is a date would make it stumble, and any 429 sends it away for hours."""
    release(site, NEWEST)
    answers("*", faults.status(code, retry_after="Fri, 31 Dec 2100 23:59:59 GMT"))(site.origin)
    program = mirror(site)
    errors, output = program.run()
    assert errors == 1, output
    assert not program.cooling, output
    assert "too frequently" not in output


def test_a_mirror_for_freshclam(site: Site) -> None:
    """What it leaves can be served: a client behind the gateway ends where the mirror is."""
    release(site, 5)
    program = mirror(site)
    assert program.run()[0] == 0
    release(site, NEWEST)
    client = site.client(local=4)
    assert eventually(lambda: client.run().version == NEWEST), site.gateway.log
    assert program.run()[0] == 0
    assert program.files["test.cvd"] == signed("test-6.cvd")
    assert site.origin.count("D6") == 1


@pytest.mark.parametrize("base", [2, 4], ids=["patches lead to it", "its CVD is cached"])
@modes
def test_a_gateway_that_holds(make_site: MakeSite, use_dns: bool, base: int) -> None:
    """A mirror at the held version stays there, one that is ahead keeps its own; nothing is sent at each run.

    With DNS, which is ahead, a new one gets nothing; without, the CVD if it is cached.
    """
    site = make_site(delta=ROOMY)
    mirrors = {version: mirror(site, f"at-{version}", use_dns=use_dns) for version in (4, NEWEST)}
    for version, program in mirrors.items():
        release(site, version)
        assert eventually(lambda wanted=version: shown(site.gateway) == wanted), site.gateway.log  # type: ignore[misc]
        program.run()
        program.backdate(build_time(version) + ASSUMED_UPLOAD_DELAY)
    site.gateway.stop()
    shutil.rmtree(site.gateway.cache)  # after a purge, it would take nothing older
    site.gateway.start()
    for program in mirrors.values():
        program.environment = proxies(site)  # it listens on another port now
    hold(site, base)
    assert site.gateway.tool("hold", "test", "4").returncode == 0
    assert eventually(lambda: shown(site.gateway) == 4), site.gateway.log
    site.dns.versions["daily"] = NEWEST
    mirrors[0] = mirror(site, "new", use_dns=use_dns)
    expected = {4: 4, NEWEST: NEWEST, 0: 4 if base == 4 and not use_dns else None}
    for version, program in mirrors.items():
        _, output = program.run()
        logged = len(site.gateway.log)
        program.run()
        wanted = expected[version]
        assert program.files.get("test.cvd") == (signed(f"test-{wanted}.cvd") if wanted else None), output
        assert not program.cooling
        assert " 200 " not in re.sub(r".*\.sign .*", "", site.gateway.log[logged:])
