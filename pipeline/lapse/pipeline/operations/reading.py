"""What does a topic say, from its start to its end, and from now on?

"To its end" means: to the end offsets that the broker named when the reading began. A reader that stops when a fetch
comes back empty stops too early (a slow broker, a leader that moves), and one that counts records waits for ever where
compaction or a transaction left offsets without a record; so the consumer's *position* is compared with that end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final, Protocol

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from lapse.pipeline.operations.connection import consuming, require_topics
from lapse.pipeline.settings import Settings
from lapse.schemas.errors import RuntimeFault

__all__ = ["READ_TIMEOUT_S", "Record", "follow", "read_to_end", "read_until"]


class Record(Protocol):
    """What a reader uses of aiokafka's `ConsumerRecord`."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # epoch ms: the append time, as every topic of ours is LogAppendTime
    key: bytes | None
    value: bytes | None


# The longest that reading to the end may go without getting any further: a broker needs about 10 s to replace a leader.
READ_TIMEOUT_S: Final = 30.0

# How long one fetch waits for something new: the delay with which an interrupted or finished reading is noticed.
_POLL_MS: Final = 250


async def read_to_end(settings: Settings, topic: str) -> list[Record]:
    """Return every record of a topic, each partition in its own order, up to the end as it was at the call.

    For small topics (policies): everything is held in memory.

    Raises:
        ConfigError: the topic does not exist.
        RuntimeFault: no broker answers, or it stopped answering before the end.
    """
    partitions = (await require_topics(settings, [topic]))[topic]
    async with consuming(settings) as consumer:
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(tps)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(tps)
        async with contextlib.aclosing(read_until(consumer, ends)) as records:
            return [record async for record in records]


async def read_until(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> AsyncGenerator[Record]:
    """Yield the records of assigned partitions, from where the consumer stands, below these offsets.

    Raises:
        RuntimeFault: a partition got no further for READ_TIMEOUT_S.
    """
    unread = set(ends)
    deadline = asyncio.get_running_loop().time() + READ_TIMEOUT_S
    while unread:
        fetched = await consumer.getmany(*unread, timeout_ms=_POLL_MS)
        for tp, batch in fetched.items():
            for record in batch:
                if record.offset < ends[tp]:
                    yield record
        reached = {tp for tp in unread if await _position(consumer, tp, deadline) >= ends[tp]}
        unread -= reached
        if fetched or reached:
            deadline = asyncio.get_running_loop().time() + READ_TIMEOUT_S


async def _position(consumer: AIOKafkaConsumer, tp: TopicPartition, deadline: float) -> int:
    try:
        async with asyncio.timeout_at(deadline):
            position: int = await consumer.position(tp)
            return position
    except TimeoutError:
        raise RuntimeFault(
            f"{tp.topic} was not read to its end: partition {tp.partition} got no further in {READ_TIMEOUT_S:.0f} s; "
            "look at the broker, then try again"
        ) from None


async def follow(
    settings: Settings, topic: str, *, since_ms: int | None = None, ready: Callable[[], None] = lambda: None
) -> AsyncGenerator[Record]:
    """Yield the records of a topic as they are appended, for ever; each partition in its own order.

    Args:
        since_ms: begin with the first record of each partition that was appended at or after this instant (epoch ms,
            the broker's clock); None: with what is appended after the call.
        ready: is called once the beginning is fixed: what is appended after that will be seen.

    Raises:
        ConfigError: the topic does not exist.
        RuntimeFault: no broker answers at the start. Later outages are waited for.
    """
    partitions = (await require_topics(settings, [topic]))[topic]
    async with consuming(settings) as consumer:
        tps = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(tps)
        starts: dict[TopicPartition, int] = await consumer.end_offsets(tps)
        if since_ms is not None:
            found = await consumer.offsets_for_times(dict.fromkeys(tps, since_ms))
            # None: nothing was appended since, so the end it is.
            starts |= {tp: at.offset for tp, at in found.items() if at is not None}
        for tp, offset in starts.items():
            consumer.seek(tp, offset)
        ready()
        while True:
            for batch in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in batch:
                    yield record
