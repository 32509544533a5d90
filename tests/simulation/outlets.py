"""How do a modelled worker's appends get into the log? In order, each once, and not all of them where it dies.

As one idempotent producer: what was handed over first stands first; through an outage it is kept, and appended when the
log is back. Where the process dies, of what is under way a part from the front gets in and the rest is gone. Where it
stands still, what the socket holds gets in, and the rest when it goes on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.simulation.broker import Stored

if TYPE_CHECKING:
    from tests.simulation.process import Process

__all__ = ["Outlet", "Sent"]


@dataclass(slots=True)
class Sent:
    """A batch that was handed over; its records stand in one piece or not at all.

    Attributes:
        stored: its last record, once it stands in the log.
        acked: whether the process knows.
    """

    topic: str
    partition: int
    records: Sequence[tuple[bytes | None, bytes]]
    arrives_at: float
    stored: Stored | None = None
    acked: bool = False
    then: Callable[[Sent], None] | None = None


class Outlet:
    """One producer of a process; see the module."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._rng = random.Random(f"{process.seed}/{name}")
        self._under_way: deque[Sent] = deque()
        self._last_at = 0.0
        self._arriving = False

    def send(
        self,
        topic: str,
        partition: int,
        records: Sequence[tuple[bytes | None, bytes]],
        then: Callable[[Sent], None] | None = None,
    ) -> Sent:
        """Hand over; `then` is called in the process when it is acknowledged."""
        now = self._process.world.now
        delay = self._rng.uniform(0.3, 6) if self._rng.random() > 0.02 else self._rng.uniform(20, 200)
        self._last_at = max(self._last_at, now + delay)
        sent = Sent(topic, partition, records, self._last_at, then=then)
        self._under_way.append(sent)
        self._schedule()
        return sent

    def _schedule(self) -> None:
        if self._under_way and not self._arriving:
            self._arriving = True
            self._process.world.at(self._under_way[0].arrives_at, self._arrive)

    def _arrive(self) -> None:
        self._arriving = False
        world = self._process.world
        if not self._under_way:
            return
        back_at = world.broker.back_at(world.now)
        late = self._under_way[0].arrives_at - world.now
        if back_at is not None or late > 0:
            if back_at is not None:
                self._hold_until(back_at + self._rng.uniform(1, 100))
            self._schedule()
            return
        self._stand(self._under_way.popleft())
        self._schedule()

    def _stand(self, sent: Sent) -> None:
        process = self._process
        for key, value in sent.records:
            sent.stored = process.world.append(sent.topic, sent.partition, key, value, process.name)
        if process.alive:
            process.later(self._rng.uniform(0.3, 6), lambda: self._acknowledge(sent))

    def _acknowledge(self, sent: Sent) -> None:
        sent.acked = True
        if sent.then is not None:
            sent.then(sent)

    def _hold_until(self, t: float) -> None:
        for sent in self._under_way:
            sent.arrives_at = max(sent.arrives_at, t)
        self._last_at = max(self._last_at, t)

    def cut_off(self) -> None:
        """The process has died: a part of what is under way gets in, in order, and the rest is gone."""
        survivors = self._rng.randint(0, len(self._under_way))
        if self._process.world.broker.back_at(self._process.world.now) is not None:
            survivors = 0
        for _ in range(survivors):
            self._stand(self._under_way.popleft())
        self._under_way.clear()

    def freeze(self, until: float) -> None:
        """The process stands still: what the socket holds gets in, the rest when it goes on."""
        in_socket = self._rng.randint(0, len(self._under_way))
        rest = list(self._under_way)[in_socket:]
        for sent in rest:
            sent.arrives_at = max(sent.arrives_at, until + self._rng.uniform(0.3, 6))
        for before, after in pairwise(rest):
            after.arrives_at = max(after.arrives_at, before.arrives_at)
        if rest:
            self._last_at = max(self._last_at, rest[-1].arrives_at)
