"""An ending that is made of a decision, without validation, is the one that validation makes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lapse.pipeline.engine.endings import Decided, Endings, make_ending
from lapse.pipeline.engine.policies import Limits
from lapse.schemas import Cause, Evidence, SessionEnded, encode, ending_id, parse_expiry

_name = st.text(min_size=1, max_size=30)
_instant = st.integers(-(2**60), 2**60)
_limit = st.none() | st.integers(1, 2**50)
_fields = st.fixed_dictionaries(
    {
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
).map(lambda fields: fields | {"id": ending_id(fields["session"])})


def _decided(fields: dict[str, Any]) -> Decided:
    limits = Limits(
        policy=fields["policy"],
        version=fields["policy_version"],
        idle_ms=fields["idle_ms"],
        absolute_ms=fields["absolute_ms"],
        warn_before_ms=None,
        hold_max_ms=None,
        token_life_ms=1,
    )
    return Decided(limits=limits, **{name: fields[name] for name in Decided._fields if name != "limits"})


@given(_fields)
def test_equals_what_validation_makes(fields: dict[str, Any]) -> None:
    decided = _decided(fields)
    made, validated = make_ending(decided), SessionEnded(**fields)
    assert made == validated
    assert made.model_fields_set == validated.model_fields_set
    assert (repr(made), hash(made)) == (repr(validated), hash(validated))
    assert made.model_dump(mode="json") == validated.model_dump(mode="json")
    assert encode(made) == encode(validated)
    assert parse_expiry(encode(made)) == validated
    assert made.model_copy(update={"held": True}) == validated.model_copy(update={"held": True})


@given(st.lists(_fields, max_size=4))
def test_endings_are_a_sequence_of_models(several: list[dict[str, Any]]) -> None:
    models = [SessionEnded(**fields) for fields in several]
    endings = Endings()
    endings.extend(map(_decided, several[:1]))
    for fields in several[1:]:
        endings.append(_decided(fields))
    again = Endings()
    again.extend(endings)
    assert again == endings == models
    assert list(endings) == models
    assert endings[1:] == models[1:]
    assert [endings[index] for index in range(len(endings))] == models
    assert bool(endings) == bool(models)
    assert (endings == [*models, None]) is False
    assert endings != object()
