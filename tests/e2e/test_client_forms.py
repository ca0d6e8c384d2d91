"""What `client-config --for` prints does its work: run for real, with the real freshclam."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from werkzeug.security import generate_password_hash

from tests.support.freshclam import COOL_DOWN_OFFSET, require_freshclam
from tests.support.gateway import free_ports
from tests.support.programs import require_program
from tests.support.site import LOCALHOST, Site, eventually

from .conftest import MakeSite
from .test_status_site import direct

SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}
FORMS = ("script", "ansible", "gpo", "dockerfile")
FORMER = """\
# Kept as it is.
DatabaseDirectory {databases}
DatabaseOwner root
  DatabaseMirror db.local.clamav.net
DatabaseMirror database.clamav.net
HTTPProxyServer old-proxy.example.net
HTTPProxyPort 3128
PrivateMirror mirror.example.net
ExcludeDatabase main
ExcludeDatabase daily
ExcludeDatabase bytecode
ExtraDatabase test
ConnectTimeout 10
MaxAttempts 1
"""
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> "{calls}"
"""


@dataclass(frozen=True)
class Machine:
    """A root directory with freshclam.conf, as the script sees it. Its daemon seems to be running."""

    root: Path

    @property
    def conf(self) -> Path:
        return self.root / "etc/clamav/freshclam.conf"

    @property
    def databases(self) -> Path:
        return self.root / "var/lib/clamav"

    @property
    def environment(self) -> dict[str, str]:
        """Of the script, which keeps what it prepares among temporary files."""
        return {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "CLAMPROXY_ROOT": str(self.root),
            "TMPDIR": str(self.root / "tmp"),
        }

    @property
    def calls(self) -> list[str]:
        """What systemctl was asked for."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def backups(self) -> list[Path]:
        return sorted(self.conf.parent.glob("*.bak"))

    def make(self) -> Machine:
        for name in ("run/systemd/system", "bin", "tmp"):
            (self.root / name).mkdir(parents=True)
        for path in (self.conf.parent, self.databases):
            path.mkdir(parents=True)
        self.conf.write_text(FORMER.format(databases=self.databases))
        self.conf.chmod(0o640)
        # Without DNS, of which there is none here.
        self.put("freshclam", f'#!/bin/sh\nexec {require_freshclam()} --no-dns "$@"\n')
        self.put("systemctl", SYSTEMCTL.format(calls=self.root / "calls"))
        return self

    def run(
        self, script: str, shell: str, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """As with ``curl … | sh``, where the script comes through the standard input."""
        require_program(SHELLS[shell][0])
        return subprocess.run(
            [*SHELLS[shell], "-s", "--", *arguments],
            input=script,
            env={**self.environment, "LC_ALL": "C", **environment},
            capture_output=True,
            text=True,
            timeout=100,
            start_new_session=True,  # no terminal to ask on
        )

    def has_all_back(self) -> bool:
        """Whether the former file and nothing else is there, and the daemon runs."""
        names = [path.name for path in self.conf.parent.iterdir()]
        is_former = self.conf.read_text() == FORMER.format(databases=self.databases)
        return is_former and names == [self.conf.name] and self.calls[-1].startswith("--quiet start ")

    @contextmanager
    def failing(self) -> Iterator[None]:
        """freshclam fails, whatever it is told."""
        working = self.root / "bin/freshclam"
        content = working.read_text()
        self.put("freshclam", "#!/bin/sh\nexit 11\n")
        yield
        self.put("freshclam", content)

    def put(self, name: str, content: str) -> None:
        """Replace a program."""
        path = self.root / "bin" / name
        path.write_text(content)
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine").make()


def printed(site: Site, form: str = "script", mode: str = "http", port: int | None = None) -> str:
    where = ("--gateway", LOCALHOST, "--port", str(port or site.gateway.port))
    result = site.gateway.tool("client-config", *where, "--for", form, "--mode", mode)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_first_and_second_run(site: Site, machine: Machine, shell: str) -> None:
    site.publish(6)
    answer = direct(site.gateway.port, "/client-config?for=script")
    script = answer.body.decode()
    assert answer.status == 200
    result = machine.run(script, shell)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + site.gateway.log
    assert "clamproxy: freshclam works with the gateway\n" in result.stdout
    # Also clamd, as another user, reads what freshclam has written.
    assert {path.stat().st_mode & 0o044 for path in machine.databases.iterdir()} == {0o044}
    assert (machine.databases / "test.cvd").exists()
    assert machine.calls == [
        f"--quiet {what} clamav-freshclam.service" for what in ("is-active", "stop", "start")
    ]
    kept = [
        line
        for line in FORMER.splitlines()
        if not re.match(" *(DatabaseMirror|HTTPProxy|PrivateMirror)", line)
    ]
    written = machine.conf.read_text()
    assert (
        written.splitlines()[: len(kept)] == "\n".join(kept).format(databases=machine.databases).splitlines()
    )
    settings = [line for line in written.splitlines()[len(kept) :] if not line.startswith("#")]
    assert settings == [
        f"HTTPProxyServer {LOCALHOST}",
        f"HTTPProxyPort {site.gateway.port}",
        "DatabaseMirror http://database.clamav.net",
    ]
    (backup,) = machine.backups()
    assert backup.read_text() == FORMER.format(databases=machine.databases)
    assert {path.stat().st_mode & 0o777 for path in (backup, machine.conf)} == {0o640}
    result = machine.run(script, shell)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"clamproxy: {machine.conf} already says so; nothing was changed\n"
    assert (machine.conf.read_text(), machine.backups()) == (written, [backup])
    assert len(machine.calls) == 3
    assert sorted(path.name for path in machine.conf.parent.iterdir()) == sorted(
        [backup.name, machine.conf.name]
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_another_name_of_the_record(make_site: MakeSite, machine: Machine, shell: str) -> None:
    """Another DNSDatabaseInfo goes only if the gateway's lines have one."""
    former = machine.conf.read_text() + "DNSDatabaseInfo old.example.net\n"
    machine.conf.write_text(former)
    for options, left in (
        ({}, ["old.example.net"]),
        ({"serving": {"dns_name": "current.cvd.example.net"}}, ["current.cvd.example.net"]),
    ):
        site = make_site(**options)
        site.publish(6)
        result = machine.run(printed(site), shell)
        assert result.returncode == 0, result.stdout + result.stderr
        found = re.findall("^DNSDatabaseInfo (.*)$", machine.conf.read_text(), re.MULTILINE)
        assert found == left


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("mode", ["https", "mirror", "private"])
def test_other_modes(site: Site, machine: Machine, shell: str, mode: str) -> None:
    """Also one after the other: each replaces what the former one has written."""
    site.publish(6)
    assert machine.run(printed(site), shell).returncode == 0
    shutil.rmtree(machine.databases)
    machine.databases.mkdir()
    script = direct(site.gateway.port, f"/client-config?for=script&mode={mode}").body.decode()
    result = machine.run(script, shell)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + site.gateway.log
    assert (machine.databases / "test.cvd").exists()
    assert machine.conf.read_text().count("# Begin clamproxy") == 1
    assert ("HTTPProxyServer" in machine.conf.read_text()) == (mode == "https")
    if mode == "https":
        trusted = machine.root / "usr/local/share/ca-certificates/clamproxy.pem"
        assert trusted.read_text() == site.gateway.ca.read_text()
        assert trusted.stat().st_mode & 0o777 == 0o644
        unit = machine.root / "etc/systemd/system/clamav-freshclam.service.d/clamproxy.conf"
        assert "CURL_CA_BUNDLE=/usr/local/share/ca-certificates/clamproxy.pem" in unit.read_text()
        assert "daemon-reload" in machine.calls
    assert "nothing was changed" in machine.run(script, shell).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_gateway_that_is_not_there(site: Site, machine: Machine, shell: str) -> None:
    (port,) = free_ports(1)
    result = machine.run(printed(site, port=port), shell)
    assert result.returncode == 1
    assert (
        f"the gateway does not answer at http://{LOCALHOST}:{port}/livez; nothing was changed"
        in result.stderr
    )
    assert machine.conf.read_text() == FORMER.format(databases=machine.databases)
    assert (machine.backups(), machine.calls) == ([], [])


