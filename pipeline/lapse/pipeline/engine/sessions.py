"""When is which session over? The rules, on the table of one partition.

A live session is due at `min(last_seen_at + idle, started_at + absolute)`; it is live while `now < due`. Two readings
of the clock (log_clock.py): `time`, which has certainly come, settles; a record's stamp judges and is what it moves.

    who moves what     started, touched, elevated move last_seen_at to the maximum of instants; refreshed, closed do not
    settled, no hold   time >= idle due + grace, or time >= absolute due: ends by the earlier limit, at a tie absolute
    settled in a hold  time >= absolute due: ends as absolute at that limit; idle endings wait for the end of the hold
    counts             the first instant it stands for is before idle due, its longest pause is below the idle limit,
                       and its stamp is before idle due + grace (any stamp in a hold) and before the absolute due
    may be late        it would not count by a stamp that is not confirmed: `Undecided`, before anything is changed
    close              in time, or in a hold: closed at its instant; in the grace after idle due: idle, at once
    revocation         live sessions of the target that started at or before its instant, at once; kept as a cutoff

Every record first settles what is over (`settle`), then is applied (the other methods); what it makes due itself is
settled by the next record. Timers are lazy: see wheel.py. A session within its warning window is kept
out of the hot path (table.py), so that its next touch is seen here.

Source: DESIGN.md sections 2 and 3.
"""

from __future__ import annotations

from array import array
from collections import Counter
from heapq import heapify, heappop, heappush

from lapse.pipeline.engine.cutoffs import Cutoffs, scope_of
from lapse.pipeline.engine.effects import Effects
from lapse.pipeline.engine.endings import Decided
from lapse.pipeline.engine.holds import Hold
from lapse.pipeline.engine.policies import PolicyBook, SessionClass
from lapse.pipeline.engine.settings import EngineSettings
from lapse.pipeline.engine.table import ADOPTED, BARRED, ENDED, LIVE, SessionTable
from lapse.pipeline.engine.touch import Touch
from lapse.pipeline.engine.wheel import NEVER, TimingWheel
from lapse.schemas import (
    DURATION_MAX_MS,
    Cause,
    Evidence,
    Policy,
    Revocation,
    SessionExpiring,
    SessionStarted,
    Violation,
    ending_id,
)

__all__ = ["REFUSED_CLASS", "REFUSED_FULL", "REFUSED_SUBJECT", "VIOLATIONS_UNREPORTED", "Sessions", "Undecided"]

VIOLATORS_MAX = 64
"""Services reported as violating one session: an estate has tens, and a forged flood must not grow the state."""

VIOLATED_MAX = 100_000
"""Ended sessions with reported violations, of a partition: with one service each 12 MB, with 64 long names 2 GB."""

REFUSED_FULL, REFUSED_SUBJECT = "sessions_refused_full", "sessions_refused_subject"
REFUSED_CLASS = "sessions_refused_class"
"""Counters of what the bounds refuse: starts, adoptions, and closes of unknown sessions."""

VIOLATIONS_UNREPORTED = "violations_unreported"

_decided = tuple.__new__  # a named tuple, without the function call that its own constructor is


class Undecided(Exception):  # nothing is wrong: it has to wait
    """An activity may be late, by a stamp that is not confirmed yet. Nothing was changed."""


