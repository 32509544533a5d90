"""When is which session over? The rules, on the table of one partition; here those of activity.

A session ends by time (settling.py), by an order (orders.py), or by activity. Two readings of the clock (log_clock.py):
`time`, which has certainly come, settles; a record's stamp judges and is what it moves.

    who moves what     started, touched, elevated move last_seen_at to the maximum of instants; refreshed, closed do not
    counts             the first instant it stands for is before idle due, its longest pause is below the idle limit,
                       and its stamp is before idle due + grace (any stamp in a hold) and before the absolute due
    may be late        it would not count by a stamp that is not confirmed: `Undecided`, before anything is changed
    close              in time, or in a hold: closed at its instant; in the grace after idle due: idle, at once

Every record first settles what is over (`settle`), then is applied (the other methods); what it makes due itself is
settled by the next record.

Source: DESIGN.md sections 2 and 3.
"""

from __future__ import annotations

from heapq import heappush

from lapse.pipeline.engine.orders import Orders
from lapse.pipeline.engine.policies import SessionClass
from lapse.pipeline.engine.settings import EngineSettings
from lapse.pipeline.engine.table import ADOPTED, BARRED, ENDED, LIVE
from lapse.pipeline.engine.touch import Touch
from lapse.schemas import DURATION_MAX_MS, Cause, SessionStarted, Violation, ending_id

__all__ = ["REFUSED_CLASS", "REFUSED_FULL", "REFUSED_SUBJECT", "VIOLATIONS_UNREPORTED", "Sessions", "Undecided"]

VIOLATORS_MAX = 64
"""Services reported as violating one session: an estate has tens, and a forged flood must not grow the state."""

VIOLATED_MAX = 100_000
"""Ended sessions with reported violations, of a partition: with one service each 12 MB, with 64 long names 2 GB."""

REFUSED_FULL, REFUSED_SUBJECT = "sessions_refused_full", "sessions_refused_subject"
REFUSED_CLASS = "sessions_refused_class"
"""Counters of what the bounds refuse: starts, adoptions, and closes of unknown sessions."""

VIOLATIONS_UNREPORTED = "violations_unreported"


class Undecided(Exception):  # nothing is wrong: it has to wait
    """An activity may be late, by a stamp that is not confirmed yet. Nothing was changed."""


class Sessions(Orders):
    """The sessions of one partition and all their rules. Stamps and instants are epoch ms of the log's scale."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self.undecided = False
        """Whether the present record's stamp is not confirmed, so that what is late by it is not known to be."""
        self.doubt_ms = 0
        """By how much the present record's stamp may be too high, a step being known of: it is judged without that."""

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
