"""The admin listener: HTTP as it comes, hosts that are not here, limits, start and end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from clamproxy.cache.store import Store
from clamproxy.config.units import ANY, Endpoint
from clamproxy.web import listener as listener_module
from clamproxy.web.listener import LARGEST_HEADER, Listener
from tests.harness.status import TOKEN, StatusHarness
from tests.support.stored import until

LIMIT = 30
LOCALHOST = Endpoint("127.0.0.1", 0)
HOST = "Host: localhost\r\n"

type Open = Callable[..., Listener]


@pytest.fixture
def harness(store: Store) -> StatusHarness:
    return StatusHarness(store)


@pytest.fixture
async def open_listener(harness: StatusHarness) -> AsyncIterator[Open]:
    opened: list[Listener] = []

    def start(endpoint: Endpoint = LOCALHOST) -> Listener:
        opened.append(Listener(endpoint, harness.site))
        assert opened[-1].start()
        return opened[-1]

    yield start
    for one in opened:
        one.stop()
    await asyncio.sleep(0.05)


@pytest.fixture
def listener(open_listener: Open) -> Listener:
    return open_listener()


async def exchange(listener: Listener, raw: str, host: str = "127.0.0.1") -> str:
    """All that is answered until the connection is closed."""
    async with asyncio.timeout(LIMIT):
        reader, writer = await asyncio.open_connection(host, listener.port)
        try:
            writer.write(raw.encode("latin-1"))
            return (await reader.read()).decode("latin-1")
        except ConnectionResetError:
            return ""
        finally:
            writer.close()


async def get(listener: Listener, path: str, fields: str = HOST, method: str = "GET") -> tuple[int, str]:
    answer = await exchange(listener, f"{method} {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n")
    return int(answer.split()[1]), answer


async def test_a_page(listener: Listener) -> None:
    status, answer = await get(listener, "/livez?x=1")
    head, _, body = answer.partition("\r\n\r\n")
    assert (status, body) == (200, "ok\n")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert "content-length: 3" in head.lower()
    assert "nosniff" in head


async def test_head_has_no_body(listener: Listener) -> None:
    _, answer = await get(listener, "/livez", method="HEAD")
    head, _, body = answer.partition("\r\n\r\n")
    assert body == ""
    assert "content-length: 3" in head.lower()


async def test_not_modified(listener: Listener) -> None:
    status, answer = await get(listener, "/", HOST + "If-None-Match: *\r\n")
    assert status == 304
    assert answer.partition("\r\n\r\n")[2] == ""


async def test_several_requests_on_a_connection(listener: Listener) -> None:
    one = f"GET /livez HTTP/1.1\r\n{HOST}\r\n"
    last = f"GET /readyz HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
    answer = await exchange(listener, one + one + last)
    assert answer.count("HTTP/1.1 200 OK") == 3


async def test_http_1_0(listener: Listener) -> None:
    answer = await exchange(listener, f"GET /livez HTTP/1.0\r\n{HOST}\r\n")
    assert answer.endswith("\r\n\r\nok\n")


async def test_the_query_gets_there(listener: Listener, harness: StatusHarness) -> None:
    status, answer = await get(listener, "/client-config?mode=private")
    assert status == 200
    assert answer.endswith("# private\n")


async def test_the_token(harness: StatusHarness, listener: Listener) -> None:
    harness.guard()
    status, answer = await get(listener, "/status.json")
    assert status == 401
    assert "www-authenticate: basic" in answer.lower()
    status, _ = await get(listener, "/status.json", f"{HOST}Authorization: Bearer {TOKEN}\r\n")
    assert status == 200


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8081",
        "localhost:8081",
        "LOCALHOST",
        "[::1]:8081",
        "10.1.2.3",
        "clamproxy",
        "x.localhost",
    ],
)
async def test_hosts_of_this_machine(listener: Listener, host: str) -> None:
    assert (await get(listener, "/status.json", f"Host: {host}\r\n"))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example.com", "localhost.example.com:8081", "clamproxy.example.com", "", "a b", "[x]"]
)
async def test_dns_rebinding(listener: Listener, host: str) -> None:
    status, answer = await get(listener, "/status.json", f"Host: {host}\r\n")
    assert status in (400, 421)
    assert "stats" not in answer


@pytest.mark.parametrize("fields", ["Host: evil.example.com\r\n", "Host: x:3128\r\n", "Host:\r\n", ""])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/client-config", "//livez"])
async def test_what_is_open_is_there_under_any_name(listener: Listener, fields: str, path: str) -> None:
    """What checks the health of a server often sends HTTP/1.0 without Host."""
    version = "1.1" if fields else "1.0"
    answer = await exchange(listener, f"GET {path} HTTP/{version}\r\n{fields}Connection: close\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("fields", ["Connection: x, Close\r\n", "Connection: x\r\nConnection: close\r\n"])
async def test_the_connection_ends_if_the_client_says_so(listener: Listener, fields: str) -> None:
    answer = await exchange(listener, f"GET /livez HTTP/1.1\r\n{HOST}{fields}\r\n")
    assert "connection: close" in answer.lower()


async def test_no_host_or_two(listener: Listener) -> None:
    for fields in ("", "Host: localhost\r\nHost: evil.example.com\r\n"):
        answer = await exchange(listener, f"GET /status.json HTTP/1.1\r\n{fields}Connection: close\r\n\r\n")
        assert "stats" not in answer


async def test_any_host_where_everybody_can_connect(open_listener: Open, harness: StatusHarness) -> None:
    harness.guard()
    listener = open_listener(Endpoint("0.0.0.0", 0))
    assert (await get(listener, "/livez", "Host: gateway.example.net\r\n"))[0] == 200
    assert (await get(listener, "/status.json", "Host: gateway.example.net\r\n"))[0] == 401


async def test_ipv6(open_listener: Open, harness: StatusHarness) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    listener = open_listener(Endpoint("::1", 0))
    answer = await exchange(listener, f"GET /livez HTTP/1.0\r\n{HOST}\r\n", "::1")
    assert "200 OK" in answer
    # All addresses instead of one: the sockets that could be opened at once aren't in the way of the rest.
    wider = Listener(Endpoint(ANY, listener.port), harness.site)
    wider.succeed(listener)
    assert wider.start()
    for host in ("::1", "127.0.0.1"):
        assert "200 OK" in await exchange(wider, f"GET /livez HTTP/1.0\r\n{HOST}\r\n", host)
    wider.stop()


@pytest.mark.parametrize(
    "raw",
    [
        f"POST /livez HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nhello",
        f"POST /livez HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        f"GET /livez HTTP/1.1\r\n{HOST}X: {'x' * 2 * LARGEST_HEADER}\r\n\r\n",
        f"GET /{'x' * 2 * LARGEST_HEADER} HTTP/1.1\r\n{HOST}\r\n",
        "nonsense\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_not_taken(listener: Listener, raw: str) -> None:
    """The connection ends, and others are answered."""
    assert "200 OK" not in await exchange(listener, raw)
    assert (await get(listener, "/livez"))[0] == 200


async def test_odd_paths(listener: Listener) -> None:
    for path in ("//", "/%00", "/..", "*", "http://localhost/livez", "/\xff"):
        assert (await get(listener, path))[0] in (200, 400, 404)


async def test_too_many_connections(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "MOST_CONNECTIONS", 2)
    held = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(2)]
    await answered(listener, "")
    for _, writer in held:
        writer.close()
    await answered(listener, "ok\n")


async def answered(listener: Listener, end: str) -> None:
    """Ask until it is answered so: connections come and go with a delay."""
    async with asyncio.timeout(LIMIT):
        while (await exchange(listener, f"GET /livez HTTP/1.0\r\n{HOST}\r\n"))[-3:] != end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_reader_that_does_not_read(
    harness: StatusHarness, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "IDLE_TIMEOUT", 0.2)
    harness.authority = b"x" * 20_000_000
    with socket.create_connection(("127.0.0.1", listener.port)) as stream:
        stream.sendall(f"GET /ca.pem HTTP/1.1\r\n{HOST}\r\n".encode())
        stream.settimeout(LIMIT)
        await until(lambda: listener._answering)
        await until(lambda: not listener._answering)
        assert 0 < await asyncio.to_thread(_count, stream) < len(harness.authority)


def _count(stream: socket.socket) -> int:
    """Bytes until the end."""
    count = 0
    while piece := stream.recv(1_000_000):
        count += len(piece)
    return count


async def test_a_connection_that_is_silent(open_listener: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "IDLE_TIMEOUT", 0.2)
    listener = open_listener()
    assert await exchange(listener, "GET /livez HT") == ""
    answer = await exchange(listener, f"GET /livez HTTP/1.1\r\n{HOST}\r\n")
    assert answer.endswith("ok\n")


async def test_the_port_is_taken(harness: StatusHarness, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = Endpoint("127.0.0.1", other.getsockname()[1])
        listener = Listener(endpoint, harness.site)
        assert not listener.start()
        listener.stop()
    (record,) = caplog.records
    assert record.levelname == "WARNING"  # an error would end mitmproxy's start
    assert str(endpoint) in record.getMessage()
    assert "in use" in record.getMessage()


async def test_stop(open_listener: Open) -> None:
    """Connections are closed, used or not, and the port is free."""
    listener = open_listener()
    async with asyncio.timeout(LIMIT):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", listener.port)
        used, used_writer = await asyncio.open_connection("127.0.0.1", listener.port)
        used_writer.write(f"GET /livez HTTP/1.1\r\n{HOST}\r\n".encode())
        assert (await used.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        listener.stop()
        assert await idle.read() == b""
        assert await used.read() == b""
    idle_writer.close()
    used_writer.close()
    open_listener(Endpoint("127.0.0.1", listener.port))


async def test_stop_twice(listener: Listener) -> None:
    listener.stop()
    listener.stop()
