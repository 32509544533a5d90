"""How does a modelled worker run one partition, from its restore to its last checkpoint?

The engine is the real one; so are what it saves and reads back, when ticks are sent (TickSchedule), the estimate of log
time, how ages of forwarded records grow, the signatures and the bytes. What is modelled is what runs them: the order
of effects with the numbers of pipeline/lapse/pipeline/processor/core.py.

1. Read some records and apply them: one event.
2. Hand over endings, warnings, violations, dead letters, forwarded records, then a watermark.
3. At a checkpoint cut the changed state; wait for the acknowledgement of all that was handed over before.
4. In a transaction under the partition's id: state, marker, positions.

Between 1 and the end of 2 no cut is made (`_busy`), one checkpoint is under way at a time (`_checkpointing`, also while
it waits for the end of 2), and one transaction (`_writing`). What is to be forwarded waits in a queue until there is an
estimate of log time, and where that is full, 2 waits. The process can die or stand still at each step
(`Process.reach`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import orjson

from lapse.pipeline.engine import Checkpoint, Effects, Forward
from lapse.pipeline.processor.checkpoints import EPOCH_KEY
from lapse.pipeline.processor.forwarding import grown
from lapse.pipeline.processor.log_time import LogTime
from lapse.pipeline.processor.publishing import WATERMARK_INTERVAL_MS, WATERMARK_KEY
from lapse.schemas import Watermark, encode, sign, subject_key

from tests.engine.records import KEY, TOPIC
from tests.simulation.broker import FencedOut
from tests.simulation.outlets import Sent
from tests.simulation.ticking import Ticking

if TYPE_CHECKING:
    from tests.simulation.process import Process

__all__ = ["Owner"]

CHECKPOINT_MS = 2_000.0
FORWARDS_MAX = 3
"""So many records wait to be forwarded; real ones are more, and come from larger logs."""
CATCHING_UP_MS = (15, 1_500)
"""The longest that a read takes before all is read: some logs are so long that checkpoints come meanwhile."""
CLOSING_MS = 15_000.0
"""So long the group waits for a last checkpoint."""


class Owner:
    """A process's ownership of one partition; see the module."""

    def __init__(self, process: Process, number: int) -> None:
        self.process = process
        self.world = process.world
        self.number = number
        self._rng = random.Random(f"{process.seed}/{number}/{self.world.now}")
        self.engine: Any = None
        self.epoch_of_id = -1
        self.caught_up_at = 0
        self.over = False
        self.saved: tuple[int, int] = (-1, -1)
        self.claimed = -1
        self.log_time = LogTime(self._disciplined, lambda: int(self.engine.clock_offset_ms))
        self.ticking = Ticking(self)
        self.unacknowledged: list[Sent | None] = []
        self._forwards: list[tuple[Forward, int]] = []
        self._reading = self._busy = self._checkpointing = self._writing = False
        self._catching_up_ms = self._rng.choice(CATCHING_UP_MS)
        self._waiter: Callable[[], None] | None = None
        self._as_of = -1
        self._next_watermark_ms = process.mono()

    def _later(self, ms: float, do: Callable[[], None]) -> None:
        self.process.later(ms, lambda: None if self.over else do())

    def _reach(self, step: str, go_on: Callable[[], None]) -> None:
        self.process.reach(step, self.number, lambda: None if self.over else go_on())

    def _when_there(self, do: Callable[[], None]) -> bool:
        """Return whether the log is there; else do it when it is back."""
        back_at = self.world.broker.back_at(self.world.now)
        if back_at is not None:
            self._later(back_at - self.world.now + self._rng.uniform(1, 50), do)
        return back_at is None

    # Restore

    def begin(self) -> None:
        """Fence the predecessor, read the state back, and go on from its offset."""
        if not self._when_there(self.begin):
            return
        broker, number = self.world.broker, self.number
        self.epoch_of_id = broker.fence(number)
        self.caught_up_at = len(broker.activity[number])
        state, positions = self.world.saved_state(number), broker.positions[number]
        self._later(
            self._rng.uniform(20, 200), lambda: self._reach("restored", lambda: self._restored(state, positions))
        )

    def _restored(self, state: dict[bytes, bytes | None], positions: tuple[int, int]) -> None:
        settings = self.world.settings[self.number]
        engine_class = self.world.engine_class
        self.engine = engine_class.restore(settings, state.items()) or engine_class(settings)
        self.saved = (self.engine.offset, positions[1])
        self.claimed = int(state.get(EPOCH_KEY) or -1)
        self.process.copier.own(self.number, positions[1])
        self.world.say(f"{self.process.name} owns {self.number} from offset {self.engine.offset} on")
        self._later(CHECKPOINT_MS * (self.number + 1) / self.world.plan.partitions, self._checkpoint_in_turn)
        self.read_soon()
        self._caught_up()

    # 1 and 2

    def read_soon(self) -> None:
        """Records may have come."""
        if not self._reading and self.engine is not None:
            self._reading = True
            behind = self.engine.next_offset < self.caught_up_at
            self._later(self._rng.uniform(1, self._catching_up_ms if behind else 15), self._read)

    def _read(self) -> None:
        if not self._when_there(self._read):
            return
        if self._busy:
            self._later(1, self._read)
            return
        self._reading = False
        log, start = self.world.broker.activity[self.number], self.engine.next_offset
        records = log[start : start + self._rng.choice((1, 2, 5, 50, 500))]
        if not records:
            return
        self._busy = True
        effects = self.engine.apply(records)  # 1
        self.world.heard(effects)
        if start + len(records) < len(log):
            self.read_soon()
        self._reach("applied", lambda: self._publish(effects))

    def _publish(self, effects: Effects) -> None:
        self._hand_over("expiries", effects.endings)  # 2
        self._hand_over("warnings", effects.warnings)
        self._hand_over("violations", effects.violations)
        if effects.dead_letters:
            self._hand_over("dead-letters", effects.dead_letters)
        self._forward(effects, list(effects.forwards))

    def _forward(self, effects: Effects, left: list[Forward]) -> None:
        while left and len(self._forwards) < FORWARDS_MAX:
            self._forwards.append((left.pop(0), len(self.unacknowledged)))
            self.unacknowledged.append(None)
            self.flush_forwards()
        if left:
            self._caught_up()
            self._later(5, lambda: self._forward(effects, left))
            return
        self._watermark()
        if effects.endings or effects.forwards:
            self._reach("published", self._published)
        else:
            self._published()

    def _published(self) -> None:
        self._busy = False
        self._caught_up()
        self.ticking.look()

    def _hand_over(self, topic: str, what: Iterable[Any]) -> None:
        records = [(getattr(one, "session", "").encode(), encode(one)) for one in what]
        while records:
            count = self._rng.randint(1, 3)
            self.unacknowledged.append(self.process.effects.send(topic, self.number, records[:count], self._acked))
            records = records[count:]

    def _watermark(self) -> None:
        """As `Publisher.watermark`: at most once a second, and only with news."""
        mono, as_of = self.process.mono(), self.watermark()
        if mono < self._next_watermark_ms or as_of <= self._as_of:
            return
        behind = mono - self._next_watermark_ms > WATERMARK_INTERVAL_MS
        self._next_watermark_ms = (mono if behind else self._next_watermark_ms) + WATERMARK_INTERVAL_MS
        self._as_of = as_of
        value = encode(Watermark(as_of=as_of, offset_ms=self.engine.clock_offset_ms))
        sent = self.process.effects.send("expiries", self.number, [(WATERMARK_KEY, value)], self._acked)
        self.unacknowledged.append(sent)

    def watermark(self) -> int:
        """Return what the next watermark vouches for."""
        return int(self.engine.watermark())

    def flush_forwards(self) -> None:
        """Forward what waits, if there is an estimate of log time."""
        if not self.log_time.known:
            return
        for forward, place in self._forwards:
            passed = self.log_time.surely_at(self.process.mono(), self.process.wall_at()) - forward.stamp
            record = grown(forward.record, int(passed))
            record["mac"] = sign(record, topic=TOPIC, partition=forward.partition, key=KEY)
            key = subject_key(record["subject"], record.get("tenant"))
            self.world.counts["forwarded"] += 1
            self.unacknowledged[place] = self.process.effects.send(
                "activity", forward.partition, [(key, orjson.dumps(record))], self._acked
            )
        self._forwards.clear()

    @property
    def waits_to_forward(self) -> bool:
        """Whether an estimate of log time is wanted at once."""
        return bool(self._forwards)

    def _acked(self, sent: Sent) -> None:
        if self._waiter is not None and not self.over:
            self._waiter()

    # Ticks

    def _disciplined(self, mono_ms: float) -> float | None:
        time: float | None = self.engine.time_at(self.ticking.epoch, int(mono_ms))
        return time

    def _caught_up(self) -> None:
        if self.engine.next_offset >= self.caught_up_at:
            self.ticking.begin_for_good()
        elif self.waits_to_forward:
            self.ticking.begin_early()

    def claim(self, then: Callable[[int], None]) -> None:
        """Save the epoch to tick under, under the fence, then go on with it."""
        if not self.may_claim():
            self._later(5, lambda: self.claim(then))
            return
        self._writing = True
        self.claimed = max(self.claimed, self.engine.epoch) + 1
        records: list[tuple[bytes, bytes | None]] = [(EPOCH_KEY, b"%d" % self.claimed)]

        def write() -> None:
            if self._when_there(write) and self._fenced_or(lambda b: b.claim(self.number, self.epoch_of_id, records)):
                self._later(self._rng.uniform(1, 20), heard)

        def heard() -> None:
            self._writing = False
            then(self.claimed)

        self._reach("claimed", lambda: self._later(self._rng.uniform(1, 20), write))

    def may_claim(self) -> bool:
        """Return whether an epoch can be claimed now: a checkpoint that only waits is not in the way."""
        return not self._writing

    # 3 and 4

    def _checkpoint_in_turn(self) -> None:
        self._later(CHECKPOINT_MS, self._checkpoint_in_turn)
        self.checkpoint(lambda: None)

    def checkpoint(self, then: Callable[[], None]) -> None:
        """Make the state durable if it has changed, and go on."""
        if self._checkpointing:
            self._later(5, lambda: self.checkpoint(then))
            return
        self._checkpointing = True
        self._cut(then)

    def _cut(self, then: Callable[[], None]) -> None:
        if self._busy:
            self._later(5, lambda: self._cut(then))
            return
        revocations = self.process.copier.copied(self.number)
        if self.saved == (self.engine.offset, revocations):
            self._checkpointing = False
            then()
            return
        cut = self.engine.cut()  # 3
        self.flush_forwards()
        handed_over, self.unacknowledged = self.unacknowledged, []
        # What still waits to be forwarded is handed over into the list that this checkpoint waits for.
        waiting, self._forwards = self._forwards, []
        self._forwards = [(forward, len(self.unacknowledged) + n) for n, (forward, _) in enumerate(waiting)]
        self.unacknowledged += [None] * len(waiting)
        blocked = self.unacknowledged if waiting else []
        handed_over = [sent for sent in handed_over if sent is not None]
        count = len(waiting)

        def ready() -> bool:
            return all(s is not None and s.acked for s in [*handed_over, *blocked[:count]])

        write = lambda: self._write(cut, revocations, then)  # noqa: E731  # a step that goes on
        self._reach("cut", lambda: self._await(ready, lambda: self._reach("acknowledged", write)))

    def _await(self, ready: Callable[[], bool], then: Callable[[], None]) -> None:
        def look() -> None:
            if self._waiter is look and self.may_write(ready()):
                self._waiter = None
                then()

        self._waiter = look
        look()

    def may_write(self, acknowledged: bool) -> bool:
        """Return whether the checkpoint may be written: all that it depends on is acknowledged."""
        return acknowledged

    def _write(self, cut: Checkpoint, revocations: int, then: Callable[[], None]) -> None:
        def begin() -> None:
            if self._writing:
                self._later(5, begin)
                return
            self._writing = True
            self._later(self._rng.uniform(1, 20), write)

        def write() -> None:
            if self._when_there(write) and self._fenced_or(
                lambda b: b.write(self.number, self.epoch_of_id, cut.records)
            ):
                self._reach("written", lambda: self._later(self._rng.uniform(1, 20), commit))

        def commit() -> None:
            offset = self.position(cut)
            if self._when_there(commit) and self._fenced_or(
                lambda b: b.commit(
                    self.number, self.epoch_of_id, self.process.name, offset, revocations, self.world.now
                )
            ):
                self._reach("committed", lambda: self._later(self._rng.uniform(1, 20), heard))

        def heard() -> None:
            self._checkpointing = self._writing = False
            self.saved = (cut.offset, revocations)
            then()

        begin()

    def position(self, cut: Checkpoint) -> int:
        """Return the position in the input that is committed with a checkpoint."""
        return cut.offset

    def _fenced_or(self, do: Callable[[Any], None]) -> bool:
        try:
            do(self.world.broker)
        except FencedOut:
            self.world.counts["refused by the fence"] += 1
            self.world.say(f"{self.process.name} is fenced off {self.number}")
            self.end()
            return False
        return True

    # The end

    def end(self) -> None:
        """Let go without a checkpoint."""
        if self.over:
            return
        self.over = True
        self.process.copier.disown(self.number)
        if self.process.owners.get(self.number) is self:
            del self.process.owners[self.number]

    def close(self, then: Callable[[], None]) -> None:
        """Let go with a last checkpoint, if it comes through in time; then tell the group."""
        told = False

        def done() -> None:
            nonlocal told
            if not told:
                told = True
                self.end()
                then()

        self._reading = True  # no more; ticks go on, for what waits to be forwarded
        self.process.later(CLOSING_MS, done)
        if self.engine is None:
            done()
        else:
            self.checkpoint(done)
