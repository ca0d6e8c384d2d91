"""The gateway's own pages: from a request to a response, without knowledge of mitmproxy or sockets."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from werkzeug.datastructures import Headers
from werkzeug.http import parse_etags

from clamproxy.config.settings import Settings
from clamproxy.config.units import normal_host
from clamproxy.messages import Request, Response, Result
from clamproxy.objects import plain_path
from clamproxy.peers.merging import ALL, counts_of, gateway_of, merged
from clamproxy.peers.site_gateways import compose as compose_report
from clamproxy.responses import plain
from clamproxy.setup.client_forms import Form, client_form
from clamproxy.setup.freshclam_lines import Mode
from clamproxy.sharing.reports import packed
from clamproxy.threads import in_thread
from clamproxy.web.health import prepare_check
from clamproxy.web.machines import Query, fleet_csv, fleet_json
from clamproxy.web.metrics import exposition
from clamproxy.web.shared import Shared
from clamproxy.web.sources import Place, Sources
from clamproxy.web.status import GatewayStatus, take_status

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"
_STATIC = {"/": _INDEX} | {
    f"/{file.name}": file.name
    for file in sorted(_FOLDER.glob("*"))
    if file.suffix in _TYPES and file.name != _INDEX
}
"""The static files, by URL path."""
GUARDED = frozenset({*_STATIC, "/status.json", "/fleet.json", "/fleet.csv", "/metrics"})
"""Pages that need the token, if one is set, because they tell about machines."""
PATHS = GUARDED | {"/livez", "/readyz", "/ca.pem", "/client-config", "/dns.txt"}
"""All paths that are served."""

_METHODS = "GET, HEAD, OPTIONS"
"""OPTIONS is allowed because haproxy's health checks use it by default."""
_PLAIN = "text/plain; charset=utf-8"
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?")
HTTP_PORT = 80
"""The port that a Host field without one means."""


