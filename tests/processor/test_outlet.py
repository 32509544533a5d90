"""Goal: an operator hears of an outage while it lasts, and of a lost append with the place and what to do.

Method: an outlet with a producer of the test's own, whose appends end as the test likes, on a clock of the test's own.
"""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata, TopicPartition
from structlog.testing import capture_logs

from lapse.pipeline.processor import clocks
from lapse.pipeline.processor import outlet as outlet_module
from lapse.pipeline.processor.append_health import OVERDUE_MS
from lapse.pipeline.processor.outlet import DELIVERY_DEADLINE_S, Outlet, acknowledged
from lapse.schemas import RuntimeFault

DONE = RecordMetadata("t.expiries", 3, TopicPartition("t.expiries", 3), 0, 0, 0, 0)


class Producer:
    """Takes appends; the test says how they end."""

    def __init__(self) -> None:
        self.sent: list[asyncio.Future[RecordMetadata]] = []

    async def send(self, topic: str, value: bytes, key: bytes | None, partition: int) -> asyncio.Future[RecordMetadata]:
        self.sent.append(asyncio.get_running_loop().create_future())
        return self.sent[-1]


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(clocks, "mono_ms", lambda: own.now)
    return own


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> Producer:
    own = Producer()
    monkeypatch.setattr(outlet_module, "AIOKafkaProducer", lambda **_: own)
    return own


async def test_an_outage_is_told_once_while_it_lasts_and_its_end(clock: Clock, producer: Producer) -> None:
    faults: list[BaseException] = []
    outlet = Outlet("127.0.0.1:1", "w-effects", faults.append)
    with capture_logs() as said:
        await outlet.send("t.expiries", 3, b"{}")
        clock.now = OVERDUE_MS
        outlet._look()
        assert said == []
        for later in (1, 20_000):
            clock.now = OVERDUE_MS + later
            outlet._look()
        producer.sent[0].set_result(DONE)
        outlet._look()
        outlet._look()
    assert [(one["log_level"], one.get("where"), one.get("waited_ms")) for one in said] == [
        ("warning", "t.expiries-3", OVERDUE_MS + 1),
        ("info", None, None),
    ]
    assert faults == []


@pytest.mark.usefixtures("producer")
async def test_what_is_not_acknowledged_for_too_long_ends_the_outlet_with_its_place_and_what_to_do(
    clock: Clock,
) -> None:
    faults: list[BaseException] = []
    outlet = Outlet("127.0.0.1:1", "w-effects", faults.append)
    await outlet.send("t.expiries", 3, b"{}")
    clock.now = DELIVERY_DEADLINE_S * 1000 + 1
    outlet._look()
    outlet._look()
    (fault,) = faults
    assert isinstance(fault, RuntimeFault)
    assert "t.expiries-3" in str(fault)
    assert "min.insync.replicas" in str(fault)


@pytest.mark.usefixtures("clock")
async def test_an_append_that_failed_is_told_with_its_place_before_whoever_waits_for_it_can_tell_less(
    producer: Producer,
) -> None:
    faults: list[BaseException] = []
    outlet = Outlet("127.0.0.1:1", "w-effects", faults.append)
    sent = [await outlet.send("t.expiries", number, b"{}") for number in (2, 3)]
    told: list[int] = []

    async def wait() -> None:
        with pytest.raises(RuntimeFault):
            await acknowledged(sent)
        told.append(len(faults))

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    for one in producer.sent:
        one.set_exception(KafkaError("it is gone"))
    await waiting
    assert told == [1]
    assert str(faults[0]).startswith(
        "w-effects: an append to t.expiries-2 failed: KafkaError('it is gone'). See whether"
    )
