"""Which worker owns which partition? A model of the consumer group with static members.

A member that is not heard of for SESSION_MS is thrown out, and the partitions are spread anew over the others; one that
starts again sooner finds its place. What moves from a worker that works is let go of with a last checkpoint first. A
member that was thrown out while it stood still learns so some time after it goes on: until then it is a zombie.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.owner import Owner
    from tests.simulation.process import Process
    from tests.simulation.world import World

__all__ = ["SESSION_MS", "Group"]

SESSION_MS = 6_000.0
BLOCKED_MS = 300.0
WAITS_MS = 16_000.0
"""A worker that lets go keeps the group waiting for so long, one that dies meanwhile for the session timeout."""


class Group:
    """The group's coordinator."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(f"{world.plan.seed}/group")
        self._members: dict[int, Process] = {}
        self.assigned: dict[int, Process | None] = dict.fromkeys(range(world.plan.partitions))
        self._turn = 0
        self._wanted = self._moving = 0
        self._planned = False

    def join(self, process: Process) -> None:
        """A process starts."""
        world = self._world
        back_at = world.broker.back_at(world.now)
        if back_at is not None:
            process.later(back_at - world.now + 10, lambda: self.join(process))
            return
        before = self._members.get(process.worker)
        self._members[process.worker] = process
        if before is None or before is process:
            self.rebalance()
            return
        world.counts["a worker found its place again"] += 1
        for number, owner in self.assigned.items():
            if owner is before:
                self._give(number, process)

    def lost_sight_of(self, process: Process) -> None:
        """A process has died or stands still."""
        self._world.at(self._world.now + SESSION_MS, lambda: self._expel(process))

    def _expel(self, process: Process) -> None:
        world = self._world
        back_at = world.broker.back_at(world.now)
        if back_at is not None:
            world.at(back_at + 100, lambda: self._expel(process))
            return
        if process.works or self._members.get(process.worker) is not process:
            return
        del self._members[process.worker]
        self.assigned = {number: None if owner is process else owner for number, owner in self.assigned.items()}
        world.say(f"{process.name} is thrown out of the group")
        if process.alive:
            process.later(self._rng.uniform(50, 3000), lambda: self._learn(process))
        self.rebalance()

    def _learn(self, process: Process) -> None:
        """A zombie learns that it is no member any more."""
        self._world.counts["zombies"] += 1
        owners = list(process.owners.values())
        left = len(owners)

        def let_go() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                self.join(process)

        if not owners:
            self.join(process)
        for owner in owners:
            owner.close(let_go)
            if owner.over:
                let_go()

    def leave(self, process: Process, absent_ms: int) -> None:
        """A process stops for good order, and starts again later."""
        world = self._world
        world.say(f"{process.name} stops")
        world.counts["clean stops"] += 1
        owners = list(process.owners.values())
        left = {owner.number for owner in owners}

        def let_go(number: int) -> None:
            left.discard(number)
            if not left:
                process.alive = False
                if self._members.get(process.worker) is process:
                    del self._members[process.worker]
                    self.rebalance()
                world.at(world.now + absent_ms, lambda: world.start_worker(process.worker, after=process))

        if not owners:
            let_go(-1)
        for owner in owners:
            owner.close(lambda number=owner.number: let_go(number))  # type: ignore[misc]  # bound now

    def shuffle(self) -> None:
        """Spread the partitions in another way."""
        self._turn += 1
        self.rebalance()

    def rebalance(self) -> None:
        """Spread the partitions over the members, soon."""
        self._wanted += 1
        if not self._planned:
            self._planned = True
            self._world.at(self._world.now + self._rng.uniform(20, 300), self._rebalance)

    def _rebalance(self) -> None:
        world = self._world
        blocked = self._moving or world.broker.back_at(world.now) is not None
        if blocked or any(not member.works for member in self._members.values()):
            world.at(world.now + BLOCKED_MS, self._rebalance)
            return
        self._planned = False
        world.counts["rebalances"] += 1
        members = [self._members[worker] for worker in sorted(self._members)]
        for number, owner in self.assigned.items():
            heir = members[(number + self._turn) % len(members)] if members else None
            if owner is heir:
                continue
            world.counts["partitions moved"] += 1
            running = None if owner is None else owner.owners.get(number)
            self.assigned[number] = None
            if running is not None and owner in members:
                self._move(number, running, heir)
            elif heir is not None:
                self._give(number, heir)

    def _move(self, number: int, running: Owner, heir: Process | None) -> None:
        """Have a partition let go of, then give it to its heir: at the latest when the group has waited enough."""
        self._moving += 1
        moved = False

        def let_go() -> None:
            nonlocal moved
            if not moved:
                moved = True
                self._moving -= 1
                if heir is not None:
                    self._give(number, heir)

        running.close(let_go)
        self._world.at(self._world.now + SESSION_MS, lambda: None if running.process.alive else let_go())
        self._world.at(self._world.now + WAITS_MS, let_go)

    def _give(self, number: int, process: Process) -> None:
        process = self._members.get(process.worker, process)  # it may have died since, and have found its place again
        self.assigned[number] = process
        process.later(self._rng.uniform(5, 200), lambda: self._take(number, process))

    def _take(self, number: int, process: Process) -> None:
        if self.assigned[number] is not process:
            return
        if number in process.owners:  # it still lets go of what it had before it was thrown out
            process.later(BLOCKED_MS, lambda: self._take(number, process))
        else:
            owner = process.owners[number] = self._world.owner_class(process, number)
            owner.begin()
