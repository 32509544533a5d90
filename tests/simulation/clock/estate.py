"""Does any session end early, in true time, or not at all, when the broker's clock is stepped under a whole engine?

Services and their users live in true time (model.py). Each session is touched so often that every touch is in time,
some by a hair; then its user stops, or is logged out, or an operator revokes the subject. Through an outage a service
keeps what it could not send, and sends it afterwards as the publisher does (`since_ms`, `pause_ms`). The engine reads
the log, is cut and thrown away now and then, and is restored. So for each session it is known, to within what clocks
can tell (SLACK_MS), before when no ending may come, and that exactly one must have come in the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import floor
from typing import Any

import orjson

from lapse.pipeline.engine import EngineSettings, PartitionEngine
from lapse.schemas import SessionEnded, sign

from tests.simulation.clock.model import EPOCH_MS, HOUR_MS, SKEW_MS, Conditions, Entry, Owner, Scenario, let_time_pass

__all__ = ["Verdict", "live"]

IDLE_MS, ABSOLUTE_MS, GRACE_MS = 12_000, 45_000, 250
SLACK_MS = 700.0
"""Two brackets of WIDE_MS, or one and two leaders' skew: the clock's own bound, see __main__.py."""
KEY = b"a key of the tests, 32 bytes long"
CALM_MS = 60_000.0
DECISION_MS = 30_000.0
"""Ticks that are late by up to 8 s each way decide about a step within three of them."""


@dataclass(slots=True)
class Session:
    """One login, in true time."""

    name: str
    subject: str
    started: float
    not_before: float = 0.0
    """No ending but a revocation may come before it, as far as the records appended so far say."""
    revoked: float | None = None
    closed: float | None = None
    touches: list[tuple[float, float]] = field(default_factory=list)
    """(appended, instant) in order."""


@dataclass(slots=True)
class Verdict:
    """What was found in one estate."""

    early: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    endings: int = 0
    late_ms: list[float] = field(default_factory=list)
    alarms: int = 0
    waited: int = 0
    restored: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A record of the log, as the engine reads it."""

    offset: int
    timestamp: int
    value: bytes | None