class Pages:
    """Serves `PATHS`. Use it on the event loop only; it reads the cache in threads."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._gateway_status = Shared("clamproxy-status", lambda: take_status(sources))
        self._health = Shared("clamproxy-health", lambda: prepare_check(sources))
        self._one_at_a_time = asyncio.Lock()
        self._pages: dict[str, Callable[[Request, Place], Awaitable[Response]]] = {
            "/status.json": self._status,
            "/fleet.json": self._fleet,
            "/fleet.csv": self._fleet_csv,
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/ca.pem": self._ca,
            "/client-config": self._client_config,
            "/dns.txt": self._dns_txt,
        }

    async def handle(self, request: Request, *, peer: str, place: Place | None = None) -> Response:
        """Respond to a request, whatever happens, and never with 403 or 429.

        Args:
            request: its path is in origin form.
            peer: the client's address, for the log.
            place: where the client reached the proxy; None if that isn't known, or if the request didn't
                come through the proxy.
        """
        try:
            response = await self._dispatch(request, peer, place or Place(None, None))
        except Exception:
            logger.exception("%s %s failed.", request.method, request.path.partition("?")[0])
            response = _plain(503, "no figures are available now; see the gateway's log")
            response.headers["Retry-After"] = "5"
        response.headers.extend(_SECURITY)
        return response

    async def figures(self) -> Mapping[str, Any]:
        """The values of status.json."""
        return (await self._gateway_status.get()).values

    async def report(self) -> bytes | None:
        """This gateway's report for the others of its site, if it fits. Takes some 100 ms, in a thread."""
        status = await self._gateway_status.get()
        lines = compose_report(status.values, status.machines)
        return await in_thread("clamproxy-report", lambda: packed(lines))

    async def _dispatch(self, request: Request, peer: str, place: Place) -> Response:
        path = plain_path(request.path)
        if request.method == "OPTIONS" and is_page(request.path):
            return Response(204, Result.STATUS, Headers({"Allow": _METHODS}))
        if path not in PATHS:
            return _plain(404, "no such page")
        if request.method not in ("GET", "HEAD"):
            response = _plain(405, "only GET and HEAD are supported")
            response.headers["Allow"] = _METHODS
            return response
        if path in GUARDED and not self._is_admitted(request.headers):
            if "Authorization" in request.headers:
                logger.warning("%s asked for %s with a wrong token.", peer, path)
            response = _plain(401, "status.token is required, as the password with any user name")
            response.headers["WWW-Authenticate"] = 'Basic realm="clamproxy", charset="UTF-8"'
            return response
        if path in GUARDED and not self._is_meant(request.headers):
            return _plain(421, "not served under this name; use an IP address, or add the name to tls.names")
        if path in _STATIC:
            return _file(request, _STATIC[path])
        return await self._pages[path](request, place)

    def _is_admitted(self, headers: Headers) -> bool:
        token = self._sources.settings().status.token
        if token is None:
            return True
        shown = _shown_secret(headers.get("Authorization", ""))
        return hmac.compare_digest(shown, token.get_secret_value().encode())

    def _is_meant(self, headers: Headers) -> bool:
        """Whether the name by which a browser knows the gateway is really the gateway's.

        A page on the internet whose name resolves to a private address (DNS rebinding) must not read
        these pages. It can have neither the token nor a name without a dot.
        """
        settings, field = self._sources.settings(), headers.get("Host")
        if settings.status.token is not None or field is None:  # browsers always send Host
            return True
        host = host_of(field)
        if host is None:
            return False
        return "." not in host or is_address(host) or is_local_name(host) or host in own_names(settings)

    # Pages

    async def _status(self, request: Request, place: Place) -> Response:
        """The status; with ``machines=0`` without the list of machines, which is long."""
        asked = parse_qs(request.path.partition("?")[2]).get("machines")
        if asked not in (None, ["0"]):
            return _plain(400, "machines can only be 0, which leaves the list of machines out")
        gateway_status = await self._gateway_status.get()
        return _live(gateway_status.json if asked is None else gateway_status.brief, "application/json")

    async def _fleet(self, request: Request, place: Place) -> Response:
        """All machines, or those that the query selects, from the same status as status.json."""
        text = request.path.partition("?")[2]
        if asked := parse_qs(text).get("machine"):
            return await self._machine(asked[-1].lower())
        return await self._selected(text, _as_json, "application/json")

    async def _fleet_csv(self, request: Request, place: Place) -> Response:
        """The same machines for a spreadsheet."""
        text = request.path.partition("?")[2]
        response = await self._selected(text, _as_csv, "text/csv; charset=utf-8; header=present")
        if response.status == 200:
            response.headers["Content-Disposition"] = 'attachment; filename="fleet.csv"'
        return response

    async def _selected(
        self, text: str, compose: Callable[[GatewayStatus, Query], bytes], content_type: str
    ) -> Response:
        """The machines that the text of a query selects."""
        try:
            query = Query.parse(text)
        except ValueError as error:
            return _plain(400, str(error))
        gateway_status = await self._gateway_status.get()
        peers = [peer.name for peer in gateway_status.peers]
        if query.gateway not in (None, ALL, *peers):
            return _plain(400, f"gateway is one of {', '.join([ALL, *peers])}")
        async with self._one_at_a_time:  # many searches at once must not use up the processor
            body = await in_thread("clamproxy-fleet", lambda: compose(gateway_status, query))
        return _live(body, content_type)

    async def _machine(self, uuid: str) -> Response:
        """One machine with its story."""
        async with self._one_at_a_time:
            found = await in_thread("clamproxy-fleet", lambda: self._sources.biography(uuid))
        if found is None:
            return _plain(404, "there is no machine with this UUID")
        return _live(json.dumps({"now": time.time(), **found.to_json()}).encode(), "application/json")

    async def _metrics(self, request: Request, place: Place) -> Response:
        gateway_status = await self._gateway_status.get()
        body, content_type = exposition(gateway_status.values, request.headers.get("Accept", ""))
        response = _live(body, content_type)
        response.headers["Vary"] = "Accept"
        return response

    async def _livez(self, request: Request, place: Place) -> Response:
        return _live(b"ok\n", _PLAIN)

    async def _readyz(self, request: Request, place: Place) -> Response:
        health = await self._health.get()
        reasons = health.reasons
        lines = reasons or ("ok", *health.warnings)
        response = _live("\n".join(lines).encode() + b"\n", _PLAIN)
        if reasons:
            response.status = 503
            response.headers["Retry-After"] = "5"
        return response

    async def _ca(self, request: Request, place: Place) -> Response:
        bundle = await in_thread("clamproxy-ca", self._sources.authority)
        if bundle is None:
            return _plain(404, "there is no certificate authority: `clamproxy ca init` makes one")
        response = _live(bundle, "application/x-pem-file")
        response.headers["Content-Disposition"] = 'attachment; filename="clamproxy-ca.pem"'
        return response

    async def _client_config(self, request: Request, place: Place) -> Response:
        """The lines for freshclam.conf; with ``for``, in the form of what puts them there."""
        query = parse_qs(request.path.partition("?")[2])
        modes, forms = query.get("mode", [Mode.HTTP.value]), query.get("for", [])
        if len(modes) != 1 or modes[0] not in list(Mode):
            return _plain(400, f"mode is one of {', '.join(Mode)}")
        if len(forms) > 1 or not set(forms) <= set(Form):
            return _plain(400, f"for is one of {', '.join(Form)}")
        asked = self._asked_place(request.headers.get("Host", ""), place)
        form = Form(forms[0]) if forms else None
        try:
            text = await in_thread(
                "clamproxy-client-config", lambda: self._lines_for(Mode(modes[0]), form, asked)
            )
        except ValueError as error:
            return _plain(400, str(error))
        return _live(text.encode(), _PLAIN)

    def _lines_for(self, mode: Mode, form: Form | None, asked: Place) -> str:
        """Blocks. Raises a ValueError if there can't be any; the text says what was expected."""
        compose = self._sources.client_config
        if compose is None:
            raise ValueError("a gateway that is set up")
        lines = compose(mode, asked)
        if form is None:
            return lines
        certificates = self._sources.authority() if mode is Mode.HTTPS else b""
        if certificates is None:
            raise ValueError("another mode, until `clamproxy ca init` has made a certificate authority")
        return client_form(form, lines, certificates.decode())

    async def _dns_txt(self, request: Request, place: Place) -> Response:
        """The version record as a file, in the form that cvdupdate writes."""
        record = await self._sources.record(request.address)
        if record is None:
            return _plain(503, "no version is known")
        response = _live(f"{record}\n".encode("ascii"), _PLAIN)
        response.headers["Cache-Control"] = "no-cache"
        return response

    def _asked_place(self, field: str, place: Place) -> Place:
        """Where the client reached the gateway, if others can reach it there too.

        Its port can differ from the proxy's own: that of a container, a service or a load balancer.
        """
        host = host_of(field)
        if host is None or host == self._sources.settings().status.host or is_local_name(host):
            return place
        return Place(host, _port_of(field) if place.port is not None else None)


