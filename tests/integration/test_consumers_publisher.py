"""Does what services tell stand in the log as the contract says?

A real publisher writes to a real broker; the topic is read back raw.
"""

import time

from lapse.consumers import ActivityPublisher, session_reference
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    PackedTouches,
    SessionClosed,
    SessionStarted,
    SessionTouched,
    TopicNames,
    parse_activity,
    parse_packed_entry,
    partition_of,
    subject_key,
)

from tests.consumers.support import free_port, read_all, writing


async def test_a_session_is_told_in_the_order_in_which_it_happened(settings: Settings) -> None:
    session = session_reference("one")
    async with (
        writing(settings),
        ActivityPublisher(settings.kafka, service="shop", prefix=settings.prefix) as publisher,
    ):
        publisher.started(session, "u-1", tenant="acme", policy="workforce", attributes={"role": "admin"})
        publisher.touched(session, "u-1", tenant="acme")
        publisher.closed(session, "u-1", tenant="acme")
        assert await publisher.flush(30.0)
        records = await read_all(settings, TopicNames(settings.prefix).activity, 3)
    assert [type(parse_activity(record.value)) for record in records] == [SessionStarted, SessionTouched, SessionClosed]
    assert {record.partition for record in records} == {partition_of("u-1", "acme", settings.partitions)}
    assert {record.key for record in records} == {subject_key("u-1", "acme")}
    assert publisher.stats.records == 3


async def test_touches_that_wait_together_travel_packed_in_their_subjects_partition(settings: Settings) -> None:
    sessions = {session_reference(f"s-{n}"): f"u-{n}" for n in range(1_200)}
    async with (
        writing(settings),
        ActivityPublisher(settings.kafka, service="shop", prefix=settings.prefix) as publisher,
    ):
        for session, subject in sessions.items():
            publisher.touched(session, subject)
        assert await publisher.flush(30.0)
        records = await read_all(settings, TopicNames(settings.prefix).activity, publisher.stats.records)
    told = {}
    for record in records:
        packed = parse_activity(record.value)
        assert isinstance(packed, PackedTouches)
        assert record.key is None
        assert len(packed.touches) <= 500
        for index, entry in enumerate(packed.touches):
            touch = parse_packed_entry(entry, index)
            assert partition_of(touch.subject, touch.tenant, settings.partitions) == record.partition
            told[touch.session] = touch.subject
    assert told == sessions
    assert len(records) < 20


async def test_a_dead_producer_is_replaced_and_nothing_is_lost(settings: Settings) -> None:
    first, second = session_reference("first"), session_reference("second")
    async with (
        writing(settings),
        ActivityPublisher(settings.kafka, service="shop", prefix=settings.prefix, delivery_timeout_ms=500) as publisher,
    ):
        publisher.touched(first, "u-1")
        assert await publisher.flush(30.0)
        assert publisher._pump is not None
        # As an out-of-order sequence does it (aiokafka issue 1017): from now on it takes records and sends none.
        (await publisher._pump._producer.ready())._sender.sender_task.cancel()
        publisher.touched(second, "u-1")
        told_at = time.monotonic()
        assert await publisher.flush(30.0)
        records = await read_all(settings, TopicNames(settings.prefix).activity, 2)
    assert publisher.stats.failures >= 1
    activities = [parse_activity(record.value) for record in records]
    assert [activity.session for activity in activities if isinstance(activity, SessionTouched)][:2] == [first, second]
    last = activities[-1]
    assert isinstance(last, SessionTouched)
    # The age was taken at the attempt that succeeded, not at the first one.
    assert 400 <= last.age_ms <= (time.monotonic() - told_at) * 1000 + 100


async def test_a_service_starts_and_is_not_held_up_while_there_is_no_broker() -> None:
    publisher = ActivityPublisher(f"127.0.0.1:{free_port()}", service="shop", delivery_timeout_ms=200)
    started_at = time.monotonic()
    async with publisher:
        for n in range(1_000):
            publisher.touched(session_reference(f"s-{n}"), "u")
        publisher.closed(session_reference("s-1"), "u")
        assert time.monotonic() - started_at < 0.5
        assert not await publisher.flush(0.5)
        assert publisher.stats.waiting == 1_001
