"""Which objects may go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clamproxy.cache.retention import is_spared, over_limit, superseded, to_drop, under_ceilings
from clamproxy.objects import Kind, ObjectId


def named(*names: str) -> set[ObjectId]:
    return {ObjectId.parse(name) for name in names}


@pytest.mark.parametrize(
    ("held", "keep_cdiffs", "gone"),
    [
        ("", 2, ""),
        ("daily-5.cvd", 2, ""),
        ("daily-4.cvd daily-5.cvd", 2, ""),
        ("daily-3.cvd daily-4.cvd daily-5.cvd", 2, "daily-3.cvd"),
        ("daily-9.cvd daily-5.cvd daily-1.cvd daily-2.cvd", 2, "daily-1.cvd daily-2.cvd"),
        ("daily-5.cvd main-1.cvd test-2.cvd", 2, ""),
        ("daily-3.cdiff daily-4.cdiff daily-5.cdiff", 2, "daily-3.cdiff"),
        ("daily-3.cdiff daily-4.cdiff main-1.cdiff", 2, ""),
        ("daily-3.cdiff daily-5.cdiff daily-9.cdiff", 2, "daily-3.cdiff"),
        ("daily-5.cvd daily-5.cdiff daily-5.cdiff.sign", 0, "daily-5.cdiff"),
        ("daily-5.cld daily-6.cld", 2, ""),
        ("daily-5.cld daily-6.cld daily-7.cld", 2, "daily-5.cld"),
        ("daily-5.cld daily-6.cvd daily-7.cvd", 2, ""),
        ("daily-5.cld daily-6.cld main-7.cld", 2, ""),
    ],
)
def test_the_newest_stay(held: str, keep_cdiffs: int, gone: str) -> None:
    expected = named(*gone.split())
    assert {
        object_id
        for object_id in superseded(named(*held.split()), keep_cdiffs)
        if not object_id.kind.is_signature
    } == expected


@pytest.mark.parametrize(
    ("held", "gone"),
    [
        pytest.param("daily-5.cvd daily-5.cvd.sign", "", id="with its CVD"),
        pytest.param("daily-5.cvd daily-6.cvd.sign", "", id="trap 23: before its CVD"),
        pytest.param("daily-4.cvd daily-5.cvd daily-4.cvd.sign", "", id="trap 24: of the CVD before"),
        pytest.param("daily-5.cvd.sign", "", id="without any CVD"),
        pytest.param(
            "daily-3.cvd daily-4.cvd daily-5.cvd daily-3.cvd.sign", "daily-3.cvd daily-3.cvd.sign", id="both"
        ),
        pytest.param("daily-4.cvd daily-5.cvd daily-2.cvd.sign", "daily-2.cvd.sign", id="after its CVD"),
        pytest.param("daily-5.cvd main-2.cvd.sign", "", id="another database's"),
        pytest.param("daily-9.cvd daily-2.cdiff.sign", "", id="a patch's signature is not a CVD's"),
        pytest.param(
            "daily-4.cdiff daily-5.cdiff daily-6.cdiff daily-4.cdiff.sign daily-5.cdiff.sign",
            "daily-4.cdiff daily-4.cdiff.sign",
            id="with their patches",
        ),
    ],
)
def test_signatures_stay_as_long_as_what_they_sign(held: str, gone: str) -> None:
    assert superseded(named(*held.split()), 2) == named(*gone.split())


@pytest.mark.parametrize(
    ("name", "age", "expected"),
    [
        ("daily-1.cdiff", 0.0, True),
        ("daily-1.cdiff", 59.9, True),
        ("daily-1.cdiff", 60.0, False),
        ("daily-1.cdiff", -1.0, False),
        ("daily-1.cdiff.sign", 1.0, True),
        ("daily-1.cvd.sign", 1.0, True),
        ("daily-1.cvd", 1.0, False),
        ("daily-1.cld", 1.0, False),
    ],
)
def test_what_came_lately_is_spared(name: str, age: float, expected: bool) -> None:
    assert is_spared(ObjectId.parse(name), age, 60.0) is expected


def test_what_is_spared_takes_nothing_from_the_others() -> None:
    held = named("daily-5.cvd", *(f"daily-{version}.cdiff" for version in range(1, 6)))
    old = named("daily-1.cdiff")
    assert superseded(held, 2, old) == named("daily-2.cdiff", "daily-3.cdiff")
    assert over_limit(dict.fromkeys(held, 10), 30, old) == sorted(
        named(*(f"daily-{v}.cdiff" for v in (2, 3, 4)))
    )


def sized(sizes: str) -> dict[ObjectId, int]:
    pairs = (part.split("=") for part in sizes.split())
    return {ObjectId.parse(name): int(size) for name, size in pairs}


@pytest.mark.parametrize(
    ("held", "limit", "gone"),
    [
        pytest.param("daily-5.cvd=90", 100, "", id="it fits"),
        pytest.param("daily-5.cvd=100", 100, "", id="it just fits"),
        pytest.param("daily-5.cvd=200 main-1.cvd=300", 100, "", id="the newest CVDs never go"),
        pytest.param(
            "daily-4.cvd=60 daily-5.cvd=60 daily-5.cdiff=1", 70, "daily-4.cvd", id="old CVDs before cdiffs"
        ),
        pytest.param(
            "daily-4.cvd=20 daily-5.cvd=20 main-1.cvd=90 main-2.cvd=90",
            210,
            "main-1.cvd",
            id="the largest old CVD first",
        ),
        pytest.param(
            "daily-4.cvd=20 daily-5.cvd=20 main-1.cvd=90 main-2.cvd=90",
            120,
            "main-1.cvd daily-4.cvd",
            id="then the smaller one",
        ),
        pytest.param(
            "daily-5.cvd=90 daily-3.cdiff=5 daily-4.cdiff=5 daily-5.cdiff=5",
            100,
            "daily-3.cdiff",
            id="the oldest cdiffs first",
        ),
        pytest.param(
            "daily-900.cdiff=5 daily-899.cdiff=5 main-7.cdiff=5 main-5.cdiff=5",
            15,
            "main-5.cdiff",
            id="oldest counts from each database's own newest",
        ),
        pytest.param(
            "daily-4.cvd=60 daily-4.cvd.sign=9 daily-5.cvd=60 daily-5.cvd.sign=9",
            130,
            "daily-4.cvd daily-4.cvd.sign",
            id="with the signature",
        ),
        pytest.param(
            "daily-6.cld=60 daily-4.cvd=60 daily-5.cvd=60", 120, "daily-6.cld", id="CLDs can be built again"
        ),
        pytest.param(
            "daily-6.cld=60 daily-7.cld=60 daily-5.cvd=60", 120, "daily-6.cld", id="the older CLD first"
        ),
        pytest.param(
            "daily-6.cld=60 daily-5.cvd=60 daily-5.cvd.sign=9 daily-6.cdiff=9",
            60,
            "daily-6.cld",
            id="what leads on from the newest CVD would soon be fetched again",
        ),
        pytest.param(
            "daily-5.cvd=60 daily-5.cdiff=5 daily-6.cdiff=5 main-3.cdiff=5 main-4.cdiff=5",
            60,
            "daily-5.cdiff main-3.cdiff main-4.cdiff",
            id="nothing leads on without a CVD",
        ),
        pytest.param(
            "daily-3.cdiff=5 daily-3.cdiff.sign=9 daily-5.cvd=60",
            60,
            "daily-3.cdiff daily-3.cdiff.sign",
            id="a cdiff with its signature",
        ),
    ],
)
def test_what_is_given_up_and_in_which_order(held: str, limit: int, gone: str) -> None:
    assert over_limit(sized(held), limit) == [ObjectId.parse(name) for name in gone.split()]


ids = st.builds(
    ObjectId,
    st.sampled_from(["daily", "main"]),
    st.integers(1, 12),
    st.sampled_from(list(Kind)),
)


def newest_cvds(objects: set[ObjectId]) -> set[ObjectId]:
    cvds = [object_id for object_id in objects if object_id.kind is Kind.CVD]
    return {max(c for c in cvds if c.database == database) for database in {c.database for c in cvds}}


def what_leads_on(objects: set[ObjectId]) -> set[ObjectId]:
    """The newest CVDs, and the patches after them."""
    cvds = newest_cvds(objects)
    newest = {cvd.database: cvd.version for cvd in cvds}
    patches = {one for one in objects if one.kind is Kind.CDIFF}
    return cvds | {one for one in patches if one.version > newest.get(one.database, one.version)}


@given(st.sets(ids, max_size=40), st.integers(0, 5))
def test_superseding_is_idempotent_and_keeps_the_newest_cvds(objects: set[ObjectId], keep: int) -> None:
    gone = superseded(objects, keep)
    assert gone <= objects
    assert not gone & newest_cvds(objects)
    assert not superseded(objects - gone, keep)


@given(st.dictionaries(ids, st.integers(0, 100), max_size=30), st.integers(0, 1500))
def test_what_is_left_fits_or_cannot_be_given_up(sizes: dict[ObjectId, int], limit: int) -> None:
    signed = {object_id.signed for object_id in sizes if object_id.kind.is_signature}
    sizes |= dict.fromkeys(signed, 1)  # the case of a signature alone is below
    gone = over_limit(sizes, limit)
    left = set(sizes) - set(gone)
    assert len(gone) == len(set(gone))
    kept = what_leads_on(set(sizes))
    assert kept <= left
    if sum(sizes[object_id] for object_id in left) > limit:
        assert {object_id.signed if object_id.kind.is_signature else object_id for object_id in left} == kept


@given(st.dictionaries(ids, st.integers(1, 100), max_size=30), st.integers(0, 1500))
def test_nothing_is_given_up_for_nothing(sizes: dict[ObjectId, int], limit: int) -> None:
    if sum(sizes.values()) <= limit:
        assert over_limit(sizes, limit) == []


def test_signatures_alone_fit_the_limit() -> None:
    sizes = {ObjectId("daily", version, Kind.CVD_SIGN): 10 for version in range(1, 100)}
    assert sum(sizes.values()) - sum(sizes[object_id] for object_id in over_limit(sizes, 100)) <= 100


# Under a ceiling


@pytest.mark.parametrize("keep", [0, 2])
def test_what_a_held_version_needs_stays(keep: int) -> None:
    """Its base with the patches and signatures, what comes after it, and the base that comes next."""
    cvds = [ObjectId("daily", version, Kind.CVD) for version in (90, 105, 108, 110)]
    patches = [ObjectId("daily", version, Kind.CDIFF) for version in range(85, 111)]
    clds = [ObjectId("daily", version, Kind.CLD) for version in (100, 106, 107)]
    objects = {*cvds, *patches, *clds, *(one.signature for one in (*cvds, *patches))}
    needed = under_ceilings(objects, {"daily": 100, "main": 1})
    base, later = cvds[0], patches[6:]
    bases = {base, base.signature, cvds[1], cvds[1].signature}
    assert needed == {*bases, clds[0], *later, *(one.signature for one in later)}
    sizes = dict.fromkeys(objects, 10)
    assert not needed & set(to_drop(sizes, keep, 1000, needed))
    assert not needed & set(to_drop(sizes, keep, 1, needed))
    # Once it is released, the base is one too many.
    assert base in to_drop(sizes, keep, 10_000, ())


@pytest.mark.parametrize("delayed_by", [1, 2, 3, 7, 30])
def test_the_base_follows_a_ceiling_that_rises(delayed_by: int) -> None:
    """If the CVD of each release is cached, a delay that covers many of them keeps few, none for good."""
    sizes = {ObjectId("daily", 100, Kind.CVD): 1000}
    for version in range(101, 300):
        sizes[ObjectId("daily", version, Kind.CDIFF)] = 1
        sizes[ObjectId("daily", version, Kind.CVD)] = 1000
        ceiling = max(100, version - delayed_by)
        for gone in to_drop(sizes, 10, 10**6, under_ceilings(sizes, {"daily": ceiling})):
            del sizes[gone]
        cvds = sorted(one.version for one in sizes if one.kind is Kind.CVD)
        base = max(one for one in cvds if one <= ceiling)
        assert ceiling - base <= delayed_by
        assert len(cvds) <= 4
        assert len(sizes) - len(cvds) <= max(10, 2 * delayed_by)
