"""When must each session have ended? Computed anew from the raw activity topic, sharing nothing with the engine.

It knows one policy (by its name), starts, touches and closes, and no holds: a test that uses it keeps every partition
busy, and `recompute` refuses a log in which the stamps jump. Plain and slow on purpose: all live sessions are looked at
for every record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from aiokafka import ConsumerRecord

__all__ = ["Expected", "recompute"]

GRACE_MS = 250
GAP_MS = 3_000


@dataclass
class _Live:
    started: int
    last: int


@dataclass(frozen=True)
class Expected:
    """What an ending must say; `decided_at` and `offset` are of the first record that shows it: not before."""

    cause: str
    due_at: int
    decided_at: int
    partition: int
    offset: int


def recompute(records: Iterable[ConsumerRecord], *, policy: str, idle_ms: int, absolute_ms: int) -> dict[str, Expected]:
    """Return, by session, how the sessions that started under this policy must have ended by the log's end."""
    by_partition: dict[int, list[ConsumerRecord]] = {}
    for record in records:
        by_partition.setdefault(record.partition, []).append(record)
    ended: dict[str, Expected] = {}
    for partition in by_partition.values():
        ended |= _one_partition(sorted(partition, key=lambda one: one.offset), policy, idle_ms, absolute_ms)
    return ended


def _one_partition(records: list[ConsumerRecord], policy: str, idle_ms: int, absolute_ms: int) -> dict[str, Expected]:
    live: dict[str, _Live] = {}
    ended: dict[str, Expected] = {}
    stamp = records[0].timestamp

    def end(session: str, cause: str, due: int, record: ConsumerRecord) -> None:
        del live[session]
        ended[session] = Expected(cause, due, stamp, record.partition, record.offset)

    for record in records:
        assert record.timestamp - stamp <= GAP_MS, f"the test let partition {record.partition} fall silent"
        stamp = max(stamp, record.timestamp)
        for session, one in list(live.items()):
            idle_due, absolute_due = one.last + idle_ms, one.started + absolute_ms
            if stamp >= absolute_due or stamp >= idle_due + GRACE_MS:
                end(session, "idle" if idle_due < absolute_due else "absolute", min(idle_due, absolute_due), record)
        value = orjson.loads(record.value)
        session = value.get("session", "")
        instant = stamp - max(0, value.get("age_ms", 0))
        if session in ended:
            continue
        if value["type"] == "session.started" and value.get("policy") == policy and session not in live:
            live[session] = _Live(instant, instant)
        elif value["type"] == "session.touched" and session in live:
            one = live[session]
            if instant < one.last + idle_ms and stamp < one.last + idle_ms + GRACE_MS:
                one.last = max(one.last, instant)
        elif value["type"] == "session.closed" and session in live:
            idle_due = live[session].last + idle_ms
            end(session, "closed" if instant < idle_due else "idle", min(instant, idle_due), record)
    return ended
