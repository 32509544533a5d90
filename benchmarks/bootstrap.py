"""How long does a guard take to know a million denials?

From `start` to fresh: connected, a million endings consumed, read and kept, and a watermark seen that was written
after the assignment (they come ten times a second here, so that waiting for one is no part of the figure). The
baseline is the bare loop in the same run: aiokafka's getmany and orjson.loads of every value. They take turns; medians.

`loop_held_ms` is how long a task beside the guard, which asks for the loop every millisecond, had to wait for it, in
time of the thread: on a busy machine the clock on the wall would count what other processes take.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from lapse.consumers import Guard
from lapse.schemas import Watermark, encode

from benchmarks.endings import write_endings
from benchmarks.feed import producing
from benchmarks.lab import PARTITIONS, Lab, laboratory
from benchmarks.report import percentile, report, say

__all__ = ["run"]

DENIALS = 1_000_000
_RUNS = 3


async def run() -> None:
    """`bootstrap`."""
    async with laboratory("bootstrap") as lab:
        say(f"bootstrap: {DENIALS} endings are written")
        await write_endings(lab, DENIALS, int(time.time() * 1000))
        bare, guarded, held = [], [], []
        for number in range(_RUNS):
            bare.append(await _bare(lab))
            seconds, waits = await _guard(lab)
            guarded.append(seconds)
            held += waits
            say(f"bootstrap: run {number + 1}: bare {bare[-1]:.2f} s, guard {guarded[-1]:.2f} s")
    report(
        "bootstrap",
        statistics.median(guarded),
        "s",
        statistics.median(bare),
        denials=DENIALS,
        fastest=min(guarded),
        fastest_baseline=min(bare),
        loop_held_ms_p99=percentile(held, 99),
        loop_held_ms_max=max(held),
        baseline_is="a bare getmany + orjson.loads loop",
    )


async def _bare(lab: Lab) -> float:
    gc.collect()
    began = time.perf_counter()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=lab.settings.kafka, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(lab.topics.expiries, number) for number in range(PARTITIONS)])
        seen = 0
        while seen < DENIALS:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    orjson.loads(record.value)
                seen += len(records)
        return time.perf_counter() - began
    finally:
        await consumer.stop()


async def _guard(lab: Lab) -> tuple[float, list[float]]:
    gc.collect()
    waits: list[float] = []
    async with _watermarks(lab), _beside(waits):
        began = time.perf_counter()
        guard = Guard(
            lab.settings.kafka, service="bench", prefix=lab.settings.prefix, ready_timeout_s=120.0, report=False
        )
        async with guard:
            seconds = time.perf_counter() - began
            assert guard.fresh, guard.why_stale
            assert guard.entries == DENIALS, f"{guard.entries} denials"
    return seconds, waits


@contextlib.asynccontextmanager
async def _watermarks(lab: Lab) -> AsyncIterator[None]:
    async with producing(lab.settings.kafka) as producer:

        async def beat() -> None:
            while True:
                value = encode(Watermark(as_of=int(time.time() * 1000)))
                for partition in range(PARTITIONS):
                    await producer.send(lab.topics.expiries, value, key=b"watermark", partition=partition)
                await asyncio.sleep(0.1)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


@contextlib.asynccontextmanager
async def _beside(waits: list[float]) -> AsyncIterator[None]:
    """Note for how long the loop's thread does other things before a task gets its turn, ms."""

    async def watch() -> None:
        while True:
            asked_at = time.thread_time()
            await asyncio.sleep(0.001)
            waits.append((time.thread_time() - asked_at) * 1000)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
