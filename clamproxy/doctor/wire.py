"""Requests like freshclam's, each on its own connection, in bounded time.

No HTTP library is used: the peer must get exactly what freshclam sends (docs/protocol.md 1.1 and 1.4), plus
one field by which the gateway knows not to count it as a machine's; and what goes wrong must be known
exactly.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from clamproxy.config.units import host_and_port
from clamproxy.messages import DOCTOR_FIELD
from clamproxy.readable import shown_span

PIECE = 64 * 1024

_IS_DOCTOR = f"{DOCTOR_FIELD}: yes"


class WireError(Exception):
    """There is no response; the text says what happened, in a form that can follow "the gateway"."""


class Closed(WireError):
    """The peer closed the connection."""


class Silent(WireError):
    """The peer didn't respond, or didn't finish, in time."""


class Garbage(WireError):
    """What arrived is not HTTP."""


class NoTls(WireError):
    """TLS could not be established, for a reason other than a certificate."""


@dataclass(frozen=True, slots=True)
class PeerResponse:
    status: int
    headers: dict[str, str]
    """Names are in lower case; several fields with the same name are joined."""
    body: bytes
    complete: bool = True
    """Whether the body was read to its end; not if it was cut off or too long."""

    def __getitem__(self, name: str) -> str:
        """A field's value; "" if there is none."""
        return self.headers.get(name, "")

    @property
    def reason(self) -> str:
        """The text of a gateway's plain-text response, without the gateway's name."""
        text = self.body[:1000].decode("utf-8", "replace").strip()
        is_plain = self["content-type"].partition(";")[0] in ("", "text/plain")
        return text.removeprefix("clamproxy: ") if is_plain else ""

    @property
    def is_clamproxy(self) -> bool:
        """Whether a clamproxy made or passed on this response."""
        return "clamproxy" in f"{self['via']} {self['cache-status']}" or self.body.startswith(b"clamproxy: ")


class TunnelRefused(Exception):
    """CONNECT was answered with a status other than 200."""

    def __init__(self, answer: PeerResponse) -> None:
        super().__init__(f"CONNECT was answered with {answer.status}")
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Proxy:
    """The gateway as an HTTP proxy."""

    host: str
    port: int
    user_agent: str
    credentials: str | None = field(default=None, repr=False)
    """As ``user:password``."""

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)

    @property
    def token(self) -> str:
        """The credentials in the form for HTTP (RFC 7617); "" if there are none."""
        if self.credentials is None:
            return ""
        return "Basic " + base64.b64encode(self.credentials.encode()).decode("ascii")


@contextmanager
def connected(address: tuple[str, int], seconds: float) -> Iterator[socket.socket]:
    """A connection that is cut after `seconds`, however busy it is.

    Raises:
        OSError: it can't be made.
        Silent: it was cut.
    """
    cut = threading.Event()
    # The timer has its own descriptor, because TLS takes over that of the stream.
    with socket.create_connection(address, timeout=seconds) as stream, stream.dup() as handle:

        def end() -> None:
            cut.set()
            with suppress(OSError):  # it has ended already
                handle.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield stream
        except (TimeoutError, WireError, OSError) as error:
            if cut.is_set() or isinstance(error, TimeoutError):
                raise Silent(f"doesn't answer within {shown_span(seconds)}") from error
            raise
        finally:
            timer.cancel()
            timer.join()


def open_tunnel(stream: socket.socket, proxy: Proxy, target: str) -> None:
    """Send CONNECT, and read the response.

    Raises:
        WireError: there is no response.
        TunnelRefused: its status isn't 200.
    """
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.token:
        lines.append(f"Proxy-Authorization: {proxy.token}")
    lines += [f"User-Agent: {proxy.user_agent}", "Proxy-Connection: Keep-Alive", _IS_DOCTOR]
    answer = converse(stream, lines, method="CONNECT", largest=PIECE)
    if answer.status != 200:
        raise TunnelRefused(answer)


def wrap(stream: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Begin TLS.

    Raises:
        ssl.SSLCertVerificationError: the certificate isn't trusted.
        NoTls: anything else went wrong.
    """
    try:
        return context.wrap_socket(stream, server_hostname=host)
    except ssl.SSLCertVerificationError:
        raise
    except TimeoutError:
        raise
    except OSError as error:
        raise NoTls(f"doesn't do TLS: {error.strerror or error}") from error


def get(
    stream: socket.socket,
    host: str,
    path: str,
    user_agent: str,
    *,
    span: str | None = None,
    largest: int,
    token: str = "",
) -> PeerResponse:
    """Request a file, with freshclam's header fields.

    Args:
        stream: a tunnel to the server, with or without TLS, or a connection to it.
        host: the host in the URL.
        path: the path in the URL.
        user_agent: freshclam's User-Agent.
        span: the range of bytes, such as ``0-511``.
        largest: how many bytes of the body to read at most.
        token: the credentials that the server itself demands.

    Raises:
        WireError: there is no response.
    """
    fields = [f"Host: {host}", *([f"Range: bytes={span}"] if span else [])]
    fields += [f"Authorization: {token}"] if token else []
    fields += [f"User-Agent: {user_agent}", "Accept: */*", "Connection: close", _IS_DOCTOR]
    return converse(stream, [f"GET {path} HTTP/1.1", *fields], method="GET", largest=largest)


def converse(stream: socket.socket, lines: list[str], *, method: str, largest: int) -> PeerResponse:
    """Send a request, and read the response to it.

    Raises:
        WireError: there is none.
    """
    try:
        stream.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1", "replace"))
        # Closing the response leaves the socket open.
        with http.client.HTTPResponse(stream, method=method) as response:
            response.begin()
            # A 200 to CONNECT has no body: the tunnel follows.
            is_tunnel = method == "CONNECT" and response.status == 200
            return _answer(response, 0 if is_tunnel else largest)
    except TimeoutError:
        raise
    except http.client.RemoteDisconnected as error:
        raise Closed("closes the connection without an answer") from error
    except http.client.HTTPException as error:
        raise Garbage("answers with something that isn't HTTP") from error
    except OSError as error:
        raise Closed(f"closes the connection without an answer ({error.strerror or error})") from error


def _answer(response: http.client.HTTPResponse, largest: int) -> PeerResponse:
    headers: dict[str, str] = {}
    for name, value in response.getheaders():
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    body, complete = bytearray(), False
    announced = response.length
    try:
        while len(body) < largest:
            piece = response.read1(min(PIECE, largest - len(body)))
            if not piece:
                break
            body += piece
        complete = len(body) == announced if announced is not None else len(body) < largest
    except http.client.IncompleteRead:
        pass
    return PeerResponse(response.status, headers, bytes(body), complete)
