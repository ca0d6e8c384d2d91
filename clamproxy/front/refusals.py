"""Responses to requests that are refused before they reach a cache or page."""

from __future__ import annotations

from clamproxy.messages import Request, Response, Result
from clamproxy.responses import plain

LONGEST_VIA = 1024
"""In characters; each gateway adds about twenty."""
_CHALLENGE = 'Basic realm="clamproxy"'
_USER = "a user and password from access.users are required"
_CERTIFICATE = "https with a certificate of access.client_ca is required"
_EITHER = (
    "a user and password from access.users, or https with a certificate of access.client_ca, are required"
)
_COUNTED_DOWN = ("OPTIONS", "TRACE")
"""The methods for which Max-Forwards is defined (RFC 9110 7.6.2)."""


def unfit(request: Request, pseudonym: str) -> Response | None:
    """Refuse what neither ClamAV's cache nor the feeds' answers: loops, and methods other than GET and HEAD.

    Args:
        pseudonym: this gateway's name in Via.

    Returns:
        None if there is nothing to refuse.
    """
    if (response := loop(request, pseudonym)) is not None:
        return response
    if request.method in ("GET", "HEAD"):
        return None
    response = plain(405, Result.REFUSED, "only GET and HEAD are supported")
    response.headers["Allow"] = "GET, HEAD"
    return response


def loop(request: Request, pseudonym: str) -> Response | None:
    """Refuse a request that came through this gateway before, or through implausibly many; else None."""
    via = request.via
    if not via or (pseudonym not in via and len(via) <= LONGEST_VIA and via.isascii() and via.isprintable()):
        return None
    return plain(502, Result.REFUSED, "loop: this request has come through this gateway before")


def unknown_client(*, is_proxy: bool, users: bool = True, certificates: bool = False) -> Response:
    """Ask a client to authenticate.

    Args:
        is_proxy: whether the client uses the gateway as its proxy.
        users: whether a user and password would do.
        certificates: whether https with a certificate would do.
    """
    needed = _EITHER if users and certificates else _CERTIFICATE if certificates else _USER
    response = plain(407 if is_proxy else 401, Result.REFUSED, needed)
    response.headers["Proxy-Authenticate" if is_proxy else "WWW-Authenticate"] = _CHALLENGE
    return response


def no_tunnel(host: str, port: int) -> Response:
    """Refuse a CONNECT to a place that the gateway opens no tunnels to."""
    return plain(502, Result.REFUSED, f"no tunnel to {host}:{port}")


def nobody(host: str) -> Response:
    """Refuse a request for a host that isn't configured."""
    place = "is not in serving.hosts, feeds.hosts or serving.pass_through"
    return plain(502, Result.REFUSED, f"{host} {place}; if it is the gateway itself, add it to tls.names")


def stranger(address: str) -> Response:
    """Refuse a request that a balancer has forwarded for a client that may not use the gateway."""
    return plain(502, Result.REFUSED, f"{address} is not in serving.clients")


def forwards_left(request: Request) -> int | None:
    """How often a request may still be forwarded; None if Max-Forwards sets no limit (RFC 9110 7.6.2)."""
    left = request.headers.get("Max-Forwards", "")
    is_limited = request.method in _COUNTED_DOWN and left.isascii() and left.isdigit()
    return int(left[:9]) if is_limited else None


def last_stop(request: Request) -> Response | None:
    """The response to a request with Max-Forwards 0, which must not reach the host; else None.

    TRACE isn't answered as RFC 9110 9.3.8 says: that would reveal passwords.
    """
    if forwards_left(request) != 0:
        return None
    response = plain(204 if request.method == "OPTIONS" else 405, Result.REFUSED, "Max-Forwards is 0")
    response.headers["Allow"] = "GET, HEAD, OPTIONS"
    return response


def failure(reason: str) -> Response:
    """The response when there is no other; 503 makes freshclam try again."""
    response = plain(503, Result.ERROR, reason)
    response.headers["Retry-After"] = "1"
    return response
