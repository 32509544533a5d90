"""What does the broker's clock say? Property: true delays are estimated within half the fastest round trip."""

from hypothesis import given
from hypothesis import strategies as st

from lapse.consumers.guard.broker_clock import BrokerClock


@given(
    st.integers(-(10**12), 10**12),
    st.lists(st.tuples(st.floats(0.1, 50), st.floats(0.1, 50)), min_size=1, max_size=10),
    st.floats(0, 1_000),
)
def test_the_estimate_is_off_by_half_the_fastest_round_trip_at_most(
    offset: int, trips: list[tuple[float, float]], after: float
) -> None:
    clock = BrokerClock()
    now = 1_000_000.0
    for there, back in trips:
        clock.acknowledged(int(now + there + offset), now, now + there + back)
        now += 1_000
    stamp = int(now + offset)
    fastest = min(there + back for there, back in trips)
    assert abs(clock.since(stamp, now + after) - after) <= fastest / 2 + 2 + 0.001 * 1_000 * len(trips)


def test_without_a_write_the_fastest_record_counts_as_immediate() -> None:
    clock = BrokerClock()
    clock.received(5_000, 105.0)
    clock.received(6_000, 1_101.0)
    assert clock.since(7_000, 2_111.0) == 10.0


def test_a_clock_that_was_set_starts_the_estimate_anew() -> None:
    clock = BrokerClock()
    clock.acknowledged(5_000, 100.0, 102.0)
    clock.acknowledged(5_000 + 3_600_000, 1_100.0, 1_102.0)
    assert clock.since(5_000 + 3_600_000, 1_105.0) < 6


def test_nothing_known_is_no_delay() -> None:
    assert BrokerClock().since(5_000, 100.0) == 0.0
