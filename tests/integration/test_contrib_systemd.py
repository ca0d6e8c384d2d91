"""The files for systemd: hardened, in step with the program, and understood by systemd's own tools."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from clamproxy.config.loading import load_settings
from clamproxy.config.settings import Settings
from clamproxy.config.units import Endpoint
from tests.support.contrib import CONTRIB, NOFILE_PER_CONNECTION, parse
from tests.support.programs import require_program

SYSTEMD = CONTRIB / "systemd"
UNIT = SYSTEMD / "clamproxy.service"
MIRROR = SYSTEMD / "clamproxy-mirror@.service"
TIMER = SYSTEMD / "clamproxy-mirror@.timer"
PROGRAM = "/opt/clamproxy/bin/clamproxy"


def values(name: str, path: Path = UNIT) -> list[str]:
    """All values of a setting, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def seconds(name: str) -> int:
    return int(values(name)[0].removesuffix("s"))


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = require_program("systemd-analyze")
    return subprocess.run([program, "--no-pager", *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit as it is installed, with a program that is there."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))
    return path


def test_exposure(installed: Path) -> None:
    """At most 2.0 of 10."""
    result = analyze("security", "--offline=yes", "--threshold=20", str(installed))
    assert result.returncode == 0, result.stdout + result.stderr


def test_exposure_with_port_53(installed: Path) -> None:
    extra = installed.with_name(f"{UNIT.name}.d")
    extra.mkdir()
    shutil.copy(SYSTEMD / "dns.conf", extra)
    result = analyze("security", "--offline=yes", "--threshold=20", str(installed))
    assert result.returncode == 0, result.stdout + result.stderr
    assert analyze("verify", "--man=no", str(installed)).stderr == ""


def test_systemd_understands_the_unit(installed: Path) -> None:
    result = analyze("verify", "--man=no", str(installed))
    assert (result.returncode, result.stderr) == (0, "")


def test_commands_are_ours() -> None:
    start = shlex.split(values("ExecStart")[0])
    assert start[0] == PROGRAM
    assert start[-1] == "$OPTIONS"
    params = parse(start[:-1])
    # Where it listens is up to proxy.yaml.
    assert (params["port"], params["config"]) == (None, "/etc/clamproxy/proxy.yaml")
    (reload,) = values("ExecReload")
    assert parse(shlex.split(reload)) == {"config": "/etc/clamproxy/proxy.yaml"}


def test_directories_agree() -> None:
    """Whatever the gateway writes is where the unit lets it write."""
    settings = load_settings(SYSTEMD / "proxy.yaml", {})
    assert str(settings.cache.directory) == f"/var/cache/{values('CacheDirectory')[0]}"
    state = Path("/var/lib") / values("StateDirectory")[0]
    assert settings.tls.directory.is_relative_to(state)
    assert f"confdir={state}/" in values("ExecStart")[0]
    assert values("CacheDirectoryMode") == values("StateDirectoryMode") == ["0700"]
    tmpfiles = (SYSTEMD / "clamproxy.tmpfiles").read_text()
    made = re.findall(r"^d (\S+) +(\d+) (\S+)", tmpfiles, re.MULTILINE)
    assert made == [
        ("/etc/clamproxy", "0755", "root"),
        ("/var/cache/clamproxy", "0700", "clamproxy"),
        ("/var/lib/clamproxy", "0700", "clamproxy"),
    ]


@pytest.fixture
def mirror(tmp_path: Path) -> list[str]:
    """Service and timer of a mirror in /srv, as they are installed."""
    for path in (MIRROR, TIMER):
        (tmp_path / path.name.replace("@", "@srv")).write_text(path.read_text().replace(PROGRAM, "/bin/true"))
    return [str(tmp_path / path.name.replace("@", "@srv")) for path in (MIRROR, TIMER)]


def test_systemd_understands_the_mirror(mirror: list[str]) -> None:
    result = analyze("verify", "--man=no", *mirror)
    assert (result.returncode, result.stderr) == (0, "")


def test_mirror_is_confined_like_the_gateway(mirror: list[str]) -> None:
    result = analyze("security", "--offline=yes", "--threshold=20", mirror[0])
    assert result.returncode == 0, result.stdout + result.stderr
    first, behind = "ProtectSystem=strict", "WantedBy=multi-user.target"
    gateway, own = (
        [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "["))]
        for path in (UNIT, MIRROR)
    )
    assert own[own.index(first) :] == gateway[gateway.index(first) : gateway.index(behind)]


def test_mirror_runs_our_command() -> None:
    start = shlex.split(values("ExecStart", MIRROR)[0])
    assert (start[0], start[-2:]) == (PROGRAM, ["$MIRROR_OPTIONS", "%f"])
    params = parse([*start[:-2], "/srv"])
    assert (params["directory"], params["config"]) == (Path("/srv"), "/etc/clamproxy/proxy.yaml")
    assert values("ReadWritePaths", MIRROR) == ["%f"]
    for name in ("User", "EnvironmentFile", "CacheDirectory", "StateDirectory"):
        assert values(name, MIRROR) == values(name)


def test_defaults_change_nothing_and_name_what_the_units_read() -> None:
    text = (SYSTEMD / "clamproxy.default").read_text()
    assert all(line.startswith("#") for line in text.splitlines() if line)
    variables = dict(re.findall(r"^#(\w+)=(.*)$", text, re.MULTILINE))
    for path, name in ((UNIT, "OPTIONS"), (MIRROR, "MIRROR_OPTIONS")):
        variables.pop(name)
        assert f"${name}" in values("ExecStart", path)[0]
    load_settings(SYSTEMD / "proxy.yaml", variables)


def test_limits_are_in_step() -> None:
    connections = Settings().access.max_connections
    assert int(values("LimitNOFILE")[0]) >= NOFILE_PER_CONNECTION * connections + 256


def test_time_to_stop() -> None:
    """The grace of the gateway is over before systemd kills it."""
    from clamproxy.proxy.addon import STOP_GRACE

    assert seconds("TimeoutStopSec") >= 2 * STOP_GRACE
    assert seconds("WatchdogSec") >= 30
    assert values("Type") == ["notify"]


def test_sysusers_makes_the_user(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    program = require_program("systemd-sysusers")
    source = str(SYSTEMD / "clamproxy.sysusers")
    result = subprocess.run(
        [program, f"--root={tmp_path}", source], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    users = (tmp_path / "etc" / "passwd").read_text()
    assert re.search(r"^clamproxy:x:\d+:\d+:.*:/var/lib/clamproxy:/usr/sbin/nologin$", users, re.MULTILINE)


def test_port_53_is_a_setting() -> None:
    setting = re.search(
        r"^Environment=(CLAMPROXY_.*)=(.*)$", (SYSTEMD / "dns.conf").read_text(), re.MULTILINE
    )
    assert setting is not None
    listen = load_settings(SYSTEMD / "proxy.yaml", {setting[1]: setting[2]}).listen
    assert (listen.dns, listen.proxy) == ((Endpoint("*", 53),), (Endpoint("*", 8080),))


def test_logrotate(tmp_path: Path) -> None:
    text = (CONTRIB / "logrotate" / "clamproxy").read_text()
    assert "copytruncate" in text
    program = shutil.which("logrotate")
    if program is None:
        pytest.skip("logrotate is not installed")
    config = tmp_path / "clamproxy"
    config.write_text(text.replace("su clamproxy clamproxy", ""))
    command = [program, "--debug", "--state", str(tmp_path / "state"), str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "error" not in result.stderr.lower()
