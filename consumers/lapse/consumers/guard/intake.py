"""What does each record that a guard reads change?

One record of lapse.expiries or lapse.revocations goes in, with its offset, its append time and when it was received;
denials, freshness, hooks and reports follow. It is the same for the records of a broker (feed.py) and for those of a
test (lapse.consumers.testing). What cannot be read is never skipped: it makes the guard stale and is dead-lettered.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from lapse.consumers.guard.broker_clock import BrokerClock
from lapse.consumers.guard.decisions import Ended
from lapse.consumers.guard.denials import EVERYONE, Denials, Scope
from lapse.consumers.guard.freshness import Freshness, Source
from lapse.consumers.guard.hooks import Hooks
from lapse.consumers.guard.readings import CAUSES, match_ending
from lapse.schemas import (
    BadRecord,
    Cause,
    DeadLetter,
    Revocation,
    SessionEnded,
    TopicNames,
    Watermark,
    ending_id,
    parse_expiry,
    parse_revocation,
)

__all__ = ["Applied", "Intake", "LogRecord"]

_log = logging.getLogger("lapse.consumers")

PROPAGATIONS_MAX: Final = 1_024
"""Propagation times kept for the percentiles that are reported: the 99th is then the mean of about ten."""

REPORTS_MAX: Final = 10_000
"""Applied revocations that wait to be reported, about 300 bytes each, 3 MB. The oldest are dropped."""

DEAD_LETTERS_MAX: Final = 1_000
"""Dead letters that wait to be written, about 6 KB each, 6 MB. The oldest are dropped."""


class LogRecord(Protocol):
    """What a guard needs of a record; aiokafka's ConsumerRecord fits."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...


class Applied:
    """A revocation that was applied: its id, how long after its append, and how many hooks it called."""

    __slots__ = ("after_ms", "closed", "revocation")

    def __init__(self, revocation: str, after_ms: float, closed: int) -> None:
        self.revocation = revocation
        self.after_ms = after_ms
        self.closed = closed


