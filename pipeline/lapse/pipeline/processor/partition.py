"""How is one owned partition run, from its restored engine to its last checkpoint?

Five tasks: one applies input in batches (steps 1 and 2 of the order of effects, core.py), one ticks, one forwards,
one checkpoints (steps 3 and 4), one trims. `_lock` is held from the moment a batch is applied until all its effects are
handed over, so that a cut is always of an exact input offset with all that came before it published. `_checkpointing`
is held through a checkpoint, so that there is one at a time and none is torn by the end of the ownership. `_writing` is
held through a transaction alone, a checkpoint's or a claim's. Who holds one of the first two may wait for ticks: a
forwarded record waits for an estimate of log time, a checkpoint for that record, and a batch for room among such. So
nothing on the way to a tick takes either of them.

Input must be without holes. Faust may bring what it had fetched before a rebalance, or lose it; so what is missing
between the engine's offset and a batch is read back from the log first, and what is below is dropped by the engine.
Holes that no record fills (markers of transactions) cost one read.

When a task fails, the worker does (`fault`). What a failed batch has changed is nowhere, and what a failed checkpoint
has cut is not marked as changed any more: no checkpoint follows, not even one that waits for its turn already
(`_torn`).
When the partition is fenced, another owner is at work: it falls silent (`lost`).
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog
from aiokafka import ConsumerRecord, TopicPartition

from lapse.pipeline.engine import Checkpoint
from lapse.pipeline.processor import clocks, failpoints
from lapse.pipeline.processor.append_health import AppendHealth
from lapse.pipeline.processor.bounds import BoundsAlarm
from lapse.pipeline.processor.checkpoints import CHECKPOINT_DEADLINE_S, EPOCH_KEY, Fenced
from lapse.pipeline.processor.copies import Copier
from lapse.pipeline.processor.forwarding import Forwarder
from lapse.pipeline.processor.log_time import LogTime
from lapse.pipeline.processor.metrics import EngineNumbers, Metrics
from lapse.pipeline.processor.originals import Copied
from lapse.pipeline.processor.outlet import DELIVERY_DEADLINE_S, Outlet, acknowledged
from lapse.pipeline.processor.pace import CheckpointPace
from lapse.pipeline.processor.publishing import Publisher
from lapse.pipeline.processor.reading import holds_records, read_range
from lapse.pipeline.processor.restore import Restored
from lapse.pipeline.processor.ticks import Ticker
from lapse.pipeline.processor.trimming import Trimmer
from lapse.pipeline.processor.turns import Turns
from lapse.pipeline.settings import Settings
from lapse.schemas import InvariantError, RuntimeFault, TopicNames, catalogue

__all__ = ["OwnedPartition", "WorkerParts"]

_log = structlog.get_logger("lapse.processor")

# Batches that wait to be applied; then Faust's agent waits, and Faust stops fetching. A batch has at most the 20,000
# records of a poll; two keep the partition busy while the next is fetched.
_INBOX_BATCHES: Final = 2

# What an outlet was given stands or has failed after DELIVERY_DEADLINE_S; a forwarded record may wait for a tick first,
# which is given as long. Beyond both, something waits that nothing will complete.
_EFFECTS_DEADLINE_S: Final = 2 * DELIVERY_DEADLINE_S

# If nothing comes for so long before the partition has caught up, what is left may be only markers of transactions.
_QUIET_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What all partitions of a worker share."""

    settings: Settings
    worker_key: bytes = field(repr=False)
    topics: TopicNames
    effects: Outlet
    control: Outlet
    health: AppendHealth
    copier: Copier
    metrics: Metrics
    pace: CheckpointPace
    reach: Callable[[str], None]
    turns: Turns = field(default_factory=Turns)


