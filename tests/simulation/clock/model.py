"""What does real time do to one partition's log? Brokers' clocks, an owner's ticks, and what can go wrong with them.

True time `t` is known here, in ms (float). A scenario is made from one seed: the clocks of two or three brokers with
their drifts, skews and steps, who leads the partition when, who owns it when and how its monotonic and wall clocks run,
when the log is away, and when services append. `play` then lets time pass: an owner sends a tick every second, and at
once while records wait (one under way at a time), each is appended and acknowledged after its delays, and what stands
in the log is read by `Reader`, the clock and the waiting records of the engine without its sessions.

What is measured (CLOCK.md): with T_j the log time at a tick and stamp_i the stamp of a record applied before,

    early = max over i < j of (T_j - stamp_i) - (t_j - t_i)

by how much too soon a session could end that was touched at t_i, less what the brokers' clocks may drift.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, floor, inf, log
from typing import Protocol

from lapse.pipeline.engine.log_clock import ClockAlarm, DisciplinedClock
from lapse.pipeline.engine.waiting import Outcome, Waiting
from lapse.pipeline.processor.append_health import AppendHealth
from lapse.schemas import ClockTick

__all__ = [
    "EPOCH_MS",
    "HOUR_MS",
    "SETS",
    "SKEW_MS",
    "Conditions",
    "Entry",
    "Owner",
    "Result",
    "Scenario",
    "let_time_pass",
    "play",
]

EPOCH_MS = 1_700_000_000_000
SWIFT_UNTIL_MS = 2_000.0
DRIFT_PPM = 200
SKEW_MS = 300.0
DAY_MS = 86_400_000.0
HOUR_MS = 3_600_000.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """What may happen in the scenarios of a set."""

    name: str
    steps_max: int = 0
    apart_ms: float = 15_000.0
    cancelling: bool = False
    walls_wrong: bool = False
    disturbed: bool = True
    """Owner changes, leader changes and outages."""


SETS: tuple[Conditions, ...] = (
    Conditions("no step"),
    Conditions("no step, walls wrong by up to 1 h", walls_wrong=True),
    Conditions("one step, one owner, no outage", steps_max=1, disturbed=False),
    Conditions("at most one step", steps_max=1),
    Conditions("up to three steps, 15 s apart or more", steps_max=3),
    Conditions("up to six steps, also pairs that cancel in 10 ms to 5 s", steps_max=6, apart_ms=0.0, cancelling=True),
    Conditions("the same, walls wrong by up to 1 h", steps_max=6, apart_ms=0.0, cancelling=True, walls_wrong=True),
)


@dataclass(slots=True)
class BrokerClock:
    """One broker's wall clock."""

    drift: float
    skew: float
    steps: list[tuple[float, float]] = field(default_factory=list)

    def at(self, t: float) -> float:
        """Return what it shows at the true instant."""
        return EPOCH_MS + t * (1 + self.drift) + self.skew + sum(by for when, by in self.steps if when <= t)


@dataclass(slots=True)
class Owner:
    """One worker that owns the partition from `since` on."""

    since: float
    epoch: int
    mono_zero: float
    mono_drift: float
    wall_error: float
    straggler_at: float | None = None
    """When a tick of it that lay in a client is appended, after its time."""

    def mono(self, t: float) -> int:
        """Return its monotonic clock, as a tick says it."""
        return floor(self.mono_zero + t * (1 + self.mono_drift))

    def wall(self, t: float) -> int:
        """Return its wall clock, as a tick says it."""
        return floor(EPOCH_MS + t + self.wall_error)


def _loguniform(rng: random.Random, low: float, high: float) -> float:
    return exp(rng.uniform(log(low), log(high)))


