"""The worst that somebody can tell the gateway without a proof, and that it ends.

The tables in docs/behaviour.md, "What is believed, and for how long", say what each row here shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.faults import Fault
from tests.support.gateway import Way, receive, send
from tests.support.scenes import PROBE
from tests.support.site import Site, build_time, eventually, http_date, signed

from .conftest import MakeSite

OLD, NEW = 5, 6
WHOLE: dict[str, Any] = {"delta": {"enabled": False}, "serving": {"prefetch": "none"}}
"""Heads alone answer header probes: nothing is proven by patches."""
FOR_EVER = 2**31 - 1
LONGEST = 100.0
"""Seconds: a CVD that wasn't there is asked for again after a minute."""
MUCH_LATER = "Fri, 31 Dec 9999 23:59:59 GMT"
LONG_AGO = "Thu, 01 Jan 1970 00:00:00 GMT"


def header(**changes: object) -> bytes:
    """The header of a test CVD with other fields: version, md5, stime."""
    fields = newest()[:512].decode().rstrip(" ").split(":")
    for name, position in (("version", 2), ("md5", 5), ("stime", 8)):
        fields[position] = str(changes.get(name, fields[position]))
    return ":".join(fields).encode().ljust(512)


type Tell = Callable[[Site], None]


def probe_says(**changes: object) -> Tell:
    """The header probe gets a header with other fields; the whole file is right."""
    return lambda site: site.origin.rule("P", Fault(body=header(**changes) + newest()[512:]))


def answers(path: str, **fault: Any) -> Tell:
    """Requests of a kind are answered so; see `Fault`."""
    return lambda site: site.origin.rule(path, Fault(**fault))


def beginning(**fault: Any) -> Tell:
    """The header probe is answered with the right 512 bytes, and a lie about the rest."""
    return lambda site: site.origin.rule("P", Fault(body=newest()[:512], **fault))


def length(path: str, difference: int, **fault: Any) -> Tell:
    """A Content-Length that is wrong by so many bytes."""
    return lambda site: site.origin.rule(path, Fault(short_length=len(newest()) + difference, **fault))


def dns_says(version: int) -> Tell:
    def lie(site: Site) -> None:
        site.dns.versions["test"] = version

    return lie


def newest() -> bytes:
    return signed(f"test-{NEW}.cvd")


@dataclass(frozen=True, slots=True)
class Lie:
    """What is said, and by whom."""

    name: str
    tell: Tell
    held: int | None = None
    """The version that is cached then."""


LIES = [
    # The header probe
    Lie("the header alone, with 200", beginning(status=200)),
    Lie("it is the whole file", beginning(status=206, headers={"Content-Range": "bytes 0-511/512"})),
    Lie("a length that is too short", length("P", -5, ignore_range=True)),
    Lie("a total that is too long", answers("P", headers={"Content-Range": "bytes 0-511/99999999"})),
    Lie("a total that is no number", answers("P", headers={"Content-Range": "bytes 0-511/x"})),
    Lie("version in a thousand years", probe_says(version=FOR_EVER)),
    Lie("version in a thousand years, with an older one cached", probe_says(version=FOR_EVER), OLD),
    Lie("the next version", probe_says(version=NEW + 1), OLD),
    Lie("a version from long ago", probe_says(version=1)),
    Lie("built in 1970", probe_says(stime=1)),
    Lie("built in 2038", probe_says(stime=FOR_EVER)),
    Lie("another digest", probe_says(md5="0" * 32)),
    # The fields of its answers
    Lie("modified in 9999", answers("*", modified=MUCH_LATER)),
    Lie("modified in 1970", answers("*", modified=LONG_AGO), OLD),
    Lie("modified on no day", answers("*", modified="yesterday")),
    Lie("one ETag for all", answers("*", headers={"ETag": '"same"'}), OLD),
    Lie("an ETag that is none", answers("*", headers={"ETag": "\xff\xfe"})),
    Lie("older than the universe", answers("*", headers={"Age": "9" * 30, "Date": LONG_AGO})),
    # The whole file
    Lie("a file that ends too soon", length("W", -5)),
    Lie("a file that never ends", length("W", 5)),
    Lie("a length of a terabyte", length("W", 2**40)),
    Lie("an older file", lambda site: site.origin.rule("W", Fault(body=signed("test-3.cvd"))), OLD),
    Lie("a header without a file", answers("W", status=404)),
    Lie("a header without a newer file", answers("W", status=404), OLD),
    # Refusals
    Lie("no such file", answers("*", status=404), OLD),
    Lie("busy since 1970", answers("*", status=503, headers={"Retry-After": LONG_AGO}), OLD),
    # DNS
    Lie("DNS: a version in a thousand years", dns_says(FOR_EVER), OLD),
    Lie("DNS: the next version", dns_says(NEW + 1), OLD),
    Lie("DNS: a version from long ago", dns_says(1), OLD),
    Lie("DNS: no version", dns_says(-1), OLD),
]


