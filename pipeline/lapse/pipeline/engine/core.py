"""What does this log, record by record, say about its sessions? One partition's engine.

Theory of operation
-------------------
Records and their append times go in, in offset order; effects come out as data. Nothing else is looked at: no clock,
no environment, no randomness. The same records give the same effects, however they are cut into batches and wherever a
checkpoint was taken and restored.

For each record, in this order:

1. The clock gives the record its stamp. A jump may begin a hold; a hold may end (holds.py).
2. A forwarded record is applied, by the stamp it had where it was found.
3. What is over at the stamp is settled (sessions.py).
4. The record is applied.

After the batch, endings that log time has reached are released. `apply` never raises on bad input: that becomes a
dead letter. Any other exception is a fault of the engine; the caller must then drop the engine, since a batch may be
half applied.

The hot path is a touch of a known, live session, in time by the columns alone, which moves `last_seen_at` and nothing
else. Records of one append time are decoded together, and such touches among them applied together (hot_path.py); from
the first other record on one by one, where the hot path is written out in `_one_by_one` and `_packed`. Everything else
goes the long way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import orjson

from lapse.pipeline.engine.effects import Checkpoint, Effects, Forward
from lapse.pipeline.engine.fast_decode import PackedRow, Plain, PlainPacked, PlainTouch, decode_each
from lapse.pipeline.engine.hot_path import FEW, TOGETHER, touch_together
from lapse.pipeline.engine.log_clock import AppendClock, LogClock
from lapse.pipeline.engine.sessions import Sessions
from lapse.pipeline.engine.settings import EngineSettings
from lapse.pipeline.engine.snapshot import load_snapshot, save_snapshot
from lapse.pipeline.engine.table import BARRED, ENDED
from lapse.pipeline.engine.touch import Touch
from lapse.schemas import (
    ActivityRecord,
    BadRecord,
    ClockTick,
    DeadLetter,
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
    verify,
)

__all__ = ["LogRecord", "PartitionEngine"]

_SessionActivity = SessionStarted | SessionTouched | SessionRefreshed | SessionElevated | SessionClosed


class LogRecord(Protocol):
    """A record of the log, as aiokafka's ConsumerRecord has it."""

    @property
    def offset(self) -> int: ...

    @property
    def timestamp(self) -> int:
        """Append time, epoch ms of the broker's clock."""

    @property
    def value(self) -> bytes | None: ...


def _run(records: Sequence[LogRecord], begin: int) -> Sequence[LogRecord]:
    """Return the records from `begin` on that have one append time, at most TOGETHER of them."""
    run = records[begin : begin + TOGETHER]
    appends = [record.timestamp for record in run]
    first = appends[0]
    if appends.count(first) == len(run):
        return run
    return run[: next(index for index, append in enumerate(appends) if append != first)]