@pytest.mark.parametrize("shell", SHELLS)
def test_a_gateway_that_has_nothing(site: Site, machine: Machine, shell: str) -> None:
    """It answers, but freshclam fails with it: the machine goes on as before."""
    result = machine.run(printed(site), shell)
    assert result.returncode == 1
    assert "clamproxy: freshclam failed with exit code" in result.stderr
    assert "is in place again" in result.stdout
    assert machine.conf.read_text() == FORMER.format(databases=machine.databases)
    assert machine.conf.stat().st_mode & 0o777 == 0o640
    assert machine.backups() == []
    assert machine.calls[-1] == "--quiet start clamav-freshclam.service"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("signal", ["HUP", "INT", "TERM", "KILL"])
def test_an_interrupted_run(site: Site, machine: Machine, shell: str, signal: str) -> None:
    """All is as before: at once, or, after SIGKILL, with the next run."""
    site.publish(6)
    script = printed(site)
    freshclam = (machine.root / "bin/freshclam").read_text()
    machine.put("freshclam", f"#!/bin/sh\nkill -{signal} $PPID\n")
    assert machine.run(script, shell).returncode != 0
    assert machine.has_all_back() == (signal != "KILL")
    machine.put("freshclam", freshclam)
    result = machine.run(script, shell)
    assert (result.returncode, result.stderr) == (0, "")
    assert ("an earlier run was interrupted" in result.stdout) == (signal == "KILL")
    assert "freshclam works with the gateway" in result.stdout
    assert machine.calls[-1].startswith("--quiet start ")
    (backup,) = machine.backups()
    assert backup.read_text() == FORMER.format(databases=machine.databases)
    assert len(list(machine.conf.parent.iterdir())) == 2


