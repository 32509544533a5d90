"""How does a service test what happens when sessions end, without Kafka and without sleeping?

The guard and the publisher are the real ones; only the log is in memory, and time is set by the test:

    from lapse.consumers import session_reference
    from lapse.consumers.testing import MemoryFeed, MemoryPublisher

    def test_an_ended_session_is_refused() -> None:
        feed = MemoryFeed()
        guard = feed.guard(service="shop")
        session = session_reference("cookie")
        assert guard.check(session)
        feed.end(session, cause="idle")
        assert guard.check(session).cause == "idle"

    def test_a_stale_guard_refuses() -> None:
        feed = MemoryFeed()
        guard = feed.guard(service="shop", on_stale="deny")
        feed.processor_runs = False
        feed.advance(10_000)
        assert not guard.check(session_reference("cookie"))

Such a guard needs no event loop and no start; `async with` works too, for tests of a whole application. For a threaded
service `feed.sync_guard()` and `SyncMemoryPublisher` are the same without a thread. More in docs/testing.md.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lapse.consumers.activity import ActivityPublisher, PublisherStats, SyncActivityPublisher
from lapse.consumers.activity.packing import Activity
from lapse.consumers.guard import Guard, SyncGuard
from lapse.consumers.guard.freshness import Source
from lapse.consumers.guard.intake import Intake
from lapse.schemas import (
    Cause,
    Evidence,
    PackedTouches,
    Revocation,
    SessionEnded,
    SessionTouched,
    Watermark,
    encode,
    ending_id,
    parse_activity,
    parse_packed_entry,
    partition_of,
)

__all__ = ["ManualClock", "MemoryFeed", "MemoryPublisher", "SyncMemoryPublisher"]

_WATERMARK_INTERVAL_MS = 1_000
_HOUR_MS = 3_600_000


class ManualClock:
    """A clock that only `advance` moves; calling it gives monotonic ms.

    Attributes:
        now_at: log time, epoch ms.
    """

    def __init__(self, now_at: int = 1_800_000_000_000) -> None:
        self.now_at = now_at
        self._monotonic_ms = 1_000_000.0

    def __call__(self) -> float:
        return self._monotonic_ms

    def advance(self, ms: int) -> None:
        self.now_at += ms
        self._monotonic_ms += ms


@dataclass(frozen=True, slots=True)
class _Record:
    offset: int
    timestamp: int
    value: bytes | None


@dataclass(slots=True)
class _Reader:
    """A guard's intake, and how far it has been given each partition."""

    intake: Intake
    positions: dict[tuple[Source, int], int] = field(default_factory=dict)


