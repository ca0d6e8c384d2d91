"""Varnish as a caching reverse proxy, with its cache in memory; it speaks no TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contenders.contender import Server
from benchmarks.contenders.process import answers, find_program, program, running
from benchmarks.load.asking import HOST, Entry, Form
from benchmarks.load.generator import processors
from benchmarks.mirror import Mirror
from tests.support.gateway import free_ports

_CONFIG = """\
vcl 4.1;

backend default {{
    .host = "127.0.0.1";
    .port = "{origin}";
    .host_header = "{host}";
}}

sub vcl_backend_response {{
    set beresp.ttl = {ttl};
    set beresp.grace = 0s;
    set beresp.keep = 7d;
}}
"""


class Varnish:
    """A cache of 1 GiB in memory, all processors."""

    name = "Varnish"

    def missing(self) -> str:
        return "" if find_program("varnishd") else "not installed (Debian: varnish)"

    def version(self) -> str:
        shown = subprocess.run([program("varnishd"), "-V"], capture_output=True, text=True, check=True)
        number = (shown.stderr + shown.stdout).split("(", 1)[1].split(" ", 1)[0]
        return f"{number}: caching reverse proxy, cache in memory; GET, no CONNECT, no TLS"

    @contextmanager
    def start(self, mirror: Mirror, work: Path, *, always_fresh: bool = False) -> Iterator[Server]:
        (port,) = free_ports(1)
        ttl = "1s" if always_fresh else "1h"
        (work / "default.vcl").write_text(_CONFIG.format(origin=mirror.port, host=HOST, ttl=ttl))
        command = [
            *(program("varnishd"), "-F", "-j", "none", "-n", str(work), "-f", str(work / "default.vcl")),
            *("-a", f"127.0.0.1:{port}", "-T", "none", "-s", "malloc,1g", "-p", "listen_depth=4096"),
        ]
        with running(command, work, lambda: answers(port, "/ready")) as process:
            way = Entry(port, Form.ORIGIN)
            yield Server(self.name, process, way, way, cores=processors())
