"""Real worker processes on a real broker, and what the tests send to and read from it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import Policy, TopicNames, encode, partition_of, subject_key

__all__ = ["Log", "WorkerProcess", "adopted", "prepare", "producing", "read_all", "send", "subjects_of", "tail"]

_RUN = "from lapse.pipeline.processor import run; from lapse.pipeline.settings import Settings; run(Settings())"

# A worker starts in about 3 s alone on a machine, and in several times that beside six others.
READY_S = 60.0


class WorkerProcess:
    """One `lapse run`, as a process of its own."""

    def __init__(self, settings: Settings, log: Path, **changes: object) -> None:
        """Args: changes: settings of this worker alone."""
        self.settings = settings.model_copy(update=changes)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        settings = self.settings
        variables = {
            "LAPSE_KAFKA": settings.kafka,
            "LAPSE_PREFIX": settings.prefix,
            "LAPSE_PARTITIONS": str(settings.partitions),
            "LAPSE_GROUP": settings.group,
            "LAPSE_WORKER": settings.worker,
            "LAPSE_WORKER_KEY": settings.worker_key.decode(),
            "LAPSE_CHECKPOINT_INTERVAL_MS": str(settings.checkpoint_interval_ms),
            "LAPSE_UNKNOWN_SESSIONS": settings.unknown_sessions,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _RUN], env={**os.environ, **variables}, stderr=log, stdout=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def restored(self, times: int = 1) -> None:
        """Wait until its log says so many times that it has restored its partitions."""
        deadline = asyncio.get_running_loop().time() + READY_S
        while self.log.count('"event": "restored"') < times:
            assert self.runs, f"it has ended:\n{self.log}"
            assert asyncio.get_running_loop().time() < deadline, f"not restored in {READY_S} s:\n{self.log}"
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """kill -9: no word, no last checkpoint."""
        self._signal(signal.SIGKILL)
        self._wait()

    async def stop(self, within_s: float = 30.0) -> int:
        """Ask it to stop, and return its exit code."""
        self._signal(signal.SIGTERM)
        return await asyncio.to_thread(self._wait, within_s)

    async def wait(self, within_s: float = 60.0) -> int:
        """Return its exit code once it has ended by itself."""
        return await asyncio.to_thread(self._wait, within_s)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """End it for certain; for the end of a test."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _wait(self, within_s: float = 30.0) -> int:
        assert self._process is not None
        return self._process.wait(within_s)


class Log:
    """One topic's records as they come: read on by `until`."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.records: list[ConsumerRecord] = []

    async def until(self, enough: Callable[[list[ConsumerRecord]], bool], within_s: float = READY_S) -> None:
        """Read on until there is enough.

        Raises:
            AssertionError: it did not come in time.
        """
        deadline = asyncio.get_running_loop().time() + within_s
        while not enough(self.records):
            assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s, of {len(self.records)}"
            await self.more()

    async def more(self) -> None:
        """Read what has come, or wait a little for it."""
        for records in (await self._consumer.getmany(timeout_ms=100)).values():
            self.records += records

    async def to_end(self) -> None:
        """Read what there is now."""
        ends = await self._consumer.end_offsets(self._consumer.assignment())
        while [tp for tp, end in ends.items() if await self._consumer.position(tp) < end]:
            await self.more()

    def values(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the records as JSON, of this type."""
        parsed = [orjson.loads(record.value) for record in self.records if record.value is not None]
        return [one for one in parsed if kind is None or one["type"] == kind]


@asynccontextmanager
async def tail(settings: Settings, topic: str, partitions: Iterable[int] | None = None) -> AsyncIterator[Log]:
    """Give the topic's log from its start on."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        numbers = range(settings.partitions) if partitions is None else partitions
        consumer.assign([TopicPartition(topic, number) for number in numbers])
        yield Log(consumer)
    finally:
        await consumer.stop()


async def read_all(settings: Settings, topic: str, partitions: Iterable[int] | None = None) -> list[ConsumerRecord]:
    """Return what the topic holds now."""
    async with tail(settings, topic, partitions) as log:
        await log.to_end()
    return log.records


@asynccontextmanager
async def producing(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Give an idempotent producer."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, enable_idempotence=True, acks="all")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(
    producer: AIOKafkaProducer, settings: Settings, record: dict[str, Any], partition: int | None = None
) -> ConsumerRecord:
    """Append one activity record, where it belongs unless said otherwise, and wait until it stands there."""
    right = partition_of(record["subject"], record.get("tenant"), settings.partitions)
    return await producer.send_and_wait(
        TopicNames(settings.prefix).activity,
        orjson.dumps(record),
        subject_key(record["subject"], record.get("tenant")),
        partition=right if partition is None else partition,
    )


def subjects_of(partition: int, partitions: int, count: int) -> list[str]:
    """Return subjects, without a tenant, that belong to this partition."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        if partition_of(f"u-{number}", None, partitions) == partition:
            found.append(f"u-{number}")
    return found


async def prepare(settings: Settings, *policies: Policy) -> None:
    """Make the topics, and set these policies."""
    await apply_topics(settings)
    async with producing(settings) as producer:
        for policy in policies:
            await producer.send_and_wait(
                TopicNames(settings.prefix).policies, encode(policy), policy.name.encode(), partition=0
            )


async def adopted(settings: Settings, log: Log, worker: WorkerProcess) -> None:
    """Wait until every partition has its copy of a policy and a tick: the worker is at work everywhere."""

    def everywhere(records: list[ConsumerRecord]) -> bool:
        assert worker.runs, f"the worker has ended:\n{worker.log}"
        seen = {(record.partition, orjson.loads(record.value)["type"]) for record in records}
        kinds = ("clock.tick", "policy.adopted")
        return all((number, kind) in seen for number in range(settings.partitions) for kind in kinds)

    await log.until(everywhere)