class Scenario:
    """One partition's fate, from a seed."""

    def __init__(self, seed: int, conditions: Conditions) -> None:
        self.rng = rng = random.Random(f"{conditions.name}:{seed}")
        self.conditions = conditions
        self.duration = rng.uniform(30_000, 150_000)
        ppm = DRIFT_PPM / 2 * 1e-6
        skew = SKEW_MS / 2
        self.brokers = [BrokerClock(rng.uniform(-ppm, ppm), rng.uniform(-skew, skew)) for _ in range(3)]
        self.outages = self._outages()
        self.leaders = self._leaders()
        self.owners = self._owners()
        self.steps = self._steps()
        self.slow = rng.random() < 0.25
        self.appends = self._appends()

    def _outages(self) -> list[tuple[float, float]]:
        if not self.conditions.disturbed or self.rng.random() < 0.6:
            return []
        start = self.rng.uniform(5_000, self.duration - 10_000)
        length = _loguniform(self.rng, 500, 600_000)
        self.duration += length + 15_000
        return [(start, start + length)]

    def _leaders(self) -> list[tuple[float, int]]:
        leaders = [(0.0, 0)]
        if self.conditions.disturbed and self.rng.random() < 0.4:
            moves = range(self.rng.randint(1, 2))
            leaders += [(self.rng.uniform(5_000, self.duration), self.rng.randrange(3)) for _ in moves]
        return sorted(leaders)

    def _owners(self) -> list[Owner]:
        rng, changes = self.rng, []
        if self.conditions.disturbed and rng.random() < 0.4:
            changes = sorted(rng.uniform(5_000, self.duration) for _ in range(rng.randint(1, 2)))
        owners: list[Owner] = []
        ppm = DRIFT_PPM / 2 * 1e-6
        for epoch, since in enumerate((0.0, *changes)):
            error = rng.uniform(-20, 20)
            if self.conditions.walls_wrong and rng.random() < 0.5:
                error = rng.choice((-1, 1)) * _loguniform(rng, 100, HOUR_MS)
            straggler = since + rng.uniform(0, 5_000) if epoch and rng.random() < 0.2 else None
            owner = Owner(since, epoch, rng.uniform(0, 1e9), rng.uniform(-ppm, ppm), error)
            if straggler is not None:
                owners[-1].straggler_at = straggler + rng.uniform(0, 15_000)
            owners.append(owner)
        return owners

    def _steps(self) -> list[tuple[float, float]]:
        """Set clocks, each at an instant at which its broker leads; return (instant, by)."""
        rng, steps = self.rng, list[tuple[float, float]]()
        wanted = rng.randint(0, self.conditions.steps_max)
        if self.conditions.steps_max == 1:
            wanted = rng.random() < 0.9
        for _ in range(wanted):
            when, by = rng.uniform(3_000, self.duration), rng.choice((-1, 1)) * _loguniform(rng, 20, 8 * DAY_MS)
            pair = self.conditions.cancelling and rng.random() < 0.5
            back_at = when + _loguniform(rng, 10, 5_000)
            apart = self.conditions.apart_ms
            if any(abs(when - other) < apart for other, _ in steps):
                continue
            clock = self.brokers[self.leader(when)]
            clock.steps.append((when, by))
            steps.append((when, by))
            if pair:
                clock.steps.append((back_at, -by))
                steps.append((back_at, -by))
        return sorted(steps)

    def leader(self, t: float) -> int:
        """Return which broker leads the partition."""
        return self.leaders[bisect_right(self.leaders, (t, 99)) - 1][1]

    def _appends(self) -> list[float]:
        """Return when services append."""
        rate = self.rng.choice((0.0, 0.2, 1.0, 5.0)) / 1000
        appends, t = list[float](), 0.0
        while rate and len(appends) < 600:
            t += self.rng.expovariate(rate)
            if t >= self.duration:
                break
            appends.append(self.appended(t))
        return sorted(appends)

    def appended(self, t: float) -> float:
        """Return when what is sent at `t` is appended, the log being there at once or after an outage."""
        for start, end in self.outages:
            if start <= t < end:
                return end + self.rng.uniform(0, 50)
        return t

    def append_time(self, t: float) -> int:
        """Return the append time that the leader gives at `t`."""
        return floor(self.brokers[self.leader(t)].at(t))

    def delay(self, t: float) -> float:
        """Return for how long a tick, or an acknowledgement, is under way. The log's first ticks are swift.

        Before its first decision the clock knows nothing and moves no time; what happens then is left out.
        """
        if t > SWIFT_UNTIL_MS and self.rng.random() < (0.15 if self.slow else 0.01):
            return self.rng.uniform(100, 4_000)
        return self.rng.uniform(0.3, 8)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record: when it was appended in truth and by the log, and the tick that it is or what a service says."""

    t: float
    timestamp: int
    tick: ClockTick | None = None
    value: bytes | None = None


@dataclass(slots=True)
class Result:
    """What came of a scenario, in ms."""

    early: float = -inf
    lag: float = 0.0
    alarms: list[tuple[float, ClockAlarm]] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    fell: bool = False
    """Whether log time or a stamp fell."""


class Reader:
    """The engine's clock, stamps and waiting records, without its sessions."""

    def __init__(self, result: Result) -> None:
        self.clock = DisciplinedClock()
        self.waiting: Waiting[Entry] | None = None
        self.stamp = 0
        self.epoch = -1
        self._result = result
        self._ahead = inf  # the least of (stamp - true time) over what was applied
        self._since = 0.0

    def read(self, entry: Entry) -> None:
        """Take in the next record of the log."""
        queue = [entry]
        while queue:
            one = queue.pop(0)
            if self.waiting is None and self.clock.suspicious(one.timestamp):
                self.waiting = Waiting(self.clock.copy(), self.epoch, _tick_of)
                self._since = entry.t
            if self.waiting is None:
                self._apply(one, entry.t)
            elif (outcome := self.waiting.add(one)) is not None:
                self.waiting = None
                self._result.waited.append(entry.t - self._since)
                queue = [*self._decided(outcome, entry.t), *queue]

    def wanted_in(self, owner: Owner, t: float) -> float:  # the interface's
        """Want a tick at once while records wait."""
        return inf if self.waiting is None else 0.0

    def _decided(self, outcome: Outcome[Entry], now: float) -> Sequence[Entry]:
        assert outcome.decision is not None, "a scenario is too short for too much to wait"
        alarm = outcome.decision.alarm
        if alarm is None:
            for entry in outcome.applied:
                self._apply(entry, now, outcome.stamp)
            return outcome.anew
        self._result.alarms.append((now, alarm))
        for entry in outcome.applied:
            self._stamped(entry, outcome.decision.stamp)
            if entry.tick is not None:
                self.epoch = max(self.epoch, entry.tick.epoch)
        before = self.clock.time
        assert isinstance(outcome.clock, DisciplinedClock)
        self.clock = outcome.clock
        self._moved(before, now)
        return ()

    def _apply(self, entry: Entry, now: float, given: int | None = None) -> None:
        stamp = self.clock.record(entry.timestamp)
        self._stamped(entry, stamp if given is None else given)
        if entry.tick is None or entry.tick.epoch < self.epoch:
            return
        self.epoch = entry.tick.epoch
        before = self.clock.time
        decision = self.clock.tick(entry.timestamp, entry.tick)
        if decision is not None and decision.alarm is not None:
            self._result.alarms.append((now, decision.alarm))
        self._moved(before, now)

    def _stamped(self, entry: Entry, stamp: int) -> None:
        self.stamp = max(self.stamp, stamp)
        ahead = self.stamp - EPOCH_MS - entry.t * (1 + DRIFT_PPM * 1e-6)
        if ahead < self._ahead:
            self._ahead = ahead

    def _moved(self, before: int, now: float) -> None:
        time = self.clock.time
        if time < before:
            self._result.fell = True
        if time > before:
            early = time - EPOCH_MS - now * (1 + DRIFT_PPM * 1e-6) - self._ahead
            self._result.early = max(self._result.early, early)