class Sessions:
    """The sessions of one partition and their rules. Stamps and instants are epoch ms of the log's scale."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.book = PolicyBook()
        self.table = SessionTable(self.book)
        self.wheel = TimingWheel()
        self.cutoffs = Cutoffs(settings.session_life_max_ms)
        self.hold = Hold(settings.gap_ms, settings.gap_grace_ms)
        self.counters: Counter[str] = Counter()
        self.time = 0
        """Log time: how far time has certainly come."""
        self.undecided = False
        """Whether the present record's stamp is not confirmed, so that what is late by it is not known to be."""
        self.doubt_ms = 0
        """By how much the present record's stamp may be too high, a step being known of: it is judged without that."""
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

    # Settling

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
            by_limit = started_at + limits.absolute_ms + settings.age_max_ms
            # A limit that was shortened over an old session lies so far back that guards would drop the denial at once.
            deny_until = by_limit if by_limit > stamp else deny_until
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

    # Activity

    def touch(self, slot: int, touch: Touch, stamp: int, sent_at: int) -> None:
        """Apply a touch, repeated start or elevation to a live slot.

        Args:
            slot: a live slot.
            touch: its ages count from `stamp`.
            stamp: of the record.
            sent_at: the stamp by which it must be in time: the record's own, or where it was forwarded the one it had.

        Raises:
            Undecided: it may be late.
        """
        idle_due = self.table.idle_due_at(slot)
        if self._count(slot, touch, stamp, sent_at) and (slot in self.table.warned or stamp >= idle_due):
            self._moved(slot)  # nobody else looks at its new due in time to warn of it

    def _count(self, slot: int, touch: Touch, stamp: int, sent_at: int) -> bool:
        """Move last_seen_at if the activity is in time; return whether it moved."""
        table = self.table
        limits = table.classes.limits[table.class_of[slot]]
        idle_due, judged_at = table.idle_due_at(slot), sent_at - self.doubt_ms
        late = (
            judged_at >= table.absolute_due_at[slot]
            or stamp - self.doubt_ms - touch.since_ms >= idle_due
            or not (self.hold.on or judged_at < idle_due + self.settings.grace_ms)
        )
        if late and self.undecided:
            raise Undecided
        if late or (limits.idle_ms is not None and touch.pause_ms >= limits.idle_ms):
            self.counters["activities_late"] += 1
            return False
        seen_at = stamp - touch.age_ms + self._capped(slot, touch.hold_ms)
        if seen_at <= table.last_seen_at[slot]:
            return False
        table.last_seen_at[slot] = seen_at
        table.touch_chunk(slot)
        return True

    def start(self, record: SessionStarted, touch: Touch, stamp: int, offset: int, sent_at: int) -> None:
        """Apply a start: a new session, a correction of an adopted one, or one more touch."""
        table = self.table
        instant = stamp - touch.age_ms
        kind = SessionClass(
            record.tenant,
            record.service,
            record.policy,
            tuple(sorted(record.attributes.items())),
            record.token_life_ms,
        )
        slot = table.slot_of.get(record.session)
        if slot is None and not self._has_room(record.subject, kind):
            return
        if slot is None or table.state[slot] == BARRED:
            self._begin(record.session, record.subject, kind, LIVE, instant, instant, stamp, offset)
        elif table.state[slot] == ADOPTED and not self._has_class(kind):
            self.counters[REFUSED_CLASS] += 1
            self.touch(slot, touch, stamp, sent_at)
        elif table.state[slot] == ADOPTED:
            self._count(slot, touch, stamp, sent_at)
            table.state[slot] = LIVE
            table.started_at[slot] = instant
            table.classify(slot, kind)
            self._begun(slot, instant, stamp, offset)
        elif table.state[slot] == LIVE:
            self.touch(slot, touch, stamp, sent_at)
        if record.policy is not None and not self.book.knows(record.policy):
            self.counters["policies_unknown"] += 1

    def adopt(
        self, session: str, subject: str, tenant: str | None, service: str, touch: Touch, stamp: int, offset: int
    ) -> None:
        """Take in a session first seen by a touch or an elevation, or one that was revoked before it was seen."""
        if not self.settings.adopt_unknown:
            self.counters["unknown_ignored"] += 1
            return
        kind = SessionClass(tenant, service)
        if session not in self.table.slot_of and not self._has_room(subject, kind):
            return
        self.counters["sessions_adopted"] += 1
        instant = stamp - touch.age_ms
        started_at = instant - (touch.session_age_ms or 0)
        known = touch.session_age_ms is not None
        self._begin(
            session, subject, kind, ADOPTED, started_at, instant, stamp, offset, known=known, hold_ms=touch.hold_ms
        )

    def _has_room(self, subject: str, kind: SessionClass) -> bool:
        """Return whether one more session may be known (docs/adr/0008-bounds.md); count what is refused."""
        table, bound = self.table, self.settings.sessions_max
        if table.live >= bound or len(table.slot_of) - table.live >= bound:
            self.counters[REFUSED_FULL] += 1
        elif not self._has_class(kind):
            self.counters[REFUSED_CLASS] += 1
        elif table.by_subject.has(subject, kind.tenant, self.settings.sessions_per_subject_max):
            self.counters[REFUSED_SUBJECT] += 1
        else:
            return True
        return False

    def _has_class(self, kind: SessionClass) -> bool:
        return self.table.classes.has_room(kind, self.settings.classes_max)

    def _begin(
        self,
        session: str,
        subject: str,
        kind: SessionClass,
        state: int,
        started_at: int,
        seen_at: int,
        stamp: int,
        offset: int,
        *,
        known: bool = True,
        hold_ms: int = 0,
    ) -> None:
        """Add a session, which a revocation may end at once."""
        table = self.table
        barred = table.slot_of.get(session)
        order = None
        if barred is not None:
            order = (table.last_seen_at[barred], table.barred[barred])
            table.free(barred)
        slot = table.add(session, subject, kind.tenant, state, started_at, seen_at)
        table.classify(slot, kind)
        table.last_seen_at[slot] += self._capped(slot, hold_ms)
        self._begun(slot, started_at if known else None, stamp, offset, order)

    def _begun(
        self, slot: int, started_at: int | None, stamp: int, offset: int, order: tuple[int, str] | None = None
    ) -> None:
        """Hold a session's start (None: not known) against the revocations; arm it, or end it."""
        table = self.table
        order = order or self.cutoffs.covering(table.subjects[slot], table.tenants[slot], started_at)
        if order is None:
            self._moved(slot)
            return
        at, revocation = order
        self.effects.endings.append(self._end(slot, Cause.REVOKED, at, stamp, offset, revocation=revocation))

    def _capped(self, slot: int, hold_ms: int) -> int:
        hold_max_ms = self.table.classes.limits[self.table.class_of[slot]].hold_max_ms
        return hold_ms if hold_max_ms is None else min(hold_ms, hold_max_ms)

    def close(
        self, session: str, subject: str, tenant: str | None, instant: int, stamp: int, offset: int, sent_at: int
    ) -> None:
        """Apply a close: of an unknown session, it is remembered as an ending without a record.

        A close that was forwarded may come when the session is over at `stamp`. If it was too late where it was found
        (`sent_at`), the session ends by its limit, which the close's own record then settles.

        Raises:
            Undecided: it may be late.
        """
        table = self.table
        slot = table.slot_of.get(session)
        if slot is None:
            if len(table.slot_of) - table.live >= self.settings.sessions_max:
                self.counters[REFUSED_FULL] += 1
                return
            slot = table.add(session, subject, tenant, ENDED, instant, stamp)
            heappush(self._forgets, (stamp + self.settings.ended_memory_ms, slot))
        elif table.is_live(slot):
            idle_due = table.idle_due_at(slot)
            release_at = idle_due + self.settings.grace_ms
            judged_at = sent_at - self.doubt_ms
            if max(instant - self.doubt_ms, judged_at) < table.absolute_due_at[slot] and (
                self.hold.on or (instant - self.doubt_ms < idle_due and judged_at < release_at)
            ):
                self.effects.endings.append(self._end(slot, Cause.CLOSED, instant, stamp, offset))
            elif self.undecided:
                raise Undecided
            elif stamp - self.doubt_ms < min(release_at, table.absolute_due_at[slot]):
                self.effects.endings.append(self._end(slot, Cause.IDLE, idle_due, stamp, offset))

    def violate(self, slot: int, subject: str, tenant: str | None, service: str, instant: int) -> None:
        """Take in activity of an ended session: a violation when a service accepted it well after the end."""
        table = self.table
        ended_at = table.last_seen_at[slot]
        if instant <= ended_at + self.settings.violation_after_ms:
            return
        if slot not in table.violators and len(table.violators) >= VIOLATED_MAX:
            self.counters[VIOLATIONS_UNREPORTED] += 1
            return
        services = table.violators.setdefault(slot, [])
        if service in services or len(services) >= VIOLATORS_MAX:
            return
        services.append(service)
        table.touch_chunk(slot)
        session = table.sessions[slot]
        self.effects.violations.append(
            Violation(
                session=session,
                subject=subject,
                tenant=tenant,
                service=service,
                ended_at=ended_at,
                active_at=instant,
                ending=ending_id(session),
            )
        )

    # Orders of operators

    def revoke(self, revocation: Revocation, ordered_at: int, covers_at: int, stamp: int, offset: int) -> None:
        """Apply a revocation: end what it covers, and keep it for what comes late.

        Args:
            revocation: its target decides whom it covers.
            ordered_at: sessions that started after it are not meant.
            covers_at: >= ordered_at: those that are live now end if they started by then.
            stamp, offset: of the copy.
        """
        table = self.table
        at = min(ordered_at, stamp)
        if revocation.session is not None:
            slot = table.slot_of.get(revocation.session)
            if slot is None:
                self._bar(revocation.session, revocation, at)
            elif table.is_live(slot):
                self.effects.endings.append(self._end(slot, Cause.REVOKED, at, stamp, offset, revocation=revocation.id))
            elif table.state[slot] == BARRED and (at, revocation.id) < (table.last_seen_at[slot], table.barred[slot]):
                table.free(slot)
                self._bar(revocation.session, revocation, at)
            return
        self.cutoffs.add(revocation.id, scope_of(revocation.subject, revocation.tenant), at)
        kept = self.cutoffs.get(revocation.id)
        at = at if kept is None else kept[0]
        endings = [
            self._end(slot, Cause.REVOKED, at, stamp, offset, revocation=revocation.id)
            for slot in self._covered(revocation)
            if table.started_at[slot] <= (covers_at if covers_at > ordered_at else at)
        ]
        endings.sort(key=lambda ending: ending.session)
        self.effects.endings.extend(endings)

    def _bar(self, session: str, revocation: Revocation, at: int) -> None:
        slot = self.table.add(session, revocation.subject or "", revocation.tenant, BARRED, 0, at)
        self.table.barred[slot] = revocation.id
        heappush(self._forgets, (at + self.settings.session_life_max_ms, slot))

    def _covered(self, revocation: Revocation) -> list[int]:
        table, tenant = self.table, revocation.tenant
        if revocation.subject is not None:
            return table.by_subject.of(revocation.subject, tenant)
        if tenant is not None:
            return [slot for slot in table.live_slots() if table.tenants[slot] == tenant]
        return table.live_slots()

    def adopt_policy(self, version: int, policy: Policy) -> None:
        """Put a policy in force and derive the due instants of live sessions anew."""
        if not self.book.adopt(version, policy):
            self.counters["policies_stale"] += 1
            return
        table = self.table
        changed: set[int] = set()
        table.classes.derive(changed.add)
        if not changed:
            return
        for slot in table.live_slots():
            if table.class_of[slot] in changed:
                table.derive(slot)
                self._moved(slot)

    def cap(self, stamp: int) -> None:
        """Take back what doubtful stamps beyond `stamp` have moved: nothing happened later than that.

        How far a job's `hold_ms` reached past its instant is not known any more: so much is left to it as its policy
        allows one.
        """
        table = self.table
        for slot in table.live_slots():
            latest = stamp
            if table.last_seen_at[slot] > stamp:
                latest += self._capped(slot, DURATION_MAX_MS)
            if table.started_at[slot] <= stamp and table.last_seen_at[slot] <= latest:
                continue
            table.started_at[slot] = min(table.started_at[slot], stamp)
            table.last_seen_at[slot] = min(table.last_seen_at[slot], latest)
            table.derive(slot)
            table.touch_chunk(slot)
            self._moved(slot)

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
