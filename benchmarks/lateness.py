"""How late is an ending, beyond the grace, when 1,000 sessions are due at one instant?

A million sessions are live. Thousand others, under a policy of 3 s idle, log in together and say nothing more; each
ending's lateness is its append time minus its due instant minus the grace, both of the log's scale. Once in silence
(the owner's ticks alone move time) and once with 5,000 touches a second beside it. The baseline is what the broker
itself takes: from the send of a bare record to its being received by a consumer, meanwhile (p99 for p99).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from aiokafka import AIOKafkaProducer

from lapse.pipeline.operations.policies import set_policy
from lapse.schemas import Policy, SessionEnded, SessionTouched, encode, parse_expiry, subject_key

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, Lab, laboratory, reading
from benchmarks.report import percentile, report, say

__all__ = ["run"]

LIVE_SESSIONS = 1_000_000
DUE_TOGETHER = 1_000
IDLE_MS = 3_000
ROUNDS = 5
TOUCHES_A_SECOND = 5_000
_DEADLINE_S = 120.0


async def run() -> None:
    """`lateness`, silent and busy."""
    async with laboratory("lateness") as lab, lab.worker() as worker, producing(lab.settings.kafka) as producer:
        await set_policy(lab.settings, Policy(name="short", idle_ms=IDLE_MS, absolute_ms=None, by="bench"))
        estate = Estate(LIVE_SESSIONS, PARTITIONS)
        say(f"lateness: {LIVE_SESSIONS} sessions log in")
        await estate.start(producer, lab.topics.activity)
        await worker.until("lapse_live_sessions", LIVE_SESSIONS, _DEADLINE_S)
        await _round(lab, producer, "warm")  # the first endings of a worker pay for its first code paths
        for phase in ("silent", "busy"):
            lateness: list[float] = []
            bare: list[float] = []
            async with _touching(lab, estate) if phase == "busy" else contextlib.nullcontext():
                for number in range(ROUNDS):
                    late, floor = await _round(lab, producer, f"{phase}-{number}")
                    lateness += late
                    bare += floor
            report(
                "lateness",
                percentile(lateness, 99),
                "ms",
                percentile(bare, 99),
                phase=phase,
                p50=percentile(lateness, 50),
                p99=percentile(lateness, 99),
                max=max(lateness),
                endings=len(lateness),
                live_sessions=LIVE_SESSIONS,
                touches_a_second=TOUCHES_A_SECOND if phase == "busy" else 0,
                baseline_is="p99 from send to receipt of bare records",
            )


async def _round(lab: Lab, producer: AIOKafkaProducer, name: str) -> tuple[list[float], list[float]]:
    """Let 1,000 sessions end together; return their lateness and the bare round trips meanwhile, in ms."""
    due = Estate(DUE_TOGETHER, PARTITIONS, prefix=name)
    sessions = {session for partition in due.by_partition for session, _ in partition}
    async with reading(lab, lab.topics.expiries) as consumer:
        await due.start(producer, lab.topics.activity, policy="short")
        bare = asyncio.create_task(_bare(lab))
        lateness: list[float] = []
        async with asyncio.timeout(_DEADLINE_S):
            while len(lateness) < DUE_TOGETHER:
                for batch in (await consumer.getmany(timeout_ms=1000)).values():
                    for record in batch:
                        ending = parse_expiry(record.value)
                        if isinstance(ending, SessionEnded) and ending.session in sessions:
                            sessions.discard(ending.session)
                            assert ending.due_at == ending.started_at + IDLE_MS, "an ending has the wrong due instant"
                            lateness.append(record.timestamp - ending.due_at - lab.settings.grace_ms)
        return lateness, await bare


async def _bare(lab: Lab) -> list[float]:
    """Return round trips of bare records, in ms."""
    trips: list[float] = []
    producer = AIOKafkaProducer(bootstrap_servers=lab.settings.kafka)
    await producer.start()
    try:
        async with reading(lab, lab.topics.warnings) as consumer:
            for _ in range(100):
                sent = time.monotonic()
                await producer.send(lab.topics.warnings, b"{}", partition=0)
                await consumer.getone()
                trips.append((time.monotonic() - sent) * 1000)
                await asyncio.sleep(0.02)
    finally:
        await producer.stop()
    return trips


@contextlib.asynccontextmanager
async def _touching(lab: Lab, estate: Estate) -> AsyncIterator[None]:
    """Touch sessions at a steady rate meanwhile."""
    sessions = [one for partition in estate.by_partition for one in partition]
    producer = AIOKafkaProducer(bootstrap_servers=lab.settings.kafka, linger_ms=5)
    await producer.start()

    async def touch() -> None:
        began, sent = time.monotonic(), 0
        while True:
            owed = int((time.monotonic() - began) * TOUCHES_A_SECOND) - sent
            for number in range(sent, sent + owed):
                session, subject = sessions[number * 7919 % len(sessions)]
                value = encode(SessionTouched(session=session, subject=subject, service="web", age_ms=0))
                await producer.send(lab.topics.activity, value, subject_key(subject, None))
            sent += owed
            await asyncio.sleep(0.01)

    task = asyncio.create_task(touch())
    try:
        yield
        assert not task.done(), "the touches beside it stopped"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await producer.stop()
