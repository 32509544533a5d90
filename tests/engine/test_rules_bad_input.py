"""DESIGN.md section 3, "Bad input": it goes to the dead letters with its reason, and processing goes on."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from tests.engine.records import (
    Partition,
    at,
    closed,
    default_policy,
    elevated,
    entry,
    packed,
    ref,
    refreshed,
    revocation_ordered,
    started,
    tick,
    touched,
)

IDLE, ABSOLUTE, GRACE = 10_000, 60_000, 250
INT64 = 1 << 63

BAD: dict[str, bytes | None] = {
    "null value": None,
    "empty": b"",
    "not JSON": b"hello",
    "half a record": orjson.dumps(touched())[:-1],
    "two records": orjson.dumps(touched()) * 2,
    "bad UTF-8": b'{"type":"session.touched","session":"\xff\xfe","subject":"u","service":"w","age_ms":0}',
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "a string": b'"session.touched"',
    "no type": orjson.dumps({k: v for k, v in touched().items() if k != "type"}),
    "unknown type": orjson.dumps(touched() | {"type": "session.paused"}),
    "type of another topic": orjson.dumps({"type": "watermark", "as_of": 1}),
    "type is a number": orjson.dumps(touched() | {"type": 1}),
    "newer version": orjson.dumps(touched() | {"v": 2}),
    "version 0": orjson.dumps(touched() | {"v": 0}),
    "age is text": orjson.dumps(touched() | {"age_ms": "5"}),
    "age is a float": orjson.dumps(touched() | {"age_ms": 5.5}),
    "age is true": orjson.dumps(touched() | {"age_ms": True}),
    "age is null": orjson.dumps(touched() | {"age_ms": None}),
    "age beyond int64": orjson.dumps(touched(age_ms=1 << 63)),
    "no age": orjson.dumps({k: v for k, v in touched().items() if k != "age_ms"}),
    "no session": orjson.dumps({k: v for k, v in touched().items() if k != "session"}),
    "no subject": orjson.dumps({k: v for k, v in touched().items() if k != "subject"}),
    "no service": orjson.dumps({k: v for k, v in touched().items() if k != "service"}),
    "session is a number": orjson.dumps(touched() | {"session": 7}),
    "empty session": orjson.dumps(touched() | {"session": ""}),
    "empty subject": orjson.dumps(touched() | {"subject": ""}),
    "empty tenant": orjson.dumps(touched() | {"tenant": ""}),
    "a name over 256": orjson.dumps(touched() | {"subject": "é" * 257}),
    "a tenant with /": orjson.dumps(touched() | {"tenant": "a/b"}),
    "attributes are a list": orjson.dumps(started() | {"attributes": ["role"]}),
    "an attribute is a number": orjson.dumps(started() | {"attributes": {"role": 1}}),
    "token life 0": orjson.dumps(started() | {"token_life_ms": 0}),
    "nested 10,000 deep": b'{"type":"session.touched","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "objects nested 10,000 deep": b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    "nested 10,000 deep before its type": b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b',"type":"session.touched"}',
    "nested 17 deep": orjson.dumps(touched() | {"x": orjson.loads(b"[" * 16 + b"]" * 16)}),
    "2 MB": orjson.dumps(touched() | {"x": "y" * 2_000_000}),
    "over 64 KiB": orjson.dumps(touched() | {"x": "y" * 65_536}),
    "touches are an object": orjson.dumps(packed() | {"touches": {}}),
    "forwarded is text": orjson.dumps(touched() | {"forwarded": "1"}),
    "forwarded is short": orjson.dumps(touched() | {"forwarded": [1, 2, None]}),
    "forwarded, no mac": orjson.dumps(touched() | {"forwarded": [1, 2, None, 3]}),
    "a tick without epoch": orjson.dumps({k: v for k, v in tick().items() if k != "epoch"}),
    "a tick without a mac": orjson.dumps(tick()),
    "a byte order mark": b"\xef\xbb\xbf" + orjson.dumps(touched()),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_goes_to_the_dead_letters_and_processing_goes_on(name: str) -> None:
    """Bad input goes to the dead letters and processing goes on."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    p.add(0, started("a"))
    value = BAD[name]
    (letter,) = p.add(10, value).dead_letters
    assert (letter.topic, letter.partition, letter.offset, letter.entry) == ("lapse.activity", 0, 2, None)
    assert letter.reason
    assert letter.size == len(value or b"")
    kept = None if value is None else base64.b64encode(value[:4096]).decode()
    assert letter.value in (kept, "" if kept is None else kept)
    p.add(20, touched("a"))
    assert p.last_seen("a") == 20