@pytest.mark.parametrize("shell", SHELLS)
def test_a_daemon_that_does_not_stop(site: Site, machine: Machine, shell: str) -> None:
    machine.put("systemctl", SYSTEMCTL.format(calls=machine.root / "calls") + '[ "$2" != stop ]\n')
    result = machine.run(printed(site), shell)
    assert result.returncode == 1
    assert "could not be stopped; nothing was changed" in result.stderr
    assert machine.has_all_back()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("former", [None, "the certificates of another gateway\n"])
def test_trust_goes_with_the_lines(site: Site, machine: Machine, shell: str, former: str | None) -> None:
    """While freshclam fails, the daemon trusts what it trusted before. What follows in the file stays."""
    trusted = machine.root / "usr/local/share/ca-certificates/clamproxy.pem"
    trusted.parent.mkdir(parents=True)
    if former is not None:
        trusted.write_text(former)
    site.publish(6)
    script = direct(site.gateway.port, "/client-config?for=script&mode=https").body.decode()
    with machine.failing():
        assert machine.run(script, shell).returncode == 1
    assert machine.has_all_back()
    assert [path.read_text() for path in trusted.parent.iterdir()] == ([former] if former else [])
    assert not (machine.root / "etc/systemd").exists()
    assert machine.run(script, shell).returncode == 0
    assert list(trusted.parent.iterdir()) == [trusted]
    with trusted.open("a") as file:
        file.write("the public ones\n")
    assert "nothing was changed" in machine.run(script, shell).stdout
    machine.conf.write_text(FORMER.format(databases=machine.databases))
    assert machine.run(script, shell).returncode == 0
    assert trusted.read_text() == site.gateway.ca.read_text() + "the public ones\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_two_at_once(site: Site, machine: Machine, shell: str) -> None:
    """The second one changes nothing. Runs of the same second each keep a former file."""
    require_program("flock")
    site.publish(6)
    script = printed(site)
    freshclam = (machine.root / "bin/freshclam").read_text()
    (machine.root / "script").write_text(script)
    second = f'{" ".join(SHELLS[shell])} "{machine.root}/script" >"{machine.root}/second" 2>&1\n'
    machine.put("freshclam", f"#!/bin/sh\n{second}" + freshclam.removeprefix("#!/bin/sh\n"))
    assert machine.run(script, shell).returncode == 0
    assert (machine.root / "second").read_text() == "clamproxy: another run is under way\n"
    machine.put("freshclam", freshclam)
    for number, mode in enumerate(("mirror", "http", "mirror"), 2):
        assert machine.run(printed(site, mode=mode), shell).returncode == 0
        assert len(machine.backups()) == number


@pytest.mark.parametrize("shell", SHELLS)
def test_half_a_block(site: Site, machine: Machine, shell: str) -> None:
    """Somebody has deleted the end mark: what follows isn't the gateway's."""
    site.publish(6)
    machine.conf.write_text(f"# Begin clamproxy\n{machine.conf.read_text()}")
    for mode in ("http", "mirror"):
        assert machine.run(printed(site, mode=mode), shell).returncode == 0
        text = machine.conf.read_text()
        assert ("ConnectTimeout 10\n" in text, text.count("# Begin clamproxy")) == (True, 1)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("mode", ["http", "private"])
