"""Clients in HTTP mode (``--no-dns``) behind the proxy, while the CDN does what docs/protocol.md 9.2 lists.

Each row names the outcome that a good proxy makes of it: no error page, no damaged body, no 403
and no 429 gets through, and the client ends as well as the files that the CDN has allow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from tests.support import faults
from tests.support.freshclam import FAILED, NOT_CONNECTED, OK, Outcome
from tests.support.gateway import Way
from tests.support.site import (
    Break,
    Site,
    answers,
    build_time,
    corrupts,
    eventually,
    http_date,
    lacks,
    signed,
    swaps,
)

DOWN = frozenset({NOT_CONNECTED, FAILED})
"""Exit codes that only make a client try again later."""


@dataclass(frozen=True, slots=True)
class Row:
    """One situation: the CDN has version 6 and all cdiffs, but for what is `broken`."""

    name: str
    local: int | None
    broken: Break | None
    ends_with: set[int | None]
    """Versions that a client may have afterwards."""
    codes: frozenset[int] = frozenset({OK})
    at_most: dict[str, int] = field(default_factory=dict)
    """How often the CDN may be asked for something."""


CDIFFS = [
    Row("B1", 5, None, {6}, at_most={"P": 1, "D6": 1, "W": 1}),
    Row("B2", 2, None, {6}, at_most={"P": 1, "D3": 1, "D4": 1, "D5": 1, "D6": 1, "W": 1}),
    Row("B3", 5, lacks("test-6.cdiff"), {5}, at_most={"D6": 1}),
    Row("B4", 3, lacks("test-6.cdiff"), {5}, at_most={"D6": 1}),
    Row("B5", 3, lacks("test-4.cdiff"), {6}, at_most={"D4": 1, "W": 1}),
    Row("B6", 3, lacks("test-5.cdiff"), {4}, at_most={"D5": 1}),
    Row("B7", 5, answers("D6", faults.empty()), {6}, at_most={"D6": 1, "W": 1}),
    Row("B8", 3, corrupts("D5", "test-5.cdiff"), {4}),
    Row("B9", 5, answers("D6", faults.short(500)), {6}),
    Row("B10", 5, answers("D6", faults.short_without_length(500)), {5}),
    Row("B11", 5, answers("D6", faults.chunked(500)), {5, 6}),
    Row("B11_whole", 5, answers("D6", faults.chunked()), {6}),
    Row("B12", 5, answers("D6", faults.html()), {5}),
    Row("B13b", 5, swaps("D6", "test-5.cdiff"), {5}),
    Row("B14_403", 5, answers("D6", faults.status(403)), {5}, at_most={"D6": 1}),
    Row("B14_429", 5, answers("D6", faults.status(429)), {5}, at_most={"D6": 1}),
    Row("B15_403", 3, answers("D4", faults.status(403)), {3, 6}, DOWN | {OK}, at_most={"D4": 1}),
    Row("B15_429", 3, answers("D4", faults.status(429)), {6}, at_most={"D4": 1}),
    Row("B15_503", 3, answers("D4", faults.status(503)), {6}),
    Row("B15_522", 3, answers("D4", faults.status(522)), {6}),
    Row("B16", 3, answers("D5", faults.status(429)), {4}, at_most={"D5": 1}),
    Row("B17", 5, answers("D6", faults.gzipped()), {5, 6}),
    Row("B18", 5, answers("D6", faults.Fault(force_status=206)), {5, 6}),
    Row("B19", 5, answers("D6", faults.status(304, b"")), {5}),
]

PROBES = [
    *(
        Row(f"C1_{code}", None, answers("P", faults.status(code)), {None}, DOWN)
        for code in (403, 404, 416, 429, 503)
    ),
    Row("C3", None, answers("P", faults.Fault(ignore_range=True)), {6}),
    Row("C4", None, answers("P", faults.html()), {None}, DOWN),
    Row("C5", None, answers("P", faults.replaced(b"ClamAV-VDB:" + b"x" * 289)), {None}, DOWN),
    Row("C23", None, answers("P", faults.status(304, b"")), {None}, DOWN),
]

WHOLE_FILES = [
    *(
        Row(f"C2_{code}", None, answers("W", faults.status(code)), {None}, DOWN)
        for code in (403, 404, 416, 429, 503, 522)
    ),
    Row("C2_429_seconds", None, answers("W", faults.status(429, retry_after="7")), {None}, DOWN),
    Row(
        "C2_429_date",
        None,
        answers("W", faults.status(429, retry_after="Fri, 31 Dec 2100 23:59:59 GMT")),
        {None},
        DOWN,
    ),
    Row("C6", None, answers("W", faults.html()), {None}, DOWN),
    Row("C7", None, answers("W", faults.short(5000)), {6}),
    Row("C8", None, answers("W", faults.short_without_length(5000)), {None}, DOWN),
    Row("C9", None, answers("W", faults.Fault(short_length=5000)), {None}, DOWN),
    Row("C10", None, answers("W", faults.empty()), {None}, DOWN),
    Row("C11", None, corrupts("W", "test-6.cvd"), {None}, DOWN, at_most={"W": 2}),
    Row("C13", None, answers("W", faults.Fault(force_status=206)), {None, 6}, DOWN | {OK}),
    Row("C14", None, answers("W", faults.gzipped()), {None, 6}, DOWN | {OK}),
    Row("C15", None, answers("W", faults.chunked()), {6}),
    Row("C15_cut", None, answers("W", faults.chunked(5000)), {None, 6}, DOWN | {OK}),
    Row("C16", None, answers("W", faults.redirect("/moved/test.cvd")), {None, 6}, DOWN | {OK}),
    Row("C17", None, answers("W", faults.redirect("/test.cvd")), {None}, DOWN),
    Row("C28", None, answers("W", faults.stall(5000), times=1), {6}),
    Row("C28_silent", None, answers("W", faults.silent(), times=1), {None, 6}, DOWN | {OK}),
    Row(
        "C30",
        None,
        lambda origin: origin.rule("W", faults.replaced(signed("test-6.cvd")[:512])),
        {None},
        DOWN,
    ),
]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in CDIFFS + PROBES + WHOLE_FILES])
def test_row(site: Site, row: Row) -> None:
    site.publish(6)
    if row.broken is not None:
        row.broken(site.origin)
    # A second attempt of the whole update costs five seconds; most rows end with the first.
    outcome = site.client(local=row.local, attempts=1 if row.codes & DOWN else 2).run()
    assert_harmless(outcome)
    assert (outcome.code in row.codes, outcome.version in row.ends_with) == (True, True), explain(
        site, outcome
    )
    for request, limit in row.at_most.items():
        assert site.origin.count(request) <= limit, explain(site, outcome)
    site.assert_nothing_bad_is_stored(*([b""] if row.name == "B7" else []))


def assert_harmless(outcome: Outcome) -> None:
    """No refusal reached the client: it may ask again at once."""
    assert not outcome.cooling, outcome.output
    assert not re.search(r"code:? 4(03|29)|[Ff]orbidden|cool-?down", outcome.output), outcome.output


def explain(site: Site, outcome: Outcome) -> str:
    return f"{outcome}\nat the CDN: {site.origin.trace}\n{outcome.output}\n{site.gateway.log}"


def test_up_to_date_client_moves_nothing(site: Site) -> None:
    """B1b, A2: the second run of a client that updated costs the CDN nothing."""
    site.publish(6)
    client = site.client(local=5)
    client.run()
    site.origin.forget()
    outcome = client.run()
    assert "up-to-date" in outcome.output, outcome.output
    assert site.origin.count("W") == site.origin.count("D6") == 0


def test_empty_cdiff_is_data(site: Site) -> None:
    """B7: the vendor's sign to take the whole CVD is fetched once and given to all."""
    site.publish(6)
    site.origin.put("test-6.cdiff", b"")
    outcomes = [site.client(f"client-{number}", local=5).run() for number in range(2)]
    assert [outcome.databases for outcome in outcomes] == [{"test.cvd": 6}] * 2
    assert (site.origin.count("D6"), site.origin.count("W")) == (1, 1)
    answer = site.gateway.ask("/test-6.cdiff", range="bytes=0-511")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "0", b"")


