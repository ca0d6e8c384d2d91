"""Real load balancers in front of real gateways, and freshclam behind them."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clamproxy.config.settings import AccessSection
from tests.support.contrib import CONTRIB
from tests.support.freshclam import OK
from tests.support.gateway import Way, free_ports
from tests.support.programs import give_up, require_program
from tests.support.raw_http import exchange, parse_answers
from tests.support.servers import running
from tests.support.site import LOCALHOST, Site, eventually, open_site, signed

ANNOUNCING, FORWARDING = "127.0.0.2", "127.0.0.3"
"""From where balancers connect to the gateway; machines connect to the balancers from another address."""
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

HAPROXY = """
defaults
    timeout connect 20s
    timeout client 60s
    timeout server 60s
    timeout check 20s
listen balancer
    mode {mode}
    bind {address}:{port}
    option httpchk GET /readyz
    {options}
    server gateway {address}:{target} source {source} check inter 500ms {server}
"""
NGINX = """
load_module {module};
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{}}
stream {{
    server {{
        listen {address}:{port};
        proxy_pass {address}:{target};
        proxy_bind {source};
        proxy_protocol on;
    }}
}}
"""
NGINX_HTTP = """
daemon off;
master_process off;
pid {directory}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/1; proxy_temp_path {directory}/2; fastcgi_temp_path {directory}/3;
    uwsgi_temp_path {directory}/4; scgi_temp_path {directory}/5;
    upstream gateway {{ server {address}:{target}; keepalive 1; }}
    server {{
        listen {address}:{port};
        location / {{
            proxy_pass http://gateway;
            proxy_bind {source};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway with version 6 in its cache."""
    site = open_site(
        tmp_path_factory.mktemp("behind"),
        access={"proxy_protocol": [ANNOUNCING], "forwarded_for": [FORWARDING]},
    )
    site.warm(6)
    yield site
    site.close()


@contextlib.contextmanager
def haproxy(text: str, port: int, directory: Path) -> Iterator[None]:
    config = directory / "haproxy.cfg"
    config.write_text(text)
    with running([require_program("haproxy"), "-db", "-f", str(config)], port, directory / "haproxy.log"):
        yield


@contextlib.contextmanager
def nginx(text: str, port: int, directory: Path) -> Iterator[None]:
    config = directory / "nginx.conf"
    config.write_text(text)
    program = require_program("nginx")
    command = [program, "-p", str(directory), "-c", str(config), "-e", str(directory / "errors")]
    with running(command, port, directory / "nginx.log"):
        yield


BALANCERS = {
    "haproxy, version 1": ("tcp", "", "send-proxy check-send-proxy"),
    "haproxy, version 2": ("tcp", "", "send-proxy-v2"),
    "haproxy, version 2 with TLVs": (
        "tcp",
        "",
        "send-proxy-v2 proxy-v2-options unique-id,crc32c,authority,ssl,cert-cn",
    ),
    "haproxy, HTTP": ("http", "option forwardfor", ""),
    "nginx, version 1": None,
    "nginx, HTTP": None,
}


@contextlib.contextmanager
def balancing(kind: str, site: Site, directory: Path) -> Iterator[int]:
    """A balancer in front of a gateway; yields its port."""
    (port,) = free_ports(1)
    is_http = kind.endswith("HTTP")
    values = {
        "address": LOCALHOST,
        "port": port,
        "target": site.gateway.port,
        "source": FORWARDING if is_http else ANNOUNCING,
        "directory": directory,
    }
    if (options := BALANCERS[kind]) is not None:
        mode, more, server = options
        with haproxy(HAPROXY.format(mode=mode, options=more, server=server, **values), port, directory):
            yield port
    elif is_http:
        with nginx(NGINX_HTTP.format(**values), port, directory):
            yield port
    else:
        if not STREAM_MODULE.exists():
            give_up("libnginx-mod-stream is not installed")
        with nginx(NGINX.format(module=STREAM_MODULE, **values), port, directory):
            yield port


@pytest.mark.parametrize("kind", BALANCERS)
def test_freshclam(site: Site, tmp_path: Path, kind: str) -> None:
    """In each way that the balancer lets through; the gateway sees the machine, and the checks succeed."""
    with balancing(kind, site, tmp_path) as port:
        place = (LOCALHOST, port)
        ways: dict[Way, dict[str, Any]] = {Way.REVERSE: {"mirrors": [f"http://{LOCALHOST}:{port}"]}}
        if not kind.startswith("nginx, HTTP"):
            ways[Way.ABSOLUTE] = {"environment": {"http_proxy": f"http://{LOCALHOST}:{port}"}}
            ways[Way.CONNECT_HTTP] = ways[Way.CONNECT_HTTPS] = {"proxy": place}
        for way, options in ways.items():
            before = len(site.gateway.log)
            client = site.client(str(tmp_path / way), way, local=5, **options)
            outcome = client.run()
            assert (outcome.code, outcome.version) == (OK, 6), outcome.output + site.gateway.log
            seen = site.gateway.log[before:]
            assert f" {LOCALHOST} GET /test-6.cdiff " in seen, (way, seen)
            assert f" {ANNOUNCING} GET /test" not in seen
            assert f" {FORWARDING} GET /test" not in seen
        if kind.startswith("haproxy"):
            assert eventually(
                lambda: re.search(r" 127\.0\.0\.[23] (GET|OPTIONS) /readyz - status 200", site.gateway.log)
            )
    assert "Closed a connection from" not in site.gateway.log
    assert "Traceback" not in site.gateway.log


@pytest.mark.parametrize("kind", ["haproxy, HTTP", "nginx, HTTP"])
def test_clients_cannot_choose_their_address(site: Site, tmp_path: Path, kind: str) -> None:
    with balancing(kind, site, tmp_path) as port:
        fields = "Host: x\r\nX-Forwarded-For: 192.0.2.66\r\nConnection: close"
        request = f"GET /test-6.cdiff HTTP/1.1\r\n{fields}\r\n\r\n"
        (answer,) = parse_answers(exchange(port, request.encode(), source=f"127.0.1.{len(kind)}"))
        assert answer.body == signed("test-6.cdiff")
        assert eventually(lambda: f" 127.0.1.{len(kind)} GET /test-6.cdiff " in site.gateway.log)
    assert "192.0.2.66" not in site.gateway.log


# The example in contrib/


EXAMPLE = CONTRIB / "haproxy" / "haproxy.cfg"


def test_example_is_valid() -> None:
    """As haproxy sees it, warnings included."""
    command = [require_program("haproxy"), "-c", "-V", "-f", str(EXAMPLE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Configuration file is valid" in result.stdout
    assert "[WARNING]" not in result.stdout + result.stderr


def test_example_fits_the_defaults() -> None:
    """A gateway decides when a connection has been idle too long, and has room for checks when it is full."""
    text, access = EXAMPLE.read_text(), AccessSection()
    ends = [int(minutes) * 60 for minutes in re.findall(r"timeout (?:client|server) (\d+)m\n", text)]
    assert len(ends) == 2
    assert min(ends) > access.idle_timeout
    (most,) = re.findall(r"default-server .* maxconn (\d+)", text)
    assert int(most) < access.max_connections


def example_for(port: int, gateways: list[Site]) -> str:
    """The example for a test: other addresses, and without what needs root and a log daemon."""
    text = re.sub(r"(?m)^    (log|chroot|user|group) .*\n", "", EXAMPLE.read_text())
    changes = {"bind :8080": f"bind {LOCALHOST}:{port}"}
    for number, site in enumerate(gateways, 1):
        changes[f"192.0.2.1{number}:8080"] = f"{LOCALHOST}:{site.gateway.port} source {ANNOUNCING}"
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(("way", "is_killed"), [(Way.CONNECT_HTTP, False), (Way.CONNECT_HTTPS, True)])
def test_failover(tmp_path: Path, way: Way, is_killed: bool) -> None:
    """A machine goes on at once when its gateway is gone, and keeps its gateway otherwise."""
    with contextlib.ExitStack() as stack:
        sites = []
        for name in ("one", "two"):
            sites.append(open_site(tmp_path / name, access={"proxy_protocol": [ANNOUNCING]}))
            stack.callback(sites[-1].close)
            sites[-1].warm(6)
        (port,) = free_ports(1)
        stack.enter_context(haproxy(example_for(port, sites), port, tmp_path))
        trust = tmp_path / "trust.pem"
        trust.write_text("".join(site.gateway.ca.read_text() for site in sites))
        client = sites[0].client(
            str(tmp_path / "client"),
            way,
            proxy=(LOCALHOST, port),
            local=5,
            environment={"CURL_CA_BUNDLE": str(trust)},
        )
        warm = {site.directory: len(site.gateway.log) for site in sites}

        def answered(path: str) -> list[Site]:
            return [site for site in sites if f" GET {path} " in site.gateway.log[warm[site.directory] :]]

        outcome = client.run()
        assert (outcome.code, outcome.version) == (OK, 6), outcome.output
        (first,) = answered("/test-6.cdiff")
        (second,) = (site for site in sites if site is not first)
        assert answered("/test.cvd") == [first]
        if is_killed:
            first.gateway.kill()
        else:
            first.gateway.stop()
        client.databases.joinpath("test.cld").unlink()
        outcome = client.run()  # before haproxy can have noticed
        assert (outcome.code, outcome.version) == (OK, 6), outcome.output
        assert second in answered("/test.cvd")
        assert "Trying again" not in outcome.output
    assert "Closed a connection" not in first.gateway.log + second.gateway.log
