"""How do tests write an activity log? Builders of records, the owner's signature, and a partition under test.

The builders return JSON objects as a service or the owner would write them; `Log` gives them offsets and append times
and signs what the owner signs; `Partition` feeds a log to the engine record by record, and to the oracle beside it, so
that every test that states one effect also asserts that both agree on all the others.

Times in tests are milliseconds after `T0`, so that they can be read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from lapse.pipeline.engine import Effects, EngineSettings, PartitionEngine
from lapse.schemas import SessionEnded, SessionExpiring, Violation, partition_of, sign

from tests.engine.oracle import Oracle
from tests.engine.oracle_facts import ForwardSeen, LetterSeen, OracleEffects

__all__ = [
    "EPOCH",
    "KEY",
    "T0",
    "TOPIC",
    "Log",
    "Partition",
    "Record",
    "assert_same",
    "at",
    "closed",
    "default_policy",
    "elevated",
    "entry",
    "everyone_revoked",
    "packed",
    "policy_adopted",
    "ref",
    "refreshed",
    "revocation_ordered",
    "seen",
    "settings",
    "started",
    "subject_of",
    "tick",
    "touched",
]

T0 = 1_700_000_000_000
EPOCH = 7
KEY = b"a key of the tests, 32 bytes long"
TOPIC = "lapse.activity"
UP_MS = 10_000_000  # a worker that has been up since long before T0

JsonObject = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A record as the engine reads it."""

    offset: int
    timestamp: int
    value: bytes | None


def at(ms: int) -> int:
    """Return the instant `ms` after the beginning of the test."""
    return T0 + ms


def ref(name: str) -> str:
    """Return a session reference that shows a name: 22 characters, as references are."""
    return name.replace(" ", "-").ljust(21, "_") + "A"


def settings(**changes: Any) -> EngineSettings:
    """Return DESIGN.md's settings for partition 0 of 1, with changes."""
    standard: dict[str, Any] = {
        "partition": 0,
        "partitions": 1,
        "topic": TOPIC,
        "worker_key": KEY,
        "grace_ms": 250,
        "gap_ms": 3000,
        "gap_grace_ms": 5000,
        "age_max_ms": 3_600_000,
        "ended_memory_ms": 3_600_000,
        "violation_after_ms": 2000,
        "session_life_max_ms": 2_592_000_000,
        "adopt_unknown": True,
        "clock": "append",
    }
    return EngineSettings(**(standard | changes))


def subject_of(partition: int, partitions: int, *, tenant: str | None = None, prefix: str = "u") -> str:
    """Return a subject that belongs to a partition."""
    return next(
        subject for n in range(10_000) if partition_of(subject := f"{prefix}-{n}", tenant, partitions) == partition
    )


# Activity, as services write it.


def _activity(kind: str, session: str, fields: Mapping[str, Any]) -> JsonObject:
    base = {"type": kind, "session": ref(session), "subject": "u-1", "service": "web", "age_ms": 0}
    return {key: value for key, value in (base | dict(fields)).items() if value is not None}


def started(session: str = "s", **fields: Any) -> JsonObject:
    """Return a session.started."""
    return _activity("session.started", session, fields)


def touched(session: str = "s", **fields: Any) -> JsonObject:
    """Return a session.touched."""
    return _activity("session.touched", session, fields)


def refreshed(session: str = "s", **fields: Any) -> JsonObject:
    """Return a session.refreshed."""
    return _activity("session.refreshed", session, fields)


def elevated(session: str = "s", **fields: Any) -> JsonObject:
    """Return a session.elevated."""
    return _activity("session.elevated", session, fields)


def closed(session: str = "s", **fields: Any) -> JsonObject:
    """Return a session.closed."""
    return _activity("session.closed", session, fields)


def entry(
    session: str = "s", *rest: Any, subject: str = "u-1", tenant: str | None = None, age_ms: int = 0
) -> list[Any]:
    """Return one entry of a packed record; `rest` is since_ms and pause_ms."""
    return [ref(session), subject, tenant, age_ms, *rest]


def packed(*entries: Any, service: str = "web") -> JsonObject:
    """Return a packed record."""
    return {"type": "touches", "service": service, "touches": list(entries)}


# Control records, as the owner writes them (Log.add signs them).


