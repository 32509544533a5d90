"""An ending that is made without validation is the one that validation makes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lapse.pipeline.engine.endings import make_ending
from lapse.schemas import Cause, Evidence, SessionEnded, encode, ending_id, parse_expiry

_name = st.text(min_size=1, max_size=30)
_instant = st.integers(-(2**60), 2**60)
_limit = st.none() | st.integers(1, 2**50)
_fields = st.fixed_dictionaries(
    {
        "id": _name.map(ending_id),
        "session": _name,
        "subject": _name,
        "tenant": st.none() | _name.filter(lambda name: "/" not in name),
        "cause": st.sampled_from(Cause),
        "started_at": _instant,
        "last_seen_at": _instant,
        "due_at": _instant,
        "decided_at": _instant,
        "idle_ms": _limit,
        "absolute_ms": _limit,
        "policy": _name,
        "policy_version": st.none() | st.integers(0, 2**60),
        "revocation": st.none() | _name,
        "held": st.booleans(),
        "evidence": st.builds(Evidence, partition=st.integers(0, 1023), offset=st.integers(0, 2**60)),
        "deny_until": _instant,
    }
)


@given(_fields)
def test_equals_what_validation_makes(fields: dict[str, Any]) -> None:
    made, validated = make_ending(**fields), SessionEnded(**fields)
    assert made == validated
    assert made.model_fields_set == validated.model_fields_set
    assert (repr(made), hash(made)) == (repr(validated), hash(validated))
    assert made.model_dump(mode="json") == validated.model_dump(mode="json")
    assert encode(made) == encode(validated)
    assert parse_expiry(encode(made)) == validated
    assert made.model_copy(update={"held": True}) == validated.model_copy(update={"held": True})
