"""What happens around an estate when things break? A small world under a seed.

People use services, whose publishers append to a modelled log; workers in a group run the real engine for the
partitions they own, with checkpoints, ticks, copies and forwards; operators revoke and set policies. All that breaks is
in the plan (plan.py), all that happens is on one heap of events in true time, and nothing sleeps. The world keeps what
truly happened apart from what an engine can know, for the checkers.

    plan.py     what is decided beforehand     drawing.py   by which seed
    broker.py   topics, clocks, fences         service.py   people's services, with the SDK's own outbox
    group.py    who owns what                  process.py   a worker: its clock, its outlets, its death
    owner.py    one owned partition            ticking.py   its ticks          copier.py  its copies
    checkers.py was all of it right?
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from lapse.pipeline.engine import Effects, EngineSettings, PartitionEngine
from lapse.schemas import partition_of

from tests.engine.records import ref, settings
from tests.simulation.broker import Broker, Stored
from tests.simulation.group import SESSION_MS, Group
from tests.simulation.owner import Owner
from tests.simulation.plan import (
    ClockStep,
    Crash,
    Fault,
    Leave,
    Limits,
    Order,
    Outage,
    Plan,
    PolicyChange,
    Shuffle,
    Stall,
)
from tests.simulation.process import LASTING_MS, Process
from tests.simulation.service import SCATTERING, SERVICES, Service

__all__ = ["World"]

QUIET_MS = 12_000.0
"""How long a run goes on after the last fault is over and every session has ended."""
READ_WITHIN_MS = 2_000.0
"""How long it goes on after the last record that is no tick: that is read, and what it brings about is told."""
LONGEST_MS = 150_000.0
DECIDED_MS = 4_000
"""A step of a clock is decided within some ticks."""


class World:
    """One run of a plan.

    Attributes:
        now: true time, ms.
        settings: of each partition's engine.
        disturbances: (from, to) of each fault, the group's session timeout included.
        ordered_at: when each revocation was ordered; those that could not be are none.
        adopted_at: when each policy was set.
        longest: by what it is, the most of it and whose it was.
        counts: how often what happened.
        transcript: (instant, what), if wanted.
    """

    def __init__(
        self,
        plan: Plan,
        engine_class: type[Any] = PartitionEngine,
        owner_class: type[Owner] = Owner,
        broker_class: type[Broker] = Broker,
        *,
        tell: bool = False,
        **changes: Any,
    ) -> None:
        self.plan = plan
        self.now = 0.0
        self.engine_class = engine_class
        self.owner_class = owner_class
        self.broker = broker_class(plan)
        self.settings: list[EngineSettings] = [
            settings(partition=number, partitions=plan.partitions, clock=plan.clock, **changes)
            for number in range(plan.partitions)
        ]
        self.counts: Counter[str] = Counter()
        self.transcript: list[tuple[float, str]] = []
        self.disturbances: list[tuple[float, float]] = []
        self._spoken_at = 0.0  # when the last record was appended that is no tick
        self.longest: dict[str, tuple[float, str]] = {}
        self.ordered_at: dict[str, float] = {}
        self.adopted_at: list[tuple[float, Limits]] = []
        self._tell = tell
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.group = Group(self)
        self.processes: dict[int, Process] = {}
        self._armed: list[Crash | Stall] = []
        self.ended: set[bytes] = set()

    def run(self) -> None:
        """Let everything happen."""
        plan = self.plan
        self._set_policy(plan.limits)
        for worker in range(plan.workers):
            self.at(0, partial(self.start_worker, worker))
        self._plan_people()
        for order in plan.orders:
            self.at(order.at, partial(self._order_revocation, order))
        for change in plan.policies:
            self.at(change.at, partial(self._change_policy, change))
        for fault in plan.faults:
            self.at(fault.at, partial(self._break, fault))
        events, quiet_at = self._events, plan.faults_until + QUIET_MS
        while events:
            at, _, event = heapq.heappop(events)
            if at > LONGEST_MS:
                break
            self.now = at
            event()
            if at > quiet_at:
                if self._is_over():
                    break
                quiet_at = at + 200

    def at(self, t: float, event: Callable[[], None]) -> None:
        """Let something happen at an instant of true time."""
        heapq.heappush(self._events, (max(self.now, t), next(self._order), event))

    def say(self, what: str) -> None:
        """Put something into the transcript."""
        if self._tell:
            self.transcript.append((self.now, what))

    def _is_over(self) -> bool:
        quiet_at = max((end for _, end in self.disturbances), default=0.0) + QUIET_MS
        return len(self.ended) >= len(self.plan.people) and self.now > max(quiet_at, self._spoken_at + READ_WITHIN_MS)

    # The log

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes, who: str) -> Stored:
        """Append a record; an owner may read it soon."""
        if topic == "activity":
            return self.append_activity(partition, key, value, who)
        stored = self.broker.append(topic, partition, key, value, self.now)
        if topic == "expiries" and key != b"watermark":
            assert key is not None
            self.ended.add(key)
        if self._tell:
            self.say(f"{who}: {topic}-{partition}@{stored.offset}: {value.decode()}")
        return stored

    def append_activity(self, partition: int, key: bytes | None, value: bytes, who: str) -> Stored:
        """Append a record to the log that decides."""
        stored = self.broker.append("activity", partition, key, value, self.now)
        if b'"clock.tick"' not in value:
            self._spoken_at = self.now
        if self._tell:
            self.say(f"{who}: activity-{partition}@{stored.offset} stamped {stored.timestamp}: {value.decode()}")
        for process in self.processes.values():
            owner = process.owners.get(partition)
            if owner is not None:
                owner.read_soon()
        return stored

    def heard(self, effects: Effects) -> None:
        """Note what an engine said."""
        self.counts["alarms of clock steps"] += len(effects.alarms)

    def saved_state(self, partition: int) -> dict[bytes, bytes | None]:
        """Return the state as it is read back now."""
        return dict(self.broker.state[partition])

    # People

    def _plan_people(self) -> None:
        services = [Service(self, number) for number in range(SERVICES)]
        for person in self.plan.people:
            home = SCATTERING if person.scattered else 0
            self.at(person.login_at, partial(services[home].log_in, person))
            for act in person.acts:
                service = services[SCATTERING if person.scattered else act.service]
                self.at(act.at, partial(service.act, person, act))
            if person.closed_at is not None:
                self.at(person.closed_at, partial(services[home].log_out, person))

    # Operators

    def _order_revocation(self, order: Order) -> None:
        if self.broker.back_at(self.now) is not None:
            return  # the operator is told so, and it is no order
        self.ordered_at[order.id] = self.now
        target = {"session": order.session and ref(order.session), "subject": order.subject, "tenant": order.tenant}
        record: dict[str, Any] = {"type": "revocation", "id": order.id, "reason": "admin", "by": "alice@ops"}
        record |= {name: value for name, value in target.items() if value is not None}
        numbers = range(self.plan.partitions)
        if not any(target.values()):
            record["everyone"] = True
        elif order.subject is not None:
            home = self._home(order)
            numbers = range(home, home + 1)
        for number in numbers:
            self.append("revocations", number, None, orjson.dumps(record), "operator")
            self._wake_copiers(number)

    def _home(self, order: Order) -> int:
        assert order.subject is not None
        home = partition_of(order.subject, order.tenant, self.plan.partitions)
        return (home + order.misplaced) % self.plan.partitions

    def _change_policy(self, change: PolicyChange) -> None:
        if self.broker.back_at(self.now) is None:
            self._set_policy(change.limits)

    def _set_policy(self, limits: Limits) -> None:
        policy = {
            "type": "policy",
            "name": "default",
            "idle_ms": limits.idle_ms,
            "absolute_ms": limits.absolute_ms,
            "warn_before_ms": limits.warn_before_ms,
            "hold_max_ms": self.plan.hold_max_ms,
            "token_life_ms": None,
            "match": None,
        }
        self.adopted_at.append((self.now, limits))
        self.append("policies", 0, b"default", orjson.dumps(policy), "operator")
        for number in range(self.plan.partitions):
            self._wake_copiers(number)

    def _wake_copiers(self, number: int) -> None:
        for process in self.processes.values():
            process.copier.soon(number)

    # What breaks

    def start_worker(self, worker: int, after: Process | None = None) -> None:
        """Start a worker, mostly on the machine it was on."""
        rng = random.Random(f"{self.plan.seed}/start/{worker}/{self.now}")
        stays = after is not None and rng.random() < 0.7
        zero = after.mono_zero if after is not None and stays else rng.uniform(0, 1 << 40)
        process = Process(self, worker, 0 if after is None else after.life + 1, zero)
        self.processes[worker] = process
        self.say(f"{process.name} starts")
        self.group.join(process)

    def fault_at(self, worker: int, step: str) -> Crash | Stall | None:
        """Return, once, the fault that is to strike a worker at a step."""
        if not self._armed:
            return None
        for fault in self._armed:
            if fault.worker == worker and fault.step == step and self.now <= fault.at + LASTING_MS:
                self._armed.remove(fault)
                self._disturbed(fault)
                return fault
        return None

    def _disturbed(self, fault: Fault) -> None:
        lasts = 0
        if isinstance(fault, Crash | Leave):
            lasts = fault.absent_ms
        elif isinstance(fault, Stall):
            lasts = fault.for_ms
        elif isinstance(fault, Outage):
            lasts = fault.until - fault.at
        elif isinstance(fault, ClockStep):
            lasts = DECIDED_MS
        self.disturbances.append((self.now, self.now + lasts + SESSION_MS))

    def worst(self, what: str, ms: float, whose: str) -> None:
        """Note the most of something."""
        self.longest[what] = max(self.longest.get(what, (0.0, "")), (ms, whose))

    def _break(self, fault: Fault) -> None:
        if isinstance(fault, Crash | Stall) and fault.step is not None:
            self._armed.append(fault)
            return
        self._disturbed(fault)
        if isinstance(fault, Outage):
            self.say(f"the log is away until {fault.until}")
            self.counts["outages"] += 1
        elif isinstance(fault, ClockStep):
            self.say(f"the clock of broker {fault.broker} is set by {fault.by} ms")
            self.counts["clock steps"] += 1
        elif isinstance(fault, Shuffle):
            self.group.shuffle()
        else:
            self._break_worker(fault)

    def _break_worker(self, fault: Crash | Stall | Leave) -> None:
        process = self.processes[fault.worker]
        if not process.works:
            return
        if isinstance(fault, Crash):
            self.say(f"{process.name} dies")
            self.counts["crash: at any time"] += 1
            process.die(fault.absent_ms)
        elif isinstance(fault, Stall):
            self.counts["stall: at any time"] += 1
            process.stall(fault.for_ms, "at any time")
        else:
            self.group.leave(process, fault.absent_ms)