def tick(mono_ms: int = 0, **fields: Any) -> JsonObject:
    """Return a clock.tick of an owner that has been up for long, unless said otherwise."""
    base = {
        "type": "clock.tick",
        "epoch": EPOCH,
        "owner": "w-7",
        "mono_ms": mono_ms,
        "wall_at": T0 + mono_ms,
        "prev_ms": None,
        "ack_ms": None,
        "up_ms": UP_MS,
    }
    return base | fields


def revocation_ordered(at_ms: int, id: str = "r-1", **target: Any) -> JsonObject:
    """Return the owner's copy of a revocation that was appended at `at_ms` after T0; `session` is a test's name."""
    if "session" in target:
        target["session"] = ref(target["session"])
    order = {"type": "revocation", "id": id, "reason": "admin", "by": "alice@ops"} | target
    return {"type": "revocation.ordered", "at": T0 + at_ms, "revocation": order}


def everyone_revoked(at_ms: int, id: str = "r-1") -> JsonObject:
    """Return the owner's copy of a revocation of everyone."""
    return revocation_ordered(at_ms, id, everyone=True)


def policy_adopted(name: str = "default", version: int = 1, **limits: Any) -> JsonObject:
    """Return the owner's copy of a policy; limits that are not named are none."""
    policy = {
        "type": "policy",
        "name": name,
        "idle_ms": None,
        "absolute_ms": None,
        "warn_before_ms": None,
        "hold_max_ms": None,
        "token_life_ms": None,
        "match": None,
    }
    return {"type": "policy.adopted", "version": version, "policy": policy | limits}


def default_policy(idle_ms: int | None = 10_000, absolute_ms: int | None = 60_000, **limits: Any) -> JsonObject:
    """Return the owner's copy of a default policy that is short enough for a test."""
    return policy_adopted("default", limits.pop("version", 1), idle_ms=idle_ms, absolute_ms=absolute_ms, **limits)


_SIGNED = frozenset({"clock.tick", "revocation.ordered", "policy.adopted"})


