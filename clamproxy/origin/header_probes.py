"""Heads: the 512-byte headers of the CVDs at the origin, requested by Range.

A head tells the origin's version before a whole file is fetched, so that no version is ever downloaded
twice. It also answers the clients' own header probes while the file isn't here.

It is only a claim, as nothing in it is signed. So nothing else is answered from it, and it is dropped as
soon as the file itself shows that it was wrong.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from clamproxy.clock import Clock
from clamproxy.dates import as_past_time
from clamproxy.formats.header import HEADER_SIZE, CvdHeader
from clamproxy.formats.verification import InvalidObject
from clamproxy.messages import Requester
from clamproxy.negative_cache import NegativeCache
from clamproxy.notes import UNKEPT, Notes
from clamproxy.objects import Kind, Latest
from clamproxy.origin.cooldown import Cooldowns, FailureKind
from clamproxy.origin.errors import KnownMissingError, NotFoundError, OriginError, RangeError
from clamproxy.origin.probe_turns import ProbeTurns
from clamproxy.origin.scope import CancelScope, in_scope
from clamproxy.origin.transfers import CooldownError
from clamproxy.origin.upstream import Upstream
from clamproxy.policy import RECHECK, plausible
from clamproxy.single_flight import SingleFlight

logger = logging.getLogger(__name__)

LONGEST_PROBE = 60.0
"""Seconds that 512 bytes may take, even if they trickle in."""
SILENCE = 10.0
"""Seconds after which another client doesn't wait for a probe that has no response yet."""


@dataclass(frozen=True, slots=True)
class ProbedHeader:
    """The header of a CVD or CLD of which nothing else is here."""

    header: CvdHeader
    is_proven: bool = False
    """Whether cached patches lead to this version; otherwise it is only the origin's claim."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The origin's last response with a header."""

    at: float = 0.0
    """Unix seconds; 0 if there was none."""
    advertised: int = 0
    """The version that DNS advertised then."""
    wanted: int = 0
    """The version that was hoped for then."""
    fruitless: int = 0
    """How many times in a row the origin answered with nothing new."""


@dataclass(frozen=True, slots=True, eq=False)
class _Probe:
    database: str
    requester: Requester
    started_at: float
    asked_at: float
    """Loop time at which the first of the probes began that the origin hasn't answered yet."""
    admitted_at: float
    """Unix seconds."""
    known: Sighting
    """The origin's last response as it was known when the probe was decided on."""

    @property
    def path(self) -> str:
        return Latest(self.database, Kind.CVD).upstream_path

    def __str__(self) -> str:
        return self.database


type _Noted = tuple[ProbedHeader | None, Sighting]
"""The newest head of a database, and the origin's last response."""


