"""What is happening right now, as the topics and the accounts tell it? For the view, while the demo runs.

The figures of the summary are computed anew at the end, from the whole topics (summary.py); what is shown meanwhile is
the same arithmetic on what has come so far.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aiokafka.structs import TopicPartition

from lapse.pipeline.demo.account import AccountReader
from lapse.pipeline.demo.measure import Measures
from lapse.pipeline.demo.recompute import Published
from lapse.pipeline.demo.services import ServiceName
from lapse.pipeline.operations.connection import consuming, require_topics
from lapse.pipeline.operations.reading import Record
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    BadRecord,
    Cause,
    GuardApplied,
    GuardStatus,
    PackedTouches,
    Revocation,
    SessionStarted,
    SessionTouched,
    TopicNames,
    Watermark,
    parse_activity,
    parse_enforcement,
    parse_expiry,
    parse_packed_entry,
    parse_revocation,
)

__all__ = ["EVENTS_SHOWN", "Event", "Observer"]

EVENTS_SHOWN: Final = 6  # the whole view then fits into 24 lines

MEASURED_MAX: Final = 2_000
"""The percentiles shown are of the last so many endings: two minutes' worth, and cheap to sort four times a second."""

_ACCOUNTS_INTERVAL_S: Final = 0.25
_FETCH_WAIT_MS: Final = 300
_FETCH_BYTES_MIN: Final = 1_000_000  # more than comes in that time: 100 records of 300 bytes


class Event(NamedTuple):
    """Something that happened: `at` is its append time, epoch ms."""

    at: int
    what: str
    who: str
    detail: str


@dataclass(slots=True)
class Observer:
    """Reads everything as it comes; `run` until cancelled.

    Attributes:
        measures: of what has come so far.
        live: references of the sessions that began and have not ended.
        ended: references of those that have.
        causes: endings by cause.
        events: the last ones.
        guards: the last status of each, by service.
        watermarks: partitions that have one: a worker owns them.
    """

    settings: Settings
    accounts: Mapping[ServiceName, AccountReader]
    measures: Measures = field(default_factory=lambda: Measures(applied_ms=deque(maxlen=MEASURED_MAX)))
    live: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    causes: Counter[Cause] = field(default_factory=Counter)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS_SHOWN))
    guards: dict[str, GuardStatus] = field(default_factory=dict)
    watermarks: set[int] = field(default_factory=set)

    async def run(self) -> None:
        """Follow the topics and the accounts."""
        names = TopicNames(self.settings.prefix)
        readers = {
            names.activity: self._activity,
            names.expiries: self._expiry,
            names.revocations: self._revocation,
            names.enforcement: self._enforcement,
        }
        async with asyncio.TaskGroup() as group:
            group.create_task(self._topics(readers))
            group.create_task(self._accounts())

    async def _topics(self, readers: Mapping[str, Callable[[Record], None]]) -> None:
        counts = await require_topics(self.settings, readers)
        everything = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
        # Answered when so much has come or the wait is over, not at every record: whoever looks on must not be a load.
        patience = {"fetch_min_bytes": _FETCH_BYTES_MIN, "fetch_max_wait_ms": _FETCH_WAIT_MS}
        async with consuming(self.settings, **patience) as consumer:
            consumer.assign(everything)
            while True:
                for part, records in (await consumer.getmany(timeout_ms=_FETCH_WAIT_MS)).items():
                    for record in records:
                        self._take(readers[part.topic], record)

    def _take(self, reader: Callable[[Record], None], record: Record) -> None:
        try:
            reader(record)
        except BadRecord:
            return  # the audit at the end tells what it makes of it

    async def _accounts(self) -> None:
        while True:
            await asyncio.sleep(_ACCOUNTS_INTERVAL_S)
            for service, account in self.accounts.items():
                # What was let pass is judged at the end; here it would only pile up.
                self.measures.account(service, [entry for entry in account.read() if entry.what == "refuses"])

    def _measure(self, ending: Published) -> None:
        endings = self.measures.endings
        endings[ending.ended.session] = ending
        if len(endings) > MEASURED_MAX:
            oldest = next(iter(endings))
            del endings[oldest]
            for refuses_at in self.measures.refuses_at.values():
                refuses_at.pop(oldest, None)

    def _activity(self, record: Record) -> None:
        activity = parse_activity(record.value)
        sessions: Iterable[str] = ()
        if isinstance(activity, PackedTouches):
            sessions = [parse_packed_entry(entry, index).session for index, entry in enumerate(activity.touches)]
        elif isinstance(activity, SessionStarted | SessionTouched):
            sessions = [activity.session]
        self.live.update(session for session in sessions if session not in self.ended)

    def _expiry(self, record: Record) -> None:
        expiry = parse_expiry(record.value)
        if isinstance(expiry, Watermark):
            self.watermarks.add(record.partition)
        elif expiry.session not in self.ended:
            self._measure(Published(expiry, record.timestamp))
            self.ended.add(expiry.session)
            self.live.discard(expiry.session)
            self.causes[expiry.cause] += 1
            late = record.timestamp - expiry.due_at
            self.events.append(Event(record.timestamp, expiry.cause, expiry.subject, f"ended {late} ms after due"))

    def _revocation(self, record: Record) -> None:
        order = parse_revocation(record.value)
        self.events.append(Event(record.timestamp, "order", order.subject or "", _ordered(order)))

    def _enforcement(self, record: Record) -> None:
        report = parse_enforcement(record.value)
        if isinstance(report, GuardApplied):
            self.measures.applied_ms.append(report.after_ms)
        else:
            self.guards[report.service] = report


def _ordered(order: Revocation) -> str:
    return f"revoke {'this session' if order.session is not None else 'all sessions'} ({order.reason})"
