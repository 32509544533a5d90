"""How long is nobody logged out when a worker dies that has a million live sessions?

Beside the million, sessions under a policy of one second idle come and go in every partition, so that endings flow. A
second worker is started at the moment when the first is killed (kill -9); the group gives it the partitions when the
first one's session timeout (6 s) has passed. Measured are the restore alone, as the worker logs it (fencing, reading,
building), and the time from the kill to the first new ending. Then a third worker joins, and one of the two is killed
and started again at once under its name: how long are the partitions of the other silent?

The baseline of the restore is a bare consumer that reads the same state topic, committed records only, and nothing
else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from lapse.pipeline.operations.policies import set_policy
from lapse.schemas import Policy, SessionStarted, encode, session_reference, subject_key

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, Lab, laboratory, reading
from benchmarks.report import report, say

__all__ = ["run"]

LIVE_SESSIONS = 1_000_000
BRIEF_A_SECOND = 160
BRIEF_IDLE_MS = 1_000
_SETTLE_S = 5.0  # steady state, and some checkpoints, before and after each fault
_DEADLINE_S = 180.0


async def run() -> None:
    """`recovery`."""
    async with laboratory("recovery") as lab:
        await set_policy(lab.settings, Policy(name="brief", idle_ms=BRIEF_IDLE_MS, absolute_ms=None, by="bench"))
        estate = Estate(LIVE_SESSIONS, PARTITIONS)
        async with contextlib.AsyncExitStack() as workers:
            first = await workers.enter_async_context(lab.worker("first"))
            async with producing(lab.settings.kafka) as producer:
                say(f"recovery: {LIVE_SESSIONS} sessions log in")
                await estate.start(producer, lab.topics.activity)
            await first.until("lapse_live_sessions", LIVE_SESSIONS, _DEADLINE_S)
            async with _brief_sessions(lab), _endings(lab) as endings:
                await asyncio.sleep(_SETTLE_S)
                say("recovery: kill -9")
                killed = time.monotonic()
                await first.kill()
                second = await workers.enter_async_context(lab.worker("second"))
                to_first = await _first_after(endings, killed) - killed
                [restored] = second.logged("restored")
                assert restored["sessions"] >= LIVE_SESSIONS, f"only {restored['sessions']} sessions were restored"
                await asyncio.sleep(_SETTLE_S)
                say("recovery: one of two workers starts again")
                async with lab.worker("third", owns=PARTITIONS // 2) as third:
                    await second.until_at_most("lapse_partitions_owned", PARTITIONS // 2, _DEADLINE_S)
                    await asyncio.sleep(_SETTLE_S)
                    others = set(range(PARTITIONS)) - set(third.logged("restored")[-1]["partitions"])
                    died = time.monotonic()
                    await third.kill()
                    async with lab.worker("third", owns=PARTITIONS // 2):
                        await asyncio.sleep(_SETTLE_S)
                        silent = max(_silence(endings[number], died) for number in others)
                        own = max(_silence(endings[number], died) for number in set(endings) - others)
                        steady = max(_silence(endings[number], died - _SETTLE_S / 2, died) for number in endings)
            bare = await _bare_read(lab)
    report(
        "recovery",
        restored["ms"] / 1000,
        "s",
        bare,
        kill_to_first_ending_s=to_first,
        static_restart_others_silent_s=silent,
        static_restart_own_silent_s=own,
        steady_silent_s=steady,
        sessions=restored["sessions"],
        baseline_is="s in which a bare consumer reads the same state topic",
    )


@contextlib.asynccontextmanager
async def _brief_sessions(lab: Lab) -> AsyncIterator[None]:
    """Log brief sessions in, at a steady rate, meanwhile."""
    producer = AIOKafkaProducer(bootstrap_servers=lab.settings.kafka, linger_ms=5)
    await producer.start()

    async def come_and_go() -> None:
        began, number = time.monotonic(), 0
        while True:
            while number < (time.monotonic() - began) * BRIEF_A_SECOND:
                subject = f"brief-{number}"
                start = SessionStarted(
                    session=session_reference(subject), subject=subject, service="web", age_ms=0, policy="brief"
                )
                await producer.send(lab.topics.activity, encode(start), subject_key(subject, None))
                number += 1
            await asyncio.sleep(0.01)

    task = asyncio.create_task(come_and_go())
    try:
        yield
        assert not task.done(), "the brief sessions stopped coming"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await producer.stop()


@contextlib.asynccontextmanager
async def _endings(lab: Lab) -> AsyncIterator[dict[int, list[float]]]:
    """Note, by partition, when endings arrive that have not been seen before (monotonic clock)."""
    arrivals: dict[int, list[float]] = defaultdict(list)
    seen: set[bytes] = set()

    async def read() -> None:
        async with reading(lab, lab.topics.expiries) as consumer:
            while True:
                batches = await consumer.getmany(timeout_ms=1000)
                now = time.monotonic()
                for tp, batch in batches.items():
                    new = {record.key for record in batch if record.key != b"watermark"} - seen
                    if new:
                        seen.update(new)
                        arrivals[tp.partition].append(now)

    task = asyncio.create_task(read())
    try:
        yield arrivals
        assert not task.done(), "the reading of endings stopped"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _first_after(endings: dict[int, list[float]], killed: float) -> float:
    """Return when the first new ending arrived after what the killed worker had still under way (half a second)."""
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            later = [at for arrivals in endings.values() for at in arrivals if at > killed + 0.5]
            if later:
                return min(later)
            await asyncio.sleep(0.05)


def _silence(arrivals: list[float], begin: float, end: float | None = None) -> float:
    """Return the longest pause between arrivals from `begin` to `end`, or to now."""
    marks = [begin, *(at for at in arrivals if begin < at and (end is None or at < end)), end or time.monotonic()]
    return max(after - before for before, after in itertools.pairwise(marks))


async def _bare_read(lab: Lab) -> float:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=lab.settings.kafka,
        group_id=None,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=8 * 1024 * 1024,
    )
    await consumer.start()
    try:
        began = time.monotonic()
        tps = [TopicPartition(lab.topics.state, number) for number in range(PARTITIONS)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        left = {tp for tp in tps if ends[tp] > 0}
        while left:
            await consumer.getmany(*left, timeout_ms=500)
            left -= {tp for tp in left if await consumer.position(tp) >= ends[tp]}
        return time.monotonic() - began
    finally:
        await consumer.stop()
