"""Explains the gateway's responses, errors and clock in words, with what to do about each."""

from __future__ import annotations

import errno
import re

from clamproxy.doctor.findings import Verdict, ok, problem
from clamproxy.doctor.wire import Closed, Garbage, PeerResponse, Proxy, Silent, TunnelRefused
from clamproxy.readable import shown_span

ON_GATEWAY = "run `clamproxy doctor` on the gateway, where it can check more."
HERE = "see the findings about this gateway, above, and its log."
"""Used instead of `ON_GATEWAY` when the doctor has just examined this gateway itself."""
CHANGED_REMEDY = (
    "look for a device between here and the gateway that changes or truncates answers, "
    "and exempt the gateway."
)
CONNECT_REMEDY = (
    "check that clamproxy is running there (`clamproxy run`), on this port and not only on 127.0.0.1, "
    "and that no firewall is in the way."
)
LOOP_REMEDY = (
    "correct upstream.url and upstream.proxy; where a local DNS zone sends ClamAV's names to the gateway, "
    "give the gateway a name server without that zone, or set upstream.address."
)
PROXY_USERS = (
    "upstream.proxy requires a user and a password (407)",
    "set upstream.proxy to http://user:password@host:port, percent-encoded; "
    "upstream.proxy_auth if the proxy wants NTLM or Kerberos.",
)
TOLERANCE = 300.0
"""How far two clocks may differ, in seconds."""
_CLOCK_REMEDY = "correct whichever clock is wrong, and let NTP keep it right (timedatectl set-ntp true)."
_LOOP = "loop: "
_WRONG_PLACE = "correct HTTPProxyServer and HTTPProxyPort: they must name clamproxy's host and port."
_NETWORKS = (
    "add this machine's network to serving.clients on the gateway; its log says why it closed the "
    "connection, for example that access.max_connections_per_client was reached, or that this machine is in "
    "access.proxy_protocol."
)
_USERS = "set HTTPProxyUsername and HTTPProxyPassword; for this check, use --user NAME."
_USERS_OF_MIRROR = "set DatabaseMirror http://USER:PASSWORD@gateway:8080, percent-encoded."
_WRONG_USER = (
    "correct the user or the password; `clamproxy hash-password NAME` prints a new line for access.users."
)


def connection(error: OSError | UnicodeError) -> str:
    """Why a connection could not be made."""
    if isinstance(error, TimeoutError):
        return "no answer: a firewall drops the packets, or the machine is off"
    if isinstance(error, UnicodeError):
        return "an invalid name"
    if error.errno == errno.ECONNREFUSED:
        return "refused: nothing listens on this port"
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "there is no route to this network"
    return error.strerror or str(error)


def no_answer(error: Exception, request: str) -> Verdict:
    """A connection was made, but brought no response."""
    match error:
        case Silent():
            busy = "its origin may be slow, or it has as many connections as access.max_connections allows"
            return problem(f"the gateway {error}: {request}", f"{busy}; {ON_GATEWAY}")
        case Closed():
            return problem(f"the gateway {error}: {request}", _NETWORKS)
        case Garbage():
            return problem(f"whatever listens there {error}, which an HTTP proxy never does", _WRONG_PLACE)
        case OSError():
            return problem(f"no connection for {request}: {connection(error)}", CONNECT_REMEDY)
    return problem(f"the gateway {error}: {request}", ON_GATEWAY)


def tunnel(error: Exception, proxy: Proxy, target: str) -> Verdict:
    """CONNECT did not lead to a tunnel."""
    if not isinstance(error, TunnelRefused):
        return no_answer(error, f"CONNECT {target}")
    answer = error.answer
    if answer.status == 407:
        return _unauthorised(answer, proxy)
    if answer.is_clamproxy:
        return _refused(answer, target)
    name = _name(answer)
    if answer.status in (400, 404, 405, 501):
        return problem(
            f"{name} answers CONNECT with {answer.status}: a web server, not a proxy", _WRONG_PLACE
        )
    if answer.status == 403:
        return problem(f"{name} forbids CONNECT {target} (403); clamproxy never does that", _WRONG_PLACE)
    text = f"{name} answers CONNECT {target} with {answer.status}: not clamproxy, or a broken one"
    return problem(text, _WRONG_PLACE)


