"""squid as a caching forward proxy, with two ports that open TLS (ssl-bump) in different ways.

One opens TLS at once, with a certificate for the name in CONNECT. The other follows squid's
documentation: it connects to the mirror first, to mimic its certificate.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from benchmarks.contenders.contender import Server
from benchmarks.contenders.process import ServerError, answers, find_program, program, running
from benchmarks.load.asking import HOST, Entry, Form
from benchmarks.mirror import Mirror
from tests.support.gateway import free_ports

_CERTIFICATES = Path("/usr/lib/squid/security_file_certgen")
_USER = "proxy"
"""Debian's squid runs as this user when root starts it."""

# The default of the extras includes the client's name, for which squid would ask DNS.
_CONFIG = r"""
http_port 127.0.0.1:{plain}
http_port 127.0.0.1:{tls} ssl-bump generate-host-certificates=on tls-cert={work}/ca-and-key.pem
http_port 127.0.0.1:{mimicking} name=mimicking ssl-bump generate-host-certificates=on \
    tls-cert={work}/ca-and-key.pem
sslcrtd_program {certificates} -s {work}/certificates -M 4MB
sslcrtd_children 2
acl asked_with_tls port 443
acl first_step at_step SslBump1
acl mimicking myportname mimicking
ssl_bump peek mimicking first_step
ssl_bump bump all
cache_peer 127.0.0.1 parent {origin} 0 originserver no-query no-digest name=plain
cache_peer_access plain deny asked_with_tls
cache_peer_access plain allow all
hosts_file {work}/hosts
tls_outgoing_options flags=DONT_VERIFY_PEER
always_direct allow asked_with_tls
never_direct allow all
dns_nameservers 127.0.0.1
url_rewrite_extras "%>a"
store_id_extras "%>a"
http_access allow all
{user}
visible_hostname localhost
pid_filename {work}/squid.pid
coredump_dir {work}
cache_log {work}/cache.log
access_log none
cache_store_log none
netdb_filename none
pinger_enable off
client_db off
max_filedescriptors 20000
shutdown_lifetime 0 seconds
cache_mem 1 GB
maximum_object_size 512 MB
maximum_object_size_in_memory 128 MB
read_ahead_gap 128 MB
range_offset_limit none
quick_abort_min -1 KB
collapsed_forwarding on
refresh_pattern . {minutes} 100% {minutes} override-lastmod
"""


class Squid:
    """Caches in memory, collapses requests and finishes what a client began: the best that was measured."""

    name = "squid"

    def missing(self) -> str:
        if not find_program("squid"):
            return "not installed (Debian: squid-openssl)"
        return "" if _CERTIFICATES.exists() else "has no ssl-bump (Debian: squid-openssl instead of squid)"

    def version(self) -> str:
        shown = subprocess.run([program("squid"), "-v"], capture_output=True, text=True, check=True)
        number = shown.stdout.splitlines()[0].removeprefix("Squid Cache: Version ")
        how = "cache in memory; absolute-form, as it caches nothing inside CONNECT:80; TLS by ssl-bump"
        return f"squid/{number}: {how}"

    @contextmanager
    def start(self, mirror: Mirror, work: Path, *, always_fresh: bool = False) -> Iterator[Server]:
        authority = trustme.CA(key_type=trustme.KeyType.RSA)  # as squid's wiki makes it
        authority.cert_pem.write_to_path(work / "ca.pem")
        key = authority.private_key_pem.bytes()
        (work / "ca-and-key.pem").write_bytes(authority.cert_pem.bytes() + key)
        make = [str(_CERTIFICATES), "-c", "-s", str(work / "certificates"), "-M", "4MB"]
        made = subprocess.run(make, capture_output=True, text=True, check=False)
        if made.returncode:
            raise ServerError(f"{make[0]} failed: {made.stderr}")
        user = ""
        if os.geteuid() == 0:
            user = f"cache_effective_user {_USER}"
            _give_away(work)
        (work / "hosts").write_text(f"{mirror.tls_address or '127.0.0.1'} {HOST}\n")
        plain, tls, mimicking = free_ports(3)
        config = _CONFIG.format(
            work=work,
            plain=plain,
            tls=tls,
            mimicking=mimicking,
            certificates=_CERTIFICATES,
            origin=mirror.port,
            user=user,
            minutes=0 if always_fresh else 60,
        )
        (work / "squid.conf").write_text(config)
        command = [program("squid"), "-N", "-f", str(work / "squid.conf")]
        ready = f"http://{HOST}/ready"
        with running(command, work, lambda: answers(plain, ready) and answers(tls, ready)) as process:
            way = Entry(plain, Form.ABSOLUTE)
            secure, mimic = (Entry(port, Form.TUNNEL, str(work / "ca.pem")) for port in (tls, mimicking))
            # squid fetches https URLs from port 443, where not every user may let the mirror listen.
            if mirror.tls_address:
                yield Server(self.name, process, way, way, secure, mimic)
            else:
                yield Server(self.name, process, way, way)


def _give_away(work: Path) -> None:
    """Make squid's user the owner of the directory and of everything in it."""
    user = pwd.getpwnam(_USER)
    for path in (work, *work.rglob("*")):
        shutil.chown(path, user.pw_uid, user.pw_gid)
