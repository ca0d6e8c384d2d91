"""docs/troubleshooting.md quotes what programs really say."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import mitmproxy
import pytest

from tests.support.freshclam import require_freshclam
from tests.support.gateway import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def quoted(heading: str) -> Iterator[str]:
    """What stands as code in the first column of the tables with such a heading."""
    is_inside = False
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            is_inside = False
        elif line.startswith(f"| {heading} |"):
            is_inside = True
        elif is_inside:
            yield from re.findall("`([^`]+)`", re.split(r"(?<!\\)\|", line)[1])


@cache
def freshclam_texts() -> str:
    """All texts in freshclam, in the libraries that it uses, and of the system's errors."""
    program = require_freshclam()
    libraries = re.findall(r"=> (\S+)", subprocess.check_output(["ldd", program], text=True))
    files = [program, *(path for path in libraries if re.search("lib(freshclam|curl)", path))]
    found = [re.findall(rb"[\n\t -~]{6,}", Path(path).read_bytes()) for path in files]
    errors = [os.strerror(number) for number in errno.errorcode]
    return "\n".join([*(text.decode() for texts in found for text in texts), *errors])


@cache
def gateway_texts() -> str:
    """The sources, and those of mitmproxy that log."""
    paths = [*(ROOT / "clamproxy").rglob("*.py"), *Path(mitmproxy.__file__).parent.glob("proxy/layers/*.py")]
    return "\n".join(path.read_text() for path in paths)


def parts(text: str) -> Iterator[str]:
    """The parts of a quotation between what differs, as patterns: a number may be a placeholder's."""
    for part in text.split("…"):
        if words := part.strip(" :."):
            yield re.sub(r"\d+", r"(?:\\d+|%l?[dui]|\\{\\w+\\})", re.escape(words))


@pytest.mark.parametrize("text", sorted(set(quoted("freshclam says"))))
def test_freshclam_says_what_is_quoted(text: str) -> None:
    for part in parts(text):
        assert re.search(part, freshclam_texts()), part


@pytest.mark.parametrize("text", sorted(set(quoted("The gateway says"))))
def test_the_gateway_says_what_is_quoted(text: str) -> None:
    for part in parts(text):
        assert re.search(part, gateway_texts()), part


def test_there_are_enough_quotations() -> None:
    """A table whose heading has changed would be looked at by nobody."""
    assert len(set(quoted("freshclam says"))) > 30
    assert len(set(quoted("The gateway says"))) > 9
