"""Goal: bytes become a record or a BadRecord that says why, and nothing else; what is written can be read.

Method: the examples of every type, one bad value per rule with the words its reason must have, and properties over
arbitrary bytes, arbitrary JSON and damaged records.
"""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lapse import schemas
from lapse.schemas import BadRecord
from lapse.schemas.examples import EXAMPLES
from lapse.schemas.fields import Record
from lapse.schemas.registry import RECORDS

from tests.schemas.strategies import damaged, json_values, valid_values

PARSERS: dict[str, Callable[[bytes | None], Record]] = {
    "activity": schemas.parse_activity,
    "revocations": schemas.parse_revocation,
    "policies": schemas.parse_policy,
    "expiries": schemas.parse_expiry,
    "warnings": schemas.parse_warning,
    "enforcement": schemas.parse_enforcement,
    "violations": schemas.parse_violation,
    "dead_letters": schemas.parse_dead_letter,
}
KINDS = [(topic, kind) for topic, models in RECORDS.items() for kind in models]
TOUCH: dict[str, Any] = {"type": "session.touched", "session": "s", "subject": "u", "service": "web", "age_ms": 0}


def reason_of(value: bytes | None, parse: Callable[[bytes | None], Record] = schemas.parse_activity) -> str:
    with pytest.raises(BadRecord) as caught:
        parse(value)
    return caught.value.reason


def touch(**changes: Any) -> bytes:
    return orjson.dumps({**TOUCH, **changes})


def records_of(topic: str, kind: str) -> st.SearchStrategy[dict[str, Any]]:
    schema = RECORDS[topic][kind].model_json_schema()
    return valid_values(schema).map(lambda record: {**record, "type": kind})


ANY_RECORD = st.sampled_from(KINDS).flatmap(lambda which: st.tuples(st.just(which[0]), records_of(*which)))


def test_every_topic_with_json_values_has_a_parser() -> None:
    assert PARSERS.keys() == RECORDS.keys()


@pytest.mark.parametrize(("topic", "kind"), KINDS)
def test_example_of_each_type_is_read_as_its_model(topic: str, kind: str) -> None:
    record = PARSERS[topic](orjson.dumps(EXAMPLES[kind]))
    assert type(record) is RECORDS[topic][kind]
    assert record.type == kind
    assert PARSERS[topic](schemas.encode(record)) == record


@pytest.mark.parametrize(("topic", "kind"), KINDS)
def test_example_of_each_type_comes_back_field_by_field(topic: str, kind: str) -> None:
    written = orjson.loads(schemas.encode(PARSERS[topic](orjson.dumps(EXAMPLES[kind]))))
    expected = dict(EXAMPLES[kind])
    assert {name: written[name] for name in expected if name in written} | {
        name: None for name in expected if name not in written
    } == {**expected, **{n: written[n] for n in ("revocation", "policy") if isinstance(written.get(n), dict)}}


def test_services_activity_is_written_without_nulls_and_version() -> None:
    record = schemas.SessionTouched(session="s", subject="u", service="web", age_ms=0)
    assert orjson.loads(schemas.encode(record)) == TOUCH


def test_other_records_are_written_with_all_fields() -> None:
    written = orjson.loads(schemas.encode(schemas.Watermark(as_of=5)))
    assert written == {"type": "watermark", "v": 1, "as_of": 5, "offset_ms": 0}
    revocation = orjson.loads(schemas.encode(schemas.Revocation(id="r", subject="u")))
    assert revocation["tenant"] is None
    assert revocation["everyone"] is False


def test_packed_touches_are_written_without_trailing_nulls() -> None:
    entries = [
        schemas.PackedTouch("s", "u", None, 5),
        schemas.PackedTouch("s", "u", "t", 5, 7),
        schemas.PackedTouch("s", "u", "t", 5, None, 9),
    ]
    written = orjson.loads(schemas.encode(schemas.PackedTouches(service="web", touches=entries)))
    assert written["touches"] == [["s", "u", None, 5], ["s", "u", "t", 5, 7], ["s", "u", "t", 5, None, 9]]
    assert [schemas.parse_packed_entry(entry, index) for index, entry in enumerate(written["touches"])] == entries


def test_record_too_large_to_be_read_is_refused_where_it_is_written() -> None:
    with pytest.raises(BadRecord, match="65536"):
        schemas.encode(schemas.Revocation(id="r", subject="u", note="x" * 70_000))


# --- bad input, as DESIGN.md section 3 lists it -----------------------------------------------------------------------


def test_null_value_is_refused() -> None:
    assert reason_of(None) == "value is null"


