"""Requests to the origin: what goes out, what is counted, and that nothing goes out while offline."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clamproxy.messages import CACHE_STATUS, FORBIDDEN_BEYOND, Result
from clamproxy.origin import connections
from clamproxy.origin.cooldown import FailureKind
from clamproxy.origin.errors import NotFoundError, OriginError
from clamproxy.origin.upstream import Upstream
from tests.support import faults
from tests.support.origin import OriginServer
from tests.support.stored import AGENT, NEW

PATH = "/daily-5.cdiff"


class Ledger:
    """What an upstream tells of its requests."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.counts = [0, 0]

    def count(self, requests: int, length: int) -> None:
        self.counts[0] += requests
        self.counts[1] += length

    def upstream(self, url: str, *, offline: bool = False) -> Upstream:
        return Upstream(
            url,
            proxy=None,
            ca_bundle=None,
            connect_timeout=5.0,
            read_timeout=5.0,
            via="1.1 clamproxy-test",
            count=self.count,
            note=self.noted.append,
            offline=offline,
        )


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def fetch(upstream: Upstream) -> bytes:
    try:
        with upstream.get(PATH, NEW) as answer:
            return b"".join(answer.chunks())
    finally:
        upstream.close()


def test_each_request_is_noted_once(origin: OriginServer, ledger: Ledger) -> None:
    origin.put("daily-5.cdiff", b"0123456789")
    assert fetch(ledger.upstream(origin.url)) == b"0123456789"
    assert (ledger.noted, ledger.counts) == ([PATH], [1, 10])
    (seen,) = origin.requests()
    assert (seen.headers["user-agent"], seen.headers["via"]) == (AGENT, "1.1 clamproxy-test")
    assert seen.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        pytest.param(lambda origin: None, NotFoundError, id="404"),
        pytest.param(lambda origin: origin.rule("*", faults.status(429)), OriginError, id="429"),
        pytest.param(lambda origin: origin.rule("*", faults.status(503)), OriginError, id="503"),
        pytest.param(lambda origin: origin.refuse(), OriginError, id="refused"),
    ],
)
def test_a_request_that_fails_is_noted(
    origin: OriginServer, ledger: Ledger, prepare: Callable[[OriginServer], None], expected: type[Exception]
) -> None:
    prepare(origin)
    with pytest.raises(expected):
        fetch(ledger.upstream(origin.url))
    assert (ledger.noted, ledger.counts[0]) == ([PATH], 1)


@pytest.mark.parametrize(
    ("status", "field", "failure"),
    [
        (503, FORBIDDEN_BEYOND, FailureKind.FORBIDDEN),
        (503, f"other; hit, {FORBIDDEN_BEYOND}", FailureKind.FORBIDDEN),
        (503, f'{FORBIDDEN_BEYOND} ,other; detail="a, b"', FailureKind.FORBIDDEN),
        (503, "clamproxy;fwd-status=403", FailureKind.FORBIDDEN),
        (503, CACHE_STATUS[Result.ERROR], FailureKind.SERVER_ERROR),
        (503, "clamproxy; fwd=miss, other; fwd=miss; fwd-status=403", FailureKind.SERVER_ERROR),
        (503, "clamproxy; fwd=miss; fwd-status=4030", FailureKind.SERVER_ERROR),
        (503, "clamproxy; fwd=miss; not-fwd-status=403", FailureKind.SERVER_ERROR),
        (503, "", FailureKind.SERVER_ERROR),
        (500, FORBIDDEN_BEYOND, FailureKind.SERVER_ERROR),
        (429, FORBIDDEN_BEYOND, FailureKind.RATE_LIMITED),
        (403, CACHE_STATUS[Result.HIT], FailureKind.FORBIDDEN),
    ],
)
def test_trap_20_a_parent_marks_what_stands_for_a_403(
    origin: OriginServer, ledger: Ledger, status: int, field: str, failure: FailureKind
) -> None:
    origin.rule(PATH, faults.status(status, cache_status=field, retry_after="50"))
    with pytest.raises(OriginError) as caught:
        fetch(ledger.upstream(origin.url))
    assert (caught.value.failure, caught.value.retry_after) == (failure, 50)


def test_every_request_of_a_redirect_counts(origin: OriginServer, ledger: Ledger) -> None:
    origin.put("other", b"0123456789")
    origin.rule(PATH, faults.redirect("/other"))
    assert fetch(ledger.upstream(origin.url)) == b"0123456789"
    assert (ledger.noted, ledger.counts) == ([PATH], [len(origin.requests()), 10]) == ([PATH], [2, 10])


def test_a_redirect_that_is_not_followed_counts_once(origin: OriginServer, ledger: Ledger) -> None:
    origin.rule(PATH, faults.redirect("http://127.0.0.1:9/other"))
    with pytest.raises(OriginError, match="redirect"):
        fetch(ledger.upstream(origin.url))
    assert ledger.counts[0] == len(origin.requests()) == 1


def test_a_request_that_is_repeated_counts_twice(
    origin: OriginServer, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The origin may have got it both times: a kept connection that is silent may just be slow."""
    monkeypatch.setattr(connections, "PATIENCE_WITH_REUSED", 0.1)
    origin.put("daily-5.cdiff", b"0123456789")
    upstream = ledger.upstream(origin.url)
    try:
        for _ in range(2):
            with upstream.get(PATH, NEW) as answer:
                assert b"".join(answer.chunks()) == b"0123456789"
            origin.rule(PATH, faults.silent(), times=1)
    finally:
        upstream.close()
    assert ledger.counts == [3, 20]


def test_offline_nothing_is_asked(origin: OriginServer, ledger: Ledger) -> None:
    origin.put("daily-5.cdiff", b"0123456789")
    with pytest.raises(NotFoundError, match="offline"):
        fetch(ledger.upstream(origin.url, offline=True))
    assert origin.requests() == []
    assert (ledger.noted, ledger.counts) == ([], [0, 0])
