"""Which sessions of one partition had to end, when, and why, by the raw records alone?

The auditor's reading of DESIGN.md sections 2 and 3: a dictionary of sessions, looked through at every record that can
matter. It shares no code with the engine, and nothing with it but the schemas, so that where both agree, they agree by
the rules. An order takes effect at its copy, and without one once it is `copied_within_ms` old (ordered.py).

For one record of stamp `s`:

1. the stamp moves (never back); a jump begins a hold, a hold may end (holding.py);
2. a forwarded activity is applied, by the stamp it had where it was first written;
3. sessions that are over at `s` end;
4. the record is applied.

Of the three things that an ending may follow from, only the first is decided by time:

    idle, absolute   outside a hold at s >= idle due + grace or s >= absolute due, by the earlier, at a tie absolute;
                     in a hold at s >= absolute due. The owner settles it at one of its next ticks, when it is certain
                     of the time (docs/adr/0006): at the record that the ending names as its evidence, if that is not
                     before, nor more than `settled_within_ms` after the first record that shows it
    closed           a close in time; in the grace after idle due it ends the session as idle
    revoked          an order that covers the session: at its copy, or at the session's first record after it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from lapse.pipeline.demo.holding import Holding
from lapse.pipeline.demo.limits_in_force import Login, PoliciesInForce
from lapse.pipeline.demo.ordered import OrderedPolicy, OrderedRevocation, Orders, covers
from lapse.schemas import (
    ActivityRecord,
    BadRecord,
    Cause,
    ClockTick,
    PackedTouch,
    PackedTouches,
    PolicyAdopted,
    RevocationOrdered,
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
    parse_activity,
    parse_packed_entry,
    partition_of,
)

__all__ = [
    "COPIED_WITHIN_MS",
    "SETTLED_WITHIN_MS",
    "EndedBy",
    "Expected",
    "LogRecord",
    "Rules",
    "Walk",
]

COPIED_WITHIN_MS: Final = 2_000
"""The design gives the owner a second to copy an order into the log; a busy machine is given one more.
Where workers are killed and brokers away on purpose, whoever audits gives them the time that this may take."""

SETTLED_WITHIN_MS: Final = 2_000
"""The owner ticks each second, and at the instant that something is due; the rest is for a busy machine."""

_NEVER: Final = 1 << 62  # later than any instant: epoch ms are about 2**41

_Activity = SessionStarted | SessionTouched | SessionElevated | SessionRefreshed | SessionClosed


class LogRecord(Protocol):
    """What the auditor reads of a record: aiokafka's ConsumerRecord has it. `timestamp` is the append time."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the rules depend on, as `lapse.pipeline.settings` names them."""

    partitions: int
    grace_ms: int
    gap_ms: int
    gap_grace_ms: int
    age_max_ms: int
    ended_memory_ms: int
    adopt_unknown: bool
    copied_within_ms: int = COPIED_WITHIN_MS
    settled_within_ms: int = SETTLED_WITHIN_MS


class Expected(NamedTuple):
    """An ending that the rules ask for; `decided_at` is the stamp of the record that settled it."""

    session: str
    cause: Cause
    due_at: int
    decided_at: int


class EndedBy(NamedTuple):
    """What a published ending gives as its evidence: the record's offset, and whether time alone ended the session."""

    offset: int
    time: bool


