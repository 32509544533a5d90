"""How long from producing a revocation until `Guard.check` refuses, in another process?

A child process runs the guard and, beside it, a bare consumer of the same topic. For each revocation of a session it
notes when a check first refuses and when the bare consumer received the record; the clock is the machine's monotonic
one, which processes share. The baseline is the bare receipt (p99 for p99): what no guard on Kafka can beat."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from lapse.consumers import Ended, Guard
from lapse.schemas import Revocation, encode, parse_revocation, partition_of, session_reference, subject_key

from benchmarks.lab import PARTITIONS, laboratory
from benchmarks.report import percentile, report, say

__all__ = ["run"]

REVOCATIONS = 1_000
_SPACING_S = 0.01
_DEADLINE_S = 60.0


async def run() -> None:
    """`propagation`."""
    async with laboratory("propagation") as lab, lab.worker():
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.propagation", lab.settings.kafka, lab.settings.prefix,
            stdout=asyncio.subprocess.PIPE, limit=2**20,
        )  # fmt: skip
        assert child.stdout is not None, "it was asked for"
        try:
            async with asyncio.timeout(_DEADLINE_S):
                assert await child.stdout.readline() == b"ready\n", "the guard's process did not start"
                say(f"propagation: {REVOCATIONS} revocations")
                produced = await _produce(lab.settings.kafka, lab.topics.revocations)
                seen = json.loads(await child.stdout.readline())
                await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    guard = [1000 * (seen["refused"][session] - at) for session, at in produced.items()]
    bare = [1000 * (seen["received"][session] - at) for session, at in produced.items()]
    report(
        "propagation",
        percentile(guard, 99),
        "ms",
        percentile(bare, 99),
        p50=percentile(guard, 50),
        p99=percentile(guard, 99),
        max=max(guard),
        baseline_p50=percentile(bare, 50),
        revocations=len(guard),
        baseline_is="p99 from produce to receipt by a bare aiokafka consumer in the same other process",
    )


async def _produce(bootstrap: str, topic: str) -> dict[str, float]:
    produced: dict[str, float] = {}
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for number in range(REVOCATIONS):
            subject, session = f"u-{number}", session_reference(f"revoked-{number}")
            order = Revocation(id=f"r-{number}", session=session, subject=subject, reason="bench")
            produced[session] = time.monotonic()
            await producer.send(
                topic, encode(order), subject_key(subject, None), partition=partition_of(subject, None, PARTITIONS)
            )
            await asyncio.sleep(_SPACING_S)
    finally:
        await producer.stop()
    return produced


async def _observe(bootstrap: str, prefix: str) -> None:
    """The child: note, for each session, when a check first refuses it and when a bare consumer has its revocation."""
    refused: dict[str, float] = {}
    received: dict[str, float] = {}

    async with Guard(bootstrap, service="bench", prefix=prefix) as guard:

        def ended(ending: Ended) -> None:
            assert not guard.check(ending.session), "the hook came before the denial"
            refused[ending.session] = time.monotonic()

        guard.on_ended(ended)
        topic = f"{prefix}revocations"
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, fetch_max_wait_ms=100)
        await consumer.start()
        try:
            tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(tps)
            for tp, end in (await consumer.end_offsets(tps)).items():
                consumer.seek(tp, end)
            print("ready", flush=True)
            while min(len(refused), len(received)) < REVOCATIONS:
                for batch in (await consumer.getmany(timeout_ms=100)).values():
                    now = time.monotonic()
                    for record in batch:
                        received[parse_revocation(record.value).session or ""] = now
        finally:
            await consumer.stop()
    print(json.dumps({"refused": refused, "received": received}), flush=True)


if __name__ == "__main__":
    asyncio.run(_observe(*sys.argv[1:3]))
