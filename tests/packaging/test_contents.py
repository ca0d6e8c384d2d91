"""What the wheel and the sdist hold."""

from __future__ import annotations

import tarfile
import zipfile
from email.parser import Parser

import pytest

from clamproxy import __version__
from tests.packaging.conftest import Packages
from tests.support.contrib import ROOT


@pytest.fixture(scope="module")
def in_wheel(packages: Packages) -> dict[str, bytes]:
    with zipfile.ZipFile(packages.wheel) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.fixture(scope="module")
def in_sdist(packages: Packages) -> set[str]:
    """Names below the sdist's own folder."""
    with tarfile.open(packages.sdist) as sdist:
        return {member.name.partition("/")[2] for member in sdist if member.isfile()}


def test_the_wheel_holds_the_package_and_the_man_pages_only(in_wheel: dict[str, bytes]) -> None:
    release = f"clamproxy-{__version__}"
    assert {name.split("/")[0] for name in in_wheel} == {
        "clamproxy",
        f"{release}.data",
        f"{release}.dist-info",
    }
    assert {name for name in in_wheel if ".data/" in name} == {
        f"{release}.data/data/share/man/man1/clamproxy.1",
        f"{release}.data/data/share/man/man5/clamproxy-proxy.yaml.5",
    }


def test_the_wheel_holds_all_of_the_package(in_wheel: dict[str, bytes]) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "clamproxy").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in in_wheel if name.startswith("clamproxy/")} == {
        *files,
        "clamproxy/config/proxy.yaml",
    }
    assert in_wheel["clamproxy/config/proxy.yaml"] == (ROOT / "proxy.yaml").read_bytes()


def test_metadata(in_wheel: dict[str, bytes]) -> None:
    (metadata,) = (text for name, text in in_wheel.items() if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(metadata.decode())
    found = (fields["Name"], fields["Version"], fields["Requires-Python"])
    assert found == (
        "clamproxy",
        __version__,
        ">=3.12",
    )
    assert fields["Description-Content-Type"] == "text/markdown"
    assert fields.get_payload() == (ROOT / "README.md").read_text()


def test_the_sdist_holds_all_that_tests_and_documents_need(in_sdist: set[str]) -> None:
    folders = ("addons", "benchmarks", "clamproxy", "contrib", "docs", "tests", "tools", ".ci")
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    in_root = {
        path.name for pattern in ("*.md", "*.toml", "requirements*.txt") for path in ROOT.glob(pattern)
    }
    assert files | in_root | {"Makefile", "proxy.yaml", "setup.py"} <= in_sdist
    assert {name for name in in_sdist if name.endswith((".pyc", ".cvd", ".cdiff", ".cld"))} == set()
