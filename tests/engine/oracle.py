"""What must one partition's engine answer? The same rules, with a dict and a scan, and no cleverness.

The oracle takes the same records as the engine and yields the same effects. It keeps its sessions in a dict, looks at
every one of them at every record, works out the limits of each from the policies each time it needs them, and reads
records with the pydantic models. It shares nothing with the engine but its settings and `lapse.schemas`, so that where
the two agree, they agree by the rules (DESIGN.md sections 2 and 3) and not by a common mistake.

Order of work for one record, `s` being its stamp:

1. the stamp moves; a jump begins a hold, a hold whose end has come is lifted;
2. a forwarded activity is applied, by the stamp it had in the partition it was first written to;
3. what is older than its keeping time is forgotten; sessions that are over at `s` end; warnings that are due go out;
4. the record itself is applied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from lapse.pipeline.engine import EngineSettings, LogRecord
from lapse.schemas import (
    DURATION_MAX_MS,
    BadRecord,
    Cause,
    ClockTick,
    Evidence,
    PackedTouches,
    Policy,
    PolicyAdopted,
    Revocation,
    RevocationOrdered,
    SessionClosed,
    SessionElevated,
    SessionEnded,
    SessionExpiring,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
    Violation,
    ending_id,
    parse_activity,
    parse_packed_entry,
    partition_of,
    verify,
)

from tests.engine.oracle_facts import (
    BUILT_IN,
    NEVER,
    Cutoff,
    Ended,
    ForwardSeen,
    Hold,
    LetterSeen,
    Limits,
    Live,
    OracleEffects,
    Touch,
    limits_of,
    scope_of,
    touch_of,
    touch_of_entry,
)

__all__ = ["Oracle"]

DAY_MS = 86_400_000


Activity = SessionStarted | SessionTouched | SessionRefreshed | SessionElevated | SessionClosed


class Oracle:
    """One partition by the book.

    Attributes:
        offset: the next input offset to apply.
        stamp: the latest stamp, 0 before the first record.
        live: the sessions that have not ended, by reference.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.offset = 0
        self.stamp = 0
        self.epoch = -1
        self.live: dict[str, Live] = {}
        self.ended: dict[str, Ended] = {}
        self.cutoffs: dict[str, Cutoff] = {}
        self.revoked_unseen: dict[str, tuple[int, str]] = {}  # session -> (at, revocation id)
        self.policies: dict[str, tuple[Policy, int | None]] = {"default": (BUILT_IN, None)}
        self.hold: Hold | None = None
        self.lifted: Hold | None = None  # the hold that the present record lifted
        self.origins: dict[int, tuple[int, int]] = {}
        self._seen_any = False
        self._effects = OracleEffects()

    def apply(self, records: Iterable[LogRecord]) -> OracleEffects:
        """Apply records one by one and return what they caused together."""
        total = OracleEffects()
        for record in records:
            if record.offset >= self.offset:
                total.extend(self._apply_one(record))
        return total

    def _apply_one(self, record: LogRecord) -> OracleEffects:
        self._effects = OracleEffects()
        previous = self.stamp
        s = self.stamp = max(previous, record.timestamp)
        offset = record.offset
        self.offset = offset + 1
        self._hold_at(s, previous)
        parsed: Any = None
        try:
            parsed = self._parse(record.value)
        except BadRecord:
            self._letter(offset, None)
        if isinstance(parsed, Activity) and parsed.forwarded is not None:
            self._forwarded(parsed, s, offset)
            parsed = None
        self._settle(s, offset)
        self._meaning(parsed, s, offset)
        self._leave_windows(s)
        self._seen_any = True
        return self._effects

    def _parse(self, value: bytes | None) -> Any:
        parsed = parse_activity(value)
        control = isinstance(parsed, ClockTick | RevocationOrdered | PolicyAdopted)
        if control or (isinstance(parsed, Activity) and parsed.forwarded is not None):
            assert value is not None
            key = self.settings.worker_key
            if not verify(orjson.loads(value), topic=self.settings.topic, partition=self.settings.partition, key=key):
                raise BadRecord("no valid mac")
        return parsed

    # The hold.

    def _hold_at(self, s: int, previous: int) -> None:
        self.lifted = None
        hold = self.hold
        if self._seen_any and s - previous > self.settings.gap_ms:
            self.hold = Hold(jump_at=s, before_at=previous)
        elif hold is not None and (hold.phase == "off" or (hold.until is not None and s >= hold.until)):
            self.lifted, self.hold = hold, None
        if self.hold is not None:
            self.hold.seen_at = s

    def _tick(self, tick: ClockTick, s: int) -> None:
        if tick.epoch < self.epoch:
            return
        self.epoch = tick.epoch
        self._effects.ticked = True
        if self.hold is not None:
            self.hold.take(tick, s, self.settings.gap_grace_ms)

    # What is over.

    def dues(self, session: Live) -> tuple[int, int]:
        """Return (idle due, absolute due) of a live session, NEVER where there is no limit."""
        limits = self.limits(session)
        idle = NEVER if limits.idle_ms is None else session.last_seen_at + limits.idle_ms
        absolute = NEVER if limits.absolute_ms is None else session.started_at + limits.absolute_ms
        return idle, absolute

    def _settle(self, s: int, offset: int) -> None:
        self._forget(s)
        over = []
        for session in self.live.values():
            ending = self._over(session, s)
            if ending is not None:
                over.append((ending[1], session.session, ending))
        for _, name, (cause, due_at, held) in sorted(over):
            self._end(self.live[name], cause, due_at, s, offset, held=held)
        for session in self.live.values():
            self._warn(session, s)

    def _over(self, session: Live, s: int) -> tuple[Cause, int, bool] | None:
        idle, absolute = self.dues(session)
        releasable = idle + self.settings.grace_ms
        if self.hold is not None:
            return (Cause.ABSOLUTE, absolute, releasable < absolute) if s >= absolute else None
        if s < min(releasable, absolute):
            return None
        held = self.lifted is not None and releasable <= self.lifted.seen_at  # a record of the hold would have ended it
        if held and self.lifted is not None and self.lifted.phase != "off":
            assert self.lifted.until is not None
            if absolute <= self.lifted.until:
                return Cause.ABSOLUTE, absolute, True
        return (Cause.ABSOLUTE, absolute, held) if absolute <= idle else (Cause.IDLE, idle, held)

    def _warn(self, session: Live, s: int) -> None:
        idle, absolute = self.dues(session)
        due = min(idle, absolute)
        before = self.limits(session).warn_before_ms
        if before is None or due <= s or s < due - before or session.warned_due == due:
            return
        session.warned_due = due
        self._effects.warnings.append(
            SessionExpiring(
                session=session.session,
                subject=session.subject,
                tenant=session.tenant,
                cause=Cause.ABSOLUTE if absolute <= idle else Cause.IDLE,
                due_at=due,
                in_ms=due - s,
            )
        )

    def _leave_windows(self, s: int) -> None:
        for session in self.live.values():
            before = self.limits(session).warn_before_ms
            if before is None or s < min(self.dues(session)) - before:
                session.warned_due = None

    def _forget(self, s: int) -> None:
        life = self.settings.session_life_max_ms
        self.ended = {n: e for n, e in self.ended.items() if s < e.decided_at + self.settings.ended_memory_ms}
        self.cutoffs = {i: c for i, c in self.cutoffs.items() if s < c.at + life}
        self.revoked_unseen = {n: order for n, order in self.revoked_unseen.items() if s < order[0] + life}

    def _end(
        self,
        session: Live,
        cause: Cause,
        due_at: int,
        s: int,
        offset: int,
        *,
        held: bool = False,
        revocation: str | None = None,
    ) -> None:
        limits = self.limits(session)
        lives = [life for life in (limits.token_life_ms, session.token_life_ms) if life is not None]
        deny_until = s + min(max(lives, default=DAY_MS), self.settings.session_life_max_ms)
        if limits.absolute_ms is not None:
            by_limit = session.started_at + limits.absolute_ms + self.settings.age_max_ms
            deny_until = by_limit if by_limit > s else deny_until
        self._effects.endings.append(
            SessionEnded(
                id=ending_id(session.session),
                session=session.session,
                subject=session.subject,
                tenant=session.tenant,
                cause=cause,
                started_at=session.started_at,
                last_seen_at=session.last_seen_at,
                due_at=due_at,
                decided_at=s,
                idle_ms=limits.idle_ms,
                absolute_ms=limits.absolute_ms,
                policy=limits.policy,
                policy_version=limits.version,
                revocation=revocation,
                held=held,
                evidence=Evidence(partition=self.settings.partition, offset=offset),
                deny_until=deny_until,
            )
        )
        del self.live[session.session]
        self.ended[session.session] = Ended(decided_at=s)

    # What a record means.

    def _meaning(self, parsed: Any, s: int, offset: int) -> None:
        if isinstance(parsed, ClockTick):
            self._tick(parsed, s)
        elif isinstance(parsed, RevocationOrdered):
            self._revoke(parsed.revocation, min(parsed.at, s), s, offset)
        elif isinstance(parsed, PolicyAdopted):
            self._adopt_policy(parsed.policy, parsed.version)
        elif isinstance(parsed, PackedTouches):
            self._packed(parsed, s, offset)
        elif isinstance(parsed, Activity):
            self._at_home(parsed, s, offset)

    def _packed(self, packed: PackedTouches, s: int, offset: int) -> None:
        for index, raw in enumerate(packed.touches):
            try:
                entry = parse_packed_entry(raw, index)
            except BadRecord:
                self._letter(offset, index)
                continue
            touch = touch_of_entry(entry, packed.service)
            home = partition_of(touch.subject, touch.tenant, self.settings.partitions)
            if home == self.settings.partition:
                self._touch(touch, s, s, offset, index)
            else:
                self._forward(home, touch, index, s, offset)

    def _at_home(self, activity: Activity, s: int, offset: int) -> None:
        home = partition_of(activity.subject, activity.tenant, self.settings.partitions)
        if home == self.settings.partition:
            self._activity(activity, s, s, offset)
        else:
            self._forward(home, activity, None, s, offset)

    def _forward(self, home: int, activity: Activity | Touch, index: int | None, s: int, offset: int) -> None:
        self._effects.forwards.append(
            ForwardSeen(
                partition=home,
                kind=activity.kind if isinstance(activity, Touch) else activity.type,
                session=activity.session,
                subject=activity.subject,
                tenant=activity.tenant,
                age_ms=activity.age_ms,
                forwarded=(self.settings.partition, offset, index, s),
                stamp=s,
            )
        )

    def _forwarded(self, activity: Activity, s: int, offset: int) -> None:
        assert activity.forwarded is not None
        origin, origin_offset, index, stamp = activity.forwarded
        place = (origin_offset, -1 if index is None else index)
        if place <= self.origins.get(origin, (-1, -1)):
            return
        if partition_of(activity.subject, activity.tenant, self.settings.partitions) != self.settings.partition:
            self._letter(offset, None)
            return
        self.origins[origin] = place
        self._activity(activity, s, min(stamp, s), offset)

    def _activity(self, activity: Activity, s: int, in_time_at: int, offset: int) -> None:
        if isinstance(activity, SessionClosed):
            self._close(activity, s, in_time_at, offset)
        elif isinstance(activity, SessionRefreshed):
            if self._belongs(activity, offset, None) and activity.session in self.ended:
                self._violation(activity, self._instant(activity.age_ms, s))
        else:
            self._touch(touch_of(activity), s, in_time_at, offset, None)

    def _instant(self, age_ms: int, s: int) -> int:
        return s - self._clamped(age_ms)

    def _clamped(self, age_ms: int) -> int:
        return min(max(age_ms, 0), self.settings.age_max_ms)

    def _belongs(self, activity: Activity | Touch, offset: int, entry: int | None) -> bool:
        session = self.live.get(activity.session)
        if session is None or (session.tenant, session.subject) == (activity.tenant, activity.subject):
            return True
        self._letter(offset, entry)
        return False

    def _touch(self, touch: Touch, s: int, in_time_at: int, offset: int, entry: int | None) -> None:
        if not self._belongs(touch, offset, entry):
            return
        instant = self._instant(touch.age_ms, s)
        session = self.live.get(touch.session)
        if session is not None and session.adopted and touch.start is not None:
            self._count(session, touch, instant, s, in_time_at)
            if self._has_class_of(touch.start):
                self._correct(session, touch.start, instant, s, offset)
        elif session is not None:
            self._count(session, touch, instant, s, in_time_at)
        elif touch.session in self.ended:
            if touch.start is None:
                self._violation(touch, instant)
        elif touch.start is not None or self.settings.adopt_unknown:
            self._first_seen(touch, instant, s, offset)

    def _count(self, session: Live, touch: Touch, instant: int, s: int, in_time_at: int) -> None:
        idle, absolute = self.dues(session)
        limits = self.limits(session)
        age = self._clamped(touch.age_ms)
        since = age if touch.since_ms is None else max(self._clamped(touch.since_ms), age)
        counts = (
            s - since < idle
            and (touch.pause_ms is None or limits.idle_ms is None or touch.pause_ms < limits.idle_ms)
            and (self.hold is not None or in_time_at < idle + self.settings.grace_ms)
            and in_time_at < absolute
        )
        if counts:
            session.last_seen_at = max(session.last_seen_at, instant + self._held_for(session, touch))

    def _held_for(self, session: Live, touch: Touch) -> int:
        if touch.hold_ms is None:
            return 0
        hold_max = self.limits(session).hold_max_ms
        return min(max(touch.hold_ms, 0), DURATION_MAX_MS if hold_max is None else hold_max)

    def _room(self, subject: str, tenant: str | None) -> bool:
        of_subject = sum((other.subject, other.tenant) == (subject, tenant) for other in self.live.values())
        return len(self.live) < self.settings.sessions_max and of_subject < self.settings.sessions_per_subject_max

    def _has_class(self, *kind: Any) -> bool:
        kinds = [
            (o.tenant, o.service, o.policy, sorted(o.attributes.items()), o.token_life_ms) for o in self.live.values()
        ]
        return list(kind) in map(list, kinds) or len({repr(one) for one in kinds}) < self.settings.classes_max

    def _has_class_of(self, start: SessionStarted) -> bool:
        attributes = sorted((start.attributes or {}).items())
        return self._has_class(start.tenant, start.service, start.policy, attributes, start.token_life_ms)

    def _remembers_more(self) -> bool:
        return len(self.ended) + len(self.revoked_unseen) < self.settings.sessions_max

    def _first_seen(self, touch: Touch, instant: int, s: int, offset: int) -> None:
        start = touch.start
        if touch.session not in self.revoked_unseen:
            known = (
                self._has_class(touch.tenant, touch.service, None, [], None)
                if start is None
                else self._has_class_of(start)
            )
            if not (known and self._room(touch.subject, touch.tenant) and self._remembers_more()):
                return
        known_age = None if touch.session_age_ms is None else min(max(touch.session_age_ms, 0), DURATION_MAX_MS)
        session = Live(
            session=touch.session,
            subject=touch.subject,
            tenant=touch.tenant,
            service=touch.service,
            started_at=instant - (known_age or 0),
            last_seen_at=instant,
            adopted=start is None,
        )
        if start is not None:
            self._describe(session, start)
        session.last_seen_at += self._held_for(session, touch)
        self.live[touch.session] = session
        self._end_if_covered(session, start is not None or known_age is not None, s, offset)

    def _correct(self, session: Live, start: SessionStarted, instant: int, s: int, offset: int) -> None:
        session.started_at = instant
        session.adopted = False
        self._describe(session, start)
        self._end_if_covered(session, True, s, offset)

    def _describe(self, session: Live, start: SessionStarted) -> None:
        session.service = start.service
        session.policy = start.policy
        session.attributes = dict(start.attributes or {})
        session.token_life_ms = start.token_life_ms

    def _end_if_covered(self, session: Live, age_known: bool, s: int, offset: int) -> None:
        covering = [
            (cutoff.at, cutoff.id)
            for cutoff in self.cutoffs.values()
            if cutoff.covers(session.subject, session.tenant) and (session.started_at <= cutoff.at or not age_known)
        ]
        own = self.revoked_unseen.pop(session.session, None)
        if own is not None or covering:
            at, id_ = own or min(covering)
            self._end(session, Cause.REVOKED, at, s, offset, revocation=id_)

    def _close(self, close: SessionClosed, s: int, in_time_at: int, offset: int) -> None:
        session = self.live.get(close.session)
        if session is None:
            known = close.session in self.ended or close.session in self.revoked_unseen
            if not known and self._remembers_more():
                self.ended[close.session] = Ended(decided_at=s)
            return
        if not self._belongs(close, offset, None):
            return
        instant = self._instant(close.age_ms, s)
        idle, absolute = self.dues(session)
        in_idle_time = self.hold is not None or (instant < idle and in_time_at < idle + self.settings.grace_ms)
        if in_idle_time and max(instant, in_time_at) < absolute:
            self._end(session, Cause.CLOSED, instant, s, offset)
        elif (
            self._over(session, s) is None
        ):  # else it was forwarded, and its own record settles what was over before it
            self._end(session, Cause.IDLE, idle, s, offset)

    def _violation(self, activity: Touch | SessionRefreshed, instant: int) -> None:
        ended = self.ended[activity.session]
        late = instant > ended.decided_at + self.settings.violation_after_ms
        if not late or activity.service in ended.accepted_by:
            return
        ended.accepted_by.add(activity.service)
        self._effects.violations.append(
            Violation(
                session=activity.session,
                subject=activity.subject,
                tenant=activity.tenant,
                service=activity.service,
                ended_at=ended.decided_at,
                active_at=instant,
                ending=ending_id(activity.session),
            )
        )

    # Revocations.

    def _revoke(self, order: Revocation, at: int, s: int, offset: int) -> None:
        if order.session is not None:
            session = self.live.get(order.session)
            if session is not None:
                self._end(session, Cause.REVOKED, at, s, offset, revocation=order.id)
            elif order.session not in self.ended:
                kept_order = self.revoked_unseen.get(order.session, (at, order.id))
                self.revoked_unseen[order.session] = min((at, order.id), kept_order)
            return
        kept = self.cutoffs.get(order.id)
        at = at if kept is None else min(at, kept.at)
        cutoff = self.cutoffs[order.id] = Cutoff(order.id, at, scope_of(order))
        for session in sorted(self.live.values(), key=lambda live: live.session):
            if cutoff.covers(session.subject, session.tenant) and session.started_at <= at:
                self._end(session, Cause.REVOKED, at, s, offset, revocation=order.id)

    # Policies.

    def limits(self, session: Live) -> Limits:
        """Return the limits in force for a session."""
        return limits_of(self.policies, session)

    def _adopt_policy(self, policy: Policy, version: int) -> None:
        _, in_force = self.policies.get(policy.name, (None, None))
        if in_force is None or version > in_force:
            self.policies[policy.name] = (policy, version)

    def _letter(self, offset: int, entry: int | None) -> None:
        """Report what is bad; of one packed record the first 8 entries."""
        if sum(letter.offset == offset for letter in self._effects.dead_letters) < 8:
            self._effects.dead_letters.append(LetterSeen(offset, entry))

    # What comes next.

    def next_due_at(self) -> int | None:
        """Return the log time at which the next session is to be settled or warned, None if there is none."""
        instants = []
        for session in self.live.values():
            idle, absolute = self.dues(session)
            release = idle + self.settings.grace_ms
            if self.hold is not None and self.hold.phase != "off":
                release = NEVER if self.hold.until is None else max(release, self.hold.until)
            instants.append(min(release, absolute))
            due = min(idle, absolute)
            before = self.limits(session).warn_before_ms
            if before is not None and session.warned_due != due and self.stamp < due < NEVER:
                instants.append(due - before)
        earliest = min(instants, default=NEVER)
        return None if earliest >= NEVER else earliest