def _tick_of(entry: Entry) -> ClockTick | None:
    return entry.tick


class _Owning:
    """The ticks of one owner: one under way at a time, each telling of the one before.

    Every second owner is a worker that has had another partition all the while; the others have just begun to append.
    """

    def __init__(self, scenario: Scenario, owner: Owner) -> None:
        self._scenario = scenario
        self._owner = owner
        self._previous: tuple[int, int] | None = None
        self._health = AppendHealth()
        self.sent_at = owner.since
        sent = 0.0 if owner.epoch % 2 else owner.since
        while sent < owner.since:
            append = self._health.sent(owner.mono(sent))
            acked = scenario.appended(sent) + 2.0
            if acked >= owner.since:
                break  # it is under way while the partition is taken over
            self._health.acknowledged(append, owner.mono(acked))
            sent = max(sent + 1_000, acked)

    def tick(self) -> tuple[Entry, float]:
        """Send the next tick at `sent_at`; return it as it stands in the log, and when it is acknowledged."""
        scenario, owner, sent = self._scenario, self._owner, self.sent_at
        appended = max(scenario.appended(sent), scenario.appended(sent + scenario.delay(sent)))
        acked = appended + scenario.delay(appended)
        prev, ack = (None, None) if self._previous is None else self._previous
        mono = owner.mono(sent)
        up_ms = self._health.up_ms(mono)
        append = self._health.sent(mono)
        self._health.acknowledged(append, owner.mono(acked))
        value = ClockTick.model_construct(
            epoch=owner.epoch,
            owner="w",
            mono_ms=mono,
            wall_at=owner.wall(sent),
            prev_ms=prev,
            ack_ms=ack,
            up_ms=up_ms,
        )
        self._previous = (mono, owner.mono(acked))
        return Entry(appended, scenario.append_time(appended), value), acked