def _as_json(status: GatewayStatus, query: Query) -> bytes:
    """The machines that a query selects, as JSON. Blocks."""
    now, counts = status.values["gateway"]["now"], dict(status.values["fleet"])
    del counts["machines"]
    if query.gateway is None:
        return fleet_json(status.machines, counts, query, now)
    machines = merged(status.machines, status.peers, query.gateway)
    return fleet_json(machines, counts_of(machines, counts["behind_for"], now), query, now)


def _as_csv(status: GatewayStatus, query: Query) -> bytes:
    """The same as CSV. Blocks."""
    now, behind_for = status.values["gateway"]["now"], status.values["fleet"]["behind_for"]
    if query.gateway is None:
        return fleet_csv(status.machines, query, behind_for, now)
    machines = merged(status.machines, status.peers, query.gateway)
    return fleet_csv(machines, query, behind_for, now, gateway_of)


def is_page(target: str) -> bool:
    """Whether a request's target is one of these pages, or ``*``, the gateway as a whole (RFC 9112 3.2.4)."""
    return target == "*" or plain_path(target) in PATHS


def own_names(settings: Settings) -> set[str]:
    """The gateway's own names, however they resolve: `status.host`, `tls.names` and its host name."""
    names = {*settings.tls.names, normal_host(socket.gethostname())}
    return names | {settings.status.host} if settings.status.host is not None else names


def host_of(field: str) -> str | None:
    """The host in a Host field, without the port and with brackets around IPv6; None if it is malformed."""
    match = _HOST.fullmatch(field)
    return normal_host(match["host"]) if match else None


def _port_of(field: str) -> int:
    match = _HOST.fullmatch(field)
    return int(match["port"]) if match and match["port"] else HTTP_PORT


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def is_local_name(host: str) -> bool:
    """Whether a host name or address always means this very machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _shown_secret(field: str) -> bytes:
    """The bearer token, or the password of any user (RFC 6750 2.1, RFC 7617 2)."""
    scheme, _, value = field.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (ValueError, binascii.Error):
            return b""
    return b""


def _file(request: Request, name: str) -> Response:
    content_type = _TYPES[Path(name).suffix]
    try:
        body = (_FOLDER / name).read_bytes()
    except FileNotFoundError:
        return _plain(404, f"{name} was not installed")
    etag = hashlib.sha256(body).hexdigest()[:16]
    headers = Headers({"ETag": f'"{etag}"', "Cache-Control": "no-cache", "Content-Type": content_type})
    if parse_etags(request.headers.get("If-None-Match")).contains_weak(etag):
        del headers["Content-Type"]
        return Response(304, Result.STATUS, headers)
    return Response(200, Result.STATUS, headers, body)


def _live(body: bytes, content_type: str) -> Response:
    headers = Headers({"Content-Type": content_type, "Cache-Control": "no-store"})
    return Response(200, Result.STATUS, headers, body)


def _plain(status: int, reason: str) -> Response:
    return plain(status, Result.STATUS, reason)
