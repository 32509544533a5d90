"""When is a session over by time alone, and when has it to be looked at?

A live session is due at `min(last_seen_at + idle, started_at + absolute)`; it is live while `now < due`.

    settled, no hold   time >= idle due + grace, or time >= absolute due: ends by the earlier limit, at a tie absolute
    settled in a hold  time >= absolute due: ends as absolute at that limit; idle endings wait for the end of the hold
    warned             time >= due - warn_before, once for each due, while that is still to come
    forgotten          time >= its ending + ended_memory, or for what was revoked unseen, its order + session_life_max

Timers are lazy: see wheel.py. A session within its warning window is kept out of the hot path (table.py), so that its
next touch is seen by `Sessions`.

Source: DESIGN.md sections 2 and 3.
"""

from __future__ import annotations

from array import array
from collections import Counter
from heapq import heapify, heappop, heappush

from lapse.pipeline.engine.cutoffs import Cutoffs
from lapse.pipeline.engine.effects import Effects
from lapse.pipeline.engine.endings import Decided
from lapse.pipeline.engine.holds import Hold
from lapse.pipeline.engine.policies import PolicyBook
from lapse.pipeline.engine.settings import EngineSettings
from lapse.pipeline.engine.shortened import Shortened
from lapse.pipeline.engine.table import BARRED, ENDED, SessionTable
from lapse.pipeline.engine.wheel import NEVER, TimingWheel
from lapse.schemas import Cause, Evidence, SessionExpiring

__all__ = ["Settling"]

_decided = tuple.__new__  # a named tuple, without the function call that its own constructor is


