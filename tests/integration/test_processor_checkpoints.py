"""Goal: a checkpoint is there whole or not at all, only the partition's owner can write one, and none is ever guessed.

Method: the writers and the restore of the processor on a real broker, without Faust around them; two owners of one
partition, one after the other, as after a stall. Then workers, as processes, that must refuse to begin.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import OffsetAndMetadata

from lapse.pipeline.engine import Checkpoint
from lapse.pipeline.processor.checkpoints import COPIED_KEY, Fenced, StateWriter, transactional_id
from lapse.pipeline.processor.originals import Copied
from lapse.pipeline.processor.reading import committed_offsets, read_to_end
from lapse.pipeline.processor.restore import restore
from lapse.pipeline.settings import Settings
from lapse.schemas import Policy, RuntimeFault, TopicNames

from tests.processor.support import WorkerProcess, prepare, producing, read_all, send

pytestmark = pytest.mark.broker


def checkpoint(offset: int, **values: bytes) -> Checkpoint:
    return Checkpoint(offset, [*((key.encode(), value) for key, value in values.items()), (b"m", b"%d" % offset)])


async def state_of(settings: Settings, partition: int) -> dict[bytes | None, bytes | None]:
    topic = TopicNames(settings.prefix).state
    kept: dict[bytes | None, bytes | None] = {}
    async for _, records in read_to_end(settings.kafka, "test", topic, [partition]):
        kept |= {record.key: record.value for record in records if record.key != COPIED_KEY}
    return kept


async def positions_of(settings: Settings, partition: int) -> tuple[int | None, Copied | None]:
    topics = TopicNames(settings.prefix)
    tps = [TopicPartition(topics.activity, partition), TopicPartition(topics.revocations, partition)]
    found = await committed_offsets(settings.kafka, settings.group, tps)
    activity = found.get(tps[0])
    return None if activity is None else activity.offset, Copied.committed(found.get(tps[1]))


async def test_a_checkpoint_holds_state_marker_and_positions(settings: Settings) -> None:
    await prepare(settings)
    writer = StateWriter(settings.kafka, TopicNames(settings.prefix), settings.group, 1)
    await writer.fence()
    try:
        await writer.write(checkpoint(7, a=b"1", b=b"2"), Copied(3, 1_800_000_000_000), 30)
        await writer.write(checkpoint(9, b=b"3"), None, 30)
    finally:
        await writer.stop()
    assert await state_of(settings, 1) == {b"a": b"1", b"b": b"3", b"m": b"9"}
    assert await positions_of(settings, 1) == (9, Copied(3, 1_800_000_000_000))


async def test_a_checkpoint_larger_than_a_batch_is_one_transaction(settings: Settings) -> None:
    await prepare(settings)
    writer = StateWriter(settings.kafka, TopicNames(settings.prefix), settings.group, 0)
    await writer.fence()
    values: list[tuple[bytes, bytes | None]] = [(b"%d" % number, b"x" * 4_000_000) for number in range(3)]
    large = Checkpoint(5, [*values, (b"m", b"5")])
    try:
        await writer.write(large, Copied(0), 30)
    finally:
        await writer.stop()
    assert (await state_of(settings, 0)).keys() == {b"0", b"1", b"2", b"m"}


async def test_a_new_owner_fences_the_one_before_which_writes_no_more(settings: Settings) -> None:
    await prepare(settings)
    topics = TopicNames(settings.prefix)
    former = StateWriter(settings.kafka, topics, settings.group, 2)
    await former.fence()
    await former.write(checkpoint(1, a=b"former"), Copied(0), 30)
    owner = StateWriter(settings.kafka, topics, settings.group, 2)
    await owner.fence()
    try:
        await owner.write(checkpoint(2, a=b"owner"), Copied(0), 30)
        for _ in range(2):
            with pytest.raises(Fenced):
                await former.write(checkpoint(9, a=b"former, woken"), Copied(9), 30)
        await owner.write(checkpoint(3, b=b"owner"), Copied(0), 30)
    finally:
        await former.stop()
        await owner.stop()
    assert await state_of(settings, 2) == {b"a": b"owner", b"b": b"owner", b"m": b"3"}
    assert await positions_of(settings, 2) == (3, Copied(0))


async def test_what_a_dead_owner_left_open_is_never_read(settings: Settings) -> None:
    """A transaction without an end, as a kill -9 leaves it, hides what comes after it until its successor's start."""
    await prepare(settings)
    topics = TopicNames(settings.prefix)
    dead = AIOKafkaProducer(
        bootstrap_servers=settings.kafka, transactional_id=transactional_id(settings.group, 3), max_batch_size=1_000
    )
    await dead.start()
    await dead.begin_transaction()
    await dead.send_and_wait(topics.state, b"half", b"a", partition=3)
    owner = StateWriter(settings.kafka, topics, settings.group, 3)
    await owner.fence()
    try:
        assert await state_of(settings, 3) == {}
        await owner.write(checkpoint(4, b=b"whole"), Copied(0), 30)
        assert await state_of(settings, 3) == {b"b": b"whole", b"m": b"4"}
    finally:
        await owner.stop()
        await dead.stop()


