"""Replies to requests that are refused before any cache or page is asked."""

from __future__ import annotations

from clamproxy.messages import Reply, Request, Result
from clamproxy.replies import plain

LONGEST_VIA = 1024
"""Characters; each gateway adds some twenty."""
_CHALLENGE = 'Basic realm="clamproxy"'
_COUNTED_DOWN = ("OPTIONS", "TRACE")
"""The methods for which Max-Forwards is defined (RFC 9110 7.6.2)."""


def unfit(request: Request, pseudonym: str) -> Reply | None:
    """Refuse what no cache answers, be it ClamAV's or the feeds': loops, and methods other than GET and HEAD.

    Args:
        request: the request.
        pseudonym: this gateway's name in Via.

    Returns:
        None if there is nothing to refuse.
    """
    if (reply := loop(request, pseudonym)) is not None:
        return reply
    if request.method in ("GET", "HEAD"):
        return None
    reply = plain(405, Result.REFUSED, "only GET and HEAD")
    reply.headers["Allow"] = "GET, HEAD"
    return reply


def loop(request: Request, pseudonym: str) -> Reply | None:
    """Refuse a request that came through this gateway before, or through too many to be true; else None."""
    via = request.via
    if pseudonym not in via and len(via) <= LONGEST_VIA and via.isascii() and via.isprintable():
        return None
    return plain(502, Result.REFUSED, "loop: this request came through this gateway before")


def unknown_client(*, is_proxy: bool) -> Reply:
    """Ask a client to say who it is.

    Args:
        is_proxy: whether the client asks the gateway as its proxy.
    """
    reply = plain(407 if is_proxy else 401, Result.REFUSED, "a user of access.users is needed")
    reply.headers["Proxy-Authenticate" if is_proxy else "WWW-Authenticate"] = _CHALLENGE
    return reply


def no_tunnel(host: str, port: int) -> Reply:
    """Refuse a CONNECT to somewhere that the gateway opens no tunnels to."""
    return plain(502, Result.REFUSED, f"no tunnel to {host}:{port}")


def nobody(host: str) -> Reply:
    """Refuse a request for a host that isn't configured."""
    place = "is not in serving.hosts, feeds.hosts or serving.pass_through"
    return plain(502, Result.REFUSED, f"{host} {place}; if it is the gateway itself, put it in tls.names")


def forwards_left(request: Request) -> int | None:
    """How often a request may still be forwarded; None if Max-Forwards sets no limit (RFC 9110 7.6.2)."""
    left = request.headers.get("Max-Forwards", "")
    is_limited = request.method in _COUNTED_DOWN and left.isascii() and left.isdigit()
    return int(left[:9]) if is_limited else None


def last_stop(request: Request) -> Reply | None:
    """The reply to a request with Max-Forwards 0, which must not reach the host; else None.

    TRACE isn't answered as RFC 9110 9.3.8 has it: that would show passwords.
    """
    if forwards_left(request) != 0:
        return None
    reply = plain(204 if request.method == "OPTIONS" else 405, Result.REFUSED, "Max-Forwards is 0")
    reply.headers["Allow"] = "GET, HEAD, OPTIONS"
    return reply


def failure(reason: str) -> Reply:
    """The reply when there is no other; 503 makes freshclam try again."""
    reply = plain(503, Result.ERROR, reason)
    reply.headers["Retry-After"] = "1"
    return reply