class Settling:
    """The sessions of one partition, as far as time ends them. Instants are epoch ms of the log's scale."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.book = PolicyBook()
        self.table = SessionTable(self.book)
        self.wheel = TimingWheel()
        self.cutoffs = Cutoffs(settings.session_life_max_ms)
        self.hold = Hold(settings.gap_ms, settings.gap_grace_ms)
        self.shortened = Shortened()
        self.counters: Counter[str] = Counter()
        self.time = 0
        """Log time: how far time has certainly come."""
        self.effects = Effects()
        self._evidence = Evidence(partition=settings.partition, offset=0)  # one for all endings of a record
        self._delayed: set[int] = set()  # slots whose idle ending the present hold delays
        self._forgets: list[tuple[int, int]] = []  # heap of (instant, slot) of ended and barred slots

    @property
    def next_at(self) -> int:
        """No record with a stamp below it has anything to settle or forget."""
        if self.hold.held_through >= 0 and not self.hold.on:
            return -1  # the first record after a hold settles what that delayed, and nothing later was delayed by it
        at = self.wheel.next_at
        if self._forgets and self._forgets[0][0] < at:
            at = self._forgets[0][0]
        expiry = self.cutoffs.next_expiry_at
        return at if expiry is None or expiry > at else expiry

    def next_due_at(self) -> int | None:
        """Return the exact instant at which something is next settled or warned of; None: nothing."""
        at = None
        while (top := self.wheel.peek()) is not None:
            at, slot = top
            target = self._target(slot)
            if target <= at:
                break
            if self.hold.on and self._settle_at(slot) <= self.time:
                self._delayed.add(slot)  # its last record made it due: the hold delays it from now on
            self.wheel.arm(slot, target)
            at = None
        ends_at = self.hold.ends_at
        if self._delayed and ends_at is not None:
            at = ends_at if at is None else min(at, ends_at)
        return at

    def settle(self, stamp: int, offset: int) -> None:
        """End what is over, by this record, warn of what soon will be, forget what has been remembered long enough."""
        endings: list[Decided] = []
        warnings: list[SessionExpiring] = []
        for slot in self.wheel.expire(self.time):
            self._look_at(slot, stamp, offset, endings, warnings)
        endings.sort(key=lambda ending: (ending.due_at, ending.session))
        warnings.sort(key=lambda warning: (warning.due_at, warning.session))
        self.effects.endings.extend(endings)
        self.effects.warnings.extend(warnings)
        if not self.hold.on and self.time >= self.hold.held_through:
            self.hold.held_through = -1  # all that the last hold delayed has been settled now
        self._forget()

    def release_hold(self) -> None:
        """The hold is over: look at all that it delayed, at the next settling."""
        for slot in self._delayed:
            if self.table.is_live(slot):
                self.wheel.arm(slot, self.time)
        self._delayed.clear()

    def _look_at(
        self, slot: int, stamp: int, offset: int, endings: list[Decided], warnings: list[SessionExpiring]
    ) -> None:
        table, hold, time = self.table, self.hold, self.time
        idle_due = table.idle_due_at(slot)
        absolute_due = table.absolute_due_at[slot]
        idle_over = time >= idle_due + self.settings.grace_ms
        if hold.on:
            if time >= absolute_due:
                delayed = idle_due + self.settings.grace_ms < absolute_due
                endings.append(self._end(slot, Cause.ABSOLUTE, absolute_due, stamp, offset, held=delayed))
                return
            if idle_over:
                self._delayed.add(slot)
                self.wheel.arm(slot, absolute_due)
                return
        elif idle_over or time >= absolute_due:
            delayed = idle_due + self.settings.grace_ms <= hold.held_through
            if absolute_due <= idle_due or (delayed and absolute_due <= hold.ended_at):
                endings.append(self._end(slot, Cause.ABSOLUTE, absolute_due, stamp, offset, held=delayed))
            else:
                endings.append(self._end(slot, Cause.IDLE, idle_due, stamp, offset, held=delayed))
            return
        due = min(idle_due, absolute_due)
        warn_before = table.classes.limits[table.class_of[slot]].warn_before_ms
        if warn_before is not None and time >= due - warn_before and table.warned.get(slot) != due:
            if due > time:
                warnings.append(
                    SessionExpiring(
                        session=table.sessions[slot],
                        subject=table.subjects[slot],
                        tenant=table.tenants[slot],
                        cause=Cause.IDLE if idle_due < absolute_due else Cause.ABSOLUTE,
                        due_at=due,
                        in_ms=due - time,
                    )
                )
            table.warned[slot] = due
            table.live_until[slot] = 0
            table.touch_chunk(slot)
        self.wheel.arm(slot, self._target(slot))

    def _target(self, slot: int) -> int:
        """Return the instant at which a live slot has to be looked at."""
        settle_at = self._settle_at(slot)
        if self.hold.on and settle_at <= self.time:
            settle_at = self.table.absolute_due_at[slot]
        return min(settle_at, self._warn_at(slot))

    def _settle_at(self, slot: int) -> int:
        table = self.table
        return min(table.idle_due_at(slot) + self.settings.grace_ms, table.absolute_due_at[slot], NEVER)

    def _warn_at(self, slot: int) -> int:
        """Return the instant at which to warn of a live slot's due; NEVER: not at all, or done, or the due is past."""
        table = self.table
        due = min(table.idle_due_at(slot), table.absolute_due_at[slot])
        warn_before = table.classes.limits[table.class_of[slot]].warn_before_ms
        if warn_before is None or not self.time < due < NEVER or table.warned.get(slot) == due:
            return NEVER
        return due - warn_before

    def _moved(self, slot: int) -> None:
        """A live slot's due was moved by other than the hot path: arm it, and end its warning if it left the window."""
        table = self.table
        if slot in table.warned:
            due = min(table.idle_due_at(slot), table.absolute_due_at[slot])
            warn_before = table.classes.limits[table.class_of[slot]].warn_before_ms
            if warn_before is None or self.time < due - warn_before:
                del table.warned[slot]
                table.derive(slot)
                table.touch_chunk(slot)
        self.wheel.arm(slot, max(min(self._settle_at(slot), self._warn_at(slot)), 0))

    def _end(
        self,
        slot: int,
        cause: Cause,
        due_at: int,
        stamp: int,
        offset: int,
        *,
        revocation: str | None = None,
        held: bool = False,
    ) -> Decided:
        table, settings = self.table, self.settings
        limits = table.classes.limits[table.class_of[slot]]
        started_at = table.started_at[slot]
        session = table.sessions[slot]
        deny_until = stamp + min(limits.token_life_ms, settings.session_life_max_ms)  # endings are not kept for longer
        if limits.absolute_ms is not None:
            longest_ms = self.shortened.limit_ms(started_at, limits.absolute_ms)
            by_limit = started_at + (longest_ms or limits.absolute_ms) + settings.age_max_ms
            # Decided long after its due, or no limit but a token's life bounds what is out: the later of both.
            if longest_ms is None or by_limit <= stamp:
                by_limit = max(by_limit, deny_until)
            deny_until = by_limit
        evidence = self._evidence
        if evidence.offset != offset:
            evidence = self._evidence = Evidence(partition=settings.partition, offset=offset)
        decided = _decided(
            Decided,
            (
                session,
                table.subjects[slot],
                table.tenants[slot],
                cause,
                started_at,
                table.last_seen_at[slot],
                due_at,
                stamp,
                limits,
                revocation,
                held,
                evidence,
                deny_until,
            ),
        )
        table.end(slot, stamp)
        self.wheel.disarm(slot)
        heappush(self._forgets, (stamp + settings.ended_memory_ms, slot))
        return decided

    def _forget(self) -> None:
        table, forgets = self.table, self._forgets
        while forgets and forgets[0][0] <= self.time:
            at, slot = heappop(forgets)
            if at == self._forgotten_at(slot):
                table.free(slot)
        if self.cutoffs:
            self.cutoffs.expire(self.time)

    def _forgotten_at(self, slot: int) -> int:
        state, since = self.table.state[slot], self.table.last_seen_at[slot]
        if state == ENDED:
            return since + self.settings.ended_memory_ms
        return since + self.settings.session_life_max_ms if state == BARRED else -1

    # Checkpoints

    def rebuild(self) -> None:
        """Build what is derived, after the table and the cutoffs were loaded."""
        table, grace_ms = self.table, self.settings.grace_ms
        table.index()
        instants = array("q", [NEVER]) * len(table.state)
        warning = {number for number, limits in enumerate(table.classes.limits) if limits.warn_before_ms is not None}
        live_until, absolute_due_at = table.live_until, table.absolute_due_at
        for slot in table.live_slots():
            if table.class_of[slot] in warning or slot in table.warned:
                instants[slot] = max(min(self._settle_at(slot), self._warn_at(slot)), 0)
            else:
                instants[slot] = max(min(live_until[slot] + grace_ms, absolute_due_at[slot]), 0)
        self.wheel.arm_all(instants)
        forgets = self._forgets
        for slot, state in enumerate(table.state):
            if state >= ENDED:  # or barred
                forgets.append((self._forgotten_at(slot), slot))
        heapify(forgets)
