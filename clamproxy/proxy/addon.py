"""The mitmproxy addon: hooks that translate between mitmproxy and the gateway, no more."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from mitmproxy import connection, ctx, dns, http, tls
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy import layer, mode_specs, server_hooks
from mitmproxy.proxy.layers import DNSLayer, TCPLayer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from werkzeug.datastructures import Headers

from clamproxy.config.loading import ConfigurationError, find_config, load_settings
from clamproxy.formats.signatures import CLAMAV_KEYS, TrustedKeys
from clamproxy.messages import CACHE_STATUS, Body, Reply, Request, Result
from clamproxy.proxy import names, stream
from clamproxy.proxy.access_log import log_request
from clamproxy.proxy.options import set_defaults
from clamproxy.service import Service

logger = logging.getLogger(__name__)

LARGEST_REQUEST_BODY = 64 * 1024
"""Bytes of a request's content that are read before it is refused in words."""
EXCHANGE = "clamproxy_exchange"
"""The key of an `Exchange` in the metadata of a flow."""


@dataclass(slots=True)
class Exchange:
    """What is noted of a request until it is logged."""

    client: str
    started_at: float
    result: Result
    version: int | None = None
    passed: int = 0
    """Bytes of a streamed answer of a host that is passed through."""
    done: bool = False

    def count_passed(self, data: bytes) -> bytes:
        """Called by mitmproxy with each piece that it streams."""
        self.passed += len(data)
        return data


