"""`clamproxy doctor`: which gateway, what is printed, and the exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clamproxy.cli import doctor as module
from clamproxy.cli.parameters import parse_gateway
from clamproxy.doctor import client_checks
from clamproxy.doctor.findings import (
    Check,
    Deadline,
    Finding,
    Status,
    Verdict,
    examine,
    exit_code,
    one_line,
)
from clamproxy.doctor.freshclam import user_agent
from tests.support.fake_gateway import HEADER, FakeGateway, answer, from_clamproxy, gateways, header
from tests.support.forge import forge_keys

OK, WARNING, PROBLEM, SKIPPED = Status

type Make = Callable[..., FakeGateway]


@pytest.fixture
def make() -> Iterator[Make]:
    with gateways() as make:
        yield make


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a gateway, a freshclam.conf and name servers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLAMPROXY_CACHE__DIRECTORY", str(tmp_path / "cache"))
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setattr(module, "CLAMAV_KEYS", forge_keys().trusted)
    monkeypatch.setattr(module, "find_conf", lambda: None)
    monkeypatch.setattr(client_checks, "compare_with_gateway", lambda *_: Verdict(OK, "agrees"))


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(module.doctor, arguments)


def on(gateway: FakeGateway, *arguments: str, **environment: str) -> Result:
    return invoke("--gateway", f"127.0.0.1:{gateway.port}", *arguments, **environment)


def test_lines_for_people(make: Make) -> None:
    gateway = make()
    result = on(gateway)
    assert (result.exit_code, result.stderr) == (0, "")
    title, *lines = result.stdout.splitlines()
    assert title == f"As a client of 127.0.0.1:{gateway.port}"
    assert lines[0] == "  ok      name            127.0.0.1 is an IP address"
    assert all(re.match(r"  (ok|skipped) +[a-z]+ +\S", line) for line in lines)
    assert [line.split()[2] for line in lines if " header " in line] == ["daily", "main", "bytecode"]


def test_a_problem_has_a_remedy_below_it(make: Make) -> None:
    result = on(make(answer(407)))
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("  problem "))
    assert lines[at + 1].strip().startswith("Do: set HTTPProxyUsername")


def test_a_warning(make: Make) -> None:
    result = on(make(files={HEADER: from_clamproxy(206, header(age=9 * 86400))}))
    assert result.exit_code == 1
    assert "  warning header " in result.stdout


def test_who_reads_the_first_line_only(make: Make) -> None:
    """A pipe that was closed changes nothing about the exit code."""
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); "
        "from clamproxy.cli import main; main(['doctor', '--no-local', '--gateway', sys.argv[1]])"
    )
    gateway = make(answer(407))
    command = [sys.executable, "-c", code, f"127.0.0.1:{gateway.port}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "")


def test_markup_of_others_is_text(make: Make) -> None:
    raw = from_clamproxy(503, b"clamproxy: [bold]x[/nothing]\n")
    assert "[bold]x[/nothing]" in on(make(files={HEADER: raw})).stdout


@pytest.mark.parametrize(("connect", "code", "status"), [(None, 0, "ok"), (answer(407), 2, "problem")])
def test_json(make: Make, connect: bytes | None, code: int, status: str) -> None:
    gateway = make(connect) if connect else make()
    result = on(gateway, "--json")
    values: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code, values["status"]) == (code, status)
    assert values["gateway"] == f"127.0.0.1:{gateway.port}"
    assert {tuple(row) for row in values["findings"]} == {("side", "status", "subject", "text", "remedy")}
    assert values["findings"][0]["side"] == "client"


def test_user_and_password(make: Make) -> None:
    gateway = make()
    on(gateway, "--user", "alice", CLAMPROXY_PASSWORD="s3cret")
    assert "Proxy-Authorization: Basic YWxpY2U6czNjcmV0" in gateway.seen[0]


def test_the_password_is_asked_for(make: Make) -> None:
    gateway = make()
    arguments = ["--gateway", f"127.0.0.1:{gateway.port}", "--user", "alice"]
    result = CliRunner().invoke(module.doctor, arguments, input="s3cret\n")
    assert "YWxpY2U6czNjcmV0" in gateway.seen[0]
    assert "s3cret" not in result.output
    assert "Password" in result.stderr
    assert "Password" not in result.stdout


def test_of_freshclam_conf(make: Make, tmp_path: Path) -> None:
    gateway = make()
    lines = f"HTTPProxyServer 127.0.0.1\nHTTPProxyPort {gateway.port}\nDatabaseMirror https://x\n"
    (tmp_path / "own.conf").write_text(lines)
    result = invoke("--freshclam-conf", "own.conf")
    assert f"As a client of 127.0.0.1:{gateway.port}" in result.stdout
    assert "  problem https " in result.stdout, "https is tried, as freshclam uses it"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes this machine one with a freshclam.conf of these lines, where freshclam looks for it."""

    def make(*lines: str) -> Path:
        conf = tmp_path / "freshclam.conf"
        own = [
            f"DatabaseDirectory {tmp_path}",
            "DatabaseOwner root",
            "DatabaseMirror http://database.clamav.net",
        ]
        conf.write_text("".join(f"{line}\n" for line in [*lines, *own]))
        monkeypatch.setattr(module, "find_conf", lambda: conf)
        return conf

    return make


