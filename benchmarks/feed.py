"""How do records get into the activity topic faster than the processor takes them out?

aiokafka's `send` takes some 0.1 M records a second; ready-made batches (`send_batch`) ten times that. The records are
what the SDK writes: `encode` of the same models, keyed by subject and placed by the same partitioner."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer

from lapse.schemas import (
    PackedTouch,
    PackedTouches,
    SessionStarted,
    SessionTouched,
    encode,
    partition_of,
    session_reference,
    subject_key,
)

__all__ = ["Estate", "producing"]

# A batch has one append time. 64 KB are some 500 touches, what a busy publisher would send at once.
_BATCH_BYTES = 64 * 1024
_IN_FLIGHT_MAX = 64


def producing(bootstrap: str, batch_bytes: int = _BATCH_BYTES) -> AIOKafkaProducer:
    """Return a producer for bulk loads."""
    return AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=batch_bytes, acks=1, max_request_size=2**20)


class Estate:
    """Sessions, by the partition that they belong to."""

    def __init__(self, count: int, partitions: int, prefix: str = "u", first: int = 0) -> None:
        self.by_partition: list[list[tuple[str, str]]] = [[] for _ in range(partitions)]
        for number in range(first, first + count):
            subject = f"{prefix}-{number}"
            self.by_partition[partition_of(subject, None, partitions)].append((session_reference(subject), subject))

    @property
    def count(self) -> int:
        """How many sessions there are."""
        return sum(map(len, self.by_partition))

    def join(self, other: Estate) -> None:
        """Take in another estate's sessions."""
        for mine, theirs in zip(self.by_partition, other.by_partition, strict=True):
            mine += theirs

    async def start(self, producer: AIOKafkaProducer, topic: str, policy: str | None = None) -> None:
        """Log everybody in."""
        await asyncio.gather(
            *(
                _send(producer, topic, partition, _starts(sessions, policy))
                for partition, sessions in enumerate(self.by_partition)
            )
        )

    async def touch_at_once(self, producer: AIOKafkaProducer, topic: str, each: int = 500) -> None:
        """Touch every session once, those of a partition in one batch, which has one append time."""
        for partition, sessions in enumerate(self.by_partition):
            batch = producer.create_batch()
            for begin in range(0, len(sessions), each):
                touches = [PackedTouch(*one, None, 0) for one in sessions[begin : begin + each]]
                value = encode(PackedTouches(service="web", touches=touches))
                fits = batch.append(key=None, value=value, timestamp=None)
                assert fits is not None, "the touches of a partition do not fit into one batch"
            await producer.send_batch(batch, topic, partition=partition)
        await producer.flush()

    async def touch(self, producer: AIOKafkaProducer, topic: str, count: int, seed: int) -> int:
        """Write at least `count` single touches of random sessions, evenly over the partitions; return how many."""
        each = -(-count // len(self.by_partition))
        await asyncio.gather(
            *(
                _send(producer, topic, partition, _touches(sessions, each, seed + partition))
                for partition, sessions in enumerate(self.by_partition)
            )
        )
        return each * len(self.by_partition)

    async def touch_packed(self, producer: AIOKafkaProducer, topic: str, count: int, seed: int, each: int = 500) -> int:
        """Write at least `count` touches packed by `each`; return how many."""
        records = -(-count // each // len(self.by_partition))
        await asyncio.gather(
            *(
                _send(producer, topic, partition, _packed(sessions, records, each, seed + partition))
                for partition, sessions in enumerate(self.by_partition)
            )
        )
        return records * each * len(self.by_partition)


def _starts(sessions: list[tuple[str, str]], policy: str | None) -> Iterable[tuple[bytes | None, bytes]]:
    for session, subject in sessions:
        start = SessionStarted(session=session, subject=subject, service="web", age_ms=0, policy=policy)
        yield subject_key(subject, None), encode(start)


def _touches(sessions: list[tuple[str, str]], count: int, seed: int) -> Iterable[tuple[bytes | None, bytes]]:
    # One encoded touch a session, written again and again: the log holds `count` distinct records all the same.
    ready: dict[int, tuple[bytes, bytes]] = {}
    chance = random.Random(seed)
    for _ in range(count):
        number = chance.randrange(len(sessions))
        record = ready.get(number)
        if record is None:
            session, subject = sessions[number]
            value = encode(SessionTouched(session=session, subject=subject, service="web", age_ms=3))
            record = ready[number] = (subject_key(subject, None), value)
        yield record


def _packed(
    sessions: list[tuple[str, str]], records: int, each: int, seed: int
) -> Iterable[tuple[bytes | None, bytes]]:
    chance = random.Random(seed)
    for _ in range(records):
        touches = [PackedTouch(session, subject, None, 3) for session, subject in chance.choices(sessions, k=each)]
        yield None, encode(PackedTouches(service="web", touches=touches))


async def _send(
    producer: AIOKafkaProducer, topic: str, partition: int, records: Iterable[tuple[bytes | None, bytes]]
) -> None:
    in_flight: set[asyncio.Future[Any]] = set()
    batch = producer.create_batch()
    for key, value in records:
        if batch.append(key=key, value=value, timestamp=None) is None:
            in_flight.add(await producer.send_batch(batch, topic, partition=partition))
            if len(in_flight) >= _IN_FLIGHT_MAX:
                _, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
            batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
    in_flight.add(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*in_flight)
