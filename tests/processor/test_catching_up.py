"""Goal: a partition that has much to catch up with neither stands still nor looks as if it did.

Method: one owned partition with a real engine (test_partition.py), whose backlog is never read to its end; in it,
records that belong to another partition, which can be forwarded only once a tick has told log time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from aiokafka import ConsumerRecord
from aiokafka.structs import RecordMetadata

from lapse.pipeline.processor import forwarding
from lapse.pipeline.processor.core import Core, _Slot
from lapse.pipeline.processor.watchdog import StallDetector
from lapse.schemas import partition_of

from tests.processor.test_partition import SETTINGS, HeldOutlet, KeptWriter, owned, record

NEVER = 1_000
"""Where the backlog ends; no test comes so far."""

HERE = next(name for name in map("u-{}".format, range(99)) if partition_of(name, None, 2) == 0)
ELSEWHERE = next(name for name in map("u-{}".format, range(99)) if partition_of(name, None, 2) == 1)


def misplaced(*offsets: int) -> Sequence[ConsumerRecord]:
    return [record(offset, type="session.touched", session=f"s-{offset}", subject=ELSEWHERE) for offset in offsets]


def forwarded(outlet: HeldOutlet) -> int:
    return sum(b'"forwarded":' in value for _, value in outlet.sent)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # of several kinds, and not all of them tell
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 20], ids="{} misplaced".format)
async def test_misplaced_records_do_not_stop_a_partition_that_catches_up(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Neither one, which the forwarder has in hand, nor more than may wait, while checkpoints want to be made."""
    monkeypatch.setattr(forwarding, "_WAITING_MAX", 3)
    outlet, writer, faults = HeldOutlet(), KeptWriter(), list[BaseException]()
    partition = owned(outlet, writer, faults, interval_ms=20, partitions=2, caught_up_at=NEVER)
    partition.start()
    await asyncio.sleep(0)  # it looks whether there is anything to wait for
    await partition.offer(misplaced(*range(count)))
    await until(lambda: any(one.offset == count for one in writer.written))
    assert forwarded(outlet) == count
    assert await partition.close(checkpoint=True, deadline_s=5)
    assert faults == []


async def test_a_tick_does_not_wait_for_a_checkpoint() -> None:
    """Which may itself wait, for whatever it depends on."""
    outlet, writer, faults = HeldOutlet(), KeptWriter(), list[BaseException]()
    partition = owned(outlet, writer, faults, interval_ms=20, partitions=2, caught_up_at=NEVER)
    partition.start()
    outlet.taken.set_result(None)
    await partition.offer([record(0, type="session.started", subject=HERE)])
    await partition.offer([record(1, type="session.closed", subject=HERE)])
    await until(outlet.stands.awaited.is_set)
    await partition.offer(misplaced(2))
    await until(lambda: forwarded(outlet) == 1)
    assert all(one.offset < 2 for one in writer.written)
    outlet.stands.set_result(RecordMetadata("t", 0, None, 9, 1_000, 1, 0))
    assert await partition.close(checkpoint=True, deadline_s=5)
    assert writer.written[-1].offset == 3
    assert faults == []


class LateTicks(HeldOutlet):
    """Acknowledges ticks only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.ticked = asyncio.Event()
        self.let = asyncio.Event()

    async def send(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None
    ) -> asyncio.Future[RecordMetadata]:
        if b"clock.tick" in value:
            self.ticked.set()
            await self.let.wait()
        return await super().send(topic, partition, value, key)


async def test_the_last_checkpoint_gets_the_tick_that_it_waits_for() -> None:
    """Else the group would wait for nothing at each rebalance that comes early in a catching up."""
    outlet, writer, faults = LateTicks(), KeptWriter(), list[BaseException]()
    partition = owned(outlet, writer, faults, partitions=2, caught_up_at=NEVER)
    partition.start()
    await asyncio.sleep(0)
    await partition.offer(misplaced(0))
    await until(outlet.ticked.is_set)
    closing = asyncio.create_task(partition.close(checkpoint=True, deadline_s=2))
    await asyncio.sleep(0.01)
    outlet.let.set()
    assert await closing
    assert [one.offset for one in writer.written] == [1]
    assert forwarded(outlet) == 1
    assert faults == []


async def test_records_that_wait_for_the_clock_are_no_standstill() -> None:
    """Where ticks are slow they wait for long, and more comes and is read: a restart would only read it again."""
    partition = owned(HeldOutlet(), KeptWriter(), [])
    core = Core(SETTINGS, crash=lambda _: None)
    core._slots[0] = slot = _Slot()
    slot.partition = partition
    detector = StallDetector(30.0)
    stamps = [1_000, *(9_000 + 1_000 * more for more in range(60))]  # a jump: from there on all waits
    stalls = []
    for offset, stamp in enumerate(stamps):
        touch = record(offset, type="session.touched")
        partition._engine.apply([ConsumerRecord("t", 0, offset, stamp, 1, None, touch.value, None, 0, 0, ())])
        stalls.append(detector.told(float(offset), offset=core._offsets()[0], end=len(stamps) + 1))
    assert partition._engine.waiting == 60
    assert not any(stalls)
    core._slots.clear()
    await core.stop()