class OwnedPartition:
    """One partition of this worker, between restore and revocation."""

    def __init__(
        self,
        number: int,
        restored: Restored,
        parts: WorkerParts,
        *,
        fault: Callable[[BaseException], None],
        lost: Callable[[int], None],
    ) -> None:
        self.number = number
        self._engine = restored.engine
        self._restored = restored
        self._writer = restored.writer
        self._parts = parts
        self._fault = fault
        self._lost = lost
        self._lock = asyncio.Lock()
        self._checkpointing = asyncio.Lock()
        self._writing = asyncio.Lock()
        # Whether a batch or a checkpoint was left in the middle: then only a restore brings a whole state back.
        self._torn = False
        self._inbox: asyncio.Queue[Sequence[ConsumerRecord]] = asyncio.Queue(_INBOX_BATCHES)
        self._refuses = False
        self._moved = asyncio.Event()
        self._bounds = BoundsAlarm(restored.engine.settings)
        self._saved: tuple[int, Copied | None] = (restored.engine.offset, restored.revocations)
        self._claimed = restored.claimed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        log_time = LogTime(self._disciplined, lambda: restored.engine.clock_offset_ms)
        specs = catalogue(
            parts.topics,
            partitions=parts.settings.partitions,
            replication=1,  # of no concern here
            session_life_max_ms=parts.settings.session_life_max_ms,
        )
        self._trimmer = Trimmer(parts.settings, number, specs, restored.marks)
        self._publisher = Publisher(parts.topics, number, parts.effects, parts.metrics)
        self._forwarder = Forwarder(parts.topics, parts.effects, log_time, parts.worker_key)
        self._ticker = Ticker(
            topics=parts.topics,
            partition=number,
            owner=parts.settings.worker,
            worker_key=parts.worker_key,
            outlet=parts.control,
            log_time=log_time,
            health=parts.health,
            due_at=restored.engine.next_due_at,
            applied=lambda: restored.engine.next_offset,
        )

    @property
    def next_offset(self) -> int:
        """The next input offset to read. Also while records wait for the clock to decide, it moves on."""
        return self._engine.next_offset

    @property
    def numbers(self) -> EngineNumbers:
        """What its engine can tell whoever asks; safe to ask from another thread."""
        engine = self._engine
        return EngineNumbers(engine.live_sessions, engine.waiting, engine.clock_offset_ms, dict(engine.counters))

    def start(self) -> None:
        """Begin to apply, copy, tick, forward and checkpoint."""
        self._parts.copier.own(self.number, self._restored.revocations)
        self._parts.pace.begin(self.number, self._engine.live_sessions)
        self._spawn("apply", self._apply_all())
        self._spawn("forward", self._forwarder.run())
        self._spawn("tick", self._tick_all())
        self._spawn("checkpoint", self._checkpoint_all())
        self._spawn(
            "trim",
            self._trimmer.run(self._parts.topics.activity, lambda: self._engine.clock.time, lambda: self._saved[0]),
        )

    async def offer(self, records: Sequence[ConsumerRecord]) -> None:
        """Take a batch over, in log order. Waits while enough batches do; afterwards it is the next owner's."""
        if not self._refuses:
            await self._inbox.put(records)

    async def close(self, *, checkpoint: bool, deadline_s: float) -> bool:
        """End the ownership, with a last checkpoint where that is wanted and comes through in time.

        Without it nothing is lost: the next owner applies again what lies after the checkpoint before.

        Returns:
            Whether there was no other owner yet, as it must be.

        Raises:
            RuntimeFault: the last checkpoint failed.
        """
        try:
            async with asyncio.timeout(deadline_s), self._checkpointing:
                async with self._lock:
                    self._cancel("apply", "checkpoint")  # ticks go on: what is to be forwarded may wait for one
                if checkpoint:
                    await self._checkpoint(deadline_s)
        except TimeoutError:
            _log.warning("closed without a last checkpoint", partition=self.number, waited_s=deadline_s)
        except Fenced:
            _log.warning("closed; another owner has begun", partition=self.number)
            return False
        finally:
            self._parts.pace.gave_up(self.number)
            self._parts.copier.disown(self.number)
            self._end_tasks()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await self._writer.stop()
        return True

    def fall_silent(self) -> None:
        """Write nothing more: another owner has begun."""
        self._parts.copier.disown(self.number)
        self._end_tasks()

    async def _apply_all(self) -> None:
        while True:
            records = await self._inbox.get()
            async with self._lock:
                with self._whole_or_torn():
                    await self._apply(records)

    async def _apply(self, records: Sequence[ConsumerRecord]) -> None:
        engine = self._engine
        if records[0].offset > engine.next_offset:
            missing = await self._missing(records[0].offset)
            records = [*missing, *records]
        async with self._parts.turns.taken() as leave:
            effects = engine.apply(records)  # 1
            if effects.endings:
                self._parts.reach(failpoints.BEFORE_PUBLISH)
            await self._publisher.publish(effects, first_out=leave)  # 2
        self._moved.set()  # before a forwarded record may have to wait for a tick, which catching up then asks for
        for forward in effects.forwards:
            self._publisher.depends_on(await self._forwarder.forward(forward))
        for alarm in effects.alarms:
            _log.warning(
                "the broker's clock was set, and log time goes on without it",
                partition=self.number,
                kind=alarm.kind,
                moved_ms=alarm.moved_ms,
                offset_ms=alarm.offset_ms,
                log_time=alarm.at,
            )
            self._parts.metrics.clock_stepped(alarm)
        await self._publisher.watermark(engine.watermark(), engine.clock_offset_ms)
        self._parts.metrics.applied(len(records))
        self._bounds.look(engine.counters, clocks.mono_ms())
        self._ticker.engine_moved()

    def _disciplined(self, mono_ms: float) -> float | None:
        # A tick says whole milliseconds, cut off.
        return self._engine.time_at(self._ticker.epoch, int(mono_ms))

    async def _missing(self, stop: int) -> list[ConsumerRecord]:
        """Return what lies between the engine and the batch in hand, which Faust has not brought."""
        start = self._engine.next_offset
        first = self._restored.fresh and start == 0
        tp = TopicPartition(self._parts.topics.activity, self.number)
        name = f"{self._parts.settings.group}-missing"
        found = await read_range(self._parts.settings.kafka, name, tp, start, stop, deleted_is_fault=not first)
        _log.info("read back", partition=self.number, start=start, stop=stop, records=len(found))
        return found

    async def _tick_all(self) -> None:
        await self._catch_up(or_wanted=True)
        if self._engine.next_offset < self._restored.caught_up_at:
            # A forwarded record waits for an estimate of log time.
            await self._take_epoch()
            ticking = asyncio.create_task(self._ticker.run())
            try:
                await self._catch_up(or_wanted=False)
            finally:
                ticking.cancel()
                await asyncio.gather(ticking, return_exceptions=True)
        await self._take_epoch()
        await self._ticker.run()

    async def _take_epoch(self) -> None:
        """Claim the next epoch, under the fence, before any tick says it: see ticks.py.

        Raises:
            Fenced: another owner has begun.
            RuntimeFault: the claim did not come through.
        """
        async with self._writing:
            self._claimed = max(self._claimed, self._engine.epoch) + 1
            offset, revocations = self._saved
            claim = Checkpoint(offset, [(EPOCH_KEY, b"%d" % self._claimed)])
            with self._whole_or_torn():
                await self._writer.write(claim, revocations, CHECKPOINT_DEADLINE_S)
        self._ticker.take_epoch(self._claimed)

    async def _catch_up(self, *, or_wanted: bool) -> None:
        """Wait until all is applied that stood in the log when the predecessor was fenced."""
        tp = TopicPartition(self._parts.topics.activity, self.number)
        name = f"{self._parts.settings.group}-missing"
        end = self._restored.caught_up_at
        while self._engine.next_offset < end and not (or_wanted and self._forwarder.waiting):
            self._moved.clear()
            try:
                async with asyncio.timeout(_QUIET_S):
                    await self._moved.wait()
            except TimeoutError:
                start = self._engine.next_offset
                left = await holds_records(self._parts.settings.kafka, name, tp, start, end)
                if not left and self._engine.next_offset == start:
                    return

    async def _checkpoint_all(self) -> None:
        interval_s = self._parts.pace.interval_s
        # Staggered: each partition has its own moment of the interval, so that one checkpoint is written at a time.
        await asyncio.sleep(
            interval_s * (self.number % self._parts.settings.partitions + 1) / self._parts.settings.partitions
        )
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            async with self._checkpointing:
                await self._checkpoint(CHECKPOINT_DEADLINE_S)
            interval_s = self._parts.pace.interval_s
            await asyncio.sleep(max(interval_s / 2, began + interval_s - loop.time()))

    async def _checkpoint(self, deadline_s: float) -> None:
        """Make the state durable, if it has changed and is not torn. Called with `_checkpointing` held.

        Raises:
            Fenced: another owner has begun.
            RuntimeFault: an effect or the checkpoint did not come through.
        """
        began_ms = clocks.mono_ms()
        async with self._lock:
            if self._torn or self._saved == (self._engine.offset, self._parts.copier.copied(self.number)):
                return
            cut_ms = clocks.mono_ms()
            checkpoint = self._engine.cut()  # 3
            self._parts.pace.cut(self.number, (clocks.mono_ms() - cut_ms) / 1000)
            checkpoint = replace(checkpoint, records=[*self._trimmer.take_changed(), *checkpoint.records])
            revocations = self._parts.copier.copied(self.number)
            unacknowledged = self._publisher.take_unacknowledged()
        if checkpoint.offset < self._saved[0]:
            raise InvariantError(
                f"partition {self.number} went back from offset {self._saved[0]} to {checkpoint.offset}"
            )
        with self._whole_or_torn():
            try:
                async with asyncio.timeout(_EFFECTS_DEADLINE_S):
                    await acknowledged(unacknowledged)  # 3
            except TimeoutError:
                raise RuntimeFault(
                    f"partition {self.number}: a checkpoint at offset {checkpoint.offset} has waited "
                    f"{_EFFECTS_DEADLINE_S:.0f} s for its effects to stand in their logs. Start the worker again"
                ) from None
            self._parts.reach(failpoints.AFTER_ACK_BEFORE_COMMIT)
            async with self._writing:
                await self._writer.write(checkpoint, revocations, deadline_s)  # 4
                self._saved = (checkpoint.offset, revocations)
        self._parts.metrics.checkpointed((clocks.mono_ms() - began_ms) / 1000, len(checkpoint.records))

    @contextmanager
    def _whole_or_torn(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._torn = True
            raise

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"lapse-{self.number}-{name}")
        task.add_done_callback(self._ended)
        self._tasks[name] = task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Fenced):
            self._lost(self.number)
        else:
            self._fault(error or InvariantError(f"{task.get_name()} ended by itself"))

    def _end_tasks(self) -> None:
        self._cancel(*self._tasks)
        # Nobody applies any more: whoever waits to hand over a batch must not wait for ever.
        self._refuses = True
        while not self._inbox.empty():
            self._inbox.get_nowait()

    def _cancel(self, *names: str) -> None:
        for name in names:
            if (task := self._tasks.get(name)) is not None:
                task.cancel()
