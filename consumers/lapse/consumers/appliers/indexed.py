"""How is a session found in a store that knows session ids, by a reference, which cannot be turned back into the id?

A reference is a hash of the id, so the way goes from the ids that are in the store. Theory of operation:

- A *pass* walks over all ids of the store and hashes each. What it finds is the index (reference -> id) until the next
  pass, which replaces it whole. Passes follow each other every `pass_interval_s`, and one comes at once on a miss.
- *Hints* are what the application itself has written at login (reference -> id, in the same store). They are asked
  first and cost nothing to be without; one whose id has another reference is passed over.
- An ending whose session is found, by hint or index, deletes it at once. Any other is a miss: the session may be
  younger than the index. A store that had the session when its ending was appended shows it to every pass that begins
  after that, so the miss waits for such a pass: for one that begins now, unless the last one is known to have begun
  after the ending was appended (the end of the topic, taken before that pass, is past it). A backlog is so worked off
  by one pass. If that pass does not show the session, the store does not hold it any more.
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
from lapse.schemas import session_reference

__all__ = ["MEMORY_S", "IndexedEffect", "SessionStore"]

_log = logging.getLogger("lapse.consumers")

INDEX_MAX: Final = 2_000_000
"""Ids in the index, about 200 bytes each with their references: 400 MB."""

ENDED_MAX: Final = 1_000_000
"""Endings remembered for the second look, about 150 bytes each: 150 MB. It covers 1,600 endings a second."""

MEMORY_S: Final = 600.0
"""How long endings are remembered: longer than any request that could still write its session back."""

PAUSE_S: Final = 1.0
"""Between passes, so that misses do not keep the store busy without a break."""

IDLE_SHARE: Final = 9
"""A tenth of the time is spent on passes that no miss asked for: at 1,000,000 sessions one took 6 s (measured)."""

_SUSPICIOUS: Final = 100
"""Endings of which none was found: in an estate that works, some sessions end while their store still has them."""

_SLICE: Final = 500
"""References hashed before other tasks get their turn: under a millisecond."""


class SessionStore(Protocol):
    """A store that holds sessions by their ids. Every method raises Unavailable when it does not answer."""

    async def start(self) -> None:
        """Connect; raise ConfigError if the store is not what it was said to be."""

    def ids(self) -> AsyncIterator[Sequence[str]]:
        """Yield all session ids in portions; whatever is there from the beginning to the end of it comes."""

    async def hints(self, references: Sequence[str]) -> Mapping[str, str]:
        """Return, by reference, the ids that the application has left for these."""

    async def delete(self, ids: Sequence[str], subjects: Mapping[str, str]) -> int:
        """Delete these sessions, and return how many there were; `subjects`: whose, by id, where it is known."""

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
        self._ended: dict[str, tuple[float, str, str | None]] = {}  # reference -> forget at, subject, id if known
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
        await self._delete(found)
        self._forget()
        if self._passes and any(
            ending.ended.session not in found and not self._is_covered(ending) for ending in endings
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
            async for ids in self._store.ids():
                ended: dict[str, str] = {}
                for first in range(0, len(ids), _SLICE):
                    for session_id in ids[first : first + _SLICE]:
                        reference = session_reference(session_id, self._key)
                        if reference in self._ended:
                            ended[reference] = session_id
                        if len(index) < INDEX_MAX:
                            index[reference] = session_id
                        else:
                            whole = False
                    await asyncio.sleep(0)
                await self._delete(ended)
            self._index, self._whole, self._covered = index, whole, covered
            self._passed_at = time.monotonic()
            self._took_s = self._passed_at - began_at
            self.passes += 1

    async def _delete(self, found: Mapping[str, str]) -> None:
        """Delete sessions by their ids, and remember those."""
        if not found:
            return
        subjects = {}
        for reference, session_id in found.items():
            forget_at, subject, _ = self._ended[reference]
            self._ended[reference] = (forget_at, subject, session_id)
            subjects[session_id] = subject
        self.done += await self._store.delete(list(found.values()), subjects)

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
                    await self._delete({reference: one for reference, one in known.items() if one is not None})
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
