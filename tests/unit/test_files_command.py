"""`clamproxy files`: what it says while the proxy runs, and when it doesn't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from clamproxy.cli import main
from clamproxy.site_files import Catalog, Edition, SiteFile, State

EDITION = Edition("0" * 64, 2048, 1_800_000_000, "clamscan")


def run(directory: Path, *arguments: str, files: str = "files") -> tuple[int, str]:
    config = directory / "proxy.yaml"
    config.write_text(f"files: {{directory: {files}}}\n")
    result = CliRunner().invoke(main, ["files", *arguments, "--config", str(config)])
    return result.exit_code, result.output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the proxy keeps the catalog."""
    place = tmp_path / "cache-state" / "site-files"
    place.mkdir(parents=True)
    (tmp_path / "files").mkdir()
    return place


def identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def test_before_there_is_anything(tmp_path: Path) -> None:
    code, output = run(tmp_path)
    assert (code, output) == (
        0,
        f"0 files published, from {tmp_path}/files ({tmp_path}/files doesn't exist yet)\n",
    )


def test_switched_off(tmp_path: Path) -> None:
    code, output = run(tmp_path, files="null")
    assert (code, "files.directory is null" in output, len(output.splitlines())) == (1, True, 1)


def test_the_catalog_counts_as_far_as_it_is_true(tmp_path: Path, place: Path) -> None:
    paths = {name: tmp_path / "files" / name for name in ("a.ndb", "b.ndb", "c.ndb", "notes.txt")}
    for path in paths.values():
        path.write_text("x")
    Catalog(
        {
            "a.ndb": SiteFile("a.ndb", State.PUBLISHED, 1.0, "", EDITION, identity(paths["a.ndb"])),
            "b.ndb": SiteFile("b.ndb", State.REFUSED, 1.0, "line 3", EDITION, identity(paths["b.ndb"])),
            "notes.txt": SiteFile("notes.txt", State.SKIPPED, 1.0, "ClamAV loads no .txt files"),
        }
    ).save(place)
    paths["b.ndb"].write_text("changed since")
    listed = {file["name"]: file for file in json.loads(run(tmp_path, "--json")[1])["files"]}
    assert {name: file["state"] for name, file in listed.items()} == {
        "a.ndb": "published",
        "b.ndb": "waiting",
        "c.ndb": "waiting",
        "notes.txt": "skipped",
    }
    assert (listed["b.ndb"]["size"], listed["c.ndb"]["size"]) == (2048, None)
    code, output = run(tmp_path)
    assert code == 0
    assert "2 files published" in output
    assert "2.0 KiB" in output
    assert "not looked at yet" in output