def test_the_password_of_another_proxy(make_site: MakeSite, machine: Machine, shell: str, mode: str) -> None:
    """It isn't for the gateway."""
    site = make_site(access={"users": [f"alice:{generate_password_hash('one')}"]})
    port = site.gateway.port
    with machine.conf.open("a") as file:
        file.write(
            f"HTTPProxyUsername alice\nHTTPProxyPassword one\nPrivateMirror http://alice:one@{LOCALHOST}:{port}0\n"
        )
    result = machine.run(printed(site, mode=mode), shell)
    assert (result.returncode, result.stdout) == (1, "")
    assert "CLAMPROXY_PASSWORD" in result.stderr
    assert machine.calls == []


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("users", [[], ["alice"]])
def test_a_site_file_named_like_the_placeholder(
    make_site: MakeSite, machine: Machine, tmp_path: Path, shell: str, users: list[str]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "PASSWORDS.ndb").write_text("Clamproxy.Test:0:*:636c616d70726f7879\n")
    hashes = [f"{user}:{generate_password_hash('one')}" for user in users]
    site = make_site(files={"directory": str(files)}, access={"users": hashes})
    site.publish(6)
    assert eventually(lambda: "PASSWORDS.ndb" in printed(site))
    for form in FORMS:
        assert "/files/PASSWORDS.ndb" in printed(site, form)
    assert ("$env:CLAMPROXY_PASSWORD" in printed(site, "gpo")) == bool(users)
    environment = {"CLAMPROXY_PASSWORD": "one"} if users else {}
    result = machine.run(printed(site, mode="private"), shell, **environment)
    assert (result.returncode, result.stderr) == (0, ""), site.gateway.log
    assert "/files/PASSWORDS.ndb\n" in machine.conf.read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_ctrl_c_at_the_prompt(make_site: MakeSite, machine: Machine, shell: str) -> None:
    """The terminal shows again what is typed."""
    site = make_site(access={"users": [f"alice:{generate_password_hash('one')}"]})
    path = machine.root / "script"
    path.write_text(printed(site))
    require_program(SHELLS[shell][0])
    command = [require_program("setsid"), "--ctty", "--wait", *SHELLS[shell], str(path)]
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=machine.environment
        ) as process:
            assert eventually(lambda: not termios.tcgetattr(theirs)[3] & termios.ECHO)
            os.write(ours, b"\x03")
            assert process.wait(60) != 0
        assert termios.tcgetattr(theirs)[3] & termios.ECHO
        assert machine.calls == []
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_cool_down_ends(site: Site, machine: Machine, shell: str) -> None:
    site.publish(6)
    assert machine.run(printed(site), shell).returncode == 0
    dat = machine.databases / "freshclam.dat"
    before = bytearray(dat.read_bytes())
    struct.pack_into("<q", before, COOL_DOWN_OFFSET, int(time.time()) + 3600)
    for arguments, told in (
        (["--keep-cooldown"], "it has not asked the gateway yet"),
        ([], "a cool-down was ended"),
    ):
        dat.write_bytes(before)
        machine.conf.write_text(FORMER.format(databases=machine.databases))
        result = machine.run(printed(site), shell, *arguments)
        assert result.returncode == 0, result.stderr
        assert told in result.stdout
    after = dat.read_bytes()
    assert after[:COOL_DOWN_OFFSET] == before[:COOL_DOWN_OFFSET]  # with the machine's UUID
    assert struct.unpack_from("<q", after, COOL_DOWN_OFFSET) == (0,)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("mode", ["http", "private"])
def test_with_a_password(make_site: MakeSite, machine: Machine, shell: str, mode: str) -> None:
    password = "a&b\\c/d%'\"$e"
    site = make_site(access={"users": [f"alice:{generate_password_hash(password)}"]})
    site.publish(6)
    script = direct(site.gateway.port, f"/client-config?for=script&mode={mode}").body.decode()
    result = machine.run(script, shell)
    assert (result.returncode, result.stdout) == (1, "")
    assert "set CLAMPROXY_USER and CLAMPROXY_PASSWORD" in result.stderr
    assert machine.conf.read_text() == FORMER.format(databases=machine.databases)
    result = machine.run(script, shell, CLAMPROXY_USER="alice", CLAMPROXY_PASSWORD=password)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + site.gateway.log
    assert password not in result.stdout
    assert machine.conf.stat().st_mode & 0o777 == 0o600
    # It is asked for only once.
    result = machine.run(script, shell)
    assert (result.returncode, "nothing was changed" in result.stdout) == (0, True), result.stderr
    assert machine.conf.read_text().count("# Begin clamproxy") == 1


