"""Single requests: ranges, conditions, methods, names, and what every answer carries."""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.support.gateway import Way, receive, send
from tests.support.site import Site, SitePool, build_time, eventually, http_date, signed

BODY_SIZE = 9952
"""Bytes of test-6.cvd."""
EPOCH = "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.fixture(scope="module")
def warm(sites: SitePool) -> Iterator[Site]:
    """A site with version 6 and cdiffs 5 and 6 in its cache; tests only read."""
    site = sites.take()
    site.publish(6)
    for name in ("test.cvd", "test-6.cdiff", "test-5.cdiff", "test-6.cvd.sign"):
        assert site.gateway.ask(f"/{name}").status == 200, site.gateway.log
    yield site
    site.close()


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [
        ("bytes=0-511", 0, 512),
        ("bytes=0-95", 0, 96),
        ("bytes=0-0", 0, 1),
        ("bytes=512-", 512, BODY_SIZE),
        ("bytes=100-199", 100, 200),
        ("bytes=-100", BODY_SIZE - 100, BODY_SIZE),
        ("bytes=-999999", 0, BODY_SIZE),
        ("bytes=9000-999999", 9000, BODY_SIZE),
        (f"bytes={BODY_SIZE - 1}-", BODY_SIZE - 1, BODY_SIZE),
    ],
)
@pytest.mark.parametrize("way", list(Way))
def test_range(warm: Site, way: Way, wanted: str, first: int, end: int) -> None:
    answer = warm.gateway.ask("/test.cvd", way, range=wanted)
    assert (answer.status, answer.body) == (206, signed("test-6.cvd")[first:end])
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{BODY_SIZE}"
    assert answer.headers["content-length"] == str(end - first)


@pytest.mark.parametrize("wanted", [f"bytes={BODY_SIZE}-", "bytes=999999-1000000", "bytes=-0"])
def test_unsatisfiable_range(warm: Site, wanted: str) -> None:
    answer = warm.gateway.ask("/test.cvd", range=wanted)
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{BODY_SIZE}")


@pytest.mark.parametrize("wanted", ["lines=0-9", "bytes=9-2", "bytes=a-b", "bytes", "bytes=0-1,5-9"])
def test_invalid_or_multiple_range_gets_the_whole_file(warm: Site, wanted: str) -> None:
    answer = warm.gateway.ask("/test.cvd", range=wanted)
    assert (answer.status, answer.body) == (200, signed("test-6.cvd"))


@pytest.mark.parametrize(
    ("name", "size"), [("test-6.cdiff", 973), ("test-6.cvd.sign", 5170), ("test-5.cdiff", 993)]
)
def test_range_of_small_objects(warm: Site, name: str, size: int) -> None:
    whole = warm.gateway.ask(f"/{name}")
    assert (whole.status, len(whole.body), whole.body) == (200, size, signed(name))
    part = warm.gateway.ask(f"/{name}", range="bytes=500-9999")
    assert (part.status, part.body) == (206, signed(name)[500:])


def test_if_range(warm: Site) -> None:
    whole = warm.gateway.ask("/test.cvd")
    for validator in (whole.headers["etag"], whole.headers["last-modified"]):
        part = warm.gateway.ask("/test.cvd", range="bytes=5000-", if_range=validator)
        assert (part.status, part.body) == (206, signed("test-6.cvd")[5000:])
    for other in ('"another"', EPOCH):
        assert warm.gateway.ask("/test.cvd", range="bytes=5000-", if_range=other).body == signed("test-6.cvd")


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_older_client_is_given_the_body(warm: Site, version: int) -> None:
    """Traps 6 and 7: the condition is the build time; the date given must be after it."""
    answer = warm.gateway.ask("/test.cvd", if_modified_since=http_date(build_time(version)))
    assert (answer.status, answer.body) == (200, signed("test-6.cvd"))
    assert parsedate_to_datetime(answer.headers["last-modified"]).timestamp() > build_time(version)


