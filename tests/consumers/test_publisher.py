"""What does a service's call become? The publisher over an in-memory log: same coalescer, outbox and packing."""

import logging
import threading
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder

from lapse.consumers import ActivityPublisher, ConfigError, session_reference
from lapse.consumers.activity.coalescer import Coalescer
from lapse.consumers.activity.outbox import EVENTS_MAX, Outbox
from lapse.consumers.activity.packing import Activity, Event, record_of_event
from lapse.consumers.activity.publisher import INBOX_MAX
from lapse.consumers.testing import MemoryPublisher
from lapse.schemas import (
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
    parse_activity,
    subject_key,
)

A, B = session_reference("a"), session_reference("b")


def test_each_activity_is_told_with_its_fields() -> None:
    publisher = MemoryPublisher(service="shop")
    publisher.started(
        A, "u-1", tenant="acme", policy="p", device="d", network="n", attributes={"r": "x"}, token_life_ms=9
    )
    publisher.refreshed(A, "u-1", tenant="acme", generation=4)
    publisher.elevated(A, "u-1", tenant="acme", session_age_ms=60_000)
    publisher.closed(A, "u-1", tenant="acme")
    common = {"session": A, "subject": "u-1", "tenant": "acme", "service": "shop", "age_ms": 0}
    assert publisher.take() == [
        SessionStarted.model_validate(
            {**common, "policy": "p", "device": "d", "network": "n", "attributes": {"r": "x"}, "token_life_ms": 9}
        ),
        SessionRefreshed.model_validate({**common, "generation": 4}),
        SessionElevated.model_validate({**common, "session_age_ms": 60_000}),
        SessionClosed.model_validate(common),
    ]


def test_ages_grow_while_an_activity_waits() -> None:
    publisher = MemoryPublisher()
    publisher.closed(A, "u")
    publisher.touched(B, "u")
    publisher.clock.advance(1_234)
    assert sorted(activity.age_ms for activity in publisher.take()) == [1_234, 1_234]


def test_a_login_counts_as_a_touch_so_the_next_one_waits_an_interval() -> None:
    publisher = MemoryPublisher()
    publisher.started(A, "u")
    publisher.touched(A, "u")
    assert [type(activity) for activity in publisher.take()] == [SessionStarted]
    publisher.clock.advance(5_000)
    (touch,) = publisher.take()
    assert isinstance(touch, SessionTouched)
    assert touch.age_ms == 5_000


def test_what_waits_of_a_session_is_told_before_it_is_closed() -> None:
    publisher = MemoryPublisher()
    publisher.touched(A, "u")
    publisher.take()
    publisher.clock.advance(1_000)
    publisher.touched(A, "u")
    publisher.clock.advance(1_000)
    publisher.closed(A, "u")
    assert [(type(a), a.age_ms) for a in publisher.take()] == [(SessionTouched, 1_000), (SessionClosed, 0)]


def test_a_hold_is_told_at_once_and_other_extras_with_the_first_touch() -> None:
    publisher = MemoryPublisher()
    publisher.touched(A, "u", device="d", session_age_ms=70_000)
    publisher.touched(A, "u", device="d", session_age_ms=70_001)
    publisher.touched(A, "u", hold_ms=600_000)
    told = publisher.take()
    assert all(isinstance(touch, SessionTouched) for touch in told)
    assert [(t.device, t.session_age_ms, t.hold_ms) for t in told if isinstance(t, SessionTouched)] == [
        ("d", 70_000, None),
        (None, None, 600_000),
    ]


def test_a_session_s_age_is_told_with_its_first_touch_and_again_after_a_silence() -> None:
    publisher = MemoryPublisher()
    begun = publisher.clock() - 60_000
    told: list[Activity] = []
    for waited in (0, 3_000, 3_000, 11_000):
        publisher.clock.advance(waited)
        told += publisher.take()
        publisher.touched(A, "u", session_age_ms=int(publisher.clock() - begun))
        told += publisher.take()
    assert [(t.age_ms, t.session_age_ms) for t in told if isinstance(t, SessionTouched)] == [
        (0, 60_000),
        (3_000, None),
        (11_000, None),
        (0, 77_000),
    ]


def test_a_session_s_age_that_comes_late_is_told_with_the_next_touch() -> None:
    publisher = MemoryPublisher()
    publisher.touched(A, "u")
    publisher.take()
    publisher.touched(A, "u", session_age_ms=70_000)
    publisher.touched(A, "u", session_age_ms=-5)  # the wall clock was set: the first one counts
    publisher.clock.advance(5_000)
    assert [t.session_age_ms for t in publisher.take() if isinstance(t, SessionTouched)] == [70_000]


