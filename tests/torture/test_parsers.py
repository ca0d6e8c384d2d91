"""Everything that reads bytes from outside takes them, or refuses them as it documents."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds
from tests.torture.inputs import BETWEEN, HOSTILE, mutated, pumped, pumped_by_chance
from tests.torture.parsers import GROUPS, PARSERS
from tests.torture.parsers.parser import Parser

SIZES = (16 * 2**10, 64 * 2**10)
"""Bytes of two inputs whose costs are compared."""
NOTABLE = 0.5
"""Seconds of processor time, below which a cost says nothing about how it grows."""
STEEPEST = 9.0
"""Four times the bytes cost four times as much, 16 times if that is quadratic. Measured costs vary."""

every_parser = pytest.mark.parametrize("parser", PARSERS, ids=str)


@every_parser
def test_seeds_are_meant(parser: Parser) -> None:
    """The table says something: at least one seed of each parser is accepted."""
    assert any(parser.accepts(seed) for seed in parser.seeds)


@every_parser
def test_hostile_bytes(parser: Parser) -> None:
    for data in (*HOSTILE, *parser.seeds):
        parser.accepts(data)


@pytest.mark.parametrize("group", GROUPS)
def test_any_bytes(group: str, figures: Figures) -> None:
    parsers = GROUPS[group]
    tried = sum((tried_with(parser) for parser in parsers), Counter[str]())
    figures(f"bytes from {group}", parsers=len(parsers), undocumented_exceptions=0, **tried)


def tried_with(parser: Parser) -> Counter[str]:
    """Seeds that are changed, and bytes out of nowhere; returns how many, and how many made sense."""
    tried = Counter[str]()

    @seed(SEED)
    @settings(
        max_examples=rounds(40, 1500), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.builds(mutated, st.sampled_from(parser.seeds), st.randoms(use_true_random=False))
        | st.binary(max_size=600)
    )
    def check(data: bytes) -> None:
        tried.update(inputs=1, accepted=parser.accepts(data))

    check()
    return tried


@every_parser
def test_cost_grows_with_the_size(parser: Parser) -> None:
    """No input costs more than in proportion to its length."""
    for small, large in _pumped(parser):
        cost = _cost(parser, large)
        if cost > NOTABLE:
            assert cost < STEEPEST * max(_cost(parser, small), NOTABLE / 16), (small[:80], small[-80:])


def _pumped(parser: Parser) -> Iterator[tuple[bytes, bytes]]:
    """Long lists of everything in the middle of each seed; then others, which are made by chance."""
    for one, unit in itertools.product(parser.seeds, BETWEEN):
        yield pumped(one[: len(one) // 2], unit, one[len(one) // 2 :], SIZES)
    choices = random.Random(SEED)
    for _ in range(rounds(1, 20)):
        yield pumped_by_chance(choices.choice(parser.seeds), choices, SIZES)


def _cost(parser: Parser, data: bytes) -> float:
    """Seconds of this process; the smaller of two if it is notable, as caches fill."""
    costs = list[float]()
    while not costs or (len(costs) < 2 and costs[0] > NOTABLE):
        before = time.process_time()
        parser.accepts(data)
        costs.append(time.process_time() - before)
    return min(costs)
