"""What requests tell about a machine's databases."""

from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.fleet.observer import Knowledge, observe
from clamproxy.fleet.visit import Visit
from clamproxy.objects import Kind, Latest, ObjectId, Target

CVD, CLD = Latest("daily", Kind.CVD), Latest("daily", Kind.CLD)
BUILT = {version: 1_700_000_000 + version * 86_400 for version in range(1, 10)}


def cdiff(version: int) -> ObjectId:
    return ObjectId("daily", version, Kind.CDIFF)


def signature(version: int, kind: Kind = Kind.CVD_SIGN) -> ObjectId:
    return ObjectId("daily", version, kind)


def visit(target: Target | None, *, built: int | str | None = None, **fields: Any) -> Visit:
    """A request that was answered well; `built`: If-Modified-Since is the build time of that version."""
    since = formatdate(BUILT[built], usegmt=True) if isinstance(built, int) else built
    usual = Visit("10.0.0.1", None, target, False, since, 200, None, 1000, True, 1000.0)
    return replace(usual, **fields)


def probe(**fields: Any) -> Visit:
    """A header probe."""
    return visit(**{"target": CVD, "range_probe": True, "status": 206, "version": 9, "length": 512, **fields})


def find_build(database: str, built_at: int) -> int | None:
    """Versions 1 to 8 of daily are known."""
    known = {at: version for version, at in BUILT.items() if version < 9}
    return known.get(built_at) if database == "daily" else None


def after(*visits: Visit, known: Knowledge | None = None) -> Knowledge:
    known = known or Knowledge()
    for number, one in enumerate(visits):
        known = observe(replace(one, at=1000.0 + number), known, find_build)
    return known


def version_of(known: Knowledge) -> int | None:
    holding = known.holdings.get("daily")
    return holding.version if holding else None


def error_of(known: Knowledge) -> str | None:
    return known.last_error.what if known.last_error else None


FAILED = {"status": 503, "complete": True}
CUT = {"complete": False}
AGAIN = "asked for daily-6.cdiff again"
NONE = "asked for daily.cvd as if it had no version"


@pytest.mark.parametrize(
    ("visits", "version", "error"),
    [
        pytest.param([], None, None, id="nothing"),
        # Patches
        pytest.param([visit(cdiff(6))], 6, None, id="a cdiff"),
        pytest.param([visit(cdiff(5)), visit(cdiff(6))], 6, None, id="a chain of cdiffs"),
        pytest.param([visit(cdiff(6), **FAILED)], 5, "daily-6.cdiff: status 503", id="no cdiff"),
        pytest.param([visit(cdiff(6), status=404)], 5, "daily-6.cdiff: status 404", id="a cdiff too early"),
        pytest.param(
            [visit(cdiff(6), **CUT)], 5, "daily-6.cdiff: interrupted after 1,000 bytes", id="half a cdiff"
        ),
        pytest.param([visit(cdiff(6), length=0)], 5, None, id="the empty cdiff"),
        pytest.param([visit(cdiff(6), status=206)], 5, None, id="a part of a cdiff"),
        pytest.param(
            [visit(cdiff(6), **CUT), visit(cdiff(6))],
            6,
            "daily-6.cdiff: interrupted after 1,000 bytes",
            id="a cdiff at the second attempt",
        ),
        pytest.param([visit(cdiff(6)), visit(cdiff(6))], 6, AGAIN, id="a cdiff again"),
        pytest.param(
            [visit(cdiff(7)), visit(cdiff(6), **FAILED)], 5, "daily-6.cdiff: status 503", id="lower"
        ),
        pytest.param([visit(cdiff(7)), visit(cdiff(6), length=0)], 5, AGAIN, id="a lower one, empty"),
        pytest.param([visit(cdiff(3)), visit(cdiff(6))], 6, None, id="got newer elsewhere"),
        pytest.param([visit(cdiff(1))], None, None, id="no patch leads to version 1"),
        # Whole files
        pytest.param([visit(CVD, version=6)], 6, None, id="a first install"),
        pytest.param([visit(CLD, version=6)], 6, None, id="a CLD"),
        pytest.param([visit(CVD, version=6, built=3)], 6, None, id="an update by a whole CVD"),
        pytest.param(
            [visit(CVD, version=6, **CUT)], None, "daily.cvd: interrupted after 1,000 bytes", id="half a CVD"
        ),
        pytest.param(
            [visit(CVD, version=6, built=3, **CUT)],
            3,
            "daily.cvd: interrupted after 1,000 bytes",
            id="half an update",
        ),
        pytest.param([visit(CVD, version=None, **FAILED)], None, "daily.cvd: status 503", id="no CVD"),
        pytest.param([visit(CVD, version=6), visit(CVD, version=6)], 6, NONE, id="a CVD again"),
        pytest.param([visit(cdiff(6), length=0), visit(CVD, version=6, built=5)], 6, None, id="instead"),
        pytest.param([visit(CVD, version=2), visit(cdiff(3))], 3, None, id="an older CVD, then patches"),
        # If-Modified-Since
        pytest.param([visit(CVD, status=304, built=6, length=0)], 6, None, id="not modified"),
        pytest.param([probe(built=5)], 5, None, id="a probe that finds something newer"),
        pytest.param([probe(built=6, status=304, length=0)], 6, None, id="a probe that finds nothing newer"),
        pytest.param([probe(built=5, **FAILED)], 5, "daily.cvd: status 503", id="a probe without answer"),
        pytest.param([probe(built=9)], None, None, id="a build that isn't known"),
        pytest.param([visit(cdiff(6)), probe(built=9)], 6, None, id="such a build, later"),
        pytest.param([visit(cdiff(6)), probe(built=5)], 5, None, id="the update did not succeed"),
        pytest.param([visit(cdiff(6)), probe(built="garbage")], 6, None, id="garbage"),
        pytest.param([visit(cdiff(6)), probe(built="Mon, 32 Jan 99999 99:99:99 GMT")], 6, None, id="no date"),
        pytest.param([probe()], None, None, id="a probe of who has nothing"),
        pytest.param([visit(CVD, version=6), probe()], None, NONE, id="a database that was lost"),
        pytest.param([probe(status=200, length=9999)], None, None, id="a probe answered whole"),
        # Signatures
        pytest.param([visit(signature(6))], 6, None, id="the signature of a CVD"),
        pytest.param([visit(signature(6), status=404)], 6, None, id="a signature that isn't there"),
        pytest.param(
            [visit(signature(6), **FAILED)], 6, "daily-6.cvd.sign: status 503", id="a signature that fails"
        ),
        pytest.param([visit(signature(6, Kind.CDIFF_SIGN))], None, None, id="a cdiff's signature"),
        pytest.param([visit(CLD, status=404, range_probe=True)], None, None, id="a mirror without CLDs"),
        # Nothing to learn from
        pytest.param([visit(cdiff(6), method="HEAD")], None, None, id="HEAD"),
        pytest.param([visit(None, status=404)], None, None, id="no file of ClamAV's"),
        pytest.param([visit(CVD, version=None)], None, None, id="an answer about no version"),
    ],
)
def test_evidence(visits: list[Visit], version: int | None, error: str | None) -> None:
    known = after(*visits)
    assert (version_of(known), error_of(known)) == (version, error)


