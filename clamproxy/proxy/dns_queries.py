"""DNS queries from clients, where listen.dns is set (mitmproxy's DNS mode)."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Iterable, Iterator

from mitmproxy import connection, ctx, dns
from mitmproxy.net.dns import classes, op_codes, response_codes, types
from mitmproxy.proxy import commands, events, mode_specs
from mitmproxy.proxy.layers import DNSLayer

from clamproxy.announcement import Announcer
from clamproxy.config.settings import CLAMAV_RECORD, Settings
from clamproxy.formats.version_record import single_name

logger = logging.getLogger("clamproxy.access")

TTL = 60
"""For how many seconds resolvers between clients and the gateway may cache a record."""
LARGEST_DATAGRAM = 1232
"""The datagram size in bytes that is announced to clients that use EDNS (RFC 6891 6.2.5)."""
DNS_PORT = 53

_OPT = 41
_LONGEST_NAME = 200


class Names:
    """Answers queries for the names of version records.

    Args:
        domains: the names of the primary record.
        databases: those that have their own record, beside each of these names.
        forwards_others: whether queries for other names are left to mitmproxy, which asks the system's
            name servers. Otherwise they are refused.
    """

    def __init__(self, domains: Iterable[str], databases: Iterable[str], forwards_others: bool) -> None:
        self._domains = frozenset(domain.lower() for domain in domains)
        self._databases = {
            single_name(database, domain): database for database in databases for domain in self._domains
        }
        self._forwards_others = forwards_others

    def allows(self, server: tuple[str, int] | None) -> bool:
        """Whether mitmproxy may connect to a server, which it does to forward a query."""
        return self._forwards_others and server is not None and server[1] == DNS_PORT

    async def answer(
        self, query: dns.DNSMessage, announcer: Announcer, client: str = ""
    ) -> dns.DNSMessage | None:
        """Answer a query.

        Args:
            query: any message that arrived; it may be malformed.
            client: the address that it came from.

        Returns:
            None if it is left to mitmproxy to forward.
        """
        question = query.question
        if query.op_code != op_codes.QUERY:
            return _without_question(query.fail(response_codes.NOTIMP))
        if question is None or not _can_be_repeated(query):
            return _without_question(query.fail(response_codes.FORMERR))
        name = question.name.lower()
        if name not in self._domains and name not in self._databases:
            return None if self._forwards_others else query.fail(response_codes.REFUSED)
        if question.class_ != classes.IN:
            return query.fail(response_codes.REFUSED)
        if question.type != types.TXT:
            return _records(query, [])
        database = None if name in self._domains else self._databases[name]
        asked = announcer.primary(client) if database is None else announcer.single(database, client)
        text = await asked
        # After a SERVFAIL, freshclam falls back to HTTP (docs/protocol.md 3).
        return query.fail(response_codes.SERVFAIL) if text is None else _records(query, [text])


def of_settings(settings: Settings) -> Names:
    """The names that are answered with a configuration."""
    serving = settings.serving
    forwards = serving.other_names == "forward" and not settings.upstream.offline
    domains = {CLAMAV_RECORD, settings.versions.domain, serving.dns_name or CLAMAV_RECORD}
    return Names(domains, serving.databases, forwards)


def is_dns(client: connection.Client) -> bool:
    """Whether a client connected by the DNS mode."""
    return isinstance(client.proxy_mode, mode_specs.DnsMode)


async def respond(flow: dns.DNSFlow, names: Names | None, announcer: Announcer | None) -> None:
    """Set the answer to a query and log it, or leave the flow to mitmproxy."""
    started_at = time.monotonic()
    # mitmproxy reuses the flow when a client reuses an ID, with the answer to the previous query.
    flow.response, flow.error = None, None
    try:
        if names is None or announcer is None:
            flow.response = flow.request.fail(response_codes.SERVFAIL)
        else:
            flow.response = await names.answer(flow.request, announcer, flow.client_conn.peername[0])
    except Exception:
        # mitmproxy would log it and forward the query.
        logger.exception("A DNS query from %s failed.", flow.client_conn.peername[0])
        flow.response = _without_question(flow.request.fail(response_codes.SERVFAIL))
    if flow.response is not None:
        _log(flow, flow.response, time.monotonic() - started_at)


class CarefulLayer(DNSLayer):
    """mitmproxy's layer, which some malformed messages would crash, with a traceback in the log.

    When a client ends its connection, the gateway does too; mitmproxy would keep it until the idle timeout.
    """

    def unpack_message(self, data: bytes, from_client: bool) -> list[dns.DNSMessage]:
        """Like mitmproxy's, but raises struct.error, which it expects, for everything it can't read.

        Responses that come in place of queries are dropped: two servers could go on forever.
        """
        try:
            messages = super().unpack_message(data, from_client)
        except (ValueError, RecursionError) as error:
            raise struct.error(f"{type(error).__name__}: {error}") from error
        return [message for message in messages if message.query or not from_client]

    def state_query(self, event: events.Event) -> Iterator[commands.Command]:
        """Like mitmproxy's. The answers of the gateway itself are on their way before it lets a client go."""
        yield from super().state_query(event)
        yield from self._let_go(event)

    def state_done(self, event: events.Event) -> Iterator[commands.Command]:
        """Like mitmproxy's: after the end of either connection."""
        yield from super().state_done(event)
        yield from self._let_go(event)

    def _let_go(self, event: events.Event) -> Iterator[commands.Command]:
        if isinstance(event, events.ConnectionClosed) and event.connection is self.context.client:
            yield commands.CloseConnection(event.connection)


def guard(client: connection.Client) -> None:
    """Use `CarefulLayer` for a client, from its first message on."""
    handler = ctx.master.addons.get("proxyserver").connections[client.id]  # type: ignore[no-untyped-call]
    handler.layer = CarefulLayer(handler.layer.context)


def _can_be_repeated(query: dns.DNSMessage) -> bool:
    """Whether the question can be written into the answer: mitmproxy reads labels that it can't write."""
    try:
        return bool(query.packed)
    except ValueError:
        return False


def _without_question(answer: dns.DNSMessage) -> dns.DNSMessage:
    answer.questions = []
    return answer


def _records(query: dns.DNSMessage, texts: list[str]) -> dns.DNSMessage:
    """The answer with TXT records, each of one character-string of at most 255 bytes (RFC 1035 3.3.14)."""
    name = query.questions[0].name  # unchanged, for clients that mix upper and lower case and compare
    data = [bytes([len(text)]) + text.encode("ascii") for text in texts]
    answer = query.succeed([dns.ResourceRecord(name, types.TXT, classes.IN, TTL, item) for item in data])
    answer.authoritative_answer = True
    answer.recursion_available = False
    if any(record.type == _OPT for record in query.additionals):
        # A client that uses EDNS gets EDNS (RFC 6891 6.1.1).
        answer.additionals = [dns.ResourceRecord("", _OPT, LARGEST_DATAGRAM, 0, b"")]
    return answer


def _log(flow: dns.DNSFlow, answer: dns.DNSMessage, seconds: float) -> None:
    """Log one line: client, name and type, result, bytes, duration."""
    question = flow.request.question
    name = question.name[:_LONGEST_NAME].encode("unicode_escape").decode("ascii") if question else "-"
    logger.info(
        "%s DNS %s %s %s %dB %.3fs",
        flow.client_conn.peername[0],
        name or ".",
        types.to_str(question.type) if question else "-",
        response_codes.to_str(answer.response_code),
        len(answer.packed),
        seconds,
    )
