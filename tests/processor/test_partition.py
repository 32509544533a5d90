"""Goal: no checkpoint forgets what a batch brought about and did not hand over.

Method: one owned partition with a real engine; in place of the broker an outlet that the test holds up and breaks, and
a writer that keeps what it is given. A rebalance asks for the last checkpoint at the worst moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, cast

import orjson
import pytest
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata, TopicPartition

from lapse.pipeline.engine import Checkpoint, PartitionEngine
from lapse.pipeline.engine.snapshot import MARKER_KEY
from lapse.pipeline.processor import partition as partition_module
from lapse.pipeline.processor.append_health import AppendHealth
from lapse.pipeline.processor.checkpoints import StateWriter
from lapse.pipeline.processor.copies import Copier
from lapse.pipeline.processor.metrics import Metrics
from lapse.pipeline.processor.originals import Copied
from lapse.pipeline.processor.outlet import Outlet
from lapse.pipeline.processor.pace import CheckpointPace
from lapse.pipeline.processor.partition import OwnedPartition, WorkerParts
from lapse.pipeline.processor.restore import Restored, engine_settings
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault, TopicNames

KEY = "a key of this test, nothing to hide"
SETTINGS = Settings(kafka="127.0.0.1:1", partitions=1, worker="w-1", worker_key=KEY)


def stored(offset: int) -> RecordMetadata:
    return RecordMetadata("t", 0, TopicPartition("t", 0), offset, 1_000, 1, 0)


class Acknowledgement(asyncio.Future[RecordMetadata]):
    """One that tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = asyncio.Event()

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        self.awaited.set()
        return super().__await__()


class HeldOutlet:
    """Acknowledges everything at once, but takes endings and acknowledges them only when it is let, or told to fail."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stands = Acknowledgement()
        self.sent: list[tuple[int, bytes]] = []
        self._offset = 0

    async def send(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None
    ) -> asyncio.Future[RecordMetadata]:
        self.sent.append((partition, value))
        if b'"session.ended"' in value:
            self.reached.set()
            await self.taken
            return self.stands
        stands: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        stands.set_result(stored(self._offset))
        self._offset += 1
        return stands

    async def send_many(
        self, topic: str, partition: int, records: Sequence[tuple[bytes, bytes]]
    ) -> list[asyncio.Future[RecordMetadata]]:
        return [await self.send(topic, partition, value, key) for key, value in records]


class KeptWriter:
    """Keeps the checkpoints that would have become durable."""

    def __init__(self) -> None:
        self.written: list[Checkpoint] = []

    async def write(self, checkpoint: Checkpoint, revocations: Copied | None, deadline_s: float) -> None:
        if checkpoint.records[-1][0] == MARKER_KEY:  # else it claims an epoch
            self.written.append(checkpoint)

    async def stop(self) -> None:
        pass


def record(offset: int, **value: Any) -> ConsumerRecord:
    encoded = orjson.dumps({"session": "s-1", "subject": "u", "service": "web", "age_ms": 0, **value})
    return ConsumerRecord("t", 0, offset, 1_000 + offset, 1, None, encoded, None, 0, 0, ())


LOGIN_AND_LOGOUT = [record(0, type="session.started"), record(1, type="session.closed")]


def owned(
    outlet: HeldOutlet,
    writer: KeptWriter,
    faults: list[BaseException],
    interval_ms: int = 60_000,
    *,
    partitions: int = 1,
    caught_up_at: int = 0,
) -> OwnedPartition:
    key, control = KEY.encode(), cast(Outlet, outlet)
    settings = SETTINGS.model_copy(update={"checkpoint_interval_ms": interval_ms, "partitions": partitions})
    engine = PartitionEngine(engine_settings(settings, key, 0))
    metrics = Metrics()
    parts = WorkerParts(
        settings=settings,
        worker_key=key,
        topics=TopicNames(SETTINGS.prefix),
        effects=control,
        control=control,
        health=AppendHealth(),
        copier=Copier(SETTINGS, key, control, metrics),
        metrics=metrics,
        reach=lambda _: None,
        pace=CheckpointPace(interval_ms / 1000),
    )
    restored = Restored(engine, cast(StateWriter, writer), caught_up_at, True, None)
    return OwnedPartition(0, restored, parts, fault=faults.append, lost=lambda _: None)


async def test_a_checkpoint_waits_until_the_effects_of_a_batch_stand_in_the_log() -> None:
    outlet, writer, faults = HeldOutlet(), KeptWriter(), list[BaseException]()
    partition = owned(outlet, writer, faults)
    partition.start()
    await partition.offer(LOGIN_AND_LOGOUT)
    await outlet.reached.wait()
    closing = asyncio.create_task(partition.close(checkpoint=True, deadline_s=10))
    outlet.taken.set_result(None)
    await outlet.stands.awaited.wait()
    assert writer.written == []
    assert not closing.done()
    outlet.stands.set_result(stored(9))
    assert await closing
    assert [one.offset for one in writer.written] == [2]
    assert faults == []


async def test_no_checkpoint_follows_a_batch_whose_effects_could_not_be_handed_over() -> None:
    """Not even one that waits for the end of that batch already: its state has forgotten an ending that is not out."""
    outlet, writer, faults = HeldOutlet(), KeptWriter(), list[BaseException]()
    partition = owned(outlet, writer, faults)
    partition.start()
    await partition.offer(LOGIN_AND_LOGOUT)
    await outlet.reached.wait()
    closing = asyncio.create_task(partition.close(checkpoint=True, deadline_s=10))
    await asyncio.sleep(0)
    outlet.taken.set_exception(RuntimeFault("the producer has failed"))
    assert await closing
    assert writer.written == []
    assert [str(fault) for fault in faults] == ["the producer has failed"]


async def test_no_checkpoint_follows_one_whose_effects_were_not_acknowledged() -> None:
    """Not even the last one, which waits for it: what the failed one cut is not marked as changed any more."""
    outlet, writer, faults = HeldOutlet(), KeptWriter(), list[BaseException]()
    partition = owned(outlet, writer, faults, interval_ms=100)
    partition.start()
    outlet.taken.set_result(None)
    await partition.offer(LOGIN_AND_LOGOUT)
    await outlet.reached.wait()
    await outlet.stands.awaited.wait()  # the checkpoint of the interval has cut
    closing = asyncio.create_task(partition.close(checkpoint=True, deadline_s=10))
    await asyncio.sleep(0)
    outlet.stands.set_exception(KafkaError("the producer has failed"))
    assert await closing
    assert writer.written == []
    assert len(faults) == 1
    assert isinstance(faults[0], RuntimeFault)


async def test_a_checkpoint_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an acknowledgement lost that nothing else watches over, no ending would come any more, and nobody know."""
    monkeypatch.setattr(partition_module, "_EFFECTS_DEADLINE_S", 0.1)
    outlet, writer, faults = HeldOutlet(), KeptWriter(), list[BaseException]()
    partition = owned(outlet, writer, faults, interval_ms=100)
    partition.start()
    outlet.taken.set_result(None)
    await partition.offer(LOGIN_AND_LOGOUT)
    async with asyncio.timeout(10):
        while not faults:  # noqa: ASYNC110  # a list, which tells nobody
            await asyncio.sleep(0.01)
    assert "offset 2 has waited" in str(faults[0])
    assert isinstance(faults[0], RuntimeFault)
    assert await partition.close(checkpoint=True, deadline_s=10)
    assert writer.written == []