@pytest.mark.parametrize("program", ["curl", None])
def test_without_a_program_to_ask_the_gateway(site: Site, machine: Machine, program: str | None) -> None:
    site.publish(6)
    tools = machine.root / "bin"
    for name in (
        "awk",
        "basename",
        "cat",
        "chmod",
        "cmp",
        "cp",
        "date",
        "dd",
        "dash",
        "grep",
        "head",
        "id",
        "mktemp",
    ):
        (tools / name).symlink_to(require_program(name))
    for name in ("mkdir", "mv", "od", "readlink", "rm", "sed", "tail", "tr", "touch", "env"):
        (tools / name).symlink_to(require_program(name))
    if program is not None:
        (tools / program).symlink_to(require_program(program))
    result = machine.run(printed(site), "dash", PATH=str(tools))
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert ("neither curl nor wget" in result.stdout) == (program is None)


def test_the_script_is_sound(site: Site) -> None:
    program = require_program("shellcheck")
    for mode in ("http", "mirror", "private"):
        command = [program, "--shell=sh", "-"]
        result = subprocess.run(
            command, input=printed(site, mode=mode), capture_output=True, text=True, timeout=60
        )
        assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["http", "https", "mirror", "private"])
def test_every_form_has_all_lines(site: Site, form: str, mode: str) -> None:
    port = site.gateway.port
    lines = direct(port, f"/client-config?mode={mode}").body.decode().splitlines()
    answer = direct(port, f"/client-config?mode={mode}&for={form}")
    text = answer.body.decode()
    assert answer.status == 200
    is_certified = re.search(r"-----BEGIN CERTIFICATE-----\r?\n *[A-Za-z0-9+/]{64}\r?\n", text) is not None
    assert is_certified == (mode == "https")
    assert text.isascii()
    assert ("\r\n" in text) == (form == "gpo")
    assert not re.search(r"@[A-Z]{3,}@", text)
    assert set(lines) <= {line.strip() for line in text.splitlines()}


@pytest.mark.parametrize("query", ["for=", "for=windows", "for=script&for=gpo", "for=script&mode=ftp"])
def test_no_such_form(site: Site, query: str) -> None:
    answer = direct(site.gateway.port, f"/client-config?{query}")
    assert answer.status == (200 if query == "for=" else 400)


@pytest.mark.parametrize("form", FORMS)
def test_no_password_in_any_form(make_site: MakeSite, form: str) -> None:
    users = [f"alice:{generate_password_hash('s3cret')}"]
    site = make_site(access={"users": users})
    text = direct(site.gateway.port, f"/client-config?for={form}").body.decode()
    assert "alice" not in text
    assert "scrypt" not in text
    if form == "dockerfile":
        assert not re.search("^HTTPProxy", text, re.MULTILINE)
        assert "-e http_proxy=http://USERNAME:PASSWORD@" in text
        https = direct(site.gateway.port, "/client-config?for=dockerfile&mode=https").body
        assert b"-e https_proxy=http://USERNAME:PASSWORD@" in https
        refused = direct(site.gateway.port, "/client-config?for=dockerfile&mode=mirror")
        assert (refused.status, b"would be in the image" in refused.body) == (400, True)


def test_the_playbook_is_yaml(site: Site) -> None:
    (play,) = yaml.safe_load(printed(site, "ansible"))
    tasks = [
        *play["tasks"],
        *(
            one
            for task in play["tasks"]
            for part in ("block", "rescue", "always")
            for one in task.get(part, ())
        ),
    ]
    keys = {key for task in tasks for key in task if "." in key}
    assert all(key.startswith("ansible.builtin.") for key in keys), keys
    assert "HTTPProxyServer 127.0.0.1\n" in play["vars"]["clamproxy_lines"]


PLAY_LIMIT = 300
"""Seconds for one run of a playbook: some dozen programs, one after the other, on a busy machine."""