def test_value_of_2_mb_is_refused_unread() -> None:
    started = time.perf_counter()
    assert "2097152 bytes, more than 65536" in reason_of(b"[" * 2_097_152)
    assert time.perf_counter() - started < 0.1


def test_value_of_64_kib_is_read_and_one_byte_more_is_not() -> None:
    padding = 65_536 - len(touch(x=""))
    assert schemas.parse_activity(touch(x="x" * padding)).type == "session.touched"
    assert "65537 bytes" in reason_of(touch(x="x" * (padding + 1)))


@pytest.mark.parametrize(
    "value", [b"\xff", b'{"type":"\xc3\x28"}', b'{"type":"\xed\xa0\x80"}', touch()[:-1] + b"\x80}"]
)
def test_bad_utf8_is_refused(value: bytes) -> None:
    assert reason_of(value).startswith("not UTF-8: byte ")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"not json",
        b"{",
        touch()[:-1],
        touch() + b"{}",
        b"\xef\xbb\xbf" + touch(),
        b'{"type":"session.touched","age_ms":NaN}',
        b'{"type":"session.touched","age_ms":Infinity}',
        b'{"x":1e400}',
        b'{"x":01}',
        b"{'x':1}",
        b'{"x":1,}',
        b'{"x":"\\ud800"}',
        b'{"x":"\n"}',
        b'"' + b"\\" * 1001,
    ],
)
def test_what_is_not_json_is_refused(value: bytes) -> None:
    assert reason_of(value).startswith("not JSON: ")


@pytest.mark.parametrize("value", [b"[]", b"1", b'"session.touched"', b"null", b"true", b"[{}]"])
def test_json_that_is_no_object_is_refused(value: bytes) -> None:
    assert reason_of(value) == "value is not a JSON object"


