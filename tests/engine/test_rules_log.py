"""DESIGN.md section 2, "One log decides" and "Ticks", sentence by sentence.

Each test is named after a sentence and quotes it. The oracle runs beside the engine in `Partition` and must agree on
everything else.
"""

from __future__ import annotations

import orjson
import pytest

from lapse.pipeline.engine import Effects, PartitionEngine
from lapse.schemas import SessionEnded

from tests.engine.records import (
    T0,
    Log,
    Partition,
    at,
    default_policy,
    ref,
    revocation_ordered,
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


# One log decides.


def _a_log() -> Log:
    log = Log(settings())
    log.add(0, default_policy(IDLE, ABSOLUTE))
    for n in range(5):
        log.add(100 * n, started(f"s{n}", subject=f"u-{n}"))
    for ms in range(1000, 30_000, 1000):
        log.add(ms, tick(ms, prev_ms=ms - 1000, ack_ms=ms - 998))
        log.add(ms + 10, touched(f"s{ms // 1000 % 2}", subject=f"u-{ms // 1000 % 2}"))
    log.add(30_000, revocation_ordered(29_900, subject="u-0"))
    return log


def test_every_decision_is_a_pure_function_of_one_logs_prefix() -> None:
    """So every decision is a pure function of one log's prefix: the same records give the same endings with the same
    ids, fields included."""
    log = _a_log()
    whole = PartitionEngine(log.settings).apply(log.records)
    one_by_one = PartitionEngine(log.settings)
    singles = [ending for record in log.records for ending in one_by_one.apply([record]).endings]
    assert whole.endings == singles
    assert len(whole.endings) == 4
    assert len({ending.id for ending in whole.endings}) == 4


def test_redelivery_is_harmless() -> None:
    """From this follow replay, audit, harmless redelivery and crashes."""
    log = _a_log()
    engine = PartitionEngine(log.settings)
    engine.apply(log.records)
    again = engine.apply(log.records)
    assert seen(again) == seen(Effects())
    assert engine.offset == log.next_offset


def test_a_stalled_former_owner_can_never_end_a_session_early() -> None:
    """A stalled former owner can never end a session early."""
    p = short()
    p.add(0, started())
    p.tick_until(9000)
    p.add(9000, touched())
    # The former owner wakes up, takes its own clock for the time, and ticks as if it were an hour later.
    p.tick(9010, epoch=3, mono_ms=3_600_000, wall_at=T0 + 3_600_000)
    p.tick_until(18_000)
    assert p.is_live()


CONTROL = {
    "tick": tick(5),
    "revocation": revocation_ordered(0, subject="u-1"),
    "policy": default_policy(1, 1),
}


@pytest.mark.parametrize("name", CONTROL)
@pytest.mark.parametrize(
    "forgery", ["no mac", "another key", "another partition", "another topic", "changed after signing"]
)
def test_control_records_without_a_valid_mac_are_dead_lettered(name: str, forgery: str) -> None:
    """Without a valid one they (and forwarded records) are dead-lettered, since every service may write to this
    topic."""
    p = short()
    p.add(0, started())
    record = CONTROL[name]
    if forgery == "another key":
        record = Log(settings(worker_key=b"not the key of these workers")).signed(record)
    elif forgery == "another partition":
        record = Log(settings(partition=1, partitions=2)).signed(record)
    elif forgery == "another topic":
        record = Log(settings(topic="other.activity")).signed(record)
    elif forgery == "changed after signing":
        record = p.log.signed(record) | {"owner": "w-9", "at": 5, "version": 99}
    effects = p.add(10, record, sign_it=False)
    (letter,) = effects.dead_letters
    assert (letter.topic, letter.partition, letter.offset, letter.entry) == ("lapse.activity", 0, 2, None)
    assert letter.reason
    assert not effects.ticked
    assert p.is_live()
    assert p.engine.epoch == -1


def test_the_mac_is_over_the_json_without_mac_keys_sorted() -> None:
    """HMAC-SHA-256 over topic, a zero byte, partition in decimal, a zero byte, and the JSON without `mac`, keys
    sorted."""
    p = short()
    p.add(0, started())
    signed = p.log.signed(tick(10, later_field={"b": 1, "a": [2]}))
    shuffled = {key: signed[key] for key in sorted(signed, reverse=True)}
    effects = p.add(10, orjson.dumps(shuffled, option=orjson.OPT_INDENT_2))
    assert effects.ticked
    assert not effects.dead_letters


@pytest.mark.parametrize("version", [3, 4])
def test_a_policy_version_at_or_below_the_one_in_force_changes_nothing(version: int) -> None:
    """A policy version at or below the one in force, and a tick of an older epoch, change nothing."""
    p = Partition(default_policy(IDLE, ABSOLUTE, version=4))
    p.add(0, started())
    p.add(10, default_policy(1000, 1000, version=version))
    p.tick_until(IDLE + GRACE)
    assert (p.ending.idle_ms, p.ending.policy_version) == (IDLE, 4)


def test_a_tick_of_an_older_epoch_changes_nothing() -> None:
    """A policy version at or below the one in force, and a tick of an older epoch, change nothing."""
    p = short()
    p.tick(0)
    effects = p.add(10, tick(10, epoch=6))
    assert not effects.ticked
    assert p.engine.epoch == 7
    # In a gap it proves nothing either: the hold goes on until the present owner ticks.
    p.add(20, started())
    p.add(13_000, tick(13_000, epoch=6))
    p.add(14_000, tick(14_000, epoch=6, prev_ms=13_000, ack_ms=13_001))
    p.add(15_000, tick(15_000, epoch=6, prev_ms=14_000, ack_ms=14_001))
    assert p.is_live()


def test_endings_of_one_record_stand_in_order_of_due_and_session() -> None:
    """The same records give the same endings: of those settled by one record, the earlier due comes first."""
    p = Partition(default_policy(IDLE, None))
    for name, ms in [("c", 0), ("b", 30), ("a", 30), ("d", 10)]:
        p.add(50, started(name, age_ms=50 - ms))
    p.tick_until(8000)
    effects = p.tick(IDLE + GRACE + 100)
    assert [e.session for e in effects.endings] == [ref(n) for n in "cdab"]


def test_the_watermark_stands_after_all_endings_decided_below_it() -> None:
    """All endings with decided_at below as_of stand before it."""
    p = short()
    highest = before = 0
    for n in range(40):
        p.add(n * 700, started(f"s{n}"))
        for ending in p.endings[highest:]:
            assert isinstance(ending, SessionEnded)
            assert ending.decided_at >= before
        highest = len(p.endings)
        before = p.engine.watermark()
        assert before <= p.engine.stamp
    assert highest > 20
    assert before > at(20_000)


# Ticks.


def test_a_tick_settles_a_silent_partition() -> None:
    """A silent partition has no time. The owner appends a `clock.tick` ... at once when something is due by its own
    estimate; if the tick comes back too early it waits the difference and ticks again."""
    p = short()
    p.add(0, started())
    p.tick_until(9000)
    due = p.engine.next_due_at()
    assert due == at(IDLE + GRACE)
    p.tick(IDLE + GRACE - 2)
    assert p.is_live()
    assert p.engine.next_due_at() == due
    p.tick(IDLE + GRACE)
    assert p.ending.due_at == at(IDLE)


def test_the_owners_clocks_need_not_be_right() -> None:
    """Its own clock need not be right."""
    p = short()
    p.add(0, started())
    for ms in range(1000, 10_000, 1000):
        p.add(ms, tick(-5_000_000 + 3 * ms, wall_at=1))
    assert p.is_live()
    p.add(IDLE + GRACE, tick(1 << 62, wall_at=-(1 << 62)))
    assert p.ending.decided_at == at(IDLE + GRACE)
