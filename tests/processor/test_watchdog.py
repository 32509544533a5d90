"""Does the watchdog end a worker whose partition stands still, and leave one alone that merely waits or is cut off?"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from aiokafka import TopicPartition

from lapse.pipeline.processor.core import Core
from lapse.pipeline.processor.leaving import member_of
from lapse.pipeline.processor.originals import not_the_log
from lapse.pipeline.processor.watchdog import StallDetector, watch
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault, TopicNames

from tests.processor.support import prepare, producing, send, subjects_of

STALL_S = 30.0


def told(*rows: tuple[float, int, int | None]) -> list[bool]:
    detector = StallDetector(STALL_S)
    return [detector.told(now, offset=offset, end=end) for now, offset, end in rows]


def test_a_log_that_goes_on_without_us_is_a_stall() -> None:
    assert told((0, 7, 9), (10, 7, 20), (29.9, 7, 50), (30, 7, 50)) == [False, False, False, True]


def test_a_log_that_we_have_read_to_its_end_is_none() -> None:
    assert not any(told((0, 9, 9), (100, 9, 9), (200, 9, 9)))
    assert told((0, 9, 9), (100, 9, 12), (120, 9, 12), (130, 9, 12))[-2:] == [False, True]


def test_any_progress_begins_anew() -> None:
    assert not any(told((0, 7, 90), (29, 7, 90), (31, 8, 90), (60, 8, 90)))


def test_a_broker_that_does_not_answer_is_no_stall() -> None:
    assert told((0, 7, 9), (20, 7, None), (31, 7, 9), (60, 7, 9), (61, 7, 9)) == [False, False, False, False, True]


@pytest.mark.broker
async def test_a_worker_that_is_brought_nothing_ends(settings: Settings) -> None:
    """A real core on a real broker, whose consumer has died without a word: nobody calls `process`."""
    await prepare(settings)
    faults: list[BaseException] = []
    core = Core(settings, crash=faults.append)
    await core.start()
    try:
        await core.assigned(range(settings.partitions))
        (subject,) = subjects_of(2, settings.partitions, 1)
        async with producing(settings) as producer:
            await send(producer, settings, {"type": "session.started", "session": "s", "subject": subject,
                                            "service": "web", "age_ms": 0})  # fmt: skip
        with pytest.raises(RuntimeFault, match=r"activity-\d goes on .* has been read for 2 s.*Start"):
            async with asyncio.timeout(60):
                await watch(
                    settings.kafka, "test", core._positions, partial(not_the_log, settings), stall_s=2, interval_s=0.3
                )
    finally:
        await core.stop()


@pytest.mark.broker
async def test_a_log_that_ends_below_what_was_applied_is_another_one(settings: Settings) -> None:
    await prepare(settings)
    tp = TopicPartition(TopicNames(settings.prefix).activity, 1)
    with pytest.raises(RuntimeFault, match=r"activity-1 is not the log that the state at offset 5 is of.*made anew"):
        async with asyncio.timeout(60):
            await watch(settings.kafka, "test", lambda: {tp: 5}, partial(not_the_log, settings), interval_s=0.1)


@pytest.mark.broker
async def test_an_answer_that_is_behind_once_is_an_old_leaders(settings: Settings) -> None:
    """It ends below what was applied in two answers, and then no more: nothing is said of another log."""
    await prepare(settings)
    topics = TopicNames(settings.prefix)
    asked: list[int] = []

    def read() -> dict[TopicPartition, int]:
        asked.append(5 if len(asked) % 3 < 2 else 0)
        return {TopicPartition(topics.activity, 1): asked[-1]}

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await watch(settings.kafka, "test", read, partial(not_the_log, settings), interval_s=0.05)
    assert len(asked) > 9


@pytest.mark.parametrize(
    ("worker", "members", "found"),
    [
        ("a", ["b-6f1c1c7e-8b0a-4c38-9f6e-7a4a1d6f2b11"], None),
        ("a", ["a-6f1c1c7e-8b0a-4c38-9f6e-7a4a1d6f2b11"], "a-6f1c1c7e-8b0a-4c38-9f6e-7a4a1d6f2b11"),
        ("a", ["a-b-6f1c1c7e-8b0a-4c38-9f6e-7a4a1d6f2b11"], None),
        ("a-b", ["a-b-6f1c1c7e-8b0a-4c38-9f6e-7a4a1d6f2b11"], "a-b-6f1c1c7e-8b0a-4c38-9f6e-7a4a1d6f2b11"),
        ("a", ["a-3Zq3m0fNR0y3p2cE5n1h7A"], "a-3Zq3m0fNR0y3p2cE5n1h7A"),
    ],
)
def test_a_worker_knows_its_own_membership_from_others(worker: str, members: list[str], found: Any) -> None:
    assert member_of(worker, members) == found