async def test_restore_brings_back_what_was_cut(settings: Settings) -> None:
    await prepare(settings)
    topics = TopicNames(settings.prefix)
    async with producing(settings) as producer:
        for number in range(40):
            started = {"type": "session.started", "session": f"s-{number}", "subject": f"u-{number}", "service": "web"}
            await send(producer, settings, {**started, "age_ms": 0})
    partitions = range(settings.partitions)
    first = await restore(settings, settings.worker_key, partitions)
    for number, one in first.items():
        assert one.fresh
        assert one.revocations is None
        one.engine.apply(await read_all(settings, topics.activity, [number]))
        assert one.engine.offset == one.caught_up_at
        await one.writer.write(one.engine.cut(), Copied(0), 30)
        await one.writer.stop()
    again = await restore(settings, settings.worker_key, partitions)
    for number, one in again.items():
        assert not one.fresh
        assert one.revocations == Copied(0)
        assert one.engine.offset == first[number].engine.offset
        assert one.engine.stamp == first[number].engine.stamp
        assert one.engine.live_sessions == first[number].engine.live_sessions
        assert one.engine.next_due_at() == first[number].engine.next_due_at()
        await one.writer.stop()
    assert sum(one.engine.live_sessions for one in again.values()) == 40


async def test_a_lost_state_is_not_taken_for_no_sessions(settings: Settings) -> None:
    await prepare(settings)
    topics = TopicNames(settings.prefix)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    await admin.start()
    try:
        await commit(settings, {TopicPartition(topics.activity, 1): 5})
        with pytest.raises(RuntimeFault, match=r"state-1 holds no checkpoint, .* committed offset 5"):
            await restore(settings, settings.worker_key, [0, 1])
    finally:
        await admin.close()


async def position_beyond(settings: Settings, reached: int) -> int:
    """Return the committed position in partition 0 of activity once it is beyond this one."""
    async with asyncio.timeout(60):
        while True:
            position = (await positions_of(settings, 0))[0] or 0
            if position > reached:
                return position


async def commit(settings: Settings, offsets: dict[TopicPartition, int]) -> None:
    """Commit as an owner would, but without state."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, transactional_id=f"{settings.prefix}test")
    await producer.start()
    try:
        await producer.begin_transaction()
        positions = {tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        await producer.send_offsets_to_transaction(positions, settings.group)
        await producer.commit_transaction()
    finally:
        await producer.stop()


async def test_a_worker_halts_where_the_log_was_deleted_before_it_was_applied(
    settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"checkpoint_interval_ms": 200})
    await prepare(settings, Policy(name="default"))
    topics = TopicNames(settings.prefix)
    worker = WorkerProcess(settings, tmp_path / "worker.log")
    try:
        worker.start()
        await worker.restored()
        await position_beyond(settings, 0)
        worker.kill()
        async with producing(settings) as producer:
            for _ in range(10):
                await producer.send_and_wait(topics.activity, orjson.dumps({}), partition=0)
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
        await admin.start()
        # Up to the end: the records after the checkpoint are gone, as retention would have it.
        await admin.delete_records({TopicPartition(topics.activity, 0): RecordsToDelete(before_offset=-1)})
        await admin.close()
        async with producing(settings) as producer:
            await producer.send_and_wait(topics.activity, orjson.dumps({}), partition=0)
        worker.start()
        assert await worker.wait() == 1, worker.log
        assert "the log was deleted before it was applied" in worker.log
    finally:
        worker.end()


async def test_a_worker_refuses_to_start_on_wrong_topics(settings: Settings, tmp_path: Path) -> None:
    await prepare(settings)
    worker = WorkerProcess(settings, tmp_path / "worker.log", partitions=settings.partitions + 1)
    try:
        worker.start()
        assert await worker.wait() == 1
        assert f"{settings.prefix}activity has partitions {settings.partitions}, expected" in worker.log
        assert "started" not in worker.log
    finally:
        worker.end()


async def test_checkpoints_do_not_wait_for_a_silent_log(settings: Settings, tmp_path: Path) -> None:
    """Ticks alone move the positions on."""
    settings = settings.model_copy(update={"checkpoint_interval_ms": 200})
    await prepare(settings)
    worker = WorkerProcess(settings, tmp_path / "worker.log")
    try:
        worker.start()
        await worker.restored()
        reached = 0
        for _ in range(3):
            reached = await position_beyond(settings, reached)
        assert await worker.stop() == 0
    finally:
        worker.end()
