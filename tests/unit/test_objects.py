"""Names of objects, and the URL paths that lead to them (docs/protocol.md 1.2 and trap 25)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clamproxy.objects import MAX_VERSION, Kind, Latest, ObjectId, Target, parse_path

DATABASES = frozenset({"main", "daily", "bytecode"})

object_ids = st.builds(
    ObjectId, st.sampled_from(sorted(DATABASES)), st.integers(1, MAX_VERSION), st.sampled_from(Kind)
)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/daily.cvd", Latest("daily", Kind.CVD)),
        ("/main.cvd", Latest("main", Kind.CVD)),
        ("/bytecode.cld", Latest("bytecode", Kind.CLD)),
        ("/daily-27800.cdiff", ObjectId("daily", 27800, Kind.CDIFF)),
        ("/daily-27800.cdiff.sign", ObjectId("daily", 27800, Kind.CDIFF_SIGN)),
        ("/daily-27800.cvd.sign", ObjectId("daily", 27800, Kind.CVD_SIGN)),
        ("/daily-1.cdiff", ObjectId("daily", 1, Kind.CDIFF)),
        (f"/daily-{MAX_VERSION}.cdiff", ObjectId("daily", MAX_VERSION, Kind.CDIFF)),
        ("/daily-7.cdiff?nocache=1", ObjectId("daily", 7, Kind.CDIFF)),
        ("/daily-7.cdiff?", ObjectId("daily", 7, Kind.CDIFF)),
    ],
)
def test_paths_that_freshclam_asks_for(path: str, target: Target) -> None:
    assert parse_path(path, DATABASES) == target


@pytest.mark.parametrize(
    ("query", "demanded"),
    [
        pytest.param("?version=27800", 27800, id="trap 25: cvdupdate's query is a demand"),
        ("?x=1&version=27800", 27800),
        (f"?version={MAX_VERSION}", MAX_VERSION),
        ("", None),
        ("?", None),
        ("?version=", None),
        ("?version=0", None),
        ("?version=-1", None),
        ("?version=+1", None),
        ("?version=1.5", None),
        ("?version=1e3", None),
        ("?version=abc", None),
        ("?version=1&version=2", None),
        ("?Version=1", None),
        (f"?version={MAX_VERSION + 1}", None),
        ("?version=99999999999", None),
        ("?version=" + "9" * 5000, None),
        ("?version=\u0665", None),
        ("?version=%D9%A5", None),
        ("?version=5%0d%0aX", None),
        ("?cache-buster", None),
    ],
)
def test_a_query_changes_at_most_the_demand(query: str, demanded: int | None) -> None:
    assert parse_path(f"/daily.cvd{query}", DATABASES) == Latest("daily", Kind.CVD, demanded)


@pytest.mark.parametrize("slashes", ["/", "//", "////"])
def test_leading_slashes_are_one(slashes: str) -> None:
    """``DatabaseMirror http://gateway:8080/`` has freshclam ask for ``//daily.cvd``."""
    assert parse_path(f"{slashes}daily.cvd", DATABASES) == Latest("daily", Kind.CVD)
    assert parse_path(f"{slashes}daily-5.cdiff", DATABASES) == ObjectId("daily", 5, Kind.CDIFF)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "daily.cvd",
        "daily-5.cdiff",
        "/daily//daily.cvd",
        "/./daily.cvd",
        "/../daily.cvd",
        "/x/daily.cvd",
        "/daily.cvd/",
        "/daily.cvd#x",
        "/daily.cvd;x",
        "/daily.cvd\n",
        "/daily-5.cdiff\n",
        "/daily.cvd\0",
        "/daily.cvd%00",
        "/dail%79.cvd",
        "/daily%2Ecvd",
        "/..%2fdaily.cvd",
        "/daily-%35.cdiff",
        "/Daily.cvd",
        "/daily.CVD",
        "/daily-5.CDIFF",
        "/daily.cdiff",
        "/daily.sign",
        "/daily.cvd.sign",
        "/daily.cld.sign",
        "/daily-5.cld.sign",
        "/daily-5.cdiff.sign.sign",
        "/daily-5.cdiff.bak",
        "/daily-.cdiff",
        "/daily--5.cdiff",
        "/daily-+5.cdiff",
        "/daily-5 .cdiff",
        "/daily-5.5.cdiff",
        "/daily_5.cdiff",
        "/daily-\u0665.cdiff",
        "/d\u0430ily.cvd",
        "/dns.txt",
        "/favicon.ico",
        "http://database.clamav.net/daily.cvd",
        pytest.param("/daily-5.cvd", id="the CDN has whole files under their mutable name only"),
        pytest.param("/daily-5.cld", id="the same for a CLD"),
        pytest.param("/daily-0.cdiff", id="no version 0"),
        pytest.param("/daily-05.cdiff", id="trap 25: printed with %d, no zero padding"),
        pytest.param(f"/daily-{MAX_VERSION + 1}.cdiff", id="above a C int"),
        pytest.param("/daily-99999999999.cdiff", id="far above a C int"),
        pytest.param("/daily-" + "9" * 5000 + ".cdiff", id="more digits than int() takes"),
        pytest.param("/test.cvd", id="a database that is not served"),
        pytest.param("/test-5.cdiff", id="a patch of a database that is not served"),
    ],
)
def test_refused_paths(path: str) -> None:
    assert parse_path(path, DATABASES) is None