class Intake:
    """Applies records to what one guard knows."""

    def __init__(self, topics: TopicNames, denials: Denials, freshness: Freshness, hooks: Hooks) -> None:
        self.denials = denials
        self.freshness = freshness
        self.hooks = hooks
        self.broker_clock = BrokerClock()
        self.propagations_ms: deque[float] = deque(maxlen=PROPAGATIONS_MAX)
        self.applied: deque[Applied] = deque(maxlen=REPORTS_MAX)
        self.dead_letters: deque[DeadLetter] = deque(maxlen=DEAD_LETTERS_MAX)
        self.positions: dict[Source, list[int]] = {"expiries": [], "revocations": []}
        self.unreadable = 0
        self._topics: dict[Source, str] = {"expiries": topics.expiries, "revocations": topics.revocations}
        # News is what comes after these offsets: the ends at the guard's start, then what it had read when it lost the
        # topic. What is read again after a lost connection must not be told again.
        self._history: dict[Source, tuple[int, ...]] = {}
        self._orders: dict[str, None] = {}  # ids of revocations that were news, the last REPORTS_MAX of them
        self._forgotten_at: int | None = None

    def begin(self, source: Source, ends: Sequence[int], positions: Sequence[int]) -> None:
        """Note that a topic is read from `positions` on; the ends were taken after the assignment."""
        known = self._history.get(source, tuple(ends))
        # A topic that ends before what was read of it is another one, and all of it came after the guard's start.
        self._history[source] = tuple(offset if offset <= end else 0 for offset, end in zip(known, ends, strict=False))
        self.positions[source] = list(positions)
        self.freshness.begin(source, ends, positions)
        if source == "expiries":
            self.denials.log_time_unknown()
            self._forgotten_at = None

    def lose(self, source: Source, reason: str) -> None:
        """Note that the topic is not followed any more; what is known stays."""
        if self.freshness.has_caught_up(source):
            self._history[source] = tuple(self.positions[source])
        self.freshness.lose(source, reason)

    def apply(self, source: Source, partition: int, records: Sequence[LogRecord], at: float) -> None:
        """Apply records of one partition, in log order, received at `at` (monotonic ms); not empty."""
        self.broker_clock.received(records[-1].timestamp, at)  # the topics' append times never go down
        if source == "expiries":
            self._apply_expiries(partition, records, at)
        else:
            for record in records:
                try:
                    self._apply_revocation(partition, record, at)
                except BadRecord as fault:
                    self._refuse(source, partition, record, fault.reason)
        self.reached(source, partition, records[-1].offset + 1)

    def reached(self, source: Source, partition: int, position: int) -> None:
        """Note that the partition has been applied up to the offset; records that are gone are passed over so."""
        self.positions[source][partition] = position
        self.freshness.reached(source, partition, position)

    def _apply_expiries(self, partition: int, records: Sequence[LogRecord], at: float) -> None:
        join, wanted = self.denials.join_ending, self.hooks.wanted
        watched = bool(self.hooks)
        news_from = self._news_from("expiries", partition)
        told = watched or records[-1].offset >= news_from  # else what is joined is history that nobody waits for
        for record in records:
            value = record.value
            if value is None:
                continue  # a tombstone means nothing here
            usual = match_ending(value)
            if usual is None:
                try:
                    self._apply_unusual(partition, record, at, record.offset >= news_from)
                except BadRecord as fault:
                    self._refuse("expiries", partition, record, fault.reason)
                continue
            session, cause, due_at, order, deny_until = usual.groups()
            name = session.decode()
            revocation = None if order is None else order.decode()
            if join(name, CAUSES[cause], int(due_at), revocation, int(deny_until)) and told:
                news = record.offset >= news_from
                if news:
                    self.propagations_ms.append(self.broker_clock.since(record.timestamp, at))
                if watched and wanted(name, news=news):
                    self._call_hooks(parse_expiry(value), news)

    def _call_hooks(self, ended: object, news: bool) -> None:
        if isinstance(ended, SessionEnded):
            self.hooks.session_ended(_ended(ended), news=news)

    def _apply_unusual(self, partition: int, record: LogRecord, at: float, news: bool) -> None:
        """Apply a watermark, or an ending that is not of the usual form."""
        expiry = parse_expiry(record.value)
        if isinstance(expiry, Watermark):
            stamp = _on_log_scale(record.timestamp, expiry)
            self.freshness.watermark(partition, record.offset, expiry.as_of, stamp, at)
            self._forget()
        elif self.denials.end(expiry):
            if news:
                self.propagations_ms.append(self.broker_clock.since(record.timestamp, at))
            self._call_hooks(expiry, news)

    def _apply_revocation(self, partition: int, record: LogRecord, at: float) -> None:
        revocation = parse_revocation(record.value)
        news = record.offset >= self._news_from("revocations", partition)
        closed = self._revoke(revocation, record.timestamp, news)
        if news and self._is_first(revocation.id):
            after_ms = self.broker_clock.since(record.timestamp, at)
            self.propagations_ms.append(after_ms)
            self.applied.append(Applied(revocation.id, after_ms, closed))

    def _revoke(self, revocation: Revocation, at: int, news: bool) -> int:
        """Join a revocation; return how many hooks were called."""
        if revocation.session is not None:
            if not self.denials.revoke_session(revocation.session, revocation.id, at):
                return 0
            ended = Ended(
                session=revocation.session,
                subject=revocation.subject,
                tenant=revocation.tenant,
                cause=Cause.REVOKED,
                due_at=at,
                ending=None,
                revocation=revocation.id,
            )
            return self.hooks.session_ended(ended, news=news)
        scope: Scope = EVERYONE if revocation.everyone else (revocation.tenant, revocation.subject)
        if not self.denials.cut(scope, revocation.id, at):
            return 0
        order = self.denials.order(scope, revocation.id)
        return 0 if order is None else self.hooks.scope_cut(scope, order)

    def _is_first(self, revocation: str) -> bool:
        """Return whether the id was not seen lately: an order without a subject stands in every partition."""
        if revocation in self._orders:
            return False
        self._orders[revocation] = None
        if len(self._orders) > REPORTS_MAX:
            del self._orders[next(iter(self._orders))]
        return True

    def _refuse(self, source: Source, partition: int, record: LogRecord, reason: str) -> None:
        topic = self._topics[source]
        self.unreadable += 1
        self.freshness.unreadable(source, f"{topic}/{partition} offset {record.offset} is unreadable: {reason}")
        self.dead_letters.append(DeadLetter.of(topic, partition, record.offset, record.value, reason))
        _log.error(
            "%s/%d offset %d cannot be read, the guard is stale until it is upgraded or restarted without it: %s",
            topic,
            partition,
            record.offset,
            reason,
        )

    def _news_from(self, source: Source, partition: int) -> int:
        history = self._history[source]
        return history[partition] if partition < len(history) else 0

    def _forget(self) -> None:
        log_time = self.freshness.log_time
        if log_time is not None and log_time != self._forgotten_at:
            self._forgotten_at = log_time
            self.denials.forget(log_time)


def _ended(record: SessionEnded) -> Ended:
    return Ended(
        session=record.session,
        subject=record.subject,
        tenant=record.tenant,
        cause=record.cause,
        due_at=record.due_at,
        ending=ending_id(record.session),
        revocation=record.revocation,
    )


def _on_log_scale(append: int, watermark: Watermark) -> int:
    """Return a watermark's append time on the scale of log time, which leaves steps of a broker's clock out.

    Whether the broker that appended it is the one whose steps were taken out is not said: what is possible and nearest
    to `as_of` counts. A watermark is late by some milliseconds, or with its processor by more, hardly by just a step.
    """
    possible = [one for one in (append, append + watermark.offset_ms) if one >= watermark.as_of]
    return min(possible, default=watermark.as_of)