@pytest.mark.parametrize("depth", [16, 1_000, 1_030, 10_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"x":', b"}")])
def test_nesting_deeper_than_16_is_refused(depth: int, opening: bytes, closing: bytes) -> None:
    core = b"1" if opening == b"[" else b"{}"
    nested = touch()[:-1] + b',"x":' + opening * depth + core + closing * depth + b"}"
    assert reason_of(nested) == "nested deeper than 16"


def test_nesting_of_10_000_that_is_never_closed_is_refused_as_deep() -> None:
    assert reason_of(b"[" * 10_000) == "nested deeper than 16"
    assert reason_of(b'{"a":[' * 10_000) == "nested deeper than 16"


def test_nesting_of_16_is_read() -> None:
    assert schemas.parse_activity(touch()[:-1] + b',"x":' + b"[" * 15 + b"]" * 15 + b"}").type == "session.touched"


def test_brackets_in_text_are_no_nesting() -> None:
    assert schemas.parse_activity(touch(x="[{" * 100, session='"[\\[')).type == "session.touched"
    # Also where the value is no JSON, and only a scan can tell.
    assert reason_of(touch(x='\\"[{' * 100)[:-1]).startswith("not JSON: ")


def test_unknown_type_is_refused_and_shown() -> None:
    assert "'session.paused' is unknown" in reason_of(touch(type="session.paused"))
    assert "type: is missing" in reason_of(b"{}")
    assert "type: must be text" in reason_of(touch(type=["session.touched"]))
    assert len(reason_of(touch(type="x" * 60_000))) < 400


def test_type_of_another_topic_is_unknown() -> None:
    assert "is unknown" in reason_of(orjson.dumps(EXAMPLES["revocation"]))
    assert "is unknown" in reason_of(touch(), schemas.parse_revocation)


def test_newer_version_is_refused_before_its_type_is_looked_at() -> None:
    assert reason_of(touch(v=2)).startswith("v: is newer than 1")
    assert reason_of(orjson.dumps({"v": 9, "type": "session.teleported"})).startswith("v: is newer than 1")


def test_version_is_an_integer_of_at_least_one() -> None:
    assert schemas.parse_activity(touch(v=1)).v == 1
    for version in (0, -1, "1", True, None, 1.0):
        assert "session.touched: v: " in reason_of(touch(v=version))


@pytest.mark.parametrize("field", ["session", "subject", "service", "age_ms"])
def test_missing_field_is_named(field: str) -> None:
    value = orjson.dumps({name: value for name, value in TOUCH.items() if name != field})
    assert reason_of(value) == f"session.touched: {field}: Field required"


@pytest.mark.parametrize("age", ["1", True, False, 1.0, 0.5, None, [], {}, 2**63, -(2**63) - 1])
def test_only_an_integer_of_64_bits_is_an_age(age: Any) -> None:
    # json, for orjson does not write integers above 64 bits.
    value = json.dumps({**TOUCH, "age_ms": age}).encode()
    assert reason_of(value).startswith("session.touched: age_ms: ")


@pytest.mark.parametrize("digits", [b"9" * 400, b"-" + b"9" * 4_500, b"1e5", b"1E2", b"1.0"])
def test_number_that_is_no_64_bit_integer_is_refused_however_written(digits: bytes) -> None:
    with pytest.raises(BadRecord):
        schemas.parse_activity(touch().replace(b'"age_ms":0', b'"age_ms":' + digits))


@pytest.mark.parametrize("age", [-(2**63), -1, 0, 3_600_001, 2**63 - 1])
def test_age_out_of_range_is_left_to_the_engine(age: int) -> None:
    record = schemas.parse_activity(touch(age_ms=age))
    assert isinstance(record, schemas.SessionTouched)
    assert record.age_ms == age


@pytest.mark.parametrize("field", ["session", "subject", "tenant", "service", "device", "network"])
@pytest.mark.parametrize("name", ["", "x" * 257, "𝄞" * 257, 1, True, ["x"], {"x": "y"}])
def test_name_is_text_of_1_to_256_characters(field: str, name: Any) -> None:
    assert reason_of(touch(**{field: name})).startswith(f"session.touched: {field}")
    assert schemas.parse_activity(touch(**{field: "𝄞" * 256})).type == "session.touched"


def test_tenant_with_a_slash_is_refused_everywhere() -> None:
    assert "tenant" in reason_of(touch(tenant="a/b"))
    for topic, kind in KINDS:
        if "tenant" in EXAMPLES[kind]:
            assert "tenant" in reason_of(orjson.dumps({**EXAMPLES[kind], "tenant": "acme/"}), PARSERS[topic])
    ordered = {**EXAMPLES["revocation.ordered"], "revocation": {**EXAMPLES["revocation"], "tenant": "/"}}
    assert "revocation.tenant" in reason_of(orjson.dumps(ordered))


def test_unknown_fields_are_ignored() -> None:
    assert schemas.parse_activity(touch(colour="blue")) == schemas.parse_activity(touch())


def test_of_a_repeated_key_the_last_counts() -> None:
    record = schemas.parse_activity(touch()[:-1] + b',"age_ms":7,"age_ms":8}')
    assert isinstance(record, schemas.SessionTouched)
    assert record.age_ms == 8
    # Both parsers must agree on it, or a record could be judged by one type and read as another.
    assert reason_of(touch()[:-1] + b',"type":"clock.tick"}').startswith("clock.tick: ")
    assert reason_of(touch()[:-1] + b',"v":2}').startswith("v: is newer")
    assert reason_of(touch()[:-1] + b',"age_ms":"8"}').startswith("session.touched: age_ms: ")


def test_reason_never_shows_a_value_and_is_bounded() -> None:
    secret = "hunter2-" * 40
    for record in ({"session": [secret]}, {"age_ms": secret}, {"tenant": secret + "/"}, {"subject": secret * 2}):
        assert "hunter2" not in reason_of(touch(**record))
    started = {**TOUCH, "type": "session.started", "attributes": {"k" * 60_000: 1}}
    assert len(reason_of(orjson.dumps(started))) <= schemas.REASON_LENGTH_MAX


# --- packed touches ---------------------------------------------------------------------------------------------------


def packed(entries: list[Any]) -> bytes:
    return orjson.dumps({"type": "touches", "service": "web", "touches": entries})


def test_bad_entry_does_not_make_the_packed_record_bad() -> None:
    record = schemas.parse_activity(packed([["s", "u", None, 1], 5, ["s"]]))
    assert isinstance(record, schemas.PackedTouches)
    assert schemas.parse_packed_entry(record.touches[0], 0) == schemas.PackedTouch("s", "u", None, 1)
    with pytest.raises(BadRecord, match=r"touches\[1\]"):
        schemas.parse_packed_entry(record.touches[1], 1)


def test_packed_record_of_more_than_500_is_refused_whole() -> None:
    assert schemas.parse_activity(packed([["s", "u", None, 1]] * 500)).type == "touches"
    assert reason_of(packed([["s", "u", None, 1]] * 501)).startswith("touches: touches: ")


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ([1, "u", None, 0], "session"),
        (["", "u", None, 0], "session"),
        (["s", "x" * 257, None, 0], "subject"),
        (["s", None, None, 0], "subject"),
        (["s", "u", "a/b", 0], "tenant"),
        (["s", "u", "", 0], "tenant"),
        (["s", "u", None, True], "age_ms"),
        (["s", "u", None, "1"], "age_ms"),
        (["s", "u", None, 1.0], "age_ms"),
        (["s", "u", None, 2**63], "age_ms"),
        (["s", "u", None, None], "age_ms"),
        (["s", "u", None, 0, "1"], "since_ms"),
        (["s", "u", None, 0, 1, False], "pause_ms"),
    ],
)
def test_bad_entry_is_refused_naming_index_and_field(entry: list[Any], field: str) -> None:
    with pytest.raises(BadRecord, match=rf"touches\[7\]\.{field}: "):
        schemas.parse_packed_entry(entry, 7)