class MemoryFeed:
    """The topics that a guard reads, in memory. It can feed several guards.

    Args:
        clock: of the log and of the guards it makes.
        partitions: of both topics.

    Attributes:
        processor_runs: while it does, watermarks come; set it to False to make guards stale.
        broker_runs: while it does not, nothing reaches a guard; what is put meanwhile comes when it is True again and
            time advances.
    """

    def __init__(self, clock: ManualClock | None = None, *, partitions: int = 1) -> None:
        self.clock = clock if clock is not None else ManualClock()
        self.processor_runs = True
        self.broker_runs = True
        self._partitions = partitions
        self._log: dict[tuple[Source, int], list[_Record]] = {
            (source, partition): [] for source in ("expiries", "revocations") for partition in range(partitions)
        }
        self._readers: list[_Reader] = []
        self._revocations = 0

    def guard(self, *, service: str = "test", **options: Any) -> Guard:
        """Return a guard that this feed feeds from now on, fresh if broker and processor run; options are Guard's."""
        feed = _FeedOfOne(self)
        guard = Guard(service=service, feed=feed, clock=self.clock, **options)
        feed.intake = guard.intake
        self._attach(guard.intake)
        return guard

    def sync_guard(self, *, service: str = "test", **options: Any) -> SyncGuard:
        """Return a guard for threaded services, fed as `guard`'s are, without a thread; options are SyncGuard's."""
        feed = _FeedOfOne(self)
        guard = _SyncGuardInPlace(service=service, feed=feed, clock=self.clock, **options)
        feed.intake = guard.intake
        self._attach(guard.intake)
        return guard

    async def start(self, intake: Intake) -> None:
        """Feed a guard that was made with `feed=` this one."""
        self._attach(intake)

    async def stop(self) -> None:
        """Feed nobody any more."""
        self._readers.clear()

    def end(
        self,
        session: str,
        *,
        subject: str = "someone",
        tenant: str | None = None,
        cause: Cause | str = Cause.IDLE,
        started_at: int | None = None,
        due_at: int | None = None,
        revocation: str | None = None,
        deny_until: int | None = None,
    ) -> SessionEnded:
        """Let the processor end a session now, and return the record.

        Args:
            session: its reference.
            due_at: now by default.
            started_at: an hour before due by default.
            deny_until: nine hours after the start by default, as under the built-in policy.
        """
        now = self.clock.now_at
        due_at = now if due_at is None else due_at
        started_at = due_at - _HOUR_MS if started_at is None else started_at
        partition = partition_of(subject, tenant, self._partitions)
        ended = SessionEnded(
            id=ending_id(session),
            session=session,
            subject=subject,
            tenant=tenant,
            cause=Cause(cause),
            started_at=started_at,
            last_seen_at=started_at,
            due_at=due_at,
            decided_at=now,
            idle_ms=_HOUR_MS // 2,
            absolute_ms=8 * _HOUR_MS,
            policy="default",
            policy_version=None,
            revocation=revocation,
            held=False,
            evidence=Evidence(partition=partition, offset=0),
            deny_until=started_at + 9 * _HOUR_MS if deny_until is None else deny_until,
        )
        self.put("expiries", partition, encode(ended))
        return ended

    def revoke(
        self,
        *,
        session: str | None = None,
        subject: str | None = None,
        tenant: str | None = None,
        everyone: bool = False,
        id: str | None = None,
    ) -> Revocation:
        """Let an operator revoke a session, a subject, a tenant or everyone now, and return the record."""
        self._revocations += 1
        order = Revocation(
            id=id or f"revocation-{self._revocations}",
            session=session,
            subject=subject,
            tenant=tenant,
            everyone=everyone,
            reason="test",
        )
        partitions = range(self._partitions) if subject is None else (partition_of(subject, tenant, self._partitions),)
        for partition in partitions:
            self.put("revocations", partition, encode(order))
        return order

    def put(self, source: Source, partition: int, value: bytes | None) -> None:
        """Append any value to a topic, also one that no guard can read."""
        log = self._log[source, partition]
        log.append(_Record(len(log), self.clock.now_at, value))
        self._deliver()

    def advance(self, ms: int) -> None:
        """Let time pass; a watermark comes every second and at the end, if broker and processor run."""
        while ms > 0:
            step = min(ms, _WATERMARK_INTERVAL_MS)
            self.clock.advance(step)
            ms -= step
            self._pulse()

    def _pulse(self) -> None:
        if self.processor_runs and self.broker_runs:
            for partition in range(self._partitions):
                self.put("expiries", partition, encode(Watermark(as_of=self.clock.now_at)))
        self._deliver()

    def _attach(self, intake: Intake) -> None:
        if all(reader.intake is not intake for reader in self._readers):
            reader = _Reader(intake, dict.fromkeys(self._log, 0))
            self._readers.append(reader)
            if self.broker_runs:
                self._begin(reader)
                self._pulse()

    def _detach(self, intake: Intake | None) -> None:
        self._readers = [reader for reader in self._readers if reader.intake is not intake]

    def _begin(self, reader: _Reader) -> None:
        for source in ("expiries", "revocations"):
            ends = [len(self._log[source, partition]) for partition in range(self._partitions)]
            reader.intake.begin(source, ends, [0] * self._partitions)

    def _deliver(self) -> None:
        if not self.broker_runs:
            return
        now = self.clock()
        for reader in self._readers:
            if not reader.intake.positions["expiries"]:
                self._begin(reader)
            for (source, partition), log in self._log.items():
                position = reader.positions[source, partition]
                if position < len(log):
                    reader.positions[source, partition] = len(log)
                    reader.intake.apply(source, partition, log[position:], now)
            for source in ("expiries", "revocations"):
                reader.intake.freshness.proven(source, now)


