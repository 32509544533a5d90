"""Goal: a worker whose revocations or policies were made anew, or trimmed too early, halts and says what to do.

Method: a real broker. A worker copies, and is stopped; its topic is deleted and made anew, empty or longer than before,
or trimmed; then a restore is tried. The watchdog is shown topics that are made anew under it, and a copier that stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.processor import originals
from lapse.pipeline.processor.originals import not_the_log
from lapse.pipeline.processor.restore import restore
from lapse.pipeline.processor.watchdog import watch
from lapse.pipeline.settings import Settings
from lapse.schemas import Policy, Revocation, RuntimeFault, TopicNames, encode

from tests.processor.support import WorkerProcess, adopted, prepare, producing, tail

pytestmark = pytest.mark.broker

FIRST = Policy(name="default", idle_ms=60_000)
SECOND = Policy(name="default", idle_ms=90_000)


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(originals, "_LOOK_AGAIN_S", 0.1)


@asynccontextmanager
async def administering(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def transacting(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Give a producer whose records stand in one transaction, with its marker behind them."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka, transactional_id=f"{settings.prefix}test")
    await producer.start()
    try:
        async with producer.transaction():
            yield producer
    finally:
        await producer.stop()


async def make_anew(settings: Settings, topic: str) -> None:
    async with administering(settings) as admin:
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():  # noqa: ASYNC110  # a broker has no event to wait for
            await asyncio.sleep(0.1)
    await apply_topics(settings)


async def append(settings: Settings, topic: str, partition: int, *values: bytes) -> None:
    async with producing(settings) as producer:
        for value in values:
            await producer.send_and_wait(topic, value, b"default", partition=partition)


def orders(count: int) -> list[bytes]:
    return [encode(Revocation(id=f"r-{number}", everyone=True)) for number in range(count)]


@pytest.fixture
async def copied(settings: Settings, tmp_path: Path) -> Settings:
    """A state of three orders in partition 1 and two policies; its worker has stopped."""
    settings = settings.model_copy(update={"checkpoint_interval_ms": 250})
    topics = TopicNames(settings.prefix)
    await prepare(settings, FIRST, SECOND)
    await append(settings, topics.revocations, 1, *orders(3))
    worker = WorkerProcess(settings, tmp_path / "worker.log")
    worker.start()
    try:
        async with tail(settings, topics.activity) as log:
            await adopted(settings, log, worker)
            await log.until(lambda _: len(log.values("revocation.ordered")) >= 3)
            await log.until(lambda _: len(log.values("policy.adopted")) >= 2 * settings.partitions)
        assert await worker.stop() == 0, worker.log
    finally:
        worker.end()
    return settings


async def restored(settings: Settings) -> None:
    found = await restore(settings, settings.worker_key, [0, 1])
    for one in found.values():
        await one.writer.stop()


async def test_what_was_copied_is_taken_as_it_is(copied: Settings) -> None:
    """Also where it has grown, and where it was trimmed up to what is copied."""
    topics = TopicNames(copied.prefix)
    await restored(copied)
    await append(copied, topics.revocations, 1, *orders(2))
    await append(copied, topics.policies, 0, encode(FIRST))
    await restored(copied)
    async with administering(copied) as admin:
        await admin.delete_records({TopicPartition(topics.revocations, 1): RecordsToDelete(before_offset=3)})
    await restored(copied)


@pytest.mark.parametrize("anew", [0, 3, 9])
async def test_revocations_made_anew_halt(copied: Settings, anew: int) -> None:
    topic = TopicNames(copied.prefix).revocations
    await make_anew(copied, topic)
    await append(copied, topic, 1, *orders(anew))
    with pytest.raises(RuntimeFault, match=r"revocations-1 is not the log that was copied up to offset 3.*made anew.*"
                       r"--to-earliest --execute --group \S+ --topic"):  # fmt: skip
        await restored(copied)


async def test_orders_that_were_trimmed_before_they_were_copied_halt(copied: Settings) -> None:
    topic = TopicNames(copied.prefix).revocations
    await append(copied, topic, 1, *orders(2))
    async with administering(copied) as admin:
        await admin.delete_records({TopicPartition(topic, 1): RecordsToDelete(before_offset=4)})
    with pytest.raises(RuntimeFault, match=r"revocations-1 begins at offset 4, but was copied only up to offset 3"):
        await restored(copied)


@pytest.mark.parametrize("anew", [[], [FIRST], [SECOND, FIRST]])
async def test_policies_made_anew_halt_until_they_are_set_above(copied: Settings, anew: list[Policy]) -> None:
    topic = TopicNames(copied.prefix).policies
    await make_anew(copied, topic)
    await append(copied, topic, 0, *map(encode, anew))
    with pytest.raises(RuntimeFault, match=r"policies is not the log .* up to version 1: .*lapse policy set.* above 1"):
        await restored(copied)
    await append(copied, topic, 0, *[encode(FIRST)] * (3 - len(anew)))
    await restored(copied)


@pytest.mark.parametrize("name", ["activity", "revocations", "policies"])
async def test_a_log_that_is_made_anew_under_a_worker_and_outgrows_it_at_once_is_noticed(
    settings: Settings, name: str
) -> None:
    await prepare(settings)
    topic = f"{settings.prefix}{name}"
    tp = TopicPartition(topic, 0)
    await append(settings, topic, 0, *orders(3))
    looked, outgrown = asyncio.Event(), asyncio.Event()
    looks = 0

    def positions() -> Mapping[TopicPartition, int | None]:
        nonlocal looks
        looks += 1
        if looks > 6:  # a witness was heard, and another one was taken
            looked.set()
        return {tp: 3 if outgrown.is_set() or looks <= 6 else None}

    watching = asyncio.create_task(
        watch(
            settings.kafka,
            "test",
            positions,
            partial(not_the_log, settings),
            compacted=[TopicNames(settings.prefix).policies],
            interval_s=0.2,
        )
    )
    await looked.wait()
    await make_anew(settings, topic)
    await append(settings, topic, 0, *orders(9))
    outgrown.set()
    with pytest.raises(RuntimeFault, match=rf"{name}\S* is not the log .* offset 2 is of \d+, offset 2 was of .*anew"):
        await asyncio.wait_for(watching, 60)


async def test_orders_that_nobody_copies_end_the_worker_and_markers_of_transactions_do_not(settings: Settings) -> None:
    await prepare(settings)
    tp = TopicPartition(TopicNames(settings.prefix).revocations, 1)
    await append(settings, tp.topic, 1, *orders(1))
    with pytest.raises(RuntimeFault, match=r"revocations-1 goes on \(to offset 1\), .* read for 1 s.*Start"):
        async with asyncio.timeout(60):
            await watch(
                settings.kafka, "test", lambda: {tp: 0}, partial(not_the_log, settings), stall_s=1, interval_s=0.2
            )
    async with transacting(settings) as producer:
        await producer.send_and_wait(tp.topic, orders(1)[0], partition=1)

    def only_markers() -> Mapping[TopicPartition, int]:
        return {tp: 2}

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await watch(
                settings.kafka, "test", only_markers, partial(not_the_log, settings), stall_s=0.5, interval_s=0.1
            )
