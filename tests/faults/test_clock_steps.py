"""Goal: a real broker's clock is set by an hour and by eight days under live sessions, and no session ends early.

Method: a broker with a wall clock of its own (clock_shim.c), a real worker, and people in true time, which here is this
process's monotonic clock: some are active throughout, some leave. Each step is held for some seconds and taken back.
When an ending is seen it is held against when its session was last touched. The worker is started again when it ends
by itself, as its supervisor would.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from lapse.pipeline.processor.reading import consuming
from lapse.pipeline.settings import Settings
from lapse.schemas import Policy, TopicNames

from tests.brokers import Broker, make_topic
from tests.faults.clock_shim import ShimmedBroker, shimmed_broker
from tests.processor.support import Log, WorkerProcess, adopted, prepare, producing, send, subjects_of, tail

pytestmark = [pytest.mark.faults, pytest.mark.slow]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
IDLE_MS = 4_000
HELD_S = 8.0
STEPS = (HOUR_MS, 0, -HOUR_MS, 0, 8 * DAY_MS, 0)
# From due to the ending seen here. A step costs the decision (some ms to seconds), a fenced transaction a new start of
# the worker and with it a hold; this machine is shared.
LATE_MAX_S = 40.0


class People:
    """Users in true time: those who stay, and one who leaves every 0.7 s."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._producer = producer
        self.last: dict[str, float] = {}
        """By session, when its last touch was sent."""
        self.gone = False

    async def live(self) -> None:
        subjects = [subject for number in range(2) for subject in subjects_of(number, self._settings.partitions, 3)]
        stay = [(f"stays-{subject}".ljust(22, "_"), subject) for subject in subjects]
        for session, subject in stay:
            await self._say("session.started", session, subject)
        number = 0
        while not self.gone:
            for session, subject in stay:
                await self._say("session.touched", session, subject)
            number += 1
            subject = subjects[number % len(subjects)]
            await self._say("session.started", f"leaves-{number}".ljust(22, "_"), subject)
            await asyncio.sleep(0.7)

    async def _say(self, kind: str, session: str, subject: str) -> None:
        self.last[session] = time.monotonic()
        record = {"type": kind, "session": session, "subject": subject, "service": "web", "age_ms": 0}
        await send(self._producer, self._settings, record)


class Endings:
    """What is seen of lapse.expiries, and when."""

    def __init__(self, log: Log, people: People) -> None:
        self._log = log
        self._people = people
        self.early: list[str] = []
        self.late_s: dict[str, float] = {}
        self.values: dict[str, set[bytes]] = {}

    async def watch(self) -> None:
        seen = 0
        while True:
            await self._log.more()
            now = time.monotonic()
            for record in self._log.records[seen:]:
                value = orjson.loads(record.value)
                if value["type"] != "session.ended":
                    continue
                session = value["session"]
                self.values.setdefault(session, set()).add(record.value)
                after = now - self._people.last[session] - IDLE_MS / 1000
                if after < 0:
                    self.early.append(f"{session} {-after:.3f} s early: {value}")
                self.late_s.setdefault(session, after)
            seen = len(self._log.records)


@asynccontextmanager
async def supervised(worker: WorkerProcess) -> AsyncIterator[list[float]]:
    """Run a worker, and start it again whenever it ends; give when that was."""
    restarts: list[float] = []

    async def supervise() -> None:
        while True:
            with suppress(TimeoutError):
                await worker.wait(within_s=1e9)
            restarts.append(time.monotonic())
            worker.start()

    worker.start()
    watching: asyncio.Task[None] | None = None
    try:
        await worker.restored()
        watching = asyncio.create_task(supervise())
        yield restarts
    finally:
        if watching is not None:
            watching.cancel()
        worker.end()


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[ShimmedBroker]:
    """Give a broker whose clock can be set, and that looks for old segments every two seconds."""
    with shimmed_broker(
        tmp_path / "broker", log_retention_check_interval_ms="2000", log_initial_task_delay_ms="1000"
    ) as broker:
        yield broker


async def test_no_session_ends_early_when_the_brokers_clock_is_set(stepped: ShimmedBroker, tmp_path: Path) -> None:
    broker = stepped
    settings = Settings(
        kafka=broker.bootstrap,
        prefix="steps.",
        partitions=2,
        worker="w-1",
        worker_key=b"k" * 32,
        checkpoint_interval_ms=2_000,
    )
    topics = TopicNames(settings.prefix)
    await prepare(settings, Policy(name="default", idle_ms=IDLE_MS, absolute_ms=HOUR_MS))
    make_topic(Broker(broker.bootstrap, "maven"), "kept-by-the-brokers-clock", 1, {"retention.ms": str(7 * DAY_MS)})
    async with producing(settings) as producer:
        await producer.send_and_wait("kept-by-the-brokers-clock", b"1")
        worker = WorkerProcess(settings, tmp_path / "worker.log")
        async with supervised(worker) as restarts, tail(settings, topics.expiries) as log:
            async with tail(settings, topics.activity) as activity:
                await adopted(settings, activity, worker)
            people = People(settings, producer)
            endings = Endings(log, people)
            tasks = [asyncio.create_task(people.live()), asyncio.create_task(endings.watch())]
            try:
                await asyncio.sleep(HELD_S)
                for offset_ms in STEPS:
                    broker.set_clock(offset_ms)
                    await asyncio.sleep(HELD_S)
                    assert not tasks[0].done(), tasks[0]
                people.gone = True
                deadline = time.monotonic() + LATE_MAX_S
                while set(people.last) - set(endings.late_s):
                    missed = set(people.last) - set(endings.late_s)
                    assert time.monotonic() < deadline, f"missed: {missed}\n{worker.log[-5000:]}"
                    await asyncio.sleep(0.2)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    said = [json.loads(line) for line in worker.log.splitlines() if "clock was set" in line]
    late = sorted(endings.late_s.values())
    print(
        f"\nsessions {len(late)}, early {len(endings.early)}, late p50 {late[len(late) // 2]:.2f} s, "
        f"max {late[-1]:.2f} s, restarts {len(restarts)}, alarms {[(a['kind'], a['moved_ms']) for a in said]}"
    )
    assert endings.early == []
    assert all(len(values) == 1 for values in endings.values.values()), "an ending came out again with other fields"
    assert late[-1] < LATE_MAX_S
    assert {alarm["kind"] for alarm in said} >= {"forward", "back"}
    # The broker's own retention has gone by the stepped clock; ours has not.
    tps = [TopicPartition(topics.activity, 0), TopicPartition(topics.activity, 1)]
    async with consuming(broker.bootstrap, "test") as consumer:
        assert set((await consumer.beginning_offsets(tps)).values()) == {0}
        control = TopicPartition("kept-by-the-brokers-clock", 0)
        assert await consumer.beginning_offsets([control]) == {control: 1}
