"""DESIGN.md section 2, "An outage of the log logs nobody out", sentence by sentence.

A hold begins when the stamp jumps by more than gap_ms (3000). In these tests the log is there until 8000, so that a
session touched at 0 is due at 10,000 and would be settled at 10,250.
"""

from __future__ import annotations

import pytest

from lapse.schemas import Cause

from tests.engine.records import Partition, at, closed, default_policy, ref, revocation_ordered, started, tick, touched

IDLE, ABSOLUTE, GRACE, GAP, GAP_GRACE = 10_000, 60_000, 250, 3000, 5000


def until_8000(absolute_ms: int | None = ABSOLUTE, **limits: int) -> Partition:
    """Return a partition with one session, started at 0, whose log is there until 8000."""
    p = Partition(default_policy(IDLE, absolute_ms, **limits))
    p.add(0, started())
    p.tick_until(8000)
    return p


def ticks(p: Partition, first: int, last: int, **fields: int) -> None:
    """Tick every second from `first`, the last one at `last`."""
    for ms in [*range(first, last, 1000), last]:
        p.tick(ms, **fields)


# When a hold begins.


@pytest.mark.parametrize(("jump", "holds"), [(GAP, False), (GAP + 1, True)])
def test_when_the_stamp_jumps_by_more_than_gap_ms_a_hold_begins(jump: int, holds: bool) -> None:
    """When the stamp jumps by more than `gap_ms` (3000), a hold begins."""
    p = until_8000()
    p.add(8000 + jump, b"any record")
    assert p.is_live() == holds


def test_a_jump_of_append_times_below_the_stamp_is_none() -> None:
    """When the stamp jumps by more than `gap_ms`: the stamp, which is monotone, not the append time."""
    p = until_8000()
    p.add(1000, b"the broker's clock fell")
    p.add(IDLE + GRACE, b"and rose again")
    assert not p.ending.held


def test_a_hold_lasts_until_the_owners_next_tick() -> None:
    """A hold begins, until the owner's next tick. (Without one nobody knows: it goes on.)"""
    p = until_8000()
    for ms in range(12_000, 40_000, 2000):
        p.add(ms, touched("other"))
    assert p.is_live()
    p.tick(40_000, up_ms=0)
    assert p.is_live()
    p.add(40_001, touched("other"))
    assert p.ending.held


# When the log was there.


@pytest.mark.parametrize(
    ("up_ms", "covers"),
    [(4000, True), (3999, False), (4001, True)],
)
def test_if_the_ticks_up_ms_covers_the_jump_the_hold_is_off(up_ms: int, covers: bool) -> None:
    """If that tick's `up_ms` covers the jump (`its stamp - up_ms` is not after the stamp before the jump) and the tick
    after it shows that it was acknowledged within a second, the log was there and a worker failed over: the hold is
    off."""
    p = until_8000()
    p.tick(12_000, epoch=8, up_ms=up_ms)
    assert p.is_live()
    p.tick(13_000, epoch=8)
    assert p.is_live()
    p.tick(13_001, epoch=8)
    assert p.is_live() != covers
    if covers:
        assert (p.ending.cause, p.ending.due_at, p.ending.decided_at) == (Cause.IDLE, at(IDLE), at(13_001))
        assert p.ending.held


@pytest.mark.parametrize(
    ("ack_after", "proves"),
    [(0, True), (1000, True), (1001, False), (-1, False), (None, False)],
)
def test_the_tick_after_it_must_show_that_it_was_acknowledged_within_a_second(
    ack_after: int | None, proves: bool
) -> None:
    """And the tick after it shows that it was acknowledged within a second (a tick that lay in a client through the
    outage proves nothing)."""
    p = until_8000()
    p.tick(12_000)
    p.tick(13_000, prev_ms=12_000, ack_ms=None if ack_after is None else 12_000 + ack_after)
    p.tick(13_100)
    assert p.is_live() != proves


