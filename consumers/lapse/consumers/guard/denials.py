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

What is over by log time is not taken in: a topic keeps endings for the longest session life, most of them long over.

A cutoff needs to know when the session started. Where the caller cannot say, the processor's endings follow.
`started_at` comes from the caller's clock: a login within that clock's error after a cutoff may be refused, and
succeeds when it is repeated.
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import replace
from typing import Final, TypeAlias

from lapse.consumers.guard.buckets import BUCKET_MS, Buckets
from lapse.consumers.guard.decisions import Decision
from lapse.consumers.guard.packed import DUE_MAX_MS, ROWS_MAX, Block, Refused
from lapse.schemas import Cause, InvariantError, SessionEnded, ending_id

__all__ = ["EVERYONE", "SESSION_LIFE_MAX_MS", "SHARD", "Denials", "Scope"]

SESSION_LIFE_MAX_MS: Final = 2_592_000_000
"""30 days, the default of LAPSE_SESSION_LIFE_MAX_MS: no session outlives it, so no cutoff has to either."""

SHARD: Final = 15
"""Denials are kept in 16 dictionaries, for one of 700,000 was measured to hold the loop for 26 ms when it grew. The
number is a mask."""

BLOCKS_FORGOTTEN_MAX: Final = 256
"""Blocks freed at a time, 32,768 endings in about 5 ms of the service's loop. Log time is told at least once a second,
so that is more than any estate ends in a second; what is left waits for the next time, and is refused until then."""

Scope: TypeAlias = tuple[str | None, str | None]
"""Whom a cutoff concerns: (tenant, subject), (tenant, None) for a whole tenant. A subject without a tenant is
(None, subject): a tenant of its own. (None, None) is everyone."""

EVERYONE: Final[Scope] = (None, None)

_Order: TypeAlias = tuple[int, str, Decision]
"""A revocation: (at, id, the denial by it). Of one at and id denials are equal: no comparison asks which is less."""


class _Cutoff:
    """The revocations of one scope.

    Attributes:
        decisions: the denial by each revocation; the writer's alone.
        orders: the same, sorted by (at, id). Other threads read it while it is written: a list that one of them holds
            only grows at its end, every other change is made in a new list.
        newest: what started later passes; the largest at, or what that was a moment ago.
    """

    __slots__ = ("decisions", "newest", "orders")

    def __init__(self) -> None:
        self.decisions: dict[str, Decision] = {}
        self.orders: list[_Order] = []
        self.newest = 0

    def join(self, revocation: str, at: int, deny_until: int) -> bool:
        """Join an order; return whether it changed anything."""
        known = self.decisions.get(revocation)
        if known is not None and (known.due_at is None or at >= known.due_at):
            return False
        decision = Decision(allowed=False, cause=Cause.REVOKED, due_at=at, revocation=revocation, deny_until=deny_until)
        self.decisions[revocation] = decision
        order = (at, revocation, decision)
        if known is None and (not self.orders or self.orders[-1] < order):
            self.orders.append(order)
        else:
            orders = [one for one in self.orders if one[1] != revocation]
            insort(orders, order)
            self.orders = orders
        self.newest = self.orders[-1][0]
        return True

    def forget(self, over: int) -> bool:
        """Forget the orders with at <= over; return whether any is left. Of none the scope is to be forgotten."""
        gone = bisect_left(self.orders, (over + 1, ""))
        if gone == len(self.orders):
            return False
        for _, revocation, _ in self.orders[:gone]:
            del self.decisions[revocation]
        self.orders = self.orders[gone:]
        return True


