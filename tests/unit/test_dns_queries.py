"""DNS queries of clients: what is answered, refused, and left to mitmproxy."""

from __future__ import annotations

import struct
import time
from typing import Literal

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mitmproxy import options
from mitmproxy.dns import DNSFlow, DNSMessage
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.test import tflow

from clamproxy.announcement import Announcer
from clamproxy.proxy.dns_queries import TTL, CarefulLayer, Names, respond

PRIMARY, PRIVATE = "current.cvd.clamav.net", "current.cvd.example.net"
VERSIONS = {"main": 62, "daily": 27800, "test": 6}


async def no_news(database: str, client: str) -> None:
    """Nobody is asked."""


def announcer(**versions: int) -> Announcer:
    return Announcer(lambda database, _: versions.get(database), lambda: None, no_news)


def names(*, forwards: bool = False) -> Names:
    return Names([PRIMARY, PRIVATE], ["main", "daily", "test", "valhalla"], forwards)


def query(name: str = PRIMARY, kind: str = "TXT", class_: str = "IN") -> dns.message.Message:
    return dns.message.make_query(name, kind, class_, use_edns=False)


async def ask(
    message: dns.message.Message, *, forwards: bool = False, **versions: int
) -> dns.message.Message | None:
    """The answer as dnspython reads it; None if there is none."""
    asked = DNSMessage.unpack(message.to_wire())
    answer = await names(forwards=forwards).answer(asked, announcer(**(versions or VERSIONS)))
    if answer is None:
        return None
    wire = answer.packed
    assert len(wire) <= 512
    return dns.message.from_wire(wire)


def texts(answer: dns.message.Message | None) -> list[tuple[bytes, ...]]:
    assert answer is not None
    return [record.strings for rrset in answer.answer for record in rrset]


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        (PRIMARY, b"0.103.0:62:27800:"),
        ("CuRRent.cvd.CLAMAV.net", b"0.103.0:62:27800:"),
        (PRIVATE, b"0.103.0:62:27800:"),
        ("daily.cvd.clamav.net", b"27800:"),
        ("test.cvd.example.net", b"6:"),
        ("test.cvd.clamav.net", b"6:"),
    ],
)
async def test_version_records(name: str, beginning: bytes) -> None:
    asked = query(name)
    answer = await ask(asked)
    assert answer is not None
    assert asked.is_response(answer)
    assert answer.question[0].name.to_text(omit_final_dot=True) == name  # the case of each letter, too
    ((text,),) = texts(answer)
    assert text.startswith(beginning)
    assert str(int(time.time()))[:-2].encode() in text
    assert answer.answer[0].ttl == TTL
    assert answer.answer[0].name.to_text(omit_final_dot=True) == name
    assert answer.flags & dns.flags.AA
    assert not answer.flags & dns.flags.RA


@pytest.mark.parametrize(
    ("asked", "code", "forwards"),
    [
        pytest.param(query(kind="A"), dns.rcode.NOERROR, False, id="another type"),
        pytest.param(query(kind="ANY"), dns.rcode.NOERROR, False, id="any type"),
        pytest.param(query(kind="AAAA"), dns.rcode.NOERROR, True, id="another type is not forwarded"),
        pytest.param(query(class_="CH"), dns.rcode.REFUSED, True, id="another class"),
        pytest.param(query("valhalla.cvd.clamav.net"), dns.rcode.SERVFAIL, False, id="nothing is known"),
        pytest.param(query("bytecode.cvd.clamav.net"), dns.rcode.REFUSED, False, id="a foreign database"),
        pytest.param(query("cvd.clamav.net"), dns.rcode.REFUSED, False, id="above"),
        pytest.param(query("x.current.cvd.clamav.net"), dns.rcode.REFUSED, False, id="below"),
        pytest.param(query("www.example.com", "A"), dns.rcode.REFUSED, False, id="foreign"),
        pytest.param(query(".", "NS"), dns.rcode.REFUSED, False, id="the root"),
    ],
)
async def test_answers_without_a_record(
    asked: dns.message.Message, code: dns.rcode.Rcode, forwards: bool
) -> None:
    answer = await ask(asked, forwards=forwards)
    assert answer is not None
    assert asked.is_response(answer)
    assert (answer.rcode(), answer.answer) == (code, [])


@pytest.mark.parametrize("name", ["www.example.com", "bytecode.cvd.clamav.net", "."])
async def test_other_names_are_left_to_mitmproxy(name: str) -> None:
    assert await ask(query(name), forwards=True) is None


async def test_nothing_known_at_all() -> None:
    answer = await ask(query(), test=6)
    assert answer is not None
    assert answer.rcode() == dns.rcode.SERVFAIL


async def test_edns_is_answered_with_edns() -> None:
    asked = dns.message.make_query(PRIMARY, "TXT", use_edns=0, payload=1232, want_dnssec=True)
    answer = await ask(asked)
    assert answer is not None
    assert answer.edns == 0
    assert len(texts(answer)) == 1