def test_an_acknowledgement_of_another_tick_proves_nothing() -> None:
    """The tick after it shows that *it* was acknowledged."""
    p = until_8000()
    p.tick(12_000)
    p.tick(13_000, prev_ms=11_900, ack_ms=12_003)
    p.tick(13_100)
    assert p.is_live()


def test_an_acknowledgement_by_another_owner_proves_nothing() -> None:
    """The tick after it shows that it was acknowledged (of the same ownership: monotonic clocks do not compare)."""
    p = until_8000()
    p.tick(12_000)
    p.tick(13_000, epoch=8, prev_ms=12_000, ack_ms=12_001)
    p.tick(13_100, epoch=8)
    assert p.is_live()


def test_the_jumping_record_itself_may_be_the_tick() -> None:
    """Until the owner's next tick (the jumping record itself, if it is one)."""
    p = until_8000()
    p.tick(12_000)  # it covers the jump, and is acknowledged
    p.tick(12_500)
    p.tick(12_501)
    assert p.ending.decided_at == at(12_501)


def test_up_ms_is_measured_at_the_tick_not_at_the_jump() -> None:
    """`its stamp - up_ms` is not after the stamp before the jump."""
    p = until_8000()
    p.add(12_000, touched("other"))
    p.tick(13_000, up_ms=4999)  # up since 8001: the log may have been away from 8000 on
    p.tick(14_000)
    p.tick(14_100)
    assert p.is_live()


# When it was an outage.


def test_else_it_was_an_outage_and_idle_endings_are_held() -> None:
    """Else it was an outage: idle endings are held until the stamp has moved `gap_grace_ms` (5000) past the jump."""
    p = until_8000()
    p.tick(12_000, up_ms=0)
    ticks(p, 13_000, 12_000 + GAP_GRACE - 1)
    assert p.is_live()
    p.tick(12_000 + GAP_GRACE)
    assert (p.ending.cause, p.ending.due_at, p.ending.decided_at) == (Cause.IDLE, at(IDLE), at(17_000))
    assert p.ending.held


def test_what_services_kept_arrives_first() -> None:
    """So that what services kept arrives first."""
    p = until_8000()
    p.tick(20_000, up_ms=0)
    p.add(21_000, touched(age_ms=100, since_ms=12_000, pause_ms=3000))
    assert p.last_seen() == 20_900
    ticks(p, 22_000, 30_000)
    assert p.is_live()


def test_a_new_gap_starts_anew() -> None:
    """A new gap starts anew."""
    p = until_8000()
    p.tick(12_000, up_ms=0)
    p.tick(16_000, up_ms=0)
    ticks(p, 17_000, 20_999)
    assert p.is_live()
    p.tick(21_000)
    assert p.ending.held


def test_a_new_gap_starts_anew_even_at_the_record_that_would_have_ended_the_hold() -> None:
    """A new gap starts anew."""
    p = until_8000()
    p.tick(12_000, up_ms=0)
    p.tick(17_001, up_ms=0)
    assert p.is_live()
    ticks(p, 18_000, 22_000)
    assert p.is_live()
    p.tick(22_001)
    assert p.ending.held


def test_an_ending_that_a_hold_delayed_at_all_says_held() -> None:
    """An ending that a hold delayed at all says `held: true`."""
    p = until_8000()
    p.add(10_000, started("later"))
    p.tick(13_001, up_ms=0)  # a jump of 3001
    ticks(p, 14_000, 25_000)
    delayed, later = p.endings
    assert (delayed.session, delayed.held) == (ref("s"), True)
    assert (later.session, later.held) == (ref("later"), False)


def test_absolute_endings_are_never_held() -> None:
    """Absolute endings and revocations are never held."""
    p = until_8000(absolute_ms=9000)
    p.add(12_000, touched("other"))
    assert (p.ending.cause, p.ending.due_at, p.ending.decided_at) == (Cause.ABSOLUTE, at(9000), at(12_000))
    assert not p.ending.held


