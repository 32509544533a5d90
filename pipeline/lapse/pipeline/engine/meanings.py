"""What does a record mean that is no plain touch? The long way of the engine.

Records are read with the models of `lapse.schemas`, which decide what is bad; what the workers alone may write must be
signed. An activity is held against its partition and its session's subject, then handed to the rules (sessions.py). The
order of the steps is core.py's: a tick moves log time, a forwarded record is applied, what is over is settled, the
record is applied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from lapse.pipeline.engine.effects import Forward
from lapse.pipeline.engine.fast_decode import PackedRow, PlainPacked
from lapse.pipeline.engine.hot_path import FEW, touch_together
from lapse.pipeline.engine.log_clock import LogClock
from lapse.pipeline.engine.sessions import Sessions, Undecided
from lapse.pipeline.engine.settings import EngineSettings
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

__all__ = ["RecordMeanings"]

LETTERS_OF_RECORD_MAX = 8
"""Bad entries of one packed record that get a dead letter: each letter holds up to 4 KiB of the record, which has up to
500 entries of some bytes each, so that a megabyte of them would become gigabytes of letters."""

ORDER_SKEW_MS = 1_000
"""A revocation's topic may be led by another broker, whose clock may be ahead by that much and still be believed."""

_SessionActivity = SessionStarted | SessionTouched | SessionRefreshed | SessionElevated | SessionClosed


