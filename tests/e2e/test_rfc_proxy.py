"""What RFC 9110 and 9112 ask of a proxy that forwards: to hosts in ``serving.pass_through``, by mitmproxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Way
from tests.support.raw import RawHost
from tests.support.raw_http import exchange, parse_answers
from tests.support.site import LOCALHOST, Site, open_site

CHUNKED = "Transfer-Encoding: chunked"
ANSWER = (
    b"HTTP/1.0 200 Fine\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\n"
    b"X-Hop: 1\r\nX-End: 2\r\n\r\nok"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that passes this machine through."""
    site = open_site(tmp_path_factory.mktemp("forwarding"), serving={"pass_through": [LOCALHOST]})
    yield site
    log = site.gateway.log
    site.close()
    assert "Traceback" not in log


@pytest.fixture
def host() -> Iterator[RawHost]:
    with RawHost(ANSWER) as host:
        yield host


def forwarded(
    site: Site, host: RawHost, request: str, answers: list[int], *, inside: bool = False
) -> list[str]:
    """The lines of the request as it has reached the host; none if it hasn't."""
    place = f"{LOCALHOST}:{host.port}"
    data = request.replace("{p}", place).replace("|", "\r\n").encode("latin-1")
    received = exchange(site.gateway.port, data, inside=place if inside else None)
    assert [answer.status for answer in parse_answers(received)] == answers
    return host.requests[0].decode("latin-1").split("\r\n") if host.requests else []


@pytest.mark.parametrize("inside", [False, True], ids=["absolute", "tunnel"])
def test_hop_by_hop_fields_are_not_forwarded(site: Site, host: RawHost, inside: bool) -> None:
    """9110 7.6.1, and 7.6.3; what frames the message can't be made hop-by-hop."""
    target = "/x" if inside else "http://{p}/x"
    fields = (
        "Connection: close, X-Hop, TE, Host, Content-Length|X-Hop: 1|X-End: 2|TE: trailers|Upgrade: h2c"
        "|Keep-Alive: 3|Proxy-Connection: close|Content-Length: 3"
    )
    lines = forwarded(site, host, f"POST {target} HTTP/1.1|Host: other|{fields}||abc", [200], inside=inside)
    assert lines[0] == "POST /x HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in lines[1:] if line}
    assert names == {"host", "x-end", "content-length", "via"}
    assert f"host: {LOCALHOST}:{host.port}" in [line.lower() for line in lines]


def test_hop_by_hop_fields_of_the_answer(site: Site, host: RawHost) -> None:
    """The version is the proxy's own (9110 2.5), and so is the connection."""
    place = f"{LOCALHOST}:{host.port}"
    one = f"GET http://{place}/x HTTP/1.1\r\nHost: {place}\r\n"
    received = exchange(site.gateway.port, f"{one}\r\n{one}Connection: close\r\n\r\n".encode())
    first, second = parse_answers(received)
    for answer in (first, second):
        assert (answer.version, answer.body, answer.headers["x-end"]) == ("HTTP/1.1", b"ok", "2")
        assert not {"x-hop", "keep-alive"} & set(answer.headers)
        assert "clamproxy" in answer.headers["via"]
    assert (first.headers.get("connection"), second.headers.get("connection")) == (None, "close")


@pytest.mark.parametrize("value", ["a\rb", "a\0b", "a\rX-Smuggled: 1"])
@pytest.mark.parametrize("inside", [False, True], ids=["absolute", "tunnel"])
def test_no_control_character_is_forwarded(site: Site, host: RawHost, value: str, inside: bool) -> None:
    """9110 5.5."""
    target = "/x" if inside else "http://{p}/x"
    assert not forwarded(site, host, f"GET {target} HTTP/1.1|Host: {{p}}|X: {value}||", [400], inside=inside)


def test_another_host_is_not_reached_through_a_tunnel(site: Site, host: RawHost) -> None:
    """9110 7.4: the request is for who is named in it, and the tunnel leads elsewhere."""
    assert not forwarded(site, host, "GET http://x.example/x HTTP/1.1|Host: {p}||", [421], inside=True)