class PartitionEngine:
    """The engine of one partition; see the module's theory of operation."""

    def __init__(self, settings: EngineSettings, clock: LogClock | None = None) -> None:
        self.settings = settings
        self.clock: LogClock = AppendClock() if clock is None else clock
        self.sessions = Sessions(settings)
        self.offset = 0
        """The next input offset to apply; records below it are dropped."""
        self.epoch = -1
        """The highest epoch of a valid tick; -1 before the first."""
        self.origins: dict[int, tuple[int, int]] = {}
        """By origin partition, the last (offset, index) that was forwarded here and applied."""
        self._append: int | None = None  # append time of the latest record, None before the first
        self._offset = 0  # offset and value of the record being applied, for what goes the long way
        self._value: bytes | None = None

    @property
    def stamp(self) -> int:
        """The latest stamp, epoch ms; 0 before the first record."""
        return self.clock.stamp

    @property
    def counters(self) -> Counter[str]:
        """How often something happened that makes no record of its own, since this engine was made."""
        return self.sessions.counters

    @property
    def live_sessions(self) -> int:
        """How many sessions are live."""
        return self.sessions.table.live

    @property
    def append(self) -> int | None:
        """The append time of the last applied record, as the broker gave it; None before the first."""
        return self._append

    def next_due_at(self) -> int | None:
        """Return the instant of log time at which something is next to be settled or warned of, or None."""
        return self.sessions.next_due_at(self.clock.stamp)

    def watermark(self) -> int:
        """Return an instant such that all endings with `decided_at` below it have been returned by `apply`."""
        settled = self.sessions.settled
        return settled[0].decided_at if settled else self.clock.stamp

    def apply(self, records: Sequence[LogRecord]) -> Effects:
        """Apply records in offset order and return what they brought about."""
        sessions = self.sessions
        effects = sessions.effects = Effects()
        if records and records[0].offset < self.offset:
            records = [record for record in records if record.offset >= self.offset]
        if not records:
            return effects
        done = 0
        while done < len(records):
            run = _run(records, done)
            if run[0].timestamp != self._append:
                self._advance(run[0].timestamp)
            self._apply_run(run, self.clock.stamp)
            done += len(run)
        self.offset = records[-1].offset + 1
        self._release(effects)
        return effects

    def _apply_run(self, run: Sequence[LogRecord], stamp: int) -> None:
        """Apply records of one append time: those that can be together, the rest one by one."""
        touches = decode_each([record.value for record in run])
        done = 0
        if len(run) >= FEW and stamp < self.sessions.next_at:
            done = touch_together(self.sessions.table, touches, stamp, self.settings.age_max_ms)
        if done < len(run):
            self._one_by_one(run[done:], touches[done:], stamp)

    def _one_by_one(self, run: Sequence[LogRecord], touches: Sequence[Plain | None], stamp: int) -> None:
        sessions = self.sessions
        table = sessions.table
        slot_of, subjects, tenants = table.slot_of.get, table.subjects, table.tenants
        last_seen_at, live_until = table.last_seen_at, table.live_until
        dirty, age_max = table.dirty, self.settings.age_max_ms
        next_at = sessions.next_at
        for record, touch in zip(run, touches, strict=True):
            if touch.__class__ is PlainTouch:
                if stamp >= next_at:
                    sessions.settle(stamp, record.offset)
                    next_at = sessions.next_at
                slot = slot_of(touch.session)
                if (
                    slot is not None
                    and subjects[slot] == touch.subject
                    and tenants[slot] == touch.tenant
                    and (stamp < live_until[slot] or stamp < table.renew(slot))
                    and 0 <= (age := touch.age_ms) <= age_max
                    and touch.since_ms is None
                    and touch.pause_ms is None
                    and touch.hold_ms is None
                ):
                    instant = stamp - age
                    if instant > last_seen_at[slot]:
                        last_seen_at[slot] = instant
                        dirty[slot >> 6] = 1
                    continue
            self._offset, self._value = record.offset, record.value
            if touch.__class__ is PlainPacked:
                if stamp >= next_at:
                    sessions.settle(stamp, record.offset)
                self._packed(touch, stamp)
            else:
                self._other(stamp, next_at)
            next_at = sessions.next_at

    # 1. Time

    def _advance(self, append: int) -> int:
        hold, first, before = self.sessions.hold, self._append is None, self.clock.stamp
        self._append = append
        stamp = self.clock.record(append)
        if not first and hold.moved(before, stamp):
            self.sessions.release_hold(stamp)
        if hold.on:
            hold.held_through = stamp
        return stamp

    def _release(self, effects: Effects) -> None:
        settled, time = self.sessions.settled, self.clock.time
        released = 0
        while released < len(settled) and settled[released].decided_at <= time:
            released += 1
        effects.endings.extend(settled[:released])
        del settled[:released]

    # 2. to 4. Records that go the long way

    def _other(self, stamp: int, next_at: int) -> None:
        """Read the present record with the models, settle, and apply it."""
        sessions = self.sessions
        record: ActivityRecord | None
        try:
            record = parse_activity(self._value)
            if isinstance(record, _SessionActivity) and record.forwarded is not None:
                self._forwarded(record, stamp)
                record = None
        except BadRecord as bad:
            self._dead_letter(bad.reason)
            record = None
        if stamp >= min(next_at, sessions.next_at):  # a forwarded record may have made something due
            sessions.settle(stamp, self._offset)
        if isinstance(record, PackedTouches):
            self._packed_with_bad_entries(record, stamp)
        elif isinstance(record, ClockTick | RevocationOrdered | PolicyAdopted):
            self._control(record, stamp)
        elif record is not None:
            self._activity(record, stamp, stamp)

    def _activity(self, record: _SessionActivity, stamp: int, sent_at: int) -> None:
        """Apply an activity of a service; `sent_at` is the stamp by which it must be in time."""
        sessions, session, subject, tenant = self.sessions, record.session, record.subject, record.tenant
        if not self._belongs(session, subject, tenant, None):
            return
        table, offset = sessions.table, self._offset
        slot = table.slot_of.get(session)
        age_ms = self._clamped(record.age_ms)
        instant = stamp - age_ms
        if slot is not None and table.state[slot] == ENDED:
            if not isinstance(record, SessionStarted | SessionClosed):
                sessions.violate(slot, subject, tenant, record.service, instant)
        elif isinstance(record, SessionClosed):
            sessions.close(session, subject, tenant, instant, stamp, offset, sent_at)
        elif isinstance(record, SessionStarted):
            sessions.start(record, Touch(age_ms), stamp, offset, sent_at)
        elif isinstance(record, SessionRefreshed):
            if slot is None or table.state[slot] == BARRED:
                sessions.counters["unknown_ignored"] += 1
        else:
            touch = self._touch_of(record, age_ms)
            if slot is None or table.state[slot] == BARRED:
                sessions.adopt(session, subject, tenant, record.service, touch, stamp, offset)
            else:
                sessions.touch(slot, touch, stamp, sent_at)

    def _touch_of(self, record: SessionTouched | SessionElevated, age_ms: int) -> Touch:
        if isinstance(record, SessionElevated):
            return Touch(age_ms, session_age_ms=record.session_age_ms)
        since_ms = None if record.since_ms is None else self._clamped(record.since_ms)
        return Touch(age_ms, since_ms, record.pause_ms, record.hold_ms, record.session_age_ms)

    def _clamped(self, age_ms: int) -> int:
        if 0 <= age_ms <= self.settings.age_max_ms:
            return age_ms
        self.sessions.counters["ages_clamped"] += 1
        return 0 if age_ms < 0 else self.settings.age_max_ms

    def _belongs(self, session: str, subject: str, tenant: str | None, entry: int | None) -> bool:
        """Return whether the activity is for this partition's session; else forward or dead-letter it.

        A known session under its own subject was looked at when it came; for others the partition is computed.
        """
        table = self.sessions.table
        slot = table.slot_of.get(session)
        live = slot is not None and table.is_live(slot)
        if slot is not None and live and table.subjects[slot] == subject and table.tenants[slot] == tenant:
            return True
        partition = partition_of(subject, tenant, self.settings.partitions)
        if partition != self.settings.partition:
            self._forward(partition, entry)
            return False
        if live:
            self._dead_letter(
                "the session belongs to another subject: report it with the subject that it started with", entry
            )
            return False
        return True

    # Control records

    def _control(self, record: ClockTick | RevocationOrdered | PolicyAdopted, stamp: int) -> None:
        if not self._signed():
            self._dead_letter(
                f"{record.type}: mac is missing or wrong: only workers write this, under LAPSE_WORKER_KEY"
            )
        elif isinstance(record, RevocationOrdered):
            self.sessions.revoke(record.revocation, record.at, stamp, self._offset)
        elif isinstance(record, PolicyAdopted):
            self.sessions.adopt_policy(record.version, record.policy, stamp)
        elif record.epoch < self.epoch:
            self.sessions.counters["ticks_of_former_owners"] += 1
        else:
            self.epoch = record.epoch
            self.sessions.effects.ticked = True
            assert self._append is not None  # noqa: S101  # a record is being applied, so it has an append time
            self.clock.tick(self._append, record)
            if self.sessions.hold.tick(stamp, record):
                self.sessions.release_hold(stamp)

    def _signed(self) -> bool:
        settings = self.settings
        record = orjson.loads(self._value)  # type: ignore[arg-type]  # the models have read it, so it is bytes
        return verify(record, topic=settings.topic, partition=settings.partition, key=settings.worker_key)

    # Records of other partitions

    def _forward(self, partition: int, entry: int | None) -> None:
        record: dict[str, Any] = orjson.loads(self._value)  # type: ignore[arg-type]  # it has been read before
        if record.get("forwarded") is not None:
            raise BadRecord(f"forwarded to partition {self.settings.partition}, but its subject belongs to {partition}")
        if entry is not None:
            row = dict(zip(PackedRow.__struct_fields__, record["touches"][entry], strict=False))
            row = {name: value for name, value in row.items() if value is not None}
            record = {"type": "session.touched", "service": record["service"], **row}
        stamp = self.clock.stamp
        record.pop("mac", None)
        record["forwarded"] = [self.settings.partition, self._offset, entry, stamp]
        self.sessions.effects.forwards.append(Forward(partition, record, stamp))

    def _forwarded(self, record: _SessionActivity, stamp: int) -> None:
        """Apply a record that another partition's owner sent here: once for each origin."""
        if not self._signed():
            raise BadRecord(f"{record.type}: forwarded, but its mac is missing or wrong: only workers forward")
        assert record.forwarded is not None  # noqa: S101  # the caller asked
        partition, offset, entry, sent_at = record.forwarded
        origin = (offset, -1 if entry is None else entry)
        if origin <= self.origins.get(partition, (-1, -1)):
            self.sessions.counters["forwards_repeated"] += 1
            return
        self._activity(record, stamp, min(sent_at, stamp))
        self.origins[partition] = origin

    # Packed touches

    def _packed(self, record: PlainPacked, stamp: int) -> None:
        rows, table = record.touches, self.sessions.table
        done = touch_together(table, rows, stamp, self.settings.age_max_ms) if len(rows) >= FEW else 0
        slot_of, subjects, tenants = table.slot_of.get, table.subjects, table.tenants
        last_seen_at, live_until = table.last_seen_at, table.live_until
        dirty, age_max = table.dirty, self.settings.age_max_ms
        for index, row in enumerate(rows[done:], done):
            slot = slot_of(row.session)
            if (
                slot is not None
                and subjects[slot] == row.subject
                and tenants[slot] == row.tenant
                and (stamp < live_until[slot] or stamp < table.renew(slot))
                and 0 <= (age := row.age_ms) <= age_max
                and row.since_ms is None
                and row.pause_ms is None
            ):
                instant = stamp - age
                if instant > last_seen_at[slot]:
                    last_seen_at[slot] = instant
                    dirty[slot >> 6] = 1
            else:
                self._entry(row, record.service, index, stamp)

    def _packed_with_bad_entries(self, record: PackedTouches, stamp: int) -> None:
        for index, entry in enumerate(record.touches):
            try:
                row = PackedRow(*parse_packed_entry(entry, index))
            except BadRecord as bad:
                self._dead_letter(bad.reason, index)
            else:
                self._entry(row, record.service, index, stamp)

    def _entry(self, row: PackedRow, service: str, index: int, stamp: int) -> None:
        """Apply one entry of a packed record the long way."""
        if row.tenant is not None and "/" in row.tenant:
            self._dead_letter(f"touches[{index}].tenant: must not contain '/'", index)
            return
        if not self._belongs(row.session, row.subject, row.tenant, index):
            return
        sessions = self.sessions
        slot = sessions.table.slot_of.get(row.session)
        age_ms = self._clamped(row.age_ms)
        if slot is not None and sessions.table.state[slot] == ENDED:
            sessions.violate(slot, row.subject, row.tenant, service, stamp - age_ms)
            return
        touch = Touch(age_ms, None if row.since_ms is None else self._clamped(row.since_ms), row.pause_ms)
        if slot is None or sessions.table.state[slot] == BARRED:
            sessions.adopt(row.session, row.subject, row.tenant, service, touch, stamp, self._offset)
        else:
            sessions.touch(slot, touch, stamp, stamp)

    def _dead_letter(self, reason: str, entry: int | None = None) -> None:
        settings = self.settings
        self.sessions.counters["dead_letters"] += 1
        self.sessions.effects.dead_letters.append(
            DeadLetter.of(settings.topic, settings.partition, self._offset, self._value, reason, entry)
        )

    # Checkpoints

    def cut(self) -> Checkpoint:
        """Return what has changed since the last cut, as of `offset`, and start counting anew."""
        return save_snapshot(self)

    @classmethod
    def restore(cls, settings: EngineSettings, records: Iterable[tuple[bytes, bytes | None]]) -> PartitionEngine | None:
        """Return the engine of a checkpoint, or None when there is no marker among the records.

        Args:
            settings: of the partition.
            records: (key, value) of `lapse.state` in log order, committed ones only.

        Raises:
            InvariantError: the state is torn, or of a newer version.
        """
        return load_snapshot(cls(settings), records)