def test_one_good_retry_heals_a_corrupt_download(site: Site) -> None:
    """C12."""
    site.publish(6)
    corrupts("W", "test-6.cvd", times=1)(site.origin)
    client = site.client(attempts=1)
    outcome = client.run()
    assert_harmless(outcome)
    assert (outcome.code in DOWN, outcome.version) == (True, None), explain(site, outcome)
    assert eventually(lambda: client.run().version == 6), site.gateway.log
    assert site.origin.count("W") == 2
    site.assert_nothing_bad_is_stored()


def test_one_failed_probe_is_healed_by_the_next_attempt(site: Site) -> None:
    """C25."""
    site.publish(6)
    site.origin.rule("P", faults.status(503), times=1)
    outcome = site.client(attempts=2).run()
    assert (outcome.code, outcome.version) == (OK, 6), explain(site, outcome)


@pytest.mark.parametrize(
    ("body", "dated", "least"),
    [
        pytest.param(5, True, 4, id="C19"),
        pytest.param(3, True, 4, id="C19b"),
        pytest.param(3, False, 4, id="C19c"),
    ],
)
def test_a_client_never_goes_backwards(site: Site, body: int, dated: bool, least: int) -> None:
    """The probe says 6, but an edge of the CDN still gives an older CVD."""
    site.publish(6)
    site.origin.remove("test-5.cdiff")
    site.origin.rule("W", faults.Fault(body=signed(f"test-{body}.cvd"), modified="keep" if dated else None))
    outcome = site.client(local=4, attempts=1).run()
    assert_harmless(outcome)
    assert (outcome.version or 0) >= least, explain(site, outcome)