@given(st.text() | st.text(alphabet="/daily-5.cvdiffsgn?=&%ersion0\n"))
@example("/daily.cvd?version=\ud800")
@example("/daily.cvd?" + "&" * 2000)
@example("/daily.cvd?version=%")
def test_no_text_breaks_the_parser_and_every_target_leads_back(path: str) -> None:
    target = parse_path(path, DATABASES)
    if isinstance(target, ObjectId):
        assert target.upstream_path == path.partition("?")[0]
        assert parse_path(target.upstream_path, DATABASES) == target
    elif target is not None:
        assert target.upstream_path == path.partition("?")[0]


@given(object_ids)
def test_file_names_round_trip(object_id: ObjectId) -> None:
    assert ObjectId.parse(object_id.file_name) == object_id
    if object_id.kind in (Kind.CVD, Kind.CLD):
        assert parse_path(object_id.upstream_path, DATABASES) == Latest(object_id.database, object_id.kind)
    else:
        assert parse_path(object_id.upstream_path, DATABASES) == object_id


@given(st.text())
def test_parsing_a_file_name_raises_nothing_but_value_error(name: str) -> None:
    try:
        object_id = ObjectId.parse(name)
    except ValueError:
        return
    assert object_id.file_name == name


@pytest.mark.parametrize(
    ("kind", "signed"), [(Kind.CVD_SIGN, Kind.CVD), (Kind.CDIFF_SIGN, Kind.CDIFF), (Kind.CDIFF, None)]
)
def test_what_a_signature_signs(kind: Kind, signed: Kind | None) -> None:
    object_id = ObjectId("daily", 5, kind)
    if signed is None:
        with pytest.raises(ValueError, match="not a signature"):
            _ = object_id.signed
    else:
        assert object_id.signed == ObjectId("daily", 5, signed)
        assert object_id.signed.signature == object_id


@pytest.mark.parametrize("kind", [Kind.CLD, Kind.CVD_SIGN, Kind.CDIFF_SIGN])
def test_what_has_no_signature(kind: Kind) -> None:
    with pytest.raises(ValueError, match="sign"):
        _ = ObjectId("daily", 5, kind).signature


def test_file_names_stay_in_their_directory() -> None:
    for name in ("../daily-5.cdiff", "/daily-5.cdiff", "x/daily-5.cdiff", "daily-5.cdiff/.."):
        with pytest.raises(ValueError, match="not the name"):
            ObjectId.parse(name)
