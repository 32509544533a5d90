"""Goal: an owner deletes what is old by log time, below its marks and its last checkpoint, and nothing else.

Method: the trimmer on a real broker, told log time; marks, ends and deletions are real.
"""

from __future__ import annotations

import orjson
import pytest
from aiokafka import TopicPartition

from lapse.pipeline.processor.reading import consuming
from lapse.pipeline.processor.trimming import MARKS_KEY, Trimmer
from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames, catalogue

from tests.processor.support import prepare, producing

pytestmark = pytest.mark.broker

DAY = 86_400_000
NOW = 1_800_000_000_000


async def beginnings(settings: Settings) -> dict[str, int]:
    topics = TopicNames(settings.prefix)
    tps = [TopicPartition(topic, 1) for topic in (topics.activity, topics.revocations, topics.expiries)]
    async with consuming(settings.kafka, "test") as consumer:
        found = await consumer.beginning_offsets(tps)
    return {tp.topic.removeprefix(settings.prefix): offset for tp, offset in found.items()}


async def test_what_is_old_by_log_time_goes_and_nothing_else(settings: Settings) -> None:
    await prepare(settings)
    topics = TopicNames(settings.prefix)
    specs = catalogue(topics, partitions=settings.partitions, replication=1, session_life_max_ms=30 * DAY)

    async def append(count: int) -> None:
        async with producing(settings) as producer:
            for topic in (topics.activity, topics.revocations, topics.expiries):
                for _ in range(count):
                    await producer.send_and_wait(topic, orjson.dumps({}), b"k", partition=1)

    trimmer = Trimmer(settings, 1, specs, None)
    await append(5)
    await trimmer.look(topics.activity, NOW, 3)  # the last checkpoint is of offset 3
    [(key, saved)] = trimmer.take_changed()
    assert key == MARKS_KEY
    assert trimmer.take_changed() == []
    await append(5)
    await trimmer.look(topics.activity, NOW + 7 * DAY - 1, 10)
    assert await beginnings(settings) == {"activity": 0, "revocations": 0, "expiries": 0}
    restored = Trimmer(settings, 1, specs, saved)
    await restored.look(topics.activity, NOW + 7 * DAY, 10)
    assert await beginnings(settings) == {"activity": 3, "revocations": 0, "expiries": 0}
    await restored.look(topics.activity, NOW + 30 * DAY, 10)
    # Activity has come to the mark of seven days, revocations to the first; endings are kept a day longer.
    assert await beginnings(settings) == {"activity": 10, "revocations": 5, "expiries": 0}
    await restored.look(topics.activity, NOW + 31 * DAY, 10)
    assert await beginnings(settings) == {"activity": 10, "revocations": 5, "expiries": 5}
