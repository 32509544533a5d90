"""What is a modelled worker? A process with a clock, two outlets and some partitions, that can die or stand still.

Everything that a process does is an event of the world that belongs to it: once it is dead they lapse, while it stands
still they wait until it goes on, in their order. At each numbered step (plan.STEPS) it asks whether it is to die or
stand still there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lapse.pipeline.processor.append_health import AppendHealth

from tests.simulation.broker import EPOCH_MS
from tests.simulation.copier import Copier
from tests.simulation.outlets import Outlet
from tests.simulation.plan import Crash, Stall

if TYPE_CHECKING:
    from tests.simulation.owner import Owner
    from tests.simulation.world import World

__all__ = ["Process"]

LASTING_MS = 6_000
"""A fault that waits for a step is forgotten after that: the quiet end of a run is quiet."""


class Process:
    """One life of a worker. A worker that starts again is another process, mostly on the same machine.

    Attributes:
        owners: by partition, what it believes to own.
        stalled_until: when it goes on, if that is not yet.
    """

    def __init__(self, world: World, worker: int, life: int, mono_zero: float) -> None:
        self.world = world
        self.worker = worker
        self.life = life
        self.name = f"w-{worker}"
        self.seed = f"{world.plan.seed}/{self.name}/{life}"
        self.rng = random.Random(self.seed)
        self.mono_zero = mono_zero
        self._drift = 1 + self.rng.uniform(-50e-6, 50e-6)
        self._wall_error = self.rng.uniform(-20, 20)
        self.alive = True
        self.stalled_until = 0.0
        self.owners: dict[int, Owner] = {}
        self.health = AppendHealth()
        self.effects = Outlet(self, "effects")
        self.control = Outlet(self, "control")
        self.copier = Copier(self)

    @property
    def is_stalled(self) -> bool:
        """Whether it stands still now."""
        return self.stalled_until > self.world.now

    @property
    def works(self) -> bool:
        """Whether it is alive and goes on."""
        return self.alive and not self.is_stalled

    def mono(self) -> float:
        """Return its monotonic clock."""
        return self.mono_zero + self.world.now * self._drift

    def wall_at(self) -> int:
        """Return its wall clock: right, to within what NTP does."""
        return int(EPOCH_MS + self.world.now + self._wall_error)

    def later(self, ms: float, do: Callable[[], None]) -> None:
        """Let the process do something in so many ms."""
        self.world.at(self.world.now + ms, partial(self._run, do))

    def _run(self, do: Callable[[], None]) -> None:
        if not self.alive:
            return
        if self.is_stalled:
            self.world.at(self.stalled_until, partial(self._run, do))
            return
        do()

    def reach(self, step: str, partition: int, go_on: Callable[[], None]) -> None:
        """Come to a step; go on from there, unless the process is to die there, or later if it is to stand still."""
        fault = self.world.fault_at(self.worker, step)
        if isinstance(fault, Crash):
            self.world.say(f"{self.name} dies: {step}, partition {partition}")
            self.world.counts[f"crash: {step}"] += 1
            self.die(fault.absent_ms)
        elif isinstance(fault, Stall):
            self.world.counts[f"stall: {step}"] += 1
            self.stall(fault.for_ms, f"{step}, partition {partition}")
            self.later(0, go_on)
        else:
            go_on()

    def die(self, absent_ms: int) -> None:
        """Be gone at once; start again later."""
        self.alive = False
        self.effects.cut_off()
        self.control.cut_off()
        self.world.group.lost_sight_of(self)
        self.world.at(self.world.now + absent_ms, lambda: self.world.start_worker(self.worker, after=self))

    def stall(self, ms: int, where: str) -> None:
        """Stand still."""
        self.world.say(f"{self.name} stands still for {ms} ms: {where}")
        self.stalled_until = self.world.now + ms
        self.effects.freeze(self.stalled_until)
        self.control.freeze(self.stalled_until)
        self.world.group.lost_sight_of(self)
