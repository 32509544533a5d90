"""Goal: the hot path takes no touch that the models refuse, and reads the same values.

Method: hypothesis makes touches that are good, nearly good and mangled as bytes; what `decode_plain` accepts must be
accepted by the codec with equal fields. And what the SDK writes must be accepted, or the hot path would be cold.
"""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lapse.pipeline.engine.fast_decode import NotPlain, PackedRow, PlainPacked, PlainTouch, decode_plain
from lapse.schemas import (
    BadRecord,
    PackedTouch,
    PackedTouches,
    SessionTouched,
    encode,
    parse_activity,
    parse_packed_entry,
)

names = st.one_of(
    st.text(min_size=0, max_size=12), st.sampled_from(["s", "u/1", "a" * 256, "a" * 257, "é" * 256, "\ud800"])
)
numbers = st.one_of(
    st.integers(-(2**64), 2**65),
    st.sampled_from([0, -1, 2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 1.0, 1e3, 0.5, True]),
)
anything = st.one_of(
    names, numbers, st.none(), st.lists(st.integers(), max_size=2), st.dictionaries(names, numbers, max_size=1)
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "session": st.one_of(names, anything),
        "subject": st.one_of(names, anything),
        "tenant": st.one_of(st.none(), names, anything),
        "service": st.one_of(names, anything),
        "age_ms": st.one_of(numbers, anything),
        "since_ms": st.one_of(st.none(), numbers),
        "pause_ms": st.one_of(st.none(), numbers),
        "hold_ms": st.one_of(st.none(), numbers),
        "session_age_ms": st.one_of(st.none(), numbers),
        "device": st.one_of(st.none(), names),
        "network": st.one_of(st.none(), names),
        "v": st.sampled_from([1, 2, 0, "1", 1.0, None, True]),
        "forwarded": st.just([1, 2, None, 3]),
        "mac": names,
        "later": anything,
    },
)
good = {"session": "s", "subject": "u", "service": "web", "age_ms": 3}


def _as_bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def _check(value: bytes) -> None:
    try:
        plain = decode_plain(value)
    except NotPlain:
        return
    assert isinstance(plain, PlainTouch | PlainPacked)
    if isinstance(plain, PlainTouch):
        if plain.tenant is not None and "/" in plain.tenant:
            with pytest.raises(BadRecord):
                parse_activity(value)
            return
        model = parse_activity(value)
        assert isinstance(model, SessionTouched)
        assert model.forwarded is None
        assert {name: getattr(model, name) for name in plain.__struct_fields__} == {
            name: getattr(plain, name) for name in plain.__struct_fields__
        }
        return
    packed = parse_activity(value)
    assert isinstance(packed, PackedTouches)
    assert packed.service == plain.service
    for index, (row, entry) in enumerate(zip(plain.touches, packed.touches, strict=True)):
        if row.tenant is None or "/" not in row.tenant:
            assert row == PackedRow(*parse_packed_entry(entry, index))


@given(st.booleans(), fields)
@example(True, {"v": True})
@example(True, {"age_ms": 2**64})
@example(True, {"tenant": "a/b"})
@example(True, {"session": "\ud800"})
def test_no_touch_is_taken_that_the_model_refuses(mend: bool, fields: dict[str, Any]) -> None:
    _check(_as_bytes({"type": "session.touched", **(good if mend else {}), **fields}))


rows = st.lists(st.one_of(anything, st.just("s"), st.integers(0, 99)), max_size=7)


@given(st.lists(st.one_of(st.tuples(names, names, st.none() | names, numbers).map(list), rows), max_size=3), anything)
@example([["s", "u", None, 1, None, None, None]], "web")
@example([["s", "u", None, 1]] * 501, "web")
def test_no_packed_record_is_taken_that_the_models_refuse(touches: list[Any], service: Any) -> None:
    _check(_as_bytes({"type": "touches", "service": service, "touches": touches}))


@given(st.binary(max_size=40), st.integers(0, 90))
def test_no_mangled_bytes_are_taken_that_the_model_refuses(noise: bytes, at: int) -> None:
    value = _as_bytes({"type": "session.touched", **good})
    _check(value[:at] + noise + value[at + len(noise) :])


def test_deep_unknown_fields_are_left_to_the_models() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(NotPlain):
        decode_plain(orjson.dumps({"type": "session.touched", **good, "later": deep}))


def test_what_the_sdk_writes_is_taken() -> None:
    touch = decode_plain(encode(SessionTouched(session="s", subject="u", tenant="acme", service="web", age_ms=7)))
    assert isinstance(touch, PlainTouch)
    assert (touch.session, touch.subject, touch.tenant, touch.age_ms) == ("s", "u", "acme", 7)
    entries = [PackedTouch("s", "u", None, 1200), PackedTouch("t", "w", "acme", 40, 6000, 900)]
    packed = decode_plain(encode(PackedTouches(service="web", touches=entries)))
    assert isinstance(packed, PlainPacked)
    assert [tuple(getattr(row, name) for name in row.__struct_fields__) for row in packed.touches] == [
        tuple(entry) for entry in entries
    ]
