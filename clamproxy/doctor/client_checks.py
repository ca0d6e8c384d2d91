"""The client's side: what freshclam would meet on its way through the gateway."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clamproxy.config.settings import CLAMAV_RECORD
from clamproxy.config.units import MIB, Nameserver
from clamproxy.dates import parse_http_date
from clamproxy.doctor import explain
from clamproxy.doctor.dns_checks import compare_with_gateway
from clamproxy.doctor.explain import compare_clocks
from clamproxy.doctor.findings import Check, Deadline, Verdict, ok, problem, skipped, warning
from clamproxy.doctor.freshclam import STANDARD_DATABASES
from clamproxy.doctor.reach import look_up
from clamproxy.doctor.tls_checks import Trust, judge_tls
from clamproxy.doctor.wire import (
    PeerResponse,
    Proxy,
    TunnelRefused,
    WireError,
    connected,
    get,
    open_tunnel,
)
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import InvalidObject, TrustedKeys
from clamproxy.formats.verification import verify
from clamproxy.objects import Kind, Latest, ObjectId
from clamproxy.readable import shown_count, shown_span
from clamproxy.setup.freshclam_lines import CDN

OLD_DAILY = 4 * 86400.0
"""Seconds after which a daily.cvd is old: it is renewed about once a day (docs/protocol.md 3)."""
LARGEST_PATCH = 64 * MIB

_CONNECT_LIMIT = 5.0
_ANSWER_LIMIT = 10.0
"""Seconds for one step. The gateway may wait longer for the origin, but then that is worth reporting."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What to examine, and how."""

    proxy: Proxy
    databases: Sequence[str]
    """For the first of them, a patch is fetched as well."""
    keys: TrustedKeys
    trusts: Sequence[Trust] = ()
    """What https clients may trust; if empty, https is not examined."""
    nameservers: Sequence[Nameserver] = ()
    """The servers to ask for the version record; if empty, those of the system."""
    target: str = f"{CDN}:80"
    """The server that is asked for, as host and port."""
    is_mirror: bool = False
    """Whether the gateway is that server itself, rather than a proxy."""
    record: str = CLAMAV_RECORD
    """The name of the version record that freshclam asks for."""