class ClamProxy:
    """Serves ClamAV hosts from the cache, forwards what is passed through, refuses the rest."""

    def __init__(self, keys: TrustedKeys = CLAMAV_KEYS) -> None:
        """Prepare.

        Args:
            keys: public keys that objects must be signed with. Tests and benchmarks give their
                own; there is no setting for it.
        """
        self._keys = keys
        self._service: Service | None = None
        self._names: names.Names | None = None

    # Life of the addon

    def load(self, loader: Loader) -> None:
        """Declare the option, and set mitmproxy's own as the job needs them."""
        loader.add_option("clamproxy_config", str, "", "Configuration file; default: ./proxy.yaml")
        set_defaults(ctx.options)

    def configure(self, updated: set[str]) -> None:
        """Read the configuration and open the cache. An error stops mitmproxy's start."""
        if self._service is not None or "clamproxy_config" not in updated:
            return
        try:
            stream.check_internals()
            path = find_config(ctx.options.clamproxy_config or None, Path.cwd())
            settings = load_settings(path, os.environ)
            self._service = Service(settings, self._keys)
            serving = settings.serving
            forwards = serving.other_names == "forward" and not settings.upstream.offline
            self._names = names.Names(settings.versions.domain, serving.databases, forwards)
        except (ConfigurationError, OSError, RuntimeError) as error:
            _stop_start(error)
        else:
            logger.info("Configuration: %s; cache: %s", path or "defaults", settings.cache.directory)

    def running(self) -> None:
        """All is set up."""
        if self._service is not None:
            self._service.start()

    def done(self) -> None:
        """The end: stop what runs, keep what has arrived."""
        if self._service is not None:
            self._service.stop()
            self._service = None

    # Who and where to

    def client_connected(self, client: connection.Client) -> None:
        """Close the connection of whoever may not use the proxy."""
        if self._service is None or not self._service.settings.serving.admits(client.peername[0]):
            logger.warning("%s is not in serving.clients: connection closed.", client.peername[0])
            client.error = "not in serving.clients"
        elif names.is_dns(client):
            names.guard(client)

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """Refuse tunnels to foreign hosts."""
        if flow.response is not None:
            return
        if self._service is None:
            flow.response = _failure()
        elif not self._is_welcome(flow) or not self._is_tunnel_port(flow):
            self._note(flow, Result.REFUSED)
            reason = f"no tunnel to {flow.request.host}:{flow.request.port}"
            self._set_response(flow, self._service.gateway.refuse(502, reason))
            self._account(flow, 0)

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """TLS of hosts that are passed through is not intercepted."""
        address, client = data.context.server.address, data.context.client
        if (
            address is not None
            and self._service is not None
            and self._passes_host_through(address[0], client)
        ):
            data.ignore_connection = True
            self._service.stats.count_request(Result.PASSED, 0)
            logger.info("%s CONNECT %s:%d passed", client.peername[0], *address[:2])

    def next_layer(self, next_layer: layer.NextLayer) -> None:
        """Choose as mitmproxy does, then have bodies sent from disk."""
        stream.choose_layer(next_layer)
        if next_layer.layer is not None and isinstance(next_layer.layer, TCPLayer | DNSLayer):
            # Nothing is ever tunnelled blindly: what is neither TLS nor HTTP gets a 400.
            next_layer.layer = HttpLayer(next_layer.context, HTTPMode.transparent)
        stream.install(next_layer.layer)

    def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        """The last guard: mitmproxy itself connects to hosts that are passed through, and to none else."""
        address = data.server.address
        if names.is_dns(data.client):
            if self._names is None or not self._names.allows(address):
                data.server.error = "serving.other_names is refuse"
        elif address is None or not self._passes_host_through(address[0], data.client):
            data.server.error = "not in serving.pass_through"

    # Names

    async def dns_request(self, flow: dns.DNSFlow) -> None:
        """Answer from the gateway, or leave it to mitmproxy to forward."""
        await names.respond(flow, self._names, self._service.announcer if self._service else None)

    def dns_response(self, flow: dns.DNSFlow) -> None:
        """An answer goes out."""
        names.withdraw(flow)

    # Requests

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Stream what is passed through; no request for ClamAV's files has a body."""
        if self._service is None or flow.response is not None:
            return
        if self._passes_through(flow):
            if self._service.gateway.is_loop(_headers(flow)):
                self._note(flow, Result.REFUSED)
                self._set_response(flow, self._service.gateway.refuse(502, "loop"))
                return
            self._note(flow, Result.PASSED)
            flow.request.headers.add("Via", self._service.gateway.via)
            flow.request.stream = True
        elif _body_length(flow.request) > LARGEST_REQUEST_BODY:
            # mitmproxy would read all of it into memory before the answer.
            self._note(flow, Result.REFUSED)
            flow.kill()  # type: ignore[no-untyped-call]
            stream.abort(flow.client_conn)

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answer from the gateway, or leave it to mitmproxy to forward."""
        # A response is there already if proxy authentication failed.
        if flow.response or flow.error or not flow.live:
            return
        try:
            await self._answer(flow)
        except Exception:
            # mitmproxy would log it and forward the request, wherever to.
            logger.exception("A request from %s failed.", flow.client_conn.peername[0])
            self._note(flow, Result.ERROR)
            flow.response = _failure()

    async def _answer(self, flow: http.HTTPFlow) -> None:
        if self._service is None:
            flow.response = _failure()
            return
        if self._passes_through(flow):
            return
        exchange = self._note(flow, Result.REFUSED)
        gateway = self._service.gateway
        if self._is_dns_txt(flow):
            reply = gateway.answer_dns_txt(await self._service.announcer.primary())
        elif self._is_welcome(flow):
            reply = await gateway.handle(Request(flow.request.method, flow.request.path, _headers(flow)))
        else:
            reply = gateway.refuse(502, f"{flow.request.host} is not in serving.hosts")
        exchange.result, exchange.version = reply.result, reply.version
        self._set_response(flow, reply)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Stream what is passed through."""
        exchange = _exchange_of(flow)
        if exchange is not None and exchange.result is Result.PASSED and flow.response is not None:
            flow.response.stream = exchange.count_passed
            flow.response.headers["Cache-Status"] = CACHE_STATUS[Result.PASSED]
            if self._service is not None:
                flow.response.headers.add("Via", self._service.gateway.via)

    def response(self, flow: http.HTTPFlow) -> None:
        """An answer goes out; one with a body from disk is accounted for at its end."""
        exchange = _exchange_of(flow)
        if stream.job_of(flow) is None and flow.response is not None and exchange is not None:
            self._account(flow, exchange.passed or len(flow.response.raw_content or b""))

    def error(self, flow: http.HTTPFlow) -> None:
        """The client left, or the body could not be sent to its end."""
        job, exchange = stream.job_of(flow), _exchange_of(flow)
        if job is not None:
            job.body.source.close()
        passed = exchange.passed if exchange is not None else 0
        self._account(flow, job.sent if job else passed, flow.error.msg if flow.error else "")

    async def send_body(self, job: stream.BodyJob) -> None:
        """Called by `stream.SendBodyHook`."""
        await stream.send_body(job)
        self._account_job(job)

    async def read_piece(self, job: stream.BodyJob) -> None:
        """Called by `stream.ReadPieceHook`."""
        await stream.read_piece(job)
        if job.error is None and job.sent + len(job.piece) == job.body.length:
            self._account_job(job)

    # Helpers

    def _account_job(self, job: stream.BodyJob) -> None:
        if job.stream is not None and job.error is None:
            self._account(job.stream.flow, job.body.length)

    def _note(self, flow: http.HTTPFlow, result: Result) -> Exchange:
        exchange = Exchange(flow.client_conn.peername[0], time.monotonic(), result)
        flow.metadata[EXCHANGE] = exchange
        return exchange

    def _account(self, flow: http.HTTPFlow, length: int, error: str = "") -> None:
        """Count and log a request, once."""
        exchange = _exchange_of(flow)
        if exchange is None or exchange.done or self._service is None:
            return
        exchange.done = True
        self._service.stats.count_request(exchange.result, length)
        log_request(
            client=exchange.client,
            request=flow.request,
            is_passed_through=exchange.result is Result.PASSED,
            version=exchange.version,
            result=exchange.result,
            status=flow.response.status_code if flow.response else 0,
            length=length,
            seconds=time.monotonic() - exchange.started_at,
            error=error,
        )

    def _set_response(self, flow: http.HTTPFlow, reply: Reply) -> None:
        is_head = flow.request.method == "HEAD"
        headers = http.Headers([(name.encode(), value.encode()) for name, value in reply.headers])
        if reply.status != 304 and "content-length" not in headers:
            headers["content-length"] = str(reply.length)
        content = b"" if isinstance(reply.body, Body) or is_head else reply.body
        flow.response = http.Response(
            http_version=b"HTTP/1.1",
            status_code=reply.status,
            reason=HTTPStatus(reply.status).phrase.encode(),
            headers=headers,
            content=content,
            trailers=None,
            timestamp_start=time.time(),
            timestamp_end=None,
        )
        if isinstance(reply.body, Body):
            flow.metadata[stream.JOB] = stream.BodyJob(reply.body)

    def _is_clamav(self, host: str, client: connection.Client) -> bool:
        """Whether requests to a host are answered as the CDN's."""
        is_reverse = isinstance(client.proxy_mode, mode_specs.ReverseMode)
        service = self._service
        return is_reverse or (service is not None and service.settings.serving.is_clamav_host(host))

    def _is_welcome(self, flow: http.HTTPFlow) -> bool:
        request, client = flow.request, flow.client_conn
        return _is_own_port(flow) or self._is_clamav(request.host, client) or self._passes_through(flow)

    def _is_dns_txt(self, flow: http.HTTPFlow) -> bool:
        """Whether the version record is asked for, of the gateway under its own name."""
        request = flow.request
        is_file = request.method in ("GET", "HEAD") and request.path.partition("?")[0] == "/dns.txt"
        return is_file and _is_own_port(flow) and not self._is_clamav(request.host, flow.client_conn)

    def _is_tunnel_port(self, flow: http.HTTPFlow) -> bool:
        return flow.request.port in (80, 443) or _is_own_port(flow) or self._passes_through(flow)

    def _passes_through(self, flow: http.HTTPFlow) -> bool:
        return not _is_own_port(flow) and self._passes_host_through(flow.request.host, flow.client_conn)

    def _passes_host_through(self, host: str, client: connection.Client) -> bool:
        if self._service is None or self._is_clamav(host, client):
            return False
        settings = self._service.settings
        return settings.serving.passes_through(host) and not settings.upstream.offline


