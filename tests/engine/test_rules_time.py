"""DESIGN.md section 2, "Time" and "Rules", sentence by sentence.

Each test is named after a sentence and quotes it. A test says what must happen at exact milliseconds, both sides of
each boundary; the oracle runs beside the engine in `Partition` and must agree on everything else.
"""

from __future__ import annotations

import pytest

from lapse.pipeline.engine import PartitionEngine
from lapse.schemas import Cause

from tests.engine.records import (
    Log,
    Partition,
    at,
    closed,
    default_policy,
    elevated,
    entry,
    packed,
    policy_adopted,
    ref,
    refreshed,
    seen,
    settings,
    started,
    tick,
    touched,
)

IDLE, ABSOLUTE, GRACE = 10_000, 60_000, 250


def short() -> Partition:
    """Return a partition whose sessions idle out after 10 s and end after 60 s."""
    return Partition(default_policy(IDLE, ABSOLUTE))


# Time.


def test_stamp_is_kept_monotone() -> None:
    """*stamp*: a record's append time, kept monotone (never below the stamp before it)."""
    p = short()
    p.add(5000, started())
    assert p.engine.stamp == at(5000)
    p.add(2000, touched())
    assert p.engine.stamp == at(5000)
    assert p.last_seen() == 5000


def test_the_instant_of_an_activity_is_stamp_minus_age() -> None:
    """The instant of an activity is `stamp - age_ms`."""
    p = short()
    p.add(5000, started(age_ms=1200))
    assert p.last_seen() == 3800
    p.tick_until(3800 + IDLE + GRACE)
    assert p.ending.started_at == p.ending.last_seen_at == at(3800)


def test_bad_records_move_the_stamp_too() -> None:
    """*stamp*: a record's append time. (Whatever the record says: the broker gave it.)"""
    p = short()
    p.add(0, started())
    for ms in range(1000, IDLE + GRACE, 1000):
        p.add(ms, b"not json")
    p.add(IDLE + GRACE, None)
    assert p.ending.evidence.offset == p.log.next_offset - 1


def test_a_first_record_at_any_time_is_no_gap() -> None:
    """When the stamp jumps by more than `gap_ms` (3000), a hold begins. (The first stamp is no jump.)"""
    p = Partition()
    p.add(50_000, default_policy(IDLE, ABSOLUTE))
    p.add(50_000, started(age_ms=IDLE))
    p.add(50_250, policy_adopted("other", 1))
    assert not p.ending.held
    assert seen(p.engine.apply([]))["endings"] == []


# Rules: due.


def test_due_is_the_earlier_of_last_seen_plus_idle_and_started_plus_absolute() -> None:
    """`due = min(last_seen + idle_ms, started + absolute_ms)`; the earlier limit gives the cause."""
    p = short()
    p.add(0, started("idler"))
    p.add(0, started("busy"))
    for ms in range(5000, 60_000, 5000):
        p.tick_until(ms)
        p.add(ms, touched("busy"))
    p.tick_until(70_000)
    idle, absolute = p.endings
    assert (idle.session, idle.cause, idle.due_at) == (ref("idler"), Cause.IDLE, at(IDLE))
    assert (absolute.session, absolute.cause, absolute.due_at) == (ref("busy"), Cause.ABSOLUTE, at(ABSOLUTE))
    assert absolute.last_seen_at == at(55_000)


@pytest.mark.parametrize(("absolute_ms", "cause"), [(9999, "absolute"), (10_000, "absolute"), (10_001, "idle")])
def test_at_a_tie_the_cause_is_absolute(absolute_ms: int, cause: str) -> None:
    """The earlier limit gives the cause, at a tie `absolute`."""
    p = Partition(default_policy(IDLE, absolute_ms))
    p.add(0, started())
    p.tick_until(IDLE + GRACE)
    assert (p.ending.cause, p.ending.due_at) == (cause, at(min(IDLE, absolute_ms)))


def test_live_while_now_is_before_due() -> None:
    """Live while `now < due`."""
    p = Partition(default_policy(None, IDLE))
    p.add(0, started())
    p.tick_until(IDLE - 1)
    assert p.is_live()
    p.tick(IDLE)
    assert p.ending.decided_at == p.ending.due_at == at(IDLE)


def test_without_a_limit_nothing_is_due() -> None:
    """null = no limit."""
    p = Partition(default_policy(None, None))
    p.add(0, started())
    p.tick_until(100_000)
    assert p.is_live()
    assert p.engine.next_due_at() is None


# Rules: what counts.


