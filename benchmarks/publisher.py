"""How fast does a service tell what its users do?

Two rows, and a third:

    noted     calls of `touched()` a second, of sessions that are being touched already and of new ones, half each; the
              baseline is the least that joining needs: one look-up and one assignment in a dict
    written   touches a second that stand in the log (acks=all, idempotent), a touch each of so many sessions, from the
              first call until the flush returns; the baseline is a bare aiokafka producer of the same settings that
              sends the same touches, made ready beforehand, a record each
    noted_sync  as noted, from a request's thread into the publisher's thread, until the last one is taken
"""

from __future__ import annotations

import asyncio
import statistics
import time

from aiokafka import AIOKafkaProducer

from lapse.consumers import ActivityPublisher, SyncActivityPublisher
from lapse.consumers.producer import BATCH_BYTES_MAX
from lapse.schemas import SessionTouched, encode, partition_of, session_reference, subject_key

from benchmarks.lab import PARTITIONS, Lab, laboratory
from benchmarks.report import report, say

__all__ = ["run"]

SESSIONS = 100_000
TOUCHES = 200_000
_RUNS = 5
_WRITTEN_RUNS = 3
_FLUSH_S = 120.0


async def run() -> None:
    """`publisher`."""
    say(f"publisher: {TOUCHES} touches noted, of {SESSIONS} sessions")
    sessions = [(session_reference(f"s-{number}"), f"u-{number}") for number in range(SESSIONS)]
    noted = statistics.median([await _noted(sessions) for _ in range(_RUNS)])
    plain = statistics.median([_plain(sessions) for _ in range(_RUNS)])
    report("publisher", noted, "touches/s", plain, row="noted", sessions=SESSIONS, baseline_is="a dict look-up and set")
    threaded = statistics.median([await asyncio.to_thread(_noted_sync, sessions) for _ in range(_RUNS)])
    report("publisher", threaded, "touches/s", plain, row="noted_sync", sessions=SESSIONS, baseline_is="likewise")
    async with laboratory("publisher") as lab:
        bare, ours = [], []
        for number in range(_WRITTEN_RUNS):
            bare.append(await _bare(lab, sessions))
            ours.append(await _written(lab, sessions))
            say(f"publisher: run {number + 1}: bare {bare[-1]:.0f}/s, publisher {ours[-1]:.0f}/s")
    report(
        "publisher",
        statistics.median(ours),
        "touches/s",
        statistics.median(bare),
        row="written",
        sessions=SESSIONS,
        baseline_is="a bare aiokafka producer, the same touches ready-made, a record each",
    )


async def _noted(sessions: list[tuple[str, str]]) -> float:
    publisher = ActivityPublisher("127.0.0.1:1", service="bench", sessions_max=2 * SESSIONS)
    async with publisher:
        began = time.perf_counter()
        for _ in range(TOUCHES // SESSIONS):
            for session, subject in sessions:
                publisher.touched(session, subject)
        took = time.perf_counter() - began
        assert publisher.waiting == SESSIONS
        await publisher.stop(0.0)
    return TOUCHES / took


def _noted_sync(sessions: list[tuple[str, str]]) -> float:
    with SyncActivityPublisher("127.0.0.1:1", service="bench", sessions_max=2 * SESSIONS) as publisher:
        began = time.perf_counter()
        for _ in range(TOUCHES // SESSIONS):
            for number, (session, subject) in enumerate(sessions):
                publisher.touched(session, subject)
                if number % 10_000 == 0:  # no request makes so many calls without ever letting another thread run
                    time.sleep(0)
        while publisher.stats.touches + publisher.stats.dropped < TOUCHES:
            time.sleep(0.001)
        took = time.perf_counter() - began
        assert publisher.stats.dropped == 0, publisher.stats
        publisher.stop(0.0)
    return TOUCHES / took


def _plain(sessions: list[tuple[str, str]]) -> float:
    known: dict[str, float] = {}
    began = time.perf_counter()
    for _ in range(TOUCHES // SESSIONS):
        for session, _ in sessions:
            if known.get(session) is None:
                known[session] = 0.0
            known[session] = 1.0
    return TOUCHES / (time.perf_counter() - began)


async def _bare(lab: Lab, sessions: list[tuple[str, str]]) -> float:
    ready = [
        (
            encode(SessionTouched(session=session, subject=subject, service="bench", age_ms=0)),
            subject_key(subject, None),
            partition_of(subject, None, PARTITIONS),
        )
        for session, subject in sessions
    ]
    producer = AIOKafkaProducer(
        bootstrap_servers=lab.settings.kafka, acks="all", enable_idempotence=True, max_batch_size=BATCH_BYTES_MAX
    )
    async with producer:
        await producer.partitions_for(lab.topics.activity)
        began = time.perf_counter()
        for value, key, partition in ready:
            await producer.send(lab.topics.activity, value, key=key, partition=partition)
        await producer.flush()
        return len(sessions) / (time.perf_counter() - began)


async def _written(lab: Lab, sessions: list[tuple[str, str]]) -> float:
    publisher = ActivityPublisher(lab.settings.kafka, service="bench", prefix=lab.settings.prefix)
    async with publisher:
        publisher.closed(session_reference("first"), "u")  # connects
        assert await publisher.flush(_FLUSH_S)
        began = time.perf_counter()
        for number, (session, subject) in enumerate(sessions):
            publisher.touched(session, subject)
            if number % 1_000 == 0:
                await asyncio.sleep(0)
        assert await publisher.flush(_FLUSH_S)
        took = time.perf_counter() - began
        assert publisher.stats.dropped == 0, publisher.stats
    return len(sessions) / took