@pytest.mark.parametrize("entry", [None, 1, "s", {}, [], ["s", "u", None], ["s", "u", None, 1, 2, 3, 4]])
def test_entry_is_an_array_of_four_to_six(entry: Any) -> None:
    with pytest.raises(BadRecord, match=r"touches\[0\]: must be an array of 4 to 6"):
        schemas.parse_packed_entry(entry, 0)


# --- properties -------------------------------------------------------------------------------------------------------


@given(ANY_RECORD)
def test_property_what_is_written_is_read_back(which: tuple[str, dict[str, Any]]) -> None:
    topic, fields = which
    record = PARSERS[topic](orjson.dumps(fields))
    assert PARSERS[topic](schemas.encode(record)) == record


@given(ANY_RECORD, st.booleans(), st.sampled_from([None, 2]))
def test_property_model_has_the_values_that_a_plain_json_parser_reads(
    which: tuple[str, dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    topic, fields = which
    value = json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode()
    assume(len(value) <= schemas.RECORD_BYTES_MAX)
    assert contains(PARSERS[topic](value).model_dump(mode="json"), orjson.loads(value))


def contains(whole: Any, part: Any) -> bool:
    """Return whether all fields of the part have the same values in the whole, which may have defaults besides."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and contains(whole[name], value) for name, value in part.items())
    return bool(whole == part)


@given(st.sampled_from(sorted(PARSERS)), st.binary(max_size=300))
@example("activity", b"\x00")
def test_property_arbitrary_bytes_raise_nothing_but_bad_record(topic: str, value: bytes) -> None:
    with pytest.raises(BadRecord):
        PARSERS[topic](value)


@given(st.sampled_from(KINDS), json_values(), st.dictionaries(st.text(max_size=8), json_values(), max_size=5))
def test_property_arbitrary_json_raises_nothing_but_bad_record(
    which: tuple[str, str], value: Any, fields: dict[str, Any]
) -> None:
    topic, kind = which
    for document in (value, {**fields, "type": kind}, {"type": value}, {"type": kind, "v": value}):
        try:
            encoded = orjson.dumps(document)
        except (TypeError, UnicodeEncodeError):  # integers above 64 bits, lone surrogates: no JSON of orjson's
            return
        try:
            PARSERS[topic](encoded)
        except BadRecord:
            continue


@given(damaged(records_of("activity", "session.touched")), st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_property_damaged_bytes_raise_nothing_but_bad_record(fields: Any, place: int, patch: bytes) -> None:
    try:
        value = orjson.dumps(fields)
    except TypeError:
        return
    place %= len(value)
    try:
        schemas.parse_activity(value[:place] + patch + value[place + 1 :])
    except BadRecord:
        return


@given(st.lists(json_values(), max_size=7) | json_values())
def test_property_packed_entry_raises_nothing_but_bad_record(entry: Any) -> None:
    try:
        parsed = schemas.parse_packed_entry(entry, 0)
    except BadRecord:
        return
    assert list(parsed)[: len(entry)] == entry


# --- dead letters -----------------------------------------------------------------------------------------------------


def test_dead_letter_keeps_the_first_4096_bytes_and_the_size() -> None:
    value = bytes(range(256)) * 8_192
    letter = schemas.DeadLetter.of("lapse.activity", 3, 99, value, "r" * 1_000)
    assert letter.size == 2_097_152
    assert letter.value is not None
    assert base64.b64decode(letter.value) == value[:4_096]
    assert len(letter.reason) == schemas.REASON_LENGTH_MAX
    assert schemas.parse_dead_letter(schemas.encode(letter)) == letter


def test_dead_letter_of_a_null_value_has_none() -> None:
    letter = schemas.DeadLetter.of("lapse.activity", 3, 99, None, "value is null")
    assert (letter.size, letter.value, letter.entry) == (0, None, None)
    assert schemas.parse_dead_letter(schemas.encode(letter)) == letter
