"""What does the broker keep, and what do its clocks say? A model of the topics, of transactions and of fences.

Activity, revocations and policies are logs of records with append times, by the clock of whichever broker leads the
partition. Expiries, warnings and violations are logs, too, and remember when what stood there in true time. State is
what is left when it is compacted: of each key the last committed value. Whoever begins to write state under a
partition's transactional id fences its predecessor: what that had open is gone, and what it sends is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from tests.simulation.plan import Plan

__all__ = ["EPOCH_MS", "Broker", "Commit", "FencedOut", "Stored", "TopicLog"]

EPOCH_MS = 1_700_000_000_000
"""What a right clock shows at the beginning."""


class FencedOut(Exception):
    """Another owner has begun a transaction under this partition's id."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it stands in a log; `t` is the instant of true time, which only the checkers know."""

    offset: int
    timestamp: int
    value: bytes | None
    key: bytes | None
    t: float


@dataclass(frozen=True, slots=True)
class Commit:
    """One committed checkpoint.

    Attributes:
        revocations: the position in revocations.
        expiries: so many records of expiries stood there.
        state: of each key the last value, as of this checkpoint.
    """

    t: float
    worker: str
    offset: int
    revocations: int
    expiries: int
    state: dict[bytes, bytes | None]


TopicLog = list[Stored]


class Broker:
    """All topics of an estate; see the module. `t` is true time throughout."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        numbers = range(plan.partitions)
        self.activity: list[TopicLog] = [[] for _ in numbers]
        self.revocations: list[TopicLog] = [[] for _ in numbers]
        self.policies: TopicLog = []
        self.said: dict[str, list[TopicLog]] = {
            topic: [[] for _ in numbers] for topic in ("expiries", "warnings", "violations", "dead-letters")
        }
        self.state: list[dict[bytes, bytes | None]] = [{} for _ in numbers]
        self.positions: list[tuple[int, int]] = [(0, 0) for _ in numbers]
        self.commits: list[list[Commit]] = [[] for _ in numbers]
        self._epochs = [0 for _ in numbers]
        self._open: list[list[tuple[bytes, bytes | None]]] = [[] for _ in numbers]
        self._steps = [[(s.at, s.by) for s in plan.clock_steps if s.broker == b] for b in range(len(plan.skews))]
        self._outages = [(outage.at, outage.until) for outage in plan.outages]

    def back_at(self, t: float) -> float | None:
        """Return when the log comes back, or None where it is there."""
        for start, end in self._outages:
            if start <= t < end:
                return float(end)
        return None

    def _append_time(self, topic: str, partition: int, t: float) -> int:
        broker = self.plan.leaders[topic][partition] if topic in self.plan.leaders else 1
        stepped = sum(by for at, by in self._steps[broker] if at <= t)
        return floor(EPOCH_MS + t + self.plan.skews[broker] + stepped)

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes, t: float) -> Stored:
        """Append a record; the log must be there."""
        if topic == "activity":
            log = self.activity[partition]
        elif topic == "revocations":
            log = self.revocations[partition]
        elif topic == "policies":
            log = self.policies
        else:
            log = self.said[topic][partition]
        stored = Stored(len(log), self._append_time(topic, partition, t), value, key, t)
        log.append(stored)
        return stored

    # Transactions

    def fence(self, partition: int) -> int:
        """Begin under the partition's transactional id; return the epoch under which to write."""
        self._open[partition] = []
        self._epochs[partition] += 1
        return self._epochs[partition]

    def is_fenced(self, partition: int, epoch: int) -> bool:
        """Return whether a later owner has begun."""
        return epoch != self._epochs[partition]

    def claim(self, partition: int, epoch: int, records: list[tuple[bytes, bytes | None]]) -> None:
        """Commit a transaction that leaves the positions as they are.

        Raises:
            FencedOut: a later owner has begun.
        """
        if self.is_fenced(partition, epoch):
            raise FencedOut
        self.state[partition].update(records)

    def write(self, partition: int, epoch: int, records: list[tuple[bytes, bytes | None]]) -> None:
        """Put state into the open transaction.

        Raises:
            FencedOut: a later owner has begun.
        """
        if self.is_fenced(partition, epoch):
            raise FencedOut
        self._open[partition] = list(records)

    def commit(self, partition: int, epoch: int, worker: str, offset: int, revocations: int, t: float) -> None:
        """Commit what is open, with the positions in the input topics.

        Raises:
            FencedOut: a later owner has begun.
        """
        if self.is_fenced(partition, epoch):
            raise FencedOut
        state = self.state[partition]
        for key, value in self._open[partition]:
            state.pop(key, None)
            state[key] = value
        self._open[partition] = []
        self.positions[partition] = (offset, revocations)
        expiries = len(self.said["expiries"][partition])
        self.commits[partition].append(Commit(t, worker, offset, revocations, expiries, dict(state)))
