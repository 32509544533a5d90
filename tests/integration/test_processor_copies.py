"""Goal: what operators order gets into the log that decides, and what is misplaced gets where it belongs.

Method: a real worker; revocations, policies, misplaced and unreadable records from a plain producer; then the topics
are read. Every record that a worker wrote is checked with the workers' key.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord

from lapse.pipeline.settings import Settings
from lapse.schemas import (
    Cause,
    Policy,
    Revocation,
    TopicNames,
    encode,
    parse_activity,
    parse_dead_letter,
    verify,
)

from tests.processor.support import Log, WorkerProcess, adopted, prepare, producing, send, subjects_of, tail

pytestmark = pytest.mark.broker

FIRST = Policy(name="first", idle_ms=60_000)


@pytest.fixture
async def worker(settings: Settings, tmp_path: Path) -> AsyncIterator[WorkerProcess]:
    """A worker at work in every partition."""
    await prepare(settings, FIRST)
    process = WorkerProcess(settings, tmp_path / "worker.log")
    process.start()
    try:
        async with tail(settings, TopicNames(settings.prefix).activity) as log:
            await adopted(settings, log, process)
        yield process
    finally:
        process.end()


async def order(producer: AIOKafkaProducer, settings: Settings, value: bytes | None, partition: int) -> ConsumerRecord:
    return await producer.send_and_wait(
        TopicNames(settings.prefix).revocations, value, b"placed by the test", partition=partition
    )


def of_kind(log: Log, settings: Settings, kind: str) -> list[tuple[ConsumerRecord, dict[str, Any]]]:
    """Return the worker's records of a kind, each checked: readable, signed for its partition, without a key."""
    topic = TopicNames(settings.prefix).activity
    found = []
    for record in log.records:
        value = orjson.loads(record.value)
        if value["type"] == kind:
            assert verify(value, topic=topic, partition=record.partition, key=settings.worker_key)
            assert parse_activity(record.value).type == kind
            assert record.key is None
            found.append((record, value))
    return found


