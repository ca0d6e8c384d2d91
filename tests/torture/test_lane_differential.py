"""The express lane and mitmproxy read the same bytes alike: no request has two meanings."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.torture.conftest import Figures
from tests.torture.effort import SEED, rounds
from tests.torture.request_streams import Stream, make_stream, odd_streams
from tests.torture.twins import Outcome, Twin, Twins, address_of, open_twins

UNREADABLE = "the content can't be read"
NOT_FOR_THE_LANE = (b"content-length", b"transfer-encoding", b"expect", b"upgrade")
"""Fields of requests that only mitmproxy may answer, even where the answers would be the same."""
MOST_SHOWN = 3
"""Differences that a failed test describes."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A stream, the number of its client, and what it did to each gateway."""

    stream: Stream
    number: int
    outcomes: tuple[Outcome, Outcome]

    @property
    def is_alike(self) -> bool:
        return self.outcomes[0] == self.outcomes[1] and self.is_sound

    @property
    def is_sound(self) -> bool:
        """Whether what was passed on is HTTP for everybody, and no connection was left open."""
        return not any(outcome.unreadable or outcome.is_left_open for outcome in self.outcomes)


def test_both_read_the_same_bytes_alike(tmp_path: Path, figures: Figures) -> None:
    """Answers, forwarded requests and the log are the same with and without the lane."""
    odd = odd_streams()
    streams = [*odd, *(make_stream(Random(f"{SEED}-{number}")) for number in range(rounds(250, 10_000)))]
    with open_twins(tmp_path) as twins:
        tried = asyncio.run(_try(twins, streams))
        logs = twins.logs()
        different = [one for one in tried if not one.is_alike]
        told = [one for one in tried if one.is_alike and not _is_told_alike(logs, one.number)]
        assert not different, asyncio.run(_describe(twins, different, len(streams)))
        assert not told, [(one.stream, [log.get(address_of(one.number)) for log in logs]) for one in told]
        by_lane, by_lane_of_plain = (
            _answered_by_lane(tried, side, twin) for side, twin in enumerate((twins.express, twins.plain))
        )
        assert not [one.stream for one in by_lane if one.number < len(odd) and not _is_for_lane(one.stream)]
        assert "Traceback" not in twins.express.site.gateway.log + twins.plain.site.gateway.log
    statuses = Counter(answer.status for one in tried for answer in one.outcomes[0].answers)
    forwarded = sum(len(one.outcomes[0].forwarded) for one in tried)
    # Otherwise the streams would show nothing.
    assert statuses[200] > len(streams) / 5
    assert statuses[400] > len(streams) / 5
    assert forwarded
    assert len(by_lane) > len(streams) / 20
    assert not by_lane_of_plain
    figures(
        "lane and mitmproxy",
        streams=len(tried),
        of_one_oddity=len(odd),
        answers=statuses.total(),
        refused=sum(count for status, count in statuses.items() if status >= 400),
        forwarded=forwarded,
        streams_answered_by_the_lane=len(by_lane),
        differences=0,
    )


async def _try(twins: Twins, streams: Iterable[Stream], first: int = 0) -> list[Tried]:
    """Send streams, several at a time."""
    left, tried = iter(enumerate(streams, first)), list[Tried]()

    async def work(worker: int) -> None:
        for number, stream in left:
            tried.append(Tried(stream, number, await twins.send(stream, number, worker)))

    async with twins.recording() as workers:
        await asyncio.gather(*map(work, workers))
    return tried


def _is_told_alike(logs: tuple[dict[str, list[str]], ...], number: int) -> bool:
    express, plain = (_told(log.get(address_of(number), [])) for log in logs)
    return express == plain


def _told(lines: list[str]) -> list[str]:
    """The lines about a client, but not that nothing was passed on if its content was refused.

    Whether passing on had begun by then depends on when the content arrives.
    """
    is_refused = any(UNREADABLE in line for line in lines)
    return [line for line in lines if not (is_refused and " passed 0 0B" in line)]


def _answered_by_lane(tried: list[Tried], side: int, twin: Twin) -> list[Tried]:
    """Streams that have got a file although mitmproxy has read none of their requests."""
    read = twin.read_by_mitmproxy()
    return [
        one
        for one in tried
        if address_of(one.number) not in read
        and any(answer.status == 200 for answer in one.outcomes[side].answers)
    ]


def _is_for_lane(stream: Stream) -> bool:
    return not any(b"\n%b:" % name in stream.data.lower() for name in NOT_FOR_THE_LANE)


async def _describe(twins: Twins, different: list[Tried], used: int) -> str:
    """The smallest streams that show the same kind of differences, and what they do."""
    shown = [f"{len(different)} streams have two meanings (seed {SEED}). For example:"]
    for one in different[:MOST_SHOWN]:
        smallest = one
        for at in reversed(range(len(one.stream.atoms))):
            (shorter,) = await _try(twins, [smallest.stream.without(at)], used := used + 1)
            smallest = smallest if shorter.is_alike else shorter
        shown += [f"number {one.number}: {smallest.stream}", *map(str, smallest.outcomes)]
    return "\n".join(shown)