class Client:
    """The checks, and what each of them leaves for the next."""

    def __init__(self, subject: Subject, deadline: Deadline) -> None:
        self._subject = subject
        self._proxy = subject.proxy
        self._deadline = deadline
        self._addresses: list[str] = []
        self.served: dict[str, CvdHeader | None] = {}
        """The headers that the gateway has sent, by database; None if it said that there is no such
        database."""
        self._date: float | None = None

    def checks(self) -> list[Check]:
        """The checks, in the order in which a client would meet the obstacles."""
        others = [
            Check(f"header {name}", partial(self._probe, name), ["proxy"])
            for name in self._subject.databases[1:]
        ]
        return [
            Check("name", self._resolve),
            Check("connection", self._connect, ["name"]),
            Check("proxy", self._tunnel, ["connection"]),
            Check("header", partial(self._probe, self._first), ["proxy"]),
            *others,
            Check("clock", self._compare_clocks, ["header"]),
            Check("patch", self._fetch_patch, ["header"]),
            Check("cache", self._fetch_again, ["patch"]),
            Check("https", self._try_tls, ["proxy"]),
            Check("dns", self._ask_dns),
        ]

    def _resolve(self) -> Verdict:
        host = self._proxy.host
        try:
            self._addresses = look_up(host, self._deadline.allow(_CONNECT_LIMIT))
        except OSError as error:
            return problem(
                f"the gateway's name {host} can't be resolved: {error.strerror or error}",
                "check the spelling of HTTPProxyServer, and this machine's DNS; or use an IP address.",
            )
        if self._addresses == [host]:
            return ok(f"{host} is an IP address")
        return ok(f"{host} resolves to {', '.join(self._addresses)}")

    def _connect(self) -> Verdict:
        limit, failure = self._deadline.allow(_CONNECT_LIMIT), ""
        for address in self._addresses:
            try:
                with socket.create_connection((address, self._proxy.port), limit) as stream:
                    self._addresses = [address]
                    return ok(f"{self._proxy} can be reached from {stream.getsockname()[0]}")
            except OSError as error:
                failure = failure or explain.connection(error)
        return problem(f"no connection to {self._proxy}: {failure}", explain.CONNECT_REMEDY)

    def _tunnel(self) -> Verdict:
        target = self._subject.target
        if self._subject.is_mirror:
            return ok("none is used: the gateway is the mirror")
        try:
            with connected(self._address, self._deadline.allow(_ANSWER_LIMIT)) as stream:
                open_tunnel(stream, self._proxy, target)
        except (OSError, WireError, TunnelRefused) as error:
            return explain.tunnel(error, self._proxy, target)
        return ok(f"the gateway answers CONNECT {target} with 200")

    def _probe(self, database: str) -> Verdict:
        path = Latest(database, Kind.CVD).upstream_path
        answer = self._get(path, f"0-{HEADER_SIZE - 1}", HEADER_SIZE)
        if isinstance(answer, Verdict):
            return answer
        self._date = parse_http_date(answer["date"])
        if not answer.is_clamproxy:
            return explain.other_proxy(answer)
        if answer.status == 404 and "detail=refused" not in answer["cache-status"]:
            self.served[database] = None
            if database not in STANDARD_DATABASES:
                return skipped(f"the gateway's origin has no {database}")
        if answer.status not in (200, 206):
            return explain.status(answer, path, self._proxy)
        try:
            header = CvdHeader.parse(answer.body)
        except InvalidObject as error:
            return problem(
                f"the answer for {path} has no CVD header: {error}",
                "look for a device between here and the gateway that changes answers.",
            )
        self.served[database] = header
        return self._judge(database, header, answer)

    def _judge(self, database: str, header: CvdHeader, answer: PeerResponse) -> Verdict:
        age = time.time() - header.stime
        text = f"{database} {header.version}, built {shown_span(max(0.0, age))} ago"
        if answer.status == 200:
            return warning(f"{text}; the answer has status 200 instead of 206", explain.CHANGED_REMEDY)
        if "fwd=stale" in answer["cache-status"]:
            return warning(
                f"{text}; there is a newer one, but the origin doesn't deliver it", explain.ON_GATEWAY
            )
        if database == "daily" and age > OLD_DAILY:
            return warning(f"{text}; a newer one should appear each day", explain.ON_GATEWAY)
        return ok(text)

    def _compare_clocks(self) -> Verdict:
        if self._date is None:
            return skipped("the gateway's answer has no date")
        return compare_clocks(self._date, time.time(), "the gateway")

    def _fetch_patch(self) -> Verdict:
        patch = self._patch
        answer = self._get(patch.upstream_path, None, LARGEST_PATCH)
        if isinstance(answer, Verdict):
            return answer
        if answer.status == 404 and answer.is_clamproxy:
            return warning(
                f"there is no {patch.file_name}: machines that are one version behind can't be patched",
                "wait a moment and try again: patches appear a little later than versions.",
            )
        if answer.status != 200:
            return explain.status(answer, patch.upstream_path, self._proxy)
        if not answer.complete:
            return problem(
                f"{patch.file_name} is incomplete: it ends after {shown_count(len(answer.body), 'byte')}",
                explain.CHANGED_REMEDY,
            )
        if not answer.body:
            return ok(f"{patch.file_name} is empty: ClamAV wants clients to fetch this version whole")
        return self._verify(patch, answer.body)

    def _verify(self, patch: ObjectId, body: bytes) -> Verdict:
        with tempfile.TemporaryDirectory(prefix="clamproxy-doctor-") as directory:
            path = Path(directory) / patch.file_name
            path.write_bytes(body)
            try:
                verify(path, patch, self._subject.keys)
            except InvalidObject as error:
                return problem(
                    f"{patch.file_name} is not as ClamAV signed it: {error}", explain.CHANGED_REMEDY
                )
        return ok(f"{patch.file_name} has {shown_count(len(body), 'byte')} and ClamAV's signature")

    def _fetch_again(self) -> Verdict:
        answer = self._get(self._patch.upstream_path, "0-63", HEADER_SIZE)
        if isinstance(answer, Verdict):
            return answer
        status = answer["cache-status"]
        if "clamproxy; hit" in status:
            return ok(f"the second request was answered from the cache ({status})")
        return warning(
            f"the second request wasn't answered from the cache ({status or 'no Cache-Status'})",
            f"see the gateway's log; {explain.ON_GATEWAY}",
        )

    def _try_tls(self) -> Verdict:
        trusts = self._subject.trusts
        if not trusts:
            return skipped("machines with http://… in freshclam.conf don't need it; use --https to test it")
        path = Latest(self._first, Kind.CVD).upstream_path
        limit, host = self._deadline.allow(_ANSWER_LIMIT), self._subject.target.rpartition(":")[0]
        return judge_tls(trusts, self._proxy, self._address, host, path, limit, self._date)

    def _ask_dns(self) -> Verdict:
        served = {name: header.version for name, header in self.served.items() if header is not None}
        wanted = [name for name in self._subject.databases if self.served.get(name, ...) is not None]
        subject = self._subject
        return compare_with_gateway(wanted or [self._first], served, subject.nameservers, subject.record)

    @property
    def _first(self) -> str:
        return self._subject.databases[0]

    @property
    def _patch(self) -> ObjectId:
        header = self.served.get(self._first)
        return ObjectId(self._first, header.version if header else 1, Kind.CDIFF)

    @property
    def _address(self) -> tuple[str, int]:
        return self._addresses[0], self._proxy.port

    def _get(self, path: str, span: str | None, largest: int) -> PeerResponse | Verdict:
        """Ask as freshclam does; returns a verdict if there is no response."""
        target, is_mirror = self._subject.target, self._subject.is_mirror
        host, token = target.removesuffix(":80"), self._proxy.token if is_mirror else ""
        try:
            with connected(self._address, self._deadline.allow(_ANSWER_LIMIT)) as stream:
                if not is_mirror:
                    open_tunnel(stream, self._proxy, target)
                agent = self._proxy.user_agent
                return get(stream, host, path, agent, span=span, largest=largest, token=token)
        except TunnelRefused as error:
            return explain.tunnel(error, self._proxy, target)
        except (OSError, WireError) as error:
            return explain.no_answer(error, f"GET {path}")