@pytest.mark.parametrize(("instant", "counts"), [(IDLE - 1, True), (IDLE, False)])
def test_an_activity_counts_if_its_instant_is_before_due(instant: int, counts: bool) -> None:
    """An activity counts if its instant is before due **and** its stamp is before `due + grace_ms`."""
    p = short()
    p.add(0, started())
    p.tick_until(IDLE + 100)
    p.add(IDLE + 100, touched(age_ms=IDLE + 100 - instant))
    assert p.last_seen() == (instant if counts else 0)
    p.tick_until(IDLE + GRACE)
    assert p.is_live() == counts


@pytest.mark.parametrize(("stamp", "counts"), [(IDLE + GRACE - 1, True), (IDLE + GRACE, False)])
def test_an_activity_counts_if_its_stamp_is_before_due_plus_grace(stamp: int, counts: bool) -> None:
    """An activity counts if its instant is before due **and** its stamp is before `due + grace_ms`."""
    p = short()
    p.add(0, started())
    p.tick_until(stamp - 200)
    p.add(stamp, touched(age_ms=1000))
    assert p.is_live() == counts
    if not counts:
        assert (p.ending.cause, p.ending.last_seen_at) == (Cause.IDLE, at(0))


@pytest.mark.parametrize(("stamp", "counts"), [(ABSOLUTE - 1, True), (ABSOLUTE, False)])
def test_for_the_absolute_limit_the_grace_is_0(stamp: int, counts: bool) -> None:
    """For the absolute limit the grace is 0: nothing can move it."""
    p = Partition(default_policy(None, ABSOLUTE))
    p.add(0, started())
    p.tick_until(stamp - 1)
    p.add(stamp, touched(age_ms=5000))
    assert p.is_live() == counts
    p.tick(ABSOLUTE)
    assert p.ending.last_seen_at == at(stamp - 5000 if counts else 0)
    assert p.ending.due_at == at(ABSOLUTE)


def test_counting_is_judged_record_by_record() -> None:
    """This is judged record by record, whatever `T` is."""
    log = Log(settings())
    log.add(0, default_policy(IDLE, ABSOLUTE))
    log.add(0, started())
    for ms in range(2000, IDLE, 2000):
        log.add(ms, touched("x"))
    log.add(IDLE + GRACE - 1, touched(age_ms=GRACE))
    log.add(IDLE + GRACE + 5000 - 2001, touched("x"))
    log.add(2 * IDLE - 2 + GRACE, touched("x"))
    together = PartitionEngine(log.settings).apply(log.records)
    assert [e.session for e in together.endings] == []
    p = Partition()
    for record in log.records:
        p.apply([record])
    assert p.last_seen() == IDLE - 1


# Rules: settling.


def test_each_record_first_settles_what_is_over_at_its_stamp_then_is_applied() -> None:
    """Each record first settles what is over at its stamp, then is applied."""
    p = short()
    p.add(0, started())
    p.tick_until(IDLE + GRACE - 1)
    effects = p.add(IDLE + GRACE, touched(age_ms=IDLE))
    assert [(e.cause, e.last_seen_at) for e in effects.endings] == [(Cause.IDLE, at(0))]


@pytest.mark.parametrize("stamp", [IDLE + GRACE - 1, IDLE + GRACE])
def test_idle_is_settled_at_due_plus_grace(stamp: int) -> None:
    """Idle: `stamp >= due + grace_ms`, outside a hold."""
    p = short()
    p.add(0, started())
    p.tick_until(stamp)
    assert p.is_live() == (stamp < IDLE + GRACE)


@pytest.mark.parametrize("stamp", [ABSOLUTE - 1, ABSOLUTE])
def test_absolute_is_settled_at_due(stamp: int) -> None:
    """Absolute: `stamp >= due`."""
    p = Partition(default_policy(100_000, ABSOLUTE))
    p.add(0, started())
    p.tick_until(stamp)
    assert p.is_live() == (stamp < ABSOLUTE)


def test_the_absolute_limit_inside_the_idle_grace_settles_the_earlier_limit() -> None:
    """Absolute: `stamp >= due`; the earlier limit gives the cause."""
    p = Partition(default_policy(IDLE, IDLE + 100))
    p.add(0, started())
    p.tick_until(IDLE + 99)
    assert p.is_live()
    p.tick(IDLE + 100)
    assert (p.ending.cause, p.ending.due_at, p.ending.decided_at) == (Cause.IDLE, at(IDLE), at(IDLE + 100))


