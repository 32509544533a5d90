"""Is what is measured what happened? Endings and accounts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lapse.pipeline.demo.account import Account, AccountReader, Entry
from lapse.pipeline.demo.measure import AFTER_END_MS, Measures, Percentiles, percentiles
from lapse.pipeline.demo.recompute import Published
from lapse.schemas import Cause, Evidence, SessionEnded, ending_id

T0 = 1_700_000_000_000


def _ending(session: str, cause: Cause, due_ms: int, appended_ms: int, revocation: str | None = None) -> Published:
    ended = SessionEnded(
        id=ending_id(session),
        session=session,
        subject="u-1",
        tenant=None,
        cause=cause,
        started_at=T0,
        last_seen_at=T0,
        due_at=T0 + due_ms,
        decided_at=T0 + appended_ms,
        idle_ms=4_000,
        absolute_ms=20_000,
        policy="default",
        policy_version=0,
        revocation=revocation,
        held=False,
        evidence=Evidence(partition=0, offset=1),
        deny_until=T0 + 3_620_000,
    )
    return Published(ended, T0 + appended_ms)


def _measures(*endings: Published) -> Measures:
    return Measures(endings={ending.ended.session: ending for ending in endings})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None)),
        ([7], (7, 7)),
        (range(1, 101), (50, 99)),
        (range(1, 201), (100, 198)),
        ([3, 1, 2], (2, 3)),
    ],
)
def test_percentiles_are_values_that_were_measured(
    values: list[float], expected: tuple[float | None, float | None]
) -> None:
    assert percentiles(values) == Percentiles(*expected)


def test_lateness_is_of_endings_by_time_alone() -> None:
    measures = _measures(
        _ending("a", Cause.IDLE, 4_000, 4_260),
        _ending("b", Cause.ABSOLUTE, 20_000, 20_010),
        _ending("c", Cause.CLOSED, 1_000, 9_000),
        _ending("d", Cause.REVOKED, 1_000, 9_000),
    )
    assert measures.lateness() == Percentiles(10, 260)


def test_propagation_is_from_the_append_to_the_refusal_in_each_service() -> None:
    measures = _measures(_ending("a", Cause.IDLE, 4_000, 4_260))
    measures.account("shop", [Entry(T0 + 4_263.5, "refuses", "a"), Entry(T0 + 9_000.0, "refuses", "a")])
    measures.account("billing", [Entry(T0 + 4_270.0, "refuses", "a")])
    measures.applied_ms.append(2.0)
    assert measures.propagation(T0 + 10_000) == Percentiles(3.5, 10)


def test_an_ending_that_a_service_never_refused_counts_with_the_time_it_has_been_there() -> None:
    measures = _measures(_ending("a", Cause.IDLE, 4_000, 4_260))
    measures.account("shop", [Entry(T0 + 4_261.0, "refuses", "a")])
    assert measures.propagation(T0 + 4_260 + AFTER_END_MS).p99 == 1
    assert measures.propagation(T0 + 9_260).p99 == 5_000


def test_a_revoked_session_that_was_refused_before_its_ending_is_measured_by_the_revocation() -> None:
    measures = _measures(_ending("a", Cause.REVOKED, 1_000, 1_020, revocation="r-1"))
    for service in ("shop", "billing"):
        measures.account(service, [Entry(T0 + 1_003.0, "refuses", "a")])
    assert measures.propagation(T0 + 9_000) == Percentiles(None, None)


def test_what_was_let_pass_more_than_a_second_after_the_append_is_counted() -> None:
    measures = _measures(_ending("a", Cause.IDLE, 4_000, 4_260))
    measures.account("shop", [Entry(T0 + at, "passed", "a") for at in (100, 4_259, 4_260 + AFTER_END_MS)])
    assert measures.accepted_after_end() == 0
    measures.account("billing", [Entry(T0 + 4_260.5 + AFTER_END_MS, "passed", "a"), Entry(T0 + 99_999, "passed", "b")])
    assert measures.accepted_after_end() == 1


def test_an_account_is_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "shop.jsonl"
    reader = AccountReader(path)
    assert reader.read() == []
    with Account(path) as account:
        account.passed("a")
        account.refuses("a")
        first = reader.read()
        assert [(entry.what, entry.session) for entry in first] == [("passed", "a"), ("refuses", "a")]
        assert first[0].at <= first[1].at
        account.passed("b")
    with path.open("ab") as torn:
        torn.write(b'{"at": 1.0, "wh')
    assert [entry.session for entry in reader.read()] == ["b"]
    with path.open("ab") as whole:
        whole.write(b'at": "passed", "session": "c"}\n')
    assert reader.read() == [Entry(1.0, "passed", "c")]
