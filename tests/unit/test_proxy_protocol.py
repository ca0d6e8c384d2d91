"""The PROXY protocol: what is read, what is refused, and that no byte beyond the header is touched."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.proxy import arrivals
from clamproxy.proxy.arrivals import ForwardedSocket, await_header
from clamproxy.proxy.proxy_protocol import LONGEST, Header, ProxyProtocolError, announces, read_header
from tests.support.proxy_headers import LOCAL, SIGNATURE, binary_header, raw_header, text_header

V4 = (("10.0.0.7", 40000), ("192.0.2.1", 3128))
V6_PLACE = ("2001:db8::1", 3128)
V6 = (("2001:db8::7", 40000), V6_PLACE)
LONGEST_V6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
TLV = b"\x04\x00\x02xx"

VALID = {
    "v1 TCP4": (text_header("10.0.0.7"), V4),
    "v1 TCP6": (text_header("2001:db8::7", gateway=V6_PLACE), V6),
    "v1 upper case": (text_header("2001:DB8::7", gateway=V6_PLACE), V6),
    "v1 mapped": (
        text_header("::ffff:10.0.0.7", gateway=("::ffff:192.0.2.1", 3128)),
        V4,
    ),
    "v1 extremes": (
        b"PROXY TCP4 255.255.255.255 0.0.0.0 0 65535\r\n",
        (("255.255.255.255", 0), ("0.0.0.0", 65535)),
    ),
    "v1 longest": (
        text_header(LONGEST_V6, 65535, (LONGEST_V6, 65535)),
        ((LONGEST_V6, 65535), (LONGEST_V6, 65535)),
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN with addresses": (b"PROXY UNKNOWN 10.0.0.7 192.0.2.1 1 2\r\n", None),
    "v1 UNKNOWN, 107 bytes": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None),
    "v2 TCP4": (binary_header("10.0.0.7"), V4),
    "v2 TCP6": (binary_header("2001:db8::7", gateway=V6_PLACE), V6),
    "v2 mapped": (binary_header("::ffff:10.0.0.7", gateway=("::ffff:192.0.2.1", 3128)), V4),
    "v2 with TLVs": (binary_header("10.0.0.7", extra=TLV * 3), V4),
    "v2 longest": (binary_header("10.0.0.7", extra=b"\0" * (LONGEST - 28)), V4),
    "v2 LOCAL": (LOCAL, None),
    "v2 LOCAL with addresses": (raw_header(0x20, 0x11, bytes(12)), None),
    "v2 LOCAL of any family": (raw_header(0x20, 0xFF, b"x"), None),
    "v2 UNSPEC": (raw_header(0x21, 0x00), None),
    "v2 UNSPEC with TLVs": (raw_header(0x21, 0x00, TLV), None),
    "v2 UDP": (raw_header(0x21, 0x12, bytes(12)), None),
    "v2 Unix": (raw_header(0x21, 0x31, bytes(216)), None),
}

REFUSED = {
    "a request": b"GET / HTTP/1.1\r\n",
    "a tunnel": b"CONNECT database.clamav.net:80 HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "an empty line": b"\r\n\r\nGET",
    "v1 in lower case": b"proxy TCP4 10.0.0.7 192.0.2.1 1 2\r\n",
    "v1 UDP": b"PROXY UDP4 10.0.0.7 192.0.2.1 1 2\r\n",
    "v1 family": b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
    "v1 other family": b"PROXY TCP6 10.0.0.7 192.0.2.1 1 2\r\n",
    "v1 mixed families": b"PROXY TCP4 10.0.0.7 2001:db8::1 1 2\r\n",
    "v1 leading zero": b"PROXY TCP4 10.0.0.07 192.0.2.1 1 2\r\n",
    "v1 leading zero of a port": b"PROXY TCP4 10.0.0.7 192.0.2.1 01 2\r\n",
    "v1 port": b"PROXY TCP4 10.0.0.7 192.0.2.1 65536 2\r\n",
    "v1 negative port": b"PROXY TCP4 10.0.0.7 192.0.2.1 -1 2\r\n",
    "v1 zone": b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
    "v1 name": b"PROXY TCP4 localhost 192.0.2.1 1 2\r\n",
    "v1 two spaces": b"PROXY  TCP4 10.0.0.7 192.0.2.1 1 2\r\n",
    "v1 tab": b"PROXY\tTCP4 10.0.0.7 192.0.2.1 1 2\r\n",
    "v1 space at the end": b"PROXY TCP4 10.0.0.7 192.0.2.1 1 2 \r\n",
    "v1 too few": b"PROXY TCP4 10.0.0.7 192.0.2.1 1\r\n",
    "v1 nothing": b"PROXY \r\n",
    "v1 bare LF": b"PROXY TCP4 10.0.0.7 192.0.2.1 1 2\n",
    "v1 UNKNOWN, bare LF": b"PROXY UNKNOWN\n",
    "v1 UNKNOWN, bare CR": b"PROXY UNKNOWN 1\r2\r\n",
    "v1 UNKNOWNS": b"PROXY UNKNOWNS\r\n",
    "v1 too long": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "v1 endless": b"PROXY UNKNOWN " + b"f" * 93,
    "v1 digits that aren't ASCII": "PROXY TCP4 10.0.0.7 192.0.2.1 \u0661 2\r\n".encode(),
    "v2 version 1": raw_header(0x11, 0x11, bytes(12)),
    "v2 command": raw_header(0x22, 0x11, bytes(12)),
    "v2 family": raw_header(0x21, 0x41, bytes(12)),
    "v2 protocol": raw_header(0x21, 0x13, bytes(12)),
    "v2 too short": raw_header(0x21, 0x11, bytes(11)),
    "v2 too short for IPv6": raw_header(0x21, 0x21, bytes(12)),
    "v2 too long": raw_header(0x20, 0x00, length=LONGEST - 15),
    "v2 endless": raw_header(0x21, 0x11, length=65535),
    "v2 signature": SIGNATURE[:-1] + b"\r",
}


@pytest.mark.parametrize(("raw", "ends"), VALID.values(), ids=VALID)
def test_headers(raw: bytes, ends: object) -> None:
    """Whatever follows; and each beginning is one, so that the rest is waited for."""
    assert len(raw) <= LONGEST
    for rest in (b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", raw):
        assert read_header(raw + rest) == Header(len(raw), ends)  # type: ignore[arg-type]
        assert announces(raw + rest)
    for length in range(len(raw)):
        assert read_header(raw[:length]) is None


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_refused(raw: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        read_header(raw)


addresses = st.ip_addresses()
ports = st.integers(0, 65535)


@given(st.data(), ports, ports, st.binary(max_size=100), st.binary(max_size=40), st.booleans())
def test_any_address(
    data: st.DataObject, port: int, own: int, extra: bytes, rest: bytes, is_text: bool
) -> None:
    client = data.draw(addresses)
    gateway = data.draw(st.ip_addresses(v=client.version))
    if is_text:
        raw = text_header(str(client), port, (str(gateway), own))
    else:
        raw = binary_header(str(client), port, (str(gateway), own), extra=extra)

    def named(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        return str((ip.version == 6 and ip.ipv4_mapped) or ip)

    expected = Header(len(raw), ((named(client), port), (named(gateway), own)))
    assert read_header(raw + rest) == expected


BEGINNINGS = [
    b"",
    SIGNATURE,
    SIGNATURE + b"\x21\x11",
    b"PROXY ",
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"PROXY UNKNOWN",
]


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=2 * LONGEST), st.binary(max_size=20))
def test_any_bytes(beginning: bytes, garbage: bytes, more: bytes) -> None:
    """A header, the wish for more, or a refusal: nothing else; never more than the limit; and it stays so."""
    data = beginning + garbage
    try:
        header = read_header(data)
    except ProxyProtocolError:
        with pytest.raises(ProxyProtocolError):
            read_header(data + more)
        return
    if header is None:
        assert len(data) < LONGEST
    else:
        assert 0 < header.length <= min(len(data), LONGEST)
        assert read_header(data + more) == header


# From a socket


@pytest.fixture
async def ends() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """A balancer's end and the gateway's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        balancer = socket.create_connection(listener.getsockname())
        gateway, _ = listener.accept()
    gateway.setblocking(False)
    with closing(balancer), closing(gateway):
        yield balancer, gateway