def test_probe_of_an_older_client(warm: Site) -> None:
    since = http_date(build_time(5))
    answer = warm.gateway.ask("/test.cvd", range="bytes=0-511", if_modified_since=since)
    assert (answer.status, answer.body) == (206, signed("test-6.cvd")[:512])


def test_probe_of_a_current_client(warm: Site) -> None:
    """Trap 14: 304 or the same version."""
    since = http_date(build_time(6))
    answer = warm.gateway.ask("/test.cvd", range="bytes=0-511", if_modified_since=since)
    assert (answer.status, answer.body) in [(304, b""), (206, signed("test-6.cvd")[:512])]


@pytest.mark.parametrize("since", [EPOCH, "yesterday", "", "Thu, 01 Jan 1970 00:00:00 +0000"])
def test_useless_conditions(warm: Site, since: str) -> None:
    """cvdupdate sends the epoch; what is no date is no condition."""
    answer = warm.gateway.ask("/test.cvd?version=6", if_modified_since=since)
    assert (answer.status, answer.body) == (200, signed("test-6.cvd"))


def test_if_none_match(warm: Site) -> None:
    etag = warm.gateway.ask("/test.cvd").headers["etag"]
    assert warm.gateway.ask("/test.cvd", if_none_match=etag).status == 304
    assert warm.gateway.ask("/test.cvd", if_none_match='"another"').status == 200


@pytest.mark.parametrize("way", list(Way))
def test_head(warm: Site, way: Way) -> None:
    answer = warm.gateway.ask("/test.cvd", way, method="HEAD")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", str(BODY_SIZE))


def test_head_fills_no_cache(site: Site) -> None:
    """Trap 31."""
    site.publish(6)
    answer = site.gateway.ask("/test.cvd", method="HEAD")
    assert answer.status in (200, 503)
    assert site.origin.bytes_sent <= 2048
    assert site.gateway.ask("/test.cvd").body == signed("test-6.cvd")


@pytest.mark.parametrize("name", ["test-6.cdiff", "test-6.cdiff.sign"])
def test_head_of_a_small_file_fetches_it(site: Site, name: str) -> None:
    site.publish(6)
    answer = site.gateway.ask(f"/{name}", method="HEAD")
    assert (answer.status, answer.body, answer.cache_status) == (200, b"", "clamproxy; fwd=miss")
    assert answer.headers["content-length"] == str(len(signed(name)))
    assert eventually(lambda: site.gateway.ask(f"/{name}").cache_status == "clamproxy; hit")
    assert site.origin.count(f"/{name}") == 1


def test_probe_on_an_empty_cache_is_cheap(site: Site) -> None:
    site.publish(6)
    site.origin.put("test.cvd", signed("test-6.cvd") + bytes(5_000_000))
    answer = site.gateway.ask("/test.cvd", range="bytes=0-511")
    assert (answer.status, answer.body) == (206, signed("test-6.cvd")[:512])
    assert site.origin.bytes_sent <= 2048


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/test",
        "/test.hdb",
        "/test-6.cvd",
        "/test.cvd.sign",
        "/test-06.cdiff",
        "/test-0.cdiff",
        "/test-99999999999.cdiff",
        "/TEST.cvd",
        "/%74est.cvd",
        "/x//test.cvd",
        "/x/../test.cvd",
        "/unknown.cvd",
        "/unknown-6.cdiff",
        "/test.cld",
        "/dns.txt",
        "/robots.txt",
    ],
)
def test_unknown_paths(warm: Site, path: str) -> None:
    warm.origin.forget()
    assert warm.gateway.ask(path).status == 404
    assert warm.origin.count(path) == 0