class Services:
    """What users do and services append, in true time."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self.scenario = scenario
        self.rng = rng
        self.sessions: dict[str, Session] = {}
        self.appends: list[tuple[float, dict[str, Any]]] = []
        self.orders: list[float] = []
        self.until = scenario.duration - CALM_MS
        self.reconnects_ms = rng.uniform(100, 2_000)  # a publisher sends what it kept so long after an outage
        for number in range(rng.randint(3, 10)):
            self._login(f"s{number}", f"u{number % 3}")
        for order in range(rng.choice((0, 0, 1, 2))):
            self._revoke(order)
        self.appends.sort(key=lambda append: append[0])

    def _login(self, name: str, subject: str) -> None:
        rng = self.rng
        t = rng.uniform(2_500, self.until * 0.8)
        session = self.sessions[name] = Session(name.ljust(22, "_"), subject, t)
        self._send(session, "session.started", t, t, t, 0.0)
        stops, last, kept = t + rng.uniform(0, 60_000), t, list[float]()
        while True:
            pause = rng.choice((rng.uniform(100, IDLE_MS / 2), IDLE_MS - rng.uniform(SLACK_MS, SLACK_MS + 300)))
            t = last + pause
            if t >= min(stops, self.until):
                break
            away_until = self._away_until(t)
            if away_until is None:
                self._flush(session, kept)
                self._send(session, "session.touched", t, t, t, 0.0)
            else:
                kept.append(t)
            last = t
        self._flush(session, kept)
        if rng.random() < 0.2 and self._away_until(last + 500) is None and self._away_until(last) is None:
            session.closed = last + 500
            self._send(session, "session.closed", last + 500, last + 500, last + 500, 0.0)

    def _away_until(self, t: float) -> float | None:
        back = self.reconnects_ms
        return next((end + back for start, end in self.scenario.outages if start - 50 <= t < end + back), None)

    def _flush(self, session: Session, kept: list[float]) -> None:
        """Send what was kept through an outage, when it is over: the latest touch, and what it stands for."""
        if not kept:
            return
        sent = self._away_until(kept[-1])
        assert sent is not None
        pauses = [after - before for before, after in pairwise(kept)]
        self._send(session, "session.touched", sent, kept[-1], kept[0], max(pauses, default=0.0))
        kept.clear()

    def _send(self, session: Session, kind: str, sent: float, instant: float, first: float, pause: float) -> None:
        appended = sent if sent > instant else sent + self.rng.uniform(0.01, 40)
        record = {
            "type": kind,
            "session": session.name,
            "subject": session.subject,
            "service": "web",
            "age_ms": floor(sent - instant),
        }
        if instant != first or instant != sent:
            record |= {"since_ms": floor(sent - first), "pause_ms": floor(pause)}
        if kind != "session.closed":
            session.touches.append((appended, instant))
        self.appends.append((appended, record))

    def _revoke(self, number: int) -> None:
        t = self.rng.uniform(5_000, self.until)
        if self._away_until(t) is not None or self._away_until(t + 100) is not None:
            return
        subject = f"u{self.rng.randrange(3)}"
        self.orders.append(t)
        # Where its topic is led by a broker that was set, and activity by another, nothing tells (ADR 0006).
        right = [broker for broker in self.scenario.brokers if not broker.steps]
        leader = self.scenario.brokers[self.scenario.leader(t)]
        at = floor(self.rng.choice([*right, leader]).at(t))
        order = {"type": "revocation", "id": f"r{number}", "subject": subject, "reason": "admin", "by": "a"}
        self.appends.append((t + 50, {"type": "revocation.ordered", "at": at, "revocation": order}))
        for session in self.sessions.values():
            if session.subject == subject and session.started < t and (session.revoked or t) >= t:
                session.revoked = t

    def entries(self) -> Iterator[Entry]:
        """Yield what is appended, in order."""
        for t, record in self.appends:
            yield Entry(t, self.scenario.append_time(t), value=_value(record))


def _value(record: dict[str, Any]) -> bytes:
    if record["type"] in ("clock.tick", "revocation.ordered", "policy.adopted"):
        record = record | {"mac": sign(record, topic="lapse.activity", partition=0, key=KEY)}
    return orjson.dumps(record)


class EngineReader:
    """The real engine reading the log; restored from its checkpoints now and then."""

    def __init__(self, services: Services, verdict: Verdict, rng: random.Random) -> None:
        self._settings = EngineSettings(partition=0, partitions=1, worker_key=KEY, grace_ms=GRACE_MS)
        self._engine = PartitionEngine(self._settings)
        self._log: list[Kept] = []
        self._state: list[tuple[bytes, bytes | None]] = []
        self._services = services
        self._by_name = {session.name: session for session in services.sessions.values()}
        self._verdict = verdict
        self._rng = rng
        self.ended: dict[str, SessionEnded] = {}
        policy = {
            "type": "policy",
            "name": "default",
            "idle_ms": IDLE_MS,
            "absolute_ms": ABSOLUTE_MS,
            "warn_before_ms": None,
            "hold_max_ms": None,
            "token_life_ms": None,
            "match": None,
        }
        self._policy: bytes | None = _value({"type": "policy.adopted", "version": 1, "policy": policy})

    def wanted_in(self, owner: Owner, t: float) -> float:
        """Return for how long the engine wants no tick."""
        due = self._engine.next_due_at()
        now = self._engine.clock.time_at(self._engine.epoch, floor(owner.mono(t)))
        if self._engine.waiting:
            return 0.0
        return 1e9 if due is None or now is None else max(due - now, 0.0)

    def read(self, entry: Entry) -> None:
        """Take in the next record of the log."""
        if self._policy is not None:
            self._append(entry.timestamp, self._policy)
            self._policy = None
        value = entry.value
        if entry.tick is not None:
            tick = entry.tick
            fields = ("epoch", "owner", "mono_ms", "wall_at", "prev_ms", "ack_ms", "up_ms")
            value = _value({"type": "clock.tick"} | {name: getattr(tick, name) for name in fields})
        self._append(entry.timestamp, value)
        self._apply(entry.t)
        if self._rng.random() < 0.02:
            self._state += self._engine.cut().records
        if self._rng.random() < 0.01:
            self._verdict.restored += 1
            self._engine = PartitionEngine.restore(self._settings, self._state) or PartitionEngine(self._settings)
            self._apply(entry.t, again=True)

    @property
    def time(self) -> int:
        """Log time, on the scale of true time."""
        return self._engine.clock.time - EPOCH_MS

    def _append(self, timestamp: int, value: bytes | None) -> None:
        self._log.append(Kept(len(self._log), timestamp, value))

    def _apply(self, t: float, *, again: bool = False) -> None:
        effects = self._engine.apply(self._log[self._engine.next_offset :])
        self._verdict.waited += self._engine.waiting
        if not again:
            self._verdict.alarms += len(effects.alarms)
        assert not effects.dead_letters, effects.dead_letters
        for ending in effects.endings:
            known = self.ended.get(ending.session)
            if known is None:
                self.ended[ending.session] = ending
                self._judge(ending, t)
                if again:
                    self._verdict.wrong.append(f"{ending.session}: only said after a restore")
            elif ending != known or not again:
                self._verdict.wrong.append(f"{ending.session}: said twice: {known} {ending}")

    def _judge(self, ending: SessionEnded, t: float) -> None:
        """Hold one ending against what is true at `t`."""
        session, verdict = self._by_name[ending.session], self._verdict
        verdict.endings += 1
        cause = ending.cause.value
        if cause == "revoked":
            after = [session.started - order for order in self._services.orders]
            # Of two within the skew of brokers, or within one step's decision, which came first is not known.
            near = any(-2 * SKEW_MS < one < DECISION_MS for one in after)
            if not near and (session.revoked is None or t < session.revoked):
                verdict.wrong.append(f"{session.name}: revoked, but no order covers it")
            return
        if cause == "closed":
            if session.closed is None or t < session.closed:
                verdict.wrong.append(f"{session.name}: closed, but it was not")
            return
        before = 0.0 if session.revoked is None else session.revoked - session.started
        if session.revoked is not None and before > 2 * SKEW_MS and t > session.revoked + SLACK_MS + DECISION_MS:
            verdict.wrong.append(f"{session.name}: escaped the revocation at {session.revoked:.0f}")
        touched = [instant for appended, instant in session.touches if appended <= t]
        limit = max(touched) + IDLE_MS if cause == "idle" else session.started + ABSOLUTE_MS
        if t < limit - SLACK_MS:
            verdict.early.append(f"{session.name}: {cause} {limit - t:.0f} ms early at {t:.0f}")
        verdict.late_ms.append(t - limit)


def live(seed: int, conditions: Conditions) -> Verdict:
    """Let one estate live through one scenario."""
    scenario, verdict = Scenario(seed, conditions), Verdict()
    scenario.outages = [(start, end) for start, end in scenario.outages if end - start > 4_000]
    scenario.duration += CALM_MS + 30_000
    rng = random.Random(f"estate {seed}")
    services = Services(scenario, rng)
    reader = EngineReader(services, verdict, rng)
    let_time_pass(scenario, services.entries(), reader)
    missed = [session for session in services.sessions.values() if session.name not in reader.ended]
    if conditions.walls_wrong:
        # Log time may then lie back by as much as the walls differ: what it has not reached is not missed.
        missed = [s for s in missed if reader.time > max(t for _, t in s.touches) + HOUR_MS]
    verdict.missed = [session.name for session in missed]
    return verdict
