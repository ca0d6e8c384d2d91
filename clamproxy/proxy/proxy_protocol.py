"""The PROXY protocol, versions 1 and 2: how a load balancer says whose connection it forwards. Pure.

A header precedes the first byte of the client's. Source: HAProxy's proxy-protocol.txt, whose sections are
given in brackets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from clamproxy.config.units import client_ip

LONGEST = 536
"""Bytes; a header fits into the smallest TCP segment that every host supports (2)."""
_LONGEST_LINE = 107
"""Bytes of a header of version 1, with the end of the line (2.1)."""
_PREFIX = 16
"""Bytes of version 2 before the addresses (2.2)."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_WORD = b"PROXY "
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?")
_PORT = rb"(0|[1-9][0-9]{0,4})"
_LINE = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + b" " + _PORT)
_LOCAL, _FORWARDED = 0, 1
"""The commands of version 2. Connections of the first kind are the balancer's own, such as health checks."""
_SIZES = {0x11: 4, 0x21: 16}
"""Bytes of an address, by family and protocol: TCP over IPv4 and IPv6."""

type Address = tuple[str, int]
"""An IP address and a port."""


class ProxyProtocolError(Exception):
    """What has arrived is not the beginning of a header, or is an impossible one. The text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says."""

    length: int
    """Bytes of the header."""
    ends: tuple[Address, Address] | None
    """Those of the client's connection: its own, and the one it connected to. None if the connection is the
    balancer's own."""


def announces(data: bytes) -> bool:
    """Whether a connection that begins like this has a header. No request and no TLS begins so."""
    return data.startswith((_SIGNATURE, b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"))


def read_header(data: bytes) -> Header | None:
    """Read the header at the beginning of a connection.

    Args:
        data: what has arrived so far.

    Returns:
        None: it isn't complete, and everything that has arrived is part of it.

    Raises:
        ProxyProtocolError: there is none, or it is malformed.
    """
    if _SIGNATURE.startswith(data[: len(_SIGNATURE)]):
        return _read_binary(data)
    if _WORD.startswith(data[: len(_WORD)]):
        return _read_line(data)
    raise ProxyProtocolError("it does not begin with a PROXY header")


def _read_line(data: bytes) -> Header | None:
    """Version 1 (2.1)."""
    line, end, _ = data[:_LONGEST_LINE].partition(b"\n")
    if not end:
        if len(line) == _LONGEST_LINE:
            raise ProxyProtocolError(f"its PROXY header is longer than {_LONGEST_LINE} bytes")
        return None
    length, text = len(line) + 1, line.removesuffix(b"\r")
    if text != line and _UNKNOWN.fullmatch(text):
        return Header(length, None)
    match = _LINE.fullmatch(text) if text != line else None
    if match is None:
        raise ProxyProtocolError("its PROXY header is malformed")
    family = ipaddress.IPv4Address if match[1] == b"4" else ipaddress.IPv6Address
    try:
        source, destination = (_text_of(family(match[number].decode())) for number in (2, 3))
    except ValueError as error:
        raise ProxyProtocolError("its PROXY header has an impossible address") from error
    ports = int(match[4]), int(match[5])
    if max(ports) > 65535:
        raise ProxyProtocolError("its PROXY header has an impossible port")
    return Header(length, ((source, ports[0]), (destination, ports[1])))


def _read_binary(data: bytes) -> Header | None:
    """Version 2 (2.2). What follows the addresses is skipped."""
    if len(data) > len(_SIGNATURE) and data[12] not in (0x20 | _LOCAL, 0x20 | _FORWARDED):
        raise ProxyProtocolError("its PROXY header has an unknown version or command")
    if len(data) < _PREFIX:
        return None
    length = _PREFIX + int.from_bytes(data[14:_PREFIX])
    if length > LONGEST:
        raise ProxyProtocolError(f"its PROXY header is longer than {LONGEST} bytes")
    is_local, family = data[12] & 0xF == _LOCAL, data[13]
    if not is_local and (family >> 4 > 3 or family & 0xF > 2):
        raise ProxyProtocolError("its PROXY header has an unknown family or protocol")
    if len(data) < length:
        return None
    size = _SIZES.get(family)
    if is_local or size is None:  # a receiver may treat whatever isn't TCP like this
        return Header(length, None)
    ports = _PREFIX + 2 * size
    if length < ports + 4:
        raise ProxyProtocolError("its PROXY header is too short for its addresses")
    source, destination = (
        (_text_of(ipaddress.ip_address(data[at : at + size])), int.from_bytes(data[port : port + 2]))
        for at, port in ((_PREFIX, ports), (_PREFIX + size, ports + 2))
    )
    return Header(length, (source, destination))


def _text_of(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """An IPv4-mapped address is an IPv4 address: a client must not have two."""
    return str(client_ip(str(ip)))