def test_a_session_s_age_is_told_anew_with_what_did_not_arrive() -> None:
    """It counts from the latest touch, which has come since."""
    now = 1_000_000.0
    coalescer = Coalescer(5_000)
    outbox = Outbox(coalescer, service="s", touch_interval_ms=5_000, clock=lambda: now)
    told = []
    coalescer.touch(A, "u", None, now, now - 60_000)
    for lands in (False, True):
        outbox.place(1)
        batch = BatchBuilder(65_536, 0, is_transactional=False)
        load = outbox.load(0, batch)
        coalescer.touch(A, "u", None, now + 1_000, now)
        (outbox.landed if lands else outbox.lost)(load)
        told.append(load.touches[0].session_age_ms)
        now += 1_000
    assert told == [60_000, 61_000]


@pytest.mark.parametrize("extras", [{}, {"device": "d"}, {"hold_ms": 60_000}])
def test_no_session_is_forgotten_when_more_are_active_in_an_outage_than_events_are_kept(extras: dict[str, Any]) -> None:
    """Each is touched three times, as through the middlewares: with its age."""
    publisher = MemoryPublisher()
    sessions = [f"{number:022d}" for number in range(EVENTS_MAX + 100)]
    for second in range(3):
        for session in sessions:
            publisher.touched(session, "u", session_age_ms=60_000 + second * 1_000, **extras)
        publisher.clock.advance(1_000)
    publisher.clock.advance(5_000)  # what was noted as an event cools
    latest: dict[str, int] = {}
    starts: dict[str, int] = {}
    for touch in publisher.take():
        assert isinstance(touch, SessionTouched)
        latest[touch.session] = min(latest.get(touch.session, touch.age_ms), touch.age_ms)
        if touch.session_age_ms is not None:
            starts[touch.session] = touch.session_age_ms + touch.age_ms
    assert latest == dict.fromkeys(sessions, 6_000)
    assert starts == dict.fromkeys(sessions, 68_000)
    if not extras:
        assert publisher.stats.dropped == 0  # otherwise it counts what was told without them


def test_of_a_login_that_cannot_be_kept_a_touch_is_told_that_says_when_it_was() -> None:
    publisher = MemoryPublisher()
    for number in range(EVENTS_MAX):
        publisher.refreshed(f"{number:022d}", "u")
    publisher.started(A, "u", policy="p")
    publisher.elevated(B, "u", session_age_ms=9_000)
    publisher.refreshed(A, "u")
    publisher.closed(A, "u")
    publisher.clock.advance(2_000)
    touches = [activity for activity in publisher.take() if not isinstance(activity, SessionRefreshed)]
    assert [(t.session, t.age_ms, t.session_age_ms) for t in touches if isinstance(t, SessionTouched)] == [
        (A, 2_000, 0),
        (B, 2_000, 9_000),
    ]
    assert (len(touches), publisher.stats.dropped) == (2, 4)


