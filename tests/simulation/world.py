"""What happens around one partition when things break? A small world under a seed.

People use a service; its publisher coalesces what they do and appends it to a modelled log, late, and not at all while
the log is away, when it keeps what it has. A worker owns the partition: it reads the log into the real engine, writes
checkpoints, ticks at each second and when something is due, and copies revocations. Workers crash at any point, between
a batch and its checkpoint too; a new owner restores the last checkpoint and reads the log again. A stalled former owner
wakes later and ticks under its old epoch. All of it runs on one heap of events in true time; nothing sleeps.

The world keeps what truly happened (`Person`) apart from what the engine can know, for the checkers.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lapse.pipeline.engine import Effects, EngineSettings, PartitionEngine

from tests.engine.records import (
    T0,
    JsonObject,
    Log,
    closed,
    default_policy,
    revocation_ordered,
    settings,
    started,
    tick,
    touched,
)

__all__ = ["Person", "Plan", "World"]

MARGIN_MS = 600  # no person acts so near to a limit that the time of publishing would decide
PUBLISHING_MS = 200  # the longest time an append takes: below the grace
RETRY_MS = 500
TICK_MS = 1000
OVERDUE_MS = 1000
CHECKPOINT_MS = 2000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides before anything happens; instants and durations in ms of true time.

    Attributes:
        outages: (from, to) during which nothing can be appended; each longer than a gap.
        crashes: instants at which the owner dies, and for how long nobody owns the partition.
    """

    people: int
    length_ms: int
    idle_ms: int
    absolute_ms: int
    touch_interval_ms: int
    outages: tuple[tuple[int, int], ...]
    crashes: tuple[tuple[int, int], ...]
    revocations: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, rng: random.Random) -> Plan:
        """Draw a plan: about a minute, with a quiet end in which everything heals."""
        faults_until = 45_000
        outages: list[tuple[int, int]] = []
        at = rng.randint(3000, 20_000)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            until = at + rng.randint(3500, 12_000)
            outages.append((at, until))
            at = until + rng.randint(8000, 15_000)
        fates, orders = rng.choice((0, 1, 1, 3)), rng.choice((0, 1, 1, 2))
        crashes = [(rng.randint(1000, faults_until), rng.choice((50, 1000, 3000, 7000))) for _ in range(fates)]
        revocations = [(rng.randint(2000, faults_until), f"u-{rng.randint(0, 4)}") for _ in range(orders)]
        return cls(
            people=rng.randint(2, 10),
            length_ms=110_000,
            idle_ms=rng.choice((4000, 8000, 15_000)),
            absolute_ms=rng.choice((12_000, 30_000, 50_000)),
            touch_interval_ms=rng.choice((500, 1500)),
            outages=tuple(outages),
            crashes=tuple(sorted(crashes)),
            revocations=tuple(sorted(revocations)),
        )

    def is_near_outage(self, start: int, end: int) -> bool:
        """Return whether touches around this pause may be joined over it: then the log cannot tell what truly was."""
        near = 2 * self.touch_interval_ms
        return any(start < until + near and end > since - near for since, until in self.outages)


@dataclass(slots=True)
class Person:
    """What one person truly did in one session."""

    session: str
    subject: str
    acts: list[int] = field(default_factory=list)  # the first is the login
    closed_at: int | None = None


@dataclass(slots=True)
class _Kept:
    """The touches of a session that are not yet in the log, as the publisher keeps them: first, last, longest pause."""

    first_at: int
    last_at: int
    pause_ms: int = 0

    def join(self, later: _Kept) -> None:
        self.pause_ms = max(self.pause_ms, later.pause_ms, later.first_at - self.last_at)
        self.last_at = max(self.last_at, later.last_at)


