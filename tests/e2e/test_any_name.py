"""Whoever asks one of the gateway's ports gets the gateway, by any name and through any port mapping."""

from __future__ import annotations

import csv
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clamproxy.access.users import user_line
from tests.support.freshclam import OK
from tests.support.gateway import CDN, Way, connectable, free_ports
from tests.support.programs import require_program
from tests.support.raw import Relay
from tests.support.raw_http import RawAnswer, exchange, parse_answers
from tests.support.servers import running
from tests.support.site import LOCALHOST, Site, eventually, open_site, signed

from .conftest import MakeSite

OPEN = ("/livez", "/readyz", "/ca.pem", "/client-config", "/dns.txt")
SHOWS_MACHINES = ("/", "/status.json", "/metrics", "/app.js")
STRANGERS = ("gateway.example.net:3128", "evil.example.com", CDN, "example.com:443")
"""Names with a dot, which could be anybody's on the internet."""
NAMES = (None, "", "x", "gw:3128", "localhost", "localhost:80", "127.0.0.1:3128", "[::1]", *STRANGERS)


@dataclass(frozen=True)
class Doors:
    """The ports of a gateway."""

    site: Site
    proxy: int
    reverse: int
    pages: int

    def __iter__(self) -> Iterator[int]:
        return iter((self.proxy, self.reverse, self.pages))


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A gateway with all its kinds of ports, and version 6 in its cache."""
    (pages,) = free_ports(1)
    site = open_site(tmp_path_factory.mktemp("doors"), status={"listen": f"{LOCALHOST}:{pages}"})
    site.warm(6)
    assert eventually(lambda: connectable(pages))
    yield Doors(site, site.gateway.port, site.gateway.reverse_port, pages)
    site.close()


def ask(port: int, path: str, host: str | None, *, method: str = "GET") -> RawAnswer:
    """In origin form; HTTP/1.0 where there is no Host."""
    fields = "" if host is None else f"Host: {host}\r\n"
    version = "1.0" if host is None else "1.1"
    request = f"{method} {path} HTTP/{version}\r\n{fields}Connection: close\r\n\r\n"
    (answer,) = parse_answers(exchange(port, request.encode()))
    return answer


@pytest.mark.parametrize("host", NAMES)
def test_what_names_nobody_is_there_under_any_name(doors: Doors, host: str | None) -> None:
    for port in doors:
        for path in OPEN:
            assert ask(port, path, host).status == 200, (port, path)
    for port in (doors.proxy, doors.reverse):
        for path in ("/test.cvd", "//test.cvd", "/test-6.cdiff", "///test-6.cdiff"):
            answer = ask(port, path, host)
            assert (answer.status, answer.body) == (200, signed(path.strip("/").replace("test.", "test-6.")))
        assert ask(port, "/other", host).status == 404


@pytest.mark.parametrize("host", NAMES)
def test_dns_rebinding(doors: Doors, host: str | None) -> None:
    """What shows machines stays where no page on the internet can read it, on all ports alike."""
    expected = 421 if host in ("", *STRANGERS) else 200
    for port in doors:
        for path in (*SHOWS_MACHINES, "//status.json"):
            assert ask(port, path, host).status == expected, (port, path)


@pytest.mark.parametrize("is_listed", [False, True])
def test_names_of_its_own(make_site: MakeSite, is_listed: bool) -> None:
    """Through the gateway as a proxy, too: there a name has to be known, and the port may be a mapped one.

    That it is in `serving.hosts` takes nothing away.
    """
    own = "gateway.example.net"
    site = make_site(
        serving={"hosts": [own]} if is_listed else {}, environment={"CLAMPROXY_TLS__NAMES": f"[{own}]"}
    )
    site.publish(6)
    assert ask(site.gateway.port, "/status.json", "gateway.example.net:3128").status == 200
    for way in (Way.ABSOLUTE, Way.CONNECT_HTTP):
        for port in (80, 3128, site.gateway.port):
            assert site.gateway.ask("/readyz", way, host=f"{own}:{port}").status == 200
            assert site.gateway.ask("/test.cvd", way, host=f"{own}:{port}").body == signed("test-6.cvd")
    assert site.gateway.ask("/readyz", Way.ABSOLUTE, host="gateway.example.org:3128").status == 502


@pytest.mark.parametrize("path", ["/", "//", "/status.json", "//status.json"])
def test_slashes_go_round_no_guard(make_site: MakeSite, path: str) -> None:
    site = make_site(access={"users": [user_line("me", "secret")]})
    for port in (site.gateway.port, site.gateway.reverse_port):
        assert ask(port, path, "x").status == 401
        assert ask(port, "//livez", "x").status == 200


def test_the_lines_name_the_place_that_was_asked(doors: Doors) -> None:
    body = ask(doors.proxy, "/client-config", "gw.example.net:3128").body.decode()
    assert "HTTPProxyServer gw.example.net\nHTTPProxyPort 3128\n" in body
    body = ask(doors.proxy, "/client-config?mode=mirror", "gw").body.decode()
    assert "DatabaseMirror http://gw:80\n" in body
    # The other ports are none of the proxy's.
    for port in (doors.reverse, doors.pages):
        body = ask(port, "/client-config", f"gw.example.net:{port}").body.decode()
        assert f"HTTPProxyServer gw.example.net\nHTTPProxyPort {doors.proxy}\n" in body


def test_a_loop_is_known_under_any_name(doors: Doors) -> None:
    via = ask(doors.proxy, "/test.cvd", "x").headers["via"]
    request = f"GET /test.cvd HTTP/1.1\r\nHost: y\r\nVia: {via}\r\nConnection: close\r\n\r\n"
    for port in (doors.proxy, doors.reverse):
        assert parse_answers(exchange(port, request.encode()))[0].status == 502


# Real clients


@pytest.mark.parametrize("private", [False, True], ids=["DatabaseMirror", "PrivateMirror"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_freshclam_through_a_mapped_port(
    doors: Doors, tmp_path: Path, private: bool, name: str, slash: str
) -> None:
    with Relay(doors.proxy) as relay:
        url = f"http://{name}:{relay.port}{slash}"
        client = doors.site.client(str(tmp_path), Way.REVERSE, mirrors=[url], private=private)
        outcome = client.run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 6}), outcome.output


@pytest.mark.parametrize("way", [Way.CONNECT_HTTP, Way.CONNECT_HTTPS, Way.ABSOLUTE])
@pytest.mark.parametrize("local", [None, 5])
def test_a_mirror_that_ends_in_a_slash(doors: Doors, tmp_path: Path, way: Way, local: int | None) -> None:
    scheme = "https" if way is Way.CONNECT_HTTPS else "http"
    client = doors.site.client(str(tmp_path), way, mirrors=[f"{scheme}://{CDN}/"], local=local)
    outcome = client.run()
    assert (outcome.code, outcome.version) == (OK, 6), outcome.output


CHECKS = {
    "plain": "option httpchk",
    "get": "option httpchk GET /readyz",
    "named": r"option httpchk GET /readyz HTTP/1.1\r\nHost:\ x",
    "send": "option httpchk\n    http-check send meth GET uri /livez ver HTTP/1.1 hdr Host gw.example.net",
}
"""How haproxy asks whether a server is well: HTTP/1.0 without Host, unless it is told otherwise."""


def haproxy_config(doors: Doors, mapped: int, directory: Path) -> str:
    servers = "\n".join(
        f"    server {name} {LOCALHOST}:{port} check inter 500ms"
        for name, port in zip(("proxy", "reverse", "pages"), doors, strict=True)
    )
    checked = "\n".join(
        f"backend {name}\n    mode http\n    {check}\n{servers}" for name, check in CHECKS.items()
    )
    return f"""
