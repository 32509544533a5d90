"""How old is what a guard knows? Times are passed in; the log's scale and the monotonic clock are far apart.

Property: a guard never claims to be fresher than it is: an oracle that knows when each watermark was written in real
time must find its knowledge at least as young as claimed.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.consumers.guard.freshness import DRIFT, Freshness, Source

LOG = 1_700_000_000_000
STALE_AFTER = 10_000


def _caught_up(partitions: int = 1, at: float = 0.0) -> Freshness:
    freshness = Freshness(STALE_AFTER, at)
    sources: tuple[Source, Source] = ("expiries", "revocations")
    for source in sources:
        freshness.begin(source, [5] * partitions, [0] * partitions)
        for partition in range(partitions):
            freshness.reached(source, partition, 5)
        freshness.proven(source, at)
    return freshness


def _fresh(freshness: Freshness, now: float) -> bool:
    return now < freshness.fresh_until


def test_it_is_stale_until_both_topics_are_read_to_the_ends_and_each_partition_has_a_new_watermark() -> None:
    freshness = Freshness(STALE_AFTER, 0.0)
    assert freshness.blind == "not read yet"
    freshness.begin("expiries", [3, 0], [0, 0])
    freshness.begin("revocations", [1, 0], [0, 0])
    freshness.proven("revocations", 0.0)
    freshness.watermark(0, 3, LOG, LOG, 1.0)
    freshness.watermark(1, 0, LOG, LOG, 1.0)
    assert not _fresh(freshness, 1.0)
    freshness.reached("expiries", 0, 3)
    freshness.reached("revocations", 0, 1)
    assert freshness.caught_up
    assert _fresh(freshness, 1.0)


def test_a_watermark_from_before_the_assignment_says_nothing() -> None:
    freshness = _caught_up()
    freshness.watermark(0, 4, LOG, LOG, 10.0)
    assert not _fresh(freshness, 10.0)
    freshness.watermark(0, 5, LOG, LOG, 10.0)
    assert _fresh(freshness, 10.0)


def test_log_time_is_told_by_watermarks_from_before_the_assignment_too() -> None:
    freshness = Freshness(STALE_AFTER, 0.0)
    freshness.begin("expiries", [5, 5], [0, 0])
    freshness.watermark(0, 1, LOG, LOG, 1.0)
    of_one_partition = freshness.log_time
    freshness.watermark(1, 1, LOG + 7, LOG + 7, 1.0)
    freshness.watermark(0, 2, LOG + 9, LOG + 9, 1.0)
    assert (of_one_partition, freshness.log_time) == (None, LOG + 7)
    assert not _fresh(freshness, 1.0)


def test_it_is_fresh_while_less_than_stale_after_has_passed_and_stale_from_then_on() -> None:
    freshness = _caught_up()
    freshness.watermark(0, 5, LOG, LOG, 100.0)
    freshness.proven("revocations", 100.0)
    assert _fresh(freshness, 10_099.0)
    assert freshness.stale_ms(10_099.0) == 9_999
    assert not _fresh(freshness, 10_100.0)
    assert freshness.stale_ms(10_100.0) == STALE_AFTER


def test_the_worst_partition_counts() -> None:
    freshness = _caught_up(partitions=2)
    freshness.watermark(0, 5, LOG, LOG, 0.0)
    freshness.watermark(1, 5, LOG, LOG, 0.0)
    for second in range(1, 10):
        freshness.proven("revocations", second * 1_000.0)
        freshness.watermark(0, 5 + second, LOG + second * 1_000, LOG + second * 1_000, second * 1_000.0)
    assert freshness.stale_ms(9_500.0) in range(9_500, 9_510)
    assert not _fresh(freshness, 10_000.0)


def test_a_processor_that_is_behind_on_all_partitions_makes_it_stale_though_watermarks_come() -> None:
    freshness = _caught_up()
    freshness.watermark(0, 5, LOG - 60_000, LOG, 0.0)
    assert not _fresh(freshness, 0.0)
    assert freshness.stale_ms(0.0) == 60_000


def test_watermarks_that_lay_in_a_socket_while_the_loop_was_blocked_are_old_when_they_are_read() -> None:
    freshness = _caught_up()
    freshness.watermark(0, 5, LOG, LOG, 0.0)
    # 30 s later: what the broker had sent in the first of them is read now, and the broker has not answered since.
    freshness.watermark(0, 6, LOG + 1_000, LOG + 1_000, 30_000.0)
    freshness.proven("revocations", 30_000.0)
    assert not _fresh(freshness, 30_000.0)
    assert 28_900 <= freshness.stale_ms(30_000.0) <= 29_000
    freshness.watermark(0, 7, LOG + 30_000, LOG + 30_000, 30_001.0)
    assert _fresh(freshness, 30_001.0)


def test_revocations_that_cannot_be_asked_for_make_it_stale_though_watermarks_come() -> None:
    freshness = _caught_up()
    for second in range(1, 11):
        freshness.watermark(0, 4 + second, LOG + second * 1_000, LOG + second * 1_000, second * 1_000.0)
    assert not _fresh(freshness, 10_000.0)


def test_what_cannot_be_read_makes_it_stale_until_the_topic_is_read_anew() -> None:
    freshness = _caught_up()
    freshness.watermark(0, 5, LOG, LOG, 0.0)
    freshness.unreadable("revocations", "revocations/0 offset 7 is unreadable")
    assert not _fresh(freshness, 1.0)
    assert freshness.blind == "revocations/0 offset 7 is unreadable"
    assert freshness.stale_ms(2.0) == STALE_AFTER
    freshness.begin("revocations", [8], [8])
    freshness.proven("revocations", 3.0)
    assert _fresh(freshness, 3.0)


def test_a_topic_that_went_back_makes_it_stale_until_it_is_read_to_its_end_and_a_watermark_comes() -> None:
    freshness = _caught_up()
    freshness.watermark(0, 5, LOG, LOG, 0.0)
    freshness.lose("expiries", "it was recreated")
    assert not _fresh(freshness, 1.0)
    assert freshness.log_time is None
    freshness.begin("expiries", [2], [0])
    freshness.reached("expiries", 0, 2)
    assert not _fresh(freshness, 3.0)
    freshness.watermark(0, 2, LOG + 3, LOG + 3, 3.0)
    assert _fresh(freshness, 3.0)


def test_two_clocks_that_drift_apart_do_not_make_it_stale() -> None:
    """A day of a broker's clock that is 200 ppm slow: 17 s, more than stale_after."""
    freshness = _caught_up()
    for second in range(0, 86_400, 60):
        now = second * 1_000.0
        as_of = LOG + int(now * (1 - 200e-6))
        freshness.watermark(0, 5 + second, as_of, as_of, now)
        freshness.proven("revocations", now)
        assert _fresh(freshness, now + 5_000)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 20_000), st.integers(0, 20_000)), min_size=1, max_size=20),
    st.integers(0, 30_000),
)
def test_it_never_claims_to_be_fresher_than_it_is(steps: list[tuple[int, int, int]], later: int) -> None:
    """Watermarks are written, each for some instant before, and received some time after, in order."""
    freshness = _caught_up()
    real = received = 0
    as_of = -(10**9)
    for offset, (pause, behind, delay) in enumerate(steps):
        real += pause
        as_of = max(as_of, real - behind)
        # The first came without delay, and so tells how the two clocks stand to each other.
        received = max(received, real + (delay if offset else 0))
        freshness.watermark(0, 5 + offset, LOG + as_of, LOG + real, float(received))
        freshness.proven("revocations", float(received))
    now = received + later
    assert freshness.stale_ms(now) >= int(now - as_of - DRIFT * now) - 1
