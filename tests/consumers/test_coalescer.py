"""Which touches become records? Transitions of one session one by one; all times are passed in."""

import pytest

from lapse.consumers.activity.coalescer import Coalescer, Touch
from lapse.schemas import AGE_MAX_MS

INTERVAL = 5_000
A, B = "a" * 22, "b" * 22


def _send(coalescer: Coalescer, now: float) -> list[Touch]:
    """Take what is ready and let it land at once."""
    touches = coalescer.take(coalescer.release(now), now)
    coalescer.landed(touches)
    return touches


def test_the_first_touch_is_ready_at_once_and_later_ones_once_an_interval() -> None:
    coalescer = Coalescer(INTERVAL)
    sent = []
    for now in range(0, 20_001, 100):
        coalescer.touch(A, "u", None, now)
        sent += [(now, touch.latest) for touch in _send(coalescer, now)]
    assert sent == [(0, 0), (5_000, 5_000), (10_000, 10_000), (15_000, 15_000), (20_000, 20_000)]


def test_the_latest_touch_is_kept_with_its_age_and_told_when_the_session_has_cooled() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    _send(coalescer, 0)
    coalescer.touch(A, "u", None, 100)
    coalescer.touch(A, "u", None, 3_000)
    assert _send(coalescer, 4_999) == []
    assert coalescer.next_at() == 5_000
    (touch,) = _send(coalescer, 5_000)
    assert touch.age_ms(5_000) == 2_000
    assert touch.stands_for(5_000, INTERVAL) is None


def test_cooling_counts_from_the_last_instant_told_not_from_the_sending() -> None:
    """Touches at 0, 100 and 5,050: an idle timeout of 6 s must hear of the third before 6,100."""
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    _send(coalescer, 0)
    coalescer.touch(A, "u", None, 100)
    _send(coalescer, 5_000)
    coalescer.touch(A, "u", None, 5_050)
    assert coalescer.next_at() == 5_100
    (touch,) = _send(coalescer, 5_100)
    assert touch.latest == 5_050


def test_a_silent_session_is_forgotten_and_its_next_touch_is_ready_at_once() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    _send(coalescer, 0)
    coalescer.release(4_999)
    assert len(coalescer) == 1
    coalescer.release(5_000)
    assert len(coalescer) == 0
    assert coalescer.touch(A, "u", None, 5_000)


def test_what_was_lost_joins_what_came_since_and_says_what_it_stands_for() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 1_000)
    first = coalescer.take(coalescer.release(1_000), 1_000)
    coalescer.touch(A, "u", None, 4_000)
    coalescer.touch(A, "u", None, 6_000)
    coalescer.lost(first)
    (touch,) = _send(coalescer, 9_000)
    assert touch.age_ms(9_000) == 3_000
    assert touch.stands_for(9_000, INTERVAL) == (8_000, 3_000)


def test_what_was_lost_alone_is_ready_again_and_older() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    coalescer.lost(coalescer.take(coalescer.release(0), 0))
    (touch,) = _send(coalescer, 7_000)
    assert touch.age_ms(7_000) == 7_000
    assert touch.stands_for(7_000, INTERVAL) is None  # one touch stands for itself


def test_touches_in_flight_wait_for_the_next_batch() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    flying = coalescer.take(coalescer.release(0), 0)
    assert not coalescer.touch(A, "u", None, 5_500)
    assert coalescer.release(5_600) == []
    coalescer.landed(flying)
    (touch,) = _send(coalescer, 5_700)
    assert touch.latest == 5_500


def test_memory_is_bounded_and_known_sessions_are_not_given_up() -> None:
    coalescer = Coalescer(INTERVAL, sessions_max=2)
    assert coalescer.touch(A, "u", None, 0)
    assert coalescer.touch(B, "u", None, 0)
    assert not coalescer.touch("c" * 22, "u", None, 0)
    coalescer.touch(A, "u", None, 10)
    assert coalescer.dropped == 1
    assert {touch.track.session for touch in _send(coalescer, 20)} == {A, B}


def test_a_hurried_session_goes_at_once_and_cools_from_then_on() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    _send(coalescer, 0)
    coalescer.touch(A, "u", None, 1_000)
    coalescer.hurry(A)
    assert [touch.latest for touch in _send(coalescer, 1_200)] == [1_000]
    coalescer.touch(A, "u", None, 2_000)
    assert _send(coalescer, 5_999) == []
    assert [touch.latest for touch in _send(coalescer, 6_000)] == [2_000]
    coalescer.release(11_000)
    assert len(coalescer) == 0


def test_what_is_hurried_while_an_earlier_span_is_flying_goes_as_soon_as_that_has_landed() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    coalescer.touch(B, "u", None, 0)
    flying = coalescer.take(coalescer.release(0), 0)
    coalescer.touch(A, "u", None, 1_000)
    coalescer.hurry_all()
    coalescer.landed(flying)
    assert coalescer.unsent == 1  # so a flush that asks for it does not end before
    assert [touch.latest for touch in _send(coalescer, 1_200)] == [1_000]
    assert coalescer.unsent == 0
    coalescer.touch(A, "u", None, 2_000)
    assert _send(coalescer, 5_999) == []
    assert [touch.latest for touch in _send(coalescer, 6_000)] == [2_000]


def test_a_touch_older_than_the_wire_can_say_is_not_told_as_a_younger_one() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    assert _send(coalescer, AGE_MAX_MS + 1) == []
    assert (coalescer.expired, len(coalescer), coalescer.unsent) == (1, 0, 0)


@pytest.mark.parametrize("lands", [True, False])
def test_unsent_counts_what_is_ready_or_flying(lands: bool) -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    coalescer.touch(B, "u", None, 0)
    assert coalescer.unsent == 2
    flying = coalescer.take(coalescer.release(0), 0)
    assert coalescer.unsent == 2
    (coalescer.landed if lands else coalescer.lost)(flying)
    assert coalescer.unsent == (0 if lands else 2)


def test_an_event_that_counts_as_a_touch_is_no_pause_of_the_span_around_it() -> None:
    """Through an outage an elevation is kept beside the touches: the pause from touch to touch was none."""
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    coalescer.told(A, "u", None, 6_000)
    coalescer.touch(A, "u", None, 11_000)
    (touch,) = coalescer.take(coalescer.release(20_000), 20_000)
    assert (touch.first, touch.latest, touch.pause) == (0, 11_000, 6_000)


def test_the_span_that_waits_reaches_to_the_event_that_is_told_beside_it() -> None:
    """The event may be told first, and look late without the touches before it: so the span says it again."""
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    coalescer.touch(A, "u", None, 4_000)
    coalescer.told(A, "u", None, 7_000)
    (touch,) = coalescer.take(coalescer.release(20_000), 20_000)
    assert (touch.latest, touch.pause) == (7_000, 4_000)


def test_an_event_during_a_flight_that_is_lost_is_in_the_span_that_comes_back() -> None:
    coalescer = Coalescer(INTERVAL)
    coalescer.touch(A, "u", None, 0)
    flight = coalescer.take(coalescer.release(0), 0)
    coalescer.told(A, "u", None, 6_000)
    coalescer.lost(flight)
    (touch,) = coalescer.take(coalescer.release(20_000), 20_000)
    assert (touch.first, touch.latest, touch.pause) == (0, 6_000, 6_000)
