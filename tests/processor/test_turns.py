"""Goal: in a burst the first endings of a batch are out before another partition applies, and no longer than that.

Method: a publisher with an outlet that acknowledges when it is told to, and turns that partitions take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from aiokafka.structs import RecordMetadata

from lapse.pipeline.engine import Effects, EngineSettings, PartitionEngine
from lapse.pipeline.processor.metrics import Metrics
from lapse.pipeline.processor.outlet import Outlet
from lapse.pipeline.processor.publishing import Publisher
from lapse.pipeline.processor.turns import Turns
from lapse.schemas import TopicNames, parse_expiry

from tests.engine.records import KEY, Log, everyone_revoked, started

BURST = 2_500


class ToldOutlet:
    """Takes everything, and acknowledges when it is told to."""

    def __init__(self) -> None:
        self.taken: list[list[bytes]] = []
        self.handed_over = asyncio.Event()
        self.stands: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()

    async def send_many(
        self, topic: str, partition: int, records: Sequence[tuple[bytes, bytes]]
    ) -> list[asyncio.Future[RecordMetadata]]:
        self.taken.append([value for _, value in records])
        self.handed_over.set()
        return [self.stands]


def burst(count: int) -> Effects:
    engine = PartitionEngine(EngineSettings(partition=0, partitions=1, worker_key=KEY))
    log = Log(engine.settings)
    for number in range(count):
        log.add(0, started(f"s{number}", subject=f"u-{number}"))
    engine.apply(log.records)
    return engine.apply([log.add(10, everyone_revoked(10))])


def publisher(outlet: ToldOutlet) -> Publisher:
    return Publisher(TopicNames("t."), 0, cast(Outlet, outlet), Metrics())


async def test_a_turn_of_a_burst_ends_when_the_first_endings_stand_in_the_log() -> None:
    outlet, turns, effects = ToldOutlet(), Turns(), burst(BURST)
    order: list[str] = []

    async def first() -> None:
        async with turns.taken() as leave:
            await publisher(outlet).publish(effects, first_out=leave)
        order.append("all written")

    async def second() -> None:
        async with turns.taken():
            order.append(f"second, {len(outlet.taken)} slice out")

    tasks = [asyncio.create_task(first()), asyncio.create_task(second())]
    await outlet.handed_over.wait()
    outlet.stands.set_result(cast(RecordMetadata, None))
    await asyncio.gather(*tasks)
    assert order[-1] == "all written"
    assert order[0].startswith("second")
    written = [parse_expiry(value) for values in outlet.taken for value in values]
    assert written == list(effects.endings)


async def test_a_turn_ends_though_nothing_is_acknowledged() -> None:
    outlet, turns = ToldOutlet(), Turns()
    async with turns.taken() as leave:
        await publisher(outlet).publish(burst(BURST), first_out=leave)
        async with turns.taken():
            assert not outlet.stands.done()
    assert sum(map(len, outlet.taken)) == BURST


async def test_without_a_burst_nothing_is_waited_for() -> None:
    outlet, left = ToldOutlet(), list[int]()
    await publisher(outlet).publish(burst(3), first_out=lambda: left.append(len(outlet.taken)))
    assert left == [0]
    assert len(outlet.taken) == 1


async def test_a_turn_that_fails_is_left() -> None:
    turns = Turns()
    try:
        async with turns.taken():
            raise RuntimeError("in the middle")
    except RuntimeError:
        pass
    async with turns.taken() as leave:
        leave()
        leave()
        async with turns.taken():
            pass
