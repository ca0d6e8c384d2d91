"""Asks other gateways for their status and machines. Blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3
from urllib3.util import Timeout

from clamproxy.config.servers import Peer
from clamproxy.fleet.machine import Machine
from clamproxy.origin.connections import ONCE, make_pool
from clamproxy.peers.answers import AnswerError, StatusAnswer, parse_machines, parse_status

CONNECT, READ = 5.0, 15.0
"""Seconds for the connection, and for each read."""
DEADLINE = 45.0
"""Seconds for everything that is asked of one gateway at a time."""
LARGEST_STATUS = 2**20
LARGEST_PAGE = 4 * 2**20
"""Bytes of an answer, at most: a machine is some 500 bytes of JSON."""
PER_PAGE = 1000
"""Machines per request: the JSON of more would hold up the event loop while it is parsed."""


class RefusedError(Exception):
    """The gateway answered with something other than what was asked for; the text is one line."""


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """What a gateway says about itself."""

    status: StatusAnswer
    machines: tuple[Machine, ...]


def ask(peer: Peer, ca_bundle: Path | None, most: int, now: float) -> PeerAnswer:
    """Ask a gateway for its status and its machines, directly: not through upstream.proxy.

    Args:
        ca_bundle: certificates to trust besides the system's.
        most: how many machines to take at most; those that need attention come first.
        now: Unix seconds.

    Raises:
        AnswerError: it answers with something that no gateway sends.
        RefusedError: it doesn't answer what was asked.
        OSError, HTTPError: it can't be reached, or its certificate is wrong.
    """
    pool = make_pool(None, ca_bundle, Timeout(connect=CONNECT, read=READ))
    try:
        status = parse_status(_get(pool, peer, "/status.json?machines=0", LARGEST_STATUS))
        machines: list[Machine] = []
        if status.fleet.enabled:
            for page in _pages(pool, peer, most, now):
                machines += page
    finally:
        pool.clear()
    return PeerAnswer(status, tuple(machines[:most]))


def _pages(pool: urllib3.PoolManager, peer: Peer, most: int, now: float) -> Iterator[tuple[Machine, ...]]:
    for offset in range(0, most, PER_PAGE):
        limit = min(PER_PAGE, most - offset)
        page = parse_machines(
            _get(pool, peer, f"/fleet.json?offset={offset}&limit={limit}", LARGEST_PAGE), now
        )
        if page.listed > limit:
            raise AnswerError("more machines than were asked for")
        yield page.machines
        if page.listed < limit:
            return


def _get(pool: urllib3.PoolManager, peer: Peer, path: str, most: int) -> bytes:
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "clamproxy"}
    if peer.token is not None:
        headers["Authorization"] = f"Bearer {peer.token.get_secret_value()}"
    response = pool.request(
        "GET",
        peer.url + path,
        headers=headers,
        retries=ONCE,
        redirect=False,
        preload_content=False,
        decode_content=False,
    )
    try:
        body = _read(response, most)
        if response.status != 200:
            raise RefusedError(f"it answers {response.status}{_reason(response.status, body, peer)}")
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return body


def _read(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    body = bytearray()
    while piece := response.read(65536):
        body += piece
        if len(body) > most:
            raise AnswerError(f"its answer is larger than {most // 2**20} MiB")
    return bytes(body)


def _reason(status: int, body: bytes, peer: Peer) -> str:
    """What a gateway writes about a refusal."""
    if status == 401:
        return ": its status.token is required in fleet.peers"
    line = (body[:300].decode("utf-8", "replace").splitlines() or [""])[0]
    if peer.token is not None and peer.token.get_secret_value() in line:
        return ""  # whatever answers there is no gateway
    return f": {json.dumps(line, ensure_ascii=False)[1:-1]}" if line.isprintable() and line else ""
