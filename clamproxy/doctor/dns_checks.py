"""The version record in DNS, as seen by freshclam and by the gateway (docs/protocol.md 3)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import dns.exception
import dns.resolver

from clamproxy.config.settings import CLAMAV_RECORD
from clamproxy.config.units import Nameserver, host_and_port
from clamproxy.doctor.explain import ON_GATEWAY
from clamproxy.doctor.findings import Status, Verdict, ok, problem, warning
from clamproxy.formats.version_record import IN_PRIMARY, VersionRecord, single_name
from clamproxy.origin.resolver import DnsResolver, Resolver
from clamproxy.readable import shortened

_LONGEST_REASON = 160
"""How many characters of a reason are shown."""
_NO_DNS = (
    "nothing, if this machine isn't meant to resolve outside names: freshclam then asks the gateway "
    "(start it with --no-dns to avoid the wait). Otherwise, repair its DNS."
)


class RecordError(Exception):
    """There is no version record, or no valid one; the text is one line."""


def ask(resolver: Resolver, name: str) -> str:
    """The text of a record; takes as long as the resolver's own time limit.

    Raises:
        RecordError: there is none.
    """

    async def look_up() -> str:
        try:
            return await resolver.txt(name)
        finally:
            resolver.close()

    try:
        return asyncio.run(look_up())
    except Exception as error:  # a resolver raises whatever went wrong
        raise RecordError(shortened(_in_words(error), _LONGEST_REASON)) from error


def _in_words(error: Exception) -> str:
    """Why there is no record; if the same servers were asked repeatedly, each answer is given once."""
    if isinstance(error, dns.resolver.LifetimeTimeout | dns.resolver.NoNameservers):
        answers = (_answer_of(*entry[:4]) for entry in error.kwargs.get("errors", ()))
        return f"no name server gives an answer ({', '.join(dict.fromkeys(answers))})"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _answer_of(server: str, _tcp: bool, port: int, answer: object) -> str:
    address = server.partition(":")[2].rpartition("@")[0] or server
    said = "doesn't answer" if isinstance(answer, dns.exception.Timeout) else f"says {answer}"
    return f"{host_and_port(address, port)} {said}"


def read_record(text: str, database: str) -> VersionRecord:
    """Read the record of a database.

    Raises:
        RecordError: it is none.
    """
    try:
        return VersionRecord.parse(text, database)
    except ValueError as error:
        raise RecordError(str(error)) from error


def version_in(text: str, database: str, now: float) -> int:
    """The version of a database in its record.

    Raises:
        RecordError: there is none, or the record is too old.
    """
    record = read_record(text, database)
    try:
        return record.versions_at(now)[database]
    except ValueError as error:
        raise RecordError(str(error)) from error
    except KeyError as error:
        raise RecordError(f"no version of {database} in {text[:80]!r}") from error


def compare_with_gateway(
    databases: Sequence[str],
    served: Mapping[str, int],
    nameservers: Sequence[Nameserver],
    domain: str = CLAMAV_RECORD,
) -> Verdict:
    """Compare what freshclam learns in DNS mode with what the gateway serves.

    Args:
        databases: their names.
        served: the versions in the headers that the gateway sent, as far as known.
        nameservers: the servers to ask; if empty, those of the system.
        domain: the name of the primary record. freshclam asks for all others below clamav.net, whatever
            that is (docs/protocol.md 3).
    """
    names = {
        database: domain if database in IN_PRIMARY else single_name(database, CLAMAV_RECORD)
        for database in databases
    }
    records = {name: _look_up(name, nameservers) for name in dict.fromkeys(names.values())}
    verdicts = [_compare(name, served.get(name), names[name], records[names[name]]) for name in databases]
    worst = max(verdicts, key=lambda verdict: verdict.status.severity)
    if worst.status is not Status.OK or len(verdicts) == 1:
        return worst
    return ok("; ".join(verdict.text for verdict in verdicts))


def _look_up(name: str, nameservers: Sequence[Nameserver]) -> str | RecordError:
    try:
        return ask(DnsResolver(nameservers), name)
    except RecordError as error:
        return error


def _compare(database: str, served: int | None, name: str, record: str | RecordError) -> Verdict:
    try:
        if isinstance(record, RecordError):
            raise record
        version = version_in(record, database, time.time())
    except RecordError as error:
        return warning(f"no version record ({name}): {error}", _NO_DNS)
    if served is None:
        return ok(f"DNS advertises {database} {version}")
    if version == served:
        return ok(f"DNS advertises {database} {version}, which is what the gateway serves")
    if version < served:
        return warning(
            f"DNS here advertises {database} {version}, but the gateway already serves {served}",
            "nothing, if this passes within half an hour: resolvers keep an answer for that long.",
        )
    text = f"DNS advertises {database} {version}, but the gateway serves {served}"
    if version == served + 1:
        return warning(f"{text}: perhaps a new release", f"if this lasts for an hour, {ON_GATEWAY}")
    return problem(f"{text}: {version - served} releases behind", ON_GATEWAY)