def _unauthorised(answer: PeerResponse, proxy: Proxy) -> Verdict:
    challenge = answer["proxy-authenticate"] or answer["www-authenticate"]
    said = f"{answer.status} ({challenge})" if challenge else str(answer.status)
    if proxy.credentials is None:
        remedy = _USERS if answer.status == 407 else _USERS_OF_MIRROR
        return problem(f"the gateway requires a user and a password: {said}", remedy)
    user = proxy.credentials.partition(":")[0]
    return problem(f"the gateway doesn't accept user {user} with this password: {said}", _WRONG_USER)


def _refused(answer: PeerResponse, target: str) -> Verdict:
    reason = answer.reason or f"status {answer.status}"
    if answer.status == 503:
        return problem(f"the gateway refuses CONNECT {target} for now: {reason}", ON_GATEWAY)
    host = target.partition(":")[0]
    return problem(
        f"the gateway refuses CONNECT {target}: {reason}",
        f"add {host} to serving.hosts in proxy.yaml on the gateway.",
    )


def other_proxy(answer: PeerResponse) -> Verdict:
    """Something responds, but no clamproxy was involved."""
    return problem(
        f"this is not clamproxy: no Via or Cache-Status of clamproxy in the answer ({_name(answer)}, "
        f"status {answer.status})",
        f"{_WRONG_PLACE[:-1]}; or there may be another proxy in between.",
    )


def compare_clocks(theirs: float, ours: float, whose: str) -> Verdict:
    """Judge this machine's clock by another one.

    Args:
        theirs: Unix seconds.
        ours: Unix seconds.
        whose: owner of the other clock, for the text.
    """
    difference = ours - theirs
    if abs(difference) <= TOLERANCE:
        return ok(f"this machine's clock agrees with that of {whose}")
    direction = "ahead of" if difference > 0 else "behind"
    text = f"this machine's clock is {shown_span(abs(difference))} {direction} that of {whose}"
    return problem(f"{text}, so certificates and version records seem invalid", _CLOCK_REMEDY)


def is_loop(reason: str) -> bool:
    """Whether this reason, from a gateway or one further upstream, says that requests come back to it."""
    return _LOOP in reason


def is_refused_by_proxy(reason: str) -> bool:
    """Whether the reason is that the parent proxy demands authentication."""
    return re.search(r"\b407\b", reason) is not None


def status(answer: PeerResponse, path: str, proxy: Proxy) -> Verdict:
    """The gateway responds, but not with the file."""
    if not answer.is_clamproxy:
        return other_proxy(answer)
    reason = answer.reason or "no reason given"
    if is_loop(reason):
        return problem(f"requests run in a loop: {reason}", f"on the gateway, {LOOP_REMEDY}")
    if answer.status == 503:
        return problem(f"the gateway can't deliver {path}: {reason}{refusal_in_words(reason)}", ON_GATEWAY)
    if answer.status == 404:
        return problem(
            f"the gateway has no {path}: {reason}", "see serving.databases on the gateway, and its log."
        )
    if answer.status == 401:
        return _unauthorised(answer, proxy)
    return problem(f"the gateway answers {path} with {answer.status}: {reason}", ON_GATEWAY)


def refusal_in_words(reason: str) -> str:
    """What the CDN means by a status code, if the reason mentions one."""
    if "status 403" in reason:
        return (
            " - the CDN refuses this version of freshclam as too old, or this site's address; "
            "repeated requests make it worse"
        )
    if "status 429" in reason:
        return " - the CDN got too many requests for this file from this site's address, whoever sent them"
    return ""


def _name(answer: PeerResponse) -> str:
    """How the other side identifies itself."""
    named = [f"{name}: {answer[name]}" for name in ("via", "server", "x-squid-error") if answer[name]]
    return "another server" + (f" ({', '.join(named)})" if named else "")
