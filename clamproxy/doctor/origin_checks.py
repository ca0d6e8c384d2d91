"""What is beyond the gateway: DNS, the proxy on the way out, and the origin itself.

The CDN blocks clients that ask too often. So the doctor asks it once at most, only if the gateway itself
would be allowed to, and records the request as the gateway's own. If a request isn't allowed, it connects
and sends nothing.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from clamproxy.cache.store import Store
from clamproxy.config.settings import Settings
from clamproxy.config.units import port_of
from clamproxy.doctor import explain
from clamproxy.doctor.dns_checks import RecordError, ask, read_record, version_in
from clamproxy.doctor.explain import TOLERANCE, compare_clocks
from clamproxy.doctor.findings import Deadline, Verdict, bounded, ok, problem, skipped, warning
from clamproxy.doctor.freshclam import STANDARD_DATABASES
from clamproxy.doctor.reach import is_own_address, look_up, reach
from clamproxy.doctor.route import is_official
from clamproxy.doctor.wire import TunnelRefused, WireError
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.formats.version_record import IN_PRIMARY, record_name
from clamproxy.messages import Requester
from clamproxy.notes import Notes
from clamproxy.objects import Kind, Latest
from clamproxy.origin.agents import Agents
from clamproxy.origin.budget import PER_FILE, Budget
from clamproxy.origin.cooldown import Cooldown, Cooldowns, FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError, RangeError, reason_of
from clamproxy.origin.resolver import make_resolver
from clamproxy.origin.scope import CancelScope
from clamproxy.origin.upstream import Upstream
from clamproxy.readable import shown_count, shown_span, shown_time

OLD_RECORD = 6 * 3600.0
"""Seconds after which a record is old: ClamAV renews it every half hour, and it is valid for twelve hours."""

_CONNECT_LIMIT = 4.0
_READ_LIMIT = 5.0
_FAILURES = {
    FailureKind.FORBIDDEN: (
        "The CDN refuses this version of freshclam as too old, or this site's address.",
        "update old versions of freshclam (the CDN supports only the latest ones); "
        "if current ones are refused, wait: each further request prolongs the block.",
    ),
    FailureKind.RATE_LIMITED: (
        "The CDN got too many requests for this file from this address.",
        "make sure that no other machine of the site asks the CDN directly, then wait.",
    ),
    FailureKind.UNREACHABLE: (
        "The origin can't be reached.",
        "check this machine's DNS and default route, and the firewall; behind a proxy, set upstream.proxy.",
    ),
    FailureKind.BAD_CONTENT: (
        "The answer was not one of ClamAV's files.",
        "look for a device on the way out that replaces answers, and look into cache/quarantine.",
    ),
    FailureKind.LOCAL: ("Something is wrong on this machine.", "check the gateway's log, and the disk."),
}
_PASSING = ("This usually passes.", "wait and see; the gateway tries again by itself.")


def cooldown_in_words(cooldown: Cooldown) -> tuple[str, str]:
    """What a cool-down means, and what to do about it."""
    if explain.is_loop(cooldown.reason):
        return "Requests come back to this gateway.", explain.LOOP_REMEDY
    if explain.is_refused_by_proxy(cooldown.reason):
        return f"{explain.PROXY_USERS[0]}.", explain.PROXY_USERS[1]
    return _FAILURES.get(cooldown.failure, _PASSING)


class OriginChecks:
    """The checks of the outside; the settings and the store come from earlier checks."""

    def __init__(self, deadline: Deadline) -> None:
        self.settings = Settings()
        self.database = STANDARD_DATABASES[0]
        """The database whose header and record are asked for."""
        self.store: Store | None = None
        """The cache, if it could be opened."""
        self._deadline = deadline
        self._date: float | None = None
        self._status: int | None = None
        """The status of the origin's answer; None if there was none."""
        self._recorded: float | None = None
        self._proxy_fails = False

    # DNS

    def look_up_record(self) -> Verdict:
        """Ask DNS as the gateway does."""
        settings, resolver = self.settings, make_resolver(self.settings)
        if resolver is None:
            why = "upstream.offline is set" if settings.upstream.offline else "versions.dns is false"
            return skipped(f"the gateway doesn't ask DNS: {why}")
        name = record_name(self.database, settings.versions.domain)
        try:
            text = ask(resolver, name)
            self._recorded = read_record(text, self.database).recorded_at
            version = version_in(text, self.database, time.time())
        except RecordError as error:
            return warning(
                f"no version from {name}: {error}; the CDN is asked for the header of each CVD instead",
                "set versions.nameservers to servers that resolve outside names, or versions.doh; "
                "if there is no outside DNS, versions.dns: false avoids the wait.",
            )
        age = time.time() - (self._recorded or 0.0)
        if age > OLD_RECORD:
            return warning(
                f"the version record is {shown_span(age)} old; after 12 h it is no longer believed",
                "check the clock, and whether the name server gives old records.",
            )
        also = " and the other databases" if self.database in IN_PRIMARY else ""
        return ok(f"DNS advertises {self.database} {version}{also}, {shown_span(max(0.0, age))} ago")

    # The way out

    def reach_proxy(self) -> Verdict:
        """Connect to `upstream.proxy`."""
        upstream = self.settings.upstream
        if upstream.proxy is None or upstream.offline:
            return skipped(
                "upstream.proxy is not set" if upstream.proxy is None else "upstream.offline is set"
            )
        parts = urlsplit(upstream.proxy.url)
        host, port = parts.hostname or "", port_of(parts)
        limit = self._deadline.allow(_CONNECT_LIMIT)
        try:
            bounded(lambda: socket.create_connection((host, port), limit).close(), limit + 1)
            return ok(f"{upstream.proxy.url} can be reached")
        except (OSError, UnicodeError) as error:
            self._proxy_fails = True
            return problem(
                f"upstream.proxy {upstream.proxy.url} can't be reached: {explain.connection(error)}",
                "correct upstream.proxy, or start the proxy.",
            )

    def probe(self) -> Verdict:
        """Request the first bytes of a CVD from the origin, if that is allowed."""
        path = Latest(self.database, Kind.CVD).upstream_path
        if self.settings.upstream.offline:
            return skipped("upstream.offline is set")
        if self._proxy_fails:
            return skipped("not checked because of: upstream proxy")
        if self._is_own():
            return self._loop("this machine itself")
        requester, books = self._requester(), _Books(self.store)
        if isinstance(requester, str):
            return self._connect(requester)
        if (forbidden := books.forbid(path, requester)) is not None:
            return self._connect(forbidden)
        books.budget.note(path)
        try:
            header = CvdHeader.parse(self._ask(path, requester, books))
        except (InvalidObject, NotFoundError, OriginError, RangeError, TimeoutError) as error:
            return self._judge(error, books, path, requester)
        return ok(
            f"{self.settings.upstream.url} answers {requester.version}: {self.database} {header.version}"
        )

    def _ask(self, path: str, requester: Requester, books: _Books) -> bytes:
        """The beginning of a file, asked for as the gateway does.

        Raises:
            NotFoundError, RangeError, OriginError: see `Upstream.get`.
            TimeoutError: it took too long.
        """
        settings, scope, received = self.settings.upstream, CancelScope(), list[int]()
        upstream = Upstream(
            settings.url,
            proxy=settings.parent_proxy,
            ca_bundle=settings.ca_bundle,
            connect_timeout=min(settings.connect_timeout, self._deadline.allow(_CONNECT_LIMIT)),
            read_timeout=min(settings.read_timeout, self._deadline.allow(_READ_LIMIT)),
            via="1.1 clamproxy-doctor",
            count=lambda _, length: received.append(length),
            addresses=settings.address,
        )

        def ask() -> bytes:
            with upstream.ask(path, requester, {"Range": f"bytes=0-{HEADER_SIZE - 1}"}, scope) as answer:
                self._date, self._status = answer.date, answer.status
                upstream.check(answer)
                return answer.beginning(HEADER_SIZE)

        try:
            return bounded(ask, self._deadline.allow(_CONNECT_LIMIT + _READ_LIMIT))
        finally:
            scope.cancel()
            upstream.close()
            books.count(sum(received))

    def _judge(self, error: Exception, books: _Books, path: str, requester: Requester) -> Verdict:
        """Explain why no header came."""
        file, reason = f"{self.settings.upstream.url}{path}", str(error)
        failure = error.failure if isinstance(error, OriginError) else None
        if explain.is_loop(reason):
            return self._loop(f"its answer: {reason}")
        if failure is FailureKind.PROXY_AUTHENTICATION:
            # For the gateway, too: with each further try the proxy may lock the account.
            text, remedy = explain.PROXY_USERS
            books.cooldowns.failed(failure, path, requester.version, f"{text} (407)")
            return problem(text, remedy)
        if isinstance(error, OriginError) and failure in (FailureKind.FORBIDDEN, FailureKind.RATE_LIMITED):
            books.cooldowns.failed(error.failure, path, requester.version, reason, error.retry_after)
            text, remedy = _FAILURES[error.failure]
            url = self.settings.upstream.url
            return problem(f"{url} answers {self._status} to {requester.version}: {text}", remedy)
        if isinstance(error, InvalidObject) or failure is FailureKind.BAD_CONTENT:
            return problem(f"{file} is not a CVD: {reason}", _FAILURES[FailureKind.BAD_CONTENT][1])
        if self._status not in (None, 200, 206):
            answered = reason.removeprefix("status ")
            return problem(f"{file} answers {answered}", _remedy_of(self._status))
        return self._unreachable(reason)

    def judge_clock(self) -> Verdict:
        """Compare the clock with the origin's Date, else with the time of the version record."""
        now = time.time()
        if self._date is not None:
            return compare_clocks(self._date, now, "the origin")
        if self._recorded is None:
            return skipped("there is nothing to compare it with: neither the origin nor DNS gave a time")
        if self._recorded - now > TOLERANCE:
            return compare_clocks(self._recorded, now, "the version record")
        return ok("this machine's clock is not behind the version record")

    def _is_own(self) -> bool:
        """Whether ClamAV's own name resolves to this machine, as a local DNS zone may arrange."""
        if self.settings.upstream.proxy is not None or not is_official(self._host):
            return False
        return any(map(is_own_address, self._addresses()))

    def _loop(self, sign: str) -> Verdict:
        """Report a loop.

        Args:
            sign: what shows that there is one.
        """
        url, addresses = self.settings.upstream.url, ", ".join(self._addresses())
        where = f"{url}, with the address {addresses}" if addresses else url
        return problem(f"upstream.url leads back to this gateway: {where} ({sign})", explain.LOOP_REMEDY)

    @property
    def _host(self) -> str:
        return urlsplit(self.settings.upstream.url).hostname or ""

    def _addresses(self) -> list[str]:
        if given := self.settings.upstream.address:
            return [address.host for address in given]
        try:
            return look_up(self._host, self._deadline.allow(_CONNECT_LIMIT))
        except OSError:
            return []

    def _connect(self, reason: str) -> Verdict:
        """If no request is allowed, check whether one would be possible, by connecting only.

        Args:
            reason: why no request is allowed.
        """
        if explain.is_loop(reason):
            return self._loop(reason)
        if explain.is_refused_by_proxy(reason):  # another attempt might lock the account
            return problem(*explain.PROXY_USERS)
        limit = self._deadline.allow(_CONNECT_LIMIT)
        try:
            reached = bounded(lambda: reach(self.settings.upstream, limit), limit + 1)
        except (OSError, UnicodeError, WireError, TunnelRefused) as error:
            if explain.is_refused_by_proxy(str(error)):
                return problem(*explain.PROXY_USERS)
            return self._unreachable(reason_of(error))
        return skipped(f"{reason}, so no request was sent; but there is {reached}")

    def _requester(self) -> Requester | str:
        """In whose name the gateway itself would ask; if there is nobody, the reason as text."""
        if self.store is None and _may_exist(self.settings.cache.directory):
            return "without the index it isn't known whether the origin may be asked now"
        agents = Agents(self.settings.upstream.user_agent, Notes(self.store, None, "agent", read_only=True))
        return agents.requester() or (
            "no supported freshclam has used the gateway yet, whose User-Agent it could send to the CDN, "
            "and upstream.user_agent is not set"
        )

    def _unreachable(self, reason: str) -> Verdict:
        url = self.settings.upstream.url
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            return problem(
                f"the certificate of {url} is not trusted: {reason}",
                "if a proxy on the way intercepts TLS, put its authority into upstream.ca_bundle.",
            )
        return problem(f"{url} can't be reached: {reason}", _FAILURES[FailureKind.UNREACHABLE][1])


