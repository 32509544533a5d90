"""Goal: whatever becomes of a worker, each session ends once, on time, with the same record: none early, none missed.

Method: real workers on a real broker under a steady traffic of short sessions; they are stopped, killed and frozen
meanwhile. Afterwards the raw activity topic is recomputed by code that shares nothing with the engine, and compared
with every record of the expiries topic.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from lapse.pipeline.settings import Settings
from lapse.schemas import Policy, TopicNames, ending_id

from tests.processor.recomputation import recompute
from tests.processor.support import (
    WorkerProcess,
    adopted,
    prepare,
    producing,
    read_all,
    send,
    subjects_of,
    tail,
)

pytestmark = [pytest.mark.broker, pytest.mark.slow]

IDLE_MS = 1_500
ABSOLUTE_MS = 5_000
SHORT = Policy(name="short", idle_ms=IDLE_MS, absolute_ms=ABSOLUTE_MS)

# How long the log may take to show what it must, on a machine that is busy with other tests.
PATIENCE_S = 60.0


async def test_a_clean_stop_and_a_restart_lose_and_shorten_nothing(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"checkpoint_interval_ms": 500})
    await prepare(settings, SHORT)
    worker = WorkerProcess(settings, tmp_path / "worker.log")
    try:
        async with working(settings, worker), traffic(settings, seed=1):
            for starts in (2, 3):
                await asyncio.sleep(2)
                assert await worker.stop() == 0, worker.log
                worker.start()
                await worker.restored(starts)
            await settled(settings)
        assert await worker.stop() == 0, worker.log
    finally:
        worker.end()


async def test_kill_9_loses_and_shortens_nothing(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"checkpoint_interval_ms": 500})
    await prepare(settings, SHORT)
    worker = WorkerProcess(settings, tmp_path / "worker.log")
    chance = random.Random(2)
    try:
        async with working(settings, worker), traffic(settings, seed=2):
            for _ in range(4):
                # Not always at work: the instant may fall into its start and its restore as well.
                await asyncio.sleep(0.5 + 3 * chance.random())
                worker.kill()
                worker.start()
            await settled(settings)
    finally:
        worker.end()


async def test_a_worker_that_dies_is_replaced_and_one_that_wakes_writes_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    """One of two workers is frozen past its session, its partitions move, it wakes; then the other is killed."""
    settings = settings.model_copy(update={"checkpoint_interval_ms": 500})
    await prepare(settings, SHORT)
    one = WorkerProcess(settings, tmp_path / "one.log", worker="one")
    other = WorkerProcess(settings, tmp_path / "other.log", worker="other")
    try:
        async with working(settings, one), traffic(settings, seed=3):
            other.start()
            await owned_by(settings, {"one", "other"})
            one.pause()
            await owned_by(settings, {"other"})
            one.resume()
            await owned_by(settings, {"one", "other"})
            other.kill()
            await owned_by(settings, {"one"})
            await settled(settings)
        assert await one.stop() == 0, one.log
    finally:
        one.end()
        other.end()


async def test_of_two_workers_with_one_name_one_ends_and_says_why(settings: Settings, tmp_path: Path) -> None:
    await prepare(settings, SHORT)
    first = WorkerProcess(settings, tmp_path / "first.log")
    second = WorkerProcess(settings, tmp_path / "second.log")
    try:
        async with working(settings, first):
            second.start()
            async with asyncio.timeout(PATIENCE_S), tail(settings, TopicNames(settings.prefix).activity) as log:
                while first.runs and second.runs:
                    await log.more()
                ended, goes_on = (second, first) if first.runs else (first, second)
                assert await ended.wait() == 1
                assert f"another worker runs as LAPSE_WORKER='{settings.worker}'" in ended.log
                await log.to_end()
                seen = len(log.records)
                await log.until(lambda records: {one.partition for one in records[seen:]} == set(range(4)))
                assert await goes_on.stop() == 0, goes_on.log
    finally:
        first.end()
        second.end()


@asynccontextmanager
async def working(settings: Settings, worker: WorkerProcess) -> AsyncIterator[None]:
    """Start the worker, and give it once it is at work in every partition."""
    worker.start()
    async with tail(settings, TopicNames(settings.prefix).activity) as log:
        await adopted(settings, log, worker)
    yield


@asynccontextmanager
async def traffic(settings: Settings, seed: int) -> AsyncIterator[None]:
    """Let people come and go in every partition, and one in each who never leaves."""
    async with producing(settings) as producer:
        goes_on = [
            asyncio.create_task(_people(producer, settings, number, random.Random(seed * 1000 + number)))
            for number in range(settings.partitions)
        ]
        try:
            yield
        finally:
            for task in goes_on:
                task.cancel()
            ends = await asyncio.gather(*goes_on, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def _people(producer: AIOKafkaProducer, settings: Settings, partition: int, chance: random.Random) -> None:
    subjects = subjects_of(partition, settings.partitions, 20)
    stays = {"session": f"stays-{partition}", "subject": subjects[0], "service": "web"}
    await send(producer, settings, {"type": "session.started", **stays, "age_ms": 0})
    here: list[dict[str, str]] = []
    for number in itertools.count():
        await send(producer, settings, {"type": "session.touched", **stays, "age_ms": 0})
        if chance.random() < 0.5:
            subject = chance.choice(subjects)
            here.append({"session": f"s-{partition}-{number}", "subject": subject, "service": "web"})
            await send(producer, settings, {"type": "session.started", **here[-1], "age_ms": 5, "policy": "short"})
        if here and chance.random() < 0.7:
            person = here[chance.randrange(max(0, len(here) - 15), len(here))]
            await send(producer, settings, {"type": "session.touched", **person, "age_ms": chance.randrange(0, 300)})
        if here and chance.random() < 0.05:
            await send(producer, settings, {"type": "session.closed", **chance.choice(here), "age_ms": 0})
        await asyncio.sleep(0.05)


async def owned_by(settings: Settings, owners: set[str]) -> None:
    """Wait until the last ticks of all partitions are of exactly these workers."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    last: dict[int, str] = {}
    async with tail(settings, TopicNames(settings.prefix).activity) as log:
        seen = 0
        while set(last.values()) != owners or len(last) < settings.partitions:
            assert asyncio.get_running_loop().time() < deadline, f"owners are {last}, wanted {owners}"
            await log.more()
            for record in log.records[seen:]:
                value = orjson.loads(record.value)
                if value["type"] == "clock.tick":
                    last[record.partition] = value["owner"]
            seen = len(log.records)