class Denials:
    """The denials of one guard.

    Written by one thread, which may be another than those that ask. They read without a lock, between any two steps of
    the writer: what they can find is complete, and each change of it is one assignment.

    Args:
        session_life_max_ms: how long a revocation is kept after its `at`.

    Attributes:
        shards: the denial of each refused session, an ending's packed (packed.py), in the dictionary
            `hash(session) & SHARD`; the guard's hot path reads them, this class alone writes them.
        cutoffs: likewise the cutoffs.
    """

    def __init__(self, session_life_max_ms: int = SESSION_LIFE_MAX_MS) -> None:
        self._life = session_life_max_ms
        self.shards: list[dict[str, Block | Decision]] = [{} for _ in range(SHARD + 1)]
        self.cutoffs: dict[Scope, _Cutoff] = {}
        self._open: dict[tuple[int, Cause, str | None], Block] = {}  # the block that takes the next such ending
        self._blocks_over: Buckets[Block] = Buckets()
        self._leaving: deque[Block] = deque()
        self._sessions_over: Buckets[str] = Buckets()
        self._cutoffs_over: Buckets[Scope] = Buckets()
        self._over: int | None = None  # log time has reached this

    @property
    def entries(self) -> int:
        """Return how many denials and cutoffs are kept."""
        return sum(map(len, self.shards)) + len(self.cutoffs)

    @property
    def sessions(self) -> list[str]:
        """Return the references of all refused sessions."""
        return [session for shard in self.shards for session in shard]

    def of(self, session: str) -> Decision | None:
        """Return the denial of a session, or None."""
        denial = self.shards[hash(session) & SHARD].get(session)
        return Refused(denial, session) if isinstance(denial, Block) else denial

    def end(self, ended: SessionEnded) -> bool:
        """Join an ending; return whether the session was not refused before."""
        return self.join_ending(ended.session, ended.cause, ended.due_at, ended.revocation, ended.deny_until)

    def join_ending(self, session: str, cause: Cause, due_at: int, revocation: str | None, deny_until: int) -> bool:
        """Join an ending by its fields; return whether the session was not refused before."""
        shard = self.shards[hash(session) & SHARD]
        if session in shard:
            self._join_again(session, cause, due_at, revocation, deny_until)
            return False
        if self._over is not None and deny_until <= self._over:
            return True
        # What follows is `_keep` where the ending's block is there and has room: 99 of 100, a million times at a start.
        minute = deny_until // BUCKET_MS
        begin = minute * BUCKET_MS
        block = self._open.get((minute, cause, revocation))
        dues = begin + BUCKET_MS - due_at
        if block is None or len(block.sessions) == ROWS_MAX or not 0 <= dues <= DUE_MAX_MS:
            self._keep(session, cause, due_at, revocation, deny_until)
        else:
            block.dues.append(dues)
            block.untils.append(deny_until - begin)
            block.sessions.append(session)
            shard[session] = block
        return True

    def revoke_session(self, session: str, revocation: str, at: int) -> bool:
        """Join a revocation of one session; return whether the session was not refused before."""
        return self._join_revocation(
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
        cutoff = self.cutoffs.get(scope) or _Cutoff()
        if not cutoff.join(revocation, at, at + self._life):
            return False
        self.cutoffs[scope] = cutoff
        self._cutoffs_over.add(at + self._life, scope)
        return True

    def order(self, scope: Scope, revocation: str) -> Decision | None:
        """Return the denial by one revocation of a scope, if it is kept."""
        cutoff = self.cutoffs.get(scope)
        return None if cutoff is None else cutoff.decisions.get(revocation)

    def covering(self, subject: str | None, tenant: str | None, started_at: int) -> Decision | None:
        """Return the denial by the cutoffs that cover a session, that of the smallest (at, id), or None."""
        first: _Order | None = None
        for scope in (EVERYONE, (tenant, None), (tenant, subject)):
            cutoff = self.cutoffs.get(scope)
            if cutoff is not None and started_at <= cutoff.newest:
                orders = cutoff.orders
                place = bisect_left(orders, (started_at, ""))
                if place < len(orders) and (first is None or orders[place] < first):
                    first = orders[place]
        return None if first is None else first[2]

    def forget(self, now: int) -> None:
        """Free what is over, and take no ending in any more that is.

        Args:
            now: log time, epoch ms: what log time has certainly reached. Live while now < deny_until.
        """
        self._over = now
        shards = self.shards
        self._leaving.extend(self._blocks_over.pop(now))
        for _ in range(min(len(self._leaving), BLOCKS_FORGOTTEN_MAX)):
            block = self._leaving.popleft()
            for session in block.sessions:
                shard = shards[hash(session) & SHARD]
                if shard.get(session) is block:  # else it was prolonged, and is kept in a later block
                    del shard[session]
            if self._open.get((block.minute, block.cause, block.revocation)) is block:
                del self._open[block.minute, block.cause, block.revocation]
        for session in self._sessions_over.pop(now):
            shard = shards[hash(session) & SHARD]
            denial = shard.get(session)
            if isinstance(denial, Decision) and _until(denial) <= now:  # likewise
                del shard[session]
        for scope in self._cutoffs_over.pop(now):
            cutoff = self.cutoffs.get(scope)
            if cutoff is not None and not cutoff.forget(now - self._life):
                del self.cutoffs[scope]

    def log_time_unknown(self) -> None:
        """Note that log time may have gone back, for the topic is another one: take endings in whatever they say."""
        self._over = None

    def _join_again(self, session: str, cause: Cause, due_at: int, revocation: str | None, deny_until: int) -> None:
        """Join an ending of a session that is refused already."""
        known = self.shards[hash(session) & SHARD][session]
        if isinstance(known, Decision):
            until = max(_until(known), deny_until)
            if known.ending is None:  # a revocation, of which the processor's ending says more
                self._keep(session, cause, due_at, revocation, until)
            elif until != known.deny_until:
                self._set(session, replace(known, deny_until=until))
            return
        self._prolong(session, known, deny_until)

    def _prolong(self, session: str, block: Block, deny_until: int) -> None:
        """Raise the `deny_until` of an ending to the maximum of what it is and what is told."""
        minute = deny_until // BUCKET_MS
        if minute == block.minute:
            block.prolong(session, deny_until)
        elif minute > block.minute:
            self._keep(session, block.cause, block.row(session)[0], block.revocation, deny_until)

    def _keep(self, session: str, cause: Cause, due_at: int, revocation: str | None, deny_until: int) -> None:
        """Keep an ending, in place of what was known of the session."""
        minute, untils = divmod(deny_until, BUCKET_MS)
        dues = (minute + 1) * BUCKET_MS - due_at
        if not 0 <= dues <= DUE_MAX_MS:
            ending = ending_id(session)
            self._set(session, Decision(False, cause, due_at, ending, revocation, deny_until))
            return
        key = (minute, cause, revocation)
        block = self._open.get(key)
        if block is None or len(block.sessions) == ROWS_MAX:
            if block is not None:
                block.close()
            block = self._open[key] = Block(cause, revocation, minute)
            self._blocks_over.add(deny_until, block)
        # The columns first: another thread may look a session's row up as soon as the session is there.
        block.dues.append(dues)
        block.untils.append(untils)
        block.sessions.append(session)
        self.shards[hash(session) & SHARD][session] = block

    def _join_revocation(self, session: str, denial: Decision) -> bool:
        """Join a revocation of one session; return whether the session was not refused before."""
        known = self.shards[hash(session) & SHARD].get(session)
        if known is None:
            self._set(session, denial)
            return True
        until = _until(denial)
        if isinstance(known, Block):
            self._prolong(session, known, until)
            return False
        until = max(until, _until(known))
        if known.ending is None and (denial.due_at, denial.revocation) < (known.due_at, known.revocation):
            self._set(session, replace(denial, deny_until=until))
        elif until != known.deny_until:
            self._set(session, replace(known, deny_until=until))
        return False

    def _set(self, session: str, denial: Decision) -> None:
        self.shards[hash(session) & SHARD][session] = denial
        self._sessions_over.add(_until(denial), session)


def _until(denial: Decision) -> int:
    if denial.deny_until is None:
        raise InvariantError("a denial without an end: every one is made with one, above")
    return denial.deny_until
