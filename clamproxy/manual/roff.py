"""The few requests of roff that our man pages need: groff_man(7)."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ESCAPES = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "~": r"\(ti", "^": r"\(ha"})
"""What roff would turn into something else, which could not be copied into a shell."""
_CODE = re.compile(r"`([^`]+)`")


def escaped(text: str) -> str:
    """A text that means itself."""
    plain = text.translate(_ESCAPES)
    return re.sub(r"^(?=\.)", r"\\&", plain, flags=re.MULTILINE)


def bold(text: str) -> str:
    return rf"\fB{escaped(text)}\fR"


def prose(text: str) -> str:
    """A text on one line, in which `code` becomes bold."""
    parts = _CODE.split(" ".join(text.split()))
    line = "".join(bold(part) if at % 2 else part.translate(_ESCAPES) for at, part in enumerate(parts))
    return rf"\&{line}" if line.startswith(".") else line


def title(name: str, section: int, version: str, manual: str) -> str:
    """The page's first line.

    Without a date, so that the same sources make the same page.
    """
    return f'.TH "{escaped(name)}" {section} "" "{escaped(f"clamproxy {version}")}" "{escaped(manual)}"'


def section(heading: str) -> str:
    return f".SH {heading}"


def subsection(heading: str) -> str:
    return f'.SS "{heading}"'


def paragraph(text: str) -> str:
    return f".PP\n{prose(text)}"


def definition(term: str, *meaning: str) -> str:
    """What a term means; both in roff. Lines of text that follow belong to it."""
    return "\n".join([".TP", term, *meaning])


def verbatim(lines: Iterable[str]) -> str:
    """Lines that stay as they are."""
    return "\n".join([".nf", *map(escaped, lines), ".fi"])


def document(lines: Iterable[str]) -> str:
    """A whole page."""
    # A heading begins a paragraph by itself; linters complain of a second beginning.
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", "\n".join(lines) + "\n", flags=re.MULTILINE)