@pytest.mark.parametrize("scripted", [True, False], ids=["C20", "C21"])
def test_304_of_the_origin_is_not_relayed(site: Site, scripted: bool) -> None:
    site.publish(6)
    site.origin.remove("test-5.cdiff")
    site.origin.rule("W", faults.status(304, b""))
    outcome = site.client(local=4, attempts=1, scripted=scripted).run()
    assert outcome.version == 4
    assert outcome.code in DOWN, explain(site, outcome)
    site.origin.heal()
    client = site.client("another", local=4, attempts=1, scripted=scripted)
    assert eventually(lambda: client.run().version == 6), site.gateway.log


def test_scripted_updates_off(site: Site) -> None:
    """C22: a whole CVD, conditional on the build time of the older one."""
    site.publish(6)
    outcome = site.client(local=5, scripted=False).run()
    assert outcome.databases == {"test.cvd": 6}, explain(site, outcome)
    assert site.origin.count("W") == 1


def test_cdn_behind_dns_costs_one_download(site: Site) -> None:
    """C18b, C22b: DNS says 6, the CDN's CVD is 5; freshclam alone downloads it again and again."""
    site.publish(5, advertised=6)
    outcomes = [
        site.client("fresh", attempts=3).run(),
        site.client("whole", attempts=3, scripted=False).run(),
        site.client("behind", attempts=3, scripted=False, local=4).run(),
    ]
    assert [outcome.code for outcome in outcomes] == [OK] * 3, explain(site, outcomes[0])
    assert all(outcome.version in (5, 6) for outcome in outcomes)
    assert site.origin.count("W") == 1


def test_cdn_older_than_the_client(site: Site) -> None:
    """C24."""
    site.publish(5)
    outcome = site.client(local=6).run()
    assert (outcome.code, outcome.version) == (OK, 6), explain(site, outcome)


def test_misleading_last_modified(site: Site) -> None:
    """C29: libcurl drops a body whose Last-Modified is not after the client's If-Modified-Since."""
    site.publish(6)
    site.origin.put("test.cvd", signed("test-6.cvd"), modified=http_date(build_time(4)))
    site.origin.remove("test-5.cdiff")
    outcome = site.client(local=4).run()
    assert (outcome.code, outcome.version) == (OK, 6), explain(site, outcome)


def test_undated_files(site: Site) -> None:
    """A CDN without Last-Modified: the proxy's own date serves."""
    site.publish(6)
    site.origin.put("test.cvd", signed("test-6.cvd"), undated=True)
    site.origin.remove("test-5.cdiff")
    outcome = site.client(local=4).run()
    assert (outcome.code, outcome.version) == (OK, 6), explain(site, outcome)


@pytest.mark.parametrize(
    ("local", "cld"),
    [
        pytest.param(None, "there", id="D1"),
        pytest.param(None, "absent", id="D2"),
        pytest.param(5, "absent", id="D3"),
        pytest.param(None, "forbidden", id="D4"),
    ],
)
def test_private_mirror(site: Site, local: int | None, cld: str) -> None:
    """A PrivateMirror client asks for ``.cld`` first; the CDN has none and is not asked for it."""
    site.publish(6)
    if cld == "there":
        site.origin.put("test.cld", signed("test-6.cld"))
    if cld == "forbidden":
        site.origin.rule("/test.cld", faults.status(403))
    client = site.client(way=Way.REVERSE, private=True, local=local)
    outcome = client.run()
    assert_harmless(outcome)
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": 6}), explain(site, outcome)
    assert site.origin.count("/test.cld") == 0
    assert "up-to-date" in client.run().output
