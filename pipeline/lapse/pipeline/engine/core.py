"""What does this log, record by record, say about its sessions? One partition's engine.

Theory of operation
-------------------
Records and their append times go in, in offset order; effects come out as data. Nothing else is looked at: no clock,
no environment, no randomness. The same records give the same effects, however they are cut into batches and wherever a
checkpoint was taken and restored.

For each record, in this order:

1. The clock gives the record its stamp (log_clock.py). A jump may begin a hold; a hold may end (holds.py).
2. A tick moves log time. A forwarded record is applied, by the stamp it had where it was found.
3. What is over, log time having come there, is settled (settling.py).
4. The record is applied.

A record whose append time is suspicious, or that its stamp says is late while log time does not, waits, and with it
all that follow, until the clock has decided (waiting.py). `offset` then stands at the first of them: the engine is as
if it had not read them, and a checkpoint holds nothing of them.

`apply` never raises on bad input: that becomes a dead letter. Any other exception is a fault of the engine; the caller
must then drop the engine, since a batch may be half applied.

The hot path is a touch of a known, live session, in time by the columns alone, which moves `last_seen_at` and nothing
else. Records of one append time are decoded together, and such touches among them applied together (hot_path.py); from
the first other record on one by one, where the hot path is written out in `_one_by_one` and `_packed`. Everything else
goes the long way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from lapse.pipeline.engine.append_clock import AppendClock
from lapse.pipeline.engine.effects import Checkpoint, Effects
from lapse.pipeline.engine.fast_decode import Plain, PlainPacked, PlainTouch, decode_each
from lapse.pipeline.engine.hot_path import FEW, TOGETHER, touch_together
from lapse.pipeline.engine.log_clock import ClockAlarm, DisciplinedClock, LogClock
from lapse.pipeline.engine.meanings import RecordMeanings
from lapse.pipeline.engine.policies import PolicyBook
from lapse.pipeline.engine.sessions import Undecided
from lapse.pipeline.engine.settings import EngineSettings
from lapse.pipeline.engine.snapshot import load_snapshot, save_snapshot
from lapse.pipeline.engine.waiting import Outcome, Waiting
from lapse.schemas import (
    BadRecord,
    ClockTick,
    parse_activity,
)

__all__ = ["LogRecord", "PartitionEngine"]


class LogRecord(Protocol):
    """A record of the log, as aiokafka's ConsumerRecord has it."""

    @property
    def offset(self) -> int: ...

    @property
    def timestamp(self) -> int:
        """Append time, epoch ms of the broker's clock."""

    @property
    def value(self) -> bytes | None: ...


def _of_one_append_time(records: Sequence[LogRecord], begin: int) -> Sequence[LogRecord]:
    """Return the records from `begin` on that have one append time, at most TOGETHER of them."""
    run = records[begin : begin + TOGETHER]
    appends = [record.timestamp for record in run]
    first = appends[0]
    if appends.count(first) == len(run):
        return run
    return run[: next(index for index, append in enumerate(appends) if append != first)]