global
    stats socket {directory}/socket
defaults
    timeout connect 20s
    timeout client 60s
    timeout server 60s
    timeout check 20s
listen mapped
    mode tcp
    bind {LOCALHOST}:{mapped}
    server gateway {LOCALHOST}:{doors.proxy}
{checked}
"""


def checks_of(control: Path) -> dict[tuple[str, str], str]:
    """What haproxy has found of each server, by backend and server; nothing while it begins to listen."""
    if not control.exists():
        return {}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(control))
        connection.sendall(b"show stat\n")
        with connection.makefile() as reader:
            rows = list(csv.DictReader(reader.read().removeprefix("# ").splitlines()))
    return {
        (row["pxname"], row["svname"]): row["check_status"].removeprefix("* ")  # the next one is under way
        for row in rows
        if row["pxname"] in CHECKS and row["svname"] != "BACKEND"
    }


def test_haproxy(doors: Doors, tmp_path: Path) -> None:
    """All checks of all ports succeed, and clients get through a mapped port."""
    (mapped,) = free_ports(1)
    config = tmp_path / "haproxy.cfg"
    config.write_text(haproxy_config(doors, mapped, tmp_path))
    with running([require_program("haproxy"), "-db", "-f", str(config)], mapped, tmp_path / "log"):
        found = eventually(
            lambda: {} if {"INI", ""} & {*(seen := checks_of(tmp_path / "socket")).values()} else seen
        )
        assert found == {(name, port): "L7OK" for name in CHECKS for port in ("proxy", "reverse", "pages")}
        url = f"http://localhost:{mapped}"
        mirror = doors.site.client(str(tmp_path / "mirror"), Way.REVERSE, mirrors=[f"{url}/"]).run()
        proxy = doors.site.client(str(tmp_path / "proxy"), proxy=(LOCALHOST, mapped), local=5).run()
        assert (mirror.version, proxy.version) == (6, 6), mirror.output + proxy.output
        assert ask(mapped, "/", f"localhost:{mapped}").status == 200


NGINX = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/1; proxy_temp_path {directory}/2; fastcgi_temp_path {directory}/3;
    uwsgi_temp_path {directory}/4; scgi_temp_path {directory}/5;
    server {{
        listen {address}:{mapped};
        location / {{ proxy_pass http://{address}:{target}; proxy_set_header Host {host}; }}
    }}
}}
"""


@pytest.mark.parametrize("host", ["$host", "$http_host", "$proxy_host"])
def test_nginx(doors: Doors, tmp_path: Path, host: str) -> None:
    """In front of the gateway, with each way to name it; it speaks HTTP/1.0, and $host has no port."""
    program = require_program("nginx")
    (mapped,) = free_ports(1)
    config = tmp_path / "nginx.conf"
    config.write_text(
        NGINX.format(directory=tmp_path, address=LOCALHOST, mapped=mapped, target=doors.proxy, host=host)
    )
    command = [program, "-p", str(tmp_path), "-c", str(config), "-e", str(tmp_path / "errors")]
    with running(command, mapped, tmp_path / "log"):
        for path in ("/", "/readyz", "/ca.pem"):
            assert ask(mapped, path, f"localhost:{mapped}").status == 200
        lines = ask(mapped, "/client-config?mode=mirror", f"gw.example.net:{mapped}").body.decode()
        assert ("http://gw.example.net:" in lines) == (host != "$proxy_host"), lines
        assert (f":{mapped}" in lines) == (host == "$http_host"), lines
        client = doors.site.client(str(tmp_path / "c"), Way.REVERSE, mirrors=[f"http://localhost:{mapped}/"])
        outcome = client.run()
        assert (outcome.code, outcome.version) == (OK, 6), outcome.output
