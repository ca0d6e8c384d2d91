"""Connections to the outside: heads that never end, connections that died, redirects, and fuzzed answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clamproxy.config.units import HttpProxy
from clamproxy.messages import Requester
from clamproxy.origin import connections as module
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError, RangeError
from clamproxy.origin.scope import CancelledScopeError, CancelScope, in_scope
from clamproxy.origin.upstream import Upstream
from tests.support import faults
from tests.support.origin import OriginServer
from tests.support.raw import RawServer, Relay, answering, dripping, read_head
from tests.support.stored import NEW, until

type Behaviour = Callable[[socket.socket], object]

PATH = "/daily-5.cdiff"
BODY = b"0123456789"
LIMIT = 30
"""Seconds; only a guard."""
PATIENCE = 0.25
"""Seconds: a head may take four times as long."""


def connect(
    url: str, *, proxy: str | None = None, credentials: str | None = None, patience: float = PATIENCE
) -> Upstream:
    return Upstream(
        url,
        proxy=HttpProxy(proxy, credentials) if proxy else None,
        ca_bundle=None,
        connect_timeout=patience,
        read_timeout=patience,
        via="1.1 clamproxy-test",
        count=lambda requests, length: None,
    )


def fetch(upstream: Upstream, requester: Requester = NEW) -> bytes:
    with upstream.get(PATH, requester) as answer:
        return b"".join(answer.chunks())


def failure_of(upstream: Upstream) -> OriginError:
    with pytest.raises(OriginError) as caught:
        fetch(upstream)
    return caught.value


@contextmanager
def nothing_left() -> Iterator[None]:
    """No thread and no descriptor is left of what happens meanwhile."""

    def present() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    before = present()
    yield
    deadline = time.monotonic() + 30
    while any(now > then for now, then in zip(present(), before, strict=True)):
        assert time.monotonic() < deadline, [thread.name for thread in threading.enumerate()]
        time.sleep(0.02)


# Heads that never end

ENDLESS = {
    "a status line": dripping(b"HTTP/1.1 2", b"0"),
    "field names": dripping(b"HTTP/1.1 200 OK\r\n", b"x"),
    "field values": dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "many fields": dripping(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n", pause=0.1),
    "100 Continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a redirect's short body": dripping(
        b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 9999\r\n\r\n", b"x"
    ),
}
REDIRECTS = {
    "body": dripping(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 999999999\r\n\r\n", b"x"),
    "chunks": dripping(
        b"HTTP/1.1 302 Found\r\nLocation: /other\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"
    ),
    "chunk size": dripping(
        b"HTTP/1.1 302 Found\r\nLocation: /other\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"
    ),
}


def how_it_ends(behaviour: Behaviour) -> OriginError:
    with RawServer(behaviour) as server, nothing_left():
        upstream = connect(server.url)
        failure = failure_of(upstream)
        upstream.close()
    return failure


@pytest.mark.parametrize("behaviour", ENDLESS.values(), ids=ENDLESS.keys())
def test_a_head_that_never_ends(behaviour: Behaviour) -> None:
    failure = how_it_ends(behaviour)
    assert failure.failure is FailureKind.INTERRUPTED
    assert "no complete response header" in str(failure)


@pytest.mark.parametrize("behaviour", REDIRECTS.values(), ids=REDIRECTS.keys())
def test_nobody_waits_for_a_redirects_long_body(behaviour: Behaviour) -> None:
    failure = how_it_ends(behaviour)
    assert failure.failure is FailureKind.SERVER_ERROR
    assert "one too many" in str(failure)


def test_a_proxy_whose_answer_to_connect_never_ends() -> None:
    with RawServer(dripping(b"HTTP/1.1 200 ", b"x")) as server, nothing_left():
        assert "no complete response header" in str(
            failure_of(connect("https://localhost:1", proxy=server.url))
        )


def test_tls_that_never_begins() -> None:
    with RawServer(lambda connection: [*iter(lambda: connection.recv(1), b"")]) as server, nothing_left():
        failure = failure_of(connect(server.url.replace("http:", "https:")))
    assert failure.failure is FailureKind.UNREACHABLE


async def test_nobody_waits_any_more() -> None:
    """A thread that blocks ends when its task is cancelled."""
    begun = threading.Event()

    def ask(scope: CancelScope) -> None:
        begun.set()
        upstream.get(PATH, NEW, scope=scope)

    with RawServer(dripping(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n", pause=1)) as server:
        upstream = connect(server.url, patience=60)
        with pytest.raises(TimeoutError):
            await in_scope("test-ask", 0.5, ask)
        assert begun.is_set()
        await until(lambda: "test-ask" not in {thread.name for thread in threading.enumerate()})
        await until(lambda: server.open == 0)


def test_a_scope_that_was_cancelled_makes_no_connection(origin: OriginServer) -> None:
    scope = CancelScope()
    scope.cancel()
    with pytest.raises(OriginError):
        connect(origin.url).get(PATH, NEW, scope=scope)
    assert origin.requests() == []


def test_nothing_is_done_any_more_when_cancel_has_returned() -> None:
    scope, is_writing, go, done = CancelScope(), threading.Event(), threading.Event(), list[str]()

    def write() -> None:
        with scope.unless_cancelled():
            is_writing.set()
            assert go.wait(LIMIT)
            done.append("written")

    def cancel() -> None:
        scope.cancel()
        done.append("cancelled")

    threads = [threading.Thread(target=write), threading.Thread(target=cancel)]
    threads[0].start()
    assert is_writing.wait(LIMIT)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(LIMIT)
    with pytest.raises(CancelledScopeError), scope.unless_cancelled():
        done.append("too late")
    assert done == ["written", "cancelled"]


def test_what_is_raised_meanwhile_leaves_the_scope_as_it_was() -> None:
    scope = CancelScope()
    with pytest.raises(OSError, match="full"), scope.unless_cancelled():
        raise OSError("full")
    with scope.unless_cancelled():
        pass
    scope.cancel()


def test_what_is_cancelled_too_late_leaves_the_connection_to_others(origin: OriginServer) -> None:
    origin.put("daily-5.cdiff", BODY)
    upstream, scope = connect(origin.url, patience=5), CancelScope()
    with upstream.get(PATH, NEW, scope=scope) as answer:
        assert b"".join(answer.chunks()) == BODY
    scope.cancel()
    with Relay(origin.port):
        assert fetch(upstream) == BODY
    upstream.close()


# Connections that died


@pytest.fixture
def relay(origin: OriginServer) -> Iterator[Relay]:
    origin.put("daily-5.cdiff", BODY)
    with Relay(origin.port) as relay:
        yield relay


@pytest.mark.parametrize("die", [Relay.forget, Relay.reset], ids=["forgotten", "reset"])
def test_a_request_over_an_old_connection_is_repeated(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, die: Callable[[Relay], None]
) -> None:
    upstream = connect(relay.url, patience=20)
    assert [fetch(upstream), fetch(upstream)] == [BODY, BODY]
    assert relay.accepted == 1
    monkeypatch.setattr(module, "PATIENCE_WITH_REUSED", 0.3)
    die(relay)
    assert fetch(upstream) == BODY
    assert relay.accepted == 2
    upstream.close()


def test_all_idle_connections_are_given_up_with_a_dead_one(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = connect(relay.url, patience=20)
    answers = [upstream.get(PATH, NEW) for _ in range(4)]
    for answer in answers:
        assert b"".join(answer.chunks()) == BODY
        answer.close()
    relay.forget()
    began = relay.accepted
    with monkeypatch.context() as impatient:
        impatient.setattr(module, "PATIENCE_WITH_REUSED", 0.3)
        assert fetch(upstream) == BODY
    assert fetch(upstream) == BODY
    assert relay.accepted == began + 1
    upstream.close()


def test_a_server_that_closes_each_old_connection() -> None:
    """As Apache does after some seconds, a moment before the next request."""

    def once(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY)
        read_head(connection)

    with RawServer(once) as server:
        upstream = connect(server.url, patience=20)
        assert [fetch(upstream) for _ in range(3)] == [BODY] * 3
        assert server.accepted == 3
        upstream.close()


def test_a_new_connection_is_not_repeated() -> None:
    with RawServer(lambda connection: None) as server:
        failure = failure_of(connect(server.url))
        assert server.accepted == 1
    assert failure.failure is FailureKind.INTERRUPTED  # which holds back this file alone


def test_an_idle_connection_is_dropped_early(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = connect(relay.url, patience=20)
    assert fetch(upstream) == BODY
    monkeypatch.setattr(module, "LONGEST_IDLE", 0.0)
    assert fetch(upstream) == BODY
    assert relay.accepted == 2
    upstream.close()


@pytest.mark.parametrize("proxied", [False, True])
def test_tcp_keepalive_is_on(origin: OriginServer, monkeypatch: pytest.MonkeyPatch, proxied: bool) -> None:
    seen: list[int] = []
    hold = CancelScope.hold

    def look(scope: CancelScope, connection: socket.socket) -> None:
        seen.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        hold(scope, connection)

    monkeypatch.setattr(CancelScope, "hold", look)
    with pytest.raises(NotFoundError):
        fetch(connect(origin.url, proxy=origin.url if proxied else None, patience=5))
    assert seen == [1]


# Redirects


@pytest.mark.parametrize(
    "target", ["/other", "//localhost:{port}/other", "http://LOCALHOST:{port}/other", "other"]
)
def test_a_redirect_within_the_host_is_followed(origin: OriginServer, target: str) -> None:
    origin.put("other", BODY)
    origin.rule(PATH, faults.redirect(target.format(port=origin.port)))
    assert fetch(connect(origin.url, patience=5)) == BODY


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/other",
        "//127.0.0.1:{port}/other",
        "ftp://elsewhere/other",
        "http://[::1",
        "http://a b/",
        "http://\xe4\xf6\xfc..x/",
        "http://" + "x" * 300 + "/",
        "http://localhost:99999/",
        "https:///",
    ],
)
def test_redirects_elsewhere_are_not_followed(origin: OriginServer, target: str) -> None:
    origin.put("other", BODY)
    origin.rule(PATH, faults.redirect(target.format(port=origin.port)))
    assert failure_of(connect(origin.url, patience=5)).failure is FailureKind.SERVER_ERROR
    assert len(origin.requests()) == 1


def test_a_redirect_to_another_port_is_not_followed(origin: OriginServer) -> None:
    with OriginServer() as other:
        other.put("other", BODY)
        origin.rule(PATH, faults.redirect(f"http://localhost:{other.port}/other"))
        failure = failure_of(connect(origin.url, patience=5))
    assert failure.failure is FailureKind.SERVER_ERROR
    assert "a redirect to another scheme, host or port" in str(failure)
    assert not other.requests()


@pytest.mark.parametrize(
    ("asked", "location", "may"),
    [
        ("http://a.example/x", "http://a.example:80/y", True),
        ("https://a.example:443/x", "https://a.example/y", True),
        ("http://a.example:8080/x", "http://a.example:8080/y", True),
        ("http://a.example/x", "https://a.example/y", True),
        ("http://a.example:80/x", "https://a.example:443/y", True),
        ("http://a.example/x", "https://a.example:8443/y", False),
        ("http://a.example:8080/x", "https://a.example/y", False),
        ("http://a.example/x", "http://a.example:8080/y", False),
        ("https://a.example/x", "https://a.example:8443/y", False),
        ("https://a.example/x", "http://a.example/y", False),
        ("https://a.example/x", "http://a.example:443/y", False),
        ("http://a.example/x", "https://b.example/y", False),
    ],
)
def test_where_a_redirect_may_lead(asked: str, location: str, may: bool) -> None:
    assert module._may_follow(asked, location) is may


# A parent proxy that refuses


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("credentials", "words"),
    [(None, "the parent proxy requires a user and password"), ("me:it", "refuses the user and password")],
)
def test_407(scheme: str, credentials: str | None, words: str) -> None:
    raw = b"HTTP/1.1 407 Who are you?\r\nContent-Length: 0\r\nProxy-Authenticate: Basic\r\n\r\n"
    with RawServer(answering(raw)) as proxy:
        upstream = connect(f"{scheme}://origin.example", proxy=proxy.url, credentials=credentials)
        failure = failure_of(upstream)
        assert proxy.accepted == 1
    assert failure.failure is FailureKind.PROXY_AUTHENTICATION
    assert words in str(failure)


@pytest.mark.parametrize("status", ["403 Forbidden", "502 Bad Gateway", "503 Busy\x1b[31m"])
def test_another_refusal_of_the_tunnel(status: str) -> None:
    with RawServer(answering(f"HTTP/1.1 {status}\r\n\r\n".encode())) as proxy:
        failure = failure_of(connect("https://origin.example", proxy=proxy.url))
    assert failure.failure is FailureKind.UNREACHABLE
    assert f"the parent proxy refuses the tunnel: {status[:8]}" in str(failure)
    assert str(failure).isprintable()


def test_a_proxy_that_is_not_there() -> None:
    with RawServer(lambda connection: None) as gone:
        url = gone.url
    failure = failure_of(connect("https://origin.example", proxy=url))
    assert failure.failure is FailureKind.UNREACHABLE
    assert "the parent proxy fails: " in str(failure)
    assert "refused" in str(failure)


# Whatever comes

_LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 206 Partial Content",
        b"HTTP/1.1 302 Found",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.0 200",
        b"HTTP/9.9 200 OK",
        b"HTTP/1.1 20x OK",
        b"ICY 200 OK",
        b"",
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: 5, 5",
        b"Content-Length: 5, 6",
        b"Content-Length: 99999999999999999999999",
        b"Content-Length: \xd9\xa3",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Range: bytes 0-4/5",
        b"Content-Range: bytes 5-1/5",
        b"Content-Range: bytes */*",
        b"Content-Range: bytes x",
        b"Content-Encoding: gzip",
        b"Content-Encoding: \x1b[31m",
        b"ETag: \xff\xfe",
        b'ETag: "a"\r\n "b"',
        b"Last-Modified: Mon, 01 Jan 99999 00:00:00 GMT",
        b"Retry-After: 99999999999999999999",
        b"Location: /daily-5.cdiff",
        b"Location: http://[",
        b"Location: \xff\xfe://",
        b"Location: http://localhost:port/",
        b"cf-ray: a\r\n b",
        b" folded",
        b"Connection: close",
        b"x" * 70_000,
        b"5\r\nhello\r\n0\r\n",
        b"zz\r\n",
    ]
)
_ANSWERS = st.lists(_LINES | st.binary(max_size=30), max_size=12).map(b"\r\n".join) | st.binary(max_size=300)


@pytest.fixture(scope="module")
def hostile() -> Iterator[tuple[RawServer, Upstream, Upstream]]:
    """A server, and the ways to it as an origin and as a proxy."""
    with RawServer(answering(b"")) as server:
        origin, proxied = (
            connect(server.url, patience=2),
            connect("https://origin.example", proxy=server.url, patience=2),
        )
        yield server, origin, proxied
        origin.close()
        proxied.close()


@settings(max_examples=300)
@given(raw=_ANSWERS)
def test_whatever_comes_is_an_error_of_the_origin(
    hostile: tuple[RawServer, Upstream, Upstream], raw: bytes
) -> None:
    server, upstream, _ = hostile
    server.behaviour = answering(raw + b"\r\n\r\n")
    said = ""
    try:
        with upstream.get(PATH, NEW) as answer:
            assert (answer.size or 0) >= 0
            assert answer.start >= 0
            said = f"{answer.etag}{answer.last_modified}{answer.ray}"
            b"".join(answer.chunks())
    except (OriginError, NotFoundError, RangeError) as error:
        said += str(error)
    assert said
    assert said.isprintable()


@settings(max_examples=100)
@given(raw=_ANSWERS)
def test_whatever_a_proxy_says_is_an_error_of_the_origin(
    hostile: tuple[RawServer, Upstream, Upstream], raw: bytes
) -> None:
    server, _, upstream = hostile
    server.behaviour = answering(raw + b"\r\n\r\n")
    error = failure_of(upstream)
    assert str(error)
    assert str(error).isprintable()
