"""What a gateway's process really does: the files it opens, the names it looks up, whom it contacts."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
import sys

record = open({record!r}, "a", buffering=1)

def witness(event, arguments):
    if event in ("open", "os.listdir", "os.scandir"):
        print(repr(("open", str(arguments[0]))), file=record)
    elif event in ("socket.connect", "socket.sendto"):
        print(repr(("contact", str(arguments[1]))), file=record)
    elif event == "socket.getaddrinfo":
        print(repr(("look up", str(arguments[0]))), file=record)

from clamproxy.proxy.addon import ClamProxy

{before}
addons = [ClamProxy()]
sys.addaudithook(witness)
"""


@dataclass(frozen=True, slots=True)
class Witness:
    """Records what a gateway does that loads `script`.

    Audit events (PEP 578) tell of everything that Python does, whatever code has asked for it.
    """

    script: Path
    _record: Path

    @classmethod
    def make(cls, directory: Path, before: str = "") -> Witness:
        """Write the script.

        Args:
            directory: for the script and what it records.
            before: Python that the process runs first.
        """
        script, record = directory / "witness.py", directory / "witness.txt"
        script.write_text(_SCRIPT.format(record=str(record), before=before))
        return cls(script, record)

    def seen(self, kind: str) -> set[str]:
        """What was recorded so far: for `open` paths, for `look up` names, for `contact` addresses."""
        return set(self.told(kind))

    def told(self, kind: str) -> list[str]:
        """The same in its order, as often as it happened."""
        events = [ast.literal_eval(line) for line in self._record.read_text().splitlines()]
        return [what for one, what in events if one == kind]


def is_code(path: str) -> bool:
    """Whether a path is that of a program's code, which Python may load late, or the system's own."""
    return path.startswith(
        (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2] / "clamproxy"), "/proc/")
    )
