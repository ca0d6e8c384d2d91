"""The databases on this machine, compared with those of the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clamproxy.doctor.explain import ON_GATEWAY
from clamproxy.doctor.findings import Verdict, ok, problem, warning
from clamproxy.doctor.freshclam import STANDARD_DATABASES
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.readable import shown_count

GRACE = 86400.0
"""A machine may be one version behind for this many seconds after a build: its next check fetches that."""


@dataclass(frozen=True, slots=True)
class Local:
    """A database in DatabaseDirectory."""

    version: int | None = None
    """None if there is no usable file."""
    trouble: str = ""
    """Why an existing file can't be used, in one line."""

    @property
    def is_there(self) -> bool:
        return self.version is not None or bool(self.trouble)


def look_at(directory: Path, database: str) -> Local:
    """A machine's database: its CVD, or the CLD that patches have turned it into."""
    versions, troubles = list[int](), list[str]()
    for path in (directory / f"{database}.cld", directory / f"{database}.cvd"):
        try:
            with path.open("rb") as file:
                versions.append(CvdHeader.parse(file.read(HEADER_SIZE)).version)
        except FileNotFoundError:
            continue
        except OSError as error:
            troubles.append(f"{path}: {error.strerror or error}")
        except InvalidObject as error:
            troubles.append(f"{path} {error}")
    return Local(max(versions, default=None), "; ".join(troubles))


def compare(local: Mapping[str, Local], served: Mapping[str, CvdHeader | None], now: float) -> Verdict:
    """How far a machine is behind.

    Args:
        local: what the machine has.
        served: the headers that the gateway sent; None if it said that there is no such database.
        now: Unix seconds.

    Returns:
        The verdict; if the machine itself can be told to act, the remedy contains ``{command}``.
    """
    verdicts = [_compare(name, found, served.get(name), name in served, now) for name, found in local.items()]
    worst = max(verdicts, key=lambda verdict: verdict.status.severity, default=ok("none are configured"))
    same = [verdict.text for verdict in verdicts if verdict.status is worst.status]
    return Verdict(worst.status, "; ".join(same), worst.remedy)


def _compare(name: str, local: Local, header: CvdHeader | None, is_known: bool, now: float) -> Verdict:
    if is_known and header is None and name not in STANDARD_DATABASES:
        return warning(
            f"the gateway's origin has no {name}: freshclam stops there, and skips the databases after it",
            f"remove ExtraDatabase {name} from freshclam.conf.",
        )
    if local.version is None:
        return problem(local.trouble or f"{name} is missing", "{command}")
    if header is None:
        return ok(f"{name} {local.version}")
    missing = header.version - local.version
    if missing < 0:
        text = f"{name} {local.version} is newer than the gateway's {header.version}"
        return warning(text, ON_GATEWAY)
    if missing == 0:
        return ok(f"{name} {local.version}, the same as on the gateway")
    text = (
        f"{name} {local.version} is {shown_count(missing, 'version')} behind the gateway's {header.version}"
    )
    if missing == 1 and now - header.stime < GRACE:
        return ok(f"{text}, which is new: the next check fetches it")
    return problem(text, "{command}")