class Walk:
    """One partition's records, read once from start to end.

    Attributes:
        stamp: of the last record; None before the first.
        live: the sessions that are not over, by reference.
        expected: the endings, by session.
        seen: every session that there was.
        orders: of operators, as far as they have not taken effect, or are kept for what comes late.
    """

    def __init__(
        self,
        partition: int,
        rules: Rules,
        revocations: Iterable[OrderedRevocation],
        policies: Iterable[OrderedPolicy],
        evidence: Mapping[str, EndedBy],
    ) -> None:
        """Make one.

        Args:
            partition: its number.
            rules: of the estate.
            revocations, policies: as they were ordered, for this partition.
            evidence: by session, the record that its published ending says it was settled by, or ended by an order.
        """
        self.stamp: int | None = None
        self.live: dict[str, Login] = {}
        self.expected: dict[str, Expected] = {}
        self.seen: set[str] = set()
        self.orders = Orders(revocations, policies)
        self._partition = partition
        self._rules = rules
        self._holding = Holding(rules.gap_ms, rules.gap_grace_ms)
        self._in_force = PoliciesInForce()
        self._over_since: dict[str, int] = {}  # ended session -> decided_at
        self._origins: dict[int, tuple[int, int]] = {}
        # No session is over before this instant: touches only make them later, so it is found anew when it has come.
        self._nothing_before = _NEVER
        self._evidence = evidence
        self._shown_at: dict[str, int] = {}  # session that is over and not settled yet -> stamp of the first to show it
        self._delayed: set[str] = set()  # of these, those whose idle ending the last hold delayed

    def read(self, records: Sequence[LogRecord]) -> None:
        """Take in records in the order of their offsets."""
        for record in records:
            self._record(record)

    def over_at(self, login: Login) -> int:
        """Return the stamp at which a live session would be over if nothing more came, outside a hold."""
        return min(_idle_due(login) + self._rules.grace_ms, _absolute_due(login))

    def _record(self, record: LogRecord) -> None:
        before = self.stamp
        stamp = self.stamp = record.timestamp if before is None else max(before, record.timestamp)
        self._holding.move(before, stamp)
        activity: ActivityRecord | None
        try:
            activity = parse_activity(record.value)
        except BadRecord:
            activity = None
        if isinstance(activity, _Activity) and activity.forwarded is not None:
            self._forwarded(activity, stamp)
            activity = None
        self._settle(stamp, record.offset)
        self._apply_old_orders(stamp)
        if isinstance(activity, PackedTouches):
            self._packed(activity, stamp)
        elif isinstance(activity, ClockTick):
            self._holding.tick(stamp, activity)
        elif isinstance(activity, RevocationOrdered):
            if (order := self.orders.take_revocation(activity.revocation.id)) is not None:
                self._revoke(order, stamp)
        elif isinstance(activity, PolicyAdopted):
            if (adopted := self.orders.take_policy(activity.version)) is not None:
                self._adopt_policy(adopted)
        elif activity is not None and self._is_ours(activity.subject, activity.tenant):
            self._activity(activity, stamp, stamp)

    # Time

    def _settle(self, stamp: int, offset: int) -> None:
        if stamp < self._nothing_before and not self._holding.ran_out_now:
            return
        self._nothing_before = _NEVER
        for login in list(self.live.values()):
            over = self._over(login, stamp)
            if over is None:
                self._shown_at.pop(login.session, None)
                self._delayed.discard(login.session)
                at = self.over_at(login)
            elif (
                self._is_settled_later(login, offset)
                and stamp <= self._shown_at.setdefault(login.session, stamp) + self._rules.settled_within_ms
            ):
                at = -1  # it is looked at again at the next record
                if self._was_held(login):
                    self._delayed.add(login.session)
            else:
                self._end(login, *over, stamp)
                continue
            self._nothing_before = min(self._nothing_before, at)

    def _is_settled_later(self, login: Login, offset: int) -> bool:
        ended_by = self._evidence.get(login.session)
        return ended_by is not None and (ended_by.offset > offset or (ended_by.offset == offset and not ended_by.time))

    def _over(self, login: Login, stamp: int) -> tuple[Cause, int] | None:
        """Return why a session is over at a stamp, and since when it was due; None: it is not."""
        idle_due, absolute_due = _idle_due(login), _absolute_due(login)
        idle_over = idle_due + self._rules.grace_ms
        if self._holding.on:
            return (Cause.ABSOLUTE, absolute_due) if stamp >= absolute_due else None
        if stamp < min(idle_over, absolute_due):
            return None
        ran_out_at = self._holding.ran_out_at
        if absolute_due <= idle_due or (
            ran_out_at is not None and absolute_due <= ran_out_at and self._was_held(login)
        ):
            return Cause.ABSOLUTE, absolute_due
        return Cause.IDLE, idle_due

    def _was_held(self, login: Login) -> bool:
        """Return whether the hold that ran out delayed a session's idle ending, as the first record after it shows."""
        over_inside = _idle_due(login) + self._rules.grace_ms <= self._holding.last_inside
        return login.session in self._delayed or (self._holding.ran_out_now and over_inside)

    def _end(self, login: Login, cause: Cause, due_at: int, stamp: int) -> None:
        self.live.pop(login.session, None)
        self._shown_at.pop(login.session, None)
        self._delayed.discard(login.session)
        self._over_since[login.session] = stamp
        self.expected[login.session] = Expected(login.session, cause, due_at, stamp)

    # Activity

    def _activity(self, record: _Activity, stamp: int, sent_at: int) -> None:
        """Apply an activity; `sent_at` is the stamp by which it must be in time."""
        session = record.session
        if self._is_over(session, stamp):
            return
        age_ms = self._age(record.age_ms)
        login = self.live.get(session)
        if login is not None and (login.subject, login.tenant) != (record.subject, record.tenant):
            return
        match record:
            case SessionStarted():
                self._start(record, login, stamp - age_ms, stamp, sent_at)
            case SessionTouched():
                touch = PackedTouch(
                    session, record.subject, record.tenant, record.age_ms, record.since_ms, record.pause_ms
                )
                self._touch(
                    touch, record.service, stamp, sent_at, hold_ms=record.hold_ms, session_age_ms=record.session_age_ms
                )
            case SessionElevated():
                touch = PackedTouch(session, record.subject, record.tenant, record.age_ms)
                self._touch(touch, record.service, stamp, sent_at, session_age_ms=record.session_age_ms)
            case SessionClosed():
                self._close(session, login, stamp - age_ms, stamp, sent_at)
            case SessionRefreshed():
                pass

    def _packed(self, record: PackedTouches, stamp: int) -> None:
        for index, entry in enumerate(record.touches):
            try:
                touch = parse_packed_entry(entry, index)
            except BadRecord:
                continue
            if not self._is_ours(touch.subject, touch.tenant) or self._is_over(touch.session, stamp):
                continue
            login = self.live.get(touch.session)
            if login is None or (login.subject, login.tenant) == (touch.subject, touch.tenant):
                self._touch(touch, record.service, stamp, stamp)

    def _forwarded(self, record: _Activity, stamp: int) -> None:
        assert record.forwarded is not None  # noqa: S101  # the caller asked
        partition, offset, entry, sent_at = record.forwarded
        origin = (offset, -1 if entry is None else entry)
        if self._is_ours(record.subject, record.tenant) and origin > self._origins.get(partition, (-1, -1)):
            self._origins[partition] = origin
            self._activity(record, stamp, min(sent_at, stamp))

    def _touch(
        self,
        touch: PackedTouch,
        service: str,
        stamp: int,
        sent_at: int,
        *,
        hold_ms: int | None = None,
        session_age_ms: int | None = None,
    ) -> None:
        login = self.live.get(touch.session)
        instant = stamp - self._age(touch.age_ms)
        hold = max(hold_ms or 0, 0)
        if login is not None:
            since_ms = touch.age_ms if touch.since_ms is None else touch.since_ms
            first = min(instant, stamp - self._age(since_ms))
            if self._counts(login, first, touch.pause_ms or 0, sent_at):
                self._seen_at(login, instant, hold)
        elif self._rules.adopt_unknown:
            started_at = instant - max(session_age_ms or 0, 0)
            login = Login(touch.session, touch.subject, touch.tenant, service, started_at, instant, adopted=True)
            login.limits = self._in_force.limits(login)
            self._seen_at(login, instant, hold)
            self._begin(login, stamp, start_is_known=session_age_ms is not None)

    def _seen_at(self, login: Login, instant: int, hold_ms: int) -> None:
        cap = login.limits.hold_max_ms
        login.last_seen_at = max(login.last_seen_at, instant + (hold_ms if cap is None else min(hold_ms, cap)))

    def _counts(self, login: Login, first: int, pause_ms: int, sent_at: int) -> bool:
        """Return whether an activity is in time: what it stands for, and the record that carries it."""
        idle_due = _idle_due(login)
        in_time = self._holding.on or sent_at < idle_due + self._rules.grace_ms
        return (
            first < idle_due
            and (login.limits.idle_ms is None or pause_ms < login.limits.idle_ms)
            and in_time
            and sent_at < _absolute_due(login)
        )

    def _start(self, record: SessionStarted, login: Login | None, instant: int, stamp: int, sent_at: int) -> None:
        if login is None:
            login = Login(
                record.session, record.subject, record.tenant, record.service, instant, instant, adopted=False
            )
            self._describe(login, record)
            self._begin(login, stamp, start_is_known=True)
            return
        if self._counts(login, instant, 0, sent_at):
            self._seen_at(login, instant, 0)
        if login.adopted:
            login.adopted = False
            login.started_at = instant
            self._describe(login, record)
            self._begin(login, stamp, start_is_known=True)

    def _describe(self, login: Login, record: SessionStarted) -> None:
        login.service, login.policy, login.attributes = record.service, record.policy, record.attributes
        login.limits = self._in_force.limits(login)

    def _begin(self, login: Login, stamp: int, *, start_is_known: bool) -> None:
        """Take in a session whose start was just told, unless an order ends it at once."""
        self.seen.add(login.session)
        self.live[login.session] = login
        self._nothing_before = min(self._nothing_before, self.over_at(login))
        order = self.orders.ending(login, start_is_known=start_is_known)
        if order is not None:
            self._end(login, Cause.REVOKED, order.at, stamp)

    def _close(self, session: str, login: Login | None, instant: int, stamp: int, sent_at: int) -> None:
        if login is None:
            if not self.orders.is_barred(session):
                self._over_since[session] = stamp  # remembered, without a record
            return
        idle_due = _idle_due(login)
        in_time = self._holding.on or (instant < idle_due and sent_at < idle_due + self._rules.grace_ms)
        if in_time and max(instant, sent_at) < _absolute_due(login):
            self._end(login, Cause.CLOSED, instant, stamp)
        elif self._over(login, stamp) is None:
            self._end(login, Cause.IDLE, idle_due, stamp)
        # Else it was over before, and is only not settled yet.

    def _age(self, age_ms: int) -> int:
        return max(0, min(age_ms, self._rules.age_max_ms))

    def _is_ours(self, subject: str, tenant: str | None) -> bool:
        return partition_of(subject, tenant, self._rules.partitions) == self._partition

    def _is_over(self, session: str, stamp: int) -> bool:
        ended_at = self._over_since.get(session)
        return ended_at is not None and stamp < ended_at + self._rules.ended_memory_ms

    # Orders

    def _apply_old_orders(self, stamp: int) -> None:
        before = stamp - self._rules.copied_within_ms
        for order in self.orders.take_old_revocations(before):
            self._revoke(order, stamp)
        for policy in self.orders.take_old_policies(before):
            self._adopt_policy(policy)

    def _revoke(self, order: OrderedRevocation, stamp: int) -> None:
        order = order._replace(at=min(order.at, stamp))
        session = order.revocation.session
        if session is None:
            self.orders.keep(order)
        elif session not in self.live:
            if not self._is_over(session, stamp):
                self.orders.bar(session, order)
            return
        for login in list(self.live.values()):
            if covers(order, login):
                self._end(login, Cause.REVOKED, order.at, stamp)

    def _adopt_policy(self, order: OrderedPolicy) -> None:
        if self._in_force.adopt(order.version, order.policy):
            for login in self.live.values():
                login.limits = self._in_force.limits(login)
            self._nothing_before = -1


def _idle_due(login: Login) -> int:
    return _NEVER if login.limits.idle_ms is None else login.last_seen_at + login.limits.idle_ms


def _absolute_due(login: Login) -> int:
    return _NEVER if login.limits.absolute_ms is None else login.started_at + login.limits.absolute_ms
