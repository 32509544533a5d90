"""What does a worker do with the partitions it owns? Everything about that which is not Faust.

Faust (app.py) tells it four things: `assigned`, `revoked`, `process` with a batch of records, `stop`. The order of
effects of each partition, with the numbers that the code and docs/guarantees.md use:

1. Parse the whole batch, then apply it to the engine: synchronous, so nothing is half applied.
2. Hand its endings, warnings, violations, dead letters and forwarded records to the idempotent producer, in log order;
   then a watermark, if it is time.
3. At a checkpoint: cut, synchronously, the changed state as of one exact input offset; then wait until every effect of
   the records below that offset stands in its log.
4. In one transaction, fenced by the transactional id of the partition: the changed state, the marker, and the positions
   in the input topics.

So a crash
- after 1 or 2 loses nothing that is saved: input is applied again from the last checkpoint, and what had been published
  comes out again with the same ids and fields;
- in 3 or 4 leaves the checkpoint before, for a transaction is there whole or not at all;
- after 4 repeats only what lies after the checkpoint.

Whatever fails is a `RuntimeFault` or worse: nothing is committed any more, and the worker stops, to start again from
its last checkpoints. A partition whose writer was fenced has another owner: it falls silent, and if the group does
not take it away soon (then nobody else has it: the broker's clock may have let a transaction expire) the worker stops
as well.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog
from aiokafka import ConsumerRecord, TopicPartition

from lapse.pipeline.processor import failpoints, watchdog
from lapse.pipeline.processor.append_health import AppendHealth
from lapse.pipeline.processor.copies import Copier
from lapse.pipeline.processor.metrics import EngineNumbers, Metrics
from lapse.pipeline.processor.originals import not_the_log
from lapse.pipeline.processor.outlet import Outlet
from lapse.pipeline.processor.pace import CheckpointPace
from lapse.pipeline.processor.partition import OwnedPartition, WorkerParts
from lapse.pipeline.processor.restore import restore
from lapse.pipeline.settings import Settings
from lapse.schemas import LapseError, RuntimeFault, TopicNames

__all__ = ["Core"]

_log = structlog.get_logger("lapse.processor")

# The group waits for us while we write the last checkpoints, at most until the rebalance timeout (60 s); commits take
# below 0.2 s (measured), or some 12 s while a coordinator is replaced.
_LAST_CHECKPOINT_S: Final = 15.0
# A revocation follows a fence within the session timeout (6 s) and a rebalance; this is several of both.
_LOST_FOR_S: Final = 30.0
# Two workers of one name are one member of the group, and the client joins again whenever it is thrown out: they take
# the partitions from each other twice a second (seen). A worker that was frozen is fenced once. The one that has enough
# first ends, and the other works on.
_TWINS_FENCES: Final = 3
_TWINS_S: Final = 30.0


class _Slot:
    """A partition's place: assigned, perhaps not restored yet, perhaps already gone."""

    def __init__(self) -> None:
        self.settled = asyncio.Event()
        self.partition: OwnedPartition | None = None