def test_evidence_has_the_time_at_which_it_was_learned() -> None:
    known = after(visit(cdiff(5)), visit(cdiff(6)), visit(None))
    assert known.holdings["daily"].seen_at == 1001
    assert known.last_error is None
    known = after(visit(cdiff(5)), visit(cdiff(6), **FAILED))
    assert known.last_error is not None
    assert known.last_error.at == 1001


def test_databases_are_told_apart() -> None:
    main = ObjectId("main", 63, Kind.CDIFF)
    known = after(visit(cdiff(6)), visit(main), visit(Latest("bytecode", Kind.CVD), version=339))
    assert {name: one.version for name, one in known.holdings.items()} == {
        "daily": 6,
        "main": 63,
        "bytecode": 339,
    }


kinds = st.sampled_from([Kind.CDIFF, Kind.CVD_SIGN, Kind.CDIFF_SIGN])
targets = st.one_of(
    st.none(),
    st.builds(ObjectId, st.just("daily"), st.integers(1, 2**31 - 1), kinds),
    st.builds(Latest, st.just("daily"), st.sampled_from([Kind.CVD, Kind.CLD])),
)
visits = st.builds(
    Visit,
    address=st.just("10.0.0.1"),
    user_agent=st.none(),
    target=targets,
    range_probe=st.booleans(),
    if_modified_since=st.none()
    | st.text()
    | st.sampled_from(sorted(BUILT)).map(lambda v: formatdate(BUILT[v])),
    status=st.sampled_from([0, 200, 206, 304, 404, 416, 503]),
    version=st.none() | st.integers(1, 2**31 - 1),
    length=st.integers(0, 2**40),
    complete=st.booleans(),
    at=st.floats(0, 2**33),
)


@given(st.lists(visits, max_size=8))
def test_whatever_is_asked(asked: list[Visit]) -> None:
    known = after(*asked)
    assert all(1 <= holding.version < 2**31 for holding in known.holdings.values())
    if known.last_error is not None:
        assert known.last_error.what.isprintable()
        assert len(known.last_error.what) < 100


def test_a_patch_that_is_held_back_is_no_error() -> None:
    """A machine in DNS mode asks for it at each check, and has the version before."""
    known = after(visit(cdiff(8), status=404, length=31, is_held_back=True))
    assert (version_of(known), error_of(known)) == (7, None)
    assert error_of(after(visit(cdiff(8), status=404, length=31))) == "daily-8.cdiff: status 404"