class _Books:
    """The gateway's own records of its requests to the origin."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self.cooldowns = Cooldowns(Notes(store, None, "cooldown"))
        self.budget = Budget(Notes(store, None, "budget"))

    def forbid(self, path: str, requester: Requester) -> str | None:
        """Why the origin must not be asked now; None if it may be."""
        cooldown = self.cooldowns.check(path, requester.version)
        if cooldown is not None:
            until = shown_time(cooldown.until, exact=True)
            return f"cool-down until {until}: {cooldown.reason}{explain.refusal_in_words(cooldown.reason)}"
        # The growing pauses apply to what the gateway does by itself; a person asks just once.
        if (used := self.budget.used(path)) >= PER_FILE:
            times = shown_count(used, "time")
            return f"{path} was requested {times} within the last hour, and the CDN limits that"
        return None

    def count(self, length: int) -> None:
        """Count a request that brought `length` bytes."""
        if self._store is not None:
            self._store.add_to_counters({"upstream_requests": 1, "upstream_bytes": length})


def _may_exist(path: Path) -> bool:
    """Whether a path exists, or might: the directory that it is in may be closed to this user."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _remedy_of(status: int) -> str:
    if status == 404:
        return "correct upstream.url: ClamAV's files must be right below it."
    if status >= 500:
        return "the problem is at the origin, or at a proxy on the way; the gateway tries again by itself."
    return "correct upstream.url and upstream.proxy."