class World:
    """One run of a plan.

    Attributes:
        people: what truly happened.
        said: what each batch of each engine caused, with the offset of its first record.
        copies: (order's instant, subject, stamp of the copy in the log) of each revocation.
    """

    def __init__(self, seed: int, engine_class: type[Any] = PartitionEngine, **changes: Any) -> None:
        self.rng = random.Random(seed)
        self.plan = Plan.of(self.rng)
        self.settings: EngineSettings = settings(**changes)
        self.log = Log(self.settings)
        self.people: list[Person] = []
        self.said: list[tuple[int, int, Effects]] = []
        self.copies: list[tuple[int, str, int]] = []
        self.now = 0
        self.state: list[tuple[bytes, bytes | None]] = []
        self.engine_class = engine_class
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def run(self) -> None:
        """Let everything happen."""
        plan, rng = self.plan, self.rng
        self.log.add(0, default_policy(plan.idle_ms, plan.absolute_ms))
        publisher = _Publisher(self)
        for n in range(plan.people):
            self._live(publisher, Person(f"p{n}", f"u-{n % 5}"))
        for at, subject in plan.revocations:
            self.at(at, lambda at=at, subject=subject: self._order_revocation(at, subject))  # type: ignore[misc]
        owner = Owner(self, started_at=-60_000)
        owner.take_over()
        free_at = 0
        for at, absent_ms in plan.crashes:
            if at <= free_at:
                continue
            free_at = at + absent_ms
            successor = Owner(self, started_at=rng.choice((-60_000, free_at - 10)))
            stalls = rng.random() < 0.4
            self.at(at, lambda o=owner, stalls=stalls: o.die(stalls=stalls))  # type: ignore[misc]
            self.at(free_at, successor.take_over)
            owner = successor
        while self._events:
            at, _, event = heapq.heappop(self._events)
            if at > plan.length_ms:
                break
            self.now = at
            event()

    def at(self, at: int, event: Callable[[], None]) -> None:
        """Let something happen at an instant of true time."""
        heapq.heappush(self._events, (max(at, self.now), next(self._order), event))

    def is_away(self, at: int | None = None) -> bool:
        """Return whether the log is away."""
        instant = self.now if at is None else at
        return any(start <= instant < end for start, end in self.plan.outages)

    def back_at(self) -> int:
        """Return when the log that is away comes back."""
        return next(end for start, end in self.plan.outages if start <= self.now < end)

    def append(self, value: JsonObject) -> bool:
        """Append a record now, or fail because the log is away."""
        if self.is_away():
            return False
        self.log.add(self.now, value)
        return True

    def _live(self, publisher: _Publisher, person: Person) -> None:
        """Decide what a person does: log in, act with pauses that are clearly below or above the limit, log out."""
        rng, plan = self.rng, self.plan
        self.people.append(person)
        at = rng.randint(100, 20_000)
        while any(abs(at - order) < MARGIN_MS for order, _ in plan.revocations):
            at += 2 * MARGIN_MS
        person.acts.append(at)
        self.at(at, lambda: publisher.log_in(person))
        for _ in range(rng.choice((0, 3, 20, 60))):
            pause = rng.randint(plan.idle_ms + MARGIN_MS, 2 * plan.idle_ms)
            if rng.random() < 0.04 and not plan.is_near_outage(at, at + pause):
                at += pause
            else:
                at += rng.randint(1, min(plan.idle_ms - MARGIN_MS, rng.choice((300, 2000, 20_000))))
            person.acts.append(at)
            self.at(at, lambda at=at: publisher.touch(person, at))  # type: ignore[misc]
        if rng.random() < 0.3:
            person.closed_at = at + rng.randint(10, plan.idle_ms - MARGIN_MS)
            self.at(person.closed_at, lambda: publisher.log_out(person))

    def _order_revocation(self, at: int, subject: str) -> None:
        if not self.is_away():  # else the operator is told so, and it is no order
            self.at(self.now + self.rng.randint(1, 900), lambda: self._copy(at, subject))

    def _copy(self, at: int, subject: str) -> None:
        if self.append(revocation_ordered(at, f"r-{at}", subject=subject)):
            self.copies.append((at, subject, self.now))
        else:
            self.at(self.now + RETRY_MS, lambda: self._copy(at, subject))