class RecordMeanings(ABC):
    """The half of `PartitionEngine` that knows what records mean; the other (core.py) says when they are applied."""

    def __init__(self, settings: EngineSettings, clock: LogClock) -> None:
        self.settings = settings
        self.clock = clock
        self.sessions = Sessions(settings)
        self.stamp = 0
        """The latest stamp that was applied, epoch ms; 0 before the first record. Kept monotone."""
        self.origins: dict[int, tuple[int, int]] = {}
        """By origin partition, the last (offset, index) that was forwarded here and applied."""
        self.raised: tuple[int, int] = (-1, -1)
        """Between which stamps records had to wait, the last time that all of them were given the latter."""
        self._given_stamp: int | None = None  # of all records being applied; None: each has its own
        self._offset = 0  # offset and value of the record being applied
        self._value: bytes | None = None
        self._entries_of, self._entries_done = -1, 0  # a packed record of which so many entries were applied
        self._letters_of, self._letters = -1, 0  # the last record with bad entries, and how many it had so far

    @abstractmethod
    def _tick(self, record: ClockTick) -> bool:
        """Let a valid tick move log time; return False for one of a former owner."""

    def _other(self, stamp: int) -> None:
        """Read the present record with the models, settle, and apply it."""
        sessions = self.sessions
        record: ActivityRecord | None
        try:
            record = parse_activity(self._value)
            if isinstance(record, ClockTick | RevocationOrdered | PolicyAdopted) and not self._signed(self._value):
                raise BadRecord(
                    f"{record.type}: mac is missing or wrong: only workers write this, under LAPSE_WORKER_KEY"
                )
            if isinstance(record, ClockTick) and not self._tick(record):
                record = None
            elif isinstance(record, _SessionActivity) and record.forwarded is not None:
                self._forwarded(record, stamp)
                record = None
        except BadRecord as bad:
            self._dead_letter(bad.reason)
            record = None
        if sessions.time >= sessions.next_at:  # a forwarded record may have made something due
            sessions.settle(stamp, self._offset)
        if isinstance(record, PackedTouches):
            self._packed_with_bad_entries(record, stamp)
        elif isinstance(record, ClockTick):
            if sessions.hold.tick(stamp, record):
                sessions.release_hold()
        elif isinstance(record, RevocationOrdered):
            at = self._ordered_at(record.at, stamp)
            sessions.revoke(record.revocation, at, self._covers_at(at, stamp), stamp, self._offset)
        elif isinstance(record, PolicyAdopted):
            sessions.adopt_policy(record.version, record.policy, stamp)
        elif record is not None:
            self._activity(record, stamp, stamp)

    def _ordered_at(self, at: int, stamp: int) -> int:
        """Return when a revocation was ordered, on the scale of this log; never past the stamp of its copy.

        `at` is an append time of another topic. Where its leader is the broker whose steps were taken out here, it
        needs the same correction, else none; nothing says which. The later of what is possible is taken: a login
        shortly after the order may end with it, but none before it escapes. So also where a step was among what waited,
        for then the logins in there all have the same stamp.
        """
        if self._given_stamp is not None:
            return stamp
        stands = self.sessions.doubt_ms  # a stamp that stands is by so much beyond its append time, as are logins' now
        possible = [one + stands for one in (at, at + self.clock.offset_ms) if one + stands <= stamp + ORDER_SKEW_MS]
        return min(max(possible, default=stamp), stamp)

    def _covers_at(self, at: int, stamp: int) -> int:
        """Return up to which start an order of `at` ends the sessions that are live at its copy.

        Where many logins got one stamp, that of a decision or one that stands, an order of about that time may have
        come after any of them: it covers all.
        """
        first, last = self.raised
        if first - ORDER_SKEW_MS <= at <= last + ORDER_SKEW_MS:
            return max(at, last)
        return stamp if self.sessions.doubt_ms else at

    def _activity(self, record: _SessionActivity, stamp: int, sent_at: int) -> None:
        """Apply an activity of a service; `sent_at` is the stamp by which it must be in time."""
        sessions, session, subject, tenant = self.sessions, record.session, record.subject, record.tenant
        if not self._belongs(session, subject, tenant, self._as_read):
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

    def _belongs(
        self,
        session: str,
        subject: str,
        tenant: str | None,
        to_forward: Callable[[], dict[str, Any]],
        entry: int | None = None,
    ) -> bool:
        """Return whether the activity is for this partition's session; else forward or dead-letter it.

        A known session under its own subject was looked at when it came; for others the partition is computed.

        Args:
            session, subject, tenant: whose activity it is.
            to_forward: gives the record that would be forwarded.
            entry: which of a packed record it is.
        """
        table = self.sessions.table
        slot = table.slot_of.get(session)
        live = slot is not None and table.is_live(slot)
        if slot is not None and live and table.subjects[slot] == subject and table.tenants[slot] == tenant:
            return True
        partition = partition_of(subject, tenant, self.settings.partitions)
        if partition != self.settings.partition:
            self._forward(partition, to_forward(), entry)
            return False
        if live:
            self._dead_letter(
                "the session belongs to another subject: report it with the subject that it started with", entry
            )
            return False
        return True

    def _signed(self, value: bytes | None) -> bool:
        settings = self.settings
        record = orjson.loads(value)  # type: ignore[arg-type]  # the models have read it, so it is bytes
        return verify(record, topic=settings.topic, partition=settings.partition, key=settings.worker_key)

    # Records of other partitions

    def _as_read(self) -> dict[str, Any]:
        record: dict[str, Any] = orjson.loads(self._value)  # type: ignore[arg-type]  # it has been read before
        record.pop("mac", None)
        return record

    def _forward(self, partition: int, record: dict[str, Any], entry: int | None) -> None:
        if record.get("forwarded") is not None:
            raise BadRecord(f"forwarded to partition {self.settings.partition}, but its subject belongs to {partition}")
        record["forwarded"] = [self.settings.partition, self._offset, entry, self.stamp]
        self.sessions.effects.forwards.append(Forward(partition, record, self.stamp))

    def _forwarded(self, record: _SessionActivity, stamp: int) -> None:
        """Apply a record that another partition's owner sent here: once for each origin."""
        if not self._signed(self._value):
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
        table, age_max = self.sessions.table, self.settings.age_max_ms
        first = self._first_entry()
        rows = record.touches[first:] if first else record.touches
        done = touch_together(table, rows, stamp, age_max) if len(rows) >= FEW else 0
        slot_of, subjects, tenants = table.slot_of.get, table.subjects, table.tenants
        last_seen_at, live_until, dirty = table.last_seen_at, table.live_until, table.dirty
        for index, row in enumerate(rows[done:] if done else rows, first + done):
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
        first = self._first_entry()
        for index, entry in enumerate(record.touches[first:], first):
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
        if not self._belongs(row.session, row.subject, row.tenant, partial(_unpacked, row, service), index):
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
            return
        try:
            sessions.touch(slot, touch, stamp, stamp)
        except Undecided:
            self._entries_of, self._entries_done = self._offset, index
            raise

    def _first_entry(self) -> int:
        """Return from which entry on the present packed record is to be applied: it may have begun before it waited."""
        return self._entries_done if self._entries_of == self._offset else 0

    def _dead_letter(self, reason: str, entry: int | None = None) -> None:
        settings = self.settings
        if self._letters_of != self._offset:
            self._letters_of, self._letters = self._offset, 0
        self._letters += 1
        if self._letters > LETTERS_OF_RECORD_MAX:
            self.sessions.counters["entries_refused_untold"] += 1
            return
        if self._letters == LETTERS_OF_RECORD_MAX:
            reason = f"the last bad entry of this record that is reported, read the record for others: {reason}"
        self.sessions.counters["dead_letters"] += 1
        self.sessions.effects.dead_letters.append(
            DeadLetter.of(settings.topic, settings.partition, self._offset, self._value, reason, entry)
        )


def _unpacked(row: PackedRow, service: str) -> dict[str, Any]:
    """Return the touch that an entry of a packed record stands for, as a record of its own."""
    given = {name: value for name in PackedRow.__struct_fields__ if (value := getattr(row, name)) is not None}
    return {"type": "session.touched", "service": service, **given}