@pytest.mark.usefixtures("worker")
async def test_a_revocation_is_copied_within_a_second_with_the_originals_append_time(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    (subject,) = subjects_of(2, settings.partitions, 1)
    async with producing(settings) as producer, tail(settings, topics.activity) as log:
        original = await order(producer, settings, encode(Revocation(id="r-1", subject=subject)), 2)
        await log.until(lambda _: bool(of_kind(log, settings, "revocation.ordered")))
        ((copy, value),) = of_kind(log, settings, "revocation.ordered")
        assert copy.partition == 2
        assert value["at"] == original.timestamp
        assert value["revocation"]["id"] == "r-1"
        assert copy.timestamp - original.timestamp < 1_000


@pytest.mark.usefixtures("worker")
async def test_a_revocation_in_the_wrong_partition_is_copied_into_the_right_one(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    (subject,) = subjects_of(3, settings.partitions, 1)
    async with (
        producing(settings) as producer,
        tail(settings, topics.activity) as log,
        tail(settings, topics.expiries) as endings,
    ):
        started = {"type": "session.started", "session": "s-1", "subject": subject, "service": "web", "age_ms": 0}
        await send(producer, settings, started)
        await order(producer, settings, encode(Revocation(id="r-2", subject=subject)), 0)
        await log.until(lambda _: bool(of_kind(log, settings, "revocation.ordered")))
        ((copy, _),) = of_kind(log, settings, "revocation.ordered")
        assert copy.partition == 3
        await endings.until(lambda _: bool(endings.values("session.ended")))
        (ending,) = endings.values("session.ended")
        assert (ending["cause"], ending["revocation"]) == (Cause.REVOKED, "r-2")


@pytest.mark.usefixtures("worker")
async def test_a_revocation_without_a_subject_is_copied_where_it_stands(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    async with producing(settings) as producer, tail(settings, topics.activity) as log:
        for number in range(settings.partitions):
            await order(producer, settings, encode(Revocation(id="r-3", everyone=True)), number)
        await log.until(lambda _: len(of_kind(log, settings, "revocation.ordered")) >= settings.partitions)
        copies = of_kind(log, settings, "revocation.ordered")
        assert sorted(copy.partition for copy, _ in copies) == list(range(settings.partitions))


@pytest.mark.usefixtures("worker")
async def test_an_unreadable_order_goes_to_the_dead_letters_and_stops_nothing(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    bad = {
        b"not json": "JSON",
        b'{"type":"revocation","id":"r","everyone":true,"v":99}': "v",
        b'{"type":"revocation","id":"r"}': "target",
        None: "null",
        # Readable, but with what its copy adds it would not be.
        encode(Revocation(id="r", everyone=True, note="x" * 65_300)): "bytes",
    }
    (subject,) = subjects_of(1, settings.partitions, 1)
    async with (
        producing(settings) as producer,
        tail(settings, topics.dead_letters) as letters,
        tail(settings, topics.activity) as log,
    ):
        places = [(await order(producer, settings, value, 1)).offset for value in bad]
        await order(producer, settings, encode(Revocation(id="r-4", subject=subject)), 1)
        await letters.until(lambda records: len(records) >= len(bad))
        found = [parse_dead_letter(record.value) for record in letters.records]
        assert [letter.offset for letter in found] == places
        for letter, why in zip(found, bad.values(), strict=True):
            assert (letter.topic, letter.partition) == (topics.revocations, 1)
            assert why in letter.reason
        await log.until(lambda _: bool(of_kind(log, settings, "revocation.ordered")))
        ((_, copy),) = of_kind(log, settings, "revocation.ordered")
        assert copy["revocation"]["id"] == "r-4"


async def test_policies_are_copied_to_every_partition_and_again_by_a_new_owner(
    settings: Settings, worker: WorkerProcess
) -> None:
    topics = TopicNames(settings.prefix)
    async with producing(settings) as producer, tail(settings, topics.activity) as log:
        second = Policy(name="second", idle_ms=90_000)
        stands = await producer.send_and_wait(topics.policies, encode(second), b"second", partition=0)
        everywhere = {(number, "first", 0) for number in range(settings.partitions)} | {
            (number, "second", stands.offset) for number in range(settings.partitions)
        }

        def copies() -> list[tuple[int, str, int]]:
            return [
                (record.partition, value["policy"]["name"], value["version"])
                for record, value in of_kind(log, settings, "policy.adopted")
            ]

        await log.until(lambda _: set(copies()) == everywhere)
        before = len(copies())
        assert await worker.stop() == 0
        worker.start()
        await log.until(lambda _: len(copies()) >= before + len(everywhere))
        assert set(copies()[before:]) == everywhere


@pytest.mark.usefixtures("worker")
async def test_a_record_in_the_wrong_partition_counts_in_the_right_one_with_its_age_grown(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    (subject,) = subjects_of(1, settings.partitions, 1)
    async with (
        producing(settings) as producer,
        tail(settings, topics.activity) as log,
        tail(settings, topics.expiries) as endings,
    ):
        session = {"session": "s-2", "subject": subject, "service": "web"}
        wrong = await send(producer, settings, {"type": "session.started", **session, "age_ms": 40}, partition=2)
        await log.until(lambda _: any("forwarded" in value for value in log.values("session.started")))
        (copy,) = [one for one in log.records if b'"forwarded"' in one.value]
        value = orjson.loads(copy.value)
        assert copy.partition == 1
        assert value["forwarded"][:2] == [2, wrong.offset]
        assert verify(value, topic=topics.activity, partition=1, key=settings.worker_key)
        # Its instant is the same on both logs, but for what the estimate of log time lags behind.
        assert abs((copy.timestamp - value["age_ms"]) - (wrong.timestamp - 40)) <= 20
        await send(producer, settings, {"type": "session.closed", **session, "age_ms": 0})
        await endings.until(lambda _: bool(endings.values("session.ended")))
        (ending,) = endings.values("session.ended")
        assert ending["session"] == "s-2"
        assert ending["evidence"]["partition"] == 1


@pytest.mark.usefixtures("worker")
async def test_bad_activity_goes_to_the_dead_letters_and_stops_nothing(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    (subject,) = subjects_of(0, settings.partitions, 1)
    tick = {"type": "clock.tick", "epoch": 99, "owner": "x", "mono_ms": 1, "wall_at": 1, "up_ms": 1, "mac": "bad"}
    bad: list[bytes | None] = [
        b"not json",
        b'"\xff"',
        b'{"type":"session.touched"}',
        b'{"type":"surprise"}',
        b"[" * 10_000 + b"]" * 10_000,
        orjson.dumps(tick),
        None,
        b"x" * 900_000,
    ]
    async with (
        producing(settings) as producer,
        tail(settings, topics.dead_letters) as letters,
        tail(settings, topics.expiries) as endings,
    ):
        places = [(await producer.send_and_wait(topics.activity, value, b"key", partition=0)).offset for value in bad]
        session = {"session": "s-3", "subject": subject, "service": "web", "age_ms": 0}
        await send(producer, settings, {"type": "session.started", **session})
        await send(producer, settings, {"type": "session.closed", **session})
        await endings.until(lambda _: bool(endings.values("session.ended")))
        await letters.until(lambda records: len(records) >= len(bad))
        found = [parse_dead_letter(record.value) for record in letters.records]
        assert [(letter.topic, letter.partition, letter.offset) for letter in found] == [
            (topics.activity, 0, place) for place in places
        ]
        assert [letter.size for letter in found] == [len(value or b"") for value in bad]


@pytest.mark.usefixtures("worker")
async def test_a_silent_partition_has_a_tick_and_a_watermark_each_second(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    everywhere = range(settings.partitions)
    async with tail(settings, topics.activity, everywhere) as log, tail(settings, topics.expiries, [1]) as endings:
        await endings.until(lambda records: len(records) >= 6)
        await log.to_end()
        assert all(record.key == b"watermark" for record in endings.records)
        assert len(endings.values("watermark")) == len(endings.records)
        assert all(later["as_of"] > mark["as_of"] for mark, later in itertools.pairwise(endings.values()))
        spans = [
            late.timestamp - early.timestamp for early, late in zip(endings.records, endings.records[1:], strict=False)
        ]
        assert sum(spans) / len(spans) == pytest.approx(1_000, abs=250)
        all_ticks = of_kind(log, settings, "clock.tick")
        ticks = [(record, tick) for record, tick in all_ticks if record.partition == 1]
        appends_since = min(tick["mono_ms"] for _, tick in all_ticks)  # `up_ms` is the worker's, not the partition's
        (epoch,) = {tick["epoch"] for _, tick in ticks}
        assert epoch == 0
        assert {tick["owner"] for _, tick in ticks} == {settings.worker}
        assert ticks[0][1]["prev_ms"] is None
        for (_, tick), (record, later) in itertools.pairwise(ticks):
            assert later["prev_ms"] == tick["mono_ms"]
            assert later["prev_ms"] <= later["ack_ms"] <= later["mono_ms"]
            assert later["up_ms"] <= later["mono_ms"] - appends_since + 100  # another append may have come first
            assert abs(record.timestamp - later["wall_at"]) < 1_000


async def test_each_ownership_ticks_under_a_higher_epoch(settings: Settings, worker: WorkerProcess) -> None:
    topics = TopicNames(settings.prefix)
    async with tail(settings, topics.activity, [0]) as log:

        def epochs() -> list[int]:
            return [tick["epoch"] for _, tick in of_kind(log, settings, "clock.tick")]

        expected: list[int] = []
        for _ in range(2):
            worker.kill()
            await log.to_end()
            expected.append(max(epochs()) + 1)
            worker.start()
            await log.until(lambda _: expected[-1] in epochs())
        assert epochs() == sorted(epochs())