@pytest.mark.parametrize(
    ("rule", "request_", "answers", "line"),
    [
        ("9110 2.5: the proxy's own version", "GET http://{p}/x HTTP/1.0||", [200], "GET /x HTTP/1.1"),
        ("9112 5.2: no folded field", "GET http://{p}/x HTTP/1.1|{H}|X: a|  b||", [200], "X: a b"),
        (
            "9112 7.1.2: no trailers",
            "PUT http://{p}/x HTTP/1.1|{H}|" + CHUNKED + "||0|X: y||",
            [200],
            CHUNKED,
        ),
        ("9112 3.2.4: no path", "OPTIONS http://{p} HTTP/1.1|{H}||", [200], "OPTIONS * HTTP/1.1"),
        (
            "9110 7.6.2: counted down",
            "OPTIONS http://{p}/x HTTP/1.1|{H}|Max-Forwards: 7||",
            [200],
            "Max-Forwards: 6",
        ),
        ("9110 7.6.2: the end", "OPTIONS http://{p}/x HTTP/1.1|{H}|Max-Forwards: 0||", [204], None),
        ("9110 7.6.2: of TRACE, too", "TRACE http://{p}/x HTTP/1.1|{H}|Max-Forwards: 0||", [405], None),
        (
            "9110 7.6.2: not of GET",
            "GET http://{p}/x HTTP/1.1|{H}|Max-Forwards: 0||",
            [200],
            "Max-Forwards: 0",
        ),
    ],
)
def test_forwarding(
    site: Site, host: RawHost, rule: str, request_: str, answers: list[int], line: str | None
) -> None:
    lines = forwarded(site, host, request_.replace("{H}", "Host: {p}|Connection: close"), answers)
    assert (line.lower() in [one.lower() for one in lines]) if line else not lines, rule


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_chunks_and_trailers_of_a_host(site: Site, version: str) -> None:
    """9112 6.1: HTTP/1.0 gets no chunks. 9110 6.5.1: trailers may be dropped."""
    with RawHost(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"
    ) as host:
        place = f"{LOCALHOST}:{host.port}"
        request = f"GET http://{place}/x HTTP/{version}\r\nHost: {place}\r\nConnection: close\r\n\r\n"
        head, _, body = exchange(site.gateway.port, request.encode()).partition(b"\r\n\r\n")
    assert body == (b"abc" if version == "1.0" else b"3\r\nabc\r\n0\r\n\r\n")
    assert (b"chunked" in head) == (version == "1.1")


def test_interim_responses_of_a_host(site: Site) -> None:
    """9110 15.2: a 1xx is not the answer."""
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    with RawHost(interim + ANSWER) as host:
        answer = site.gateway.ask("/x", Way.ABSOLUTE, host=f"{LOCALHOST}:{host.port}")
    assert (answer.status, answer.body) == (200, b"ok")


def test_a_host_that_cannot_be_reached(site: Site) -> None:
    """9110 15.6.3, in the gateway's own words."""
    with RawHost(b"") as host:
        pass
    answer = site.gateway.ask("/x", Way.ABSOLUTE, host=f"{LOCALHOST}:{host.port}")
    assert (answer.status, answer.headers["via"]) == (502, "1.1 clamproxy")
    assert answer.body.startswith(b"clamproxy: the host can't be reached")


def test_known_a_proxy_continues_for_the_host(site: Site, host: RawHost) -> None:
    """9110 10.1.1 has a proxy forward the expectation. mitmproxy answers 100 by itself and forwards none,
    in the middle of the method that starts a stream: the content arrives, the host's refusal comes later.
    """
    request = (
        "PUT http://{p}/x HTTP/1.1|Host: {p}|Expect: 100-continue|Content-Length: 3|Connection: close||abc"
    )
    lines = forwarded(site, host, request, [100, 200])
    assert not [line for line in lines if line.lower().startswith("expect")]
