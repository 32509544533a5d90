"""How do a million endings get into lapse.expiries, as the processor would have written them?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from lapse.schemas import Cause, Evidence, SessionEnded, encode, ending_id, partition_of, session_reference

from benchmarks.feed import producing
from benchmarks.lab import PARTITIONS, Lab

__all__ = ["ending_values", "write_endings"]

_HOUR_MS = 3_600_000
_IN_FLIGHT_MAX = 16


def ending_values(count: int, now_at: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (partition, key, value) of so many endings: of the last eight hours, four in five of them idle."""
    for number in range(count):
        subject = f"u-{number}"
        session = session_reference(subject)
        partition = partition_of(subject, None, PARTITIONS)
        due_at = now_at - number * 8 * _HOUR_MS // count
        started_at = due_at - _HOUR_MS // 2
        ended = SessionEnded(
            id=ending_id(session),
            session=session,
            subject=subject,
            tenant=None,
            cause=Cause.CLOSED if number % 5 == 0 else Cause.IDLE,
            started_at=started_at,
            last_seen_at=started_at,
            due_at=due_at,
            decided_at=due_at,
            idle_ms=_HOUR_MS // 2,
            absolute_ms=8 * _HOUR_MS,
            policy="default",
            policy_version=None,
            revocation=None,
            held=False,
            evidence=Evidence(partition=partition, offset=number),
            deny_until=started_at + 9 * _HOUR_MS,
        )
        yield partition, session.encode(), encode(ended)


async def write_endings(lab: Lab, count: int, now_at: int) -> None:
    """Write so many endings into the lab's expiries."""
    async with producing(lab.settings.kafka) as producer:
        batches = [producer.create_batch() for _ in range(PARTITIONS)]
        in_flight: set[asyncio.Future[Any]] = set()
        for partition, key, value in ending_values(count, now_at):
            if batches[partition].append(key=key, value=value, timestamp=None) is None:
                in_flight.add(await producer.send_batch(batches[partition], lab.topics.expiries, partition=partition))
                batches[partition] = producer.create_batch()
                batches[partition].append(key=key, value=value, timestamp=None)
                if len(in_flight) >= _IN_FLIGHT_MAX:
                    _, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
        for partition, batch in enumerate(batches):
            in_flight.add(await producer.send_batch(batch, lab.topics.expiries, partition=partition))
        await asyncio.gather(*in_flight)