async def settled(settings: Settings) -> None:
    """Compare the endings with what the raw activity asks for; wait a while for those that are still on their way."""
    topics = TopicNames(settings.prefix)
    raw = await read_all(settings, topics.activity)
    expected = recompute(raw, policy="short", idle_ms=IDLE_MS, absolute_ms=ABSOLUTE_MS)
    assert len(expected) > 50
    async with tail(settings, topics.expiries) as log:
        ids = {ending_id(session) for session in expected}
        await log.until(lambda records: ids <= {one.get("id") for one in log.values()}, PATIENCE_S)
        endings = [record for record in log.records if orjson.loads(record.value)["type"] == "session.ended"]
    by_session: dict[str, set[bytes]] = {}
    for record in endings:
        value = orjson.loads(record.value)
        by_session.setdefault(value["session"], set()).add(record.value)
        assert record.timestamp >= value["due_at"], f"ended early: {value}"
        assert record.partition == value["evidence"]["partition"]
        assert record.key == value["session"].encode()
    assert all(len(values) == 1 for values in by_session.values()), "an ending came out again with other fields"
    for session, must in expected.items():
        (value,) = map(orjson.loads, by_session[session])
        assert value["id"] == ending_id(session)
        assert (value["cause"], value["due_at"]) == (must.cause, must.due_at)
        # The record that first shows it, or the owner's tick after that: only ticks move log time.
        assert value["decided_at"] >= must.decided_at
        assert value["evidence"]["offset"] >= must.offset
        assert value["policy"] == "short"
        assert not value["held"]