def test_an_activity_must_be_in_time_for_both_limits() -> None:
    """An activity must be in time for both limits."""
    p = Partition(default_policy(IDLE, IDLE + 5000))
    p.add(0, started())
    p.tick_until(9000)
    p.add(9000, touched())
    p.tick_until(14_999)
    p.add(14_999, touched())
    assert p.last_seen() == 14_999
    p.add(15_000, touched(age_ms=1))
    assert (p.ending.cause, p.ending.last_seen_at) == (Cause.ABSOLUTE, at(14_999))


def test_decided_at_is_the_stamp_and_evidence_the_offset_of_the_record_that_settled_it() -> None:
    """`decided_at` is the stamp, and `evidence.offset` the offset, of the record that settled it."""
    p = short()
    p.add(0, started())
    p.tick_until(10_000)
    p.add(10_777, b"whatever it is")
    assert p.ending.decided_at == at(10_777)
    assert (p.ending.evidence.partition, p.ending.evidence.offset) == (0, p.log.next_offset - 1)


def test_the_stamp_that_decides_is_the_monotone_one() -> None:
    """`decided_at` is the stamp ... of the record that settled it (append times may fall, stamps do not)."""
    p = short()
    p.add(0, started(age_ms=IDLE - 100))
    p.add(200, touched("other", age_ms=0))
    p.add(349, touched("other"))
    assert p.is_live()
    p.add(350, touched("other"))
    p.add(10, touched("other"))
    assert p.ending.decided_at == at(350)


def test_what_an_old_touch_makes_due_is_settled_by_the_next_record() -> None:
    """What a record itself makes due (an old touch, a shorter policy) is settled by the next one."""
    p = short()
    assert not p.add(100, touched(age_ms=IDLE + 5000)).endings
    assert p.is_live()
    (ending,) = p.add(100, tick(100)).endings
    assert (ending.cause, ending.due_at, ending.decided_at) == (Cause.IDLE, at(100 - 5000), at(100))


def test_what_a_shorter_policy_makes_due_is_settled_by_the_next_record() -> None:
    """What a record itself makes due (an old touch, a shorter policy) is settled by the next one."""
    p = short()
    p.add(0, started())
    p.tick_until(5000)
    assert not p.add(5000, default_policy(1000, ABSOLUTE, version=2)).endings
    (ending,) = p.tick(5001).endings
    assert (ending.due_at, ending.decided_at, ending.policy_version) == (at(1000), at(5001), 2)


@pytest.mark.parametrize("make", [started, touched, elevated])
def test_started_touched_and_elevated_move_last_seen_to_the_maximum_of_instants(make: object) -> None:
    """`started`, `touched`, `elevated` move `last_seen` (to the maximum of instants)."""
    p = short()
    p.add(0, started())
    p.add(2000, make(age_ms=500))  # type: ignore[operator]
    assert p.last_seen() == 1500
    p.add(2100, make(age_ms=1000))  # type: ignore[operator]
    assert p.last_seen() == 1500


def test_a_packed_touch_moves_last_seen_as_a_single_one() -> None:
    """`touched` moves `last_seen`; packed: [session, subject, tenant or null, age_ms, since_ms?, pause_ms?]."""
    p = short()
    p.add(0, started())
    p.add(2000, packed(entry(age_ms=1000), entry(age_ms=300), entry(age_ms=800)))
    assert p.last_seen() == 1700


def test_refreshed_and_closed_do_not_move_last_seen() -> None:
    """`refreshed` and `closed` do not."""
    p = short()
    p.add(0, started())
    p.add(2000, refreshed())
    assert p.last_seen() == 0
    p.add(2500, closed())
    assert p.ending.last_seen_at == at(0)


@pytest.mark.parametrize(
    ("instant", "cause", "due"), [(IDLE - 1, "closed", IDLE - 1), (IDLE, "idle", IDLE), (IDLE + 50, "idle", IDLE)]
)
def test_a_close_whose_instant_is_past_due_ends_the_session_at_once_as_idle(instant: int, cause: str, due: int) -> None:
    """A close whose instant is past due ends the session at once, as `idle`."""
    p = short()
    p.add(0, started())
    p.tick_until(IDLE + 100)
    (ending,) = p.add(IDLE + 100, closed(age_ms=IDLE + 100 - instant)).endings
    assert (ending.cause, ending.due_at, ending.decided_at) == (cause, at(due), at(IDLE + 100))


def test_a_close_whose_instant_is_past_due_ends_the_session_in_a_hold_as_closed() -> None:
    """A close whose instant is past due ends the session at once (in a hold as `closed`)."""
    p = short()
    p.add(0, started())
    p.tick_until(8000)
    p.add(12_000, tick(12_000, up_ms=0))
    (ending,) = p.add(12_100, closed(age_ms=100)).endings
    assert (ending.cause, ending.due_at) == (Cause.CLOSED, at(12_000))
