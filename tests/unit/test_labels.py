"""The file of labels: what a line means, and which mistakes it can have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from clamproxy.cli.config import config
from clamproxy.config.labels import LONGEST, Label, parse_labels
from clamproxy.config.loading import ConfigurationError
from clamproxy.fleet.live_labels import LiveLabels

UUID = "0000000a-0000-4000-8000-000000000000"
OTHER = "0000000b-0000-4000-8000-000000000000"

FILE = f"""
# A comment, and an empty line

10.0.0.5 = web01.example.net, servers   # the one in the cellar
10.0.0.6 = build7
10.0.0.7 = , printers
10.0.0.0/24 = , office
10.0.0.0/8 = , company
fd00::/16 = , v6
fd00::5 = six
{UUID.upper()} = Reception PC 3, desktops
{OTHER} = laptop
"""


@pytest.mark.parametrize(
    ("uuid", "address", "label"),
    [
        ("?", "10.0.0.5", Label("web01.example.net", "servers")),
        ("?", "10.0.0.6", Label("build7", "office")),
        ("?", "10.0.0.7", Label(None, "printers")),
        ("?", "10.0.0.8", Label(None, "office")),
        ("?", "10.1.0.8", Label(None, "company")),
        ("?", "192.0.2.1", Label(None, None)),
        ("?", "fd00::5", Label("six", "v6")),
        ("?", "fd01::5", Label(None, None)),
        ("?", "a socket", Label(None, None)),
        (UUID, "10.0.0.5", Label("Reception PC 3", "desktops")),
        (OTHER, "10.0.0.5", Label("laptop", "servers")),
        (OTHER, "192.0.2.1", Label("laptop", None)),
    ],
)
def test_what_a_machine_is_called(uuid: str, address: str, label: Label) -> None:
    assert parse_labels(FILE, "labels").of(uuid, address) == label


def test_groups() -> None:
    assert parse_labels(FILE, "x").groups() == {
        *("servers", "printers", "office", "company", "v6", "desktops"),
    }


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("10.0.0.5", "'10.0.0.5': expected address-or-network-or-UUID = name, group"),
        ("10.0.0.300 = a", "'10.0.0.300': expected an address, a network or a UUID"),
        ("web01 = a", "'web01': expected an address, a network or a UUID"),
        ("10.0.0.5/8 = , a", "'10.0.0.5/8': expected 10.0.0.0/8, or 10.0.0.5 for that address alone"),
        ("10.0.0.0/8 = a", "'10.0.0.0/8' is a network, which can't have a name: write = , a"),
        ("10.0.0.5 =", "'10.0.0.5' has neither a name nor a group"),
        ("10.0.0.5 = ,", "'10.0.0.5' has neither a name nor a group"),
        ("10.0.0.5 = a, b, c", "'a, b, c': expected a name and a group, with one comma at most"),
        ("10.0.0.5 = a, -", "'-' can't be a group"),
        ("10.0.0.1 = a", "10.0.0.1 is already in line 1"),
        ("10.0.0.1/32 = a", "10.0.0.1/32 is already in line 1"),
        ("10.0.0.5 = a\x1b[2Jb", "expected at most 64 printable characters"),
        (f"10.0.0.5 = {'a' * (LONGEST + 1)}", "expected at most 64 printable characters"),
    ],
)
def test_mistakes_name_the_line(line: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_labels(f"10.0.0.1 = first\n# more\n{line}\n", "labels.txt")
    text = str(caught.value)
    assert text.startswith("labels.txt: line 3: ")
    assert problem in text
    assert text.isprintable()


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "labels"
    path.write_text("10.0.0.1 = one\n")
    labels = LiveLabels(path)
    assert labels.get().of("?", "10.0.0.1").name == "one"

    def replace(text: str) -> None:
        new = tmp_path / "new"
        new.write_text(text)
        os.replace(new, path)  # noqa: PTH105

    replace("10.0.0.1 = two\n")
    assert labels.get().of("?", "10.0.0.1").name == "two"
    replace("10.0.0.1 is three\n")
    for _ in range(3):
        assert labels.get().of("?", "10.0.0.1").name == "two"
    assert caplog.text.count("line 1: ") == 1
    path.unlink()
    for _ in range(3):
        assert labels.get().of("?", "10.0.0.1").name == "two"
    assert caplog.text.count("cannot be read") == 1
    replace("10.0.0.1 = four\n")
    assert labels.get().of("?", "10.0.0.1").name == "four"


def test_no_file() -> None:
    assert LiveLabels(None).get().of("?", "10.0.0.1") == Label(None, None)


def test_config_check_names_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels").write_text("10.0.0.1 = one\nweb01 = two\n")
    (tmp_path / "proxy.yaml").write_text("fleet: {labels: labels}\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(config, ["check"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{tmp_path}/labels: line 2: 'web01'" in result.stderr
    (tmp_path / "labels").write_text("10.0.0.1 = one\n")
    assert CliRunner().invoke(config, ["check"]).exit_code == 0