def ask_all(site: Site) -> None:
    """What clients ask; none of the answers is wrong, and complete."""
    right = {signed(f"test-{version}.cvd") for version in (OLD, NEW)}
    everybody: list[dict[str, str]] = [
        {},
        {"If-Modified-Since": http_date(build_time(OLD))},
        {"If-None-Match": '"test-6.cvd"'},
        {"Range": PROBE},
        {"Range": PROBE, "If-Modified-Since": http_date(build_time(OLD))},
        {"Range": "bytes=0-2000"},
    ]
    for fields in everybody:
        answer = site.gateway.ask("/test.cvd", extra=fields)
        assert answer.status in (200, 206, 304, 404, 503), (fields, answer)
        if answer.status == 304:
            same = NEW if "If-None-Match" in fields else OLD
            assert answer.headers["etag"] == f'"test-{same}.cvd"', (fields, answer)
        if answer.status == 200 and answer.complete:
            assert answer.body in right, (fields, answer)
        if answer.status == 206 and answer.complete and fields["Range"] != PROBE:
            assert any(answer.body == body[:2001] for body in right), (fields, answer)


def has_asked_dns(site: Site) -> bool:
    """Whether the gateway has heard what DNS says now."""
    version = site.dns.versions["test"]
    heard = f"DNS advertises test version {version}." if version > 0 else "No advertised versions"
    return heard in site.gateway.log


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.name)
def test_a_lie_is_no_answer_and_ends(make_site: MakeSite, lie: Lie) -> None:
    site = make_site(**WHOLE)
    if lie.held:
        site.publish(lie.held)
        assert site.gateway.ask("/test.cvd").body == signed(f"test-{lie.held}.cvd")
    site.publish(NEW)
    lie.tell(site)
    assert eventually(lambda: site.gateway.ask("/test.cvd").status and has_asked_dns(site)), site.gateway.log
    ask_all(site)
    site.client("new").run()
    ask_all(site)
    # From now on the truth is told, and everybody gets it.
    site.origin.heal()
    site.publish(NEW)
    old = site.client("old", local=OLD)
    assert eventually(lambda: old.run().version == NEW, every=1, limit=LONGEST), site.gateway.log
    assert eventually(lambda: site.gateway.ask("/test.cvd").body == newest(), limit=LONGEST), site.gateway.log
    outcome = site.client("late").run()
    assert (outcome.code, outcome.version) == (0, NEW), outcome.output
    assert "Traceback" not in site.gateway.log


@pytest.mark.parametrize("way", Way)
def test_a_head_without_the_file_tells_no_length(make_site: MakeSite, way: Way) -> None:
    """Nobody knows it for sure, and nothing whole is fetched for it. The connection goes on."""
    site = make_site(**WHOLE)
    site.publish(NEW)
    with site.gateway.connection(way) as connection:
        for _ in range(2):
            send(connection, "/test.cvd", way, method="HEAD", connection="keep-alive")
            answer = receive(connection)
            assert (answer.status, answer.body) == (200, b"")
            assert not {"content-length", "transfer-encoding", "etag"} & set(answer.headers)
    assert site.origin.trace == "P"
    assert site.gateway.ask("/test.cvd").body == newest()
    answer = site.gateway.ask("/test.cvd", way, method="HEAD")
    assert answer.headers["content-length"] == str(len(newest()))
