"""Bounds (docs/adr/0008-bounds.md): a flood of sessions is refused and counted; it costs no session and no order."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from lapse.pipeline.engine.subject_index import SubjectIndex
from lapse.schemas import Cause

from tests.engine.records import (
    Partition,
    at,
    closed,
    default_policy,
    entry,
    everyone_revoked,
    packed,
    ref,
    revocation_ordered,
    started,
    touched,
)

FULL, SUBJECT, CLASS = "sessions_refused_full", "sessions_refused_subject", "sessions_refused_class"
Writer = Callable[..., dict[str, Any]]


def bounded(sessions_max: int = 3, **changes: Any) -> Partition:
    """Return a partition that takes in so many sessions."""
    return Partition(default_policy(10_000, 60_000), sessions_max=sessions_max, **changes)


def names(partition: Partition) -> set[str]:
    """Return whose sessions the partition has ended."""
    return {ending.session for ending in partition.endings}


@pytest.mark.parametrize("write", [started, touched])
def test_beyond_the_bound_no_session_is_taken_in_and_those_that_are_live_go_on(write: Writer) -> None:
    p = bounded()
    for number in range(3):
        p.add(0, started(f"kept-{number}", subject=f"u-{number}"))
    for number in range(50):
        p.add(1000, write(f"flood-{number}", subject=f"f-{number}"))
    assert (p.engine.live_sessions, p.engine.counters[FULL]) == (3, 50)
    p.add(5000, touched("kept-0", subject="u-0"))
    assert p.last_seen("kept-0") == 5000
    p.tick_until(20_000)
    assert names(p) == {ref("kept-0"), ref("kept-1"), ref("kept-2")}


def test_a_packed_flood_is_refused_entry_by_entry() -> None:
    p = bounded()
    p.add(0, packed(*(entry(f"flood-{number}", subject=f"f-{number}") for number in range(10))))
    assert (p.engine.live_sessions, p.engine.counters[FULL]) == (3, 7)


def test_there_is_room_again_when_sessions_have_ended_and_are_forgotten() -> None:
    p = bounded(1, ended_memory_ms=20_000)
    p.add(0, started("first"))
    p.tick_until(11_000)
    p.add(11_000, started("second"))
    assert p.engine.counters[FULL] == 1, "one that ended is remembered, and that is the bound of the remembered"
    p.tick_until(31_000)
    p.add(31_000, started("second"))
    assert p.is_live("second")


def test_a_flood_of_closes_is_not_remembered_beyond_the_bound() -> None:
    p = bounded()
    for number in range(50):
        p.add(0, closed(f"flood-{number}"))
    assert len(p.engine.sessions.table.slot_of) == 3
    assert p.engine.counters[FULL] == 47


def test_a_subject_has_at_most_so_many_sessions_and_others_do_not_notice() -> None:
    p = bounded(1_000, sessions_per_subject_max=2)
    for number in range(10):
        p.add(0, started(f"flood-{number}", subject="greedy"))
    p.add(0, started("other", subject="modest"))
    p.add(0, started("namesake", subject="greedy", tenant="acme"))
    assert p.engine.counters[SUBJECT] == 8
    assert p.is_live("other"), "the bound is the subject's"
    assert p.is_live("namesake"), "a subject is a name in a tenant"


def test_beyond_the_bound_of_classes_only_known_classes_come() -> None:
    p = bounded(1_000, classes_max=2)
    p.add(0, started("first", attributes={"role": "admin"}))
    p.add(0, touched("adopted", service="web"))
    p.add(0, started("third", attributes={"role": "intern"}))
    p.add(0, started("fourth", attributes={"role": "admin"}))
    assert [p.is_live(name) for name in ("first", "adopted", "third", "fourth")] == [True, True, False, True]
    p.add(1000, started("adopted", attributes={"role": "intern"}))
    assert (p.engine.counters[CLASS], p.engine.counters[FULL]) == (2, 0)
    p.tick_until(20_000)
    assert {ending.started_at for ending in p.endings} == {at(0)}, "the adopted session keeps its start"


def test_at_the_bound_orders_end_what_is_live_and_bar_what_comes() -> None:
    p = bounded()
    for number in range(3):
        p.add(0, started(f"kept-{number}", subject=f"u-{number}"))
    p.add(1000, revocation_ordered(1000, "r-1", session="unseen", subject="u-9"))
    p.add(1000, revocation_ordered(1000, "r-2", subject="u-0"))
    p.add(1100, started("kept-3", subject="u-3"))
    p.add(1100, started("unseen", subject="u-9"))
    p.tick(1200)
    revoked = {ending.session: ending.revocation for ending in p.endings if ending.cause is Cause.REVOKED}
    assert revoked == {ref("kept-0"): "r-2", ref("unseen"): "r-1"}


def test_memory_is_flat_under_a_flood() -> None:
    p = bounded(500)
    for number in range(500):
        p.add(0, started(f"kept-{number}", subject=f"u-{number}"))
    engine, add = p.engine, p.log.add
    flood = [add(10, started(f"flood-{n}", subject=f"f-{n}")) for n in range(10_000)]
    engine.apply(flood[:2_000])
    gc.collect()
    tracemalloc.start()
    try:
        engine.apply(flood[2_000:])
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Pydantic keeps the last 16,384 short strings; 8,000 sessions would be 2.4 MB.
    assert grown < 1_000_000, f"8,000 refused sessions left {grown} bytes"
    assert engine.live_sessions == 500


def test_the_index_asks_no_further_than_the_bound() -> None:
    index = SubjectIndex(["same"] * 5_000, [None] * 5_000)
    index.add_all(range(5_000), 5_000)
    assert index.has("same", None, 5_000)
    assert not index.has("same", None, 5_001)


def test_a_refused_login_of_unknown_age_falls_under_older_revocations_when_it_is_taken_in() -> None:
    """Who was revoked must not pass by having been refused once; who says the session's age is not concerned."""
    p = bounded(3)
    p.add(0, everyone_revoked(0))
    for number in range(3):
        p.add(1000, started(f"holder-{number}", subject="u-1"))
    p.add(2000, started("a", subject="u-2"))
    p.add(2000, started("b", subject="u-3"))
    p.add(2500, closed("holder-0", subject="u-1"))
    p.add(2600, touched("a", subject="u-2"))
    assert [(ending.session, ending.revocation) for ending in p.endings][-1] == (ref("a"), "r-1")
    p.add(2700, touched("b", subject="u-3", session_age_ms=700))
    assert p.is_live("b")
