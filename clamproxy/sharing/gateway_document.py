"""The document in the object store in which a gateway tells the others of its site what it knows."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clamproxy.dates import as_time
from clamproxy.readable import one_line
from clamproxy.untrusted import parse_json

DIRECTORY = "gateways"
"""Where the documents are, below the prefix of the object store."""
LARGEST = 512 * 1024
"""Bytes of a document, at most; that of a busy gateway has some 30 kB."""

_FORMAT = 1
_LONGEST_NAME = 100
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_ID = re.compile(r"[0-9a-f]{16}")


class DocumentError(ValueError):
    """No document of a gateway."""


@dataclass(frozen=True, slots=True)
class GatewayDocument:
    """What a gateway tells."""

    name: str
    """Its host name, for people."""
    life: str
    """See `life_of`."""
    written_at: float
    """Unix seconds, by its clock."""
    notes: Any
    """Any JSON value; see `topics.understood`."""

    def encode(self) -> bytes:
        return json.dumps({"format": _FORMAT, **asdict(self)}, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, content: bytes) -> GatewayDocument:
        """Read a document that anybody may have written. The notes in it are still to be checked.

        Raises:
            DocumentError: it is something else, or from a version of clamproxy with another format.
        """
        match parse_json(content) if len(content) <= LARGEST else None:
            case {
                "format": 1,
                "name": str(name),
                "life": str(life),
                "written_at": written_at,
                **rest,
            }:
                with suppress(ValueError):
                    return cls(one_line(name, _LONGEST_NAME), life, as_time(written_at), rest.get("notes"))
        raise DocumentError("not the document of a gateway")


def path_of(gateway: str) -> str:
    """Where the document of the gateway with this id is."""
    return f"{DIRECTORY}/{gateway}.json"


def id_in(name: str, suffix: str = ".json") -> str | None:
    """The id in the name of a document; None if it is none."""
    gateway = name.removesuffix(suffix)
    return gateway if gateway != name and is_id(gateway) else None


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def life_of(directory: Path) -> str:
    """Tells a gateway from its clone: the same for all processes of one machine until it starts anew.

    Args:
        directory: the state directory.
    """
    facts = []
    with suppress(OSError):
        facts.append(_BOOT.read_text())
    with suppress(OSError):
        status = directory.stat()
        facts.append(f"{status.st_dev} {status.st_ino}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
