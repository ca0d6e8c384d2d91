"""How an object, a head or a failure is put into an answer."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.cache.published import PublishedFile
from clamproxy.cache.store import Store
from clamproxy.formats.header import CvdHeader
from clamproxy.formats.signatures import InvalidObject
from clamproxy.messages import CACHE_STATUS, FORBIDDEN_BEYOND, Body, Request, Requester, Response, Result
from clamproxy.objects import ObjectId
from clamproxy.origin.cooldown import Cooldown, FailureKind
from clamproxy.origin.errors import OriginError, TransferError
from clamproxy.origin.header_probes import ProbedHeader
from clamproxy.origin.transfers import CooldownError
from clamproxy.responses import IN_MEMORY, complete, plain
from clamproxy.serving.database_responses import SOON, from_header, from_object, unavailable
from tests.support.fixtures import MakeCvd
from tests.support.stored import cdiff, cvd, put, put_cvd, stime_of

UPLOADED = float(stime_of(5) + 60)


def request(method: str = "GET", **fields: str) -> Request:
    headers = Headers([(name.replace("_", "-"), value) for name, value in fields.items()])
    return Request(method, "/any", headers)


def opened(store: Store, object_id: ObjectId) -> PublishedFile:
    published = store.open(object_id)
    assert published is not None
    return published


def answer(
    store: Store, object_id: ObjectId, asked: Request, *, is_newest: bool = True
) -> tuple[Response, PublishedFile]:
    published = opened(store, object_id)
    return from_object(
        asked, object_id, published.metadata, published, Result.HIT, is_newest=is_newest
    ), published


def is_closed(published: PublishedFile) -> bool:
    return published._file.closed


# Objects


def test_a_whole_cvd(store: Store, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, 200_000)
    put_cvd(store, 5, body)
    response, published = answer(store, cvd(5), request())
    assert (response.status, response.result, response.version) == (200, Result.HIT, 5)
    assert dict(response.headers) == {
        "ETag": '"daily-5.cvd"',
        "Accept-Ranges": "bytes",
        "Last-Modified": http_date(UPLOADED),
        "Cache-Control": "no-cache",
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(body)),
    }
    assert isinstance(response.body, Body)
    assert (response.body.start, response.body.length) == (0, len(body))
    assert response.length == len(body)
    assert not is_closed(published)
    response.body.source.close()
    assert is_closed(published)


def test_a_small_object_is_read_at_once(store: Store) -> None:
    put(store, cdiff(5), b"x" * IN_MEMORY)
    response, published = answer(store, cdiff(5), request())
    assert response.body == b"x" * IN_MEMORY
    assert is_closed(published)
    assert "immutable" in response.headers["Cache-Control"]
    assert "Last-Modified" not in response.headers


def test_trap_15_an_empty_cdiff(store: Store) -> None:
    put(store, cdiff(5), b"")
    response, published = answer(store, cdiff(5), request(Range="bytes=0-511"))
    assert (response.status, response.body, response.headers["Content-Length"]) == (200, b"", "0")
    assert is_closed(published)


def test_trap_11_the_header_probe(store: Store, make_cvd: MakeCvd) -> None:
    body = make_cvd(5, 200_000)
    put_cvd(store, 5, body)
    response, published = answer(store, cvd(5), request(Range="bytes=0-511"))
    assert (response.status, response.body) == (206, body[:512])
    assert response.headers["Content-Range"] == f"bytes 0-511/{len(body)}"
    assert response.headers["Content-Length"] == "512"
    assert is_closed(published)


def test_a_large_part_in_the_middle(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 5, make_cvd(5, 300_000))
    response, published = answer(store, cvd(5), request(Range="bytes=1000-190999"))
    assert isinstance(response.body, Body)
    assert (response.body.start, response.body.length) == (1000, 190_000)
    response.body.source.close()
    assert is_closed(published)


def test_304_carries_no_content(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 5, make_cvd(5))
    response, published = answer(store, cvd(5), request(If_Modified_Since=http_date(stime_of(5))))
    assert (response.status, response.body, response.version) == (304, b"", 5)
    assert "Content-Length" not in response.headers
    assert response.headers["ETag"] == '"daily-5.cvd"'
    assert is_closed(published)


def test_416_says_how_long_it_is(store: Store) -> None:
    put(store, cdiff(5), b"0123456789")
    response, published = answer(store, cdiff(5), request(Range="bytes=50-"))
    assert (response.status, response.body) == (416, b"")
    assert (response.headers["Content-Range"], response.headers["Content-Length"]) == ("bytes */10", "0")
    assert is_closed(published)


def test_trap_31_head_has_the_fields_of_get_and_no_content(store: Store, make_cvd: MakeCvd) -> None:
    put_cvd(store, 5, make_cvd(5, 200_000))
    head, published = answer(store, cvd(5), request("HEAD"))
    get, _ = answer(store, cvd(5), request())
    assert (head.status, head.body, head.headers) == (200, b"", get.headers)
    assert is_closed(published)
    assert isinstance(get.body, Body)
    get.body.source.close()


def test_head_has_no_ranges(store: Store) -> None:
    put(store, cdiff(5), b"0123456789")
    response, _ = answer(store, cdiff(5), request("HEAD", Range="bytes=0-1"))
    assert (response.status, response.headers["Content-Length"]) == (200, "10")


@pytest.mark.parametrize(
    ("since", "is_newest", "status"),
    [
        pytest.param(stime_of(4), True, 200, id="trap 9: an older version"),
        pytest.param(stime_of(5), True, 304, id="trap 6: this version"),
        pytest.param(stime_of(5) + 10, True, 200, id="trap 8: a download before the upload"),
        pytest.param(stime_of(5) + 10, False, 304, id="trap 30: perhaps a newer version"),
        pytest.param(stime_of(6), False, 304, id="trap 30: a newer version"),
        pytest.param(0, True, 200, id="9.5: cvdupdate's epoch"),
    ],
)
def test_if_modified_since(store: Store, make_cvd: MakeCvd, since: int, is_newest: bool, status: int) -> None:
    put_cvd(store, 5, make_cvd(5))
    response, _ = answer(store, cvd(5), request(If_Modified_Since=http_date(since)), is_newest=is_newest)
    assert response.status == status


# Heads


def head_of(body: bytes, *, is_proven: bool = False) -> ProbedHeader:
    return ProbedHeader(CvdHeader.parse(body), is_proven)


@pytest.mark.parametrize("is_proven", [False, True])
@pytest.mark.parametrize(
    ("fields", "span"),
    [
        ({"Range": "bytes=0-511"}, (0, 512)),
        ({"Range": "bytes=0-95"}, (0, 96)),
        ({"Range": "bytes=100-511"}, (100, 512)),
        ({"Range": "bytes=0-511", "If_Modified_Since": http_date(stime_of(4))}, (0, 512)),
    ],
)
def test_a_head_answers_a_probe(
    make_cvd: MakeCvd, fields: dict[str, str], span: tuple[int, int], is_proven: bool
) -> None:
    body = make_cvd(5, 200_000)
    head = head_of(body, is_proven=is_proven)
    response = from_header(request(**fields), cvd(5), head, Result.MISS, is_newest=True)
    assert response is not None
    assert (response.status, response.body, response.version) == (206, body[slice(*span)], 5)
    assert response.headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/*"
    assert "ETag" not in response.headers
    assert ("Last-Modified" in response.headers) == is_proven


@pytest.mark.parametrize("field", ["If-Modified-Since", "If-None-Match"])
def test_what_is_only_claimed_tells_nobody_that_nothing_changed(make_cvd: MakeCvd, field: str) -> None:
    value = http_date(stime_of(9)) if field == "If-Modified-Since" else '"daily-5.cvd"'
    for fields, status in (({field: value, "Range": "bytes=0-511"}, 206), ({field: value}, None)):
        response = from_header(request(**fields), cvd(5), head_of(make_cvd(5)), Result.HIT, is_newest=False)
        assert (response and response.status) == status


def test_what_is_proven_does(make_cvd: MakeCvd) -> None:
    asked = request(If_Modified_Since=http_date(stime_of(5)))
    response = from_header(asked, cvd(5), head_of(make_cvd(5), is_proven=True), Result.HIT, is_newest=True)
    assert response is not None
    assert (response.status, response.body) == (304, b"")


@pytest.mark.parametrize("is_proven", [False, True])
@pytest.mark.parametrize("spans", ["", "bytes=0-512", "bytes=-5", "bytes=9-", "bytes=x", "bytes=9999999-"])
def test_the_rest_takes_the_whole_file(make_cvd: MakeCvd, spans: str, is_proven: bool) -> None:
    head = head_of(make_cvd(5, 200_000), is_proven=is_proven)
    assert from_header(request(Range=spans), cvd(5), head, Result.MISS, is_newest=True) is None
    assert from_header(request(), cvd(5), head, Result.MISS, is_newest=True) is None


def test_head_is_answered_from_a_head_without_a_length(make_cvd: MakeCvd) -> None:
    response = from_header(request("HEAD"), cvd(5), head_of(make_cvd(5)), Result.HIT, is_newest=True)
    assert response is not None
    assert (response.status, response.body) == (200, b"")
    assert not {"Content-Length", "ETag", "Last-Modified"} & set(response.headers.keys())


def test_a_header_made_from_patches_is_no_part_of_the_file(make_cvd: MakeCvd) -> None:
    """Its length isn't known, and its bytes aren't those of the CVD: it must not be combined with them."""
    real = CvdHeader.parse(make_cvd(5))
    header = CvdHeader.parse(real.info_line.encode().ljust(512))
    response = from_header(
        request(Range="bytes=0-511"), cvd(5), ProbedHeader(header, is_proven=True), Result.HIT, is_newest=True
    )
    assert response is not None
    assert (response.status, response.body, response.version) == (206, header.raw, 5)
    assert response.headers["Content-Range"] == "bytes 0-511/*"
    assert "ETag" not in response.headers


# Failures


@pytest.mark.parametrize(
    ("error", "retry_after", "words"),
    [
        (OriginError(FailureKind.RATE_LIMITED, "status 429", 7.2), "8", "status 429"),
        (OriginError(FailureKind.SERVER_ERROR, "status 500"), "1", "status 500"),
        (OriginError(FailureKind.RATE_LIMITED, "status 429", -5.0), "1", "status 429"),
        (TransferError(FailureKind.BAD_CONTENT, "corrupt"), "1", "corrupt"),
        (TimeoutError(), "1", "in time"),
    ],
)
def test_trap_20_trouble_becomes_a_503(error: Exception, retry_after: str, words: str) -> None:
    response = unavailable(error)
    assert (response.status, response.result) == (503, Result.ERROR)
    assert response.headers["Retry-After"] == retry_after
    assert response.headers["Cache-Control"] == "no-store"
    assert isinstance(response.body, bytes)
    assert words in response.body.decode()


@pytest.mark.parametrize(
    ("failure", "longest"),
    [
        (FailureKind.RATE_LIMITED, 10_000),
        (FailureKind.SERVER_ERROR, 10_000),
        (FailureKind.FORBIDDEN, SOON),
        (FailureKind.PROXY_AUTHENTICATION, SOON),
    ],
)
def test_a_cooldown_tells_when_to_ask_again(failure: FailureKind, longest: float) -> None:
    """Another client may bring the file before a 403 is over, and a password may be corrected."""
    cooldown = Cooldown(time.time() + 10_000, 1, failure, "refused")
    response = unavailable(CooldownError(cooldown))
    assert response.status == 503
    assert longest / 2 < int(response.headers["Retry-After"]) <= longest
    over = unavailable(CooldownError(replace(cooldown, until=5.0)))
    assert over.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("error", "is_marked"),
    [
        (OriginError(FailureKind.FORBIDDEN, "status 403"), True),
        (TransferError(FailureKind.FORBIDDEN, "status 403"), True),
        (CooldownError(Cooldown(5.0, 1, FailureKind.FORBIDDEN, "status 403")), True),
        (CooldownError(Cooldown(5.0, 1, FailureKind.RATE_LIMITED, "status 429")), False),
        (OriginError(FailureKind.SERVER_ERROR, "status 500"), False),
        (TimeoutError(), False),
    ],
)
def test_only_a_503_about_the_client_version_is_marked(error: Exception, is_marked: bool) -> None:
    """By this, a child knows that its other clients may ask."""
    response = unavailable(error)
    complete(response, "GET")
    status = FORBIDDEN_BEYOND if is_marked else CACHE_STATUS[Result.ERROR]
    assert response.headers.get_all("Cache-Status") == [status]


def test_a_plain_answer() -> None:
    response = plain(404, Result.NEGATIVE, "nothing here", version=5)
    assert (response.status, response.body, response.length, response.version) == (
        404,
        b"clamproxy: nothing here\n",
        24,
        5,
    )


def test_every_result_has_a_cache_status() -> None:
    assert set(CACHE_STATUS) == set(Result)
    assert all(value.startswith("clamproxy; ") for value in CACHE_STATUS.values())


def test_a_request_knows_its_requester() -> None:
    assert request(User_Agent="ClamAV/1.4.6 (x)").requester == Requester("ClamAV/1.4.6 (x)", None)
    assert request().requester == Requester(None, None)
    asked = request()
    asked.headers.add("Via", "1.1 one")
    asked.headers.add("Via", "1.1 two")
    assert asked.requester.via == "1.1 one, 1.1 two"


def test_a_source_is_closed_when_no_answer_can_be_made(store: Store) -> None:
    put(store, cdiff(5), b"patch", header="no header")
    published = opened(store, cdiff(5))
    with pytest.raises(InvalidObject):
        from_object(request(), cdiff(5), published.metadata, published, Result.HIT)
    assert is_closed(published)
