"""Goal: the timing wheel fires just what a sorted list would. Method: hypothesis drives both with the same calls."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from lapse.pipeline.engine.wheel import NEVER, SPOKE_SHIFT, TimingWheel

SPOKE = 1 << SPOKE_SHIFT

instants = st.one_of(
    st.integers(0, 40 * SPOKE),
    st.integers(0, 40).map(lambda spoke: spoke * SPOKE),
    st.integers(1, 40).map(lambda spoke: spoke * SPOKE - 1),
    st.just(NEVER),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.integers(0, 12), instants),
        st.tuples(st.just("disarm"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("expire"), st.just(0), st.integers(0, 5 * SPOKE)),
        st.tuples(st.just("peek"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_it_fires_what_a_sorted_list_would(steps: list[tuple[str, int, int]]) -> None:
    wheel, plain, now = TimingWheel(), dict[int, int](), 0
    for step, slot, value in steps:
        if step == "arm":
            wheel.arm(slot, value)
            plain.pop(slot, None)
            if value < NEVER:
                plain[slot] = value
        elif step == "disarm":
            wheel.disarm(slot)
            plain.pop(slot, None)
        elif step == "expire":
            now += value
            due = sorted((at, slot) for slot, at in plain.items() if at <= now)
            assert wheel.expire(now) == [slot for _, slot in due]
            for _, slot in due:
                del plain[slot]
        else:
            assert wheel.peek() == min(((at, slot) for slot, at in plain.items()), default=None)
        assert wheel.next_at <= min(plain.values(), default=NEVER)


def test_a_slot_armed_again_and_again_fires_once() -> None:
    wheel = TimingWheel()
    for at in (5000, 90_000, 5000, 7000, 5000):
        wheel.arm(3, at)
    assert wheel.expire(4999) == []
    assert wheel.expire(5000) == [3]
    assert wheel.expire(200_000) == []


def test_nothing_needs_to_be_looked_at_before_next_at() -> None:
    wheel = TimingWheel()
    assert wheel.next_at == NEVER
    wheel.arm(1, 10 * SPOKE + 7)
    assert wheel.next_at <= 10 * SPOKE + 7
    assert wheel.peek() == (10 * SPOKE + 7, 1)
    assert wheel.next_at == 10 * SPOKE + 7
    assert wheel.expire(10 * SPOKE + 7) == [1]
    assert wheel.next_at == NEVER


def test_arming_for_the_same_instant_again_costs_no_memory() -> None:
    """As a session does that is touched in the last hour before its absolute limit, warned of already."""
    wheel = TimingWheel()
    tracemalloc.start()
    try:
        for _ in range(20_000):
            wheel.arm(0, 5 * SPOKE)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 10_000
    assert wheel.expire(5 * SPOKE) == [0]


@given(st.lists(instants, max_size=400), st.lists(st.integers(0, 20 * SPOKE), max_size=6))
def test_many_armed_at_once_fire_as_those_armed_one_by_one(armed: list[int], waits: list[int]) -> None:
    bulk, single, now = TimingWheel(), TimingWheel(), 0
    bulk.arm_all(armed)
    for slot, at in enumerate(armed):
        single.arm(slot, at)
    for wait in waits:
        now += wait
        assert bulk.peek() == single.peek()
        assert bulk.expire(now) == single.expire(now)


@given(st.lists(st.integers(0, 3), min_size=100, max_size=300), st.integers(0, 3))
def test_hundreds_due_at_one_instant_fire_in_order(armed: list[int], now: int) -> None:
    wheel = TimingWheel()
    for slot, at in enumerate(armed):
        wheel.arm(slot, 9)
        wheel.arm(slot, at)
    assert wheel.expire(now) == [slot for at, slot in sorted((at, slot) for slot, at in enumerate(armed)) if at <= now]
    assert wheel.next_at <= min((at for at in armed if at > now), default=NEVER)
