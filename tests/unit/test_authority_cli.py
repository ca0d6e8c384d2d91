"""``clamproxy ca``."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from clamproxy.authority import Authority
from clamproxy.authority.certificates import fingerprint, title_of
from clamproxy.authority.keyfile import FILE
from clamproxy.cli.ca import ca


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory of its own, without settings of the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLAMPROXY_TLS__DIRECTORY", str(tmp_path / "ca"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(ca, arguments)


def succeed(*arguments: str) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str) -> str:
    """The one line of a refusal."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("clamproxy: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def authority(tmp_path: Path) -> Authority:
    found = Authority.load(tmp_path / "ca")
    assert found is not None
    return found


def test_init(tmp_path: Path) -> None:
    told = succeed("init").stderr
    assert str(tmp_path / "ca") in told
    assert title_of(authority(tmp_path).signer().root) in told
    assert str(tmp_path / "ca") in refused("init")


@pytest.mark.parametrize("arguments", [["show"], ["export"], ["install"], ["rotate"], ["rotate", "--finish"]])
def test_commands_without_an_authority(arguments: list[str], tmp_path: Path) -> None:
    assert "clamproxy ca init" in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_names_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAMPROXY_TLS__NAMES", "[gw.example.net]")
    monkeypatch.setenv("CLAMPROXY_FEEDS__HOSTS", '["*.com", urlhaus.abuse.ch]')
    told = succeed("init").stderr
    assert "Warning: *.com" in told
    assert authority(tmp_path).permitted().domains == ("clamav.net", "urlhaus.abuse.ch", "gw.example.net")
    assert "Warning" not in succeed("show").stderr
    monkeypatch.setenv("CLAMPROXY_TLS__NAMES", "[other.example.net]")
    assert "other.example.net" in succeed("show").stderr


def test_show_and_export(tmp_path: Path) -> None:
    succeed("init")
    shown = succeed("show").stdout
    certificate = authority(tmp_path).signer().root
    for part in (title_of(certificate), fingerprint(certificate), "clamav.net", "signs:    now"):
        assert part in shown
    exported = succeed("export").stdout
    assert x509.load_pem_x509_certificates(exported.encode()) == [certificate]
    assert succeed("show", "--pem").stdout == exported
    assert "PRIVATE" not in shown + exported


def test_rotation(tmp_path: Path) -> None:
    succeed("init")
    assert "will sign from" in succeed("rotate", "--overlap", "2d").stderr
    first, second = (title_of(generation.root) for generation in authority(tmp_path).generations)
    shown = succeed("show").stdout
    assert shown.index(f"{first}\n  signs:    now, until") < shown.index(f"{second}\n  signs:    from")
    assert len(x509.load_pem_x509_certificates(succeed("export").stdout.encode())) == 2
    before = (tmp_path / "ca" / FILE).read_bytes()
    assert "not over" in refused("rotate")
    assert "not over" in refused("rotate", "--finish")
    assert (tmp_path / "ca" / FILE).read_bytes() == before
    assert second in succeed("rotate", "--finish", "--early").stderr
    assert first not in succeed("show").stdout
    assert "signs from now on" in succeed("rotate", "--overlap", "0").stderr
    assert "no longer; `clamproxy ca rotate --finish`" in succeed("show").stdout
    succeed("rotate", "--finish")
    assert succeed("show").stdout.count("signs:") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--overlap", "soon"], ["--overlap", "-1d"], ["--overlap", "4000d"], ["--early"]],
)
def test_wrong_arguments(arguments: list[str]) -> None:
    result = invoke("rotate", *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_install(tmp_path: Path) -> None:
    succeed("init")
    exported = succeed("export").stdout
    assert exported in succeed("install").stdout
    assert exported in succeed("install", "--for", "rhel").stdout
    assert invoke("install", "--for", "plan9").exit_code == 2


def test_damaged(tmp_path: Path) -> None:
    succeed("init")
    (tmp_path / "ca" / FILE).write_text("{}")
    for arguments in (["show"], ["init"], ["rotate"], ["export"]):
        assert "damaged" in refused(*arguments)


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("")
    for arguments in (["init"], ["rotate"], ["show"]):
        refused(*arguments)