def test_revocations_are_never_held() -> None:
    """Absolute endings and revocations are never held."""
    p = until_8000()
    (ending,) = p.add(12_000, revocation_ordered(11_900, session="s")).endings
    assert (ending.cause, ending.due_at) == (Cause.REVOKED, at(11_900))


def test_a_session_whose_absolute_limit_passes_while_its_idle_ending_is_held_ends_as_absolute() -> None:
    """A session whose absolute limit passes while its idle ending is held ends as `absolute` at that limit."""
    p = until_8000(absolute_ms=14_000)
    p.tick(12_000, up_ms=0)
    p.tick(13_999)
    assert p.is_live()
    p.tick(14_000)
    assert (p.ending.cause, p.ending.due_at, p.ending.decided_at, p.ending.held) == (
        "absolute",
        at(14_000),
        at(14_000),
        True,
    )


@pytest.mark.parametrize(("absolute_ms", "cause"), [(17_000, "absolute"), (17_001, "idle")])
def test_the_absolute_limit_passes_in_the_hold_though_no_record_stands_there(absolute_ms: int, cause: str) -> None:
    """A session whose absolute limit passes while its idle ending is held ends as `absolute` at that limit. (The hold
    lasts until the stamp has moved gap_grace_ms past the jump, whether a record stands there or not.)"""
    p = until_8000(absolute_ms=absolute_ms)
    p.tick(12_000, up_ms=0)
    p.tick(14_900)
    p.tick(17_400)
    assert (p.ending.cause, p.ending.due_at) == (cause, at(absolute_ms if cause == "absolute" else IDLE))
    assert p.ending.held


# Touches that stand for several.


@pytest.mark.parametrize(("since_ms", "counts"), [(11_000 - IDLE + 1, True), (11_000 - IDLE, False)])
def test_a_joined_touch_counts_if_stamp_minus_since_is_before_due(since_ms: int, counts: bool) -> None:
    """It counts as they would have: if `stamp - since_ms` is before due and `pause_ms` below the idle timeout."""
    p = until_8000()
    p.add(11_001, touched(age_ms=10, since_ms=since_ms + 1))
    assert p.last_seen() == (10_991 if counts else 0)


@pytest.mark.parametrize(("pause_ms", "counts"), [(IDLE - 1, True), (IDLE, False)])
def test_a_joined_touch_counts_if_its_pause_is_below_the_idle_timeout(pause_ms: int, counts: bool) -> None:
    """It counts as they would have: if `stamp - since_ms` is before due and `pause_ms` below the idle timeout."""
    p = until_8000()
    p.tick(30_000, up_ms=0)
    p.add(30_100, touched(age_ms=10, since_ms=25_000, pause_ms=pause_ms))
    assert p.last_seen() == (30_090 if counts else 0)


def test_since_is_at_least_the_touchs_own_age() -> None:
    """`since_ms` (age of the first one): the first cannot be younger than the last."""
    p = until_8000()
    p.add(11_100, touched(age_ms=1101, since_ms=3))
    assert p.last_seen() == 9999
    q = until_8000()
    q.add(11_100, touched(age_ms=1100, since_ms=3))
    assert q.last_seen() == 0


def test_outside_a_hold_a_joined_touch_must_still_be_in_the_grace() -> None:
    """For a touch in a hold the stamp need not be before due + grace. (Outside it must.)"""
    p = until_8000()
    p.tick_until(10_200)
    p.add(10_250, touched(age_ms=10, since_ms=5000, pause_ms=3000))
    assert p.ending.cause == Cause.IDLE


def test_for_a_touch_in_a_hold_the_stamp_need_not_be_before_due_plus_grace() -> None:
    """For a touch in a hold the stamp need not be before due + grace."""
    p = until_8000()
    p.tick(20_000, up_ms=0)
    p.add(20_000, touched(age_ms=10_001))
    assert p.last_seen() == 9999
    p.add(20_001, touched(age_ms=1, since_ms=2))
    assert p.last_seen() == 9999


