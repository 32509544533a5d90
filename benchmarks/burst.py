"""How long until all endings are out, when 100,000 sessions are due at one instant and a million others are live?

The 100,000 log in under a policy of 8 s idle; then all of a partition are touched in one batch, which has one append
time, so that they are due at one instant (the partitions' batches follow each other within milliseconds:
`spread_ms`). What counts is the append times of the endings, from the earliest due on: of the first, grace included,
and of the last. The baseline is the same endings, ready-made, appended by a bare idempotent producer.
"""

from __future__ import annotations

import asyncio
import time

from aiokafka import AIOKafkaProducer, ConsumerRecord

from lapse.pipeline.operations.policies import set_policy
from lapse.schemas import Policy, SessionEnded, parse_expiry

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, Lab, laboratory, reading
from benchmarks.report import percentile, report, say

__all__ = ["run"]

LIVE_SESSIONS = 1_000_000
DUE_TOGETHER = 100_000
IDLE_MS = 8_000
_WARM = 1_000
_DEADLINE_S = 180.0
_BATCH_BYTES = 1_000_000  # 12,500 packed touches of some 50 bytes


async def run() -> None:
    """`burst`."""
    async with laboratory("burst") as lab, lab.worker() as worker, producing(lab.settings.kafka) as producer:
        await set_policy(lab.settings, Policy(name="burst", idle_ms=IDLE_MS, absolute_ms=None, by="bench"))
        estate = Estate(LIVE_SESSIONS, PARTITIONS)
        say(f"burst: {LIVE_SESSIONS} sessions log in")
        await estate.start(producer, lab.topics.activity)
        await worker.until("lapse_live_sessions", LIVE_SESSIONS, _DEADLINE_S)
        await _burst(lab, producer, _WARM, "warm")  # the first endings of a worker pay for its first code paths
        due, ends, values = await _burst(lab, producer, DUE_TOGETHER, "due")
        live = await worker.number("lapse_live_sessions")
        assert live == LIVE_SESSIONS, f"{live:.0f} of {LIVE_SESSIONS} sessions are live"
        began = min(due)
        report(
            "burst",
            (max(ends) - began) / 1000,
            "s",
            await _bare(lab, values),
            first_ms=min(ends) - began,
            p50_ms=percentile([end - began for end in ends], 50),
            spread_ms=max(due) - began,
            grace_ms=lab.settings.grace_ms,
            endings=len(ends),
            live_sessions=LIVE_SESSIONS,
            baseline_is="s to append the same endings, ready-made, by a bare idempotent producer",
        )


async def _burst(
    lab: Lab, producer: AIOKafkaProducer, count: int, name: str
) -> tuple[list[int], list[int], list[list[bytes]]]:
    """Let so many sessions end together; return their due instants, the append times and the endings by partition."""
    burst = Estate(count, PARTITIONS, prefix=name)
    sessions = {session for partition in burst.by_partition for session, _ in partition}
    due: list[int] = []
    ends: list[int] = []
    values: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    async with reading(lab, lab.topics.expiries) as consumer:
        await burst.start(producer, lab.topics.activity, policy="burst")
        async with producing(lab.settings.kafka, _BATCH_BYTES) as at_once:
            await burst.touch_at_once(at_once, lab.topics.activity)
        say(f"burst: {count} sessions are due together")
        raw: list[ConsumerRecord] = []
        async with asyncio.timeout(_DEADLINE_S):
            while len(raw) < count:  # read as it comes, parsed afterwards: who looks on must not be a load
                for batch in (await consumer.getmany(timeout_ms=1000)).values():
                    raw += [record for record in batch if record.key != b"watermark"]
    for record in raw:
        ending = parse_expiry(record.value)
        assert isinstance(ending, SessionEnded), "no ending"
        assert ending.session in sessions, "another session ended"
        assert ending.due_at == ending.last_seen_at + IDLE_MS, "an ending has the wrong due instant"
        sessions.discard(ending.session)
        due.append(ending.due_at)
        ends.append(record.timestamp)
        values[record.partition].append(record.value)
    assert not sessions, f"{len(sessions)} sessions did not end"
    return due, ends, values


async def _bare(lab: Lab, values: list[list[bytes]]) -> float:
    producer = AIOKafkaProducer(
        bootstrap_servers=lab.settings.kafka, acks="all", enable_idempotence=True, max_batch_size=256 * 1024
    )
    await producer.start()
    try:
        began = time.monotonic()
        sent = []
        for partition, endings in enumerate(values):
            batch = producer.create_batch()
            for value in endings:
                if batch.append(key=b"bench", value=value, timestamp=None) is None:
                    sent.append(await producer.send_batch(batch, lab.topics.warnings, partition=partition))
                    batch = producer.create_batch()
                    batch.append(key=b"bench", value=value, timestamp=None)
            sent.append(await producer.send_batch(batch, lab.topics.warnings, partition=partition))
        await asyncio.gather(*sent)
        return time.monotonic() - began
    finally:
        await producer.stop()