class LogReader(Protocol):
    """What reads the log, and says when it wants a tick."""

    def read(self, entry: Entry) -> None:
        """Take in the next record."""

    def wanted_in(self, owner: Owner, t: float) -> float:
        """Return for how long, from `t` on, the reader wants no tick but the regular ones."""


def let_time_pass(scenario: Scenario, services: Iterable[Entry], reader: LogReader) -> float:
    """Let the owners tick until the scenario is over; return when the last tick was acknowledged.

    Args:
        services: what services append, in order.
    """
    waiting = iter(services)
    service = next(waiting, None)
    stragglers: list[Entry] = []

    def read_to(t: float) -> None:
        nonlocal service
        while True:
            first = min((e for e in (service, *stragglers) if e is not None), key=lambda e: e.t, default=None)
            if first is None or first.t > t:
                return
            if first is service:
                service = next(waiting, None)
            else:
                stragglers.remove(first)
            reader.read(first)

    last = 0.0
    for owner, successor in zip(scenario.owners, [*scenario.owners[1:], None], strict=True):
        owning = _Owning(scenario, owner)
        owning.sent_at = max(owning.sent_at, last + 1)
        until = scenario.duration if successor is None else successor.since
        while owning.sent_at < until:
            entry, acked = owning.tick()
            if successor is not None and acked >= until and owner.straggler_at is not None:
                stands = scenario.appended(max(owner.straggler_at, entry.t))
                stragglers.append(Entry(stands, scenario.append_time(stands), entry.tick))
                break
            read_to(entry.t)
            reader.read(entry)
            last = acked
            read_to(acked)
            regular = max(owning.sent_at + 1_000, acked)
            owning.sent_at = min(regular, acked + max(reader.wanted_in(owner, acked), 10))
            read_to(min(owning.sent_at, until))
    return last


def play(seed: int, conditions: Conditions) -> Result:
    """Let one scenario pass and return what came of it."""
    scenario, result = Scenario(seed, conditions), Result()
    reader = Reader(result)
    last = let_time_pass(scenario, [Entry(t, scenario.append_time(t)) for t in scenario.appends], reader)
    result.lag = last * (1 - DRIFT_PPM * 1e-6) - (reader.clock.time - EPOCH_MS - scenario.brokers[0].skew)
    return result
