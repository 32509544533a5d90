"""What must one partition's engine answer? The same rules, with a dict and a scan, and no cleverness.

The oracle takes the same records as the engine and yields the same effects. It keeps its sessions in a dict, looks at
every one of them at every record, works out the limits of each from the policies each time it needs them, and reads
records with the pydantic models. It shares nothing with the engine but its settings and `lapse.schemas`, so that where
the two agree, they agree by the rules (DESIGN.md sections 2 and 3) and not by a common mistake.

Order of work for one record, `s` being its stamp (1 and 3 are in oracle_time.py, what activity and orders do in
oracle_sessions.py):

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
    BadRecord,
    ClockTick,
    PackedTouches,
    PolicyAdopted,
    RevocationOrdered,
    parse_activity,
    parse_packed_entry,
    partition_of,
    verify,
)

from tests.engine.oracle_facts import ForwardSeen, OracleEffects, Touch, touch_of_entry
from tests.engine.oracle_sessions import Activity, OracleSessions

__all__ = ["Oracle"]


class Oracle(OracleSessions):
    """One partition by the book: its sessions, and how its records are read.

    Attributes:
        offset: the next input offset to apply.
    """

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self.offset = 0
        self.origins: dict[int, tuple[int, int]] = {}

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

    def _meaning(self, parsed: Any, s: int, offset: int) -> None:
        if isinstance(parsed, ClockTick):
            self._tick(parsed, s)
        elif isinstance(parsed, RevocationOrdered):
            self._revoke(parsed.revocation, min(parsed.at, s), s, offset)
        elif isinstance(parsed, PolicyAdopted):
            self._adopt_policy(parsed.policy, parsed.version, s)
        elif isinstance(parsed, PackedTouches):
            self._packed(parsed, s, offset)
        elif isinstance(parsed, Activity):
            self._at_home(parsed, s, offset)

    # Whose it is.

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
