"""Clients that read slowly are served to the end; those that stop reading are dropped."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from OpenSSL import SSL

from clamproxy.downloads import FileSource
from clamproxy.messages import Body
from clamproxy.proxy import senders
from clamproxy.proxy.senders import Sending, send_body

SIZE = 8_000_000
PATIENCE = 3.0
"""Instead of two minutes."""
SPEED = 256 * 1024
"""Bytes per second: as fast, compared with the patience, as 6 KiB/s with two minutes."""
AT_LEAST = 1_500_000
"""Bytes after which sockets without a limit would long have been full."""


def complete_source(path: Path) -> FileSource:
    path.write_bytes(b"x" * SIZE)
    return FileSource(os.open(path, os.O_RDONLY), SIZE)


class Way:
    """Plain HTTP, or TLS.

    Args:
        contexts: the server's and the client's; None for plain HTTP.
    """

    def __init__(self, contexts: tuple[SSL.Context, ssl.SSLContext] | None) -> None:
        self._contexts = contexts

    def connect(self, port: int) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        return self._contexts[1].wrap_socket(client) if self._contexts is not None else client

    async def accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> SSL.Connection | None:
        if self._contexts is None:
            return None
        tls = SSL.Connection(self._contexts[0], None)
        tls.set_accept_state()
        while True:
            try:
                tls.do_handshake()
                return tls
            except SSL.WantReadError:
                writer.write(_pending(tls))
                tls.bio_write(await reader.read(65536))


def _pending(tls: SSL.Connection) -> bytes:
    try:
        return tls.bio_read(65536)
    except SSL.WantReadError:
        return b""


@pytest.fixture(params=["plain", "tls"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    if request.param == "plain":
        return Way(None)
    server, client = SSL.Context(SSL.TLS_SERVER_METHOD), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    chain = tmp_path / "server.pem"
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(chain)
    server.use_privatekey_file(str(chain))
    server.use_certificate_chain_file(str(chain))
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return Way((server, client))


@asynccontextmanager
async def sending_to(way: Way, path: Path) -> AsyncIterator[tuple[Sending, int, asyncio.Event]]:
    """A body for whoever connects; gives also the port, and what is set at its end."""
    sending, ended = Sending(Body(complete_source(path), 0, SIZE)), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await send_body(sending, writer, await way.accept(reader, writer))
        ended.set()
        writer.transport.abort() if sending.error else writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield sending, server.sockets[0].getsockname()[1], ended


def read_slowly(client: socket.socket) -> int:
    """Read at a steady speed, then the rest at once; returns how much there was."""
    begun, count = time.monotonic(), 0
    while data := client.recv(16384):
        count += len(data)
        if count < AT_LEAST:
            time.sleep(max(0.0, begun + count / SPEED - time.monotonic()))
    return count


async def test_a_slow_client_gets_everything(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "STALL_TIMEOUT", PATIENCE)
    async with sending_to(way, tmp_path / "body") as (sending, port, ended):
        client = await asyncio.to_thread(way.connect, port)
        with client:
            assert (await asyncio.to_thread(read_slowly, client), sending.error) == (SIZE, None)
            await ended.wait()


async def test_a_client_that_stops_reading_is_dropped(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(senders, "STALL_TIMEOUT", 0.2)
    async with sending_to(way, tmp_path / "body") as (sending, port, ended):
        client = await asyncio.to_thread(way.connect, port)
        with client:
            await asyncio.wait_for(ended.wait(), 60)
    assert sending.error is not None
    assert sending.error.startswith("TimeoutError")
    assert sending.sent < SIZE