def test_a_touch_in_a_hold_cannot_pass_the_absolute_limit() -> None:
    """For the absolute limit the grace is 0: nothing can move it."""
    p = until_8000(absolute_ms=13_000)
    p.tick(12_000, up_ms=0)
    p.add(13_000, touched(age_ms=3001))
    assert (p.ending.cause, p.ending.last_seen_at) == (Cause.ABSOLUTE, at(0))


def test_next_due_at_follows_the_hold() -> None:
    """Idle endings are held until the stamp has moved `gap_grace_ms` past the jump: nothing is due before."""
    p = until_8000()
    assert p.engine.next_due_at() == at(IDLE + GRACE)
    p.add(12_000, b"the jump")
    assert p.engine.next_due_at() == at(ABSOLUTE)
    p.tick(12_001, up_ms=0)
    assert p.engine.next_due_at() == at(17_000)
    ticks(p, 13_000, 17_000)
    assert p.ending.held


def test_a_close_in_a_hold_is_in_time() -> None:
    """A close whose instant is past due ends the session at once, as `idle` (in a hold as `closed`)."""
    p = until_8000()
    p.tick(12_000)
    p.tick(12_500)  # acknowledged: the hold is off from the next record on
    (ending,) = p.add(12_501, closed()).endings
    assert ending.cause == Cause.IDLE
    q = until_8000()
    q.tick(12_000)
    (ending,) = q.add(12_001, closed()).endings
    assert ending.cause == Cause.CLOSED
    assert q.add(12_002, tick(1)).endings == []


def test_an_ending_that_is_made_due_after_a_hold_is_not_held() -> None:
    """An ending that a hold delayed at all says `held: true`. (And no other.)"""
    p = Partition(default_policy(None, ABSOLUTE))
    p.add(0, started())
    p.tick(4000, up_ms=0)
    ticks(p, 5000, 9500)  # the hold was over at 9000
    p.add(9500, default_policy(3000, ABSOLUTE, version=2))
    p.tick(9501)
    assert (p.ending.cause, p.ending.due_at, p.ending.held) == (Cause.IDLE, at(3000), False)


def test_to_ask_what_is_next_in_a_hold_loses_nobody() -> None:
    """Idle endings are held until the stamp has moved `gap_grace_ms` past the jump. (And then they come.)"""
    p = until_8000()
    p.add(12_000, started("old", age_ms=11_000))  # in the hold, and due before it
    for ms in range(12_500, 20_000, 500):
        p.tick(ms, up_ms=0)
        p.engine.next_due_at()
    assert sorted(e.session for e in p.endings) == [ref("old"), ref("s")]
    assert all(e.held and e.decided_at == at(17_000) for e in p.endings)


def test_a_first_tick_that_comes_after_the_grace_of_the_gap_ends_the_hold() -> None:
    """A hold begins, until the owner's next tick; idle endings are held until the stamp has moved `gap_grace_ms` past
    the jump: both are over here."""
    p = until_8000()
    for ms in (12_000, 14_500, 16_900):
        p.add(ms, touched("other"))
    p.tick(17_100, up_ms=0)
    assert p.is_live()
    p.add(17_100, touched("other"))
    assert (p.ending.held, p.ending.decided_at) == (True, at(17_100))


def test_a_restore_in_a_hold_sets_the_timers_that_were_set() -> None:
    """What is past is not looked at again for its warning: the state that follows is the log's, not the restore's."""
    p = Partition(default_policy(4000, 12_000, warn_before_ms=1500))
    p.add(0, started())
    p.tick(4039, up_ms=0)
    p.add(4110, touched(age_ms=4030, since_ms=4030))
    engine = p.restored(p.engine.cut().records)
    later = p.log.add(4150, tick(4150, up_ms=0))
    p.engine.apply([later])
    engine.apply([later])
    assert engine.sessions.table.warned == p.engine.sessions.table.warned
