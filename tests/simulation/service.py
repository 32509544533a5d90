"""How do services tell the log what people do? The SDK's own outbox and coalescer, over a network that is modelled.

One batch a partition is under way at a time, as in the SDK's pump. An append takes up to PUBLISHING_MS. It may be lost,
or stand in the log without the service hearing so, and then what it held is sent again with ages taken anew, joined
with what came since; or a client repeats it byte by byte. Of two services nobody knows whose records come first. While
the log is away, services keep what they have.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

from lapse.consumers.activity.coalescer import Coalescer
from lapse.consumers.activity.outbox import Load, Outbox
from lapse.consumers.activity.packing import Event
from lapse.schemas import SessionClosed, SessionElevated, SessionRefreshed, SessionStarted, SessionTouched

from tests.engine.records import ref
from tests.simulation.plan import Act, Person

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["PUBLISHED_MS", "PUBLISHING_MS", "SCATTERING", "SERVICES", "Service"]

PUBLISHING_MS = 200
"""The longest time an append takes: below the rules' grace."""

REPEATED_MS = 150
PUBLISHED_MS = PUBLISHING_MS + REPEATED_MS
"""By so much what an act says lies after it, at most: ages are taken before the append, and a repetition is later."""

RETRY_MS = 400
SERVICES = 3
SCATTERING = 2
"""The number of the service with another partitioner: all it writes is in the wrong partition."""


class _Batch:
    """What an outbox fills."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes | None, bytes]] = []

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object | None:
        assert value is not None
        self.records.append((key, value))
        return self


class Service:
    """One service with its publisher."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._rng = random.Random(f"{world.plan.seed}/service/{number}")
        self._zero = self._rng.uniform(0, 1e9)
        self._shift = 1 if number == SCATTERING else 0
        interval = world.plan.touch_interval_ms
        self._coalescer = Coalescer(interval)
        self._outbox = Outbox(self._coalescer, service=f"s{number}", touch_interval_ms=interval, clock=self._mono)
        self._flying: set[int] = set()
        self._pump_at: float | None = None

    def _mono(self) -> float:
        return self._zero + self._world.now

    def log_in(self, person: Person) -> None:
        """A person logs in now."""
        self._note(SessionStarted, person, policy=None)

    def log_out(self, person: Person) -> None:
        """A person logs out now."""
        self._note(SessionClosed, person)

    def act(self, person: Person, act: Act) -> None:
        """A person does something now."""
        session, age = ref(person.session), int(self._world.now - person.login_at)
        if act.kind == "refresh":
            self._note(SessionRefreshed, person)
        elif act.kind == "elevate":
            self._note(SessionElevated, person, session_age_ms=age)
        elif act.hold_ms:
            self._note(SessionTouched, person, hold_ms=act.hold_ms, session_age_ms=age)
        else:
            mono = self._mono()
            if self._coalescer.touch(session, person.subject, person.tenant, mono, mono - age):
                self._soon()
            else:
                self._soon(self._coalescer.next_at())

    def _note(self, kind: type[Any], person: Person, **fields: Any) -> None:
        activity = kind(
            session=ref(person.session),
            subject=person.subject,
            tenant=person.tenant,
            service=f"s{self._number}",
            age_ms=0,
            **fields,
        )
        if kind is SessionClosed:
            self._coalescer.hurry(ref(person.session))
        elif kind is not SessionRefreshed:
            self._coalescer.told(ref(person.session), person.subject, person.tenant, self._mono())
        self._outbox.add(Event(activity, self._mono()))
        self._soon()

    def _soon(self, mono: float | None = None) -> None:
        at = self._world.now if mono is None else max(self._world.now, mono - self._zero)
        if self._pump_at is None or at < self._pump_at:
            self._pump_at = at
            self._world.at(at, partial(self._pump, at))

    def _pump(self, at: float) -> None:
        if at != self._pump_at:
            return
        self._pump_at = None
        world = self._world
        for home in self._outbox.place(world.plan.partitions):
            if home not in self._flying:
                self._fly(home)
        next_at = self._coalescer.next_at()
        if next_at is not None:
            self._soon(max(next_at, self._mono() + 1))

    def _fly(self, home: int) -> None:
        batch, world, rng = _Batch(), self._world, self._rng
        load = self._outbox.load(home, batch)
        self._flying.add(home)
        takes = rng.uniform(0, PUBLISHING_MS)
        if world.broker.back_at(world.now) is not None or world.broker.back_at(world.now + takes) is not None:
            world.at(world.now + takes, lambda: self._lost(home, load))
        else:
            world.at(world.now + takes, lambda: self._arrive(home, load, batch.records))

    def _arrive(self, home: int, load: Load, records: list[tuple[bytes | None, bytes]]) -> None:
        world, rng = self._world, self._rng
        partition = (home + self._shift) % world.plan.partitions
        self._append(partition, records)
        chance = rng.random()
        if chance < 0.04:  # the acknowledgement is lost
            world.counts["appended, not acknowledged, sent anew"] += 1
            self._lost(home, load)
            return
        if chance < 0.08:  # a client below repeats what it has sent
            world.counts["repeated byte by byte"] += 1
            world.at(world.now + rng.uniform(1, REPEATED_MS), lambda: self._append(partition, records))
        self._outbox.landed(load)
        self._flying.discard(home)
        self._soon()

    def _append(self, partition: int, records: list[tuple[bytes | None, bytes]]) -> None:
        if self._world.broker.back_at(self._world.now) is None:
            for key, value in records:
                self._world.append_activity(partition, key, value, f"service {self._number}")

    def _lost(self, home: int, load: Load) -> None:
        self._outbox.lost(load)
        self._flying.discard(home)
        self._soon(self._mono() + self._rng.uniform(RETRY_MS / 2, RETRY_MS))