class _FeedOfOne:
    """What one guard starts and stops: the others that read the same log go on."""

    def __init__(self, log: MemoryFeed) -> None:
        self._log = log
        self.intake: Intake | None = None

    async def start(self, intake: Intake) -> None:
        self._log._attach(intake)

    async def stop(self) -> None:
        self._log._detach(self.intake)


class _SyncGuardInPlace(SyncGuard):
    """A guard that does in the caller's thread what it has a thread for."""

    _has_thread = False

    @property
    def intake(self) -> Intake:
        return self._inner.intake


class _MemoryBatch:
    """A batch that is never full."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object:
        if value is not None:
            self.values.append(value)
        return self


class MemoryPublisher(ActivityPublisher):
    """A publisher whose log is a list: `take()` returns what it would have written by now.

    Args:
        clock: with MemoryFeed, pass `feed.clock`.
    """

    def __init__(
        self, *, service: str = "test", clock: ManualClock | None = None, touch_interval_ms: int = 5_000
    ) -> None:
        self.clock = clock if clock is not None else ManualClock()
        super().__init__("memory", service=service, touch_interval_ms=touch_interval_ms, clock=self.clock)
        self._thread = threading.get_ident()  # what is noted in this thread is taken at once

    async def start(self) -> None:
        """Take notes again, if it was stopped."""
        self._resume()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Take no more notes, as any publisher after its stop; `take` returns what was noted before."""
        self._settle()
        self._refuse()

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """There is nothing to wait for."""
        return True

    @property
    def stats(self) -> PublisherStats:
        """Return what it has done by now."""
        self._settle()
        return super().stats

    def _settle(self) -> None:
        """Take what other threads have noted."""
        while self._inbox:
            self._drain()

    def take(self) -> Sequence[Activity]:
        """Return what is written by now, in the log's order, packed touches one by one; each activity once."""
        written: list[Activity] = []
        self._settle()
        while self._outbox.place(1):
            batch = _MemoryBatch()
            load = self._outbox.load(0, batch)
            self._outbox.landed(load)
            self._counts.records += load.records
            for value in batch.values:
                written += _unpack(value)
        return written


class SyncMemoryPublisher(SyncActivityPublisher):
    """The same for threaded services: it may be called from any thread, and has none of its own.

    Args:
        clock: with MemoryFeed, pass `feed.clock`.
    """

    _has_thread = False

    def __init__(
        self, *, service: str = "test", clock: ManualClock | None = None, touch_interval_ms: int = 5_000
    ) -> None:
        self.clock = clock if clock is not None else ManualClock()
        self._touch_interval_ms = touch_interval_ms
        super().__init__("memory", service=service, touch_interval_ms=touch_interval_ms, clock=self.clock)

    def _renew(self) -> None:
        super()._renew()
        self._inner = self._memory = MemoryPublisher(
            service=self.service, clock=self.clock, touch_interval_ms=self._touch_interval_ms
        )

    def start(self) -> None:
        """Take notes again, if it was stopped."""
        self._memory._resume()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Take no more notes, as any publisher after its stop; `take` returns what was noted before."""
        self._memory._settle()
        self._memory._refuse()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """There is nothing to wait for."""
        return True

    def take(self) -> Sequence[Activity]:
        """Return what is written by now, as `MemoryPublisher.take` does."""
        return self._memory.take()


def _unpack(value: bytes) -> list[Activity]:
    record = parse_activity(value)
    if isinstance(record, PackedTouches):
        return [
            SessionTouched(service=record.service, **parse_packed_entry(entry, index)._asdict())
            for index, entry in enumerate(record.touches)
        ]
    if isinstance(record, Activity):
        return [record]
    return []