def play(machine: Machine, playbook: str, **variables: object) -> str:
    """Run a playbook on this machine; returns its summary."""
    path = machine.root / "play.yaml"
    path.write_text(playbook)
    given = {
        "clamproxy_hosts": "all",
        "clamproxy_become": False,
        "clamproxy_files": [str(machine.root / "none"), str(machine.conf)],
        "ansible_python_interpreter": sys.executable,
        **variables,
    }
    result = subprocess.run(
        [
            require_program("ansible-playbook"),
            "-i",
            "localhost,",
            "-c",
            "local",
            "-e",
            json.dumps(given),
            str(path),
        ],
        env={**os.environ, "PATH": f"{machine.root / 'bin'}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=PLAY_LIMIT,
    )
    summary = re.search("localhost +: .*", result.stdout)
    assert summary is not None, result.stdout + result.stderr
    return summary[0]


@pytest.mark.timeout(5 * PLAY_LIMIT)
@pytest.mark.parametrize("mode", ["http", "mirror"])
def test_the_playbook_runs(make_site: MakeSite, machine: Machine, mode: str) -> None:
    password = "a&b%c/d'$e"
    site = make_site(access={"users": [f"alice:{generate_password_hash(password)}"]})
    site.publish(6)
    playbook = direct(site.gateway.port, f"/client-config?for=ansible&mode={mode}").body.decode()
    told = play(machine, playbook, clamproxy_user="alice", clamproxy_password="wrong")
    assert "failed=1" in told
    assert machine.conf.read_text() == FORMER.format(databases=machine.databases)
    for changed in (1, 0):
        told = play(machine, playbook, clamproxy_user="alice", clamproxy_password=password)
        assert f"changed={changed} " in told
        assert "failed=0" in told
    assert (machine.databases / "test.cvd").exists()
    assert machine.conf.stat().st_mode & 0o777 == 0o600
    assert len([path for path in machine.conf.parent.iterdir() if path.name.endswith("~")]) == 2


@pytest.mark.timeout(5 * PLAY_LIMIT)
def test_a_playbook_that_fails_or_is_interrupted(site: Site, machine: Machine) -> None:
    playbook = direct(site.gateway.port, "/client-config?for=ansible&mode=https").body.decode()
    trusted, drop_ins = machine.root / "trust/gateway.pem", machine.root / "drop-ins"
    places = {"clamproxy_trust": str(trusted), "clamproxy_drop_ins": str(drop_ins)}
    former = machine.conf.read_text()
    site.publish(6)
    with machine.failing():
        assert "failed=1" in play(machine, playbook, **places)
    assert machine.conf.read_text() == former
    untested = machine.conf.with_name("freshclam.conf.clamproxy")
    assert not untested.exists()
    assert (list(trusted.parent.iterdir()), list(drop_ins.iterdir())) == ([], [])
    assert "failed=0" in play(machine, playbook, **places)
    written = machine.conf.read_text()
    (drop_in,) = drop_ins.iterdir()
    assert f"CURL_CA_BUNDLE={trusted}\n" in drop_in.read_text()
    # The connection to the machine broke off while freshclam ran.
    untested.write_text(f"# Begin clamproxy\n{former}")
    shutil.rmtree(machine.databases)
    machine.databases.mkdir()
    assert "failed=0" in play(machine, playbook, **places)
    assert machine.conf.read_text() == f"# Begin clamproxy\n{written}"
    assert (machine.databases / "test.cvd").exists()
    assert not untested.exists()
    assert "changed=0 " in play(machine, playbook, **places)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_lines_of_the_dockerfile(site: Site, machine: Machine, shell: str) -> None:
    """What RUN does, twice, as in two layers. Half a block, and a last line without an end, lose nothing."""
    require_program(SHELLS[shell][0])
    machine.conf.write_text(f"# Begin clamproxy\n{machine.conf.read_text()}LogVerbose yes")
    text = printed(site, "dockerfile")
    heredoc = re.search(r"^COPY <<'(\S+)' (\S+)\n(.*?\n)\1$", text, re.MULTILINE | re.DOTALL)
    run = re.search(r"^RUN (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    assert heredoc is not None
    assert run is not None
    command = run[1].replace("/etc/", f"{machine.root}/etc/").replace(heredoc[2], f"{machine.root}/lines")
    command = command.replace("/tmp/clamproxy.conf", f"{machine.root}/conf")
    written = []
    for _ in range(2):
        (machine.root / "lines").write_text(heredoc[3])
        result = subprocess.run([*SHELLS[shell], "-c", command], capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        written.append(machine.conf.read_text())
    assert written[0] == written[1]
    settings = [line.split() for line in written[0].splitlines() if not line.startswith("#")]
    assert [value for name, value in settings if name == "DatabaseMirror"] == ["http://database.clamav.net"]
    assert ["HTTPProxyPort", str(site.gateway.port)] in settings
    assert ["ConnectTimeout", "10"] in settings
    assert ["LogVerbose", "yes"] in settings
    assert written[0].count("# Begin clamproxy") == 1
    assert not (machine.root / "lines").exists()
