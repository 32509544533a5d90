"""What might a partition's log hold, at its worst? Random logs that hit the borders of the rules.

`History` writes a log record by record from a `random.Random`, so that hypothesis (`st.randoms()`) and the seeded
simulator drive it alike. It runs the oracle as it writes, and aims by it: most instants lie within a millisecond of
something that matters (a due, the end of a grace, a gap, the end of a hold, the forgetting of an ending, a cutoff),
most sessions are known ones, and now and then everything is wrong. Sessions are few, so that their fates cross.

Each `Step` keeps the record, what the oracle says to it, and where the oracle then stood.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lapse.pipeline.engine import EngineSettings

from tests.engine.oracle import Oracle
from tests.engine.oracle_facts import Live, OracleEffects
from tests.engine.records import (
    T0,
    JsonObject,
    Log,
    Record,
    packed,
    ref,
    revocation_ordered,
    settings,
    subject_of,
    tick,
)

__all__ = ["History", "Step", "random_settings"]

PARTITIONS = 2
REACH_MS = 60_000  # walks to an instant farther than this are not worth their ticks
SERVICES = ("web", "legacy")
NAMES = ("default", "p1", "p2")
IDLE_MS = (None, 1000, 2000, 3000, 5000, 8000)
ABSOLUTE_MS = (None, 3000, 8000, 15_000, 40_000)
WARN_MS = (None, None, 500, 2000, 6000)
HOLD_MS = (None, 500, 3000)
TOKEN_MS = (None, None, 700, 5000)
MATCHES: tuple[JsonObject | None, ...] = (
    None,
    {},
    {"tenant": ["acme"]},
    {"service": ["web"]},
    {"attributes": {"role": ["admin", "root"]}},
    {"tenant": ["acme", "other"], "service": ["legacy"]},
)
BAD = (None, b"", b"hello", b"[]", b"{", b'{"type":"session.touched"}', b'{"type":"no.such"}', b"\xff\xfe")


@dataclass(frozen=True, slots=True)
class Step:
    """One record of a history, what it must cause, and what must hold after it."""

    record: Record
    effects: OracleEffects
    stamp: int
    live: int
    next_due_at: int | None
    holding: bool


def random_settings(rng: random.Random) -> EngineSettings:
    """Return settings of partition 0 of 2 under which memories run out within a test."""
    return settings(
        partitions=PARTITIONS,
        age_max_ms=20_000,
        ended_memory_ms=rng.choice((4000, 15_000)),
        session_life_max_ms=rng.choice((9000, 30_000)),
        gap_grace_ms=rng.choice((2000, 5000)),
        adopt_unknown=rng.random() < 0.8,
        sessions_max=rng.choice((1_000_000, 1_000_000, 1_000_000, 4)),
        sessions_per_subject_max=rng.choice((1_000, 1_000, 1_000, 2)),
        classes_max=rng.choice((10_000, 10_000, 10_000, 3)),
    )


class History:
    """A log in the making.

    Attributes:
        steps: what was written so far.
    """

    def __init__(self, rng: random.Random, settings: EngineSettings) -> None:
        self.rng = rng
        self.settings = settings
        self.oracle = Oracle(settings)
        self.log = Log(settings)
        self.steps: list[Step] = []
        self.now = 0  # append time of the next record, ms after T0
        self._version = 0
        self._origin_offset = 100
        self._epoch = 5
        self._mono = 1_000_000
        self._subjects = [
            (tenant, subject_of(partition, PARTITIONS, tenant=tenant))
            for partition, tenant in ((0, None), (0, "acme"), (0, "other"), (0, None), (1, None), (1, "acme"))
        ]
        # A session has one subject; of some it belongs to the other partition.
        self._owners = {f"s{n}": self._subjects[n % 5 if n < 5 else n % 3] for n in range(8)}
        self._writers: list[tuple[int, Callable[[], Any]]] = [
            (24, self._touched),
            (13, self._started),
            (4, self._elevated),
            (4, self._refreshed),
            (5, self._closed),
            (8, self._packed),
            (12, self._tick),
            (6, self._revocation),
            (6, self._policy),
            (9, self._forwarded),
            (2, self._bad),
        ]

    def write(self, count: int) -> list[Step]:
        """Write about `count` records and return all steps."""
        if self.rng.random() < 0.9:
            self._append(self._policy_of("default"))
        while len(self.steps) < count:
            self._pass_time()
            (writer,) = self.rng.choices([w for _, w in self._writers], [n for n, _ in self._writers])
            self._append(writer())
        return self.steps

    def _append(self, value: JsonObject | bytes | None) -> None:
        forged = isinstance(value, dict) and self.rng.random() < 0.02
        record = self.log.add(self.now, value, sign_it=False if forged else None)
        effects = self.oracle.apply([record])
        oracle = self.oracle
        holding = oracle.hold is not None
        self.steps.append(Step(record, effects, oracle.stamp, len(oracle.live), oracle.next_due_at(), holding))

    # Time.

    def _pass_time(self) -> None:
        rng = self.rng
        kind = rng.random()
        if kind < 0.25:
            return
        if kind < 0.50:
            self.now += rng.choice((1, 2, 30, 249, 250, 251, 999))
        elif kind < 0.85:
            self._walk_to(self._aimed(self._instants()))
        elif kind < 0.92:
            self.now += rng.randint(1000, self.settings.gap_ms)
        elif kind < 0.97:
            self.now += self.settings.gap_ms + rng.choice((0, 1, 1, 500, 3000, 20_000))
        else:
            self.now -= rng.choice((1, 500, 5000))  # the broker's clock falls

    def _walk_to(self, instant: int) -> None:
        """Let time pass until an instant, ticking so that it makes no gap."""
        if not self.steps or not self.oracle.stamp < instant <= self.oracle.stamp + REACH_MS:
            return
        while instant - self.oracle.stamp > self.settings.gap_ms:
            self.now = self.oracle.stamp - T0 + self.rng.choice((1000, self.settings.gap_ms))
            self._append(self._tick())
        self.now = instant - T0

    def _instants(self) -> list[int]:
        """Return the instants that matter to time itself."""
        oracle, all_settings = self.oracle, self.settings
        instants = [oracle.stamp + all_settings.gap_ms, oracle.stamp + 1000]
        for session in oracle.live.values():
            instants += self._instants_of(session)
        instants += [ended.decided_at + all_settings.ended_memory_ms for ended in oracle.ended.values()]
        instants += [cutoff.at + all_settings.session_life_max_ms for cutoff in oracle.cutoffs.values()]
        instants += [at + all_settings.session_life_max_ms for at, _ in oracle.revoked_unseen.values()]
        if oracle.hold is not None:
            instants += [oracle.hold.jump_at + all_settings.gap_grace_ms] * 3
        return instants

    def _instants_of(self, session: Live) -> list[int]:
        idle, absolute = self.oracle.dues(session)
        warn_before = self.oracle.limits(session).warn_before_ms or 0
        return [idle, idle + self.settings.grace_ms, absolute, min(idle, absolute) - warn_before]

    def _aimed(self, instants: list[int]) -> int:
        """Return one of these instants, or a millisecond beside it."""
        return self.rng.choice(instants) + self.rng.choice((-1, 0, 0, 0, 1))

    @property
    def _stamp(self) -> int:
        """Return the stamp that the next record will have."""
        return max(self.oracle.stamp, T0 + self.now)

    # Activity.

    def _session(self) -> str:
        """Return a session's name in the tests; mostly a live one, often one that has ended."""
        kind = self.rng.random()
        known = sorted(self.oracle.live) if kind < 0.5 else sorted(self.oracle.ended) if kind < 0.65 else []
        if known:
            session = self.rng.choice(known)
            return next(name for name in self._owners if ref(name) == session)
        return self.rng.choice(list(self._owners))

    def _who(self) -> JsonObject:
        name = self._session()
        tenant, subject = self._owners[name]
        if self.rng.random() < 0.04:
            tenant, subject = self.rng.choice(self._subjects)
        fields: JsonObject = {"session": ref(name), "subject": subject, "service": self.rng.choice(SERVICES)}
        if tenant is not None:
            fields["tenant"] = tenant
        return fields

    def _age(self, session: str) -> int:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.3:
            return 0
        if kind < 0.5:
            return rng.choice((1, 50, 249, 250, 251, 2000))
        if kind < 0.9:
            return self._stamp - self._aimed(self._past_of(session))
        if kind < 0.95:
            return rng.choice(
                (-1, -5000, self.settings.age_max_ms, self.settings.age_max_ms + 1, -(1 << 63), (1 << 63) - 1)
            )
        return rng.randint(0, self.settings.age_max_ms)

    def _past_of(self, session: str) -> list[int]:
        """Return the instants that matter to an activity of a session."""
        oracle = self.oracle
        instants = [self._stamp]
        live, ended = oracle.live.get(session), oracle.ended.get(session)
        if live is not None:
            idle, absolute = oracle.dues(live)
            instants += [i for i in (idle, absolute) if i < self._stamp + 100_000] * 2 + [
                live.last_seen_at,
                live.started_at,
            ]
        if ended is not None:
            instants += [ended.decided_at, ended.decided_at + self.settings.violation_after_ms]
        instants += [cutoff.at for cutoff in oracle.cutoffs.values()]
        return instants

    def _activity(self, kind: str) -> JsonObject:
        who = self._who()
        return {"type": kind, "age_ms": self._age(who["session"])} | who

    def _started(self) -> JsonObject:
        record, rng = self._activity("session.started"), self.rng
        if rng.random() < 0.4:
            record["policy"] = rng.choice((*NAMES, "no such"))
        if rng.random() < 0.4:
            record["attributes"] = rng.choice(({}, {"role": "admin"}, {"role": "guest", "team": "x"}))
        if rng.random() < 0.2:
            record["token_life_ms"] = rng.choice((600, 6000))
        return record

    def _joined(self, session: str, age_ms: int) -> tuple[int | None, int | None]:
        """Return since_ms and pause_ms of a touch."""
        rng, live = self.rng, self.oracle.live.get(session)
        if rng.random() < 0.6:
            return None, None
        since = rng.choice((self._age(session), age_ms + rng.choice((0, 1, 3000))))
        idle_ms = None if live is None else self.oracle.limits(live).idle_ms
        pause = rng.choice((None, 0, 900, *(() if idle_ms is None else (idle_ms - 1, idle_ms))))
        return (None if not -(1 << 63) <= since < 1 << 63 else since), pause

    def _touched(self) -> JsonObject:
        record, rng = self._activity("session.touched"), self.rng
        since, pause = self._joined(record["session"], record["age_ms"])
        if since is not None:
            record["since_ms"] = since
        if pause is not None:
            record["pause_ms"] = pause
        if rng.random() < 0.12:
            record["hold_ms"] = rng.choice((0, 499, 501, 4000, -3, 1 << 61))
        if rng.random() < 0.25:
            record["session_age_ms"] = self._session_age(record)
        if rng.random() < 0.05:
            record["unknown"] = {"a": [1]}
        return record

    def _session_age(self, record: JsonObject) -> int:
        instant = self._stamp - min(max(record["age_ms"], 0), self.settings.age_max_ms)
        ats = [cutoff.at for cutoff in self.oracle.cutoffs.values()] or [instant]
        return self.rng.choice((0, 700, instant - self._aimed(ats), -4))

    def _elevated(self) -> JsonObject:
        record = self._activity("session.elevated")
        if self.rng.random() < 0.4:
            record["session_age_ms"] = self._session_age(record)
        return record

    def _refreshed(self) -> JsonObject:
        return self._activity("session.refreshed") | {"generation": 1}

    def _closed(self) -> JsonObject:
        return self._activity("session.closed")

    def _packed(self) -> JsonObject:
        rng = self.rng
        entries: list[Any] = []
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            who = self._who()
            age = self._age(who["session"])
            since, pause = self._joined(who["session"], age)
            entry: list[Any] = [who["session"], who["subject"], who.get("tenant"), age]
            if since is not None or pause is not None:
                entry += [since] if pause is None else [since, pause]
            if rng.random() < 0.05:
                entry = rng.choice(
                    ([], entry[:3], [*entry[:3], "7"], [*entry, 1, 2, 3], [7, *entry[1:]], ["x", "y", "a/b", 0])
                )
            entries.append(entry)
        return packed(*entries, service=rng.choice(SERVICES))

    def _forwarded(self) -> JsonObject:
        """Write what another partition's owner forwards to here: mostly something new, stamped a little earlier."""
        rng = self.rng
        record: JsonObject = rng.choice(
            (self._touched, self._touched, self._started, self._elevated, self._closed, self._refreshed)
        )()
        if rng.random() < 0.7:
            self._origin_offset += rng.choice((1, 1, 2))
        stamp = self._stamp - rng.choice((0, 1, 100, 249, 250, 2000))
        if rng.random() < 0.5:
            live = self.oracle.live.get(record["session"])
            stamp = self._aimed([stamp] if live is None else self._instants_of(live))
        index = rng.choice((None, None, 0, 1))
        stamp = min(max(stamp, 0), 1 << 60)
        return record | {"forwarded": [rng.choice((1, 1, 0)), self._origin_offset, index, stamp]}

    def _bad(self) -> bytes | None:
        return self.rng.choice(BAD)

    # Control records.

    def _tick(self) -> JsonObject:
        rng, hold = self.rng, self.oracle.hold
        if rng.random() < 0.06:
            self._epoch += rng.choice((1, 1, 2))
            self._mono = rng.randint(0, 1_000_000)
        previous = self._mono
        self._mono += rng.choice((0, 1, 1000, 1000, 3000))
        up = 10_000_000
        if hold is not None and rng.random() < 0.6:
            up = self._stamp - hold.before_at + rng.choice((-1, 0, 1, -3000))
        elif rng.random() < 0.1:
            up = rng.choice((0, 900, -1))
        prev: int | None = previous
        ack: int | None = previous + rng.choice((0, 3, 1000))
        if rng.random() < (0.6 if hold is not None and hold.phase == "await ack" else 0.1):  # it proves nothing
            fault = rng.choice(("prev", "prev", "ack", "epoch"))
            prev = rng.choice((None, previous - 1)) if fault == "prev" else prev
            ack = rng.choice((None, previous - 1, previous + 1001)) if fault == "ack" else ack
            self._epoch += fault == "epoch"
        epoch = self._epoch - (rng.choice((1, 3)) if rng.random() < 0.06 else 0)
        return tick(self._mono, epoch=epoch, up_ms=up, prev_ms=prev, ack_ms=ack)

    def _revocation(self) -> JsonObject:
        rng = self.rng
        name = self._session()
        tenant, subject = self._owners[name]
        scope = rng.choice(("session", "session", "subject", "subject", "tenant", "everyone"))
        target: JsonObject = {"session": name}
        if scope == "subject" or (scope == "tenant" and tenant is None):
            target = {"subject": subject} if tenant is None else {"subject": subject, "tenant": tenant}
        elif scope == "tenant":
            target = {"tenant": tenant}
        elif scope == "everyone":
            target = {"everyone": True}
        instants = [self._stamp, self._stamp - 500, self._stamp + 5000]
        instants += [live.started_at for live in self.oracle.live.values()] * 2
        instants += [self._stamp - self.settings.session_life_max_ms]
        # One id names one target, whatever is repeated.
        id_ = f"r-{rng.choice((0, 0, 1))}-{'-'.join(str(part) for part in target.values())}"
        return revocation_ordered(self._aimed(instants) - T0, id_, **target)

    def _policy(self) -> JsonObject:
        return self._policy_of(self.rng.choice(NAMES))

    def _policy_of(self, name: str) -> JsonObject:
        rng = self.rng
        if not self._version or rng.random() < 0.85:
            self._version += 1
        return {
            "type": "policy.adopted",
            "version": max(self._version - (rng.choice((1, 2)) if rng.random() < 0.05 else 0), 0),
            "policy": {
                "type": "policy",
                "name": name,
                "idle_ms": rng.choice(IDLE_MS),
                "absolute_ms": rng.choice(ABSOLUTE_MS),
                "warn_before_ms": rng.choice(WARN_MS),
                "hold_max_ms": rng.choice(HOLD_MS),
                "token_life_ms": rng.choice(TOKEN_MS),
                "match": rng.choice(MATCHES) if name != "default" or rng.random() < 0.2 else None,
            },
        }