def test_on_a_machine(make: Make, machine: Callable[..., Path]) -> None:
    """Its freshclam.conf leads to the gateway, so freshclam is looked at, too."""
    gateway = make()
    conf = machine("HTTPProxyServer 127.0.0.1", f"HTTPProxyPort {gateway.port}", "Bytecode no")
    for arguments in ([], ["--gateway", f"127.0.0.1:{gateway.port}"]):
        lines = invoke(*arguments).stdout.splitlines()
        assert f"As a client of 127.0.0.1:{gateway.port}" in lines
        below = lines[lines.index("On this machine") + 1 :]
        assert below[0].startswith(f"  ok      freshclam.conf  {conf} names 127.0.0.1:{gateway.port} for ")
        assert any(line.startswith("  ok      header main ") for line in lines)
        assert not any("bytecode" in line for line in lines)


def test_by_the_environment(make: Make, machine: Callable[..., Path]) -> None:
    """A container has the gateway from there."""
    gateway = make()
    machine()
    output = invoke(http_proxy=f"http://127.0.0.1:{gateway.port}").stdout
    assert f"As a client of 127.0.0.1:{gateway.port}\n" in output
    assert "On this machine\n" in output


def test_a_machine_that_goes_elsewhere(make: Make, machine: Callable[..., Path]) -> None:
    """It was asked about a gateway: whether freshclam is to use that isn't known."""
    conf = machine("HTTPProxyServer proxy.example.net")
    result = on(make())
    assert result.exit_code == 0
    assert (
        f"skipped freshclam.conf  {conf} doesn't point to this gateway; use --freshclam-conf" in result.stdout
    )
    result = on(make(), "--freshclam-conf", str(conf))
    assert "  ok      freshclam.conf" in result.stdout


def test_stock_debian_and_a_gateway_that_was_named(make: Make, machine: Callable[..., Path]) -> None:
    """Nobody has told freshclam yet."""
    conf = machine()
    result = on(make(), "--freshclam-conf", str(conf))
    assert (result.exit_code, "freshclam asks ClamAV's servers, not the gateway" in result.stdout) == (
        2,
        True,
    )


def test_no_gateway_is_known() -> None:
    result = invoke()
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "--gateway" in result.stderr


def test_on_the_gateway(tmp_path: Path) -> None:
    """A configuration is a sign of one: it is looked at, and its own port is tried."""
    (tmp_path / "proxy.yaml").write_text("upstream: {offline: true}\n")
    result = invoke()
    assert result.stdout.startswith("On this gateway\n")
    assert "As a client of 127.0.0.1:8080\n" in result.stdout
    assert "On this gateway" not in invoke("--no-local", "--gateway", "127.0.0.1:1").stdout


