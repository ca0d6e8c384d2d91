"""Lines in a freshclam.conf that keep a machine from the gateway, although freshclam can read them.

Each rule describes how freshclam 1.4.6 was seen to behave. What it can't even read, it reports itself.
"""

from __future__ import annotations

from pathlib import Path

from clamproxy.doctor.findings import Verdict, problem, warning
from clamproxy.doctor.freshclam import FreshclamConf
from clamproxy.doctor.route import Route, is_official, url_parts

CLIENT_CONFIG = "`clamproxy client-config` on the gateway prints the right lines."
MOST_CHECKS = 50
"""freshclam accepts from 1 to this many checks a day."""
_LONGEST_NUMBER = 9
"""Digits that are looked at."""


def judge(path: Path, conf: FreshclamConf, route: Route | None, mode: int) -> Verdict | None:
    """The worst mistake; None if there is none.

    Args:
        path: the configuration, for the commands in the remedy.
        conf: its contents.
        route: where requests go with this configuration.
        mode: the permission bits of the file.
    """
    verdicts = [
        _line_ends(path, conf),
        _password(path, conf, mode),
        _user(conf),
        _checks(conf),
        _private(conf),
        _scheme(conf),
        _brackets(conf),
        _nowhere(route),
        _twice(conf),
        _past_the_gateway(conf, route),
    ]
    return next((verdict for verdict in verdicts if verdict is not None), None)


def _line_ends(path: Path, conf: FreshclamConf) -> Verdict | None:
    if not any(value.endswith("\r") for values in conf.options.values() for value in values):
        return None
    return problem(
        f"the lines of {path} end in CR LF, as on Windows: freshclam takes the CR for part of the value",
        f"as root: sed -i 's/\\r$//' {path}",
    )


def _password(path: Path, conf: FreshclamConf, mode: int) -> Verdict | None:
    if conf.first("HTTPProxyPassword") is None or not mode & 0o077:
        return None
    return problem(
        f"{path} holds HTTPProxyPassword and has mode {mode & 0o777:04o}: freshclam doesn't start "
        "unless only its owner can read it",
        f"as root: chmod 600 {path}",
    )


def _user(conf: FreshclamConf) -> Verdict | None:
    needs = conf.first("HTTPProxyServer") and conf.first("HTTPProxyUsername")
    if not needs or conf.first("HTTPProxyPassword") is not None:
        return None
    return problem(
        "HTTPProxyUsername is there without HTTPProxyPassword: freshclam doesn't start",
        "add HTTPProxyPassword, or remove HTTPProxyUsername.",
    )


def _checks(conf: FreshclamConf) -> Verdict | None:
    checks = conf.first("Checks") or "12"
    if not checks.isdecimal() or 1 <= int(checks[:_LONGEST_NUMBER]) <= MOST_CHECKS:
        return None
    return problem(
        f"Checks {checks}: the daemon doesn't start with this number",
        f"set a number from 1 to {MOST_CHECKS}; 24 is once an hour.",
    )


def _private(conf: FreshclamConf) -> Verdict | None:
    names = [mirror for mirror in conf.all("PrivateMirror") if ".clamav.net" in mirror]
    if not names:
        return None
    return problem(
        f"PrivateMirror {names[0]}: freshclam doesn't start with one of ClamAV's names there", CLIENT_CONFIG
    )


def _scheme(conf: FreshclamConf) -> Verdict | None:
    server = (conf.first("HTTPProxyServer") or "").removeprefix("http://")
    if "://" not in server:
        return None
    return problem(
        f"HTTPProxyServer {server}: clamproxy is an HTTP proxy, and speaks neither TLS nor SOCKS on its port",
        "write only the host: HTTPProxyServer gateway.example.net",
    )


def _brackets(conf: FreshclamConf) -> Verdict | None:
    server = conf.first("HTTPProxyServer") or ""
    if server.count(":") < 2 or "[" in server or "://" in server:
        return None
    return problem(
        f"HTTPProxyServer {server}: libcurl needs brackets around an IPv6 address",
        f"write HTTPProxyServer [{server}]",
    )


def _nowhere(route: Route | None) -> Verdict | None:
    if route is not None:
        return None
    return problem("freshclam asks ClamAV's servers, not the gateway", CLIENT_CONFIG)


def _twice(conf: FreshclamConf) -> Verdict | None:
    for option in ("HTTPProxyServer", "HTTPProxyPort", "HTTPProxyUsername", "HTTPProxyPassword"):
        values = conf.all(option)
        if len(set(values)) > 1:
            shown = "" if "Pass" in option else f", {values[0]}"
            return warning(
                f"{option} is there {len(values)} times: freshclam uses the first{shown}",
                f"remove the others. {CLIENT_CONFIG}",
            )
    return None


def _past_the_gateway(conf: FreshclamConf, route: Route | None) -> Verdict | None:
    # freshclam tries the other server when the gateway fails, and that one can put it on a cool-down.
    if route is None or not route.is_mirror:
        return None
    hosts = {mirror: url.hostname or "" for mirror in conf.mirrors if (url := url_parts(mirror))}
    others = [mirror for mirror, host in hosts.items() if is_official(host)]
    if not others:
        return None
    return warning(
        f"when the gateway fails, freshclam asks {others[0]} itself",
        "make the gateway the only DatabaseMirror: it serves what it has while the CDN fails.",
    )
