"""nginx as a caching reverse proxy: the obvious choice for sites that can change their machines' mirror."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from benchmarks.contenders.contender import Server
from benchmarks.contenders.process import answers, find_program, program, running
from benchmarks.load.asking import HOST, Entry, Form
from benchmarks.mirror import Mirror
from tests.support.gateway import free_ports

_CONFIG = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {work}/nginx.pid;
error_log {work}/error.log;
{user}
events {{ worker_connections 16384; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush off;
    keepalive_requests 10000000;
    client_body_temp_path {work}/body;
    proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi;
    scgi_temp_path {work}/scgi;
    proxy_cache_path {work}/cache keys_zone=cache:10m max_size=4g inactive=1d use_temp_path=off;
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        listen 127.0.0.1:{tls} ssl backlog=4096;
        ssl_certificate {work}/cert.pem;
        ssl_certificate_key {work}/cert.pem;
        ssl_protocols TLSv1.3;
        location / {{
            proxy_pass {origin};
            proxy_http_version 1.1;
            proxy_set_header Host {host};
            proxy_set_header Connection "";
            proxy_cache cache;
            proxy_cache_key $uri;
            proxy_cache_valid 200 {valid};
            proxy_cache_revalidate on;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 10m;
            proxy_cache_lock_age 10m;
            proxy_ignore_client_abort on;
        }}
    }}
}}
"""


class Nginx:
    """One worker, sendfile, no access log; TLS 1.3 with an EC P-256 certificate."""

    name = "nginx"

    def missing(self) -> str:
        return "" if find_program("nginx") else "not installed (Debian: nginx-light)"

    def version(self) -> str:
        shown = subprocess.run([program("nginx"), "-v"], capture_output=True, text=True, check=True)
        number = shown.stderr.strip().removeprefix("nginx version: ")
        return f"{number}: caching reverse proxy, 1 worker, sendfile, certificate EC P-256; GET, no CONNECT"

    @contextmanager
    def start(self, mirror: Mirror, work: Path, *, always_fresh: bool = False) -> Iterator[Server]:
        authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        authority.cert_pem.write_to_path(work / "ca.pem")
        certificate = authority.issue_cert(HOST, key_type=trustme.KeyType.ECDSA)
        certificate.private_key_and_cert_chain_pem.write_to_path(work / "cert.pem")
        plain, tls = free_ports(2)
        user = "user root;" if os.geteuid() == 0 else ""
        config = _CONFIG.format(
            work=work,
            user=user,
            plain=plain,
            tls=tls,
            origin=mirror.url,
            host=HOST,
            valid="1s" if always_fresh else "1h",
        )
        (work / "nginx.conf").write_text(config)
        command = [program("nginx"), "-p", str(work), "-c", str(work / "nginx.conf")]
        with running(command, work, lambda: answers(plain, "/ready")) as process:
            way = Entry(plain, Form.ORIGIN)
            yield Server(self.name, process, way, way, Entry(tls, Form.ORIGIN, str(work / "ca.pem")))
