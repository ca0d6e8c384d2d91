"""Headers of the PROXY protocol, as load balancers send them."""

from __future__ import annotations

import ipaddress

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")
PLACE = ("192.0.2.1", 3128)
"""Where clients connect to the balancer."""


def text_header(client: str, port: int = 40000, gateway: tuple[str, int] = PLACE) -> bytes:
    """Version 1."""
    family = 6 if ":" in client else 4
    return f"PROXY TCP{family} {client} {gateway[0]} {port} {gateway[1]}\r\n".encode()


def binary_header(
    client: str, port: int = 40000, gateway: tuple[str, int] = PLACE, *, extra: bytes = b""
) -> bytes:
    """Version 2; `extra` follows the addresses."""
    ends = ipaddress.ip_address(client), ipaddress.ip_address(gateway[0])
    addresses = b"".join(end.packed for end in ends) + port.to_bytes(2) + gateway[1].to_bytes(2)
    return raw_header(0x21, 0x21 if ends[0].version == 6 else 0x11, addresses + extra)


def raw_header(command: int, family: int, content: bytes = b"", *, length: int | None = None) -> bytes:
    """Version 2 with any version, command, family and protocol."""
    size = len(content) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2) + content


LOCAL = raw_header(0x20, 0x00)
"""What haproxy sends ahead of its health checks."""
