"""The client's side: what a freshclam would meet on its way through the gateway."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clamproxy.config.units import MIB, Nameserver
from clamproxy.dates import parse_http_date
from clamproxy.doctor import explain
from clamproxy.doctor.bounded import bounded
from clamproxy.doctor.clock import compare_clocks
from clamproxy.doctor.findings import Check, Deadline, Verdict, ok, problem, skipped, warning
from clamproxy.doctor.names import compare_with_gateway
from clamproxy.doctor.tls import Trust, judge_tls
from clamproxy.doctor.wire import (
    Answer,
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
from clamproxy.setup.client_config import CDN

OLD_DAILY = 4 * 86400.0
"""Seconds: daily.cvd is renewed about once a day (protocol.md 3)."""
LARGEST_PATCH = 64 * MIB

_CONNECT_LIMIT = 5.0
_ANSWER_LIMIT = 10.0
"""Seconds for one step. The gateway may wait longer than that for the origin, but then that is the news."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined, and how."""

    proxy: Proxy
    database: str
    keys: TrustedKeys
    trusts: Sequence[Trust] = ()
    """What https clients may trust; nothing: they are not looked at."""
    nameservers: Sequence[Nameserver] = ()
    """Who is asked for the version record; none: the servers of the system."""


class Client:
    """The checks, and what one of them leaves for the next."""

    def __init__(self, subject: Subject, deadline: Deadline) -> None:
        self._subject = subject
        self._proxy = subject.proxy
        self._deadline = deadline
        self._addresses: list[str] = []
        self._header: CvdHeader | None = None
        self._date: float | None = None

    def checks(self) -> list[Check]:
        """In the order in which a client would meet the obstacles."""
        return [
            Check("name", self._resolve),
            Check("connection", self._connect, ["name"]),
            Check("proxy", self._tunnel, ["connection"]),
            Check("header", self._probe, ["proxy"]),
            Check("clock", self._compare_clocks, ["header"]),
            Check("patch", self._fetch_patch, ["header"]),
            Check("cache", self._fetch_again, ["patch"]),
            Check("https", self._try_tls, ["proxy"]),
            Check("dns", self._ask_dns),
        ]

    def _resolve(self) -> Verdict:
        host = self._proxy.host
        try:
            self._addresses = _look_up(host, self._deadline.allow(_CONNECT_LIMIT))
        except OSError as error:
            return problem(
                f"the gateway's name {host} can't be resolved: {error.strerror or error}",
                "check the spelling of HTTPProxyServer, and this machine's DNS; or use an IP address.",
            )
        if self._addresses == [host]:
            return ok(f"{host} is an address")
        return ok(f"{host} is {', '.join(self._addresses)}")

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
        target = f"{CDN}:80"
        try:
            with connected(self._address, self._deadline.allow(_ANSWER_LIMIT)) as stream:
                open_tunnel(stream, self._proxy, target)
        except (OSError, WireError, TunnelRefused) as error:
            return explain.tunnel(error, self._proxy, target)
        return ok(f"the gateway answers CONNECT {target} with 200")

    def _probe(self) -> Verdict:
        path = Latest(self._subject.database, Kind.CVD).upstream_path
        answer = self._get(path, f"0-{HEADER_SIZE - 1}", HEADER_SIZE)
        if isinstance(answer, Verdict):
            return answer
        self._date = parse_http_date(answer["date"])
        if not answer.is_clamproxy:
            return explain.other_proxy(answer)
        if answer.status not in (200, 206):
            return explain.status(answer, path)
        try:
            header = CvdHeader.parse(answer.body)
        except InvalidObject as error:
            return problem(
                f"{path} begins with something that is no CVD header: {error}",
                "look for a device between here and the gateway that changes answers.",
            )
        self._header = header
        return self._judge(header, answer)

    def _judge(self, header: CvdHeader, answer: Answer) -> Verdict:
        database, age = self._subject.database, time.time() - header.stime
        text = f"{database} {header.version}, built {shown_span(max(0.0, age))} ago"
        if answer.status == 200:
            return warning(f"{text}; the answer has status 200 in place of 206", explain.CHANGED_REMEDY)
        if "fwd=stale" in answer["cache-status"]:
            return warning(f"{text}; there is a newer one that the origin doesn't give", explain.ON_GATEWAY)
        if database == "daily" and age > OLD_DAILY:
            return warning(f"{text}; there should be a newer one each day", explain.ON_GATEWAY)
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
                "wait for a moment and try again: patches come a little later than versions.",
            )
        if answer.status != 200:
            return explain.status(answer, patch.upstream_path)
        if not answer.complete:
            return problem(
                f"{patch.file_name} ends after {shown_count(len(answer.body), 'byte')}, too early",
                explain.CHANGED_REMEDY,
            )
        if not answer.body:
            return ok(f"{patch.file_name} is empty: ClamAV wants this version to be fetched whole")
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
            return ok(f"the second time it comes from the cache ({status})")
        return warning(
            f"the second time it doesn't come from the cache ({status or 'no Cache-Status'})",
            f"look at the gateway's log, and there: {explain.ON_GATEWAY}",
        )

    def _try_tls(self) -> Verdict:
        trusts = self._subject.trusts
        if not trusts:
            return skipped("machines with http://… in freshclam.conf don't need it; --https tries it")
        path = Latest(self._subject.database, Kind.CVD).upstream_path
        limit = self._deadline.allow(_ANSWER_LIMIT)
        return judge_tls(trusts, self._proxy, self._address, CDN, path, limit, self._date)

    def _ask_dns(self) -> Verdict:
        served = self._header.version if self._header is not None else None
        return compare_with_gateway(self._subject.database, served, self._subject.nameservers)

    @property
    def _patch(self) -> ObjectId:
        version = self._header.version if self._header else 1
        return ObjectId(self._subject.database, version, Kind.CDIFF)

    @property
    def _address(self) -> tuple[str, int]:
        return self._addresses[0], self._proxy.port

    def _get(self, path: str, span: str | None, largest: int) -> Answer | Verdict:
        """Ask through a tunnel to port 80; a verdict if there is no answer."""
        target = f"{CDN}:80"
        try:
            with connected(self._address, self._deadline.allow(_ANSWER_LIMIT)) as stream:
                open_tunnel(stream, self._proxy, target)
                return get(stream, CDN, path, self._proxy.user_agent, span=span, largest=largest)
        except TunnelRefused as error:
            return explain.tunnel(error, self._proxy, target)
        except (OSError, WireError) as error:
            return explain.no_answer(error, f"GET {path}")


def _look_up(host: str, seconds: float) -> list[str]:
    """The addresses of a host, each once.

    Raises:
        OSError: there are none, or the resolver takes too long.
    """
    try:
        entries = bounded(lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM), seconds)
    except UnicodeError as error:  # an impossible name
        raise OSError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))
