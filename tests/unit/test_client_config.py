"""The lines for freshclam.conf, and the command that prints them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clamproxy.authority.keyfile import FILE
from clamproxy.cli.client_config import client_config as command
from clamproxy.config.settings import Settings
from clamproxy.setup import freshclam_lines as module
from clamproxy.setup.freshclam_lines import Mode, client_config, own_name

HASH = "scrypt:32768:8:1$abcdefghijklmnop$" + "0" * 128
GATEWAY = "gateway.example.net"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**sections: dict[str, Any]) -> Settings:
    return Settings.model_validate(sections)


def shown(
    mode: Mode,
    gateway: str = GATEWAY,
    port: int = 8080,
    **sections: dict[str, Any],
) -> list[str]:
    """The lines without comments, as the operator gets them."""
    text = client_config(settings(**sections), mode, gateway, port, names_user=True)
    assert text.endswith("\n")
    assert text.isascii()
    return [line for line in text.splitlines() if not line.startswith("#")]


def comments(mode: Mode, **sections: dict[str, Any]) -> str:
    lines = client_config(settings(**sections), mode, GATEWAY, 8080).splitlines()
    return "\n".join(line for line in lines if line.startswith("# "))


OWN_RECORD = "DNSDatabaseInfo current.cvd.example.net"
PROXY = [f"HTTPProxyServer {GATEWAY}", "HTTPProxyPort 8080"]


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        (Mode.HTTP, [*PROXY, "DatabaseMirror http://database.clamav.net"]),
        (Mode.HTTPS, [*PROXY, "DatabaseMirror https://database.clamav.net"]),
        (Mode.MIRROR, [f"DatabaseMirror http://{GATEWAY}:8080"]),
        (Mode.PRIVATE, [f"PrivateMirror http://{GATEWAY}:8080"]),
    ],
)
def test_each_mode(mode: Mode, lines: list[str]) -> None:
    assert shown(mode) == lines


@pytest.mark.parametrize(
    ("mode", "sections", "base"),
    [
        (Mode.HTTP, {}, f"http://{GATEWAY}"),
        (Mode.HTTPS, {}, f"http://{GATEWAY}"),  # it has no certificate for this name
        (Mode.HTTPS, {"tls": {"names": [GATEWAY]}}, f"https://{GATEWAY}"),
        (Mode.MIRROR, {}, f"http://{GATEWAY}"),
        (Mode.PRIVATE, {}, f"http://{GATEWAY}"),
        (Mode.HTTP, {"access": {"users": [f"a:{HASH}"]}}, f"http://{GATEWAY}"),  # CONNECT has the password
        (Mode.MIRROR, {"access": {"users": [f"a:{HASH}"]}}, f"http://a:PASSWORD@{GATEWAY}"),
    ],
)
def test_files_of_the_site(mode: Mode, sections: dict[str, Any], base: str) -> None:
    names = ["site.ign2", "a.ndb"]
    text = client_config(settings(**sections), mode, GATEWAY, 8080, files=names, names_user=True)
    lines = [f"DatabaseCustomURL {base}:8080/files/{name}" for name in names]
    assert text.splitlines()[-2:] == lines
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        *shown(mode, **sections),
        *lines,
    ]


@pytest.mark.parametrize("mode", Mode)
def test_a_name_of_the_sites_own_for_the_record(mode: Mode) -> None:
    serving = {"dns_name": "Current.cvd.example.net."}
    found = [line for line in shown(mode, serving=serving) if line.startswith("DNSDatabaseInfo")]
    assert found == ([] if mode is Mode.PRIVATE else [OWN_RECORD])  # which asks no DNS
    assert ("DNSDatabaseInfo" in comments(mode, serving=serving)) is bool(found)


def test_every_comment_is_a_line_of_its_own_and_short() -> None:
    for mode in Mode:
        for line in client_config(settings(access={"users": [f"a:{HASH}"]}), mode, GATEWAY, 1).splitlines():
            assert len(line) <= 100
            assert "#" not in line.removeprefix("#")


@pytest.mark.parametrize("mode", [Mode.HTTP, Mode.HTTPS])
def test_one_user(mode: Mode) -> None:
    users = {"users": [f"alice:{HASH}"]}
    assert shown(mode, access=users)[2:4] == ["HTTPProxyUsername alice", "HTTPProxyPassword PASSWORD"]
    assert "chmod 600" in comments(mode, access=users)


@pytest.mark.parametrize("mode", list(Mode))
def test_the_user_is_not_told_to_whoever_asks(mode: Mode) -> None:
    text = client_config(settings(access={"users": [f"alice:{HASH}"]}), mode, GATEWAY, 8080)
    assert "USERNAME" in text
    assert "alice" not in text


def test_several_users_are_not_told() -> None:
    lines = shown(Mode.HTTP, access={"users": [f"alice:{HASH}", f"bob:{HASH}"]})
    assert "HTTPProxyUsername USERNAME" in lines


@pytest.mark.parametrize("mode", [Mode.MIRROR, Mode.PRIVATE])
def test_a_user_without_a_proxy(mode: Mode) -> None:
    (line,) = shown(mode, access={"users": [f"a/b@c:{HASH}"]})
    assert line.endswith(f"Mirror http://a%2Fb%40c:PASSWORD@{GATEWAY}:8080")
    assert "percent" in comments(mode, access={"users": [f"alice:{HASH}"]})
    assert "percent" not in comments(mode)


@pytest.mark.parametrize("mode", list(Mode))
def test_no_hash_is_ever_shown(mode: Mode) -> None:
    assert "scrypt" not in client_config(settings(access={"users": [f"a:{HASH}"]}), mode, GATEWAY, 8080)


def test_where_the_authority_goes() -> None:
    assert "clamproxy ca install" in comments(Mode.HTTPS)
    assert "ca install" not in comments(Mode.HTTP)


@pytest.mark.parametrize(
    ("hosts", "name"),
    [
        (["db.example.net"], "db.example.net"),
        (["db.*.clamav.net"], "database.clamav.net"),
        (["other.example.net", "*.clamav.net"], "database.clamav.net"),
    ],
)
def test_the_name_of_the_mirror_is_one_that_is_served(hosts: list[str], name: str) -> None:
    assert shown(Mode.HTTP, serving={"hosts": hosts})[-1] == f"DatabaseMirror http://{name}"


@pytest.mark.parametrize(
    ("gateway", "host"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "[2001:db8::7]"),
        ("[2001:DB8::7]", "[2001:db8::7]"),
        ("GW.example.net.", "gw.example.net"),
    ],
)
def test_names_and_addresses(gateway: str, host: str) -> None:
    assert shown(Mode.MIRROR, gateway, 3128) == [f"DatabaseMirror http://{host}:3128"]
    assert shown(Mode.HTTP, gateway)[0] == f"HTTPProxyServer {host}"


@pytest.mark.parametrize(
    "gateway",
    [
        "",
        "a b",
        "gw\nExcludeDatabase daily",
        "gw#x",
        "gw:8080",
        "http://gw",
        "::1%eth0\n",
        "fe80::1%eth0",
        "ü",
    ],
)
def test_nothing_but_a_name_gets_into_the_file(gateway: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        client_config(settings(), Mode.HTTP, gateway, 8080)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_impossible_ports(port: int) -> None:
    with pytest.raises(ValueError, match="65535"):
        client_config(settings(), Mode.HTTP, GATEWAY, port)


class TestOwnName:
    @pytest.fixture
    def resolves(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
        """What the system's resolver knows."""
        names: dict[str, list[str]] = {}

        def look_up(name: str, *_: object, **__: object) -> list[Any]:
            if name not in names:
                raise socket.gaierror(-2, "Name or service not known")
            return [(2, 1, 6, "", (address, 0)) for address in names[name]]

        monkeypatch.setattr(socket, "getfqdn", lambda: GATEWAY)
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(module, "_own_address", lambda: "192.0.2.9")
        return names

    def test_the_full_name(self, resolves: dict[str, list[str]]) -> None:
        resolves[GATEWAY] = ["192.0.2.7", "fe80::1%eth0"]
        assert own_name() == GATEWAY

    @pytest.mark.parametrize("addresses", [["127.0.1.1"], ["::1"], ["192.0.2.7", "127.0.0.1"], None])
    def test_a_name_that_leads_nowhere(
        self, resolves: dict[str, list[str]], addresses: list[str] | None
    ) -> None:
        if addresses is not None:
            resolves[GATEWAY] = addresses
        assert own_name() == "192.0.2.9"

    def test_the_address_is_not_loopback(self) -> None:
        address = module._own_address()
        assert address is None or not address.startswith("127.")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_command() -> None:
    result = invoke("--gateway", GATEWAY, "--port", "3128", "--mode", "mirror")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == client_config(settings(), Mode.MIRROR, GATEWAY, 3128)


def test_command_reads_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"access:\n  users: ['alice:{HASH}']\n")
    assert "HTTPProxyUsername alice" in invoke("--gateway", GATEWAY, "--config", "own.yaml").stdout


@pytest.mark.parametrize("form", ["script", "ansible"])
def test_an_authority_that_cannot_be_read_is_one_line(tmp_path: Path, form: str) -> None:
    (tmp_path / "tls" / FILE).mkdir(parents=True)
    (tmp_path / "own.yaml").write_text("tls: {directory: tls}")
    result = invoke("--gateway", GATEWAY, "--mode", "https", "--for", form, "--config", "own.yaml")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"{tmp_path / 'tls' / FILE}: Is a directory" in result.stderr


def test_a_guess_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamproxy.cli.client_config.own_name", lambda: "192.0.2.9")
    result = invoke()
    assert result.exit_code == 0
    assert "HTTPProxyServer 192.0.2.9" in result.stdout
    assert "guess" not in result.stdout
    assert "guess" in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_name_to_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clamproxy.cli.client_config.own_name", lambda: None)
    result = invoke()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--gateway" in result.stderr


def test_a_wrong_name_is_one_line() -> None:
    result = invoke("--gateway", "no name")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "expected a host name" in result.stderr