@pytest.mark.parametrize("raw", [VALID["v1 TCP6"][0], VALID["v2 with TLVs"][0], LOCAL])
@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"])
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_header_in_pieces(
    ends: tuple[socket.socket, socket.socket], raw: bytes, rest: bytes, size: int
) -> None:
    """What follows the header stays in the socket."""
    balancer, gateway = ends
    reading = asyncio.create_task(await_header(gateway))
    sent = raw + rest
    for start in range(0, len(sent), size):
        await asyncio.sleep(0)
        balancer.sendall(sent[start : start + size])
    header = await reading
    assert header is not None
    assert header.length == len(raw)
    left = b""
    loop = asyncio.get_running_loop()
    while len(left) < len(rest):
        left += await loop.sock_recv(gateway, 1000)
    assert left == rest


@pytest.mark.parametrize("leaves", [True, False])
async def test_those_who_say_nothing(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """A health check that only connects; a client that connects ahead of time."""
    monkeypatch.setattr(arrivals, "PATIENCE", 0.05)
    balancer, gateway = ends
    if leaves:
        balancer.close()
    assert await await_header(gateway) is None


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("said", [b"P", b"PROXY TCP4 ", LOCAL[:-1]])
async def test_part_of_a_header(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, said: bytes, leaves: bool
) -> None:
    monkeypatch.setattr(arrivals, "PATIENCE", 0.05)
    balancer, gateway = ends
    balancer.sendall(said)
    if leaves:
        balancer.close()
    with pytest.raises(ProxyProtocolError, match="did not arrive"):
        await await_header(gateway)


async def test_the_ends_that_a_transport_shows(ends: tuple[socket.socket, socket.socket]) -> None:
    """asyncio takes them from the socket; the lane and mitmproxy take them from asyncio."""
    balancer, gateway = ends
    connection = ForwardedSocket(gateway, *V4)
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, connection)
    assert (transport.get_extra_info("peername"), transport.get_extra_info("sockname")) == V4
    transport.write(b"x")
    assert balancer.recv(1) == b"x"
    transport.close()
