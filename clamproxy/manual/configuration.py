"""clamproxy-proxy.yaml(5), from the comments in proxy.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clamproxy.config.example import example
from clamproxy.config.loading import SYSTEM_CONFIG
from clamproxy.manual import roff

_COMMENT = re.compile(r" *#(?: (.*))?")
_KEY = re.compile(r"( *)(\w+):")
_FACT = re.compile(r"(Default|Environment): (.*)")
_CONTINUED = re.compile(r"\n {8,}")
_TERM = re.compile(r"([A-Z]\w+): +(.*)")


def configuration_page(version: str) -> str:
    """The page, in roff.

    Raises:
        ConfigurationError: see `clamproxy.config.example.example`.
    """
    lines = [
        roff.title("CLAMPROXY-PROXY.YAML", 5, version, "clamproxy"),
        roff.section("NAME"),
        r"clamproxy\-proxy.yaml \- the configuration of clamproxy",
        roff.section("SYNOPSIS"),
        r"\fI./proxy.yaml\fR",
        ".br",
        rf"\fI{roff.escaped(str(SYSTEM_CONFIG))}\fR",
        roff.section("DESCRIPTION"),
        *_body(example().splitlines()),
        roff.section('"SEE ALSO"'),
        r"\fBclamproxy\fR(1); \fBclamproxy config example\fR prints this as a file to edit.",
    ]
    return roff.document(lines)


def _body(lines: list[str]) -> Iterator[str]:
    """The introduction, then sections and their keys, each from the comment above it."""
    comment: list[str] = []
    is_introduction = True
    for line in lines:
        if found := _COMMENT.fullmatch(line):
            comment.append(found[1] or "")
            continue
        if not line and is_introduction:
            yield from _introduction(comment)
            yield roff.section("SETTINGS")
            is_introduction = False
        elif found := _KEY.match(line):
            yield from _section(found[2], comment) if not found[1] else _key(found[2], comment)
        comment = []


def _introduction(comment: list[str]) -> Iterator[str]:
    """Paragraphs, examples, and lines that explain a term."""
    for block in _blocks(_CONTINUED.sub(" ", "\n".join(comment)).split("\n")):
        terms = [found for line in block.lines if (found := _TERM.fullmatch(line))]
        if len(terms) == len(block.lines):
            yield from (roff.definition(roff.bold(term[1]), roff.prose(term[2])) for term in terms)
        else:
            yield roff.verbatim(block.lines) if block.is_verbatim else roff.paragraph(block.text)


def _section(name: str, comment: list[str]) -> Iterator[str]:
    yield roff.subsection(f"{name}:")
    for block in _blocks([line for line in comment if not _FACT.fullmatch(line)]):
        yield roff.verbatim(block.lines) if block.is_verbatim else roff.paragraph(block.text)
    yield from _facts(comment)


def _key(name: str, comment: list[str]) -> Iterator[str]:
    yield roff.definition(roff.bold(name))
    for block in _blocks([line for line in comment if not _FACT.fullmatch(line)]):
        yield roff.verbatim(block.lines) if block.is_verbatim else roff.prose(block.text)
    yield from _facts(comment)


def _facts(comment: list[str]) -> Iterator[str]:
    """Default and variable of a key."""
    facts = [found for line in comment if (found := _FACT.fullmatch(line))]
    yield from (f".br\n{fact[1]}: {roff.bold(fact[2])}" for fact in facts)


@dataclass(slots=True)
class _Block:
    """A paragraph, or an example, which is indented."""

    lines: list[str]

    @property
    def is_verbatim(self) -> bool:
        return self.lines[0].startswith("  ")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def _blocks(comment: list[str]) -> list[_Block]:
    """A comment in parts: an empty line ends one; so does the beginning or the end of an example."""
    blocks: list[_Block] = []
    is_new = True
    for line in comment:
        if line and (is_new or (line.startswith("  ") != blocks[-1].is_verbatim)):
            blocks.append(_Block([line]))
        elif line:
            blocks[-1].lines.append(line)
        is_new = not line
    return blocks