def raw(labels: list[bytes], count: int = 1, flags: int = 0x0100) -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return struct.pack("!HHHHHH", 7, flags, count, 0, 0, 0) + (name + struct.pack("!HH", 16, 1)) * count


CURRENT = [b"current", b"cvd", b"clamav", b"net"]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        pytest.param(raw(CURRENT, 0), dns.rcode.FORMERR, id="no question"),
        pytest.param(raw(CURRENT, 2), dns.rcode.FORMERR, id="two questions"),
        pytest.param(raw([b"a."], flags=0x0900), dns.rcode.NOTIMP, id="another opcode and a dot in a label"),
        pytest.param(raw([b"a..b"]), dns.rcode.FORMERR, id="a dot in a label"),
        pytest.param(raw(CURRENT, flags=0x0900), dns.rcode.NOTIMP, id="another opcode"),
        pytest.param(raw(CURRENT), dns.rcode.NOERROR, id="right"),
    ],
)
async def test_odd_queries(wire: bytes, code: dns.rcode.Rcode) -> None:
    answer = await names().answer(DNSMessage.unpack(wire), announcer(**VERSIONS))
    assert answer is not None
    parsed = dns.message.from_wire(answer.packed)
    assert (parsed.id, parsed.rcode()) == (7, code)


# The hooks


def flow_of(wire: bytes) -> DNSFlow:
    flow = tflow.tdnsflow()
    flow.request = DNSMessage.unpack(wire)
    return flow


async def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    flow = flow_of(query().to_wire())
    await respond(flow, names(), announcer(**VERSIONS))
    assert flow.response is not None
    assert f"127.0.0.1 DNS {PRIMARY} TXT NOERROR {len(flow.response.packed)}B" in caplog.text


@pytest.mark.parametrize("label", [b"a\nb", b"\x1b[31m"])
async def test_a_name_in_the_log_is_printable(label: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await respond(flow_of(raw([label, b"example"])), names(), announcer())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.isprintable()


async def test_a_flow_that_is_used_again_has_no_answer_left() -> None:
    """mitmproxy keeps the flow of an id, and would send the answer to the query before."""
    flow = flow_of(query().to_wire())
    await respond(flow, names(forwards=True), announcer(**VERSIONS))
    assert flow.response is not None
    flow.request = DNSMessage.unpack(query("www.example.com").to_wire())
    await respond(flow, names(forwards=True), announcer(**VERSIONS))
    assert flow.response is None


@pytest.mark.parametrize("from_client", [True, False])
def test_only_servers_respond(from_client: bool) -> None:
    """No hook of mitmproxy hears of a client's response; some of them can't bear that it isn't sent."""
    response = dns.message.make_response(query()).to_wire()
    assert len(layer().unpack_message(response, from_client)) == (not from_client)
    assert len(layer().unpack_message(query().to_wire(), from_client)) == 1


async def test_before_the_start_and_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(database: str, client: str) -> None:
        raise OSError("the disk is gone")

    for parts in ((None, None), (names(), Announcer(lambda *_: None, lambda: None, fail))):
        flow = flow_of(query().to_wire())
        await respond(flow, *parts)
        assert flow.response is not None
        assert dns.message.from_wire(flow.response.packed).rcode() == dns.rcode.SERVFAIL
    assert "the disk is gone" in caplog.text


# Messages, and connections that end


def layer(protocol: Literal["tcp", "udp"] = "udp") -> CarefulLayer:
    client = tflow.tclient_conn()
    client.transport_protocol = protocol
    return CarefulLayer(Context(client, options.Options()))


@pytest.mark.parametrize("before", [None, b"\0\1?"], ids=["nothing", "an invalid message of the server"])
def test_a_client_that_ends_its_connection_is_let_go(before: bytes | None) -> None:
    stream = layer("tcp")
    client, server = stream.context.client, stream.context.server
    list(stream.handle_event(events.Start()))
    if before is not None:
        list(stream.handle_event(events.DataReceived(server, before)))
    (command,) = stream.handle_event(events.ConnectionClosed(client))
    assert isinstance(command, commands.CloseConnection)
    assert command.connection is client


POINTERS = b"".join(struct.pack("!H", 0xC000 | (14 + 2 * step)) for step in range(3000))


@given(st.binary(max_size=80) | st.lists(st.binary(max_size=63), max_size=6).map(raw))
@example(query().to_wire())
@example(raw([b"xn--99999999"]))
@example(raw([b"\xff"]))
@example(raw([b"a."]))
@example(raw([b"a."], flags=0x2900))
@example(raw([b"a."], flags=0x8100))
@example(raw(CURRENT)[:12] + POINTERS)
async def test_any_bytes_are_answered_or_dropped(wire: bytes) -> None:
    try:
        messages = layer().unpack_message(wire, from_client=True)
    except struct.error:
        return
    for message in messages:
        flow = tflow.tdnsflow()
        flow.request = message
        await respond(flow, names(), announcer(**VERSIONS))
        assert flow.response is not None
        assert DNSMessage.unpack(flow.response.packed).id == message.id
