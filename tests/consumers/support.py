"""What the consumers' tests share: topics, a raw writer in the processor's or an operator's place, waiting."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    Cause,
    Evidence,
    Revocation,
    SessionEnded,
    TopicNames,
    Watermark,
    encode,
    ending_id,
    partition_of,
    subject_key,
)

__all__ = ["Writer", "ended", "free_port", "read_all", "read_to_end", "until", "writing"]


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Return when the condition holds; fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # what is awaited is another process's doing: it sets no event
            await asyncio.sleep(0.002)


async def read_all(settings: Settings, topic: str, count: int, timeout_s: float = 10.0) -> list[ConsumerRecord]:
    """Return the records of a topic as soon as there are `count`, by partition and offset."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, partition) for partition in range(settings.partitions)])
    await consumer.start()
    found: list[ConsumerRecord] = []
    try:
        async with asyncio.timeout(timeout_s):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
    finally:
        await consumer.stop()
    return sorted(found, key=lambda record: (record.partition, record.offset))


async def read_to_end(settings: Settings, topic: str, timeout_s: float = 60.0) -> list[ConsumerRecord]:
    """Return the records that stand in a topic now, by partition and offset."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, auto_offset_reset="earliest")
    partitions = [TopicPartition(topic, partition) for partition in range(settings.partitions)]
    consumer.assign(partitions)
    await consumer.start()
    found: list[ConsumerRecord] = []
    try:
        async with asyncio.timeout(timeout_s):
            ends = await consumer.end_offsets(partitions)
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
    finally:
        await consumer.stop()
    return sorted(found, key=lambda record: (record.partition, record.offset))


def ended(
    session: str,
    subject: str = "u-1",
    *,
    cause: Cause = Cause.IDLE,
    due_at: int = 1_000,
    partition: int = 0,
    deny_until: int = 9_000_000_000_000,
) -> SessionEnded:
    """Return an ending as a processor publishes it."""
    return SessionEnded(
        id=ending_id(session),
        session=session,
        subject=subject,
        tenant=None,
        cause=cause,
        started_at=0,
        last_seen_at=0,
        due_at=due_at,
        decided_at=due_at,
        idle_ms=1_000,
        absolute_ms=None,
        policy="default",
        policy_version=None,
        revocation=None,
        held=False,
        evidence=Evidence(partition=partition, offset=0),
        deny_until=deny_until,
    )


class Writer:
    """Writes what processor and operators write. Watermarks come four times a second while `beats`."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self.settings = settings
        self.topics = TopicNames(settings.prefix)
        self.producer = producer
        self.beats = True

    async def beat(self) -> None:
        """Beat time, as a processor's clock does, only faster; nothing here waits for anything to happen."""
        while True:
            if self.beats:
                await self.watermarks()
            await asyncio.sleep(0.25)

    async def watermarks(self) -> None:
        # A watermark is about the log's time: this one stamp of the broker's, taken from an acknowledgement.
        for partition in range(self.settings.partitions):
            probe = await self.producer.send_and_wait(self.topics.warnings, b"{}", partition=partition)
            value = encode(Watermark(as_of=probe.timestamp))
            await self.producer.send_and_wait(self.topics.expiries, value, key=b"watermark", partition=partition)

    async def end(self, session: str, subject: str, *, cause: Cause = Cause.IDLE, due_at: int = 1_000) -> SessionEnded:
        partition = partition_of(subject, None, self.settings.partitions)
        record = ended(session, subject, cause=cause, due_at=due_at, partition=partition)
        await self.producer.send_and_wait(
            self.topics.expiries, encode(record), key=session.encode(), partition=partition
        )
        return record

    async def revoke(self, order: Revocation) -> int:
        """Write a revocation as operators do, and return its append time."""
        if order.subject is not None:
            key = subject_key(order.subject, order.tenant)
            return int((await self.producer.send_and_wait(self.topics.revocations, encode(order), key=key)).timestamp)
        stamps = [
            (await self.producer.send_and_wait(self.topics.revocations, encode(order), partition=partition)).timestamp
            for partition in range(self.settings.partitions)
        ]
        return int(min(stamps))

    async def put(self, topic: str, partition: int, value: bytes) -> int:
        return int((await self.producer.send_and_wait(topic, value, partition=partition)).offset)


@contextlib.asynccontextmanager
async def writing(settings: Settings) -> AsyncIterator[Writer]:
    """Make the topics, and yield a writer whose watermarks come."""
    await apply_topics(settings)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, acks="all")
    await producer.start()
    writer = Writer(settings, producer)
    beating = asyncio.create_task(writer.beat())
    try:
        yield writer
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await producer.stop()