def test_missing_objects_are_remembered(warm: Site) -> None:
    """Traps 16 and 23."""
    warm.origin.forget()
    for name in ("/test-7.cdiff", "/test-99.cvd.sign"):
        assert [warm.gateway.ask(name).status for _ in range(3)] == [404] * 3
        assert warm.origin.count(name) <= 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods(warm: Site, method: str) -> None:
    warm.origin.forget()
    answer = warm.gateway.ask("/test.cvd", method=method)
    assert answer.status >= 400
    assert answer.status not in (403, 429)
    assert {seen.method for seen in warm.origin.requests()} <= {"GET"}


def test_query(warm: Site) -> None:
    """Trap 25: ``?version=N`` is a demand, other queries mean nothing."""
    for query in ("", "?version=6", "?version=5", "?version=x", "?cache=bust"):
        assert warm.gateway.ask(f"/test.cvd{query}").body == signed("test-6.cvd")


def test_version_demanded_is_fetched(site: Site) -> None:
    """A demand for more than is cached is a miss, though DNS still says less."""
    site.publish(5)
    assert site.gateway.ask("/test.cvd").body == signed("test-5.cvd")
    site.publish(6)
    site.dns.versions["test"] = 5
    assert site.gateway.ask("/test.cvd?version=6").body == signed("test-6.cvd")


def test_probe_body_and_validators_agree(warm: Site) -> None:
    """Trap 13."""
    probe = warm.gateway.ask("/test.cvd", range="bytes=0-511")
    whole = warm.gateway.ask("/test.cvd")
    assert whole.body.startswith(probe.body)
    for name in ("etag", "last-modified"):
        assert probe.headers[name] == whole.headers[name]
    assert "content-encoding" not in warm.gateway.ask("/test.cvd", accept_encoding="gzip, deflate").headers


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/test.cvd", {}, 200),
        ("/test.cvd", {"range": "bytes=0-511"}, 206),
        ("/test.cvd", {"range": "bytes=99999-"}, 416),
        ("/test.hdb", {}, 404),
        ("/test-8.cdiff", {}, 404),
    ],
)
@pytest.mark.parametrize("way", list(Way))
def test_every_answer_tells_where_it_comes_from(
    warm: Site, way: Way, path: str, headers: dict[str, str], status: int
) -> None:
    answer = warm.gateway.ask(path, way, extra=headers)
    assert answer.status == status
    assert answer.cache_status.startswith("clamproxy")
    assert "clamproxy" in answer.headers["via"]
    if status in (200, 206):
        assert "hit" in answer.cache_status


def test_cache_status_of_a_first_and_a_second_request(site: Site) -> None:
    site.publish(6)
    first, second = (site.gateway.ask("/test.cvd") for _ in range(2))
    assert "fwd=miss" in first.cache_status
    assert "hit" in second.cache_status
    assert "fwd" not in second.cache_status


def test_stale_answer_says_so(site: Site) -> None:
    site.warm(5)
    site.publish(6)
    site.origin.refuse()
    site.gateway.stop()
    site.gateway.start()
    # The answer of DNS from before the restart counts a moment longer.
    assert eventually(lambda: "stale" in site.gateway.ask("/test.cvd").cache_status)
    answer = site.gateway.ask("/test.cvd")
    assert (answer.status, answer.body) == (200, signed("test-5.cvd"))
    assert "fwd=stale" in answer.cache_status


def test_loop_is_refused(site: Site) -> None:
    """A request that has been here is not forwarded again."""
    site.publish(6)
    via = site.gateway.ask("/test.cvd").headers["via"]
    site.origin.forget()
    answer = site.gateway.ask("/test-6.cdiff", via=via)
    assert answer.status >= 500
    assert site.origin.count("D6") == 0


def test_keep_alive(warm: Site) -> None:
    """Several requests on one connection (cvdupdate)."""
    with warm.gateway.connection() as connection:
        for name in ("test.cvd", "test-6.cdiff", "test.hdb", "test.cvd"):
            send(connection, f"/{name}", connection="keep-alive")
            answer = receive(connection)
            assert answer.status == (404 if name == "test.hdb" else 200)
            assert answer.complete
