"""The documents: what cites them finds what it means, what they link and name is there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
CITING = ("addons", "benchmarks", "clamproxy", "contrib", "docs", "tests")
"""Folders with texts that cite documents."""
PROTOCOL, ARCHITECTURE = "docs/protocol.md", "docs/architecture.md"

_TEXTS = ("", ".md", ".py", ".toml", ".yaml", ".yml", ".js", ".html", ".css", ".json")
_NUMBERS = r"\d+(?:\.\d+)?(?:(?:, | and | to )\d+(?:\.\d+)?)*"
_SECTIONS = re.compile(rf"\bdocs/([\w-]+\.md),?(?: sections?)? ({_NUMBERS})")
_TRAPS = re.compile(rf"\b[Tt]raps? ({_NUMBERS})")
_FOREIGN = re.compile(r"(?<![\w/])(?:protocol|architecture|design|mitmproxy|peers)\.md")
"""A document by a name that doesn't say where it is, or one that isn't here."""
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_NAMED = re.compile(r"`(?!mitmproxy/)([\w./-]+\.(?:py|md|yaml|toml|json))`")
"""A file of the project, in a document."""


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def citing() -> list[tuple[str, str]]:
    """The texts that may cite a document, each on one line, and their names."""
    paths = [path for folder in CITING for path in (ROOT / folder).rglob("*")]
    names = [
        path.relative_to(ROOT).as_posix()
        for path in sorted([*paths, *ROOT.glob("*.*"), ROOT / "Makefile"])
        if path.is_file() and path.suffix in _TEXTS and path != Path(__file__)
    ]
    return [(name, re.sub(r"\s*\n[ \t#]*", " ", text_of(name))) for name in names]


def headings(name: str) -> list[str]:
    """Without the blocks of code, in which a comment looks like one."""
    return _HEADING.findall(re.sub(r"^```.*?^```", "", text_of(name), flags=re.MULTILINE | re.DOTALL))


def sections(name: str) -> set[str]:
    """The numbers of a document's sections."""
    return {match[1] for one in headings(name) if (match := re.match(r"(\d+(?:\.\d+)?)\.? ", one))}


def anchors(name: str) -> set[str]:
    """What a link into a document may name, by GitHub's rules."""
    plain = (re.sub(r"[^\w\- ]", "", one.lower()) for one in headings(name))
    return {one.replace(" ", "-") for one in plain}


def numbers(text: str) -> Iterator[str]:
    """The numbers in ``1, 2 and 3`` or ``3 to 5``."""
    for first, last in re.findall(r"(\d+(?:\.\d+)?)(?: to (\d+))?", text):
        yield from map(str, range(int(first), int(last) + 1)) if last else (first,)


def traps() -> list[str]:
    chapter = text_of(PROTOCOL).partition("\n## 10. ")[2].partition("\n## ")[0]
    return re.findall(r"^(\d+)\. ", chapter, re.MULTILINE)


def test_traps_are_numbered_without_gaps() -> None:
    assert traps() == [str(number) for number in range(1, 44)]


def test_cited_sections_are_there() -> None:
    cited = {
        (name, match[1], number)
        for name, text in citing()
        for match in _SECTIONS.finditer(text)
        for number in numbers(match[2])
    }
    known = {path.name: sections(f"docs/{path.name}") for path in (ROOT / "docs").glob("*.md")}
    assert {one for one in cited if one[2] not in known.get(one[1], ())} == set()
    assert len(cited) > 50


def test_cited_traps_are_there() -> None:
    cited = {
        (n, number) for n, text in citing() for match in _TRAPS.finditer(text) for number in numbers(match[1])
    }
    assert {one for one in cited if one[1] not in traps()} == set()
    assert len(cited) > 50


def test_citations_say_where_the_document_is() -> None:
    # Documents may leave the folder out where it is their own.
    cited = {name for name, text in citing() if not name.startswith("docs/") and _FOREIGN.search(text)}
    assert cited == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in _LINK.findall(text_of(name)):
        scheme, _, path, _, fragment = urlsplit(target)
        if scheme:
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if fragment:
            assert fragment in anchors(file.resolve().relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("name", [PROTOCOL, ARCHITECTURE, "CONTRIBUTING.md"])
def test_named_files_are_there(name: str) -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("*.py")}
    missing = {
        named
        for named in _NAMED.findall(text_of(name))
        if not any((place / named).is_file() for place in (ROOT, ROOT / "clamproxy", ROOT / "docs"))
        and not (named.rpartition("/")[2].startswith("test_") and named.rpartition("/")[2] in tests)
    }
    assert missing == set()


def test_each_promise_is_shown_by_a_test() -> None:
    shown = re.findall(r"`(\w+/test_\w+\.py)(?:::(\w+))?`", text_of("SECURITY.md"))
    missing = {
        f"{file}::{test}"
        for file, test in shown
        if not (ROOT / "tests" / file).is_file()
        or (test and not re.search(rf"^\s*(async )?def {test}\(", text_of(f"tests/{file}"), re.MULTILINE))
    }
    assert missing == set()
    assert len(shown) > 30


# The table of rooms in architecture.md against the imports


def rooms() -> dict[str, int]:
    """Each package and module in the table, with the number of its line."""
    chapter = text_of(ARCHITECTURE).partition("\n## 1. ")[2].partition("\n## ")[0]
    lines = [line.split("|")[1] for line in chapter.splitlines() if line.startswith("| `")]
    return {
        named.removesuffix("/").removesuffix(".py"): number
        for number, line in enumerate(lines)
        for named in re.findall(r"`([^`]+)`", line)
    }


@cache
def imports() -> list[tuple[str, str]]:
    """Each module of the package, with each that it imports."""
    found = []
    for path in (ROOT / "clamproxy").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"clamproxy.{alias.name}" for alias in node.names]
                found += [
                    (module, one) for one in (names if node.module == "clamproxy" else [node.module or ""])
                ]
    return found


def test_imports_lead_down() -> None:
    lines = rooms()
    upwards = {
        (module, imported)
        for module, imported in imports()
        if imported.startswith("clamproxy.")
        and lines.get(module.split(".")[1], -1) > lines.get(imported.split(".")[1], len(lines))
    }
    assert upwards == set()
    assert {"cli", "proxy", "service", "serving", "origin", "cache", "formats"} <= lines.keys()


def places_of(room: str) -> tuple[Path, Path]:
    return ROOT / "clamproxy" / room, ROOT / "clamproxy" / f"{room}.py"


def test_every_package_has_a_room() -> None:
    packages = {path.parent.name for path in (ROOT / "clamproxy").glob("*/__init__.py")}
    assert packages - rooms().keys() == set()
    assert {room for room in rooms() if not any(map(Path.exists, places_of(room)))} == set()


def test_a_name_stands_for_one_thing() -> None:
    """A module is found by its name alone, except commands; so is a class."""
    paths = [path for path in (ROOT / "clamproxy").rglob("*.py") if not path.name.startswith("__")]
    modules = Counter(path.name for path in paths if path.parent.name != "cli")
    classes = Counter(
        node.name
        for path in paths
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in (modules + classes).items() if count > 1} == set()


def test_only_the_proxy_knows_mitmproxy() -> None:
    knowing = {module for module, imported in imports() if imported.split(".")[0] == "mitmproxy"}
    assert {m for m in knowing if not m.startswith("clamproxy.proxy.")} == {"clamproxy.cli.run"}
