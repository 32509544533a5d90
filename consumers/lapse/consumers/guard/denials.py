"""Which sessions are refused?

Pure: records in, answers out; no clock, no IO.

Theory of operation. Three kinds of denial are kept:

    ending        lapse.expiries said that the session ended         until its deny_until
    revoked       lapse.revocations named the session                 until its `at` plus the longest session life
    cutoff        lapse.revocations named a subject, tenant, everyone:  likewise; refuses sessions that started at or
                  before its `at`

They join like sets, so that redelivery, compaction and the order in which two topics are read change nothing, and no
denial is ever taken back:

    - `deny_until` of a session is the maximum of all that is known;
    - what an ending says (cause, due, id) wins over what a revocation says of the same session, for the processor
      decided it; of several endings the first read counts (they come from one partition, in one order);
    - of several revocations of one session, and of several cutoffs that cover one, that with the smallest (at, id)
      is named;
    - a revocation id that is read again counts from the earliest `at`. That lowers a cutoff by the time between two
      appends of one order (it is written to every partition), and is what the processor decides by.

A cutoff needs to know when the session started. Where the caller cannot say, the processor's endings follow.
`started_at` comes from the caller's clock: a login within that clock's error after a cutoff may be refused, and
succeeds when it is repeated.
"""

from bisect import bisect_left, insort
from dataclasses import replace
from typing import Final, TypeAlias

from lapse.consumers.guard.buckets import Buckets
from lapse.consumers.guard.decisions import Decision
from lapse.schemas import Cause, InvariantError, SessionEnded

__all__ = ["EVERYONE", "SESSION_LIFE_MAX_MS", "Denials", "Scope"]

SESSION_LIFE_MAX_MS: Final = 2_592_000_000
"""30 days, the default of LAPSE_SESSION_LIFE_MAX_MS: no session outlives it, so no cutoff has to either."""

Scope: TypeAlias = tuple[str | None, str | None]
"""Whom a cutoff concerns: (tenant, subject), (tenant, None) for a whole tenant. A subject without a tenant is
(None, subject): a tenant of its own. (None, None) is everyone."""

EVERYONE: Final[Scope] = (None, None)


class _Cutoff:
    """The revocations of one scope."""

    __slots__ = ("decisions", "newest", "orders")

    def __init__(self) -> None:
        self.decisions: dict[str, Decision] = {}
        self.orders: list[tuple[int, str]] = []  # (at, id), sorted
        self.newest = 0  # the largest at: what started later passes

    def join(self, revocation: str, at: int, deny_until: int) -> bool:
        """Join an order; return whether it changed anything."""
        known = self.decisions.get(revocation)
        if known is not None:
            if known.due_at is None or at >= known.due_at:
                return False
            self.orders.remove((known.due_at, revocation))
        self.decisions[revocation] = Decision(
            allowed=False, cause=Cause.REVOKED, due_at=at, revocation=revocation, deny_until=deny_until
        )
        insort(self.orders, (at, revocation))
        self.newest = self.orders[-1][0]
        return True

    def forget(self, over: int) -> bool:
        """Forget the orders with at <= over; return whether any is left."""
        gone = bisect_left(self.orders, (over + 1, ""))
        for _, revocation in self.orders[:gone]:
            del self.decisions[revocation]
        del self.orders[:gone]
        return bool(self.orders)


class Denials:
    """The denials of one guard.

    Args:
        session_life_max_ms: how long a revocation is kept after its `at`.

    Attributes:
        sessions: the denial of each refused session; the guard's hot path reads it, this class alone writes it.
        cutoffs: likewise the cutoffs.
    """

    def __init__(self, session_life_max_ms: int = SESSION_LIFE_MAX_MS) -> None:
        self._life = session_life_max_ms
        self.sessions: dict[str, Decision] = {}
        self.cutoffs: dict[Scope, _Cutoff] = {}
        self._sessions_over: Buckets[str] = Buckets()
        self._cutoffs_over: Buckets[Scope] = Buckets()

    @property
    def entries(self) -> int:
        """Return how many denials and cutoffs are kept."""
        return len(self.sessions) + len(self.cutoffs)

    def end(self, ended: SessionEnded) -> bool:
        """Join an ending; return whether the session was not refused before."""
        return self._join(
            ended.session,
            Decision(
                allowed=False,
                cause=ended.cause,
                due_at=ended.due_at,
                ending=ended.id,
                revocation=ended.revocation,
                deny_until=ended.deny_until,
            ),
        )

    def revoke_session(self, session: str, revocation: str, at: int) -> bool:
        """Join a revocation of one session; return whether the session was not refused before."""
        return self._join(
            session,
            Decision(
                allowed=False,
                cause=Cause.REVOKED,
                due_at=at,
                revocation=revocation,
                deny_until=at + self._life,
            ),
        )

    def cut(self, scope: Scope, revocation: str, at: int) -> bool:
        """Join a revocation of all sessions of a scope; return whether it changed anything."""
        cutoff = self.cutoffs.get(scope)
        if cutoff is None:
            cutoff = self.cutoffs[scope] = _Cutoff()
        if not cutoff.join(revocation, at, at + self._life):
            return False
        self._cutoffs_over.add(at + self._life, scope)
        return True

    def order(self, scope: Scope, revocation: str) -> Decision | None:
        """Return the denial by one revocation of a scope, if it is kept."""
        cutoff = self.cutoffs.get(scope)
        return None if cutoff is None else cutoff.decisions.get(revocation)

    def covering(self, subject: str | None, tenant: str | None, started_at: int) -> Decision | None:
        """Return the denial by the cutoffs that cover a session, that of the smallest (at, id), or None."""
        first: tuple[int, str] | None = None
        decisions: dict[str, Decision] = {}
        for scope in (EVERYONE, (tenant, None), (tenant, subject)):
            cutoff = self.cutoffs.get(scope)
            if cutoff is not None and started_at <= cutoff.newest:
                order = cutoff.orders[bisect_left(cutoff.orders, (started_at, ""))]
                if first is None or order < first:
                    first, decisions = order, cutoff.decisions
        return None if first is None else decisions[first[1]]

    def forget(self, now: int) -> None:
        """Free what is over.

        Args:
            now: log time, epoch ms: what log time has certainly reached. Live while now < deny_until.
        """
        for session in self._sessions_over.pop(now):
            denial = self.sessions.get(session)
            if denial is not None and _until(denial) <= now:  # else it was prolonged, and is kept in a later bucket
                del self.sessions[session]
        for scope in self._cutoffs_over.pop(now):
            cutoff = self.cutoffs.get(scope)
            if cutoff is not None and not cutoff.forget(now - self._life):
                del self.cutoffs[scope]

    def _join(self, session: str, denial: Decision) -> bool:
        known = self.sessions.get(session)
        if known is None:
            self.sessions[session] = denial
            self._sessions_over.add(_until(denial), session)
            return True
        until = max(_until(known), _until(denial))
        if _precedes(denial, known):
            self.sessions[session] = replace(denial, deny_until=until)
        elif until != known.deny_until:
            self.sessions[session] = replace(known, deny_until=until)
        if until != known.deny_until:
            self._sessions_over.add(until, session)
        return False


def _precedes(denial: Decision, known: Decision) -> bool:
    """Return whether a denial of the same session says more than the known one: see the module's rules."""
    if known.ending is not None:
        return False
    return denial.ending is not None or (denial.due_at, denial.revocation) < (known.due_at, known.revocation)


def _until(denial: Decision) -> int:
    if denial.deny_until is None:
        raise InvariantError("a denial without an end: every one is made with one, above")
    return denial.deny_until
