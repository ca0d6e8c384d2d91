"""What the clients of a crowd send."""

from __future__ import annotations

from tests.support.big import PATH
from tests.support.gateway import CDN

GET = f"GET http://{CDN}{PATH} HTTP/1.1\r\nHost: {CDN}\r\n"
"""A head without its end."""
CONNECT = f"CONNECT {CDN}:443 HTTP/1.1\r\nHost: {CDN}\r\n\r\n"
HELLO = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The beginning of a ClientHello of 512 bytes."""
