"""Goal: a log is read back whole or not at all, and is never taken for another one.

Method: a real broker, whose log has holes where a service's transactions ended; for what no broker does when asked, a
consumer that knows no position.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition

from lapse.pipeline.engine import PartitionEngine
from lapse.pipeline.processor import reading
from lapse.pipeline.processor.reading import check_input, holds_records, read_range, read_to_end
from lapse.pipeline.processor.restore import engine_settings
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault, TopicNames

from tests.processor.support import prepare, read_all, subjects_of

TP = TopicPartition("t", 0)


async def _in_a_transaction(settings: Settings, topic: str, *records: dict[str, Any]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, transactional_id=f"{settings.prefix}service")
    await producer.start()
    try:
        async with producer.transaction():
            for record in records:
                await producer.send_and_wait(topic, orjson.dumps(record), partition=0)
    finally:
        await producer.stop()


@pytest.mark.broker
async def test_a_state_whose_next_record_follows_a_hole_is_of_its_log(settings: Settings) -> None:
    """A service writes in transactions, and the first record after one waits for the clock at the checkpoint."""
    await prepare(settings)
    topic = TopicNames(settings.prefix).activity
    (subject,) = subjects_of(0, settings.partitions, 1)
    touch = {"type": "session.touched", "session": "s", "subject": subject, "service": "web", "age_ms": 0}
    await _in_a_transaction(settings, topic, touch, touch)
    await _in_a_transaction(settings, topic, touch)
    first, second, late = await read_all(settings, topic, [0])
    assert (first.offset, second.offset, late.offset) == (0, 1, 3)
    rules = engine_settings(settings, b"a key of this test", 0)
    engine = PartitionEngine(rules)
    engine.apply([first, second, _at(late, late.timestamp + 60_000)])
    assert (engine.offset, engine.waiting) == (3, 1)
    restored = PartitionEngine.restore(rules, engine.cut().records)
    assert restored is not None
    assert restored.applied == (1, second.timestamp)
    await check_input(settings.kafka, "test", topic, {0: (restored.offset, restored.applied)})
    with pytest.raises(RuntimeFault, match="is not the log that the state at offset 3 is of"):
        await reading._look_at_input(settings.kafka, "test", topic, {0: (3, (1, second.timestamp - 1))})


def _at(record: ConsumerRecord, timestamp: int) -> ConsumerRecord:
    return dataclasses.replace(record, timestamp=timestamp)


class _NoPosition:
    """A consumer whose client waits for a valid position, and has no deadline of its own for it."""

    def assign(self, tps: list[TopicPartition]) -> None:
        pass

    def seek(self, tp: TopicPartition, offset: int) -> None:
        pass

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 9)

    async def getmany(self, *tps: TopicPartition, **_: Any) -> dict[TopicPartition, list[ConsumerRecord]]:
        return {}

    async def position(self, tp: TopicPartition) -> int:
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return await never


async def _to_end() -> None:
    async for _ in read_to_end("127.0.0.1:1", "test", "t", [0]):
        pass


async def _range() -> None:
    await read_range("127.0.0.1:1", "test", TP, 0, 9)


async def _holds() -> None:
    await holds_records("127.0.0.1:1", "test", TP, 0, 9)


@pytest.mark.parametrize("read", [_to_end, _range, _holds])
async def test_no_reading_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    @asynccontextmanager
    async def consuming(*_: Any, **__: Any) -> AsyncIterator[_NoPosition]:
        yield _NoPosition()

    monkeypatch.setattr(reading, "consuming", consuming)
    monkeypatch.setattr(reading, "READ_DEADLINE_S", 0.05)
    with pytest.raises(RuntimeFault, match="nothing could be read for"):
        async with asyncio.timeout(5):
            await read()
