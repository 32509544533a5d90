"""What do activity and orders do to the oracle's sessions, once it is known that they are this partition's?"""

from __future__ import annotations

from typing import Any

from lapse.schemas import (
    DURATION_MAX_MS,
    Cause,
    Policy,
    Revocation,
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
    Violation,
    ending_id,
)

from tests.engine.oracle_facts import NEVER, Cutoff, Ended, LetterSeen, Live, Touch, scope_of, touch_of
from tests.engine.oracle_time import OracleTime

__all__ = ["Activity", "OracleSessions"]

Activity = SessionStarted | SessionTouched | SessionRefreshed | SessionElevated | SessionClosed


class OracleSessions(OracleTime):
    """The sessions of one partition, and what they and operators do."""

    def _activity(self, activity: Activity, s: int, in_time_at: int, offset: int) -> None:
        if isinstance(activity, SessionClosed):
            self._close(activity, s, in_time_at, offset)
        elif isinstance(activity, SessionRefreshed):
            if self._belongs(activity, offset, None) and activity.session in self.ended:
                self._violation(activity, self._instant(activity.age_ms, s))
        else:
            self._touch(touch_of(activity), s, in_time_at, offset, None)

    def _belongs(self, activity: Activity | Touch, offset: int, entry: int | None) -> bool:
        session = self.live.get(activity.session)
        if session is None or (session.tenant, session.subject) == (activity.tenant, activity.subject):
            return True
        self._letter(offset, entry)
        return False

    def _letter(self, offset: int, entry: int | None) -> None:
        """Report what is bad; of one packed record the first 8 entries."""
        if sum(letter.offset == offset for letter in self._effects.dead_letters) < 8:
            self._effects.dead_letters.append(LetterSeen(offset, entry))

    def _instant(self, age_ms: int, s: int) -> int:
        return s - self._clamped(age_ms)

    def _clamped(self, age_ms: int) -> int:
        return min(max(age_ms, 0), self.settings.age_max_ms)

    # Touches.

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

    # Sessions that begin.

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

    # Sessions that are over.

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
        elif self._over(session, s) is None:
            self._end(session, Cause.IDLE, idle, s, offset)
        # Else it was forwarded, and its own record settles what was over before it.

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

    # Orders.

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

    def _adopt_policy(self, policy: Policy, version: int, s: int) -> None:
        _, in_force = self.policies.get(policy.name, (None, None))
        if in_force is not None and version <= in_force:
            return
        before = {name: self.limits(session).absolute_ms for name, session in self.live.items()}
        self.policies[policy.name] = (policy, version)
        for name, session in self.live.items():
            was, now = before[name] or NEVER, self.limits(session).absolute_ms or NEVER
            if now < was:
                self.shortened = (s, max(was, self.shortened[1]))