def _exchange_of(flow: http.HTTPFlow) -> Exchange | None:
    exchange = flow.metadata.get(EXCHANGE)
    return exchange if isinstance(exchange, Exchange) else None


def _is_own_port(flow: http.HTTPFlow) -> bool:
    """Whether the gateway itself is meant: DatabaseMirror http://gateway:8080, without a proxy."""
    return bool(flow.request.port == flow.client_conn.sockname[1])


def _headers(flow: http.HTTPFlow) -> Headers:
    """The request's header fields as the gateway takes them."""
    return Headers([(_text(name), _text(value)) for name, value in flow.request.headers.fields])


def _text(raw: bytes) -> str:
    # A field may be folded over several lines: RFC 9112 5.2 has it read as spaces.
    return raw.decode("latin-1").replace("\r", " ").replace("\n", " ")


def _body_length(request: http.Request) -> int:
    """Bytes of content that a request announces; without end if it doesn't say."""
    if "transfer-encoding" in request.headers:
        return sys.maxsize
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else sys.maxsize


def _failure() -> http.Response:
    """The answer when nothing else can be answered; 503 makes freshclam try again."""
    headers = {"Cache-Status": CACHE_STATUS[Result.ERROR], "Via": "1.1 clamproxy", "Retry-After": "1"}
    return http.Response.make(503, b"clamproxy: the gateway has an error; see its log\n", headers)


def _stop_start(error: Exception) -> None:
    """Log the error: mitmproxy then ends the start."""
    where = "cache directory: " if isinstance(error, OSError) else ""
    logger.error("%s%s", where, error)
