"""How is a session found in a store that knows session ids, by a reference, which cannot be turned back into the id?

A reference is a hash of the id, so the way goes from the ids that are in the store. Theory of operation:

- A session has an *id*, of which its reference is made, and a *place*, by which the store deletes it. In most stores
  both are one text. In Django's the login's id is in the session's data and lasts, while the key under which the store
  has it changes within one login: such a session *moves*.
- A *pass* walks over all sessions of the store and hashes each id. What it finds is the index (reference -> place)
  until the next pass, which replaces it whole. Passes follow each other every `pass_interval_s`, and one comes at once
  on a miss.
- *Hints* are what the application itself has written at login (reference -> id, in the same store). They are asked
  first and cost nothing to be without; one whose id has another reference is passed over.
- An ending whose session is found, by hint or index, deletes it at once. Any other is a miss: the session may be
  younger than the index. A store that had the session when its ending was appended shows it to every pass that begins
  after that, so the miss waits for such a pass: for one that begins now, unless the last one is known to have begun
  after the ending was appended (the end of the topic, taken before that pass, is past it). A backlog is so worked off
  by one pass. If that pass does not show the session, the store does not hold it any more.
- Where sessions move, one that is not at the place that the index has is a miss too. An ending that says `closed` is
  none: a logout deletes its session itself, and a pass for each logout would be passes without a break. What else may
  be behind it, and a session that moves past a pass that is under way, is left to the second look.
- *The second look.* A request that was under way when its session was deleted may write it back as it ends, and one
  that logs in may be overtaken by its own ending. Endings are therefore remembered for `memory_s`, and every pass also
  deletes what it finds of theirs; without passes, what was deleted is deleted again. An applier begins so far back in
  the topic (`memory_ms`), so that a restart forgets nothing.

What is bounded: the index by INDEX_MAX ids, beyond which a miss always takes a pass of its own; what is remembered by
ENDED_MAX, the oldest given up first. Passes never come closer than PAUSE_S or the last one's duration (so that misses
keep the store busy half the time at most), those that nothing asked for than IDLE_SHARE times that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Protocol

from lapse.consumers.appliers.effects import Ending, Ends, Rejected, Unavailable
from lapse.schemas import Cause, session_reference

__all__ = ["MEMORY_S", "IndexedEffect", "SessionStore"]

_log = logging.getLogger("lapse.consumers")

INDEX_MAX: Final = 2_000_000
"""Sessions in the index, 218 bytes each with their references and Django's places (`python -m benchmarks --only
appliers`): 440 MB, and as much again while a pass makes the next one."""

ENDED_MAX: Final = 1_000_000
"""Endings remembered for the second look, about 150 bytes each: 150 MB. It covers 1,600 endings a second."""

MEMORY_S: Final = 600.0
"""How long endings are remembered: longer than any request that could still write its session back."""

PAUSE_S: Final = 1.0
"""Between passes, so that misses do not keep the store busy without a break."""

IDLE_SHARE: Final = 9
"""A tenth of the time is spent on passes that no miss asked for: at 17 us of processor a session (`python -m benchmarks
--only appliers`), one over 1,000,000 takes 17 s, and the next comes two and a half minutes later."""

_SUSPICIOUS: Final = 100
"""Endings of which none was found: in an estate that works, some sessions end while their store still has them."""

_SLICE: Final = 500
"""References hashed before other tasks get their turn: under a millisecond."""


class SessionStore(Protocol):
    """A store that holds sessions. Every method raises Unavailable when it does not answer."""

    @property
    def moves(self) -> bool:
        """Return whether a session may come to another place while it keeps its id."""

    async def start(self) -> None:
        """Connect; raise ConfigError if the store is not what it was said to be."""

    def walk(self) -> AsyncIterator[Sequence[tuple[str, str]]]:
        """Yield all sessions in portions, each as its id and its place.

        Whatever is at its place from the beginning to the end of it comes.
        """

    async def hints(self, references: Sequence[str]) -> Mapping[str, str]:
        """Return, by reference, the ids that the application has left for these; they are places as well."""

    async def delete(self, places: Sequence[str], subjects: Mapping[str, str]) -> int:
        """Delete these sessions, and return how many there were; `subjects`: whose, by place, where it is known."""

    async def stop(self) -> None:
        """Disconnect."""


class IndexedEffect:
    """Deletes ended sessions from a store; see the module.

    Args:
        key: of session references; None: plain hashes.
        passes: whether the store may be walked over; without, hints are all there is.
        pass_interval_s: between passes, or second looks.
        memory_s: how long endings are remembered.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        key: bytes | None = None,
        passes: bool = True,
        pass_interval_s: float = 30.0,
        memory_s: float = MEMORY_S,
    ) -> None:
        self._store = store
        self._key = key
        self._passes = passes
        self._pass_interval_s = pass_interval_s
        self._memory_s = memory_s
        self._index: dict[str, str] = {}
        self._whole = False
        self._covered: Mapping[int, int] = {}  # the ends of the topic, taken before the last pass began
        self._ended: dict[str, tuple[float, str, str | None]] = {}  # reference -> forget at, subject, place if known
        self._passing = asyncio.Lock()
        self._passed_at = -PAUSE_S
        self._took_s = 0.0
        self._ends: Ends | None = None
        self._looking: asyncio.Task[None] | None = None
        self._seen = 0
        self._told = False
        self.done = 0
        self.passes = 0

    @property
    def entries(self) -> int:
        return len(self._index)

    async def start(self, ends: Ends) -> None:
        self._ends = ends
        await self._store.start()
        if self._passes:
            await self._pass()
            _log.info("the store shows %d sessions", len(self._index))
        self._looking = asyncio.create_task(self._look(), name="lapse-apply-second-look")

    async def apply(self, endings: Sequence[Ending]) -> Sequence[Rejected]:
        forget_at = time.monotonic() + self._memory_s
        subjects = {ending.ended.session: ending.ended.subject for ending in endings}
        for reference, subject in subjects.items():
            self._ended.pop(reference, None)  # at its end again: the order is that of forgetting
            self._ended[reference] = (forget_at, subject, None)
        hints = await self._store.hints(list(subjects))
        found = {one: told for one, told in hints.items() if session_reference(told, self._key) == one}
        for reference in subjects:
            if reference not in found and reference in self._index:
                found[reference] = self._index[reference]
        closed = {ending.ended.session for ending in endings if ending.ended.cause is Cause.CLOSED}
        await self._delete([one for one in found.items() if one[0] in closed])
        gone = await self._delete([one for one in found.items() if one[0] not in closed])
        self._forget()
        if self._passes and (
            (gone and self._store.moves)
            or any(ending.ended.session not in found and not self._is_covered(ending) for ending in endings)
        ):
            await self._pass()
        self._seen += len(subjects)
        self._tell_if_nothing_is_found()
        return ()

    async def stop(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        await self._store.stop()

    def _tell_if_nothing_is_found(self) -> None:
        """Say once what looks like a mistake in what the applier was told: a wrong key finds nothing, and no error."""
        if not self._told and not self.done and self._seen >= _SUSPICIOUS and (self._index or not self._passes):
            self._told = True
            _log.warning(
                "none of %d ended sessions was found in the store, which shows %d: are they the services' sessions, "
                "and is LAPSE_REFERENCE_KEY the services' key?",
                self._seen,
                len(self._index),
            )

    def _is_covered(self, ending: Ending) -> bool:
        return self._whole and ending.offset < self._covered.get(ending.partition, 0)

    async def _pass(self) -> None:
        """Walk over the store in a pass that begins after the call; delete what it shows of what has ended."""
        async with self._passing:
            pause_s = max(PAUSE_S, self._took_s)
            await asyncio.sleep(max(0.0, self._passed_at + pause_s - time.monotonic()))
            began_at = time.monotonic()
            covered = {} if self._ends is None else await self._ends()
            index: dict[str, str] = {}
            whole = True
            async for sessions in self._store.walk():
                ended: list[tuple[str, str]] = []
                for first in range(0, len(sessions), _SLICE):
                    for session_id, place in sessions[first : first + _SLICE]:
                        reference = session_reference(session_id, self._key)
                        if reference in self._ended:
                            ended.append((reference, place))
                        if len(index) < INDEX_MAX:
                            index[reference] = place
                        else:
                            whole = False
                    await asyncio.sleep(0)
                await self._delete(ended)
            self._index, self._whole, self._covered = index, whole, covered
            self._passed_at = time.monotonic()
            self._took_s = self._passed_at - began_at
            self.passes += 1

    async def _delete(self, found: Sequence[tuple[str, str]]) -> int:
        """Delete sessions, by reference and place; remember the places, and return how many were not there."""
        if not found:
            return 0
        subjects = {}
        for reference, place in found:
            remembered = self._ended.get(reference)
            if remembered is None:
                continue  # it was forgotten while the pass went on
            forget_at, subject, _ = remembered
            self._ended[reference] = (forget_at, subject, place)
            subjects[place] = subject
        deleted = await self._store.delete(list(subjects), subjects)
        self.done += deleted
        return len(subjects) - deleted

    async def _look(self) -> None:
        """The second look, again and again."""
        failing = False
        while True:
            await asyncio.sleep(max(self._pass_interval_s, IDLE_SHARE * self._took_s))
            try:
                self._forget()
                if self._passes:
                    await self._pass()
                else:
                    known = {reference: one[2] for reference, one in self._ended.items()}
                    await self._delete([(reference, one) for reference, one in known.items() if one is not None])
                failing = False
            except Unavailable as error:
                if not failing:
                    _log.warning("the second look waits: %s", error)
                failing = True
            except Exception:  # a fault of ours: without second looks, what is written back would stay
                _log.exception("the second look failed and is repeated")

    def _forget(self) -> None:
        now = time.monotonic()
        with contextlib.suppress(StopIteration):
            while self._ended:
                oldest = next(iter(self._ended))
                if self._ended[oldest][0] > now and len(self._ended) <= ENDED_MAX:
                    return
                del self._ended[oldest]