class _Publisher:
    """A service's publisher: coalesces touches, keeps what it cannot send, takes ages anew at each attempt."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kept: dict[str, _Kept] = {}
        self.busy: set[str] = set()  # sessions with a touch on its way, or waiting for its interval
        self.sent_at: dict[str, int] = {}
        self.started: set[str] = set()  # sessions whose start is in the log

    def log_in(self, person: Person) -> None:
        self._send_once(started, person, self.world.now)

    def log_out(self, person: Person) -> None:
        self._send_once(closed, person, self.world.now)

    def _send_once(self, make: Callable[..., JsonObject], person: Person, instant: int) -> None:
        """Send a start or a close until it is in the log; a close goes after its start."""
        world = self.world
        if make is closed and person.session not in self.started:
            world.at(world.now + RETRY_MS, lambda: self._send_once(make, person, instant))
            return
        record = make(person.session, subject=person.subject, age_ms=world.now - instant)

        def arrive() -> None:
            if world.append(record):
                self.started.add(person.session)
            else:
                world.at(world.now + RETRY_MS, lambda: self._send_once(make, person, instant))

        world.at(world.now + world.rng.randint(0, PUBLISHING_MS), arrive)

    def touch(self, person: Person, at: int) -> None:
        touch = _Kept(at, at)
        kept = self.kept.get(person.session)
        if kept is None:
            self.kept[person.session] = touch
        else:
            kept.join(touch)
        if person.session not in self.busy:
            self.busy.add(person.session)
            due = self.sent_at.get(person.session, -1 << 40) + self.world.plan.touch_interval_ms
            self.world.at(max(due, at), lambda: self._send(person))

    def _send(self, person: Person) -> None:
        world = self.world
        touch = self.kept.pop(person.session)
        self.sent_at[person.session] = world.now
        # The touch may overtake its start, so it says how old the session is.
        since_login = touch.last_at - person.acts[0]
        age = world.now - touch.last_at
        record = touched(person.session, subject=person.subject, age_ms=age, session_age_ms=since_login)
        if touch.first_at < touch.last_at:
            record |= {"since_ms": world.now - touch.first_at, "pause_ms": touch.pause_ms}

        def arrive() -> None:
            later = self.kept.get(person.session)
            if world.append(record):
                if later is None:
                    self.busy.discard(person.session)
                else:
                    world.at(self.sent_at[person.session] + world.plan.touch_interval_ms, lambda: self._send(person))
                return
            if later is not None:
                touch.join(later)
            self.kept[person.session] = touch
            world.at(world.now + RETRY_MS, lambda: self._send(person))

        world.at(world.now + world.rng.randint(0, PUBLISHING_MS), arrive)


class Owner:
    """A worker: it may own the partition, run the engine, tick, and die."""

    def __init__(self, world: World, started_at: int) -> None:
        self.world = world
        self.started_at = started_at
        self.mono_from = world.rng.randint(0, 1 << 40)  # monotonic clocks of workers do not compare
        self.owns = False
        self.engine: Any = None
        self.epoch = 0
        self.prev_ms: int | None = None
        self.ack_ms: int | None = None
        self.in_flight = False
        self.tick_at = 0
        self.checkpoint_at = 0

    def take_over(self) -> None:
        """Restore the last checkpoint, read the log to its end, and go on from there."""
        world = self.world
        if world.is_away():
            world.at(world.back_at() + 50, self.take_over)
            return
        self.owns = True
        restored = world.engine_class.restore(world.settings, world.state)
        self.engine = restored or world.engine_class(world.settings)
        while self.engine.offset < world.log.next_offset:
            self._read(world.rng.choice((1, 3, 50)))
        self.epoch = self.engine.epoch + 1
        self.checkpoint_at = world.now + CHECKPOINT_MS
        self._poll()
        self._tick_at(world.now)

    def die(self, *, stalls: bool) -> None:
        """Lose the engine. A worker that only stalls wakes later and sends ticks of its ownership."""
        self.owns = False
        if stalls:
            self.world.at(self.world.now + self.world.rng.randint(1000, 20_000), self._stale_tick)

    def _stale_tick(self) -> None:
        self.world.append(tick(self._mono(), epoch=self.epoch, prev_ms=self.prev_ms, ack_ms=self.ack_ms))

    def _mono(self) -> int:
        return self.mono_from + self.world.now

    def _read(self, count: int) -> None:
        first = self.engine.offset
        records = self.world.log.records[first : first + count]
        if records:
            self.world.said.append((first, len(records), self.engine.apply(records)))

    def _poll(self) -> None:
        if not self.owns:
            return
        world = self.world
        if not world.is_away():
            self._read(world.rng.choice((1, 5, 50)))
            if world.now >= self.checkpoint_at:
                world.state += self.engine.cut().records
                self.checkpoint_at = world.now + CHECKPOINT_MS
        due = self.engine.next_due_at()
        if due is not None and due - T0 <= world.now and not self.in_flight:
            self._tick_at(world.now)
        world.at(world.now + world.rng.choice((20, 50, 100)), self._poll)

    # Ticks.

    def _tick_at(self, at: int) -> None:
        self.tick_at = at  # the one that was planned before lapses
        self.world.at(at, self._tick)

    def _up_since(self) -> int:
        """Return since when its appends (to any partition) have not failed or been overdue by more than a second."""
        since = self.started_at
        for start, end in self.world.plan.outages:
            if self.world.now > start + OVERDUE_MS:
                since = max(since, min(end, self.world.now))
        return since

    def _tick(self) -> None:
        world = self.world
        if not self.owns or self.in_flight or world.now != self.tick_at:
            return
        mono = self._mono()
        record = tick(
            mono,
            epoch=self.epoch,
            prev_ms=self.prev_ms,
            ack_ms=self.ack_ms,
            up_ms=world.now - self._up_since(),
            wall_at=T0 + world.now + 3_000_000,  # wrong by 50 minutes: it need not be right
        )
        self.in_flight = True

        def arrive() -> None:
            if not world.append(record):  # it lies in the client until the log is back
                world.at(world.back_at() + world.rng.randint(0, 100), arrive)
                return
            self.in_flight = False
            self.prev_ms, self.ack_ms = mono, self._mono() + world.rng.randint(0, 5)
            self._tick_at(world.now + TICK_MS)

        world.at(world.now + world.rng.randint(1, 20), arrive)
