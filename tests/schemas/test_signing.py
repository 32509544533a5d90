"""Goal: only a holder of the workers' key can write a record that decides about others, and only into that partition.

Method: a fixed vector whose JSON is written out by hand, and one change at a time to what was signed.
"""

import base64
import hashlib
import hmac
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse import schemas
from lapse.schemas import encode_signed, sign, verify

from tests.schemas.strategies import json_values

KEY = bytes(range(32))
RECORD = {"type": "clock.tick", "epoch": 7, "owner": "wörker", "nested": {"b": [1, None], "a": True}, "mac": "ignored"}
# Keys sorted at both levels, no spaces, UTF-8 as it is, without `mac`.
JSON = '{"epoch":7,"nested":{"a":true,"b":[1,null]},"owner":"wörker","type":"clock.tick"}'.encode()


def signed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**record, "mac": sign(record, **{"topic": "lapse.activity", "partition": 3, "key": KEY, **changes})}


def is_valid(record: dict[str, Any], **changes: Any) -> bool:
    return verify(record, **{"topic": "lapse.activity", "partition": 3, "key": KEY, **changes})


def test_mac_is_hmac_over_topic_partition_and_sorted_json() -> None:
    digest = hmac.new(KEY, b"lapse.activity\x003\x00" + JSON, hashlib.sha256).digest()
    mac = sign(RECORD, topic="lapse.activity", partition=3, key=KEY)
    assert mac == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    # Pinned, for workers of two versions run side by side during an upgrade.
    assert mac == "c-Y3hd7HxfwFGcrNNkTnGk_L6K32bsDO6iQpnbcrwl0"


def test_valid_mac_is_accepted_whatever_the_order_of_keys() -> None:
    record = signed(RECORD)
    assert is_valid(record)
    assert is_valid(dict(reversed(record.items())))
    assert is_valid(orjson.loads(orjson.dumps(record)))


@pytest.mark.parametrize(
    "changes", [{"topic": "other.activity"}, {"partition": 4}, {"partition": 33}, {"key": b"x" * 32}, {"key": b""}]
)
def test_mac_of_another_log_or_key_is_refused(changes: dict[str, Any]) -> None:
    assert not is_valid(signed(RECORD), **changes)
    assert not is_valid(signed(RECORD, **changes))


@pytest.mark.parametrize(
    "change", [{"epoch": 8}, {"epoch": "7"}, {"epoch": 7.5}, {"added": None}, {"nested": {"a": True, "b": [1]}}]
)
def test_changed_record_is_refused(change: dict[str, Any]) -> None:
    assert not is_valid({**signed(RECORD), **change})


def test_topic_and_partition_cannot_run_into_each_other() -> None:
    assert sign({}, topic="a1", partition=2, key=KEY) != sign({}, topic="a", partition=12, key=KEY)


@pytest.mark.parametrize("mac", [None, 1, True, "", "x", "é" * 43, ["x"], {}, "=" * 44])
def test_what_is_no_mac_is_refused(mac: Any) -> None:
    assert not is_valid({**RECORD, "mac": mac})
    assert not is_valid({name: value for name, value in RECORD.items() if name != "mac"})


def test_padded_mac_is_refused() -> None:
    record = signed(RECORD)
    assert not is_valid({**record, "mac": record["mac"] + "="})


@given(st.dictionaries(st.text(max_size=5), json_values(), max_size=4), st.text(max_size=50))
def test_property_verify_never_raises_and_takes_what_was_signed(fields: dict[str, Any], mac: str) -> None:
    try:
        record = orjson.loads(orjson.dumps(fields))
    except TypeError:  # integers above 64 bits, lone surrogates: no JSON of orjson's
        return
    assert not is_valid({**record, "mac": mac})
    assert is_valid(orjson.loads(orjson.dumps(signed(record))))


def test_encode_signed_is_read_and_verified_by_the_other_side() -> None:
    policy = schemas.Policy(name="workforce", match=schemas.PolicyMatch(tenant=("acme",)))
    for model in (
        schemas.ClockTick(epoch=1, owner="w", mono_ms=2, wall_at=3, up_ms=4),
        schemas.RevocationOrdered(at=5, revocation=schemas.Revocation(id="r", everyone=True)),
        schemas.PolicyAdopted(version=6, policy=policy),
        schemas.SessionTouched(session="s", subject="u", service="w", age_ms=1, forwarded=(3, 99, None, 5)),
    ):
        value = encode_signed(model, topic="lapse.activity", partition=3, key=KEY)
        assert is_valid(orjson.loads(value))
        assert schemas.parse_activity(value).model_copy(update={"mac": None}) == model


def test_encode_signed_refuses_what_no_reader_takes() -> None:
    room = 65_536 - len(schemas.encode(schemas.Revocation(id="r", everyone=True, note="")))
    nearly = schemas.Revocation(id="r", everyone=True, note="x" * room)
    assert len(schemas.encode(nearly)) == 65_536
    with pytest.raises(schemas.BadRecord, match="with its mac"):
        encode_signed(nearly, topic="lapse.activity", partition=3, key=KEY)
