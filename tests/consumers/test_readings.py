"""Does the fast reading of endings say what the model says?

Property: whatever bytes it takes, the model takes, and reads the same; and it takes what the processor writes. The
bytes are endings of any fields, written by the codec, and damaged in ways that are near to what is right.
"""

import random
import re

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.consumers.guard.readings import CAUSES, match_ending
from lapse.schemas import BadRecord, Cause, Evidence, SessionEnded, encode, ending_id, parse_expiry, session_reference

_names = st.one_of(st.text(min_size=1, max_size=256), st.from_regex(r"[ -~]{1,256}", fullmatch=True))
_tenants = st.one_of(st.none(), _names.filter(lambda name: "/" not in name))
_instants = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**42), st.sampled_from([0, 10**15 - 1, 10**15]))
_limits = st.one_of(st.none(), st.integers(1, 2**53 - 1), st.just(1))
_offsets = st.integers(0, 2**63 - 1)

_endings = st.builds(
    SessionEnded,
    id=_names,
    session=st.one_of(_names, st.just(session_reference("s"))),
    subject=_names,
    tenant=_tenants,
    cause=st.sampled_from(list(Cause)),
    started_at=_instants,
    last_seen_at=_instants,
    due_at=_instants,
    decided_at=_instants,
    idle_ms=_limits,
    absolute_ms=_limits,
    policy=_names,
    policy_version=st.one_of(st.none(), _offsets),
    revocation=st.one_of(st.none(), _names),
    held=st.booleans(),
    evidence=st.builds(Evidence, partition=st.integers(0, 2**31 - 1), offset=_offsets),
    deny_until=_instants,
)

_SPOILT = (
    b'"', b"\\", b"/", b"\x00", b"\x1f", b"\x7f", b"\xc3\xa4", b"\xff", b"\xed\xa0\x80", b"0", b"-", b"00", b"1e3",
    b".5", b"null", b"true", b"{}", b"[]", b" ", b"\n", b",", b":", b"", b"9" * 16, b"a" * 257, b'","', b'":"',
)  # fmt: skip


def _usual(**fields: object) -> SessionEnded:
    session = session_reference("s")
    values = {
        "id": ending_id(session), "session": session, "subject": "u-1", "tenant": None, "cause": Cause.IDLE,
        "started_at": 1_800_000_000_000, "last_seen_at": 1_800_000_000_001, "due_at": 1_800_000_900_000,
        "decided_at": 1_800_000_900_250, "idle_ms": 900_000, "absolute_ms": None, "policy": "default",
        "policy_version": None, "revocation": None, "held": False,
        "evidence": Evidence(partition=3, offset=12), "deny_until": 1_800_032_400_000,
    }  # fmt: skip
    return SessionEnded.model_validate(values | fields)


def _agrees(value: bytes) -> None:
    """Assert that the fast reading passes the value on, or reads it as the model does."""
    found = match_ending(value)
    if found is None:
        return
    model = parse_expiry(value)  # raises where the model refuses what was taken
    assert isinstance(model, SessionEnded)
    session, cause, due_at, revocation, deny_until = found.groups()
    assert (session.decode(), CAUSES[cause], int(due_at), int(deny_until)) == (
        model.session,
        model.cause,
        model.due_at,
        model.deny_until,
    )
    assert (None if revocation is None else revocation.decode()) == model.revocation


@settings(deadline=None)
@given(_endings)
def test_an_ending_of_any_fields_is_read_as_the_model_reads_it(ended: SessionEnded) -> None:
    _agrees(encode(ended))


@settings(deadline=None, max_examples=300)
@given(_endings, st.randoms(use_true_random=False), st.sampled_from(_SPOILT))
def test_so_is_one_that_is_damaged_somewhere(ended: SessionEnded, chance: random.Random, spoilt: bytes) -> None:
    value = encode(ended)
    begin = chance.randrange(len(value) + 1)
    end = min(len(value), begin + chance.choice([0, 0, 1, 4]))
    _agrees(value[:begin] + spoilt + value[end:])


@settings(deadline=None, max_examples=300)
@given(st.randoms(use_true_random=False), st.sampled_from(_SPOILT))
def test_so_is_one_with_another_value_somewhere(chance: random.Random, spoilt: bytes) -> None:
    value = encode(_usual(tenant="acme", revocation="r-1", policy_version=7))
    values = list(re.finditer(rb'(?<=":)(?:"[^"]*"|[^,{}]+)', value))
    hit = chance.choice(values)
    inside = spoilt if chance.random() < 0.5 else b'"' + spoilt + b'"'
    _agrees(value[: hit.start()] + inside + value[hit.end() :])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tenant": "acme"},
        {"cause": Cause.REVOKED, "revocation": "01J9Z0"},
        {"cause": Cause.DISPLACED, "held": True, "policy_version": 12, "absolute_ms": 28_800_000, "idle_ms": None},
        {"session": "any other name", "subject": "with spaces / and more"},
    ],
)
def test_it_takes_what_the_processor_writes(fields: dict[str, object]) -> None:
    assert match_ending(encode(_usual(**fields))) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2}, {"type": "session.ended.again"}, {"cause": "bored"}, {"tenant": "a/b"}, {"held": None},
        {"due_at": 1.5}, {"idle_ms": 0}, {"evidence": {"partition": -1, "offset": 0}}, {"session": ""},
        {"subject": "u" * 257},
    ],
)  # fmt: skip
def test_what_the_model_refuses_it_leaves_to_the_model(change: dict[str, object]) -> None:
    value = orjson.dumps(orjson.loads(encode(_usual())) | change)
    assert match_ending(value) is None
    with pytest.raises(BadRecord):
        parse_expiry(value)