@pytest.mark.parametrize(
    ("session", "subject", "tenant"),
    [
        ("a-raw-session-id", "u", None),
        (A, "", None),
        (A, "u" * 257, None),
        (A, "u", "a/b"),
        (A, "u", ""),
        (A, "\ud800", None),
        (A, None, None),
        (None, "u", None),
        (A, "u", 5),
    ],
)
def test_what_the_wire_would_refuse_is_dropped_counted_and_not_repeated(
    session: str, subject: str, tenant: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = MemoryPublisher()
    with caplog.at_level(logging.WARNING, "lapse.consumers"):
        publisher.touched(session, subject, tenant=tenant)
        publisher.started(session, subject, tenant=tenant)
        publisher.closed(session, subject, tenant=tenant)
    assert publisher.take() == []
    assert publisher.stats.malformed == 3
    assert caplog.records
    assert "a-raw-session-id" not in caplog.text


def test_a_bad_field_is_dropped_and_never_raises() -> None:
    publisher = MemoryPublisher()
    publisher.started(A, "u", token_life_ms=0)
    publisher.started(A, "u", attributes={"role": 5})  # type: ignore[dict-item]  # what is tested
    publisher.started(A, "u", attributes=7)  # type: ignore[arg-type]  # what is tested
    publisher.refreshed(A, "u", generation="4")  # type: ignore[arg-type]  # what is tested
    publisher.touched(A, "u", hold_ms="x")  # type: ignore[arg-type]  # what is tested
    publisher.touched(A, "u", session_age_ms="x")  # type: ignore[arg-type]  # what is tested
    publisher.touched(A, "u", session_age_ms=10**400)
    publisher.started(A, "u", attributes={f"{n}" * 30: "x" * 256 for n in range(300)})  # more than a record holds
    assert publisher.take() == []
    assert publisher.stats.malformed == 8


def test_complaints_are_few_however_many_calls_are_wrong(caplog: pytest.LogCaptureFixture) -> None:
    publisher = MemoryPublisher()
    for _ in range(1_000):
        publisher.touched("wrong", "u")
    publisher.clock.advance(10_000)
    publisher.touched("wrong", "u")
    assert len(caplog.records) == 2
    assert publisher.stats.malformed == 1_001


def test_an_event_older_than_the_wire_can_say_is_told_at_the_oldest_age() -> None:
    activity = SessionClosed(session=A, subject="u", tenant="t", service="s", age_ms=0)
    key, value = record_of_event(Event(activity, 0.0), 10 * 3_600_000.0)
    assert key == subject_key("u", "t")
    closed = parse_activity(value)
    assert isinstance(closed, SessionClosed)
    assert closed.age_ms == 3_600_000


def test_a_touch_too_old_to_be_told_counts_as_dropped() -> None:
    publisher = MemoryPublisher()
    publisher.touched(A, "u")
    publisher.clock.advance(3_600_001)
    assert publisher.take() == []
    assert (publisher.stats.dropped, publisher.waiting) == (1, 0)


def test_what_would_look_younger_than_it_is_counts_as_dropped_and_the_rest_is_told() -> None:
    publisher = MemoryPublisher()
    publisher.touched(A, "u", device="d")
    publisher.elevated(A, "u")
    publisher.touched(A, "u", hold_ms=1_000)
    publisher.touched(A, "u", hold_ms=2_000)
    publisher.started(B, "u")
    publisher.closed(B, "u")
    publisher.clock.advance(3_601_001)
    told = [(type(a), a.age_ms, getattr(a, "hold_ms", None)) for a in publisher.take()]
    assert told == [
        (SessionTouched, 3_600_000, 2_000),
        (SessionStarted, 3_600_000, None),
        (SessionClosed, 3_600_000, None),
    ]
    assert (publisher.stats.dropped, publisher.waiting) == (3, 0)


async def test_after_stop_nothing_is_noted_and_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    publisher = MemoryPublisher()
    publisher.touched(A, "u")
    await publisher.stop()
    with caplog.at_level(logging.WARNING, "lapse.consumers"):
        publisher.touched(A, "u")
        publisher.closed(B, "u")
        thread = threading.Thread(target=publisher.closed, args=(B, "u"))
        thread.start()
        thread.join()
    assert "after stop()" in caplog.text
    assert publisher.stats.after_stop == 3
    assert [type(activity) for activity in publisher.take()] == [SessionTouched]
    await publisher.start()
    publisher.closed(B, "u")
    assert [type(activity) for activity in publisher.take()] == [SessionClosed]


async def test_a_real_publisher_takes_nothing_after_stop_either() -> None:
    publisher = ActivityPublisher("127.0.0.1:1", service="shop", delivery_timeout_ms=100)
    async with publisher:
        publisher.closed(A, "u")
        await publisher.stop(0.0)
        publisher.closed(B, "u")
        assert (publisher.stats.after_stop, publisher.stats.waiting) == (1, 1)
    publisher.touched(A, "u")
    assert publisher.stats.after_stop == 2


async def test_what_other_threads_note_while_the_loop_stands_still_is_bounded() -> None:
    async with ActivityPublisher("127.0.0.1:1", service="shop", delivery_timeout_ms=100) as publisher:

        def flood() -> None:
            for number in range(INBOX_MAX + 10):
                publisher.touched(A, f"u-{number}")

        thread = threading.Thread(target=flood)
        thread.start()
        thread.join()  # the loop is not given back meanwhile
        assert publisher.stats.dropped == 10
        assert not await publisher.flush(1.0)
        assert publisher.stats.touches == INBOX_MAX
        await publisher.stop(0.0)


async def test_it_may_be_called_from_any_thread() -> None:
    async with ActivityPublisher("127.0.0.1:1", service="shop", delivery_timeout_ms=100) as publisher:
        threads = [threading.Thread(target=publisher.touched, args=(session, "u")) for session in (A, B)]
        threads += [threading.Thread(target=publisher.closed, args=(A, "u"))]
        threads += [threading.Thread(target=publisher.closed, args=(None, None))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not await publisher.flush(0.05)
        assert (publisher.stats.waiting, publisher.stats.malformed) == (3, 1)
        await publisher.stop(0.0)


@pytest.mark.parametrize(
    "options", [{"touch_interval_ms": 0}, {"touch_interval_ms": 600_001}, {"delivery_timeout_ms": 99}, {"service": ""}]
)
def test_settings_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        ActivityPublisher("localhost:1", **{"service": "shop", **options})  # type: ignore[arg-type]
