"""The load of the benchmark: what a machine sends, and what it counts as a success or which failure."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.load.asking import Entry, Fetch, Form, request, tunnel_request
from benchmarks.load.generator import Load, LoadGenerator, Outcome

BODY = bytes(range(256)) * 8
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2048\r\n\r\n" + BODY
OLD = b"ClamAV-VDB:01 Jan 2026 00-00 +0000:27799:".ljust(512, b" ")


@contextmanager
def server(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Gives its answers in turn, one for each request, and closes after those that end in a cut.

    Yields:
        The port, and the heads of all requests.
    """
    heads: list[bytes] = []

    def serve() -> None:
        left = list(answers)
        while left:
            connection, _ = listener.accept()
            with connection:
                while left and (head := connection.recv(4096)):
                    heads.append(head)
                    answer = left.pop(0)
                    connection.sendall(answer)
                    if b"close" in head.lower() or not answer:
                        break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], heads
        thread.join(10)


@pytest.fixture(scope="module")
def load() -> Iterator[LoadGenerator]:
    with LoadGenerator() as generator:
        yield generator


def run(load: LoadGenerator, port: int, fetch: Fetch, form: Form = Form.ORIGIN, times: int = 1) -> Outcome:
    return load.run(Load(Entry(port, form), ((fetch,) * times,), 1, verify=True))


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + BODY, "no Content-Length"),
        (GOOD.replace(b"2048", b"2047"), "wrong length"),
        (GOOD[:-1], "cut in the body"),
        (GOOD[:20], "cut in the head"),
        (b"", "closed without an answer"),
        (GOOD[:-1] + b"\0", "wrong bytes"),
    ],
)
def test_what_is_not_the_object_is_a_failure_of_its_kind(
    load: LoadGenerator, answer: bytes, failure: str
) -> None:
    with server(answer) as (port, _):
        outcome = run(load, port, Fetch("/x", 2048, hashlib.sha256(BODY).hexdigest()))
    assert (outcome.done, outcome.requests, outcome.failures) == (0, 0, {failure: 1})


def test_each_request_has_a_connection_of_its_own(load: LoadGenerator) -> None:
    with server(GOOD, GOOD) as (port, heads):
        outcome = run(load, port, Fetch("/x", 2048, hashlib.sha256(BODY).hexdigest()), times=2)
    assert (outcome.done, outcome.requests, outcome.size, outcome.failures) == (1, 2, 4096, {})
    assert [head.splitlines()[0] for head in heads] == [b"GET /x HTTP/1.1"] * 2


def test_a_tunnel_is_opened_first(load: LoadGenerator) -> None:
    with server(b"HTTP/1.1 200 OK\r\n\r\n", GOOD) as (port, heads):
        outcome = run(load, port, Fetch("/x", 2048), Form.TUNNEL)
    assert outcome.failures == {}
    assert [head.splitlines()[0] for head in heads] == [
        b"CONNECT database.clamav.net:80 HTTP/1.1",
        b"GET /x HTTP/1.1",
    ]


def test_an_older_version_is_stale(load: LoadGenerator) -> None:
    answer = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 512\r\n\r\n" + OLD
    for version, failures in ((27799, {}), (27800, {"stale": 1})):
        with server(answer) as (port, _):
            outcome = run(load, port, Fetch("/daily.cvd", 512, probe=True, version=version))
        assert outcome.failures == failures


def test_nobody_listens(load: LoadGenerator) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        outcome = run(load, closed.getsockname()[1], Fetch("/x"))
    assert outcome.failures == {"ConnectionRefusedError": 1}


def test_all_machines_are_shared_out(load: LoadGenerator) -> None:
    with server(*[GOOD] * 5) as (port, _):
        outcome = load.run(Load(Entry(port, Form.ORIGIN), ((Fetch("/x", 2048),),), 5))
    assert (outcome.machines, outcome.done, outcome.requests) == (5, 5, 5)


def test_the_heads_are_freshclams() -> None:
    through_proxy, direct = Entry(8080, Form.TUNNEL), Entry(8080, Form.ABSOLUTE)
    agent = "ClamAV/1.4.6 (OS: Linux)"
    assert tunnel_request(through_proxy, agent) == (
        b"CONNECT database.clamav.net:80 HTTP/1.1\r\nHost: database.clamav.net:80\r\n"
        b"User-Agent: ClamAV/1.4.6 (OS: Linux)\r\nProxy-Connection: Keep-Alive\r\n\r\n"
    )
    assert request(through_proxy, Fetch("/daily.cvd", probe=True), agent) == (
        b"GET /daily.cvd HTTP/1.1\r\nHost: database.clamav.net\r\nRange: bytes=0-511\r\n"
        b"User-Agent: ClamAV/1.4.6 (OS: Linux)\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    assert request(direct, Fetch("/daily.cvd"), agent) == (
        b"GET http://database.clamav.net/daily.cvd HTTP/1.1\r\nHost: database.clamav.net\r\n"
        b"User-Agent: ClamAV/1.4.6 (OS: Linux)\r\nAccept: */*\r\nProxy-Connection: Keep-Alive\r\n"
        b"Connection: close\r\n\r\n"
    )
