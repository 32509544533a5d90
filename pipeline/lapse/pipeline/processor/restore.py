"""How does a new owner come to the state that the last one left?

In this order, for all newly assigned partitions together:

1. fence: start each partition's transactional producer (checkpoints.py). What the predecessor had open is aborted, and
   it can write no more; only so is the end of `lapse.state`, read next, the end of what was ever saved.
2. note where the input ends now. Whatever a predecessor ticked stands below; see ticks.py for the epoch.
3. read `lapse.state`, committed records only, up to its end. Of each key the last value counts.
4. build the engines; input goes on from each marker's offset.
5. check that the input is still the log that the state is of, and holds what comes next;
6. and that revocations and policies are still those that were copied into it (originals.py).

A partition without a marker is a new one only if the group has never committed anything for it. If it has, the state
was lost (a deleted topic, another prefix): to begin with no sessions would end nobody on time and say nothing, so the
worker halts instead.
"""

import asyncio
import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from aiokafka import OffsetAndMetadata, TopicPartition

from lapse.pipeline.engine import EngineSettings, PartitionEngine
from lapse.pipeline.processor import clocks, failpoints
from lapse.pipeline.processor.checkpoints import COPIED_KEY, EPOCH_KEY, StateWriter
from lapse.pipeline.processor.originals import Copied, check_originals
from lapse.pipeline.processor.reading import check_input, committed_offsets, consuming, read_to_end
from lapse.pipeline.processor.trimming import MARKS_KEY
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault, TopicNames

__all__ = ["Restored", "engine_settings", "restore"]

_log = structlog.get_logger("lapse.processor")


# Records come and go by the thousand and hold no cycles: young collections each 20,000 objects instead of 700.
_GC_YOUNG = 20_000


@dataclass(frozen=True, slots=True)
class Restored:
    """One partition, fenced and read back.

    Attributes:
        engine: as of the last checkpoint.
        writer: its fenced writer.
        caught_up_at: the offset at which the input ended after fencing.
        fresh: whether there was no checkpoint: input begins with what the log still holds.
        revocations: up to where revocations have been copied; None: begin at the start.
        marks: what trimming has saved; None: nothing.
        claimed: the highest epoch that an owner has claimed; -1: none.
    """

    engine: PartitionEngine
    writer: StateWriter
    caught_up_at: int
    fresh: bool
    revocations: Copied | None
    marks: bytes | None = None
    claimed: int = -1


def engine_settings(settings: Settings, worker_key: bytes, partition: int) -> EngineSettings:
    """Return what rules the engine of this partition."""
    return EngineSettings(
        partition=partition,
        partitions=settings.partitions,
        topic=TopicNames(settings.prefix).activity,
        worker_key=worker_key,
        grace_ms=settings.grace_ms,
        gap_ms=settings.gap_ms,
        gap_grace_ms=settings.gap_grace_ms,
        age_max_ms=settings.age_max_ms,
        ended_memory_ms=settings.ended_memory_ms,
        violation_after_ms=settings.violation_after_ms,
        session_life_max_ms=settings.session_life_max_ms,
        sessions_max=settings.sessions_max,
        sessions_per_subject_max=settings.sessions_per_subject_max,
        adopt_unknown=settings.unknown_sessions == "adopt",
    )


async def restore(
    settings: Settings,
    worker_key: bytes,
    partitions: Iterable[int],
    reach: Callable[[str], None] = lambda _: None,
) -> dict[int, Restored]:
    """Fence and read back these partitions. `reach` is told of the failpoint on the way (failpoints.py).

    Raises:
        RuntimeFault: the broker fails, a state is missing that must be there, or the input is not the state's.
    """
    numbers = sorted(partitions)
    topics = TopicNames(settings.prefix)
    began = clocks.mono_ms()
    writers = {number: StateWriter(settings.kafka, topics, settings.group, number, reach) for number in numbers}
    try:
        await asyncio.gather(*(writer.fence() for writer in writers.values()))  # 1
        positions, ends = await asyncio.gather(
            _positions(settings, topics, numbers), _input_ends(settings, topics, numbers)
        )  # 2
        state = await _read_state(settings, topics, numbers)  # 3
        reach(failpoints.MID_RESTORE)
        restored = {}
        for number in numbers:  # 4
            marks = state[number].get(MARKS_KEY)
            saved = Copied.decode(state[number].get(COPIED_KEY))
            claimed = int(state[number].get(EPOCH_KEY) or -1)
            engine, fresh = _build(settings, worker_key, number, state.pop(number), positions, topics)
            revocations = Copied.committed(positions.get(TopicPartition(topics.revocations, number))) or saved
            restored[number] = Restored(engine, writers[number], ends[number], fresh, revocations, marks, claimed)
            await asyncio.sleep(0)  # A large state takes some 100 ms to build; let other partitions' ticks through.
        states = {number: (one.engine.offset, one.engine.applied) for number, one in restored.items() if not one.fresh}
        await check_input(settings.kafka, f"{settings.group}-restore", topics.activity, states)  # 5
        await check_originals(
            settings,
            {number: one.revocations for number, one in restored.items()},
            {number: one.engine.policies for number, one in restored.items()},
        )  # 6
    except BaseException:
        await asyncio.gather(*(writer.stop() for writer in writers.values()))
        raise
    # A million sessions are millions of objects that live long: without this each full collection would walk them all.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG)
    _log.info(
        "restored",
        partitions=numbers,
        sessions=sum(one.engine.live_sessions for one in restored.values()),
        ms=int(clocks.mono_ms() - began),
    )
    return restored


async def _positions(
    settings: Settings, topics: TopicNames, numbers: list[int]
) -> dict[TopicPartition, OffsetAndMetadata]:
    tps = [TopicPartition(topic, number) for topic in (topics.activity, topics.revocations) for number in numbers]
    return await committed_offsets(settings.kafka, settings.group, tps)


async def _input_ends(settings: Settings, topics: TopicNames, numbers: list[int]) -> dict[int, int]:
    tps = [TopicPartition(topics.activity, number) for number in numbers]
    async with consuming(settings.kafka, f"{settings.group}-restore") as consumer:
        ends = await consumer.end_offsets(tps)
    return {tp.partition: end for tp, end in ends.items()}


async def _read_state(
    settings: Settings, topics: TopicNames, numbers: list[int]
) -> dict[int, dict[bytes, bytes | None]]:
    # Keyed, so that memory is bounded by the state and not by its history; a key moves to where it was last written.
    state: dict[int, dict[bytes, bytes | None]] = {number: {} for number in numbers}
    async for number, records in read_to_end(settings.kafka, f"{settings.group}-restore", topics.state, numbers):
        kept = state[number]
        for record in records:
            kept.pop(record.key, None)
            kept[record.key] = record.value
    return state


def _build(
    settings: Settings,
    worker_key: bytes,
    number: int,
    state: dict[bytes, bytes | None],
    positions: dict[TopicPartition, OffsetAndMetadata],
    topics: TopicNames,
) -> tuple[PartitionEngine, bool]:
    rules = engine_settings(settings, worker_key, number)
    engine = PartitionEngine.restore(rules, state.items())
    position = positions.get(TopicPartition(topics.activity, number))
    committed = 0 if position is None else position.offset
    if engine is not None:
        return engine, False
    if committed > 0:
        raise RuntimeFault(
            f"{topics.state}-{number} holds no checkpoint, but group {settings.group} has committed offset {committed} "
            f"of {topics.activity}-{number}: the state was lost, or is another prefix's or group's. Bring the topic "
            "back; or, to begin with what the activity topic still holds, delete the group's offsets"
        )
    return PartitionEngine(rules), True