def test_nobody_on_the_gateway_is_sent_there(make: Make) -> None:
    """What was found on the gateway is above."""
    gateway = make(files={HEADER: from_clamproxy(206, header(age=9 * 86400))})
    assert "run `clamproxy doctor` on the gateway" in on(gateway, "--no-local").stdout
    output = on(gateway, "--local", CLAMPROXY_UPSTREAM__OFFLINE="true").stdout
    assert "run `clamproxy doctor` on the gateway" not in output
    assert "Do: see the findings about this gateway" in output


def test_a_wrong_configuration_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "proxy.yaml").write_text("chache: {}\n")
    result = invoke("--gateway", "127.0.0.1:1")
    assert result.exit_code == 2
    assert "  problem configuration   " in result.stdout


def test_no_configuration_but_wanted() -> None:
    assert (
        "every key has its default"
        in invoke("--local", "--gateway", "127.0.0.1:1", CLAMPROXY_UPSTREAM__OFFLINE="true").stdout
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gateway", "a b"],
        ["--gateway", "http://gw:8080"],
        ["--gateway", "gw:0"],
        ["--gateway", "gw:99999"],
        ["--gateway", "user@gw"],
        ["--gateway", "gw", "--database", "Daily!"],
        ["--gateway", "gw", "--nameserver", "ns.example.net"],
    ],
)
def test_wrong_arguments(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected" in result.stderr


@pytest.mark.parametrize(
    ("given", "gateway"),
    [
        ("gw", ("gw", 8080)),
        ("gw:3128", ("gw", 3128)),
        ("[2001:db8::1]", ("2001:db8::1", 8080)),
        ("[2001:db8::1]:3128", ("2001:db8::1", 3128)),
    ],
)
def test_ways_to_name_a_gateway(given: str, gateway: tuple[str, int]) -> None:
    assert parse_gateway(given) == gateway


def test_user_agent() -> None:
    assert re.fullmatch(r"ClamAV/\d+\.\d+\.\d+ \(OS: \w+, ARCH: \w+, CPU: \w+\)", user_agent())


class TestFindings:
    def checks(self, *verdicts: tuple[str, Status, list[str]]) -> list[Check]:
        return [
            Check(subject, partial(Verdict, status, "text"), needs) for subject, status, needs in verdicts
        ]

    def test_the_first_cause_is_named(self) -> None:
        checks = self.checks(("a", PROBLEM, []), ("b", OK, ["a"]), ("c", OK, ["b"]), ("d", OK, []))
        found = list(examine(checks, Deadline(9)))
        assert [finding.status for finding in found] == [PROBLEM, SKIPPED, SKIPPED, OK]
        assert found[2].text == "not checked because of: a"

    def test_a_warning_stops_nobody(self) -> None:
        checks = self.checks(("a", WARNING, []), ("b", OK, ["a"]))
        assert [finding.status for finding in examine(checks, Deadline(9))] == [WARNING, OK]

    def test_no_time_is_left(self) -> None:
        times = iter([0.0, 1.0, 100.0])
        checks = self.checks(("a", OK, []), ("b", OK, []))
        found = list(examine(checks, Deadline(27, lambda: next(times))))
        assert [finding.text for finding in found] == ["text", "there was no time left"]

    @pytest.mark.parametrize(
        ("statuses", "code"),
        [([], 0), ([OK, SKIPPED], 0), ([OK, WARNING], 1), ([PROBLEM, WARNING], 2)],
    )
    def test_exit_codes(self, statuses: list[Status], code: int) -> None:
        assert exit_code(Finding(status, "a", "b") for status in statuses) == code

    def test_lines(self) -> None:
        assert one_line("a\r\n\x1b[1mb") == "a   [1mb"
