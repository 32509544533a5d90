"""Goal: models refuse what has no meaning, and mean what DESIGN.md section 3 says.

Method: one test per rule, on JSON as it comes from writers.
"""

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from lapse import schemas
from lapse.schemas import BadRecord


def revocation(**fields: Any) -> schemas.Revocation:
    return schemas.parse_revocation(orjson.dumps({"type": "revocation", "id": "r-1", **fields}))


def policy(**fields: Any) -> schemas.Policy:
    return schemas.parse_policy(orjson.dumps({"type": "policy", "name": "p", **fields}))


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({"session": "s", "subject": "u", "tenant": "t"}, "session"),
        ({"session": "s", "tenant": "t"}, "session"),
        ({"session": "s"}, "session"),
        ({"subject": "u", "tenant": "t"}, "subject"),
        ({"subject": "u"}, "subject"),
        ({"tenant": "t"}, "tenant"),
        ({"tenant": "t", "everyone": False}, "tenant"),
        ({"everyone": True}, "everyone"),
        ({"everyone": True, "session": None, "subject": None, "tenant": None}, "everyone"),
    ],
)
def test_narrowest_field_is_the_target(fields: dict[str, Any], target: str) -> None:
    assert revocation(**fields).target == target


@pytest.mark.parametrize("other", [{"session": "s"}, {"subject": "u"}, {"tenant": "t"}])
def test_everyone_with_another_target_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(BadRecord, match="everyone excludes"):
        revocation(everyone=True, **other)
    with pytest.raises(ValidationError):
        schemas.Revocation(id="r", everyone=True, **other)


@pytest.mark.parametrize("fields", [{}, {"everyone": False}, {"session": None, "subject": None, "tenant": None}])
def test_revocation_without_target_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRecord, match="needs a target"):
        revocation(**fields)


@pytest.mark.parametrize("everyone", [1, "true", None, "yes"])
def test_everyone_is_a_boolean(everyone: Any) -> None:
    with pytest.raises(BadRecord, match="everyone"):
        revocation(everyone=everyone)


def test_revocation_needs_an_id() -> None:
    with pytest.raises(BadRecord, match="revocation: id: Field required"):
        schemas.parse_revocation(b'{"type":"revocation","subject":"u"}')


def test_revocation_needs_no_reason_to_count() -> None:
    assert revocation(subject="u").reason is None


def test_policy_has_the_built_in_limits_where_it_says_nothing() -> None:
    absent = policy()
    assert (absent.idle_ms, absent.absolute_ms, absent.hold_max_ms) == (1_800_000, 28_800_000, 3_600_000)
    assert (absent.warn_before_ms, absent.token_life_ms, absent.match) == (None, None, None)
    assert schemas.DEFAULT_POLICY.name == "default"
    assert absent.idle_ms == schemas.DEFAULT_POLICY.idle_ms


@pytest.mark.parametrize("limit", ["idle_ms", "absolute_ms", "warn_before_ms", "hold_max_ms", "token_life_ms"])
def test_limit_is_positive_or_null(limit: str) -> None:
    assert getattr(policy(**{limit: None}), limit) is None
    assert getattr(policy(**{limit: 1}), limit) == 1
    assert getattr(policy(**{limit: schemas.DURATION_MAX_MS}), limit) == schemas.DURATION_MAX_MS
    for wrong in (0, -1, schemas.DURATION_MAX_MS + 1, "900000", 1.5, True):
        with pytest.raises(BadRecord, match=limit):
            policy(**{limit: wrong})


@pytest.mark.parametrize("name", ["", "x" * 257, None, 1])
def test_policy_name_is_1_to_256_characters(name: Any) -> None:
    with pytest.raises(BadRecord, match="name"):
        policy(name=name)


def test_match_by_name_only_is_null_or_empty() -> None:
    matches: list[dict[str, Any]] = [{}, {"attributes": {}}, {"tenant": None}, {"colour": ["blue"]}]
    for match in matches:
        parsed = policy(match=match).match
        assert parsed is not None
        assert parsed.is_empty
    asked = policy(match={"tenant": ["acme"], "attributes": {"role": ["admin", "root"]}}).match
    assert asked == schemas.PolicyMatch(tenant=("acme",), attributes={"role": ("admin", "root")})
    assert not asked.is_empty


@pytest.mark.parametrize(
    "match", [{"tenant": "acme"}, {"tenant": [1]}, {"service": [""]}, {"attributes": {"role": "admin"}}, [], "acme"]
)
def test_match_of_wrong_form_is_refused(match: Any) -> None:
    with pytest.raises(BadRecord, match=r"policy: match"):
        policy(match=match)


@pytest.mark.parametrize("attributes", [{"role": 1}, {"role": None}, {"": "x"}, {"role": ["x"]}, [], None])
def test_attributes_are_text_by_text(attributes: Any) -> None:
    started = {"type": "session.started", "session": "s", "subject": "u", "service": "w", "age_ms": 0}
    with pytest.raises(BadRecord, match="attributes"):
        schemas.parse_activity(orjson.dumps({**started, "attributes": attributes}))


def test_models_are_immutable() -> None:
    mark = schemas.Watermark(as_of=1)
    with pytest.raises(ValidationError):
        mark.as_of = 2  # type: ignore[misc]  # what the test is about


def test_models_are_strict_in_python_too() -> None:
    with pytest.raises(ValidationError):
        schemas.Watermark(as_of=True)
    with pytest.raises(ValidationError):
        schemas.Watermark(as_of="1")  # type: ignore[arg-type]  # what the test is about


def test_cause_is_read_by_its_word() -> None:
    assert [cause.value for cause in schemas.Cause] == ["idle", "absolute", "revoked", "closed", "displaced"]
    expiring = {"type": "session.expiring", "session": "s", "subject": "u", "cause": "idle", "due_at": 1, "in_ms": 0}
    assert schemas.parse_warning(orjson.dumps(expiring)).cause is schemas.Cause.IDLE
    with pytest.raises(BadRecord, match="cause"):
        schemas.parse_warning(orjson.dumps({**expiring, "cause": "IDLE"}))


@pytest.mark.parametrize("forwarded", [[3, 99, None, 5], [3, 99, 7, 5]])
def test_forwarded_says_where_the_record_was(forwarded: list[Any]) -> None:
    value = {
        "type": "session.closed",
        "session": "s",
        "subject": "u",
        "service": "w",
        "age_ms": 0,
        "forwarded": forwarded,
    }
    record = schemas.parse_activity(orjson.dumps(value))
    assert isinstance(record, schemas.SessionClosed)
    assert record.forwarded == tuple(forwarded)
    for wrong in ([3, 99, 5], [3, 99, None, 5, 6], [3, "99", None, 5], [-1, 99, None, 5], "3"):
        with pytest.raises(BadRecord, match="forwarded"):
            schemas.parse_activity(orjson.dumps({**value, "forwarded": wrong}))
