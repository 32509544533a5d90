"""Goal: touches that are applied together do what each of them does alone.

Method: runs of records of one append time, mostly plain touches, some of them odd in one way or another, are given to
the engine as one batch, with the oracle beside it, which knows no runs. Time then goes on until all have ended, so
that every `last_seen_at` comes to light. And `touch_together` itself says how far it went.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from lapse.pipeline.engine.fast_decode import decode_each
from lapse.pipeline.engine.hot_path import TOGETHER, touch_together

from tests.engine.records import (
    T0,
    Partition,
    at,
    closed,
    default_policy,
    entry,
    packed,
    policy_adopted,
    ref,
    started,
    touched,
)

IDLE_MS, WARN_MS = 10_000, 2_000
SESSIONS = 14


def _who(number: int, *, tenanted: bool) -> dict[str, Any]:
    return {"subject": f"u-{number % 5}", "tenant": "acme" if tenanted and number % 3 == 0 else None}


def _partition(*, tenanted: bool) -> Partition:
    partition = Partition(
        default_policy(IDLE_MS, 60_000),
        policy_adopted("warning", 2, idle_ms=IDLE_MS, warn_before_ms=WARN_MS),
        policy_adopted("endless", 3, absolute_ms=45_000),
    )
    for number in range(SESSIONS):
        policy = (None, "warning", "endless")[number % 3]
        partition.add(0, started(f"s{number}", policy=policy, **_who(number, tenanted=tenanted)))
    return partition


def _odd(rng: random.Random, number: int, who: dict[str, Any]) -> dict[str, Any] | bytes | None:
    session = f"s{number}"
    odd: list[dict[str, Any] | bytes | None] = [
        touched(session, **who | {"subject": "u-9"}),
        touched(session, **who | {"tenant": "globex"}),
        touched(session, **who, age_ms=-1),
        touched(session, **who, age_ms=3_600_001),
        touched(session, **who, age_ms=100, since_ms=rng.choice((200, IDLE_MS + 1)), pause_ms=50),
        touched(session, **who, age_ms=100, pause_ms=rng.choice((50, IDLE_MS + 1))),
        touched(session, **who, hold_ms=3_000),
        touched(f"new{rng.randrange(6)}", **who),
        closed(session, **who),
        started(session, **who),
        packed(*(entry(f"s{n}", subject=f"u-{n % 5}", age_ms=rng.randrange(2_000)) for n in range(rng.randrange(12)))),
        packed(entry(session, "no number"), *(entry(f"s{n}", subject=f"u-{n % 5}") for n in range(9))),
        b"no json",
        None,
    ]
    return rng.choice(odd)


@pytest.mark.parametrize("seed", range(30))
def test_runs_are_as_their_records_one_by_one(seed: int) -> None:
    """Engine and oracle agree on runs with and without odd records, tenants, warnings, limits and late touches."""
    rng = random.Random(seed)
    tenanted, oddity = rng.random() < 0.5, rng.choice((0.0, 0.02, 0.1))
    partition = _partition(tenanted=tenanted)
    now = 0
    for _ in range(rng.randrange(5, 25)):
        now += rng.choice((0, 1, 400, 2_500))
        busy = range(rng.randrange(1, SESSIONS + 1))  # the others come into their warning window, or end
        records = []
        for _ in range(rng.choice((1, 3, 9, 30, TOGETHER + 20))):
            number = rng.choice(busy)
            who = _who(number, tenanted=tenanted)
            plain = touched(f"s{number}", **who, age_ms=rng.choice((0, 3, rng.randrange(4_000))))
            value = _odd(rng, number, who) if rng.random() < oddity else plain
            records.append(partition.log.add(now, value))
        partition.now = now
        partition.apply(records)
    partition.tick_until(now + 70_000)
    assert partition.engine.live_sessions == 0


def _plain(*touches: dict[str, Any]) -> list[Any]:
    log = Partition().log
    return decode_each([log.add(0, touch).value for touch in touches])


def test_plain_touches_go_together() -> None:
    """All plain touches are applied; of two of one session the later instant stays."""
    partition = _partition(tenanted=True)
    table = partition.engine.sessions.table
    numbers = [*range(SESSIONS), 4, 4]
    touches = [
        touched(f"s{n}", **_who(n, tenanted=True), age_ms=age)
        for n, age in zip(numbers, [*[50] * SESSIONS, 20, 90], strict=True)
    ]
    assert touch_together(table, _plain(*touches), at(1_000), 3_600_000) == len(touches)
    seen = [table.last_seen_at[table.slot_of[ref(f"s{n}")]] - T0 for n in range(SESSIONS)]
    assert seen == [980 if n == 4 else 950 for n in range(SESSIONS)]


@pytest.mark.parametrize(
    ("odd", "done"),
    [
        ({"age_ms": -1}, 3),
        ({"age_ms": 3_600_001}, 3),
        ({"since_ms": 5}, 3),
        ({"pause_ms": 5}, 3),
        ({"hold_ms": 5}, 3),
        ({"subject": "another"}, 0),
        ({"tenant": "another"}, 0),
        ({"tenant": None}, 0),
    ],
)
def test_an_odd_touch_ends_them(odd: dict[str, Any], done: int) -> None:
    """What the hot path must not decide stops it, before anything of it is done."""
    partition = _partition(tenanted=True)
    table = partition.engine.sessions.table
    touches = [touched(f"s{n}", **_who(n, tenanted=True)) for n in range(8)]
    touches[3] = {name: value for name, value in (touches[3] | odd).items() if value is not None}
    before = list(table.last_seen_at)
    assert touch_together(table, _plain(*touches), at(1_000), 3_600_000) == done
    moved = [slot for slot, last_seen_at in enumerate(table.last_seen_at) if last_seen_at != before[slot]]
    assert moved == list(range(done))


@pytest.mark.parametrize("odd", [touched("nobody"), packed(entry("s1"), entry("s2")), started("s1"), {"no": "record"}])
def test_records_without_a_known_session_end_them(odd: dict[str, Any]) -> None:
    """An unknown session, a packed record and what the models have to read stop it, wherever they stand."""
    table = _partition(tenanted=False).engine.sessions.table
    good = touched("s1", **_who(1, tenanted=False))
    for position in range(3):
        touches = [good, good, good]
        touches[position] = odd
        assert touch_together(table, _plain(*touches), at(1_000), 3_600_000) == 0


def test_the_bound_of_being_in_time_is_brought_up() -> None:
    """A session that is touched for longer than its idle limit is in time by the hot path, again and again."""
    table = _partition(tenanted=False).engine.sessions.table
    touches = _plain(*(touched(f"s{n}", **_who(n, tenanted=False)) for n in range(0, SESSIONS, 3)))
    for now in range(1_000, 60_000, 4_000):
        assert touch_together(table, touches, at(now), 3_600_000) == len(touches)
    assert touch_together(table, touches, at(60_000), 3_600_000) == 0, "the absolute limit has come"