class Log:
    """A partition's log that is being written.

    Attributes:
        records: what was appended, in order.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.records: list[Record] = []
        self.next_offset = 0

    def add(self, at_ms: int, value: JsonObject | bytes | None, *, sign_it: bool | None = None) -> Record:
        """Append a record at `at_ms` after T0. What the owner writes is signed, unless `sign_it` says otherwise."""
        if isinstance(value, dict):
            owners = value.get("type") in _SIGNED or value.get("forwarded") is not None
            if (owners if sign_it is None else sign_it) and "mac" not in value:
                value = self.signed(value)
            value = orjson.dumps(value)
        record = Record(self.next_offset, T0 + at_ms, value)
        self.next_offset += 1
        self.records.append(record)
        return record

    def signed(self, value: JsonObject) -> JsonObject:
        """Return a record with the mac that the owner of this partition would give it."""
        place = {"topic": self.settings.topic, "partition": self.settings.partition}
        return value | {"mac": sign(value, key=self.settings.worker_key, **place)}  # type: ignore[arg-type]


# What came out, in a form in which engine and oracle can be compared.


def seen(effects: Effects | OracleEffects) -> dict[str, Any]:
    """Return effects as comparable values. Endings keep their order; what else is said at one record has none."""
    letters = [
        letter if isinstance(letter, LetterSeen) else LetterSeen(letter.offset, letter.entry)
        for letter in effects.dead_letters
    ]
    forwards = [f if isinstance(f, ForwardSeen) else _forward_seen(f) for f in effects.forwards]
    return {
        "endings": [ending.model_dump() for ending in effects.endings],
        "warnings": sorted((w.model_dump() for w in effects.warnings), key=repr),
        "violations": sorted((v.model_dump() for v in effects.violations), key=repr),
        "dead_letters": sorted(
            letters, key=lambda letter: (letter.offset, -1 if letter.entry is None else letter.entry)
        ),
        "forwards": forwards,
        "ticked": effects.ticked,
    }


def _forward_seen(forward: Any) -> ForwardSeen:
    record = forward.record
    partition, offset, index, stamp = record["forwarded"]
    return ForwardSeen(
        partition=forward.partition,
        kind=record["type"],
        session=record["session"],
        subject=record["subject"],
        tenant=record.get("tenant"),
        age_ms=record["age_ms"],
        forwarded=(partition, offset, index, stamp),
        stamp=forward.stamp,
    )


def assert_same(engine: Effects, oracle: OracleEffects, where: str = "") -> None:
    """Assert that engine and oracle say the same, and name what only one of them says."""
    by_engine, by_oracle = seen(engine), seen(oracle)
    if by_engine == by_oracle:
        return
    lines = [f"engine and oracle differ {where}"]
    for kind in by_engine:
        ours, theirs = _lines(by_engine[kind]), _lines(by_oracle[kind])
        lines += [f"{kind}: engine only: {line}" for line in ours if line not in theirs]
        lines += [f"{kind}: oracle only: {line}" for line in theirs if line not in ours]
        if ours != theirs and sorted(ours) == sorted(theirs):
            lines.append(f"{kind}: in another order: engine {ours}, oracle {theirs}")
    raise AssertionError("\n".join(lines))


def _lines(said: Any) -> list[str]:
    return [str(one) for one in said] if isinstance(said, list) else [str(said)]


class Partition:
    """An engine and the oracle beside it, reading one log record by record.

    Attributes:
        engine: the engine under test.
        log: the log; every call of `add` appends one record and applies it.
        endings, warnings, violations: all that came out so far.
    """

    def __init__(self, *first: JsonObject, **changes: Any) -> None:
        """Start at T0 with these records at T0 (mostly a policy that is short enough for a test)."""
        self.settings = settings(**changes)
        self.engine = PartitionEngine(self.settings)
        self.oracle = Oracle(self.settings)
        self.log = Log(self.settings)
        self.endings: list[SessionEnded] = []
        self.warnings: list[SessionExpiring] = []
        self.violations: list[Violation] = []
        self.dead_letters: list[Any] = []
        self.now = 0
        self._mono = 0
        for record in first:
            self.add(0, record)

    def add(self, at_ms: int, value: JsonObject | bytes | None, *, sign_it: bool | None = None) -> Effects:
        """Append one record at `at_ms` after T0, apply it, and return its effects."""
        record = self.log.add(at_ms, value, sign_it=sign_it)
        self.now = max(self.now, at_ms)
        return self._apply([record])

    def tick(self, at_ms: int, **fields: Any) -> Effects:
        """Append the tick of an owner that has been up throughout and whose ticks are acknowledged at once."""
        whole = {"prev_ms": self._mono, "ack_ms": self._mono + 3, "mono_ms": at_ms} | fields
        self._mono = whole["mono_ms"]
        return self.add(at_ms, tick(**whole))

    def tick_until(self, at_ms: int) -> None:
        """Append a tick every second, the last one at `at_ms`: time passes, and the log is there."""
        while self.now < at_ms:
            self.tick(min(self.now + 1000, at_ms))

    def apply(self, records: Sequence[Record]) -> Effects:
        """Apply records of another making, in one batch."""
        return self._apply(records)

    def _apply(self, records: Sequence[Record]) -> Effects:
        effects = self.engine.apply(records)
        assert_same(effects, self.oracle.apply(records))
        assert self.engine.live_sessions == len(self.oracle.live)
        self.endings += effects.endings
        self.warnings += effects.warnings
        self.violations += effects.violations
        self.dead_letters += effects.dead_letters
        return effects

    @property
    def ending(self) -> SessionEnded:
        """Return the one ending that came out."""
        (ending,) = self.endings
        return ending

    def is_live(self, session: str = "s") -> bool:
        """Return whether the session is live, by the oracle, with which the engine has agreed."""
        return ref(session) in self.oracle.live

    def last_seen(self, session: str = "s") -> int:
        """Return the session's last_seen in milliseconds after T0, as the engine has it.

        No effect shows it before the ending does; so a copy of the engine is told to end the session now.
        """
        engine = copy.deepcopy(self.engine)
        order = self.log.signed(revocation_ordered(engine.stamp - T0, "probe", session=session))
        endings = engine.apply([Record(engine.offset, engine.stamp, orjson.dumps(order))]).endings
        (last_seen_at,) = (ending.last_seen_at for ending in endings if ending.session == ref(session))
        assert last_seen_at == self.oracle.live[ref(session)].last_seen_at
        return last_seen_at - T0

    def restored(self, records: Iterable[tuple[bytes, bytes | None]]) -> PartitionEngine:
        """Return the engine that these records of the state topic describe."""
        engine = PartitionEngine.restore(self.settings, records)
        assert engine is not None
        return engine
