"""How many touches a second does one worker take, beside a bare consumer loop?

A backlog of touches is written while the worker is down. The bare loop reads it (aiokafka's `getmany`, `orjson.loads`
of each value, and nothing else), then the worker takes it: broker, Faust, engine, transactional checkpoints. Both are
timed from their first records to their last, by what they have counted, at the same places; so neither's start-up
counts."""

from __future__ import annotations

import asyncio
import statistics
import time

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, Lab, Worker, laboratory
from benchmarks.report import report, say

__all__ = ["run", "run_packed", "taken"]

LIVE_SESSIONS = 100_000
TOUCHES = 4_000_000
PACKED_TOUCHES = 8_000_000
_DEADLINE_S = 300.0
# Where the timing begins and ends, as parts of the backlog: the middle, without start-up and the thin end.
_FROM, _TO = 0.05, 0.95


async def run() -> None:
    """`processor`: single touches."""
    await _measure("processor", TOUCHES, packed_by=1)


async def run_packed() -> None:
    """`processor_packed`: packed touches, 500 a record."""
    await _measure("processor_packed", PACKED_TOUCHES, packed_by=500)


async def _measure(name: str, touches: int, packed_by: int) -> None:
    async with laboratory(name.replace("_", "-")) as lab:
        estate = Estate(LIVE_SESSIONS, PARTITIONS)
        async with producing(lab.settings.kafka) as producer:
            async with lab.worker() as worker:
                say(f"{name}: {LIVE_SESSIONS} sessions log in")
                await estate.start(producer, lab.topics.activity)
                await worker.until("lapse_live_sessions", LIVE_SESSIONS, _DEADLINE_S)
            begins = await _ends(lab)
            say(f"{name}: writing {touches} touches")
            if packed_by == 1:
                written = await estate.touch(producer, lab.topics.activity, touches, seed=7)
            else:
                written = await estate.touch_packed(producer, lab.topics.activity, touches, seed=7, each=packed_by)
        ends = await _ends(lab)
        records = sum(ends.values()) - sum(begins.values())
        bare = await _bare_loop(lab, begins, records)
        async with lab.worker() as worker:
            rate, seconds = await taken(worker, records)
            live = await worker.number("lapse_live_sessions")
            checkpoints = await worker.number("lapse_checkpoint_seconds_count")
            refused = await worker.number("lapse_dead_letters_total")
    assert live == LIVE_SESSIONS, f"{live:.0f} of {LIVE_SESSIONS} sessions are live: the touches did not all count"
    assert refused == 0, f"{refused:.0f} records were refused"
    report(
        name,
        rate * packed_by,
        "touches/s",
        bare * packed_by,
        median_second=statistics.median(seconds) * packed_by,
        live_sessions=LIVE_SESSIONS,
        touches=written,
        checkpoints=int(checkpoints),
        baseline_is="aiokafka getmany + orjson.loads on the same records",
    )


async def _ends(lab: Lab) -> dict[TopicPartition, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=lab.settings.kafka, group_id=None)
    await consumer.start()
    try:
        tps = [TopicPartition(lab.topics.activity, number) for number in range(PARTITIONS)]
        ends: dict[TopicPartition, int] = await consumer.end_offsets(tps)
    finally:
        await consumer.stop()
    return ends


async def _bare_loop(lab: Lab, begins: dict[TopicPartition, int], records: int) -> float:
    """Return records a second of the loop that the processor is measured against."""
    consumer = AIOKafkaConsumer(bootstrap_servers=lab.settings.kafka, group_id=None, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign(list(begins))
        for tp, offset in begins.items():
            consumer.seek(tp, offset)
        done, started, first = 0, 0.0, 0
        while done < records * _TO:
            for batch in (await consumer.getmany(timeout_ms=1000, max_records=20_000)).values():
                for record in batch:
                    orjson.loads(record.value)
                done += len(batch)
            if not started and done >= records * _FROM:
                started, first = time.monotonic(), done
        return (done - first) / (time.monotonic() - started)
    finally:
        await consumer.stop()


async def taken(worker: Worker, records: int) -> tuple[float, list[float]]:
    """Return records a second of the worker, and the same of each whole second."""
    seconds: list[float] = []
    started, first, mark, marked = 0.0, 0.0, 0.0, 0.0
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            done, now = await worker.number("lapse_records_total"), time.monotonic()
            if done >= records * _FROM and not started:
                started, first, mark, marked = now, done, now, done
            if started and now - mark >= 1.0:
                seconds.append((done - marked) / (now - mark))
                mark, marked = now, done
            if done >= records * _TO:
                return (done - first) / (now - started), seconds or [(done - first) / (now - started)]
            await asyncio.sleep(0.1)
