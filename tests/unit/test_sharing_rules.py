"""The rules of a shared cache: what is stored, for how long it counts, and what a 304 changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers
from werkzeug.http import http_date

from clamproxy.feeds import sharing_rules
from clamproxy.feeds.sharing_rules import FLOOR, LONGEST_HEURISTIC, ResponseHead

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
NOTHING = Headers()


def fields(**values: Any) -> Headers:
    return Headers([(name.replace("_", "-"), str(value)) for name, value in values.items()])


def head(limit: float | None = None, *, asked: float = NOW, came: float = NOW, **values: Any) -> ResponseHead:
    """A response; `date` and `modified` are Unix seconds."""
    headers = fields(**{name: value for name, value in values.items() if name not in ("date", "modified")})
    if "date" in values:
        headers["Date"] = http_date(values["date"])
    if "modified" in values:
        headers["Last-Modified"] = http_date(values["modified"])
    return ResponseHead(headers, asked, came, limit)


@pytest.mark.parametrize(
    ("control", "shareable"),
    [
        ("", True),
        ("max-age=60", True),
        ("public", True),
        ("no-cache", True),
        ("no-store", False),
        ("NO-STORE", False),
        ("private", False),
        ('private="Set-Cookie"', False),
        ("max-age=60, private", False),
        ("must-revalidate", True),
        ("unknown, other=1", True),
        ('no-store, "', False),  # a stray quotation mark
    ],
)
def test_what_a_response_allows_to_share(control: str, shareable: bool) -> None:
    assert sharing_rules.is_shareable(NOTHING, head(cache_control=control)) is shareable


def test_directives_in_several_fields_count_together() -> None:
    several = ResponseHead(Headers([("Cache-Control", "max-age=9"), ("Cache-Control", "no-store")]), NOW, NOW)
    assert not sharing_rules.is_shareable(NOTHING, several)


@pytest.mark.parametrize(
    ("control", "shareable"),
    [
        ("max-age=60", False),
        ("", False),
        ("public", True),
        ("s-maxage=60", True),
        ("must-revalidate, max-age=60", True),
        ("public, no-store", False),
    ],
)
def test_answers_to_a_user_with_a_password_are_shared_only_if_that_is_said(
    control: str, shareable: bool
) -> None:
    request = fields(Authorization="Basic eDp5")
    assert sharing_rules.is_shareable(request, head(cache_control=control)) is shareable


def test_what_a_client_wants_kept_nowhere_is_not_stored() -> None:
    assert not sharing_rules.is_shareable(fields(Cache_Control="no-store"), head())


def test_vary_of_everything_is_never_shared() -> None:
    assert not sharing_rules.is_shareable(NOTHING, head(vary="*"))
    assert not sharing_rules.is_shareable(NOTHING, head(vary="Accept, *"))


@pytest.mark.parametrize(
    ("stored", "seconds"),
    [
        (head(cache_control="max-age=300"), 300),
        (head(cache_control="max-age=300, s-maxage=20"), 20),
        (head(cache_control="s-maxage=20, max-age=300"), 20),
        (head(cache_control='max-age="300"'), 300),
        (head(cache_control="max-age=0"), 0),
        # What can't be understood is stale: RFC 9111 4.2.1.
        (head(cache_control="max-age=soon"), 0),
        (head(cache_control="max-age=-5"), 0),
        (head(cache_control="max-age"), 0),
        (head(cache_control='max-age=60, "', modified=NOW - DAY), 0),
        (head(cache_control="max-age=" + "9" * 30), 2**31),
        # max-age is stronger than Expires.
        (head(cache_control="max-age=7", expires=http_date(NOW + 99), date=NOW), 7),
        (head(expires=http_date(NOW + 99), date=NOW), 99),
        (head(expires=http_date(NOW + 99)), 99),
        (head(expires=http_date(NOW - 99), date=NOW), 0),
        (head(expires="0", date=NOW), 0),
        (head(expires="-1", modified=NOW - 10 * DAY), 0),
        # The server's own clock counts, not ours.
        (head(expires=http_date(NOW + 99 - HOUR), date=NOW - HOUR), 99),
        # A tenth of the time since the last change, at least a minute, at most a day.
        (head(date=NOW, modified=NOW - HOUR), 360),
        (head(modified=NOW - HOUR), 360),
        (head(date=NOW, modified=NOW - 100 * DAY), LONGEST_HEURISTIC),
        (head(date=NOW, modified=NOW - 10), FLOOR),
        (head(date=NOW, modified=NOW + HOUR), FLOOR),
        (head(date=NOW), FLOOR),
        (head(modified=NOW - HOUR, cache_control="public"), 360),
        # Redirections that led to it.
        (head(0.0, cache_control="max-age=300"), 0),
        (head(100.0, cache_control="max-age=300"), 100),
        (head(500.0, cache_control="max-age=300"), 300),
    ],
)
def test_for_how_long_a_response_is_fresh(stored: ResponseHead, seconds: float) -> None:
    assert sharing_rules.lifetime(stored) == seconds


@pytest.mark.parametrize(
    ("stored", "later", "seconds"),
    [
        (head(date=NOW), 0, 0),
        (head(date=NOW), 50, 50),
        (head(date=NOW, age=30), 50, 80),
        (head(date=NOW, age="nonsense"), 50, 50),
        (head(date=NOW, age=-3), 50, 50),
        (head(date=NOW - 100), 50, 150),
        (head(date=NOW - 100, age=30), 50, 150),
        (head(date=NOW + 100), 50, 50),  # its clock is ahead
        (head(), 50, 50),
        (head(asked=NOW - 7, date=NOW), 50, 57),
        (head(asked=NOW - 7, date=NOW, age=30), 0, 37),
        (head(date=NOW), -5, 0),  # our clock was turned back
    ],
)
def test_how_old_a_response_is(stored: ResponseHead, later: float, seconds: float) -> None:
    assert sharing_rules.age(stored, NOW + later) == seconds


@pytest.mark.parametrize(
    ("stored", "request_control", "later", "fresh"),
    [
        (head(cache_control="max-age=60"), "", 59, True),
        (head(cache_control="max-age=60"), "", 60, False),
        (head(cache_control="max-age=60, no-cache"), "", 1, False),
        (head(cache_control='max-age=60, no-cache="ETag"'), "", 1, False),
        (head(cache_control="max-age=60, must-revalidate"), "", 59, True),
        (head(cache_control="max-age=60"), "no-cache", 1, False),
        (head(cache_control="max-age=60"), "max-age=0", 1, False),
        (head(cache_control="max-age=60"), "max-age=10", 9, True),
        (head(cache_control="max-age=60"), "max-age=10", 11, False),
        (head(cache_control="max-age=60"), "max-age=x", 1, False),
        (head(cache_control="max-age=60"), "min-fresh=30", 20, True),
        (head(cache_control="max-age=60"), "min-fresh=30", 31, False),
        (head(cache_control="max-age=60"), "max-stale=100", 90, False),
        (head(cache_control="max-age=60"), "only-if-cached", 1, True),
        (head(cache_control="max-age=60"), "", -3600, False),  # our clock was turned back by an hour
    ],
)
def test_what_answers_a_request_without_asking(
    stored: ResponseHead, request_control: str, later: float, fresh: bool
) -> None:
    request = fields(Cache_Control=request_control) if request_control else NOTHING
    assert sharing_rules.is_fresh(stored, request, NOW + later) is fresh


def test_pragma_is_no_cache_unless_cache_control_is_there() -> None:
    stored = head(cache_control="max-age=60")
    assert not sharing_rules.is_fresh(stored, fields(Pragma="no-cache"), NOW)
    assert sharing_rules.is_fresh(stored, fields(Pragma="no-cache", Cache_Control="max-age=50"), NOW)


@pytest.mark.parametrize(
    ("control", "later", "limit", "serves"),
    [
        ("max-age=60", 60 + HOUR, HOUR, True),
        ("max-age=60", 61 + HOUR, HOUR, False),
        ("max-age=60", 61, 0, False),
        ("max-age=60", 59, 0, True),
        ("max-age=60, stale-if-error=10", 70, HOUR, True),
        ("max-age=60, stale-if-error=10", 71, HOUR, False),
        ("max-age=60, stale-if-error=999999", 61 + HOUR, HOUR, False),  # the setting is the upper limit
        ("max-age=60, stale-if-error=x", 61, HOUR, False),
        ("max-age=60, must-revalidate", 61, HOUR, False),
        ("max-age=60, proxy-revalidate", 61, HOUR, False),
        ("s-maxage=60", 61, HOUR, False),
        ("max-age=60, no-cache", 1, HOUR, False),
    ],
)
def test_what_stands_in_while_a_feed_fails(control: str, later: float, limit: float, serves: bool) -> None:
    assert sharing_rules.serves_on_error(head(cache_control=control), NOW + later, limit) is serves


def test_a_stored_response_is_for_requests_with_the_same_nominated_fields() -> None:
    sent = fields(User_Agent="ClamAV/1.4.6", Accept_Encoding="identity")
    stored = sharing_rules.selection(head(vary="user-agent, Accept-Encoding, Cookie"), sent)
    assert sharing_rules.is_selected(stored, sent)
    assert sharing_rules.is_selected(
        stored, fields(User_Agent="ClamAV/1.4.6", Accept_Encoding="identity", X="1")
    )
    assert not sharing_rules.is_selected(stored, fields(User_Agent="other", Accept_Encoding="identity"))
    assert not sharing_rules.is_selected(stored, fields(Accept_Encoding="identity"))
    assert "ClamAV" not in str(stored)


def test_validators_of_what_is_stored() -> None:
    date = http_date(NOW)
    assert sharing_rules.validators(head(etag='W/"a"', last_modified=date)) == {
        "If-None-Match": 'W/"a"',
        "If-Modified-Since": date,
    }
    assert sharing_rules.validators(head()) == {}


def test_what_is_kept_of_a_response() -> None:
    received = {
        "Content-Type": "text/plain",
        "Set-Cookie": "a=b",
        "Connection": "close, ETag",
        "Transfer-Encoding": "chunked",
        "ETag": '"hop"',
        "Content-Location": "/key/file",
        "Link": "</key>",
        "Cache-Control": "max-age=1",
        "Expires": "x\x7f",
        "Content-Length": "5",
    }
    assert dict(sharing_rules.kept(received)) == {"Content-Type": "text/plain", "Cache-Control": "max-age=1"}


def test_a_304_renews_the_head_but_not_what_describes_the_content() -> None:
    stored = head(
        date=NOW,
        age=500,
        etag='"a"',
        cache_control="max-age=1",
        content_type="text/x",
        expires=http_date(NOW),
    )
    answer = head(
        asked=NOW + 90,
        came=NOW + 100,
        date=NOW + 99,
        etag='"a"',
        cache_control="max-age=50",
        content_type="y",
    )
    renewed = sharing_rules.renewed(stored, answer)
    assert renewed.received_at == NOW + 100
    assert renewed.headers["Cache-Control"] == "max-age=50"
    assert renewed.headers["Content-Type"] == "text/x"
    assert renewed.headers["Expires"] == http_date(NOW)
    assert "Age" not in renewed.headers
    assert sharing_rules.age(renewed, NOW + 100) == 10  # the delay of the answer
    assert sharing_rules.is_fresh(renewed, NOTHING, NOW + 100)


@pytest.mark.parametrize(
    ("stored", "answer", "same"),
    [
        ({"etag": '"a"'}, {"etag": '"a"'}, True),
        ({"etag": '"a"'}, {"etag": 'W/"a"'}, True),
        ({"etag": '"a"'}, {"etag": '"b"'}, False),
        ({"etag": '"a"'}, {}, True),
        ({}, {"etag": '"b"'}, True),
    ],
)
def test_which_response_a_304_is_about(stored: dict[str, Any], answer: dict[str, Any], same: bool) -> None:
    assert sharing_rules.is_confirmed_by(head(**stored), head(**answer)) is same


texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
controls = st.lists(
    st.one_of(
        st.sampled_from(["no-store", "private", "public", "no-cache", "must-revalidate", "s-maxage", "="]),
        st.builds(
            lambda name, value: f"{name}={value}",
            st.sampled_from(["max-age", "s-maxage", "stale-if-error", "private", "min-fresh"]),
            st.one_of(st.integers(-5, 2**40), texts),
        ),
        texts,
    ),
    max_size=4,
).map(", ".join)
dates = st.one_of(texts, st.integers(0, 2**33).map(http_date))


@st.composite
def heads(draw: st.DrawFn) -> ResponseHead:
    names = {"Cache-Control": controls, "Date": dates, "Expires": dates, "Last-Modified": dates}
    names |= {"Age": st.one_of(texts, st.integers(-9, 2**70).map(str)), "Vary": texts, "ETag": texts}
    chosen = draw(st.sets(st.sampled_from(sorted(names))))
    came = draw(st.floats(0, 2**33))
    headers = Headers([(name, draw(names[name])) for name in sorted(chosen)])
    return ResponseHead(headers, came - draw(st.floats(0, 100)), came, draw(st.none() | st.floats(0, 1e6)))


@given(heads(), controls, st.floats(0, 2**33), st.floats(0, 1e8))
def test_nothing_that_a_feed_or_a_client_writes_breaks_the_rules(
    stored: ResponseHead, control: str, later: float, limit: float
) -> None:
    request, now = fields(Cache_Control=control), stored.received_at + later
    assert 0 <= sharing_rules.lifetime(stored) <= 2**31
    assert 0 <= sharing_rules.age(stored, now) <= 2**31
    fresh = sharing_rules.is_fresh(stored, request, now)
    if fresh:
        assert "no-cache" not in stored.headers.get("Cache-Control", "")
        assert sharing_rules.age(stored, now) < sharing_rules.lifetime(stored)
    if sharing_rules.serves_on_error(stored, now, limit):
        assert sharing_rules.serves_on_error(stored, now, limit + 1)
        assert "must-revalidate" not in stored.headers.get("Cache-Control", "")
    if sharing_rules.is_shareable(request, stored):
        assert "no-store" not in control.lower()
        assert not stored.forbids("no-store", "private")
    assert sharing_rules.is_selected(sharing_rules.selection(stored, request), request)


@given(heads(), heads())
def test_a_304_makes_a_response_as_young_as_the_304(stored: ResponseHead, answer: ResponseHead) -> None:
    renewed = sharing_rules.renewed(stored, answer)
    assert sharing_rules.age(renewed, answer.received_at) == sharing_rules.age(answer, answer.received_at)
    for name in ("Cache-Control", "Expires", "ETag"):
        expected = answer.headers.get(name, stored.headers.get(name))
        assert renewed.headers.get(name) == expected
