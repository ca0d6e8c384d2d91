"""What is refused before anybody looks for an answer, in which words."""

from __future__ import annotations

from clamproxy.messages import Reply, Request, Result
from clamproxy.replies import plain

LONGEST_VIA = 1024
"""Characters; each gateway adds some twenty."""
_CHALLENGE = 'Basic realm="clamproxy"'
_COUNTED_DOWN = ("OPTIONS", "TRACE")
"""The methods for which Max-Forwards is defined (RFC 9110 7.6.2)."""


def unfit(request: Request, pseudonym: str) -> Reply | None:
    """To what no cache answers, ClamAV's files or a feed's: loops, and methods but GET and HEAD. Else None.

    Args:
        request: the request.
        pseudonym: this gateway's name in Via.
    """
    if (reply := loop(request, pseudonym)) is not None:
        return reply
    if request.method in ("GET", "HEAD"):
        return None
    reply = plain(405, Result.REFUSED, "only GET and HEAD")
    reply.headers["Allow"] = "GET, HEAD"
    return reply


def loop(request: Request, pseudonym: str) -> Reply | None:
    """To a request that came through this gateway before, or through too many to be true. Else None."""
    via = request.via
    if pseudonym not in via and len(via) <= LONGEST_VIA and via.isascii() and via.isprintable():
        return None
    return plain(502, Result.REFUSED, "loop: this request came through this gateway before")


def unknown_client(*, is_proxy: bool) -> Reply:
    """To whoever has to say who it is.

    Args:
        is_proxy: whether the client asks the gateway as its proxy.
    """
    reply = plain(407 if is_proxy else 401, Result.REFUSED, "a user of access.users is needed")
    reply.headers["Proxy-Authenticate" if is_proxy else "WWW-Authenticate"] = _CHALLENGE
    return reply


def no_tunnel(host: str, port: int) -> Reply:
    """To a CONNECT that leads nowhere."""
    return plain(502, Result.REFUSED, f"no tunnel to {host}:{port}")


def nobody(host: str) -> Reply:
    """To a request for a host that isn't configured."""
    place = "is not in serving.hosts, feeds.hosts or serving.pass_through"
    return plain(502, Result.REFUSED, f"{host} {place}; if it is the gateway itself, put it in tls.names")


def forwards_left(request: Request) -> int | None:
    """How often a request may still be forwarded; None: Max-Forwards doesn't limit it (RFC 9110 7.6.2)."""
    left = request.headers.get("Max-Forwards", "")
    is_limited = request.method in _COUNTED_DOWN and left.isascii() and left.isdigit()
    return int(left[:9]) if is_limited else None


def last_stop(request: Request) -> Reply | None:
    """The answer in place of the host's, where Max-Forwards is 0. TRACE would show passwords."""
    if forwards_left(request) != 0:
        return None
    reply = plain(204 if request.method == "OPTIONS" else 405, Result.REFUSED, "Max-Forwards is 0")
    reply.headers["Allow"] = "GET, HEAD, OPTIONS"
    return reply


def failure(reason: str) -> Reply:
    """The answer when nothing else can be answered; 503 makes freshclam try again."""
    reply = plain(503, Result.ERROR, reason)
    reply.headers["Retry-After"] = "1"
    return reply