def test_bad_input_in_a_batch_leaves_its_neighbours_alone() -> None:
    """Bad input goes to the dead letters and processing goes on."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    batch = []
    for n, value in enumerate(BAD.values()):
        batch += [p.log.add(10, touched(f"s{n}")), p.log.add(10, value), p.log.add(10, packed(entry(f"p{n}")))]
    effects = p.apply(batch)
    assert p.engine.live_sessions == 2 * len(BAD)
    assert [letter.offset for letter in effects.dead_letters] == [record.offset for record in batch[1::3]]


def test_a_value_cannot_forge_its_neighbours() -> None:
    """One record is one record, whatever it looks like when a batch is joined."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    good = orjson.dumps(touched("x"))
    batch = [
        p.log.add(0, touched("a")),
        p.log.add(0, good + b"," + good),
        p.log.add(0, good + b",1," + good),
        p.log.add(0, good[:-1]),
        p.log.add(0, b"}," + good),
        p.log.add(0, good[:-1] + b',"y":['),
        p.log.add(0, b"]}"),
        p.log.add(0, b'"'),
        p.log.add(0, b'"'),
        p.log.add(0, touched("b")),
    ]
    effects = p.apply(batch)
    assert sorted(p.oracle.live) == [ref("a"), ref("b")]
    assert len(effects.dead_letters) == 8


@pytest.mark.parametrize("age_ms", [-1, -INT64, IDLE + 1, INT64 - 1])
@pytest.mark.parametrize("make", [started, touched, elevated, refreshed, closed])
def test_an_age_out_of_range_is_clamped_and_counted_not_dead_lettered(make: Any, age_ms: int) -> None:
    """An age below 0 or above `age_max_ms` (1 h) is clamped and counted, not dead-lettered."""
    p = Partition(default_policy(2 * IDLE, ABSOLUTE), age_max_ms=IDLE)
    before = dict(p.engine.counters)
    effects = p.add(0, make(age_ms=age_ms))
    assert effects.dead_letters == []
    assert any("clamp" in name and p.engine.counters[name] > before.get(name, 0) for name in p.engine.counters)
    if make in (started, touched, elevated):
        assert p.last_seen() == (0 if age_ms < 0 else -IDLE)


def test_an_age_of_a_packed_touch_is_clamped_and_counted() -> None:
    """An age below 0 or above `age_max_ms` (1 h) is clamped and counted, not dead-lettered."""
    p = Partition(default_policy(2 * IDLE, ABSOLUTE), age_max_ms=IDLE)
    effects = p.add(0, packed(entry("a", age_ms=-INT64), entry("b", age_ms=INT64 - 1), entry("c", age_ms=IDLE)))
    assert effects.dead_letters == []
    assert [p.last_seen(n) for n in "abc"] == [0, -IDLE, -IDLE]


@pytest.mark.parametrize("extreme", [-INT64, INT64 - 1])
def test_extreme_numbers_stop_nothing(extreme: int) -> None:
    """Processing goes on: whatever 64 bits can say."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    p.add(0, started("a"))
    p.engine.apply(
        [
            p.log.add(1, touched("a", since_ms=extreme, pause_ms=extreme, hold_ms=extreme)),
            p.log.add(2, touched("b", session_age_ms=extreme, hold_ms=extreme)),
            p.log.add(3, elevated("c", session_age_ms=extreme)),
            p.log.add(4, packed([ref("d"), "u-1", None, extreme, extreme, extreme])),
            p.log.add(5, tick(extreme, prev_ms=extreme, ack_ms=extreme, wall_at=extreme, up_ms=extreme)),
            p.log.add(6, revocation_ordered(0, subject="u-9") | {"at": extreme}),
            p.log.add(7, revocation_ordered(0, "r-2", session="z") | {"at": extreme}),
        ]
    )
    for ms in range(1000, 80_000, 1000):
        p.engine.apply([p.log.add(ms, tick(ms))])
    restored = p.engine.cut()
    assert p.restored(restored.records).offset == p.engine.offset


def test_unknown_fields_are_ignored() -> None:
    """Unknown fields are ignored; `v` (absent = 1) is the version."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    assert p.add(0, touched(later={"deep": [1, 2]}, v=1)).dead_letters == []
    assert p.is_live()


def test_a_record_of_bad_entries_has_eight_dead_letters_and_its_good_entries_count() -> None:
    """Else a megabyte of such records is gigabytes of letters, at each restart again."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    p.add(0, started("a"))
    effects = p.add(5_000, packed(*[0] * 400, entry("a"), *[0] * 99))
    letters = effects.dead_letters
    assert [letter.entry for letter in letters] == list(range(8))
    assert "read the record for others" in letters[-1].reason
    assert p.engine.counters["entries_refused_untold"] == 499 - 8
    assert p.oracle.live[ref("a")].last_seen_at == at(5_000)
    assert len(p.add(5_001, packed(0, 0, 0)).dead_letters) == 3