class HeaderProbes:
    """The newest head of each database, whichever process or gateway has seen it. Event loop only.

    Args:
        cooldowns: asked before each probe, and told the result.
        notes: where heads are kept, by database.
        missing: where the databases are kept that the origin lacked a short while ago.
        learnt: called with each database and its version whenever the origin's head gives one.
        turns: lets one process of a site ask for all of them; None: there are no others.
    """

    def __init__(
        self,
        upstream: Upstream,
        cooldowns: Cooldowns,
        notes: Notes,
        learnt: Callable[[str, int], object] | None = None,
        clock: Clock = time,
        turns: ProbeTurns | None = None,
        missing: Notes = UNKEPT,
    ) -> None:
        self._upstream = upstream
        self._turns = turns
        self._cooldowns = cooldowns
        self._notes = notes
        self._learnt = learnt
        self._clock = clock
        self._heads: dict[str, ProbedHeader] = {}
        self._sightings: dict[str, Sighting] = {}
        for database, noted in notes.load(self._parse, _newest).items():
            self._note(database, noted)
        self._missing = NegativeCache[str](clock.monotonic, missing, now=clock.time)
        self._probes = SingleFlight[_Probe, None]("probe")
        """The probes under way: more than one per database if the earlier ones are silent."""
        self._latest: dict[str, _Probe] = {}
        self._told: dict[str, str] = {}
        """What the log says about the databases whose header isn't available."""

    def get(self, database: str) -> ProbedHeader | None:
        """The newest head that was seen."""
        self._take_in()
        return self._heads.get(database)

    def sighting(self, database: str) -> Sighting:
        """When and for what the origin last answered."""
        self._take_in()
        return self._sightings.get(database, Sighting())

    def _take_in(self) -> None:
        for database, noted in self._notes.news(self._parse, _newest).items():
            self._note(database, noted)

    def _note(self, database: str, noted: _Noted | None) -> None:
        head, sighting = noted or (None, Sighting())
        self._sightings[database] = sighting
        if head is None:
            self._heads.pop(database, None)
        else:
            self._heads[database] = head

    def _parse(self, saved: Any) -> _Noted:
        return _from_json(saved, self._clock.time())

    def forget(self, database: str) -> None:
        """Forget a head: the whole file was not what it announced."""
        self._heads.pop(database, None)
        self._sightings.pop(database, None)
        self._notes.forget(database)

    def put_to_test(self, database: str) -> Callable[[CvdHeader | None], None]:
        """Note what is known now that the origin is asked for the whole file.

        Returns:
            What to call with the header of that file, which has arrived, or with None if it was not what
            the head announced. That drops a head that was wrong, but not one that has been seen since: the
            file may just be older.
        """
        return partial(self._hold_against, database, (self.get(database), self.sighting(database)))

    def _hold_against(self, database: str, expected: _Noted, proven: CvdHeader | None) -> None:
        head = self.get(database)
        if head is None or (head, self.sighting(database)) != expected:
            return
        if proven is None:
            self.forget(database)
            return
        if head.header.version < proven.version or head.header.raw == proven.raw:
            return
        logger.warning(
            "The origin's header of %s.cvd was wrong: it said version %d, %s; the file is version %d, %s.",
            database,
            head.header.version,
            head.header.build_time,
            proven.version,
            proven.build_time,
        )
        del self._heads[database]
        self._save(database)

    async def probe(self, database: str, requester: Requester, advertised: int, wanted: int) -> None:
        """Ask the origin for a head, or wait for the response to a probe under way.

        Args:
            requester: the origin is asked on its behalf.
            advertised: the version that DNS advertises, 0 if none.
            wanted: the version that is hoped for: the advertised one, or what the client demands.

        Raises:
            KnownMissingError: the origin said a minute ago that it has no such file.
            NotFoundError, OriginError: as the origin answered.
            CooldownError: it must not be asked now.
        """
        # As it was when the caller decided, whatever others have heard in the meantime.
        known = self._sightings.get(database, Sighting())
        sighting = Sighting(0, advertised, wanted)
        while True:
            probe = self._joinable(database) or self._admit(database, requester, known)
            try:
                return await self._probes.run(probe, partial(self._probe, probe, sighting))
            except OriginError as error:
                # An old client's 403 doesn't apply to others (docs/protocol.md, trap 20): ask for this one.
                same = probe.requester.version == requester.version
                if same or error.failure is not FailureKind.FORBIDDEN:
                    raise

    def asked_at(self, database: str) -> float | None:
        """Loop time since which the origin owes a response; None if it owes none."""
        probe = self._under_way(database)
        return None if probe is None else probe.asked_at

    def _under_way(self, database: str) -> _Probe | None:
        probe = self._latest.get(database)
        return probe if probe is not None and probe in self._probes else None

    def _joinable(self, database: str) -> _Probe | None:
        """The probe under way, unless it has been silent for so long that another one is worthwhile."""
        probe = self._under_way(database)
        return None if probe is None or self._clock.monotonic() - probe.started_at >= SILENCE else probe

    def _admit(self, database: str, requester: Requester, known: Sighting) -> _Probe:
        """Another probe, if one may be sent."""
        if database in self._missing:
            raise KnownMissingError(f"the origin has no {database}.cvd")
        path = Latest(database, Kind.CVD).upstream_path
        if cooldown := self._cooldowns.admit(path, requester.version):
            raise CooldownError(cooldown)
        asked_at = self.asked_at(database) or asyncio.get_running_loop().time()
        probe = _Probe(database, requester, self._clock.monotonic(), asked_at, self._clock.time(), known)
        self._latest[database] = probe
        return probe

    def stop(self) -> None:
        self._probes.stop()

    async def _probe(self, probe: _Probe, sighting: Sighting) -> None:
        """Ask the origin, or take over what another process or gateway has heard."""
        if self._turns is None:
            await self._ask_and_note(probe, sighting)
            return
        has_asked = False

        async def ask() -> CvdHeader:
            nonlocal has_asked
            has_asked = True
            return await self._ask_and_note(probe, sighting)

        database, agent = probe.database, probe.requester.version
        try:
            header, _ = await self._turns.run(database, agent, sighting.wanted, ask)
        except (OriginError, NotFoundError) as error:
            if not has_asked and not self._is_settled(probe):
                self._note_failure(probe, error)
            raise
        if not has_asked and not self._is_settled(probe):
            self._note_header(database, sighting, ProbedHeader(header))

    def _is_settled(self, probe: _Probe) -> bool:
        """Whether another process of this machine has probed since, and has noted the result."""
        self._notes.refresh()
        cooldown = self._cooldowns.check(probe.path, probe.requester.version)
        is_held_back = cooldown is not None and cooldown.noted_at >= probe.admitted_at
        return is_held_back or self.sighting(probe.database) != probe.known

    async def _ask_and_note(self, probe: _Probe, sighting: Sighting) -> CvdHeader:
        database = probe.database
        if self._is_settled(probe):
            if database in self._missing:
                raise KnownMissingError(f"the origin has no {database}.cvd")
            cooldown = self._cooldowns.check(probe.path, probe.requester.version)
            if cooldown is not None:
                raise OriginError(cooldown.failure, cooldown.reason)
            if (head := self.get(database)) is not None:
                return head.header
        asked_at = self._clock.time()
        try:
            header = await self._ask_in_thread(database, probe.path, probe.requester)
        except (OriginError, NotFoundError) as error:
            self._note_failure(probe, error)
            await self._notes.written()
            raise
        self._cooldowns.succeeded(probe.path, probe.requester.version, verified=False, asked_at=asked_at)
        self._note_header(database, sighting, ProbedHeader(header))
        await self._notes.written()
        return header

    def _note_failure(self, probe: _Probe, error: OriginError | NotFoundError) -> None:
        database, agent = probe.database, probe.requester.version
        if isinstance(error, NotFoundError):
            if self._is_news(database, "missing"):
                logger.info("The origin has no %s.cvd: %s", database, error)
            self._cooldowns.forgive_proxy(probe.admitted_at)
            self._missing.add(database, RECHECK)
            self._sightings[database] = replace(self.sighting(database), at=self._clock.time())
            self._save(database)
            return
        cooldown = self._cooldowns.failed(
            error.failure, probe.path, agent, str(error), error.retry_after, probe.admitted_at
        )
        if self._is_news(database, error.failure):
            wait = cooldown.until - self._clock.time()
            logger.warning("No header of %s.cvd (%s); next try in %.0f s.", database, error, wait)

    def _note_header(self, database: str, sighting: Sighting, head: ProbedHeader) -> None:
        if self._told.pop(database, None) is not None:
            logger.info("The header of %s.cvd is available again.", database)
        known, last = self.get(database), self.sighting(database)
        version = head.header.version
        is_new = known is None or version > known.header.version
        self._sightings[database] = Sighting(
            at=self._clock.time(),
            advertised=max(sighting.advertised, plausible(last.advertised, version)),
            wanted=max(sighting.wanted, plausible(last.wanted, version)),
            fruitless=0 if is_new else last.fruitless + 1,
        )
        # An edge of the CDN may lag behind another: versions never go backwards (trap 4).
        is_older = known is not None and version < known.header.version
        if not is_older:
            self._heads[database] = head
        self._save(database)
        if self._learnt is not None and not is_older:
            self._learnt(database, version)

    def _is_news(self, database: str, state: str) -> bool:
        """Whether the log doesn't say so yet: one line per state, not per look."""
        before, self._told[database] = self._told.get(database), state
        return before != state

    async def _ask_in_thread(self, database: str, path: str, requester: Requester) -> CvdHeader:
        """Ask in a thread. All failures become errors of the origin: cached objects are still served."""
        try:
            return await in_scope(
                f"clamproxy-probe-{database}",
                LONGEST_PROBE,
                lambda scope: self._ask(path, requester, scope),
            )
        except TimeoutError as error:
            raise OriginError(FailureKind.INTERRUPTED, "the header does not arrive") from error
        except (OriginError, NotFoundError):
            raise
        except Exception as error:
            logger.exception("The header probe of %s failed.", database)
            raise OriginError(FailureKind.LOCAL, f"{type(error).__name__}: {error}") from error

    def _ask(self, path: str, requester: Requester, scope: CancelScope) -> CvdHeader:
        wanted = {"Range": f"bytes=0-{HEADER_SIZE - 1}"}
        try:
            with self._upstream.get(path, requester, wanted, scope) as answer:
                if answer.start != 0:
                    raise OriginError(FailureKind.BAD_CONTENT, "not the range that was asked for")
                return CvdHeader.parse(answer.beginning(HEADER_SIZE))
        except (InvalidObject, RangeError) as error:
            raise OriginError(FailureKind.BAD_CONTENT, f"not a CVD header: {error}") from error

    def _save(self, database: str) -> None:
        head, sighting = self._heads.get(database), self._sightings.get(database, Sighting())
        header = None if head is None else head.header.raw.decode("ascii")
        self._notes.save(database, {"header": header, "seen_at": sighting.at, **_rest_of(sighting)})


def _newest(own: _Noted | None, others: Sequence[_Noted]) -> _Noted:
    """The highest version counts, and the response that the origin gave last."""
    noted = others if own is None else (own, *others)
    heads = [head for head, _ in noted if head is not None]
    head = max(heads, key=lambda head: head.header.version, default=None)
    return head, max((sighting for _, sighting in noted), key=lambda sighting: sighting.at)


def _rest_of(sighting: Sighting) -> dict[str, int]:
    return {
        "advertised": sighting.advertised,
        "wanted": sighting.wanted,
        "fruitless": sighting.fruitless,
    }


def _from_json(value: Any, now: float) -> _Noted:
    match value:
        case {"header": str() | None as header, "seen_at": int() | float() as seen_at}:
            counts = [value.get(name, 0) for name in _rest_of(Sighting())]
            if not all(isinstance(count, int) for count in counts):
                raise ValueError("no note of a head")
            sighting = Sighting(as_past_time(seen_at, now), *counts)
            if header is None:
                return None, sighting
            with suppress(InvalidObject):
                return ProbedHeader(CvdHeader.parse(header.encode("ascii"))), sighting
    raise ValueError("no note of a head")
