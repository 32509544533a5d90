"""Goal: the verifier of the fault scenarios finds what is wrong, whatever it is; else their passing would show nothing.

Method: topics, a saved state and a truth of a few records, right at first; then one thing in them is made wrong. No
broker: what the verifier reads from one is given here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from lapse.pipeline.engine import PartitionEngine
from lapse.pipeline.processor.checkpoints import EPOCH_KEY
from lapse.pipeline.processor.restore import engine_settings
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    Cause,
    Policy,
    PolicyAdopted,
    Revocation,
    RevocationOrdered,
    SessionEnded,
    encode,
    encode_signed,
)

from tests.consumers.support import ended
from tests.faults.life import KNOWN_WITHIN_MS, TOLERANCE_MS, held_against_life
from tests.faults.load import SHORT, STEADY
from tests.faults.states import State, differences
from tests.faults.verifier import LATE_MAX_MS, late, latest_ms, repeated

T0 = 1_700_000_000_000
GRACE_MS = 250
SESSION = "s" * 22
SETTINGS = Settings(partitions=1, worker_key="k" * 32)


@dataclass(frozen=True)
class Record:
    """What is read of a ConsumerRecord."""

    offset: int
    timestamp: int
    value: bytes
    partition: int = 0


def ending(cause: Cause, due_ms: int, *, seen_ms: int = 0, **changes: Any) -> SessionEnded:
    """Return the ending of a session that began at T0; times are ms after that."""
    at = {"started_at": T0, "last_seen_at": T0 + seen_ms, "decided_at": T0 + due_ms + GRACE_MS}
    return ended(SESSION, cause=cause, due_at=T0 + due_ms).model_copy(update=at | changes)


# Lateness


def told(ended: SessionEnded, *appended_ms: int) -> list[Any]:
    return [Record(number, T0 + ms, encode(ended)) for number, ms in enumerate(appended_ms)]


@pytest.mark.parametrize(("cause", "over_ms"), [(Cause.IDLE, 9_000 + GRACE_MS), (Cause.ABSOLUTE, 9_000)])
def test_an_ending_later_than_a_healing_may_take_is_reported(cause: Cause, over_ms: int) -> None:
    one = ending(cause, 9_000)
    in_time, too_late = over_ms + LATE_MAX_MS, over_ms + LATE_MAX_MS + 1
    assert late(told(one, in_time), GRACE_MS, 0) == []
    assert len(late(told(one, too_late), GRACE_MS, 0)) == 1
    assert late(told(one, too_late), GRACE_MS, 1) == []
    assert len(late(told(one, too_late + 30_000), GRACE_MS, 30_000)) == 1


def test_what_counts_is_when_an_ending_was_told_first() -> None:
    assert latest_ms(told(ending(Cause.ABSOLUTE, 9_000), 9_100, 99_000), GRACE_MS) == {SESSION: 100}


def test_who_was_revoked_before_the_login_is_over_with_it() -> None:
    assert latest_ms(told(ending(Cause.REVOKED, -70_000), 20), GRACE_MS) == {SESSION: 20}


def test_an_ending_that_came_out_again_with_other_fields_is_reported() -> None:
    one = ending(Cause.IDLE, 9_000)
    other = Record(1, T0 + 9_400, encode(one.model_copy(update={"held": True})))
    assert list(repeated(told(one, 9_300, 9_400))) == []
    assert list(repeated([*told(one, 9_300), other]))


# Life


def life(tmp_path: Path, one: SessionEnded | None, policy: str = SHORT.name, **lived: Any) -> list[str]:
    """Return what is wrong with an ending by what one person did, ms after T0."""
    person = {"session": SESSION, "subject": "u-1", "policy": policy, "started_at": T0}
    person |= {"touched_at": [T0 + ms for ms in lived.get("touched_ms", ())]}
    person |= {f"{what}_at": T0 + lived[what] if what in lived else None for what in ("closed", "revoked")}
    acknowledged = [SESSION] if lived.get("acknowledged") else []
    summary = {"stopped_at": T0 + 60_000, "flushed": True, "dropped": 0, "touches": 9, "revoked": acknowledged}
    truth = tmp_path / "truth.jsonl"
    truth.write_text(f"{json.dumps(summary)}\n{json.dumps(person)}\n")
    return held_against_life(truth, {} if one is None else {SESSION: one})[1]


def idle_of(policy: Policy, seen_ms: int) -> SessionEnded:
    assert policy.idle_ms is not None
    return ending(Cause.IDLE, seen_ms + policy.idle_ms, seen_ms=seen_ms)


@pytest.mark.parametrize("pause_ms", [200, 1_200])
@pytest.mark.parametrize("policy", [SHORT, STEADY], ids=lambda policy: policy.name)
def test_somebody_who_clicked_all_the_while_did_not_end_as_idle(tmp_path: Path, policy: Policy, pause_ms: int) -> None:
    """Nor did a short one, with clicks as far apart as the load has them."""
    touched = list(range(0, 50_000, pause_ms))
    one = idle_of(policy, 0)
    assert any("was used at" in what for what in life(tmp_path, one, policy.name, touched_ms=touched))


def test_a_use_that_an_ending_had_to_know_of_is_missed_from_the_first_ms_on(tmp_path: Path) -> None:
    one = idle_of(SHORT, 0)
    assert life(tmp_path, one, touched_ms=[TOLERANCE_MS]) == []
    assert life(tmp_path, one, touched_ms=[TOLERANCE_MS + 1]) != []
    known_before = one.due_at - T0 - KNOWN_WITHIN_MS
    assert life(tmp_path, one, touched_ms=[known_before - 1]) != []
    assert life(tmp_path, one, touched_ms=[known_before]) == []  # it may have been on its way


def test_somebody_steady_did_not_end_before_everybody_left(tmp_path: Path) -> None:
    assert life(tmp_path, idle_of(STEADY, 40_000), STEADY.name, touched_ms=[40_000]) != []
    assert life(tmp_path, idle_of(STEADY, 59_500), STEADY.name, touched_ms=[59_500]) == []


def test_nobody_reached_an_absolute_limit_before_it(tmp_path: Path) -> None:
    assert SHORT.absolute_ms is not None
    assert life(tmp_path, ending(Cause.ABSOLUTE, SHORT.absolute_ms)) == []
    assert life(tmp_path, ending(Cause.ABSOLUTE, SHORT.absolute_ms - TOLERANCE_MS - 1)) != []
    assert life(tmp_path, ending(Cause.ABSOLUTE, 70_000), STEADY.name) != [], "the steady have no limit"


def test_nobody_logged_out_before_they_did_and_whoever_did_has_ended(tmp_path: Path) -> None:
    assert life(tmp_path, ending(Cause.CLOSED, 4_000), closed=4_000) == []
    assert life(tmp_path, ending(Cause.CLOSED, 4_000), closed=4_000 + TOLERANCE_MS + 1) != []
    assert life(tmp_path, ending(Cause.CLOSED, 4_000)) != []
    assert life(tmp_path, None, closed=4_000) != []
    assert life(tmp_path, None) == []


def test_nobody_was_revoked_without_an_order_and_whoever_was_has_ended(tmp_path: Path) -> None:
    assert life(tmp_path, ending(Cause.REVOKED, 4_000), revoked=4_000) == []
    assert life(tmp_path, ending(Cause.REVOKED, 4_000), revoked=4_000 + TOLERANCE_MS + 1) != []
    assert life(tmp_path, ending(Cause.REVOKED, 4_000)) != []
    assert life(tmp_path, None, revoked=4_000, acknowledged=True) != []


# State


def log() -> list[Any]:
    """Two sessions, one of which has ended, a policy and a cutoff."""
    rules = engine_settings(SETTINGS, SETTINGS.worker_key, 0)

    def signed(order: PolicyAdopted | RevocationOrdered) -> bytes:
        return encode_signed(order, topic=rules.topic, partition=0, key=rules.worker_key)

    def activity(what: str, session: str) -> bytes:
        record = {"type": f"session.{what}", "session": session * 22, "subject": session, "service": "w", "age_ms": 0}
        return orjson.dumps(record)

    revocation = Revocation(id="r1", subject="q", reason="admin", by="x")
    values = [
        signed(PolicyAdopted(version=0, policy=Policy(name="default", idle_ms=9_000, absolute_ms=None))),
        activity("started", "a"),
        activity("started", "b"),
        activity("closed", "b"),
        signed(RevocationOrdered(at=T0 + 5, revocation=revocation)),
        activity("touched", "a"),
    ]
    return [Record(offset, T0 + offset, value) for offset, value in enumerate(values)]


def saved(records: list[Any]) -> State:
    engine = PartitionEngine(engine_settings(SETTINGS, SETTINGS.worker_key, 0))
    engine.apply(records)
    return {key: value for key, value in engine.cut().records if value is not None}


@pytest.mark.parametrize("upto", range(1, 7))
def test_a_state_of_any_offset_is_what_the_log_makes(upto: int) -> None:
    state = saved(log()[:upto]) | {EPOCH_KEY: b"7"}
    assert differences(SETTINGS, {0: state}, log()) == []


def marker(state: State, **changes: Any) -> State:
    return state | {b"m": orjson.dumps(orjson.loads(state[b"m"]) | changes)}


def without_cutoff(state: State) -> State:
    return marker({key: value for key, value in state.items() if not key.startswith(b"r")}, cutoffs=0)


WRONG: dict[str, Callable[[State], State]] = {
    "policies lost": lambda state: marker(state, policies=[]),
    "cutoff lost": without_cutoff,
    "stamp wrong": lambda state: marker(state, stamp=T0 + 10**9),
    "an ended session forgotten": lambda _: marker(saved([*log()[:2], *log()[4:]]), offset=6),
    "a touch lost": lambda _: marker(saved(log()[:5]), offset=6, append=T0 + 5, stamp=T0 + 5),
    "a chunk lost": lambda state: {key: value for key, value in state.items() if not key.startswith(b"c")},
    "no marker": lambda state: {key: value for key, value in state.items() if key != b"m"},
    "nothing": lambda _: {},
    "an orphan": lambda state: state | {b"rx": b"{}"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_that_the_log_does_not_make_is_reported(wrong: str) -> None:
    state = WRONG[wrong](saved(log()))
    assert len(differences(SETTINGS, {0: state}, log())) == 1


def test_a_partition_that_was_not_read_is_reported() -> None:
    assert len(differences(SETTINGS, {}, log())) == 1