class PartitionEngine(RecordMeanings):
    """The engine of one partition; see the module's theory of operation."""

    def __init__(self, settings: EngineSettings) -> None:
        clock: LogClock = DisciplinedClock() if settings.clock == "disciplined" else AppendClock()
        super().__init__(settings, clock)
        self.next_offset = 0
        """The next input offset to read; records below it are dropped."""
        self.tick_epoch = -1
        """The highest epoch of a valid tick that was applied; -1 before the first."""
        self._waiting: Waiting[LogRecord] | None = None
        self._decided = False  # the records being applied have waited, and it is decided how:
        self._clock_stands = False  # without the clock being shown them: one that has read them takes its place
        self._applied: int | None = None  # offset and append time of the last applied record; None before the first
        self._append: int | None = None
        self._stepped = False  # the tick that is to be applied next has decided that there was a step
        self._restamp = False  # a decision has just changed what stamp an append time gives, also the present one
        self._append_before: int | None = None  # of the last that had another
        self._judge_as_usual()

    @property
    def offset(self) -> int:
        """The next input offset to apply: all below it are applied, those that wait are not."""
        return self.next_offset if self._waiting is None else self._waiting.records[0].offset

    @property
    def epoch(self) -> int:
        """The highest epoch of a valid tick that was read; -1 before the first."""
        return self.tick_epoch if self._waiting is None else self._waiting.epoch

    @property
    def counters(self) -> Counter[str]:
        """How often something happened that makes no record of its own, since this engine was made."""
        return self.sessions.counters

    @property
    def live_sessions(self) -> int:
        """How many sessions are live."""
        return self.sessions.table.live

    @property
    def applied(self) -> tuple[int, int] | None:
        """Offset and append time of the last applied record, as the broker gave them; None before the first."""
        return None if self._applied is None or self._append is None else (self._applied, self._append)

    @property
    def policies(self) -> PolicyBook:
        """The policies in force."""
        return self.sessions.book

    @property
    def waiting(self) -> int:
        """How many records wait for the clock to decide."""
        return 0 if self._waiting is None else len(self._waiting.records)

    def next_due_at(self) -> int | None:
        """Return the instant of log time at which a tick is next needed, or None.

        It is where something is next settled or warned of; while records wait, at once.
        """
        return self.sessions.next_due_at() if self._waiting is None else self.clock.time

    def time_at(self, epoch: int, mono_ms: float) -> float | None:
        """Return what log time a tick of this epoch will give that is sent at `mono_ms`; None: not known yet."""
        return self.clock.time_at(epoch, mono_ms)

    @property
    def clock_offset_ms(self) -> int:
        """What is added to the broker's append times to get stamps: the steps of its clock, taken out."""
        return self.clock.offset_ms

    def watermark(self) -> int:
        """Return an instant such that all endings with `decided_at` below it have been returned by `apply`."""
        return self.clock.time if self.clock.doubtful else self.stamp

    def apply(self, records: Sequence[LogRecord]) -> Effects:
        """Read records in offset order; return what those brought about that could be applied."""
        effects = self.sessions.effects = Effects()
        if records and records[0].offset < self.next_offset:
            records = [record for record in records if record.offset >= self.next_offset]
        if records:
            end = records[-1].offset + 1
            while records:
                records = self._run(records) if self._waiting is None else self._wait(records)
            self.next_offset = end
        return effects

    def _run(self, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Apply records up to the first that has to wait; return that and those after it."""
        done = 0
        while done < len(records):
            run = _of_one_append_time(records, done)
            if not self._advance(run[0].timestamp):
                return self._begin_to_wait(records[done:])
            applied, waits = self._apply_run(run)
            done += applied
            if applied:
                self._applied = run[applied - 1].offset
            if waits:
                if applied == 0:
                    self._append = self._append_before
                return self._begin_to_wait(records[done:])
        return ()

    def _apply_run(self, run: Sequence[LogRecord]) -> tuple[int, bool]:
        """Apply records of one append time and stamp, as many as can be together, the rest one by one.

        Returns:
            How many were applied, and whether the next one has to wait; else it has another stamp, or there is none.
        """
        touches = decode_each([record.value for record in run])
        done = 0
        if len(run) >= FEW and self.clock.time < self.sessions.next_at:
            done = touch_together(self.sessions.table, touches, self.stamp, self.settings.age_max_ms)
        if done == len(run):
            return done, False
        applied, waits = self._one_by_one(run[done:], touches[done:])
        return done + applied, waits

    def _one_by_one(self, run: Sequence[LogRecord], touches: Sequence[Plain | None]) -> tuple[int, bool]:
        sessions, clock, stamp = self.sessions, self.clock, self.stamp
        table = sessions.table
        slot_of, subjects, tenants = table.slot_of.get, table.subjects, table.tenants
        last_seen_at, live_until = table.last_seen_at, table.live_until
        dirty, age_max = table.dirty, self.settings.age_max_ms
        time, next_at = clock.time, sessions.next_at
        for index, (record, touch) in enumerate(zip(run, touches, strict=True)):
            if touch.__class__ is PlainTouch:
                if time >= next_at:
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
            try:
                if touch.__class__ is PlainPacked:
                    if time >= next_at:
                        sessions.settle(stamp, record.offset)
                    self._packed(touch, stamp)
                else:
                    self._other(stamp)
                    time = clock.time
                    if self._restamp:
                        self._restamp = False
                        return index + 1, False
            except Undecided:
                return index, True
            next_at = sessions.next_at
        return len(run), False

    # 1. Time

    def _advance(self, append: int) -> bool:
        """Give the next record its stamp; return False where it has to wait."""
        clock, sessions = self.clock, self.sessions
        before = self.stamp
        if self._decided or clock.doubtful:
            stamp = self._decided_stamp(append)
        elif clock.suspicious(append):
            return False
        else:
            stamp = clock.record(append)
            # A stamp that stands, for one before it was too high, says too much as well: it is judged without that.
            sessions.doubt_ms = 0 if stamp >= before or clock.final else before - stamp
        if stamp > before:
            self.stamp = stamp
            if before and sessions.hold.moved(before, stamp):
                sessions.release_hold()
        if sessions.hold.phase != "none":
            sessions.hold.held_through = self.stamp
        self._append_before, self._append = self._append, append
        sessions.time = clock.time
        return True

    def _decided_stamp(self, append: int) -> int:
        """Return the stamp of a record that has waited, or came while stamps are doubtful; say how it is judged."""
        sessions, given = self.sessions, self._given_stamp
        own = append if self._clock_stands else self.clock.record(append)
        stamp = own if given is None else given
        doubtful = given is not None or self.clock.doubtful
        sessions.doubt_ms = max(stamp, self.stamp) - (self.clock.time if doubtful else own)
        sessions.undecided = False
        return stamp

    def _judge_as_usual(self) -> None:
        self._decided, self._given_stamp, self._clock_stands = False, None, False
        self.sessions.doubt_ms = 0
        self.sessions.undecided = not self.clock.final

    def _tick(self, record: ClockTick) -> bool:
        """Let a valid tick move log time; return False for one of a former owner."""
        sessions = self.sessions
        if record.epoch < self.tick_epoch:
            sessions.counters["ticks_of_former_owners"] += 1
            return False
        self.tick_epoch = record.epoch
        sessions.effects.ticked = True
        if not self._clock_stands:
            doubtful = self.clock.doubtful
            assert self._append is not None  # noqa: S101  # a record is being applied, so it has an append time
            decision = self.clock.tick(self._append, record)
            self._restamp = decision is not None and (decision.alarm is not None or doubtful)
            if decision is not None and decision.alarm is not None:
                self._alarm(decision.alarm)
                self._stepped = True
                if doubtful:
                    sessions.cap(decision.stamp)
                    self.stamp = min(self.stamp, decision.stamp)
            if doubtful and decision is not None and not self._decided:
                self._judge_as_usual()
        if self._stepped:
            self._stepped = False
            sessions.hold.stepped(self.stamp, record.up_ms)
        sessions.time = self.clock.time
        return True

    def _alarm(self, alarm: ClockAlarm) -> None:
        self.sessions.counters["clock_steps"] += 1
        self.sessions.effects.alarms.append(alarm)

    # Waiting

    def _begin_to_wait(self, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
        self._waiting = Waiting(self.clock.copy(), self.tick_epoch, self._read_tick)
        return records

    def _wait(self, records: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Let records wait, until one decides about them; return those that are to be looked at then."""
        waiting = self._waiting
        assert waiting is not None  # noqa: S101  # the caller asked
        rest = iter(records)
        for record in rest:
            outcome = waiting.add(record)
            if outcome is not None:
                self._waiting = None
                self._apply_decided(outcome)
                return [*outcome.anew, *rest]
        return ()

    def _apply_decided(self, outcome: Outcome[LogRecord]) -> None:
        """Apply the records that waited, by what was decided about them."""
        decision, records = outcome.decision, outcome.applied
        self._decided, self._given_stamp = True, outcome.stamp
        if outcome.stamp is not None:
            self.raised = (self.stamp, outcome.stamp)
        if decision is not None and decision.alarm is not None:
            self._alarm(decision.alarm)
            self._clock_stands = True
            self._run(records[:-1])
            self.clock = outcome.clock  # the last one is the tick that decided: log time moves with it
            self._stepped = True
            self._run(records[-1:])
        else:
            if decision is None and outcome.suspicious:
                self.clock.presume()
            self._run(records)
        self._judge_as_usual()

    def _read_tick(self, record: LogRecord) -> ClockTick | None:
        value = record.value
        if value is None or b"clock.tick" not in value:
            return None
        try:
            tick = parse_activity(value)
        except BadRecord:
            return None
        return tick if isinstance(tick, ClockTick) and self._signed(value) else None

    # Checkpoints

    def cut(self) -> Checkpoint:
        """Return what has changed since the last cut, as of `offset`, and start counting anew."""
        return save_snapshot(self)

    def load_applied(self, offset: int, append: int | None) -> None:
        """Take back which record was applied last; `append` is None where there was none."""
        self._applied, self._append = None if append is None else offset, append

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