class Core:
    """One worker's partitions."""

    def __init__(self, settings: Settings, *, crash: Callable[[BaseException], None]) -> None:
        """Args: crash: told, once, of the error that must end the worker."""
        self.metrics = Metrics()
        self.fault: BaseException | None = None
        self._settings = settings
        self._crash = crash
        self._slots: dict[int, _Slot] = {}
        self._restoring: asyncio.Task[None] | None = None
        self._fences: list[float] = []
        self._fenced = False
        self._watching: set[asyncio.Task[None]] = set()
        key = settings.worker_key
        health = AppendHealth()
        control = Outlet(settings.kafka, f"{settings.worker}-control", self._fail, health)
        copier = Copier(settings, key, control, self.metrics)
        self._parts = WorkerParts(
            settings=settings,
            worker_key=key,
            topics=TopicNames(settings.prefix),
            effects=Outlet(settings.kafka, f"{settings.worker}-effects", self._fail),
            control=control,
            health=health,
            copier=copier,
            metrics=self.metrics,
            pace=CheckpointPace(settings.checkpoint_interval_ms / 1000),
            reach=failpoints.arm(os.environ.get(failpoints.VARIABLE)),
        )
        self.metrics.watch_engines(self._engine_numbers)

    async def start(self) -> None:
        """Connect.

        Raises:
            RuntimeFault: no broker answers.
        """
        await self._parts.effects.start()
        await self._parts.control.start()
        self._watch(self._parts.copier.run(), "lapse-copies")
        watching = watchdog.watch(
            self._settings.kafka,
            f"{self._settings.worker}-watchdog",
            self._positions,
            partial(not_the_log, self._settings),
            compacted=[self._parts.topics.policies],
        )
        self._watch(watching, "lapse-watchdog")

    async def assigned(self, partitions: Iterable[int]) -> None:
        """Own exactly these partitions. Returns at once: those that are new are restored meanwhile."""
        wanted = set(partitions)
        self._fenced = False
        await self._give_up(set(self._slots) - wanted)
        new = {number: _Slot() for number in sorted(wanted - set(self._slots))}
        self._slots |= new
        if new:
            _log.info("assigned", partitions=list(new))
            self._restoring = self._watch(self._restore(new, self._restoring), "lapse-restore")

    async def revoked(self) -> None:
        """Own nothing: write the last checkpoints, then let go."""
        await self._give_up(set(self._slots))

    async def process(self, partition: int, records: Sequence[ConsumerRecord]) -> None:
        """Take a batch of a partition; wait for its restore. What is not owned is left to its owner."""
        slot = self._slots.get(partition)
        if slot is None or not records:
            return
        await slot.settled.wait()
        if slot.partition is not None:
            await slot.partition.offer(records)

    async def stop(self) -> None:
        """Write the last checkpoints unless something has failed, and disconnect."""
        await self._give_up(set(self._slots))
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(self._parts.effects.stop(), self._parts.control.stop())

    async def _restore(self, slots: dict[int, _Slot], after: "asyncio.Task[None] | None") -> None:
        if after is not None:
            await asyncio.wait([after])
        restored = await restore(self._settings, self._parts.worker_key, slots, self._parts.reach)
        for number, one in restored.items():
            slot = slots[number]
            # It may have been given up meanwhile, and even be owned anew: then another restore brings its state.
            if self._slots.get(number) is not slot or self.fault is not None:
                await one.writer.stop()
                continue
            slot.partition = OwnedPartition(number, one, self._parts, fault=self._fail, lost=self._lost)
            slot.partition.start()
            slot.settled.set()
        self._count_owned()

    async def _give_up(self, numbers: set[int]) -> None:
        if not numbers:
            return
        slots = {number: self._slots.pop(number) for number in numbers}
        if self._restoring is not None and not all(slot.settled.is_set() for slot in slots.values()):
            # The engines of one restore are built together: what it was to bring besides is given up as well, and
            # restored anew where it is still wanted.
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)
            unsettled = [number for number, slot in self._slots.items() if not slot.settled.is_set()]
            slots |= {number: self._slots.pop(number) for number in unsettled}
        for slot in slots.values():
            slot.settled.set()
        owned = [slot.partition for slot in slots.values() if slot.partition is not None]
        sound = self.fault is None
        closing = (one.close(checkpoint=sound, deadline_s=_LAST_CHECKPOINT_S) for one in owned)
        results = await asyncio.gather(*closing, return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                self._fail(error)
        if False in results:
            self._note_fence()
        self._count_owned()
        _log.info("given up", partitions=sorted(numbers))

    def _lost(self, number: int) -> None:
        slot = self._slots.get(number)
        if slot is None or slot.partition is None:
            return
        _log.warning("fenced: another worker owns the partition", partition=number)
        slot.partition.fall_silent()
        self._note_fence()
        self._watch(self._await_revocation(number, slot), f"lapse-{number}-lost")

    def _note_fence(self) -> None:
        """Notice that this worker and another take the partitions from each other in turn."""
        if self._fenced:
            return
        self._fenced = True
        now = asyncio.get_running_loop().time()
        self._fences = [at for at in self._fences if now - at < _TWINS_S] + [now]
        if len(self._fences) >= _TWINS_FENCES:
            self._fail(
                RuntimeFault(
                    f"fenced {_TWINS_FENCES} times in {_TWINS_S:.0f} s: another worker runs as LAPSE_WORKER="
                    f"{self._settings.worker!r}. Give each worker a name of its own"
                )
            )

    async def _await_revocation(self, number: int, slot: _Slot) -> None:
        await asyncio.sleep(_LOST_FOR_S)
        if self._slots.get(number) is slot:
            raise RuntimeFault(
                f"partition {number} was fenced, and the group has not taken it away in {_LOST_FOR_S:.0f} s"
            )

    def _watch(self, work: "Coroutine[Any, Any, None]", name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._watching.add(task)
        task.add_done_callback(self._watched)
        return task

    def _watched(self, task: "asyncio.Task[None]") -> None:
        self._watching.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.fault is not None:
            return
        self.fault = error
        if isinstance(error, LapseError):
            _log.error("stopping; nothing more is committed", reason=str(error))
        else:
            _log.error("stopping; nothing more is committed", reason=repr(error), exc_info=error)
        self._crash(error)

    def _count_owned(self) -> None:
        self.metrics.owned(sum(slot.partition is not None for slot in self._slots.values()))

    def _offsets(self) -> Mapping[int, int]:
        owned = {number: slot.partition for number, slot in self._slots.items()}
        return {number: one.next_offset for number, one in owned.items() if one is not None}

    def _positions(self) -> Mapping[TopicPartition, int | None]:
        activity = {TopicPartition(self._parts.topics.activity, number): at for number, at in self._offsets().items()}
        return {**activity, **self._parts.copier.positions()}

    def _engine_numbers(self) -> Mapping[int, EngineNumbers]:
        owned = {number: slot.partition for number, slot in list(self._slots.items())}
        return {number: one.numbers for number, one in owned.items() if one is not None}
