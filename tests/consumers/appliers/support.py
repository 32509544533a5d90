"""What the appliers' tests share: endings, and a store in memory."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence

from lapse.consumers.appliers import Ending, Unavailable
from lapse.schemas import Cause, Evidence, SessionEnded, encode, ending_id, session_reference

__all__ = ["MemoryStore", "ending", "nothing_appended"]

_offsets = itertools.count()


def ending(
    session_id: str,
    *,
    offset: int | None = None,
    partition: int = 0,
    subject: str = "u-1",
    cause: Cause = Cause.IDLE,
) -> Ending:
    """Return the ending of a session, by default at an offset of its own."""
    session = session_reference(session_id)
    ended = SessionEnded(
        id=ending_id(session),
        session=session,
        subject=subject,
        tenant=None,
        cause=cause,
        started_at=0,
        last_seen_at=0,
        due_at=1_000,
        decided_at=1_764_000_000_000,
        idle_ms=1_000,
        absolute_ms=None,
        policy="default",
        policy_version=None,
        revocation=None,
        held=False,
        evidence=Evidence(partition=partition, offset=0),
        deny_until=9_000_000_000_000,
    )
    return Ending(ended, partition, next(_offsets) if offset is None else offset, encode(ended))


async def nothing_appended() -> Mapping[int, int]:
    """The ends of an empty topic: what comes was appended later."""
    return {}


class MemoryStore:
    """Sessions in memory, by place, which may not answer for a while. A place may be another than its session's id."""

    def __init__(self, *ids: str, moves: bool = False) -> None:
        self.sessions: dict[str, str | None] = dict.fromkeys(ids)  # place -> id, where that is another
        self.moves = moves
        self.hinted: dict[str, str] = {}
        self.away = False

    async def start(self) -> None:
        self._answer()

    async def walk(self) -> AsyncIterator[Sequence[tuple[str, str]]]:
        for place, session_id in list(self.sessions.items()):
            self._answer()
            yield [(session_id or place, place)]

    async def hints(self, references: Sequence[str]) -> Mapping[str, str]:
        self._answer()
        return {one: self.hinted[one] for one in references if one in self.hinted}

    async def delete(self, places: Sequence[str], subjects: Mapping[str, str]) -> int:
        self._answer()
        there = [one for one in places if one in self.sessions]
        for one in there:
            del self.sessions[one]
        return len(there)

    async def stop(self) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("it is away")
